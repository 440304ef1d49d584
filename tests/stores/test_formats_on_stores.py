"""Test that checkpoints of every format are on an object store what they are in a folder, and how they are read."""

import json
import pathlib
import struct

import numpy as np
import pytest

from soups import merging
from soups.formats import CheckpointError, open_checkpoint, write_safetensors
from soups.merging.lora import open_with_lora, split_reference
from soups.pool import save_checkpoint
from soups.stores import PART, Copies, store_path

DATA = pathlib.Path(__file__).parents[1] / "formats" / "data"
RNG = np.random.default_rng(0)
TREE = {
    "a": RNG.standard_normal((300, 40)).astype(np.float32),
    "b": np.arange(5),
    "s": np.float16(2),
    "e": np.ones((0, 3)),
}


def put(here, there):
    """Copy a file or a folder to a store."""
    for path in [here, *here.rglob("*")]:
        if path.is_file():
            name = path.relative_to(here).as_posix()
            (store_path(there) if name == "." else store_path(there) / name).write_bytes(path.read_bytes())
    return there


def same(here, there, open_model=open_checkpoint):
    one, other = open_model(here), open_model(there)
    assert list(one.leaves) == list(other.leaves) and one.aliases == other.aliases and one.metadata == other.metadata
    for name, leaf in one.leaves.items():
        a, b = one.read(name), other.read(name)
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        if leaf.shape and leaf.shape[0] > 2:
            part = (slice(1, 3), *(slice(None),) * (len(leaf.shape) - 1))
            assert one.read(name, part).tobytes() == other.read(name, part).tobytes()
    return one, other


def gguf(path, kind=0, words=3):
    """Write a GGUF file of one tensor [2, 32] of float32, or of Q8_0, with a vocabulary."""
    text = lambda string: struct.pack("<Q", len(string)) + string.encode()  # noqa: E731
    content = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + text("tokens") + struct.pack("<IIQ", 9, 8, words)
    content += b"".join(text(f"word {number:06d}") for number in range(words))
    content += text("w") + struct.pack("<IQQIQ", 2, 32, 2, kind, 0)
    data = (
        np.arange(64, dtype="<f4").tobytes() if kind == 0 else b"".join([struct.pack("<e", 0.5) + bytes(range(32))] * 2)
    )
    path.write_bytes(content + b"\0" * (-len(content) % 32) + data + b"\0" * (-len(data) % 32))
    return path


def npz(path, save):
    save(path, **TREE, t=np.asfortranarray(TREE["a"]), text=np.array("no weights"))
    return path


WHOLE = {  # files that are read in parts, and those that are copied
    "plain.npz": (lambda path: (np.savez(path, **TREE), path)[1], False),
    "packed.npz": (lambda path: npz(path, np.savez_compressed), True),
    "turned.npz": (lambda path: npz(path, np.savez), True),
    "x.gguf": (gguf, False),
}
TORCH = sorted(path.name for path in DATA.iterdir() if path.suffix in (".pt", ".pth", ".bin"))


@pytest.mark.parametrize("name", WHOLE)
def test_files(name, tmp_path, folder, proxy):
    make, whole = WHOLE[name]
    here = make(tmp_path / name)
    _, far = same(here, put(here, f"{folder}/{name}"))
    assert [note for note in far.notes if "cannot be read in parts" in note] == ([far.notes[-1]] if whole else [])
    if whole:
        proxy.seen.clear()
        far.read("a")
        assert not proxy.seen
        return
    read, late = open_checkpoint(f"{folder}/{name}"), open_checkpoint(f"{folder}/{name}")
    proxy.seen.clear()
    for leaf in read.leaves:
        read.read(leaf)
    assert len(proxy.seen) == 1  # small tensors are read together
    store_path(f"{folder}/{name}").write_bytes(here.read_bytes()[:-1] + b"\1")
    with pytest.raises(CheckpointError, match="has changed since its header was read"):
        late.read(next(iter(late.leaves)))


@pytest.mark.parametrize("name", TORCH)
def test_torch_files(name, folder):
    same(DATA / name, put(DATA / name, f"{folder}/{name}"))


