"""Read and lay out the headers of safetensors files."""

import io
import itertools
import json
import math
import os
import pathlib
from collections.abc import Mapping

import ml_dtypes as ml_dtypes
import numpy as np

from soups.formats.tensors import CheckpointError, Header, Leaf, check_layout, checked_nbytes, short
from soups.formats.text import parse_json
from soups.stores import StorePath

MAX_HEADER = 100_000_000  # the limit of the format
_START = 1 << 18  # bytes of an object that are asked for together: most headers are in them
_KINDS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_KINDS |= {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "C64": "complex64"}
_KINDS |= {f"{kind[0].upper()}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (64, 32, 16, 8)}
# NumPy knows the names of ml_dtypes, which is imported
DTYPES = {name: np.dtype(kind) for name, kind in _KINDS.items()} | {"BOOL": np.dtype(bool)}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read_header(path: pathlib.Path) -> Header:
    """Return what a safetensors file holds; no byte of a tensor is read."""
    path, file, size = _opened(path)
    with file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER:  # as a text has it, whose first letters are read as this number
            what = f"a header of {length} bytes, more than {MAX_HEADER}"
            raise CheckpointError(f"{path} is not a safetensors file: its first bytes say {what}")
        if size < 8 or length > size - 8:
            raise CheckpointError(f"{path} is truncated: {size} bytes, less than its header")
        header = file.read(length)
    if not header.startswith(b"{"):
        raise CheckpointError(f"{path} is not a safetensors file: its header is not a JSON object")
    entries = parse_json(header, f"{path}: the header", _INTEGERS)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ must map strings to strings")
    leaves = [_leaf(name, entry, path, 8 + length) for name, entry in entries.items()]
    leaves.sort(key=lambda leaf: (leaf.offset, leaf.nbytes))
    check_layout(leaves, 8 + length, size, path)
    names = {leaf.name for leaf in leaves}
    # torch's helper of the format notes the tied tensors that it leaves out in the metadata
    aliases = {name: kept for name, kept in metadata.items() if kept in names and name not in names}
    return Header(leaves, size, metadata, aliases)


def _opened(path):
    """Return the path, a file from whose start the header can be read, and how many bytes there are."""
    if not isinstance(path, StorePath):
        file = open(path, "rb")  # noqa: SIM115
        return path, file, os.fstat(file.fileno()).st_size
    start, status = path.read_start(_START)
    path, end = path.at(status.version), 8 + int.from_bytes(bytes(start[:8]), "little")
    if len(start) < end <= min(status.st_size, 8 + MAX_HEADER):
        start = path.read_range(0, end)
    return path, io.BytesIO(start), status.st_size


def write_header(entries: Mapping[str, tuple[tuple[int, ...], np.dtype]], metadata: Mapping[str, str]) -> bytes:
    """Lay the tensors out one after the other and give the file's first bytes, a multiple of 8.

    Raises:
        ValueError: the header is longer than the format allows, or a name is not valid Unicode.
    """
    header = {"__metadata__": dict(metadata)} if metadata else {}
    sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in entries.values()]
    ends = list(itertools.accumulate(sizes))
    for (name, (shape, dtype)), length, end in zip(entries.items(), sizes, ends, strict=True):
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [end - length, end]}
    content = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    if len(content) > MAX_HEADER:
        raise ValueError(f"a header of {len(content)} bytes, more than {MAX_HEADER}: write fewer leaves to a shard")
    return len(content).to_bytes(8, "little") + content


def _no_number(text):
    raise ValueError(f"{text[:40]} is not an integer")


def _integer(text):
    if len(text) > 20:  # longer ones take time to convert
        raise ValueError("an integer of more than 64 bits")
    return int(text)


_INTEGERS = {"parse_constant": _no_number, "parse_float": _no_number, "parse_int": _integer}


def _leaf(name, entry, path, start):
    try:
        dtype, shape, begin, nbytes = _checked(entry)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: tensor {short(name)}{error}") from None
    return Leaf(name, shape, dtype, path, start + begin, nbytes)


def _checked(entry):
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(" must have a dtype, a shape and data_offsets, and nothing else")
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
        raise CheckpointError(f" has a dtype that cannot be read, {_unread(entry['dtype'])}")
    if not isinstance(entry["shape"], list):
        raise CheckpointError(" has a shape that is not a list")
    dtype, shape, offsets = DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
    nbytes = checked_nbytes(shape, dtype, "")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(x) is int and x >= 0 for x in offsets):
        raise CheckpointError(" must have two non-negative integers as data_offsets")
    begin, end = offsets
    if end - begin != nbytes:
        raise CheckpointError(f" has {end - begin} bytes of data; its shape and dtype make {nbytes}")
    return dtype, shape, begin, nbytes


def _unread(dtype):
    if dtype in ("F4", "F6_E2M3", "F6_E3M2"):
        return f"{dtype}: quantised numbers smaller than a byte; save the model as BF16 or F32"
    shown = short(dtype) if isinstance(dtype, str) else f"a {type(dtype).__name__}"
    return f"{shown}; known are {', '.join(DTYPES)}"
