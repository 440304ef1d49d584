"""Read arrays of Zarr (v2 and v3), in files or in OCDBT: headers are bounded before TensorStore sees them."""

import dataclasses
import functools
import itertools
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from soups.formats.tensors import CheckpointError, checked_nbytes, short
from soups.formats.text import parse_json

ZARR2, ZARR3 = ".zarray", "zarr.json"
MAX_HEADER = 1 << 20  # bytes
MAX_CHUNKS = 1 << 16
MAX_CLAIM = 1 << 30  # bytes that any array may have
MAX_RATIO = 1 << 16  # of an array's bytes to those of all files, beyond that
SMALL_CHUNK = 1 << 20  # bytes; a larger one is not larger than its array
BLOCK = 1 << 23  # bytes that are read at a time, if chunks are not larger
CONCURRENT = 4  # chunks that are read, and unpacked, side by side
CACHE = 1 << 24  # bytes of unpacked chunks that are kept, so that parts of one are not unpacked each time
_CODECS = {"blosc", "zstd", "zlib", "gzip", "bz2"}
_NAMES = re.compile(
    r"bool|u?int(8|16|32|64)|int4|b?float(16|32|64)|complex(64|128)|"
    r"float8_(e3m4|e4m3fn|e4m3fnuz|e4m3b11fnuz|e5m2|e5m2fnuz|e8m0fnu)"
)


