"""Test GGUF files, written here byte by byte from the format's description."""

import re
import struct
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from soups.formats import CheckpointError, gguf, open_checkpoint

KINDS = {"f4": 0, "f2": 1, "i1": 24, "i2": 25, "i4": 26, "i8": 27, "f8": 28, ml_dtypes.bfloat16: 30}


def text(string):
    content = string if isinstance(string, bytes) else string.encode()
    return struct.pack("<Q", len(content)) + content


def value(kind, content):
    return struct.pack("<I", kind) + content


def array(kind, items):
    return value(9, struct.pack("<IQ", kind, len(items)) + b"".join(items))


def info(name, shape, kind, offset):
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, offset)


def gguf_bytes(infos, data=b"", metadata=(), version=3, alignment=32, tensors=None):
    """Return a GGUF file; `metadata`: pairs of names and values."""
    content = b"GGUF" + struct.pack("<IQQ", version, len(infos) if tensors is None else tensors, len(metadata))
    content += b"".join(text(name) + value for name, value in metadata) + b"".join(infos)
    return content + b"\0" * (-len(content) % alignment) + data


META = [
    ("general.architecture", value(8, text("llama"))),
    ("general.alignment", value(4, struct.pack("<I", 64))),
    ("tokens", array(8, [text("a"), text("bc")])),
    ("scores", array(6, [struct.pack("<f", 1)] * 5)),
    ("nested", array(9, [array(0, [b"\1"])[4:]])),
    ("eps", value(6, struct.pack("<f", 0.5))),
    ("flag", value(7, b"\1")),
    ("count", value(11, struct.pack("<q", -3))),
    ("name\x1b", value(8, text(b"\xff\x1b"))),
]


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a file."""

    def make(*args, name="x.gguf", **kwargs):
        path = tmp_path / name
        path.write_bytes(args[0] if isinstance(args[0], bytes) else gguf_bytes(*args, **kwargs))
        return path

    return make


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("name", ["x.gguf", "weights"])
def test_every_dtype_and_the_order_of_axes(version, name, write):
    arrays, infos, data = {}, [], b""
    for dtype, kind in KINDS.items():
        for shape in [(2, 3), (5,), ()]:
            numbers = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
            arrays[f"{kind}.{len(shape)}"] = numbers
            infos.append(info(f"{kind}.{len(shape)}", shape, kind, len(data)))
            data += numbers.tobytes() + b"\0" * (-numbers.nbytes % 64)
    checkpoint = open_checkpoint(write(infos, data, META, version, 64, name=name))
    assert list(checkpoint.leaves) == list(arrays)
    for tensor, numbers in arrays.items():
        read = checkpoint.read(tensor)
        assert read.dtype == checkpoint.leaves[tensor].dtype == numbers.dtype and checkpoint.making(tensor) == 0
        np.testing.assert_array_equal(read, numbers)
    expected = {"general.architecture": "llama", "general.alignment": "64", "eps": "0.5", "flag": "True", "count": "-3"}
    assert checkpoint.metadata == expected | {"name\x1b": "\\xff\x1b"}


def test_a_file_without_padding_at_its_end(write):
    checkpoint = open_checkpoint(write([info("a", (3,), 0, 0)], np.float32([1, 2, 3]).tobytes()))
    assert checkpoint.read("a").tolist() == [1, 2, 3]


@pytest.mark.parametrize("kind", gguf.QUANTISED)
def test_codes_are_refused_by_name(kind, write):
    infos = [info("norm", (32,), 0, 0), info("blk.0.w", (256,), kind, 128), info("blk.1.w", (256,), kind, 512)]
    name = gguf.QUANTISED[kind]
    message = rf"quantised: it holds {name} \('blk\.0\.w'\), and averaging codes is wrong; save it as F16 or F32"
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(write(infos, b"\0" * 1024))


def test_the_numbers_of_quantised_kinds():
    # from ggml.h
    known = {2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 14: "Q6_K", 20: "IQ4_NL", 39: "MXFP4"}
    assert known.items() <= gguf.QUANTISED.items() and not set(gguf.QUANTISED) & set(gguf.DTYPES)


ONE = info("a", (2,), 0, 0)
HUGE = 2**64 - 1
FILES = {
    "nothing": (b"", "is empty"),
    "the magic alone": (b"GGUF", "is truncated"),
    "version 1": (gguf_bytes([ONE], b"\0" * 8, version=1), "is GGUF of version 1; convert it"),
    "version 4": (gguf_bytes([ONE], b"\0" * 8, version=4), "is GGUF of version 4"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 1, 0), "is big-endian"),
    "no tensors": (gguf_bytes([], b""), "holds no tensors"),
    "tensors that are not there": (gguf_bytes([ONE], b"\0" * 8, tensors=HUGE), "is truncated, or damaged|claims"),
    "values that are not there": (b"GGUF" + struct.pack("<IQQ", 3, 0, HUGE), "is truncated, or damaged at byte 24"),
    "a long name": (gguf_bytes([info("a" * 1001, (2,), 0, 0)], b"\0" * 8), "whose name is too long"),
    "a name beyond the end": (b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + b"\xff" * 8, "is truncated, or damaged"),
    "many axes": (gguf_bytes([info("a", (1,) * 65, 0, 0)], b"\0" * 8), "65 dimensions"),
    "two of a name": (gguf_bytes([ONE, info("a", (2,), 0, 32)], b"\0" * 40), "two tensors of the same name: 'a'"),
    "an unknown kind": (gguf_bytes([info("a", (2,), 99, 0)], b"\0" * 8), "unknown kinds, '99'"),
    "a hole": (
        gguf_bytes([info("a\x1b", (2,), 0, 32)], b"\0" * 40),
        r"'a\x1b' leaves a gap before it: offset 32, not 0",
    ),
    "overlap": (
        gguf_bytes([ONE, info("b", (2,), 0, 8)], b"\0" * 40),
        "'b' overlaps the one before it: offset 8, not 32",
    ),
    "truncated": (gguf_bytes([ONE], b"\0" * 7), "is truncated: tensor 'a' ends at byte"),
    "a huge tensor": (gguf_bytes([info("a", (2**40,), 0, 0)], b"\0" * 8), "is truncated: .* ends at byte"),
    "beyond 64 bits": (gguf_bytes([info("a", (2**62, 2**62), 0, 0)], b"\0" * 8), "more than 2^63 bytes"),
    "beyond 64 bits, one axis": (
        gguf_bytes([info("a", (HUGE,), 0, 0)], b"\0" * 8),
        "sizes are not non-negative integers",
    ),
    "bytes behind": (gguf_bytes([ONE], b"\0" * 64), "32 bytes after the last tensor"),
    "one of several": (
        gguf_bytes([ONE], b"\0" * 8, [("split.count", value(2, b"\3\0"))]),
        "is one of '3' parts of a model; join them first",
    ),
    "no alignment": (
        gguf_bytes([ONE], b"\0" * 8, [("general.alignment", value(4, b"\0" * 4))]),
        "an alignment that is",
    ),
    "words as alignment": (
        gguf_bytes([ONE], b"", [("general.alignment", value(8, text("\x1b")))]),
        r"number of bytes, '\x1b'",
    ),
    "a value twice": (gguf_bytes([ONE], b"", [("a", value(0, b"\0"))] * 2), "two metadata fields of the same name"),
    "a value of no kind": (gguf_bytes([ONE], b"", [("a", value(13, b"\0"))]), "metadata of an unknown kind, 13"),
    "deep arrays": (
        gguf_bytes([ONE], b"", [("a", value(9, struct.pack("<IQ", 9, 1) * 100))]),
        "metadata of an unknown kind, 9",
    ),
    "a huge array": (
        gguf_bytes([ONE], b"", [("a", value(9, struct.pack("<IQ", 4, HUGE)))]),
        "is truncated, or damaged",
    ),
    "a huge array of strings": (gguf_bytes([ONE], b"", [("a", value(9, struct.pack("<IQ", 8, HUGE)))]), "is truncated"),
}


@pytest.mark.parametrize("case", FILES)
def test_refuses(case, write):
    content, message = FILES[case]
    path = write(content)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as error:
            open_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    found = str(error.value)
    assert str(path) in found and (message in found or re.search(message, found)) and found.isprintable()


def test_a_header_of_too_many_values(write, monkeypatch):
    monkeypatch.setattr(gguf, "MAX_STEPS", 100)
    strings = [text("")] * 200
    with pytest.raises(CheckpointError, match="has a header of more than 100 values"):
        open_checkpoint(write([ONE], b"\0" * 8, [("a", array(8, strings))]))
