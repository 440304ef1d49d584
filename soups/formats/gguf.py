"""Read the headers of GGUF files, versions 2 and 3: numbers are mapped, codes refused, or made numbers if one asks."""

import collections
import dataclasses
import functools
import math
import pathlib
import re
import struct
from collections.abc import Collection

import ml_dtypes as ml_dtypes
import numpy as np

from soups.formats.gguf_codes import CODES, decoded
from soups.formats.tensors import CheckpointError, Header, Leaf, check_layout, checked_nbytes, listed, map_file, short
from soups.stores import PART, StorePath

MAX_STEPS = 5_000_000  # values in the header: a vocabulary of 256,000 tokens takes about a million
MAX_TEXT = 1 << 20  # bytes of a string that is kept
MAX_NAME = 1000
_NAMES = {0: "float32", 1: "float16", 24: "int8", 25: "int16", 26: "int32", 27: "int64", 28: "float64", 30: "bfloat16"}
DTYPES = {kind: np.dtype(name) for kind, name in _NAMES.items()}  # NumPy knows the names of ml_dtypes
QUANTISED = {2: "Q4_0", 3: "Q4_1", 4: "Q4_2", 5: "Q4_3", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1"}
QUANTISED |= {10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS"}
QUANTISED |= {18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M"}
QUANTISED |= {31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 34: "TQ1_0", 35: "TQ2_0", 36: "IQ4_NL_4_4"}
QUANTISED |= {37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8", 39: "MXFP4", 40: "NVFP4"}
# the kinds of values by number; 8 is a string and 9 an array
_NUMBERS = {kind: struct.Struct(f"<{code}") for kind, code in zip((*range(8), 10, 11, 12), "BbHhIif?Qqd", strict=True)}


def read_header(path: pathlib.Path, dequantise: bool = False) -> Header:
    """Return what a GGUF file holds, without reading a tensor; the metadata are its single values, as strings.

    `dequantise`: tensors of the kinds of `soups.formats.gguf_codes.CODES` are float32, made of their codes when they
    are read; otherwise they are an error.
    """
    return _opened(path, lambda machine, size: _read(machine, path, size, dequantise))


def read_arrays(path: pathlib.Path, names: Collection[str]) -> dict[str, list[str]]:
    """Return those of the named metadata that are arrays, their items as strings; the others are left out."""

    def read(machine, size):
        return _begin(machine, path, names)[2]

    return _opened(path, read)


def _opened(path, read):
    size = path.stat().st_size
    far = isinstance(path, StorePath)
    known = min(size, PART) if far else size
    while True:
        machine = _Reader(memoryview(path.read_range(0, known) if far else map_file(path, size)), path)
        try:
            return read(machine, size)
        except (IndexError, struct.error) as error:
            if known == size:
                raise CheckpointError(f"{path} is truncated, or damaged at byte {machine.at}") from error
        known = min(size, 4 * known)  # the header is longer than what was read of it


class _Reader:
    def __init__(self, data, path):
        self.data, self.path, self.at, self.steps = data, path, 0, 0

    def skip(self, size):
        if size > len(self.data) - self.at:
            raise IndexError
        self.at += size

    def number(self, kind=10):
        form = _NUMBERS[kind]
        (value,) = form.unpack_from(self.data, self.at)
        self.at += form.size
        return value

    def step(self):
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise CheckpointError(f"{self.path} has a header of more than {MAX_STEPS} values")

    def text(self, limit):
        """Return a string, or None if it is longer."""
        size = self.number()
        begin = self.at
        self.skip(size)
        return bytes(self.data[begin : self.at]).decode("utf-8", "backslashreplace") if size <= limit else None

    def value(self, kind, depth=0):
        """Return a value as a string; None for arrays, which are passed over."""
        self.step()
        if kind == 8:
            return self.text(MAX_TEXT)
        if kind == 9 and depth < 4:
            return self.array(depth)
        if kind not in _NUMBERS:
            raise CheckpointError(f"{self.path} has metadata of an unknown kind, {kind}, at byte {self.at}: damaged?")
        return str(self.number(kind))

    def array(self, depth):
        kind, count = self.number(4), self.number()
        if kind in _NUMBERS:  # at once
            self.skip(count * _NUMBERS[kind].size)
        else:
            for _ in range(count):
                self.value(kind, depth + 1)

    def items(self):
        """Return the items of an array as strings."""
        kind, count = self.number(4), self.number()
        return [self.value(kind, 1) for _ in range(count)]  # each is a step


def _begin(machine, path, wanted=()):
    """Return the number of tensors, the metadata, and the arrays among them that are wanted."""
    magic, version, tensors, values = bytes(machine.data[:4]), *struct.unpack_from("<IQQ", machine.data, 4)
    if magic != b"GGUF":
        raise CheckpointError(f"{path} is not a GGUF file")
    if version not in (2, 3):
        big = version and not version & 0xFFFF
        kind = "is big-endian" if big else f"is GGUF of version {version}"
        raise CheckpointError(f"{path} {kind}; convert it to GGUF of version 3, little-endian")
    machine.at = 24
    metadata, arrays = {}, {}
    for _ in range(values):
        name, kind = machine.text(MAX_NAME), machine.number(4)
        if name in wanted and kind == 9:
            arrays[name] = machine.items()
        value = None if name in arrays else machine.value(kind)
        if name is None or name in metadata:
            raise CheckpointError(f"{path} has two metadata fields of the same name, or one whose name is too long")
        metadata[name] = value
    return tensors, {name: value for name, value in metadata.items() if value is not None}, arrays


def _read(machine, path, size, dequantise):
    tensors, metadata, _ = _begin(machine, path)
    if metadata.get("split.count", "1") not in ("0", "1"):
        raise CheckpointError(f"{path} is one of {short(metadata['split.count'])} parts of a model; join them first")
    infos = [_info(machine) for _ in range(tensors)]
    return Header(_leaves(infos, machine.at, metadata, path, size, dequantise), size, metadata)


def _info(machine):
    machine.step()
    name, rank = machine.text(MAX_NAME), machine.number(4)
    if name is None or rank > 64:
        raise CheckpointError(f"{machine.path} has a tensor whose name is too long, or with {rank} dimensions")
    shape = [machine.number() for _ in range(rank)]
    return name, tuple(reversed(shape)), machine.number(4), machine.number()  # GGUF counts the fastest axis first


def _leaves(infos, end, metadata, path, size, dequantise):
    _check_numbers(infos, path, dequantise)
    alignment = metadata.get("general.alignment", "32")
    if not re.fullmatch("[0-9]{1,8}", alignment) or not 0 < int(alignment) <= 1 << 20:
        raise CheckpointError(f"{path} has an alignment that is not a number of bytes, {short(alignment)}")
    start = math.ceil(end / int(alignment)) * int(alignment)
    infos, stored = sorted(infos, key=lambda info: info[3]), []
    for name, shape, kind, offset in infos:
        dtype = DTYPES.get(kind, np.dtype("float32"))
        nbytes = checked_nbytes(shape, dtype, f"{path}: tensor {short(name)}")
        nbytes = nbytes if kind in DTYPES else _coded_nbytes(name, shape, kind, path)
        stored.append(Leaf(name, shape, dtype, path, start + offset, nbytes))
    check_layout(stored, start, size, path, int(alignment))
    return [_numbers(leaf, info[2], size) for leaf, info in zip(stored, infos, strict=True)]


def _coded_nbytes(name, shape, kind, path):
    code = CODES[QUANTISED[kind]]
    if not shape or shape[-1] % code.values:
        rows = f"rows of {shape[-1]}" if shape else "no axis"
        raise CheckpointError(f"{path}: tensor {short(name)} of {QUANTISED[kind]} has {rows}, not of {code.values}s")
    return math.prod(shape) // code.values * code.nbytes


def _numbers(leaf, kind, size):
    """Return the header of a tensor as it is read: of codes that of their numbers."""
    if kind in DTYPES:
        return leaf
    nbytes = math.prod(leaf.shape) * 4
    load = functools.partial(_load, leaf, CODES[QUANTISED[kind]], size)
    return dataclasses.replace(leaf, offset=None, nbytes=nbytes, load=load, making=nbytes)


def _load(leaf, code, size, index):
    stored = np.asarray(map_file(leaf.file, size)[leaf.offset : leaf.offset + leaf.nbytes])
    made = decoded(code, stored, leaf.shape)
    made.flags.writeable = False
    return made[index]


def _check_numbers(infos, path, dequantise):
    if not infos:
        raise CheckpointError(f"{path} holds no tensors")
    counts = collections.Counter(name for name, *_ in infos)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise CheckpointError(f"{path} holds two tensors of the same name: {listed(twice)}")
    kinds = {kind: name for name, _, kind, _ in reversed(infos)}
    if unknown := sorted(set(kinds) - set(DTYPES) - set(QUANTISED)):
        raise CheckpointError(f"{path} has tensors of unknown kinds, {listed(map(str, unknown))}: is it damaged?")
    refused = {*QUANTISED} - ({kind for kind, name in QUANTISED.items() if name in CODES} if dequantise else set())
    if codes := [f"{QUANTISED[kind]} ({short(name)})" for kind, name in kinds.items() if kind in refused]:
        why = "and averaging codes is wrong"
        if dequantise:
            why = f"and of codes only {', '.join(CODES)} are read"
        raise CheckpointError(f"{path} is quantised: it holds {', '.join(codes)}, {why}; save it as F16 or F32")
