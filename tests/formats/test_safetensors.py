"""Test reading safetensors files against files written by hand, and that every wrong one is refused by name."""

import errno
import json
import math
import os
import re
import struct
from unittest import mock

import ml_dtypes
import numpy as np
import pytest

from soups.formats import CheckpointError, open_checkpoint, tensors, write_safetensors

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "U16": np.uint16,
    "U32": np.uint32,
    "U64": np.uint64,
    "C64": np.complex64,
    "BOOL": np.bool_,
}


def values(dtype, shape, seed=0):
    rng = np.random.default_rng(seed)
    if dtype == np.bool_:
        return np.asarray(rng.integers(0, 2, shape), np.bool_)
    return np.asarray(rng.integers(0, 9, shape)).astype(dtype)


@pytest.fixture
def refused(tmp_path):
    """Check that a file of these bytes is refused with this message, which names the file."""

    def check(content, message):
        path = tmp_path / "bad.safetensors"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{re.escape(str(path))}.*{message}"):
            open_checkpoint(path)

    return check


# --- Reading ---


@pytest.mark.parametrize("name", DTYPES)
def test_reads_every_dtype(name, tmp_path, make):
    arrays = {
        "a": values(DTYPES[name], (2, 3)),
        "scalar": values(DTYPES[name], (), 1),
        "none": values(DTYPES[name], (0, 4)),
    }
    entries, data = {}, b""
    for key, array in arrays.items():
        entries[key] = (name, list(array.shape), len(data), len(data) + array.nbytes)
        data += array.tobytes()
    path = tmp_path / "x.safetensors"
    path.write_bytes(make.safetensors_bytes(entries, data, {"format": "pt"}))
    checkpoint = open_checkpoint(path)
    assert list(checkpoint.leaves) in (["a", "scalar", "none"], ["a", "none", "scalar"])
    assert checkpoint.metadata == {"format": "pt"} and checkpoint.path == path and not checkpoint.aliases
    for key, array in arrays.items():
        leaf, read = checkpoint.leaves[key], checkpoint.read(key)
        assert (leaf.name, leaf.shape, leaf.dtype, leaf.nbytes, leaf.file) == (
            *(key, array.shape, array.dtype, array.nbytes),
            path,
        )
        assert read.dtype == array.dtype and read.shape == array.shape and not read.flags.writeable
        assert read.tobytes() == array.tobytes()
        assert path.read_bytes()[leaf.offset : leaf.offset + leaf.nbytes] == array.tobytes()


def test_leaves_come_in_file_order_and_not_in_the_header_s(tmp_path, make):
    path = tmp_path / "x.safetensors"
    path.write_bytes(make.safetensors_bytes({"b": ("U8", [2], 3, 5), "a": ("U8", [3], 0, 3)}, b"aaabb"))
    checkpoint = open_checkpoint(path)
    assert list(checkpoint.leaves) == ["a", "b"]
    assert checkpoint.read("b").tobytes() == b"bb"


def test_tensors_at_odd_offsets_have_their_values(tmp_path, make):
    wide = np.arange(1, 4).astype(ml_dtypes.bfloat16)
    path = tmp_path / "x.safetensors"
    content = make.safetensors_bytes({"odd": ("U8", [1], 0, 1), "wide": ("BF16", [3], 1, 7)}, b"\x05" + wide.tobytes())
    for padding in range(2):  # one of the two puts `wide` at an odd address
        path = tmp_path / f"{padding}.safetensors"
        header = content[8:-7] + b" " * padding
        path.write_bytes(make.safetensors_bytes(header, content[-7:]))
        read = open_checkpoint(path).read("wide")
        np.testing.assert_array_equal(read.astype(np.float32), [1, 2, 3])
        np.testing.assert_array_equal((read + read).astype(np.float32), [2, 4, 6])


def test_opening_reads_no_tensor_and_reading_maps(tmp_path):
    path = write_safetensors(tmp_path / "x.safetensors", {"a": np.zeros(3, np.float32), "b": np.ones(3, np.float32)})
    checkpoint = open_checkpoint(path)
    leaf = checkpoint.leaves["a"]
    with open(path, "r+b") as file:  # what is written after opening is seen: nothing was read before, or copied
        file.seek(leaf.offset)
        file.write(np.float32([5, 6, 7]).tobytes())
    mapped = checkpoint.read("a")
    assert mapped.tolist() == [5, 6, 7]
    with open(path, "r+b") as file:
        file.seek(leaf.offset)
        file.write(np.float32([8]).tobytes())
    assert mapped.tolist() == [8, 6, 7]


