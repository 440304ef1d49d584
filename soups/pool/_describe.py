"""Describe a member when it is added: its leaves, their digests, its files, and with what it was made."""

import contextlib
import datetime
import functools
import math
import pathlib
import platform
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import xxhash

from soups import engine, processes
from soups.arrays import as_bytes, is_float
from soups.formats.mapping import hash_files
from soups.formats.tensors import listed, nested
from soups.lazy import orbax
from soups.pool import _paths
from soups.pool._member import Member, relative_files, stored_name
from soups.stores import PART, SIDE_BY_SIDE, StorePath
from soups.tree import Tree, flatten
from soups.workers import in_threads

_PACKAGES = ("soups", "jax", "flax", "orbax-checkpoint", "numpy")


def save(directory: pathlib.Path, flat: _paths.Flat) -> None:
    """Write the arrays of a tree as a new Orbax checkpoint, nested by safe names.

    Arrays without an element are in the record alone, for Orbax stores none. All of several processes must call it.
    """
    stored = {
        tuple(_paths.stored_name(flat.keys[name]).split("/")): array
        for name, array in flat.arrays.items()
        if array.size
    }
    orbax.save_checkpoint(directory, nested(stored))


@contextlib.contextmanager
def staged(directory: pathlib.Path | StorePath) -> Iterator[pathlib.Path]:
    """Yield where a member is written: its directory, or for a store a folder of this machine, which is then deleted.

    Raises:
        ValueError: a store, in a run of several processes.
    """
    if isinstance(directory, pathlib.Path):
        yield directory
        return
    if processes.count() > 1:
        raise ValueError(f"{directory}: only one process may add to a pool on an object store, not several of one run")
    with tempfile.TemporaryDirectory(prefix="soups-") as folder:
        yield pathlib.Path(folder) / directory.name


def upload(folder: pathlib.Path, directory: StorePath, files: Iterable[str]) -> None:
    """Copy the files of a member to a store, several at a time."""

    def copy(file):
        size = (folder / file).stat().st_size
        if size <= PART:
            (directory / file).write_bytes((folder / file).read_bytes())
        else:
            with open(folder / file, "rb") as content:
                (directory / file).upload(iter(lambda: content.read(PART), b""), size)

    in_threads(copy, files, SIDE_BY_SIDE)


def describe(directory: pathlib.Path, flat: _paths.Flat) -> dict:
    """Describe a saved tree by its files: {"status", "nonfinite_leaves", "digest", "leaves", "empty", "files"}."""
    opened, leaves, nonfinite = orbax.open_leaves(directory), {}, []
    for name, keys in flat.keys.items():
        stored = _paths.stored_name(keys)
        array = opened.read(stored) if flat.arrays[name].size else _native(flat.arrays[name])
        leaves[name] = _entry(keys, array)
        if stored != "/".join(_paths.texts(keys)) or not all(isinstance(key, str) for key in keys):
            leaves[name]["stored"] = stored
        if not _finite(array):
            nonfinite.append(name)
    return {
        "status": "non-finite" if nonfinite else "ok",
        "nonfinite_leaves": sorted(nonfinite),
        "digest": _digest_of_leaves(leaves),
        "leaves": leaves,
        "empty": flat.empty,
        "files": {file: hash_files(directory / file) for file in relative_files(directory)},
    }


def restore(member: Member, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Restore a member's leaves by exact name as JAX arrays: `wanted` states their shapes, dtypes and shardings."""
    import jax

    places = {_paths.exact_name(entry["keys"]): stored_name(entry) for entry in member.record["leaves"].values()}
    if isinstance(member.directory, StorePath):
        return _restored_from_store(member, wanted)
    on_disk = {tuple(places[name].split("/")): leaf for name, leaf in wanted.items() if math.prod(leaf.shape)}
    restored = flatten(orbax.load(member.directory, nested(on_disk)))
    for name, leaf in wanted.items():
        if not math.prod(leaf.shape):
            restored[places[name]] = jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)
    if left := [name for name in wanted if not isinstance(restored.get(places[name]), jax.Array)]:
        raise ValueError(f"Orbax left these leaves of member {member.name!r} unread: {listed(left)}")
    for leaf, entry in member.record["leaves"].items():
        name = _paths.exact_name(entry["keys"])
        if restored[places[name]].dtype != wanted[name].dtype:  # its threads do not know of `with jax.enable_x64()`
            read = functools.partial(member.read, leaf)
            restored[places[name]] = jax.make_array_from_callback(wanted[name].shape, wanted[name].sharding, read)
    return {name: restored[places[name]] for name in wanted}


def _restored_from_store(member, wanted):
    import jax

    names = {_paths.exact_name(entry["keys"]): leaf for leaf, entry in member.record["leaves"].items()}

    def restored(name):
        array, leaf = member.read(names[name]), wanted[name]
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, array.astype(leaf.dtype, copy=False).__getitem__)

    return {name: restored(name) for name in wanted}


def digest(params: Tree) -> str:
    """Return the digest of a tree of arrays: that of the pool's member with these leaves, however either is sharded.

    XXH3 (128 bits, hexadecimal) over the sorted names of the leaves, their dtypes, shapes and digests of their bytes.
    """
    flat = _paths.flatten(params, "the tree")
    return _digest_of_leaves({name: _entry(flat.keys[name], _native(leaf)) for name, leaf in flat.arrays.items()})


def shapes(flat: _paths.Flat) -> dict:
    """Return the shape and dtype of each leaf by its exact name."""
    return {_paths.exact_name(flat.keys[name]): _abstract(a.shape, a.dtype) for name, a in flat.arrays.items()}


def recorded_shapes(record: Mapping) -> dict:
    """Return the shape and dtype of each leaf of a record by its exact name."""
    return {_paths.exact_name(entry["keys"]): abstract(entry) for entry in record["leaves"].values()}


def abstract(entry: Mapping):
    """Return the jax.ShapeDtypeStruct that a record's entry of a leaf states."""
    return _abstract(tuple(entry["shape"]), np.dtype(entry["dtype"]))


def provenance() -> dict:
    """Return {"versions", "created"}: the packages in use and the time (UTC, ISO 8601)."""
    versions = {package: _version(package) for package in _PACKAGES}
    return {
        "versions": {**versions, "python": platform.python_version()},
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _abstract(shape, dtype):
    import jax

    return jax.ShapeDtypeStruct(shape, np.dtype(dtype).newbyteorder("="))


def _native(leaf):
    array = np.asarray(leaf)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _entry(keys, array):
    return {
        "keys": keys,
        "shape": list(array.shape),
        "dtype": array.dtype.name,
        "digest": xxhash.xxh3_128_hexdigest(as_bytes(array)),
    }


def _digest_of_leaves(leaves):
    named = sorted((_paths.exact_name(leaf["keys"]), leaf) for leaf in leaves.values())
    lines = [f"{name} {leaf['dtype']} {leaf['shape']} {leaf['digest']}\n" for name, leaf in named]
    return xxhash.xxh3_128_hexdigest("".join(lines).encode())


def _finite(array):
    flat = array.reshape(-1)
    return not is_float(array) or all(
        np.isfinite(flat[start : start + engine.BLOCK]).all() for start in range(0, flat.size, engine.BLOCK)
    )


@functools.cache
def _version(package):
    import importlib.metadata  # it imports half of the e-mail package

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
