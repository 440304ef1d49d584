"""Open what is merged: files of other formats, members of pools, Orbax checkpoints."""

import dataclasses
import math
import pathlib
import types

import numpy as np

from soups.files import local_path
from soups.formats import Checkpoint, CheckpointError, Leaf, open_checkpoint
from soups.formats.orbax import StoredLeaf, open_leaves
from soups.formats.tensors import listed
from soups.names import check_name
from soups.pool import Pool
from soups.pool._member import Member

_POOL, _ORBAX = "manifest.json", "_CHECKPOINT_METADATA"


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Give the leaves of an Orbax checkpoint by name as a `Checkpoint` does, without reading them until asked.

    Attributes:
        path: of the checkpoint.
        leaves: by name.
        sizes: of its files.
    """

    path: pathlib.Path
    leaves: dict[str, Leaf]
    sizes: dict[pathlib.Path, int] = dataclasses.field(repr=False)
    _stored: dict[str, StoredLeaf] = dataclasses.field(repr=False, compare=False)

    metadata = aliases = digests = types.MappingProxyType({})
    notes = ()

    def read(self, name: str, index=...) -> np.ndarray:
        """Give a leaf, mapped where it lies raw in one file, or the part of it at `index`, slices for all axes.

        Raises:
            ValueError: a file is missing or damaged.
        """
        return self._stored[name].read(index)

    def making(self, name: str) -> int:
        """Count the bytes of a tensor that is not mapped."""
        return 0

    def check(self, process: int = 0, processes: int = 1) -> None:
        """Compare nothing: these files have no digests."""


def open_model(path: str) -> Checkpoint | Arrays | Member:
    """Open a model by its path: a file or folder as `open_checkpoint`, POOL:MEMBER, or an Orbax checkpoint.

    Raises:
        FileNotFoundError: nothing is there.
        CheckpointError: it is damaged, or it is a pool without the name of a member.
        ValueError: the pool has no such member, or the member holds NaN or infinity; a URL.
    """
    folder = local_path(path)
    pool, _, member = str(path).rpartition(":")
    if pool and (pathlib.Path(pool) / _POOL).is_file():
        return _member(Pool(pool, must_exist=True), member)
    if (folder / _POOL).is_file():
        names = Pool(folder, must_exist=True).names
        raise CheckpointError(f"{path} is a pool: name a member, such as {path}:{names[0] if names else 'NAME'}")
    if (folder / _ORBAX).is_file():
        return _orbax(folder)
    return open_checkpoint(path)


def _member(pool, name):
    check_name(name, pool.names, f"member of {pool.path}")
    if nonfinite := pool.record(name)["nonfinite_leaves"]:
        raise ValueError(f"{pool.path}:{name} holds NaN or infinity in {listed(nonfinite)}")
    return pool.tensors(name)


def _orbax(folder):
    try:
        stored = open_leaves(folder)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    leaves = {
        name: Leaf(name, leaf.shape, leaf.dtype, folder, None, math.prod(leaf.shape) * leaf.dtype.itemsize)
        for name, leaf in stored.items()
    }
    files = {file: file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}
    return Arrays(folder, leaves, files, stored)