@dataclasses.dataclass(frozen=True)
class Array:
    """Say how an array lies in its folder: raw in one `file`, or in several or encoded ones (None).

    `fills`: chunks that are not there may be of the fill value; else they are lost.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    chunk: tuple[int, ...]
    file: str | None
    fills: bool

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)

    @property
    def chunk_bytes(self) -> int:
        """Return the number of bytes of a chunk, unpacked."""
        return self.dtype.itemsize * math.prod(self.chunk)

    @property
    def chunk_rows(self) -> int:
        """Return how many indices of the first axis a row of chunks has; 0 if there is but one row."""
        return self.chunk[0] if self.shape and self.chunk[0] < self.shape[0] else 0


@dataclasses.dataclass(frozen=True)
class Stored:
    """Read an array in chunks, or parts of it; of these only those are read that hold what is asked for."""

    where: str
    array: Array
    store: Any  # tensorstore.TensorStore

    def read(self, index: Any = ...) -> np.ndarray:
        """Return the elements at `index`, a slice for each axis.

        A chunk of more than `CACHE` bytes is unpacked each time: read arrays that have such whole.
        """
        try:
            view = self.store[index]
            result = np.empty(view.shape, self.array.dtype)
            for block in _blocks(view, self.array):
                # TensorStore counts from the start of the whole array
                here = tuple(
                    slice(part.start - first, part.stop - first)
                    for part, first in zip(block, view.domain.inclusive_min, strict=True)
                )
                result[here] = view[block].read().result()
        except MemoryError as error:
            raise CheckpointError(f"{self.where} needs more memory than there is: {error}") from error
        except Exception as error:
            raise CheckpointError(f"{self.where} cannot be read: {_first_line(error)}") from error
        return result

    @property
    def making(self) -> int:
        """Return the bytes of memory that it takes to read the whole array: itself, and a block, packed and not."""
        return self.array.nbytes + 2 * min(self.array.nbytes, max(BLOCK, self.array.chunk_bytes))


def header(content: bytes, kind: str, where: str, available: int) -> Array:
    """Return what the `.zarray` or `zarr.json` of an array says; `available`: bytes of all files, which bound it."""
    if len(content) > MAX_HEADER:
        raise CheckpointError(f"{where} has a header of {len(content)} bytes, more than {MAX_HEADER}")
    described = parse_json(content, where)
    try:
        array = (_zarr2 if kind == ZARR2 else _zarr3)(described, where)
    except (LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{where} is damaged, or not as Zarr has it: {error!r}") from error
    _check_bounds(array, where, available)
    return array


def opening(spec: Mapping[str, Any], where: str, array: Array) -> Callable[[], Stored]:
    """Begin to open an array and return the function that ends it, so that many are opened side by side."""
    import tensorstore

    future = tensorstore.open(dict(spec), open=True, read=True, context=context())

    def opened():
        store = result(future, where)
        if tuple(store.shape) != array.shape or store.dtype.numpy_dtype != array.dtype:
            raise CheckpointError(f"{where} changed while it was opened")
        return Stored(where, array, store)

    return opened


@functools.cache
def context() -> Any:
    """Return the one TensorStore context, which bounds what is cached and what is read and unpacked side by side."""
    import tensorstore

    limit = {"limit": CONCURRENT}
    return tensorstore.Context(
        {"cache_pool": {"total_bytes_limit": CACHE}, "file_io_concurrency": limit, "data_copy_concurrency": limit}
    )


def result(future: Any, where: object) -> Any:
    """Wait for what TensorStore opens or reads of a header."""
    try:
        return future.result()
    except Exception as error:  # what TensorStore may raise is not listed anywhere
        raise CheckpointError(f"{where} cannot be opened: {_first_line(error)}") from error


def _first_line(error):
    """Return what TensorStore says, without the places in its own code."""
    return re.sub(r" \[[a-z_]+=.*", "", (str(error).splitlines() or [repr(error)])[0])[:500]


def holds(dtype: Any) -> bool:
    """Say whether TensorStore has arrays of this dtype: numbers and booleans, but of few bits not all."""
    return isinstance(dtype, np.dtype) and _NAMES.fullmatch(dtype.name) is not None


def dtype_of(name: Any, where: str) -> np.dtype:
    """Return a dtype of numbers or booleans by its name, such as "<f4", "float32" or "bfloat16"."""
    if isinstance(name, str) and re.fullmatch(r"[<>|=]?(b1|[iu][1248]|f[248]|c8|c16)", name):
        return np.dtype(name)
    if isinstance(name, str) and _NAMES.fullmatch(name):
        found = getattr(ml_dtypes, name, None) or getattr(np, "bool_" if name == "bool" else name, None)
        if isinstance(found, type):
            return np.dtype(found)
    raise CheckpointError(f"{where} has elements of {short(str(name))}: only numbers and booleans are read")


def _zarr2(described, where):
    shape, chunk = _sizes(described["shape"], where), _sizes(described["chunks"], where)
    dtype = dtype_of(described["dtype"], where)
    if described["zarr_format"] != 2 or described["order"] not in ("C", "F"):
        raise CheckpointError(f"{where} is not of Zarr's format 2")
    compressor, filters = described["compressor"], described["filters"]
    if filters or (compressor is not None and compressor["id"] not in _CODECS):
        raise CheckpointError(f"{where} has filters or an unknown compressor: {short(json.dumps(compressor))}")
    separator = described.get("dimension_separator", ".")
    if separator not in (".", "/"):
        raise CheckpointError(f"{where} has the separator {short(json.dumps(separator))}")
    # a chunk's file has the bytes of a whole chunk
    raw = compressor is None and described["order"] == "C" and chunk == shape and dtype.byteorder != ">"
    only = separator.join("0" for _ in shape) or "0"
    return Array(shape, dtype.newbyteorder("="), chunk, only if raw else None, described["fill_value"] is not None)


def _zarr3(described, where):
    if described["zarr_format"] != 3 or described["node_type"] != "array":
        raise CheckpointError(f"{where} is not an array of Zarr's format 3")
    grid = described["chunk_grid"]
    if grid["name"] != "regular":
        raise CheckpointError(f"{where} has chunks of different sizes")
    _check_codecs(described["codecs"], where)
    shape, chunk = _sizes(described["shape"], where), _sizes(grid["configuration"]["chunk_shape"], where)
    return Array(shape, dtype_of(described["data_type"], where), chunk, None, True)


def _check_codecs(codecs, where, depth=0):
    for codec in codecs:
        name = codec if isinstance(codec, str) else codec["name"]
        if name == "sharding_indexed" and not depth:
            inner = codec["configuration"]
            if not all(_sizes(inner["chunk_shape"], where)):
                raise CheckpointError(f"{where} has chunks without elements")
            _check_codecs([*inner["codecs"], *inner.get("index_codecs", [])], where, 1)
        elif name not in {*_CODECS, "bytes", "endian", "crc32c", "transpose"}:
            raise CheckpointError(f"{where} has an unknown codec: {short(json.dumps(name))}")


def _sizes(sizes, where):
    if not isinstance(sizes, list) or not all(type(size) is int and size >= 0 for size in sizes):
        raise CheckpointError(f"{where} has a shape whose sizes are not non-negative integers")
    return tuple(sizes)


def _check_bounds(array, where, available):
    nbytes = checked_nbytes(array.shape, array.dtype, where)
    if len(array.chunk) != len(array.shape) or not all(array.chunk):
        raise CheckpointError(f"{where} has chunks of {list(array.chunk)} for the shape {list(array.shape)}")
    if checked_nbytes(array.chunk, array.dtype, where) > max(nbytes, SMALL_CHUNK):
        raise CheckpointError(f"{where} claims chunks of {array.chunk_bytes} bytes, more than all of it: {nbytes}")
    if math.prod(-(-size // part) for size, part in zip(array.shape, array.chunk, strict=True)) > MAX_CHUNKS:
        raise CheckpointError(f"{where} claims more than {MAX_CHUNKS} chunks")
    if nbytes > max(MAX_CLAIM, MAX_RATIO * available):
        raise CheckpointError(f"{where} claims {nbytes} bytes; all files have {available}")


def _blocks(view, array):
    """Cut a view along its axes into parts of whole chunks, of about `BLOCK` bytes or of one chunk."""
    first, last = view.domain.inclusive_min, view.domain.exclusive_max
    step, size = list(array.chunk), array.chunk_bytes
    for axis in reversed(range(len(step))):  # the last axis first, as the bytes lie
        reach = -(-(last[axis] - first[axis]) // step[axis]) + 1
        step[axis] *= (times := max(1, min(reach, BLOCK // max(1, size))))
        size *= times
    ranges = []
    for axis, (begin, end) in enumerate(zip(first, last, strict=True)):
        edges = [begin, *range((begin // step[axis] + 1) * step[axis], end, step[axis]), end]
        ranges.append([slice(a, b) for a, b in itertools.pairwise(edges)])
    return itertools.product(*ranges)
