"""Open what is merged: files of other formats, members of pools, Orbax checkpoints."""

import dataclasses
import pathlib
import threading
from typing import Any

import jax.numpy as jnp
import numpy as np

from soups.files import local_path
from soups.formats import Checkpoint, CheckpointError, Leaf, open_checkpoint
from soups.formats.orbax import ARRAY_METADATA, StoredLeaf, open_leaves
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
        member: name and record, if it is a pool's; its files are compared with their digests before any is used.
    """

    path: pathlib.Path
    leaves: dict[str, Leaf]
    sizes: dict[pathlib.Path, int] = dataclasses.field(repr=False)
    member: tuple[str, dict[str, Any]] | None = dataclasses.field(default=None, repr=False)
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    aliases: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    _stored: dict[str, StoredLeaf] = dataclasses.field(default_factory=dict, repr=False, compare=False)
    _lock: Any = dataclasses.field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def digests(self) -> dict[str, str]:
        """Give the digests of the leaves that are known without reading them: those of a pool's member."""
        return {name: leaf["digest"] for name, leaf in self.member[1]["leaves"].items()} if self.member else {}

    def read(self, name: str, index=...) -> np.ndarray:
        """Give a leaf, mapped where it lies raw in one file, or the part of it at `index`, slices for all axes.

        Raises:
            PoolCorruptionError: at the first leaf that is read, naming each file that is not what was written.
            ValueError: a file is missing or damaged.
        """
        self.check()
        return self._stored[name].read(index)

    def making(self, name: str) -> int:
        """Count the bytes of a tensor that is not mapped."""
        return 0

    def check(self, process: int = 0, processes: int = 1) -> None:
        """Compare the files with their digests, unless that was done; of several processes each compares its share.

        What describes the arrays is compared by all. The files of an array that is stored in shards are shared out in
        their order, so that a process compares those that it reads if it holds the array in such shards; arrays of one
        file are shared out in turn.

        Raises:
            PoolCorruptionError, ValueError: as `read`.
        """
        with self._lock:
            if not self._stored:
                if self.member:
                    name, record = self.member
                    files = _share(record["files"], process, processes)
                    Member(name, self.path, {**record, "files": files}).check()
                self._stored.update(open_leaves(self.path))


def open_model(path: str) -> Checkpoint | Arrays:
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
    record = pool.record(name)
    if record["nonfinite_leaves"]:
        raise ValueError(f"{pool.path}:{name} holds NaN or infinity in {', '.join(record['nonfinite_leaves'])}")
    shapes = {leaf: (tuple(entry["shape"]), jnp.dtype(entry["dtype"])) for leaf, entry in record["leaves"].items()}
    return _arrays(pool.path / record["path"], shapes, member=(name, record))


def _orbax(folder):
    try:
        stored = open_leaves(folder)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    return _arrays(folder, {name: (leaf.shape, leaf.dtype) for name, leaf in stored.items()}, _stored=stored)


def _arrays(path, shapes, **kept):
    leaves = {
        name: Leaf(name, shape, dtype, path, None, int(np.prod(shape)) * dtype.itemsize)
        for name, (shape, dtype) in shapes.items()
    }
    files = {file: file.stat().st_size for file in sorted(path.rglob("*")) if file.is_file()}
    return Arrays(path, leaves, files, **kept)


def _share(files, process, processes):
    """Select the files that one of several processes compares."""
    folders = {file.removesuffix(ARRAY_METADATA): [] for file in files if file.endswith(f"/{ARRAY_METADATA}")}
    chosen = []
    for file in files:
        folder = file[: file.rfind("/") + 1]
        if folder in folders and not file.endswith(ARRAY_METADATA):
            folders[folder].append(file)
        else:
            chosen.append(file)
    for turn, chunks in enumerate(folders.values()):
        for place, file in enumerate(sorted(chunks, key=lambda file: (len(file), file))):
            if (place * processes // len(chunks) if len(chunks) > 1 else turn % processes) == process:
                chosen.append(file)
    return {file: files[file] for file in chosen}