def test_tied_tensors_of_the_metadata_are_aliases(tmp_path, make):
    path = tmp_path / "x.safetensors"
    metadata = {"lm_head": "embedding", "format": "pt", "embedding": "embedding"}
    path.write_bytes(make.safetensors_bytes({"embedding": ("U8", [2], 0, 2)}, b"xy", metadata))
    checkpoint = open_checkpoint(path)
    assert checkpoint.aliases == {"lm_head": "embedding"} and list(checkpoint.leaves) == ["embedding"]
    assert checkpoint.read("lm_head").tobytes() == b"xy"


def test_lack_of_memory_is_no_change_of_the_file(tmp_path, monkeypatch):
    write_safetensors(tmp_path / "a.safetensors", {"x": np.ones(3)})
    opened = open_checkpoint(tmp_path / "a.safetensors")
    monkeypatch.setattr(tensors, "mapped", mock.Mock(side_effect=OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))))
    with pytest.raises(OSError, match="Cannot allocate memory") as error:
        opened.read("x")
    assert error.value.errno == errno.ENOMEM


def test_a_name_that_is_not_there_is_an_error(tmp_path):
    checkpoint = open_checkpoint(write_safetensors(tmp_path / "x.safetensors", {"kernel": np.zeros(3)}))
    with pytest.raises(CheckpointError, match=r"no tensor 'kernal' \(did you mean 'kernel'\?\)"):
        checkpoint.read("kernal")


@pytest.mark.parametrize("size", [0, 40])
def test_a_file_that_changed_since_is_an_error(size, tmp_path):
    path = write_safetensors(tmp_path / "x.safetensors", {"a": np.zeros(300)})
    checkpoint = open_checkpoint(path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"has changed since its header was read"):
        checkpoint.read("a")
    path.unlink()
    with pytest.raises(CheckpointError, match=r"has changed since its header was read"):
        checkpoint.read("a")


# --- What is refused ---

ENTRIES = {
    "an unknown dtype": ({"a": ("Q4", [4], 0, 2)}, "tensor 'a' has a dtype that cannot be read, 'Q4'; known are F64"),
    "an escape": ({"\x1b": ("\x1b[2J", [4], 0, 2)}, r"tensor '\\x1b' has a dtype that cannot be read, '\\x1b\[2J'"),
    "F4": ({"a": ("F4", [4], 0, 2)}, "tensor 'a' has a dtype that cannot be read, F4: quantised numbers smaller than"),
    "F6_E2M3": ({"a": ("F6_E2M3", [4], 0, 3)}, "tensor 'a' has a dtype that cannot be read, F6_E2M3: quantised"),
    "F6_E3M2": ({"a": ("F6_E3M2", [4], 0, 3)}, "tensor 'a' has a dtype that cannot be read, F6_E3M2: quantised"),
    "no dtype": ({"a": (3, [4], 0, 2)}, "tensor 'a' has a dtype that cannot be read, a int"),
    "a negative size": ({"a": ("U8", [-1, -4], 0, 4)}, "tensor 'a' has a shape whose sizes are not non-negative"),
    "a boolean size": ({"a": ("U8", [True], 0, 1)}, "tensor 'a' has a shape whose sizes are not non-negative"),
    "a string as shape": ({"a": ("U8", "12", 0, 1)}, "tensor 'a' has a shape that is not a list"),
    "a fraction": ({"a": ("U8", [4.0], 0, 4)}, "not valid JSON: 4.0 is not an integer"),
    "not a number": ({"a": ("U8", [math.nan], 0, 4)}, "not valid JSON: NaN is not an integer"),
    "an overflow": ({"a": ("U8", [1 << 32, 1 << 32], 0, 0)}, "tensor 'a' has a shape of more than 2.63 bytes"),
    "an empty overflow": ({"a": ("U8", [0, 1 << 62, 4], 0, 0)}, "tensor 'a' has a shape of more than 2.63 bytes"),
    "a huge number": ({"a": ("U8", [10**30], 0, 0)}, "an integer of more than 64 bits"),
    "too many dimensions": ({"a": ("U8", [1] * 65, 0, 1)}, "tensor 'a' has 65 dimensions, more than 64"),
    "another size": ({"a": ("F32", [2], 0, 4)}, "tensor 'a' has 4 bytes of data; its shape and dtype make 8"),
    "a negative offset": ({"a": ("U8", [2], -1, 1)}, "tensor 'a' must have two non-negative integers"),
    "an offset backwards": ({"a": ("U8", [2], 4, 2)}, "tensor 'a' has -2 bytes of data"),
    "an overlap": ({"a": ("U8", [3], 0, 3), "b": ("U8", [2], 2, 4)}, "tensor 'b' overlaps the one before it"),
    "a hole": ({"a": ("U8", [1], 0, 1), "b": ("U8", [2], 2, 4)}, "tensor 'b' leaves a gap before it"),
    "a hole at the start": ({"a": ("U8", [3], 1, 4)}, "tensor 'a' leaves a gap before it"),
    "a tensor behind the end": ({"a": ("U8", [5], 0, 5)}, "is truncated: tensor 'a' ends at byte"),
    "bytes behind the last": ({"a": ("U8", [3], 0, 3)}, "1 bytes after the last tensor"),
}