def test_codes_are_numbers_of_a_copy(tmp_path, folder):
    here = gguf(tmp_path / "x.gguf", 8)
    there = put(here, f"{folder}/x.gguf")
    same(here, there, lambda path: open_checkpoint(path, dequantise=True))
    with pytest.raises(CheckpointError, match="Q8_0"):
        open_checkpoint(there)


def test_a_header_that_is_longer_than_what_is_read_first(tmp_path, folder):
    here = gguf(tmp_path / "x.gguf", words=PART // 16)
    same(here, put(here, f"{folder}/x.gguf"))
    here.write_bytes(here.read_bytes()[: 2 * PART // 3])
    with pytest.raises(CheckpointError, match="is truncated, or damaged"):
        open_checkpoint(put(here, f"{folder}/cut.gguf"))


def test_folders_of_other_files(tmp_path, folder):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "pytorch_model.bin").write_bytes((DATA / TORCH[0]).read_bytes())
    (tmp_path / "model" / "config.json").write_text('{"model_type": "bert"}')
    _, far = same(tmp_path / "model", put(tmp_path / "model", f"{folder}/model"))
    assert (far.path / "config.json").is_file() and not (far.path / "pytorch_model.bin").exists()
    (store_path(folder) / "none/x.npz").write_bytes(b"PK")
    with pytest.raises(
        CheckpointError, match=r"/none holds none of model\.safetensors, .*; open one of its files by name"
    ):
        open_checkpoint(f"{folder}/none")


def test_orbax(tmp_path, folder):
    save_checkpoint(tmp_path / "orbax", {"params": {"a": TREE["a"], "b": TREE["b"]}, "step": np.int32(3)})
    put(tmp_path / "orbax", f"{folder}/orbax")
    _, far = same(tmp_path / "orbax", f"{folder}/orbax", merging.open_model)
    assert "was copied to" in far.notes[-1] and str(far.directory) == f"{folder}/orbax"
    same(f"{tmp_path}/orbax@.", f"{folder}/orbax@.", merging.open_model)


def test_adapters(tmp_path, folder):
    write_safetensors(tmp_path / "model.safetensors", {"layer.weight": TREE["a"]})
    (tmp_path / "lora").mkdir()
    halves = {"A": RNG.standard_normal((2, 40)), "B": RNG.standard_normal((300, 2))}
    leaves = {f"base_model.model.layer.lora_{half}.weight": one.astype(np.float32) for half, one in halves.items()}
    write_safetensors(tmp_path / "lora" / "adapter_model.safetensors", leaves)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(config))
    model, lora = (
        put(tmp_path / "model.safetensors", f"{folder}/a+b.safetensors"),
        put(tmp_path / "lora", f"{folder}/lora"),
    )
    assert split_reference(model) == (model, None) and split_reference(f"{model}+{lora}") == (model, lora)
    open_model = lambda name: open_with_lora(name, merging.open_model)  # noqa: E731
    here, near, far = (
        open_model(name).read("layer.weight")
        for name in (
            f"{tmp_path}/model.safetensors+{tmp_path}/lora",
            f"{tmp_path}/model.safetensors+{lora}",
            f"{model}+{lora}",
        )
    )
    assert here.tobytes() == near.tobytes() == far.tobytes() != TREE["a"].tobytes()


def test_copies_need_room_and_are_made_in_parts(folder, monkeypatch):
    content = RNG.bytes(2 * PART + 5)
    path = store_path(folder) / "a/large"
    path.write_bytes(content)
    copies = Copies()
    copies.fill({"b/copy": path}, {path: len(content)})
    assert (copies.folder / "b/copy").read_bytes() == content
    with path.open() as file:
        assert file.seek(-5, 2) == len(content) - 5 and file.read() == content[-5:]
    with pytest.raises(
        OSError, match=r"1000000000000000000 bytes are to be copied there, but only \d+ are free: set TMPDIR"
    ):
        copies.fill({"c": path}, {path: 10**18})
    place = copies.folder
    del copies
    assert not place.exists()
