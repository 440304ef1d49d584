"""Read a member leaf by leaf, with every byte checked."""

import functools
import math
import pathlib
import threading
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import xxhash

from soups.arrays import as_bytes
from soups.formats import tensors
from soups.formats.mapping import hash_files, mapped
from soups.formats.tensors import Leaf
from soups.lazy import orbax
from soups.names import bounded, check_name, shown
from soups.pool import _paths
from soups.pool._record import PoolCorruptionError
from soups.stores import SIDE_BY_SIDE, Copies, StorePath
from soups.tree import Tree
from soups.workers import NUMBER, in_threads

KEPT = "kept/files/"  # where a member's further files lie: two folders deep, which Orbax does not take for a tree
_DIFFERS, _MISSING = "does not have the bytes that were written", "is missing"


class Member:
    """Read one member's leaves by name, each when it is asked for: a `soups.formats.tensors.Tensors`.

    Every byte is compared with the digests of `record`, what the pool knows of the member, before it is used; each file
    that differs or is missing is named by a PoolCorruptionError. A leaf that lies raw in one file `map` hands out at
    once, for a caller that hashes its bytes (XXH3, 128 bits) on their way and gives the hash to `check_leaf`.
    """

    aliases: Mapping[str, str] = types.MappingProxyType({})
    metadata: Mapping[str, str] = types.MappingProxyType({})
    notes = ()
    named = False  #: whether the leaves have the names of what the member came from
    parts = ()  #: what is known of the models that it came from

    def __init__(self, name: str, directory: pathlib.Path | StorePath, record: dict):
        self.name, self.directory, self.path, self.record = name, directory, directory, record
        self.digests = {leaf: entry["digest"] for leaf, entry in record["leaves"].items()}
        self._chunks = _chunks(record)
        # a file with the digest of the leaf's bytes holds just these bytes
        self._raw = {
            leaf: files[0]
            for leaf, files in self._chunks.items()
            if len(files) == 1 and record["files"][files[0]] == self.digests[leaf]
        }
        self.leaves = {leaf: self._header(leaf, entry) for leaf, entry in record["leaves"].items()}
        self._verified: set[str] = set()
        self._lock = threading.Lock()
        self._copies: Copies | None = None
        self._opened = None  # what reads the leaves that do not lie raw, when the checkpoint's description is verified

    @functools.cached_property
    def sizes(self) -> dict[pathlib.Path | StorePath, int]:
        """Return the sizes of those files of its checkpoint that are there."""
        if isinstance(self.directory, StorePath):
            kept = self.directory / KEPT
            return {file: size for file, size in self.directory.sizes().items() if kept not in file.parents}
        files = [self.directory / file for file in self.record["files"] if not file.startswith(KEPT)]
        return {file: file.stat().st_size for file in files if file.is_file()}

    @functools.cached_property
    def keys(self) -> dict[str, tuple[str, ...]]:
        """Return the keys of each leaf, as they nest."""
        return {name: tuple(_paths.texts(entry["keys"])) for name, entry in self.record["leaves"].items()}

    def renamed(self, names: Mapping[str, str]) -> "Member":
        """Return the member with other names for its leaves, in the order of `names`: from each to the one it had."""
        leaves = {new: self.record["leaves"][old] for new, old in names.items()}
        return Member(self.name, self.directory, self.record | {"leaves": leaves})

    def kept(self) -> dict[str, pathlib.Path]:
        """Return the files that are kept with it by name; all are compared, and there may be no others."""
        known, there = self.kept_names, relative_files(self.directory / KEPT)
        problems = self._compare([KEPT + name for name in known]) if known else []
        self._raise(problems + [f"{shown(KEPT + name)} was put there" for name in there if name not in known])
        folder = _kept_copies(self.directory)[0] if known and self._is_far else self.directory
        return {name: folder / KEPT / name for name in known}

    @property
    def kept_names(self) -> list[str]:
        """Return the names of the files that are kept with it."""
        return [file.removeprefix(KEPT) for file in self.record["files"] if file.startswith(KEPT)]

    @functools.cached_property
    def _leaf_in(self):
        return {_folder(entry): leaf for leaf, entry in self.record["leaves"].items()}

    def read(self, name: str, index: Any = ...) -> np.ndarray:
        """Return a leaf, read-only and mapped where it lies raw, or the part at `index`, a slice for each axis."""
        name = check_name(self.aliases.get(name, name), self.leaves, f"leaf of member {self.name!r}")
        if self._is_far and name in self._raw:
            return self._fetched(name)[index]
        if name not in self._verified:
            self._raise(self._compare(self._chunks[name]))
            self._verified.add(name)
        return self._array(name, index)

    def _fetched(self, name):
        array = self._array(name, ...)
        if xxhash.xxh3_128_hexdigest(as_bytes(array)) != self.digests[name]:
            self._raise([self._described(self._raw[name], _DIFFERS)])
        return array

    @property
    def _is_far(self):
        return isinstance(self.directory, StorePath)

    def map(self, name: str) -> np.ndarray:
        """Return a leaf as `read` does, but leave those that lie raw in one file to the caller to compare."""
        name = self.aliases.get(name, name)
        return self._array(name, ...) if name in self._raw else self.read(name)

    def making(self, name: str) -> int:
        name = self.aliases.get(name, name)
        if self._is_far and name in self._raw:
            return self.leaves[name].nbytes
        return 0 if self._is_mapped(name) else self._stored(name).making

    def chunk_rows(self, name: str) -> int:
        name = self.aliases.get(name, name)
        return 0 if self._is_mapped(name) else self._stored(name).chunk_rows

    def load(self) -> Tree:
        """Compare every file and return nested dicts of read-only NumPy arrays, mapped where they lie raw."""
        if self._is_far:
            return nested(
                self.record, dict(zip(self.leaves, in_threads(self.read, self.leaves, SIDE_BY_SIDE), strict=True))
            )
        self.check()
        return nested(self.record, {name: self.read(name) for name in self.leaves})

    def nest(self, values: dict[str, Any]) -> Tree:
        """Put a value for each leaf, by its name, into nested dicts as those of `load`."""
        return nested(self.record, values)

    def check(self, process: int = 0, processes: int = 1) -> None:
        """Compare all files with their digests, unless that was done; of several processes each compares its share.

        What describes the arrays is compared by all. The files of a leaf that is stored in shards are shared out in
        their order, so that a process compares those that it reads if it holds the leaf in such shards; leaves of one
        file are shared out in turn.
        """
        with self._lock:
            if len(self._verified) < len(self.leaves):
                self._raise(self._compare([*self._descriptions(), *self._share(process, processes)]))
                self._verified.update(self.leaves)
        self._prepare()

    def check_leaf(self, leaf: str, digest: str) -> None:
        """Compare the hash of a leaf's bytes, which the caller has read, with the record's."""
        leaf = self.aliases.get(leaf, leaf)
        if digest != self.digests[leaf]:
            self._raise([self._described(file, _DIFFERS) for file in self._chunks[leaf]])
        self._verified.add(leaf)

    def problems(self) -> list[str]:
        """List the files that are missing, that differ from what was written, or that the record does not know."""
        known = self.record["files"]
        return self._compare(known) + [shown(file) for file in relative_files(self.directory) if file not in known]

    def _header(self, name, entry):
        shape, dtype = tuple(entry["shape"]), np.dtype(entry["dtype"])
        file, offset = (self.directory / self._raw[name], 0) if name in self._raw else (self.directory, None)
        return Leaf(name, shape, dtype, file, offset, math.prod(shape) * dtype.itemsize)

    def _array(self, name, index):
        self._prepare()
        leaf = self.leaves[name]
        if not leaf.nbytes:
            array = np.empty(leaf.shape, leaf.dtype)
        elif name in self._raw:
            return self._mapped(leaf).view(leaf.dtype).reshape(leaf.shape)[index]
        else:
            array = self._opened.read(self._stored(name).name, index)
        array.flags.writeable = False
        return array

    def _is_mapped(self, name):
        return name in self._raw or not self.leaves[name].nbytes

    def _stored(self, name):
        self._prepare()
        leaf = self.leaves[name]
        stored = self._opened.leaves.get(stored_name(self.record["leaves"][name]))
        if stored is None or (stored.shape, stored.dtype) != (leaf.shape, leaf.dtype):
            raise self._error([f"leaf {shown(name)} is not in the checkpoint with the shape and dtype of the record"])
        return stored

    def _mapped(self, leaf):
        try:
            return mapped(leaf.file, leaf.nbytes)
        except (FileNotFoundError, ValueError) as error:
            problem = _MISSING if isinstance(error, FileNotFoundError) else _DIFFERS
            raise self._error([self._described(self._raw[leaf.name], problem)]) from error

    def _prepare(self):
        with self._lock:
            if self._opened is None:
                self._raise(self._compare(self._descriptions()))
                self._opened = self._open() if len(self._raw) < len(self._chunks) else {}

    def _open(self):
        try:
            raw = {*self._raw.values()} if self._is_far else ()
            return orbax.open_leaves(self._copied([file for file in self.record["files"] if file not in raw]))
        except (ValueError, OSError) as error:  # it looks at all leaves, also at those that are not verified yet
            raise self._error(self.problems() or [str(error)]) from error

    def _descriptions(self):
        return set(self.record["files"]).difference(*self._chunks.values())

    def _share(self, process, processes):
        for turn, files in enumerate(self._chunks.values()):
            for place, file in enumerate(files):
                if (place * processes // len(files) if len(files) > 1 else turn % processes) == process:
                    yield file

    def _compare(self, files):
        if not self.directory.is_dir():
            return ["the whole directory is missing"]
        number = SIDE_BY_SIDE if self._is_far else NUMBER
        return [problem for problem in in_threads(self._problem, sorted(files), number) if problem]

    def _copied(self, files):
        """Return the directory, or of one on a store a folder of this machine with copies of some of its files."""
        if not self._is_far:
            return self.directory
        self._copies = self._copies or Copies()
        self._copies.fill({file: self.directory / file for file in files})
        return self._copies.folder

    def _problem(self, file):
        try:
            actual = hash_files(self.directory / file)
        except FileNotFoundError:
            return self._described(file, _MISSING)
        return None if actual == self.record["files"][file] else self._described(file, _DIFFERS)

    def _described(self, file, problem):
        folder = file.rpartition("/")[0].rpartition("/")[2]
        leaf = None if file.startswith(KEPT) else self._leaf_in.get(folder)
        return f"{shown(file)}{'' if leaf is None else f' (leaf {shown(leaf)})'} {problem}"

    def _raise(self, problems):
        if problems:
            raise self._error(problems)

    def _error(self, problems):
        lines = f" {problems[0]}" if len(problems) == 1 else "\n" + bounded([f"  {problem}" for problem in problems])
        return PoolCorruptionError(f"member {self.name!r} is corrupted, in {self.directory}:{lines}")


@functools.cache  # until the program ends: the paths are given away
def _kept_copies(directory):
    copies = Copies()
    copies.fill({KEPT + path.relative_to(directory / KEPT): path for path in (directory / KEPT).sizes()})
    return copies.folder, copies


def nested(record: dict, values: dict[str, Any]) -> Tree:
    """Put a value for each leaf of a record into nested dicts with string keys, and None and {} where it was empty."""
    places = {tuple(_paths.texts(record["leaves"][name]["keys"])): value for name, value in values.items()}
    for place in record.get("empty", ()):
        places[tuple(_paths.texts(place["keys"]))] = None if place["kind"] == "None" else {}
    return tensors.nested(places)


def stored_name(entry: dict) -> str:
    """Return the name that a leaf has in its checkpoint."""
    return entry.get("stored") or "/".join(entry["keys"])


def relative_files(directory: pathlib.Path | StorePath) -> list[str]:
    """List the files below a directory."""
    if isinstance(directory, StorePath):
        return sorted(file.relative_to(directory) for file in directory.sizes())
    return sorted(file.relative_to(directory).as_posix() for file in directory.rglob("*") if not file.is_dir())


def _folder(entry):
    return stored_name(entry).replace("/", ".")


def _chunks(record):
    """Return the files of each leaf's elements, in their order."""
    described, own = f"/{orbax.ARRAY_METADATA}", [file for file in record["files"] if not file.startswith(KEPT)]
    folders = {file.removesuffix(described) for file in own if file.endswith(described)}
    by_folder = {folder.rpartition("/")[2]: [] for folder in folders}
    for file in own:
        folder = file.rpartition("/")[0]
        if folder in folders and not file.endswith(described):
            by_folder[folder.rpartition("/")[2]].append(file)
    # that a leaf's folder is called after its keys is all of Orbax's layout that is relied on
    return {
        leaf: sorted(by_folder.get(_folder(entry), ()), key=lambda file: (len(file), file))
        for leaf, entry in record["leaves"].items()
    }
