"""Test .npz files against NumPy, and that none takes memory for what it only claims."""

import io
import os
import pickle
import re
import struct
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest

from soups.formats import CheckpointError, UnsafeCheckpointError, open_checkpoint

NAMES = ["f2", "f4", "f8", "c8", "c16", "b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">f4", ">i2", ">c16"]


def member(descr="'<f4'", shape="(2,)", data=b"\0" * 8, order="False", header=None, version=1):
    """Write an .npy file byte by byte."""
    text = header or f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"
    size = struct.pack("<H" if version == 1 else "<I", len(text.encode()))
    return b"\x93NUMPY" + bytes([version, 0]) + size + text.encode() + data


def archive(members, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as target:
        for name, content in members.items():
            target.writestr(name, content)
    return file.getvalue()


@pytest.fixture
def write(tmp_path):
    """Return a function that writes an archive."""

    def make(members, compression=zipfile.ZIP_STORED):
        path = tmp_path / "x.npz"
        path.write_bytes(archive(members, compression))
        return path

    return make


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", NAMES)
def test_what_numpy_writes(dtype, order, save, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "trunk/Transformer/encoderblock_0/kernel": rng.integers(0, 2, (3, 4, 2)) + rng.integers(0, 2, (3, 4, 2)) * 0.5,
        "t": np.array(3),
        "none": np.zeros((0, 3)),
        "row": np.arange(5),
    }
    arrays = {name: array.astype(dtype, order=order) for name, array in arrays.items()}
    path = tmp_path / "x.npz"
    save(path, **arrays)
    checkpoint = open_checkpoint(path)
    assert (
        set(checkpoint.leaves) == set(arrays)
        and not checkpoint.notes
        and checkpoint.sizes == {path: os.stat(path).st_size}
    )
    for name, array in arrays.items():
        leaf, read = checkpoint.leaves[name], checkpoint.read(name)
        assert leaf.shape == read.shape == array.shape and leaf.dtype == read.dtype == array.dtype.newbyteorder("=")
        assert leaf.nbytes == array.nbytes
        np.testing.assert_array_equal(read, array)
        mapped = save is np.savez and np.dtype(dtype).isnative
        assert checkpoint.making(name) == (0 if mapped else 2 * array.nbytes)
    np.testing.assert_array_equal(checkpoint.read("row", slice(1, 3)), arrays["row"][1:3])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_bfloat16_as_numpy_saves_it(save, tmp_path):
    values = np.arange(6, dtype=np.float32).reshape(2, 3).astype(ml_dtypes.bfloat16)
    save(tmp_path / "x.npz", a=values, b=np.asfortranarray(values))
    checkpoint = open_checkpoint(tmp_path / "x.npz")
    for name in "ab":
        assert checkpoint.read(name).dtype == checkpoint.leaves[name].dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(checkpoint.read(name), values)


def test_text_is_left_out_and_said(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros(2), note=np.array("hello\x1b[2J"), day=np.datetime64("2020-01-01"))
    checkpoint = open_checkpoint(tmp_path / "x.npz")
    assert list(checkpoint.leaves) == ["a"] and checkpoint.notes == ("left out of x.npz: 'note', 'day'",)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_headers_of_other_writers(version, write):
    headers = [
        "{'shape': (2L,), 'fortran_order': False, 'descr': '<f4'}",
        "{'descr':'<f4','shape':( 2 ,),'fortran_order':False,}   \n",
    ]
    data = np.float32([1, 2]).tobytes()
    for header in headers:
        checkpoint = open_checkpoint(write({"a.npy": member(header=header, data=data, version=version)}))
        assert checkpoint.read("a").tolist() == [1, 2]


def test_pickled_objects_are_not_read(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'marker'}",)

    np.savez(tmp_path / "x.npz", a=np.zeros(2), b=np.array([Attack()], object))
    with pytest.raises(UnsafeCheckpointError, match="'b' holds pickled objects, which could run code"):
        open_checkpoint(tmp_path / "x.npz")
    assert not (tmp_path / "marker").exists()
    (tmp_path / "x.npz").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match="is a pickle, but torch did not write it"):
        open_checkpoint(tmp_path / "x.npz")


MEMBERS = {
    "no array": (b"hello", "is not an array in NumPy's format"),
    "nothing": (b"", "is not an array in NumPy's format"),
    "version 4": (member(version=4), "is not an array in NumPy's format"),
    "a header beyond the end": (member()[:8] + b"\xff\xff" + b"x" * 100, "has a header of 65535 bytes"),
    "a long header": (member(header="{" + " " * 20_000), "has a header of 20001 bytes: damaged, or more than 10000"),
    "code": (member(descr="__import__('os').system('x')"), "does not describe a plain array"),
    "deep": (member(shape="(" * 5000), "does not describe a plain array"),
    "a structure": (member(descr="[('a', '<f4')]"), "does not describe a plain array"),
    "a key twice": (member(header="{'descr': '<f4', 'descr': '<f4', 'shape': (2,)}"), "does not describe"),
    "a key too many": (member(header="{'descr': '<f4', 'x': 1, 'fortran_order': False, 'shape': (2,)}"), "does not"),
    "a negative size": (member(shape="(-1,)"), "does not describe a plain array"),
    "an escape": (member(descr="'\x1b[2J'"), r"cannot be read, '\\x1b\[2J'"),
    "raw bytes": (member(descr="'|V8'"), "has a dtype that cannot be read, '|V8'"),
    "longdouble": (member(descr="'<f16'"), "has a dtype that cannot be read"),
    "too few bytes": (member(data=b"\0" * 7), "has 7 bytes; its shape and dtype make 8"),
    "too many bytes": (member(data=b"\0" * 9), "has 9 bytes; its shape and dtype make 8"),
    "a petabyte": (member(shape="(1000000, 1000000, 1000)"), "has 8 bytes; its shape and dtype make 4000000000000000"),
    "a huge number": (member(shape=f"({'9' * 5000},)"), "has a shape whose sizes are not 64-bit integers"),
    "beyond 64 bits": (member(shape="(9999999999999999999,)"), "a shape whose sizes are not non-negative integers"),
    "a product beyond 64 bits": (member(shape="(4294967296, 4294967296, 0)", data=b""), "more than 2^63 bytes"),
    "too many axes": (member(shape=f"({'1,' * 65})"), "has 65 dimensions"),
}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("case", MEMBERS)
def test_refuses_members(case, compression, write):
    content, message = MEMBERS[case]
    path = write({"good.npy": member(), "bad.npy": content}, compression)
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(path)
    text = str(error.value)
    assert text.startswith(f"{path}: 'bad'") and (message in text or re.search(message, text)) and text.isprintable()


def test_refuses_archives(write):
    with pytest.raises(CheckpointError, match=r"x\.npz is an archive that holds no arrays"):
        open_checkpoint(write({"readme.txt": b"hello"}))
    with pytest.warns(UserWarning, match="Duplicate"):
        path = write({"a.npy": member()})
        with zipfile.ZipFile(path, "a") as target:
            target.writestr("a.npy", member())
    with pytest.raises(CheckpointError, match="two entries of the same name"):
        open_checkpoint(path)
    with pytest.raises(CheckpointError, match="compressed in a way that NumPy does not write"):
        open_checkpoint(write({"a.npy": member()}, zipfile.ZIP_LZMA))


def claim(content, size):
    """Change the size that the directory of a packed archive claims."""
    at = content.rindex(b"PK\1\2")
    return content[: at + 24] + struct.pack("<I", size) + content[at + 28 :]


def test_a_small_file_that_claims_gigabytes_takes_no_memory(tmp_path):
    shape = f"({37 * 2**28 // 4},)"
    header = member(shape=shape, data=b"")
    path = tmp_path / "x.npz"
    whole = archive({"a.npy": header + b"\0" * 100}, zipfile.ZIP_DEFLATED)
    path.write_bytes(claim(whole, len(header) + 37 * 2**28 % 2**32))
    assert path.stat().st_size < 400
    tracemalloc.start()
    try:
        with pytest.raises(
            CheckpointError, match=r"x\.npz: 'a(\.npy)?'.* (bytes, but its \d+ cannot hold them|make \d+)"
        ):
            open_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_claim_within_what_deflate_can_do_is_found_out_when_it_is_read(tmp_path):
    header = member(shape="(10000,)", data=b"")
    path = tmp_path / "x.npz"
    path.write_bytes(claim(archive({"a.npy": header + b"\0" * 30_000}, zipfile.ZIP_DEFLATED), len(header) + 40_000))
    checkpoint = open_checkpoint(path)
    with pytest.raises(CheckpointError, match="is damaged: it is shorter than it claims"):
        checkpoint.read("a")


def test_damage_of_a_packed_member_is_found_when_it_is_read(write):
    values = np.random.default_rng(0).normal(size=20_000).astype(np.float32)
    path = write({"a.npy": member(shape="(20000,)", data=values.tobytes())}, zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    content[60_000] ^= 1
    path.write_bytes(content)
    checkpoint = open_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"x\.npz: 'a\.npy' is damaged"):
        checkpoint.read("a")
    path.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match="has changed since its header was read"):
        checkpoint.read("a")


@pytest.mark.parametrize("mark", "./")
def test_a_name_may_be_that_of_a_tensor_and_of_a_folder(mark, tmp_path):
    trees = {mark.join(name): np.full(2, index) for index, name in enumerate(["a", "ab", "abc", "xy"])}
    np.savez(tmp_path / "weights.npz", **trees)
    checkpoint = open_checkpoint(tmp_path / "weights.npz")
    assert {name: list(checkpoint.read(name)) for name in checkpoint.leaves} == {n: list(x) for n, x in trees.items()}


def test_the_weights_of_a_training_checkpoint(tmp_path):
    arrays = {"params/a/b": np.ones(2), "params/c": np.zeros(1), "opt/0/mu/a/b": np.ones(2), "chrono/steps": np.ones(1)}
    np.savez(tmp_path / "x.npz", **arrays)
    checkpoint = open_checkpoint(tmp_path / "x.npz")
    assert list(checkpoint.leaves) == ["a/b", "c"] and checkpoint.notes == ("left out of x.npz: 'chrono', 'opt'",)
    assert set(open_checkpoint(tmp_path / "x.npz", ".").leaves) == set(arrays)
    assert set(open_checkpoint(tmp_path / "x.npz", "opt/0/mu").leaves) == {"a/b"}
