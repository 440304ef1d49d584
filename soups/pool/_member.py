"""Describe a member when it is added, and read it back with every byte checked."""

import concurrent.futures
import datetime
import importlib.metadata
import os
import pathlib
import platform
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xxhash

from soups.formats import orbax as _checkpoint
from soups.formats.mapping import mapped
from soups.pool._manifest import PoolCorruptionError
from soups.tree import Tree

# 256 kB of float32: the blocks of a few members and what is computed from them stay in a core's cache
BLOCK = 1 << 16
THREADS = max(2, min(8, os.cpu_count() or 2))
_DIFFERS = "does not have the bytes that were written"
_PACKAGES = ("soups", "jax", "flax", "orbax-checkpoint", "numpy")


class Member:
    """Read one member's checkpoint and compare every byte with the digests of its record.

    `check` first: it also learns from the files how each leaf is stored, which `map` needs.
    """

    def __init__(self, name: str, directory: pathlib.Path, record: dict):
        self.name = name
        self.directory = directory
        self.record = record
        # that a leaf's folder is called after its keys is all of Orbax's layout that is relied on
        by_keys = {folder.rpartition("/")[2]: folder for folder in _folders(record["files"])}
        self._folders = {name: by_keys[".".join(leaf["keys"])] for name, leaf in record["leaves"].items()}
        self._stored = {}

    @property
    def structure(self) -> Tree:
        """Give nested dicts of jax.ShapeDtypeStruct."""
        return nested(self.record["leaves"], abstract_leaf)

    def load(self) -> Tree:
        """Check every file and give nested dicts of read-only NumPy arrays, mapped where they lie raw."""
        self.check()
        return nested(self.record["leaves"], lambda name, _: self.map(name))

    def map(self, leaf: str) -> np.ndarray:
        """Give a leaf as it lies on disk, read-only."""
        return _stored_leaf(self.directory / self._folders[leaf], self._stored[leaf])

    def check(self, *, streamed: bool = False) -> None:
        """Compare all files with their digests, except, with `streamed`, those that the caller hashes on the way.

        Raises:
            PoolCorruptionError: naming the member, every file that differs or is missing, and its leaf.
        """
        if problems := self.problems(streamed=streamed):
            raise PoolCorruptionError(self._message(problems))

    def check_leaf(self, leaf: str, digest: str) -> None:
        """Compare the digest of a mapped leaf with the record's.

        Raises:
            PoolCorruptionError: naming the member, the file and the leaf.
        """
        if digest != self.record["leaves"][leaf]["digest"]:
            file = f"{self._folders[leaf]}/{self._stored[leaf].file or ''}"
            raise PoolCorruptionError(self._message([self._described(file, _DIFFERS)]))

    def problems(self, *, streamed: bool = False) -> list[str]:
        """List the files that are missing or do not have the bytes that were written."""
        if not self.directory.is_dir():
            return ["the whole directory is missing"]
        files = self.record["files"]
        descriptions = [file for file in files if _is_description(file, files)]
        problems = self._compare(descriptions)
        if problems:  # then nothing says which of the others are mapped
            return problems + self._compare(set(files).difference(descriptions))
        for leaf, folder in self._folders.items():
            self._stored[leaf] = _stored_array(self.directory / folder)
        if not streamed:
            return self._compare(set(files).difference(descriptions))
        raw = {f"{self._folders[leaf]}/{stored.file}": stored for leaf, stored in self._stored.items() if stored.file}
        sizes = [self._wrong_size(file, stored) for file, stored in raw.items()]
        return [size for size in sizes if size] + self._compare(set(files).difference(descriptions, raw))

    def unexpected(self) -> list[str]:
        """List the files of the checkpoint that the record does not know."""
        return [file for file in _relative_files(self.directory) if file not in self.record["files"]]

    def _compare(self, files):
        with concurrent.futures.ThreadPoolExecutor(THREADS) as threads:
            return [problem for problem in threads.map(self._problem, sorted(files)) if problem]

    def _problem(self, file):
        try:
            actual = _hash_file(self.directory / file)
        except FileNotFoundError:
            return self._described(file, "is missing")
        if actual != self.record["files"][file]:
            return self._described(file, _DIFFERS)
        return None

    def _wrong_size(self, file, stored):
        try:
            actual = (self.directory / file).stat().st_size
        except FileNotFoundError:
            return self._described(file, "is missing")
        return self._described(file, _DIFFERS) if actual != stored.size else None

    def _described(self, file, problem):
        folder = file.rpartition("/")[0]
        return f"{file}{''.join(f' (leaf {leaf})' for leaf, own in self._folders.items() if own == folder)} {problem}"

    def _message(self, problems):
        lines = "".join(f"\n  {problem}" for problem in problems)
        return f"member {self.name!r} is corrupted, in {self.directory}:{lines}"


# --- Describing ---------------------------------------------------------------------------------------------------


def named_leaves(params: Tree, name: str) -> dict[str, np.ndarray | jax.Array]:
    """Give the arrays of nested dicts by name, the keys joined with "/", in the order of the sorted keys.

    Raises:
        ValueError: listing everything that a pool cannot hold.
    """
    leaves, problems = {}, []
    _walk(params, (), leaves, problems)
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise ValueError(f"member {name!r} cannot be stored: a pool holds nested dicts of arrays{lines}")
    return leaves


