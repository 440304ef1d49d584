"""Open what is merged: files of other formats, members of pools, Orbax checkpoints."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from soups import tree
from soups.names import check_name
from soups.pool import Pool, load_checkpoint
from soups.pool.formats import Checkpoint, CheckpointError, Leaf, open_checkpoint

_POOL, _ORBAX = "manifest.json", "_CHECKPOINT_METADATA"


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Give the leaves of a tree by name as a `Checkpoint` does; `load` is called when the first of them is read."""

    path: pathlib.Path
    leaves: dict[str, Leaf]
    load: Callable[[], dict[str, np.ndarray]] = dataclasses.field(repr=False)
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    aliases: dict[str, str] = dataclasses.field(default_factory=dict)
    sizes: dict[pathlib.Path, int] = dataclasses.field(default_factory=dict)

    def read(self, name: str) -> np.ndarray:
        """Give a leaf, mapped where it lies raw."""
        return self.load()[name]


def open_model(path: str) -> Checkpoint | Arrays:
    """Open a model by its path: a file or folder as `open_checkpoint`, POOL:MEMBER, or an Orbax checkpoint.

    The leaves of a pool's member are mapped, and compared with their digests before the first is used; any other Orbax
    checkpoint is read whole.

    Raises:
        FileNotFoundError: nothing is there.
        CheckpointError: it is damaged, or it is a pool without the name of a member.
        ValueError: the pool has no such member, or the member holds NaN or infinity.
        PoolCorruptionError: when it is read.
    """
    pool, _, member = str(path).rpartition(":")
    if pool and (pathlib.Path(pool) / _POOL).is_file():
        return _member(Pool(pool, must_exist=True), member)
    folder = pathlib.Path(path)
    if (folder / _POOL).is_file():
        names = Pool(folder, must_exist=True).names
        raise CheckpointError(f"{path} is a pool: name a member, such as {path}:{names[0] if names else 'NAME'}")
    if (folder / _ORBAX).is_file():
        return _orbax(folder)
    return open_checkpoint(path)


def _member(pool, name):
    check_name(name, pool.names, f"member of {pool.path}")
    record = pool.record(name)
    if record["nonfinite_leaves"]:
        raise ValueError(f"{pool.path}:{name} holds NaN or infinity in {', '.join(record['nonfinite_leaves'])}")
    shapes = {leaf: (tuple(entry["shape"]), jnp.dtype(entry["dtype"])) for leaf, entry in record["leaves"].items()}
    return _arrays(pool.path / record["path"], shapes, lambda: tree.flatten(pool[name]))


def _orbax(folder):
    load = functools.cache(lambda: tree.flatten(load_checkpoint(folder)))
    return _arrays(folder, {name: (leaf.shape, leaf.dtype) for name, leaf in load().items()}, load)


def _arrays(path, shapes, load):
    leaves = {
        name: Leaf(name, shape, dtype, path, None, int(np.prod(shape)) * dtype.itemsize)
        for name, (shape, dtype) in shapes.items()
    }
    files = {file: file.stat().st_size for file in sorted(path.rglob("*")) if file.is_file()}
    return Arrays(path, leaves, functools.cache(load), sizes=files)
