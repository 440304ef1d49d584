"""Read the trees that Flax packs with MessagePack: arrays are mapped, and nothing in a file is believed."""

import dataclasses
import math
import pathlib
import struct
from typing import Any

import numpy as np

from soups.formats.mapping import mapped
from soups.formats.tensors import CheckpointError, checked_nbytes, short
from soups.formats.text import check_file
from soups.formats.zarr import dtype_of

MAX_DEPTH = 64
MAX_ITEMS = 2_000_000
_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3  # Flax's types
_CHUNKED = "__msgpack_chunked_array__"
_NUMBERS = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"}
_NUMBERS |= {0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
_SIZES = {1: ">B", 2: ">H", 4: ">I"}
# kind and bytes of the length, by the first byte
_LONG = {0xC4: ("bin", 1), 0xC5: ("bin", 2), 0xC6: ("bin", 4), 0xC7: ("ext", 1), 0xC8: ("ext", 2), 0xC9: ("ext", 4)}
_LONG |= {0xD9: ("str", 1), 0xDA: ("str", 2), 0xDB: ("str", 4), 0xDC: ("list", 2), 0xDD: ("list", 4)}
_LONG |= {0xDE: ("map", 2), 0xDF: ("map", 4)}


def read_tree(path: pathlib.Path) -> Any:
    """Return the tree in a file: dicts and lists with read-only, mapped arrays, numbers, strings, bytes and None."""
    size = check_file(path)
    if not size:
        raise CheckpointError(f"{path} is empty")
    try:
        data = mapped(path, size)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    reader = _Reader(data, path)
    tree = reader.value(0)
    if reader.at != size:
        raise CheckpointError(f"{path} is not a tree of Flax: {size - reader.at} bytes after its end")
    return tree


@dataclasses.dataclass
class _Reader:
    data: np.ndarray
    path: pathlib.Path
    at: int = 0
    items: int = 0

    def value(self, depth):
        self.items += 1
        if depth > MAX_DEPTH or self.items > MAX_ITEMS:
            raise self.error(f"deeper than {MAX_DEPTH} or of more than {MAX_ITEMS} items")
        code = self.number(">B")
        if code < 0x80 or code >= 0xE0:
            return code if code < 0x80 else code - 256
        if code < 0xC0:
            kind = "map" if code < 0x90 else "list" if code < 0xA0 else "str"
            count = code & (31 if kind == "str" else 15)
        elif code in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[code]
        elif code in _NUMBERS:
            return self.number(_NUMBERS[code])
        elif code in _LONG:
            kind, width = _LONG[code]
            count = self.number(_SIZES[width])
        elif 0xD4 <= code <= 0xD8:
            kind, count = "ext", 1 << (code - 0xD4)
        else:
            raise self.error("not MessagePack")
        return getattr(self, kind)(count, depth)

    def map(self, count, depth):
        self.check(count, 2)
        tree = {}
        for _ in range(count):
            key = self.value(depth + 1)
            if not isinstance(key, str | int) or str(key) in tree:
                raise self.error(f"a key that is not a string, or that appears twice: {short(str(key))}")
            tree[str(key)] = self.value(depth + 1)
        if _CHUNKED in tree:
            raise self.error("an array in pieces, as Flax stores those of more than 1 GiB; save it with Orbax")
        return tree

    def list(self, count, depth):
        self.check(count)
        return [self.value(depth + 1) for _ in range(count)]

    def str(self, count, depth):
        try:
            return self.bin(count, depth).tobytes().decode()
        except ValueError:
            raise self.error("a string that is not UTF-8") from None

    def bin(self, count, _):
        self.check(count)
        self.at += count
        return self.data[self.at - count : self.at]

    def ext(self, count, depth):
        kind = self.number(">B")
        end = self.at + count
        self.check(count)
        if kind not in (_ARRAY, _COMPLEX, _SCALAR):
            raise self.error(f"a value of type {kind}, which Flax does not write")
        parts = self.value(depth + 1)
        if self.at != end:
            raise self.error("an array that does not end where it should")
        if kind == _COMPLEX:
            return None
        return self.array(parts)

    def array(self, parts):
        shape, name, content = parts if isinstance(parts, list) and len(parts) == 3 else (None, None, None)
        if not isinstance(shape, list) or not isinstance(content, np.ndarray):
            raise self.error("an array without shape, dtype and bytes")
        name = name.tobytes().decode("latin-1") if isinstance(name, np.ndarray) else name
        dtype = dtype_of(name, f"{self.path}, an array")
        nbytes = checked_nbytes(tuple(shape), dtype, f"{self.path}: an array")
        if nbytes != content.size:
            raise self.error(f"an array of {content.size} bytes whose shape and dtype make {nbytes}")
        return content.view(dtype).reshape(shape) if math.prod(shape) else np.empty(shape, dtype)

    def number(self, form):
        width = struct.calcsize(form)
        self.check(width)
        self.at += width
        return struct.unpack(form, self.data[self.at - width : self.at].tobytes())[0]

    def check(self, count, each=1):
        if self.at + count * each > self.data.size:
            raise self.error("truncated")

    def error(self, what):
        return CheckpointError(f"{self.path} is not a tree of Flax, or damaged: {what}")