def describe(directory: pathlib.Path) -> dict:
    """Describe a checkpoint from its files: {"status", "nonfinite_leaves", "leaves", "files", "digest"}."""
    files = {file: _hash_file(directory / file) for file in _relative_files(directory)}
    leaves, nonfinite = {}, []
    for folder in _folders(files):
        name = folder.rpartition("/")[2].replace(".", "/")
        array = _stored_leaf(directory / folder, _stored_array(directory / folder))
        leaves[name] = _leaf_record(name, array)
        if not _finite(array):
            nonfinite.append(name)
    leaves = dict(sorted(leaves.items(), key=lambda item: item[1]["keys"]))
    return {
        "status": "non-finite" if nonfinite else "ok",
        "nonfinite_leaves": sorted(nonfinite),
        "digest": _digest_of_leaves(leaves),
        "leaves": leaves,
        "files": files,
    }


def digest(params: Tree) -> str:
    """Give the digest of a tree of arrays: that of the pool's member with these leaves, however either is sharded.

    XXH3 (128 bits, hexadecimal) over the sorted names of the leaves, their dtypes, shapes and digests of their bytes.

    Raises:
        ValueError: it is not nested dicts of arrays.
    """
    leaves = named_leaves(params, "tree")
    return _digest_of_leaves({name: _leaf_record(name, np.asarray(leaf)) for name, leaf in leaves.items()})


def provenance() -> dict:
    """Give {"versions", "created"}: the packages in use and the time (UTC, ISO 8601)."""
    versions = {package: _version(package) for package in _PACKAGES}
    return {
        "versions": {**versions, "python": platform.python_version()},
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def nested(leaves: dict[str, Any], function: Callable) -> Tree:
    """Make nested dicts of `function(name, leaf)` from leaves by name."""
    tree = {}
    for name, leaf in leaves.items():
        *keys, last = name.split("/")
        node = tree
        for key in keys:
            node = node.setdefault(key, {})
        node[last] = function(name, leaf)
    return tree


def is_float(dtype) -> bool:
    """Say whether leaves of this dtype are averaged, rather than copied."""
    return jnp.issubdtype(dtype, jnp.inexact)


def blocks(size: int) -> Iterator[slice]:
    """Cut `size` elements into slices of `BLOCK`."""
    return (slice(start, min(start + BLOCK, size)) for start in range(0, size, BLOCK))


def as_bytes(array: np.ndarray) -> np.ndarray:
    """View an array as its bytes in C order, which every hash can read (bfloat16 has no buffer format)."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


# --- Files and leaves ---------------------------------------------------------------------------------------------


def _stored_array(folder):
    return _checkpoint.stored_array((folder / _checkpoint.ARRAY_METADATA).read_bytes())


def _stored_leaf(folder, stored):
    if stored.file is None:
        array = _checkpoint.read_array(folder)
        array.flags.writeable = False
        return array
    return mapped(folder / stored.file, stored.size).view(stored.dtype).reshape(stored.shape)


def _hash_file(path):
    size = path.stat().st_size
    return xxhash.xxh3_128_hexdigest(mapped(path, size) if size > 1 << 16 else path.read_bytes())


def _relative_files(directory):
    return sorted(file.relative_to(directory).as_posix() for file in directory.rglob("*") if file.is_file())


def _folders(files):
    end = f"/{_checkpoint.ARRAY_METADATA}"
    return [file.removesuffix(end) for file in files if file.endswith(end)]


def _is_description(file, files):
    folder, _, last = file.rpartition("/")
    return last == _checkpoint.ARRAY_METADATA or f"{folder}/{_checkpoint.ARRAY_METADATA}" not in files


def _walk(node, keys, leaves, problems):
    where = "/".join(map(str, keys)) or "the tree itself"
    if type(node) is dict:
        if not node:
            problems.append(f"{where} is an empty dict")
        for key in sorted(node, key=str):
            if not isinstance(key, str) or not key or set(key) & set("/.\0"):
                problems.append(f"{where} has the key {key!r}: keys are strings without '/' and '.'")
            _walk(node[key], (*keys, key), leaves, problems)
    elif not keys:
        problems.append(f"{where} is a {type(node).__name__}, not a dict")
    elif problem := _leaf_problem(node):
        problems.append(f"{where} {problem}")
    else:
        leaves[where] = node


def _leaf_problem(leaf):
    if not isinstance(leaf, (np.ndarray, np.generic, jax.Array)):
        return f"is a {type(leaf).__name__}, neither a dict nor an array"
    if not (jnp.issubdtype(leaf.dtype, np.number) or leaf.dtype == np.bool_):
        return f"has dtype {leaf.dtype}: only numbers and booleans can be stored"
    return f"has shape {leaf.shape}, without any element" if leaf.size == 0 else ""


def _leaf_record(name, array):
    return {
        "keys": name.split("/"),
        "shape": list(array.shape),
        "dtype": array.dtype.name,
        "digest": xxhash.xxh3_128_hexdigest(as_bytes(array)),
    }


def _digest_of_leaves(leaves):
    lines = [f"{name} {leaf['dtype']} {leaf['shape']} {leaf['digest']}\n" for name, leaf in sorted(leaves.items())]
    return xxhash.xxh3_128_hexdigest("".join(lines).encode())


def _finite(array):
    flat = array.reshape(-1)
    return not is_float(array.dtype) or all(np.isfinite(flat[block]).all() for block in blocks(flat.size))


def abstract_leaf(_, leaf):
    """Give the shape and dtype that a manifest's record of a leaf states."""
    return jax.ShapeDtypeStruct(tuple(leaf["shape"]), jnp.dtype(leaf["dtype"]))


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
