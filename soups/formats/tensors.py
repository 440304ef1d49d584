"""Say what every source of weights is to the library: tensors by name, described by headers, read on demand."""

import dataclasses
import math
import os
import pathlib
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from soups.formats.mapping import mapped
from soups.names import did_you_mean

MAX_RANK = 64  # NumPy's limit
MAX_BYTES = (1 << 63) - 1  # of one tensor; NumPy refuses more, even of an empty one


class CheckpointError(ValueError):
    """Say that a checkpoint is damaged, truncated, inconsistent or of an unknown kind: all of this room raises it."""


class UnsafeCheckpointError(CheckpointError):
    """Say that a checkpoint asks for code to be run; none was."""


# the modules that read files, by their names; each is imported when such a file is met
SUFFIXES = {".safetensors": "safetensors", ".gguf": "gguf", ".npz": "npz"}
SUFFIXES |= dict.fromkeys((".pt", ".pth", ".bin", ".ckpt", ".tar"), "torch_file")  # .pth.tar is a usual name


@dataclasses.dataclass(frozen=True)
class Leaf:
    """Say what a tensor is and where its bytes lie.

    `offset`: of its raw, little-endian, C-contiguous bytes in `file`, or None where they are not contiguous; `strided`
    then has the offset of its first element and its strides in bytes. `nbytes`: prod(shape) times the item size.
    `load` makes the part at an index of a tensor whose bytes cannot be mapped, such as a compressed one, and takes
    `making` bytes of memory for all of it. `chunk_rows`: how many indices of the first axis share a row of chunks, of a
    tensor of several such rows; a part of whole ones costs no more than itself.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    file: pathlib.Path
    offset: int | None
    nbytes: int
    strided: tuple[int, tuple[int, ...]] | None = None
    load: Callable[[Any], np.ndarray] | None = dataclasses.field(default=None, repr=False, compare=False)
    making: int = 0
    chunk_rows: int = 0


class Header(NamedTuple):
    """Say what one file holds: leaves by offset, its size, strings, tied tensors, and entries that are no weights."""

    leaves: list[Leaf]
    size: int
    metadata: Mapping[str, str] = types.MappingProxyType({})
    aliases: Mapping[str, str] = types.MappingProxyType({})
    ignored: Sequence[str] = ()


class Tensors(Protocol):
    """Return tensors by name, none of which is read until it is asked for: the one protocol of all formats."""

    path: pathlib.Path  #: of the file or folder
    leaves: Mapping[str, "Leaf"]  #: the header of each tensor, in the order in which reading is cheapest
    aliases: Mapping[str, str]  #: tied tensors: from each name left out to the name in `leaves` that has its values
    metadata: Mapping[str, str]  #: strings that the files carry
    sizes: Mapping[pathlib.Path, int]  #: of all files that go in, when their headers were read
    digests: Mapping[str, str]  #: XXH3 (128 bits, hexadecimal) of those tensors that need not be read for it
    notes: Sequence[str]  #: sentences for the user: what was chosen of several things, and what was left out

    def read(self, name: str, index: Any = ...) -> np.ndarray:
        """Return a tensor in its own shape and dtype, or the part at `index`, a slice for each axis."""

    def map(self, name: str) -> np.ndarray:
        """Return a tensor as `read` does, but leave it to the caller to hash its bytes and to call `check_leaf`."""
        return self.read(name)

    def check_leaf(self, name: str, digest: str) -> None:
        """Compare the digest of a tensor's bytes with the one that is known, if one is."""

    def check(self, process: int = 0, processes: int = 1) -> None:
        """Compare files that have digests with them; of several processes each compares its share."""

    def making(self, name: str) -> int:
        """Count the bytes of memory that it takes to make a tensor; 0 where it is mapped."""

    def chunk_rows(self, name: str) -> int:
        """Return how many indices of the first axis a row of chunks has; 0 for a tensor that is read whole."""


