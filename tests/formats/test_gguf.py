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


def half(content):
    return float(np.frombuffer(content, np.float16)[0])


def nibble(codes, at):
    """Return the code of one of 32 numbers: the low halves of the bytes come first."""
    return codes[at] & 15 if at < 16 else codes[at - 16] >> 4


def fifth(bits, at):
    return 16 * ((int.from_bytes(bits, "little") >> at) & 1)


def small_scale(packed, at):
    """Return a scale and an offset of Q4_K, of 6 bits each."""
    if at < 4:
        return packed[at] & 63, packed[at + 4] & 63
    low = packed[at + 4]
    return (low & 15) | (packed[at - 4] >> 6 << 4), (low >> 4) | (packed[at] >> 6 << 4)


def number_of_q4_k(block, at):
    scale, offset = small_scale(block[4:16], at // 32)
    byte = block[16 + at // 64 * 32 + at % 32]
    return half(block[:2]) * scale * (byte >> 4 if at % 64 >= 32 else byte & 15) - half(block[2:4]) * offset


def number_of_q6_k(block, at):
    part, row, column = at // 128, at % 128 // 32, at % 32
    low = block[64 * part + 32 * (row % 2) + column]
    high = block[128 + 32 * part + column] >> (2 * row) & 3
    code = ((low >> 4 if row >= 2 else low & 15) | (high << 4)) - 32
    return half(block[208:210]) * int.from_bytes(block[192 + at // 16 : 193 + at // 16], signed=True) * code


# bytes of a block, its numbers, and each of them, from the description of the format
CODED = {
    "Q4_0": (18, 32, lambda block, at: half(block[:2]) * (nibble(block[2:], at) - 8)),
    "Q4_1": (20, 32, lambda block, at: half(block[:2]) * nibble(block[4:], at) + half(block[2:4])),
    "Q5_0": (22, 32, lambda b, at: half(b[:2]) * ((nibble(b[6:], at) | fifth(b[2:6], at)) - 16)),
    "Q5_1": (24, 32, lambda b, at: half(b[:2]) * (nibble(b[8:], at) | fifth(b[4:8], at)) + half(b[2:4])),
    "Q8_0": (34, 32, lambda b, at: half(b[:2]) * int.from_bytes(b[2 + at : 3 + at], signed=True)),
    "Q4_K": (144, 256, number_of_q4_k),
    "Q6_K": (210, 256, number_of_q6_k),
}
HALVES = {"Q4_K": (0, 2), "Q6_K": (208,), "Q4_1": (0, 2), "Q5_1": (0, 2)}


@pytest.mark.parametrize("name", CODED)
def test_codes_become_numbers_where_one_asks(name, write, rng):
    nbytes, count, number = CODED[name]
    blocks = rng.integers(0, 256, (6, nbytes)).astype(np.uint8)
    for at in HALVES.get(name, (0,)):  # scales that are finite
        blocks[:, at : at + 2] = rng.normal(size=(6, 1)).astype(np.float16).view(np.uint8)
    kind = next(kind for kind, known in gguf.QUANTISED.items() if known == name)
    infos = [info("norm", (8,), 0, 0), info("blk.0.w", (3, 2 * count), kind, 32)]
    path = write(infos, np.arange(8, dtype=np.float32).tobytes() + blocks.tobytes())
    checkpoint = open_checkpoint(path, dequantise=True)
    expected = np.array([[number(block.tobytes(), at) for at in range(count)] for block in blocks])
    leaf, found = checkpoint.leaves["blk.0.w"], checkpoint.read("blk.0.w")
    assert leaf.dtype == found.dtype == np.float32 and leaf.shape == (3, 2 * count) and leaf.nbytes == found.nbytes
    np.testing.assert_allclose(found, expected.reshape(leaf.shape), rtol=1e-5, atol=1e-6 * np.abs(expected).max())
    np.testing.assert_array_equal(checkpoint.read("blk.0.w", np.s_[1:2]), found[1:2])
    assert checkpoint.read("norm").tolist() == list(range(8)) and checkpoint.making("norm") == 0


@pytest.mark.parametrize("kind", sorted(gguf.QUANTISED.keys() - {2, 3, 6, 7, 8, 12, 14}))
def test_codes_that_are_not_read_are_refused_by_name(kind, write):
    path = write([info("blk.0.w", (256,), kind, 0)], b"\0" * 512)
    with pytest.raises(
        CheckpointError, match=rf"holds {gguf.QUANTISED[kind]} \('blk\.0\.w'\), and of codes only Q4_0,"
    ):
        open_checkpoint(path, dequantise=True)


@pytest.mark.parametrize(
    ("shape", "data", "message"),
    [
        ((2, 33), 100, "'w' of Q8_0 has rows of 33, not of 32s"),
        ((), 100, "'w' of Q8_0 has no axis"),
        ((2, 32), 67, "is truncated: tensor 'w' ends at byte"),
        ((2, 32), 128, "bytes after the last tensor"),
        ((2**58, 32), 100, "more than 2^63 bytes"),
    ],
)
def test_codes_that_are_not_there_are_errors(shape, data, message, write):
    with pytest.raises(CheckpointError, match=re.escape(message)):
        open_checkpoint(write([info("w", shape, 8, 0)], b"\0" * data), dequantise=True)


def test_arrays_are_read_by_name(write):
    path = write([ONE], b"\0" * 8, META)
    assert gguf.read_arrays(path, ["tokens", "scores", "eps", "gone"]) == {"tokens": ["a", "bc"], "scores": ["1.0"] * 5}
    content = path.read_bytes()
    with pytest.raises(CheckpointError, match="is truncated, or damaged"):
        gguf.read_arrays(write(content[: content.index(b"bc")]), ["tokens"])


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