@pytest.mark.parametrize("case", ENTRIES)
def test_refuses_entries(case, refused, make):
    entries, message = ENTRIES[case]
    refused(make.safetensors_bytes(entries, b"abcd"), message)


GOOD = b'"dtype":"U8","shape":[1],"data_offsets":[0,1]'
HEADERS = {
    "no object": (b"[1]", "not a safetensors file"),
    "no JSON": (b'{"a"', "the header is not valid"),
    "a leading space": (b' {"a":{%s}}' % GOOD, "not a safetensors file"),
    "a name twice": (b'{"a":{%s},"a":{%s}}' % (GOOD, GOOD), "the header is not valid JSON: 'a' appears twice"),
    "a key twice": (b'{"a":{"dtype":"U8",%s}}' % GOOD, "'dtype' appears twice"),
    "half a character": (b'{"\\ud800":{%s}}' % GOOD, "the header is not valid"),
    "no UTF-8": (b'{"\xff":{%s}}' % GOOD, "the header is not valid"),
    "another encoding": ("{}".encode("utf-16-le"), "the header is not valid"),
    "a number as tensor": (b'{"a":3}', "tensor 'a' must have a dtype, a shape and data_offsets"),
    "another key": (b'{"a":{%s,"x":1}}' % GOOD, "tensor 'a' must have a dtype, a shape and data_offsets"),
    "one offset": (b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[1]}}', "tensor 'a' must have two non-negative"),
    "metadata of numbers": (b'{"__metadata__":{"a":1}}', "__metadata__ must map strings to strings"),
    "metadata as list": (b'{"__metadata__":[]}', "__metadata__ must map strings to strings"),
    "deep nesting": (b'{"a":' + b"[" * 100_000, "the header is not valid"),
    "a long name": (b'{"%s":3}' % (b"x" * 5000), "tensor 'x{200}'\\.\\.\\. must have"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_refuses_headers(case, refused, make):
    header, message = HEADERS[case]
    refused(make.safetensors_bytes(header, b"\0"), message)


@pytest.mark.parametrize("content", [b"", b"\1\0", struct.pack("<Q", 3) + b"{}", struct.pack("<Q", 10**8) + b"{}"])
def test_refuses_a_length_beyond_the_file(content, refused):
    refused(content, "is truncated" if content else "is empty")


@pytest.mark.parametrize(
    "content", [struct.pack("<Q", 2**63) + b"{}" * 9, b"\xff" * 20, b"these are no weights at all", b"hello\n"]
)
def test_a_length_that_no_header_has_is_of_another_file(content, refused):
    refused(content, "is not a safetensors file: its first bytes say a header of")


def test_refuses_a_longer_header_than_the_format_allows(tmp_path):
    path = tmp_path / "x.safetensors"
    with open(path, "wb") as file:  # a hole in the file system: not one byte of it is read
        file.write(struct.pack("<Q", 100_000_001) + b"{")
        file.truncate(200_000_000)
    with pytest.raises(CheckpointError, match=r"a header of 100000001 bytes, more than 100000000"):
        open_checkpoint(path)


def test_every_truncation_is_an_error(tmp_path, make):
    content = make.safetensors_bytes({"a": ("U8", [3], 0, 3), "b": ("U8", [2], 3, 5)}, b"aaabb")
    for size in range(len(content)):
        path = tmp_path / f"{size}.safetensors"
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointError):
            open_checkpoint(path)


def test_no_tensors_are_no_error(tmp_path, make):
    path = tmp_path / "x.safetensors"
    path.write_bytes(make.safetensors_bytes(json.dumps({}).encode()))
    assert open_checkpoint(path).leaves == {}
