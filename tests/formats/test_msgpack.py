"""Test that a damaged or hostile file of Flax's is an error in words and costs no more than it has bytes."""

import random
import struct

import numpy as np
import pytest

from soups.formats import CheckpointError
from soups.formats.orbax import open_orbax


def packed(value):
    """Pack a value with MessagePack; a tuple is (kind, content) of an extension."""
    match value:
        case None | False | True:
            return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
        case int():
            return struct.pack(">BQ", 0xCF, value) if value >= 0 else struct.pack(">Bq", 0xD3, value)
        case float():
            return struct.pack(">Bd", 0xCB, value)
        case str() | bytes():
            content = value if isinstance(value, bytes) else value.encode()
            return struct.pack(">BI", 0xC6 if isinstance(value, bytes) else 0xDB, len(content)) + content
        case list():
            return struct.pack(">BI", 0xDD, len(value)) + b"".join(map(packed, value))
        case dict():
            return struct.pack(">BI", 0xDF, len(value)) + b"".join(packed(x) for pair in value.items() for x in pair)
        case (kind, content):
            return struct.pack(">BIB", 0xC9, len(packed(content)), kind) + packed(content)


def array(shape, dtype, content, kind=1):
    return (kind, [shape, dtype, content])


GOOD = {"params": {"w": array([2, 3], "float32", bytes(24)), "b": array([3], "bfloat16", bytes(6))}, "step": 3}


def opened(path, content):
    path.write_bytes(content)
    found = open_orbax(path)
    return {name: found.read(name) for name in found.leaves}


def test_what_flax_packs_is_read(tmp_path):
    assert {name: array.shape for name, array in opened(tmp_path / "a.msgpack", packed(GOOD)).items()} == {
        "w": (2, 3),
        "b": (3,),
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (array([2**40], "float32", b"1234"), "an array of 4 bytes whose shape and dtype make"),
        (array([2**62, 0], "float32", b""), "has a shape of more than 2\\^63 bytes"),
        (array([-1], "float32", b""), "a shape whose sizes are not non-negative integers"),
        (array([1] * 65, "float32", b"1234"), "has 65 dimensions"),
        (array([1], "object", b"12345678"), "has elements of 'object'"),
        (array([1], {"a": b"x"}, b"1234"), "has elements of"),
        (array([1], ["float32", b"x"], b"1234"), "has elements of"),
        (array([1], None, b"1234"), "has elements of 'None'"),
        (array(None, "float32", b"1234"), "an array without shape, dtype and bytes"),
        (array([1], "float32", "1234"), "an array without shape, dtype and bytes"),
        ((1, 3), "an array without shape, dtype and bytes"),
        ((7, [[1], "float32", b"1234"]), "a value of type 7"),
        ({"__msgpack_chunked_array__": True}, "an array in pieces"),
        ({1.5: 2}, "a key that is not a string"),
        ({1: 2, "1": 3}, "appears twice"),
    ],
    ids=str,
)
def test_what_is_no_array_of_flax_is_named(tmp_path, given, message):
    with pytest.raises(CheckpointError, match=f"a.msgpack.*{message}"):
        opened(tmp_path / "a.msgpack", packed({"params": {"w": given}}))


def test_what_is_nested_without_end_is_an_error(tmp_path):
    for deep in (b"\x81\xa1a" * 100_000, b"\x91" * 100_000, b"\xc7\xff\x01" * 100_000):
        with pytest.raises(CheckpointError, match="not a tree of Flax, or damaged: "):
            opened(tmp_path / "a.msgpack", b"\x81\xa1p" + deep)


def test_damaged_bytes(tmp_path):
    rng, good, results = random.Random(0), packed(GOOD), []
    for _ in range(1000):
        content = bytearray(good)
        for _ in range(rng.choice([1, 1, 2, 3])):
            at = rng.randrange(len(content))
            change = rng.randrange(4)
            if change == 0:
                content[at] = rng.randrange(256)
            elif change == 1:
                del content[at : at + rng.randrange(1, 9)]
            elif change == 2:
                content[at:at] = rng.randbytes(rng.randrange(1, 9))
            else:
                content[at : at + 4] = struct.pack(">I", rng.choice([0, 1, 2**31, 2**32 - 1]))
        try:
            results.append(sum(leaf.nbytes for leaf in opened(tmp_path / "a.msgpack", bytes(content)).values()))
        except CheckpointError as error:
            assert str(tmp_path) in str(error)
    assert results and max(results) <= 2 * len(good) and np.mean(results) > 0