@dataclasses.dataclass(frozen=True)
class Checkpoint(Tensors):
    """Be the `Tensors` of a file or folder: leaves in file order, shard after shard, none with a digest.

    `notes`: with the entries of a torch file that are no weights (of a TorchScript archive the last parts of their
    names, each once). `keys`: of an Orbax checkpoint, whose names join them with "/".
    """

    path: pathlib.Path
    leaves: dict[str, Leaf]
    metadata: dict[str, str]
    aliases: dict[str, str]
    sizes: dict[pathlib.Path, int] = dataclasses.field(repr=False)
    notes: tuple[str, ...] = ()
    keys: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict, repr=False, compare=False)
    _maps: dict[pathlib.Path, np.ndarray] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    digests = types.MappingProxyType({})  # none is known before a file is read

    def making(self, name: str) -> int:
        return self._leaf(name).making

    def chunk_rows(self, name: str) -> int:
        return self._leaf(name).chunk_rows

    def read(self, name: str, index: Any = ...) -> np.ndarray:
        """Map a tensor, read-only, in its own shape and dtype; an alias gives the tensor that it is tied to.

        `index`: slices for all axes, for a part of it.

        The array may be unaligned or strided, as the file has it; its pages are read when they are touched. Of one in
        chunks those are read that hold what is asked for; an otherwise compressed one is unpacked whole.
        """
        leaf = self._leaf(name)
        if not leaf.nbytes:
            empty = np.empty(leaf.shape, leaf.dtype)
            empty.flags.writeable = False
            return empty[index]
        if leaf.load:
            return leaf.load(index)
        first, strides = leaf.strided or (leaf.offset, None)
        # NumPy itself compares shape and strides with the size of the buffer
        return np.ndarray(leaf.shape, leaf.dtype, self._map(leaf.file), first, strides)[index]

    def _leaf(self, name):
        leaf = leaf_of(self, name)
        if leaf is None:
            close = did_you_mean(name, [*self.leaves, *self.aliases])
            raise CheckpointError(f"{self.path}: no tensor {short(name)}{close}")
        return leaf

    def _map(self, file):
        # beyond the end of a file that was cut since, its map would kill the process
        if file not in self._maps or not os.path.exists(file) or os.path.getsize(file) != self.sizes[file]:
            self._maps[file] = map_file(file, self.sizes[file])
        return self._maps[file]


def leaf_of(tensors: Tensors, name: str) -> Leaf | None:
    """Return the header of a tensor, also of one that is tied, or None."""
    return tensors.leaves.get(tensors.aliases.get(name, name))


def map_file(path: pathlib.Path, size: int) -> np.ndarray:
    """Return the bytes of a file, read-only and not read yet, which must have as many as when its header was read."""
    try:
        return mapped(path, size)
    except (FileNotFoundError, ValueError) as error:
        raise CheckpointError(f"{path} has changed since its header was read: {error}") from error


def checked_nbytes(shape: tuple, dtype: np.dtype, where: str) -> int:
    """Count the bytes of a tensor whose shape comes from a file; `where` begins the message of an error."""
    if len(shape) > MAX_RANK:
        raise CheckpointError(f"{where} has {len(shape)} dimensions, more than {MAX_RANK}")
    if not all(type(size) is int and 0 <= size <= MAX_BYTES for size in shape):
        raise CheckpointError(f"{where} has a shape whose sizes are not non-negative integers")
    total = dtype.itemsize
    for size in shape:
        total *= size or 1  # an empty tensor must fit without its zeros too
        if total > MAX_BYTES:
            raise CheckpointError(f"{where} has a shape of more than 2^63 bytes")
    return math.prod(shape) * dtype.itemsize


def check_layout(leaves: Iterable[Leaf], start: int, size: int, path: pathlib.Path, alignment: int = 1) -> None:
    """Compare the offsets of a file's tensors, in their order, with what an honest writer writes.

    Every byte from `start` to the file's `size` belongs to one tensor, or fills the space to the next multiple of
    `alignment`: what overlaps, or hides between tensors, is an error.
    """
    end = start
    for leaf in leaves:
        tensor = f"tensor {short(leaf.name)}"
        if leaf.offset != end:
            wrong = "overlaps the one before it" if leaf.offset < end else "leaves a gap before it"
            raise CheckpointError(f"{path}: {tensor} {wrong}: offset {leaf.offset - start}, not {end - start}")
        if end + leaf.nbytes > size:
            raise CheckpointError(f"{path} is truncated: {tensor} ends at byte {end + leaf.nbytes}, the file at {size}")
        end += -(-leaf.nbytes // alignment) * alignment
    if size > end:
        raise CheckpointError(f"{path}: {size - end} bytes after the last tensor")


def separator(names: Iterable[str]) -> str:
    """Return what stands between the keys in names: "/", or "." where no name has a "/"."""
    return "/" if any("/" in name for name in names) else "."


def nested(leaves: Mapping[str | tuple[str, ...], Any]) -> dict[str, Any]:
    """Return nested dicts of leaves that are given by their keys, or by names, which are cut at their `separator`."""
    mark, tree = separator(name for name in leaves if isinstance(name, str)), {}
    for name, leaf in leaves.items():
        *above, last = name.split(mark) if isinstance(name, str) else name
        node = tree
        for key in above:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise CheckpointError(f"{short('/'.join((*above, last)))} lies inside another leaf")
        if last in node:
            raise CheckpointError(f"{short('/'.join((*above, last)))} is a leaf, but other leaves lie inside it")
        node[last] = leaf
    return tree


def listed(items: Iterable[str], limit: int = 20) -> str:
    """Join names for a message, and count those beyond `limit`."""
    items = [short(item) for item in items]
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def short(value: str) -> str:
    """Quote a string from a file for a message: it may be of any length and hold any character."""
    text = ascii(value[:200])
    return text if len(value) <= 200 else text + "..."
