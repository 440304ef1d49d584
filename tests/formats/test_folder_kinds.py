"""Test files as they are found in the wild: under other names, and other things in their place."""

import gzip
import io
import os
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from soups.formats import CheckpointError, open_checkpoint, write_safetensors

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
NAMES = ["x.safetensors", "x.pt", "x.bin", "x.npz", "x.gguf", "x.pth.tar", "x", "x.unknown"]


@pytest.fixture
def files(tmp_path, make, floats):
    """Return a file of each kind with a tensor "a"."""
    tensor = make.pickled(make.mapping({"a": make.tensor(make.storage("FloatStorage", "0", 6), (6,), (1,))}))
    make.write_zip(tmp_path / "zip", tensor, {"0": floats[1]})
    make.write_legacy(tmp_path / "stream", tensor, {"0": (6, floats[1])})
    write_safetensors(tmp_path / "s.safetensors", {"a": floats[0]})
    np.savez(tmp_path / "n.npz", a=floats[0])
    return {
        kind: tmp_path / name
        for kind, name in {"zip": "zip", "stream": "stream", "safetensors": "s.safetensors", "npz": "n.npz"}.items()
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["zip", "stream", "safetensors", "npz"])
def test_the_first_bytes_decide(kind, name, files, floats, tmp_path):
    path = tmp_path / "renamed" / name
    path.parent.mkdir()
    shutil.copy(files[kind], path)
    np.testing.assert_array_equal(open_checkpoint(path).read("a"), floats[0])


def test_a_header_of_safetensors_may_have_the_length_of_another_kinds_first_bytes(tmp_path):
    # "PK" and 0x80 0x02 as lengths
    for length in (0x4B50, 0x0280):
        path = tmp_path / f"{length}.safetensors"
        text = b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}'
        path.write_bytes(length.to_bytes(8, "little") + text.ljust(length) + b"\1\2")
        assert open_checkpoint(path).read("a").tolist() == [1, 2]


def tar():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo("storages")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"abcd"))
    return file.getvalue()


IN_PLACE = {
    "nothing": (b"", "is empty"),
    "a pointer": (POINTER, "is a Git LFS pointer, not the file itself: run `git lfs pull`"),
    "a page": (b"\n <!DOCTYPE html>\n<html>", "is a web page, not the file: download it again"),
    "a page in capitals": (b"<HTML><BODY>", "is a web page"),
    "an error of a store": (b"\xef\xbb\xbf<?xml version='1.0'?><Error>", "is a web page"),
    "torch 0.1": (tar(), "is a tar archive, as torch 0.1 wrote"),
    "packed": (gzip.compress(b"x" * 100), "is compressed: unpack it first"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 100, "is an HDF5 file"),
    "an array": (b"\x93NUMPY\1\0" + b"\0" * 100, "is a single array without a name"),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", IN_PLACE)
def test_what_lies_in_a_file_s_place(case, name, tmp_path):
    content, message = IN_PLACE[case]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(path)
    assert str(error.value).startswith(f"{path} {message}")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"])
def test_a_pointer_in_a_folder(name, tmp_path):
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(CheckpointError, match=rf"{name} is a Git LFS pointer"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["x", "x.bin"])
def test_a_file_of_no_kind(name, tmp_path):
    (tmp_path / name).write_bytes(b"\1\2\3" * 100)
    message = "neither a zip archive nor a pickle" if name == "x.bin" else "is of an unknown kind"
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / name)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "x.pt")
    (tmp_path / "loop.pt").symlink_to("loop.pt")
    messages = {
        tmp_path / "x.pt": r"x\.pt is not a file",
        tmp_path / "loop.pt": r"loop\.pt'? cannot be read: Too many levels",
    }
    for path, message in messages.items():
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(path)
    for path in (tmp_path / ("x" * 300), "a\0b"):
        with pytest.raises(ValueError, match="is not a path"):
            open_checkpoint(path)
    (tmp_path / "gone.pt").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match=r"gone\.pt is a link to a file that is not there"):
        open_checkpoint(tmp_path / "gone.pt")


@pytest.mark.parametrize("folder", [True, False])
def test_what_cannot_be_read(folder, files, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    for opening in ("builtins.open", "pathlib.Path.open"):
        monkeypatch.setattr(opening, refuse)
    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    path = tmp_path if folder else files["zip"]
    with pytest.raises(CheckpointError, match=f"{path} cannot be read: Permission denied"):
        open_checkpoint(path)


def test_what_reads_other_kinds_is_not_imported(tmp_path):
    path = write_safetensors(tmp_path / "x.safetensors", {"a": np.ones(3)})
    code = "import sys, soups.cli.merge; from soups.merging.sources import open_model; open_model(sys.argv[1])\n"
    code += "print({name.removeprefix('soups.formats.') for name in sys.modules} & set(sys.argv[2:]))"
    others = ["gguf", "msgpack", "npz", "orbax", "torch_file", "zarr", "archive", "zipfile", "tensorstore", "jax"]
    made = subprocess.run([sys.executable, "-c", code, path, *others], capture_output=True, text=True, check=True)
    assert made.stdout == "set()\n"


def test_the_state_of_an_optimizer_is_not_taken_for_weights(tmp_path):
    leaves = {f"{part}.w": np.ones(2, np.float32) for part in ("model", "optimizer.exp_avg", "optimizer.exp_avg_sq")}
    path = write_safetensors(tmp_path / "state.safetensors", leaves)
    with pytest.raises(
        CheckpointError, match=r"holds the state of an optimizer: 'optimizer.exp_avg.w', .*; choose one"
    ):
        open_checkpoint(path)
    assert list(open_checkpoint(path, "model").leaves) == ["w"] and set(open_checkpoint(path, ".").leaves) == set(
        leaves
    )
