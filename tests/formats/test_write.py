"""Test writing safetensors: the bytes, the shards, threads, full disks, and going on after a kill."""

import errno
import json
import os
import re
import struct
import threading

import jax
import ml_dtypes
import numpy as np
import pytest

from soups.formats import Writer, open_checkpoint, write_safetensors
from soups.formats.mapping import hash_files

CODES = {
    np.float64: "F64",
    np.float32: "F32",
    np.float16: "F16",
    ml_dtypes.bfloat16: "BF16",
    ml_dtypes.float8_e4m3fn: "F8_E4M3",
    ml_dtypes.float8_e5m2: "F8_E5M2",
    ml_dtypes.float8_e8m0fnu: "F8_E8M0",
    np.complex64: "C64",
    np.int64: "I64",
    np.int32: "I32",
    np.int16: "I16",
    np.int8: "I8",
    np.uint64: "U64",
    np.uint32: "U32",
    np.uint16: "U16",
    np.uint8: "U8",
    np.bool_: "BOOL",
}


def raw_leaves(content):
    """Read a safetensors file as its format says, with struct and json alone."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    data = content[8 + length :]
    return {n: (h["dtype"], h["shape"], data[slice(*h["data_offsets"])]) for n, h in header.items()}, metadata, header


@pytest.fixture
def leaves(rng):
    """Return leaves of every kind of dtype, and of no and of one element."""
    arrays = {f"{np.dtype(d).name}": rng.integers(0, 2, (2, 3)).astype(d) for d in CODES}
    return arrays | {"scalar": np.float32(7).reshape(()), "none": np.zeros((3, 0), np.float16), "ö/\n": np.zeros(1)}


def specs(arrays):
    return {name: (array.shape, array.dtype) for name, array in arrays.items()}


# --- One file ---


def test_a_file_has_every_leaf_as_the_format_says(leaves, tmp_path):
    path = write_safetensors(tmp_path / "x.safetensors", leaves, {"format": "np", "ä": "ö"})
    written, metadata, header = raw_leaves(path.read_bytes())
    assert set(written) == set(leaves) and metadata == {"format": "np", "ä": "ö"}
    for name, array in leaves.items():
        assert written[name] == (CODES[array.dtype.type], list(array.shape), array.tobytes())
    ends = sorted(entry["data_offsets"] for entry in header.values())
    assert ends[0][0] == 0 and ends[-1][1] == sum(array.nbytes for array in leaves.values())
    for name, leaf in open_checkpoint(path).leaves.items():
        assert leaf.offset % leaf.dtype.itemsize == 0
        read = open_checkpoint(path).read(name)
        assert read.dtype == leaves[name].dtype and read.tobytes() == leaves[name].tobytes()
        assert read.shape == leaves[name].shape and (read.flags.aligned or not read.size)
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


def test_equal_leaves_make_equal_files_and_the_order_is_kept(tmp_path):
    arrays = {"b": np.zeros(2, np.float32), "a": np.ones(2, np.float32), "wide": np.zeros(1)}
    paths = [write_safetensors(tmp_path / name, arrays) for name in ("x", "y")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert list(raw_leaves(paths[0].read_bytes())[0]) == ["wide", "b", "a"]


def test_strided_arrays_are_written_in_their_order(tmp_path, rng):
    array = rng.normal(size=(4, 6)).astype(np.float32)
    path = write_safetensors(tmp_path / "x.safetensors", {"t": array.T, "r": array[:, ::-2]})
    np.testing.assert_array_equal(open_checkpoint(path).read("t"), array.T)
    np.testing.assert_array_equal(open_checkpoint(path).read("r"), array[:, ::-2])


BAD = {
    "nothing": ({}, None, "no leaves to write"),
    "a dtype": ({"a": np.zeros(1, np.complex128)}, None, r"'a': dtype complex128; it can be float64, float32"),
    "another byte order": ({"a": np.zeros(1, ">f4")}, None, r"'a': dtype >f4"),
    "the name of the metadata": (
        {"__metadata__": np.zeros(1)},
        None,
        "a name must be a string other than '__metadata__'",
    ),
    "a number as name": ({3: np.zeros(1)}, None, "a name must be a string other than '__metadata__'"),
    "metadata of numbers": ({"a": np.zeros(1)}, {"x": 1}, "must map strings to strings"),
}


@pytest.mark.parametrize("case", BAD)
def test_refuses_before_writing(case, tmp_path):
    arrays, metadata, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        write_safetensors(tmp_path / "x.safetensors", arrays, metadata)
    with pytest.raises(ValueError, match=message):
        Writer(tmp_path, specs(arrays), metadata=metadata)
    assert not list(tmp_path.iterdir())


def test_what_holds_no_numbers_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"x\.safetensors: b is a .*of key<fry>"):
        write_safetensors(tmp_path / "x.safetensors", {"a": np.ones(2), "b": jax.random.key(0)})
    with pytest.raises(ValueError, match=r"gs://bucket/x\.safetensors"):
        write_safetensors("gs://bucket/x.safetensors", {"a": np.ones(2)})


def test_refuses_a_header_that_no_reader_takes(tmp_path, monkeypatch):
    monkeypatch.setattr("soups.formats.safetensors.MAX_HEADER", 100)
    with pytest.raises(ValueError, match=r"a header of 112 bytes, more than 100: write fewer leaves"):
        write_safetensors(tmp_path / "x.safetensors", {"a": np.zeros(1)}, {"long": "x" * 30})


def test_a_full_disk_names_the_file_and_keeps_the_old_one(tmp_path, monkeypatch):
    path = write_safetensors(tmp_path / "x.safetensors", {"a": np.zeros(1)})
    old = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    message = f"cannot write {re.escape(str(path))}: No space left on device$"
    for call in ("pwrite", "posix_fallocate", "fsync", "replace"):
        with monkeypatch.context() as patch, pytest.raises(OSError, match=message) as error:
            patch.setattr(os, call, full)
            write_safetensors(path, {"a": np.ones(1)})
        assert error.value.errno == errno.ENOSPC
        assert path.read_bytes() == old and len(list(tmp_path.iterdir())) == 1


def test_file_systems_that_cannot_reserve_space(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    path = write_safetensors(tmp_path / "x.safetensors", {"a": np.ones(1)})
    assert open_checkpoint(path).read("a").tolist() == [1]
    monkeypatch.delattr(os, "posix_fallocate")
    path = write_safetensors(tmp_path / "x.safetensors", {"a": np.full(1, 2.0)})
    assert open_checkpoint(path).read("a").tolist() == [2]


def test_a_write_that_the_system_cuts_short_is_continued(tmp_path, monkeypatch, rng):
    array, pwrite = rng.normal(size=100), os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, content, offset: pwrite(file, content[:7], offset))
    path = write_safetensors(tmp_path / "x.safetensors", {"a": array})
    assert open_checkpoint(path).read("a").tobytes() == array.tobytes()


# --- A folder ---


def test_one_shard_has_no_index(leaves, tmp_path):
    with Writer(tmp_path, specs(leaves), metadata={"format": "np"}) as writer:
        for name, array in leaves.items():
            writer.write(name, array)
        writer.finish()
        writer.forget()
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    same = write_safetensors(tmp_path / "same", leaves, {"format": "np"})
    assert (tmp_path / "model.safetensors").read_bytes() == same.read_bytes()


@pytest.mark.parametrize(
    ("shard_bytes", "groups"),
    [
        (1, ["a", "b", "c", "d"]),
        (32, ["ab", "c", "d"]),
        (40, ["ab", "c", "d"]),
        (47, ["ab", "c", "d"]),
        (48, ["abc", "d"]),
        (100, ["abcd"]),
    ],
)
def test_shards_are_closed_before_they_are_too_long(shard_bytes, groups, tmp_path):
    arrays = {name: np.full(size, ord(name), np.float32) for name, size in zip("abcd", (4, 4, 4, 9), strict=True)}
    with Writer(tmp_path, specs(arrays), shard_bytes=shard_bytes) as writer:
        assert ["".join(names) for names in writer.shards.values()] == groups
        for name, array in reversed(arrays.items()):
            writer.write(name, array)
        writer.finish()
        writer.forget()
    checkpoint = open_checkpoint(tmp_path)
    assert list(checkpoint.leaves) == list("abcd")
    for name, array in arrays.items():
        np.testing.assert_array_equal(checkpoint.read(name), array)
    files = sorted(file.name for file in tmp_path.glob("*.safetensors"))
    if len(groups) > 1:
        assert files == [f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["metadata"] == {"total_size": 84} and list(index["weight_map"]) == list("abcd")
        assert index["weight_map"] == {n: files[i] for i, group in enumerate(groups) for n in group}
    assert len(list(tmp_path.iterdir())) == len(groups) + (len(groups) > 1)


def test_threads_write_parts(tmp_path, rng):
    arrays = {f"leaf_{i}": rng.normal(size=(8, 32)).astype(ml_dtypes.bfloat16) for i in range(6)}
    parts = [(name, start) for name in arrays for start in range(0, 256, 32)]
    order = rng.permutation(len(parts))
    with Writer(tmp_path, specs(arrays), shard_bytes=1024) as writer:

        def work(mine):
            for index in mine:
                name, start = parts[index]
                writer.write(name, arrays[name].reshape(-1)[start : start + 32], start)

        threads = [threading.Thread(target=work, args=(order[i::4],)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        writer.finish()
    for name, array in arrays.items():
        assert open_checkpoint(tmp_path).read(name).tobytes() == array.tobytes()


def test_what_is_not_wholly_written_is_named(tmp_path):
    with Writer(tmp_path, {name: ((4,), np.dtype(np.float32)) for name in "abcd"}) as writer:
        writer.write("a", np.zeros(4, np.float32))
        writer.write("b", np.zeros(3, np.float32), 1)
        writer.write("c", np.zeros(1, np.float32), 3)
        writer.write("c", np.zeros(2, np.float32), 0)
        writer.write("d", np.zeros(3, np.float32), 0)
        writer.write("d", np.zeros(3, np.float32), 1)  # twice is no harm
        with pytest.raises(ValueError, match=r"model\.safetensors is not finished: .* completely written: b, c$"):
            writer.finish()
        writer.write("b", np.zeros(1, np.float32))
        writer.write("c", np.zeros(1, np.float32), 2)
        writer.finish()
        writer.forget()


def test_wrong_writes_are_errors(tmp_path):
    with Writer(tmp_path, {"kernel": ((2, 2), np.dtype(np.float32)), "b": ((2,), np.dtype(np.float32))}) as writer:
        with pytest.raises(ValueError, match=r"unknown tensor 'kernal' \(did you mean 'kernel'\?\)"):
            writer.write("kernal", np.zeros(4, np.float32))
        with pytest.raises(ValueError, match=r"kernel has dtype float64 instead of float32"):
            writer.write("kernel", np.zeros(4))
        for array, start in ((np.zeros(5, np.float32), 0), (np.zeros(2, np.float32), 3), (np.zeros(1, np.float32), -1)):
            with pytest.raises(ValueError, match=r"kernel has 4 elements, not enough"):
                writer.write("kernel", array, start)
        with pytest.raises(ValueError, match=r"unknown shard 'x'"):
            writer.finish_shard("x")
        with pytest.raises(ValueError, match=r"unknown shard 'x'"):
            writer.is_done("x")
        writer.write("kernel", np.zeros((2, 2), np.float32))
        writer.write("b", np.zeros(2, np.float32))
        writer.finish()
        with pytest.raises(ValueError, match=r"b: its shard model\.safetensors is finished"):
            writer.write("b", np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="shard_bytes must be at least 1, not 0"):
        Writer(tmp_path, {"a": ((1,), np.dtype(np.float32))}, shard_bytes=0)
    with pytest.raises(ValueError, match=r"'a': shape \(-1,\) is negative"):
        Writer(tmp_path, {"a": ((-1,), np.dtype(np.float32))})


def test_a_closed_writer_writes_no_more(tmp_path):
    writer = Writer(tmp_path, {"a": ((1,), np.dtype(np.float32))})
    writer.close()
    with pytest.raises(ValueError, match="a: the writer is closed"):
        writer.write("a", np.zeros(1, np.float32))


def test_a_full_disk_is_noticed_before_any_tensor_is_made(tmp_path, monkeypatch):
    allocate, opened = os.posix_fallocate, []

    def full(descriptor, *rest):
        opened.append(descriptor)
        if len(opened) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        allocate(descriptor, *rest)

    monkeypatch.setattr(os, "posix_fallocate", full)
    second = rf"cannot write {re.escape(str(tmp_path))}/model-00002-of-00002\.safetensors: No space left"
    with pytest.raises(OSError, match=second):
        Writer(tmp_path, {name: ((1,), np.dtype(np.float32)) for name in "ab"}, shard_bytes=4)
    for descriptor in opened:  # both are closed again
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


# --- Going on ---

ARRAYS = {name: np.full(4, ord(name), np.float32) for name in "abc"}
SHARDS = [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]


def resumed(folder, **kwargs):
    return Writer(folder, **({"leaves": specs(ARRAYS), "shard_bytes": 16, "metadata": {"soup": "1"}} | kwargs))


@pytest.fixture
def killed(tmp_path):
    """Return a folder whose writer was killed when one shard was finished, and one written but not finished."""
    writer = resumed(tmp_path)
    writer.write("a", ARRAYS["a"])
    writer.finish_shard(SHARDS[0])
    writer.finish_shard(SHARDS[0])
    writer.write("b", ARRAYS["b"])
    writer.close()
    return tmp_path


def test_finished_shards_stay_and_the_others_begin_anew(killed):
    before = (killed / SHARDS[0]).stat()
    with resumed(killed) as writer:
        assert [writer.is_done(shard) for shard in SHARDS] == [True, False, False]
        with pytest.raises(ValueError, match="not finished"):
            writer.finish()  # what was written before the kill may not be on the disk
        for name in "bc":
            writer.write(name, ARRAYS[name])
        writer.finish()
        writer.forget()
        assert all(map(writer.is_done, SHARDS))
    after = (killed / SHARDS[0]).stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(open_checkpoint(killed).read(name), array)
    assert len(list(killed.iterdir())) == 4


def test_a_damaged_shard_is_not_finished(killed):
    content = (killed / SHARDS[0]).read_bytes()
    note = (killed / f"{SHARDS[0]}.done").read_bytes()

    def is_done(file, damaged):
        (killed / SHARDS[0]).write_bytes(content)
        (killed / f"{SHARDS[0]}.done").write_bytes(note)
        (killed / file).write_bytes(damaged)
        with resumed(killed) as writer:
            return writer.is_done(SHARDS[0])

    assert is_done(SHARDS[0], content)
    for position in (0, 20, len(content) - 1):
        damaged = bytearray(content)
        damaged[position] ^= 1
        assert not is_done(SHARDS[0], damaged)
    assert not is_done(SHARDS[0], content[:-1])
    assert not is_done(SHARDS[0], content + b"\0")
    for damaged in (b"", b"[]", b"{}", note[:-3]):
        assert not is_done(f"{SHARDS[0]}.done", damaged)


@pytest.mark.parametrize(
    "change", [{"metadata": {"soup": "2"}}, {"leaves": {n: ((2, 2), np.dtype("f4")) for n in "abc"}}]
)
def test_shards_of_another_soup_are_not_finished(change, killed):
    with resumed(killed, **change) as writer:
        assert not any(map(writer.is_done, SHARDS))


@pytest.mark.parametrize("change", [{"shard_bytes": 32}, {"shard_bytes": 100}])
def test_shards_of_another_division_are_named(change, killed):
    with pytest.raises(ValueError, match=rf"holds files of another checkpoint, remove them first: {SHARDS[0]}"):
        resumed(killed, **change)


def test_a_shard_is_noted_only_after_it_is_on_the_disk(tmp_path, monkeypatch):
    fsync, synced = os.fsync, []

    def watched(descriptor):
        assert synced or not any((tmp_path / f"{shard}.done").exists() for shard in SHARDS)
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    with resumed(tmp_path) as writer:
        writer.write("a", ARRAYS["a"])
        monkeypatch.setattr(os, "fsync", watched)
        writer.finish_shard(SHARDS[0])
    assert synced[0] == SHARDS[0] and (tmp_path / f"{SHARDS[0]}.done").exists()


def test_what_a_killed_process_was_writing_does_not_stay(killed):
    stray = killed / f"plan.json.{'0' * 32}.unfinished"
    stray.write_text("half")
    with resumed(killed) as writer:
        for shard, names in writer.shards.items():
            for name in names if not writer.is_done(shard) else ():
                writer.write(name, ARRAYS[name])
        writer.finish()
        writer.forget()
    assert not stray.exists()


@pytest.mark.parametrize("make", [lambda path: None, os.mkdir, os.mkfifo], ids=["nothing", "a folder", "a pipe"])
def test_what_cannot_be_hashed_is_named_as_the_system_names_it(tmp_path, make):
    make(tmp_path / "x")
    with pytest.raises(FileNotFoundError) as error:
        hash_files(tmp_path / "x")
    assert (error.value.errno, error.value.filename) == (errno.ENOENT, str(tmp_path / "x"))
