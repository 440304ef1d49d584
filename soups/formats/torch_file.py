"""Read the headers of torch's files: the zip archives of torch.save and torch.jit.save, the older stream of pickles."""

import os
import pathlib
import zlib

import numpy as np

from soups.formats.archive import data_offset, read_entries
from soups.formats.tensors import CheckpointError, Header, Leaf, checked_nbytes, listed, map_file, nested, short
from soups.formats.torch_arrays import is_array, read_array
from soups.formats.torch_globals import Record, Storage, Tensor
from soups.formats.torch_pickle import MAX_PICKLE, memory_for, unpickle
from soups.formats.torch_script import SCRIPT_OPERATIONS, Module
from soups.formats.weights import ALL, check_no_moments, is_beside, weights

MAGIC = 0x1950A86A20F9469CFC6C
MAX_DEPTH = 32
LEAF = 1000  # bytes of memory that the header of a tensor takes, beside its name
MAX_NAME = 1000
MAX_EXPANDED = 1 << 30  # bytes of a tensor whose strides repeat elements
_KINDS = {dict: "mappings", Module: "modules"}


def read_header(path: pathlib.Path, tree: str | None = None) -> Header:
    """Return what a torch file holds; no byte of a tensor is read.

    `tree`: the keys of the mapping that is taken, joined with "/", or "." for all; else the weights are. NumPy arrays
    of numbers that lie among them are tensors too.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        start = file.read(2)
        if start == b"PK":
            value, length, locate = _read_zip(file, path)
        elif start[:1] == b"\x80":
            value, length, locate = _read_stream(path, size)
        else:
            raise CheckpointError(f"{path} is not a torch file: neither a zip archive nor a pickle")
        leaves, aliases, ignored = _leaves(value, length, path, locate, tree)
    return Header(leaves, size, aliases=aliases, ignored=ignored)


def _read_zip(file, path):
    entries = read_entries(file, path)
    prefix = _prefix(entries, path)
    order = entries.get(prefix + "byteorder")
    if order is not None and _content(file, order, path, 16) != b"little":
        raise CheckpointError(f"{path} is not little-endian; save it again on a little-endian machine")
    entry = entries[prefix + "data.pkl"]
    pickled = _content(file, entry, path, MAX_PICKLE)
    if entry.CRC not in (0, zlib.crc32(pickled)):  # torch writes 0 when it is told not to compute them
        raise CheckpointError(f"{path}: {entry.filename} does not match its checksum: the file is damaged")
    script = prefix + "constants.pkl" in entries  # torch.jit.save writes one, torch.save none
    value, length = unpickle(memoryview(pickled), path, SCRIPT_OPERATIONS if script else None)
    if script and type(value) is not Module:
        raise CheckpointError(f"{path} is a TorchScript archive, but of a {type(value).__name__} instead of a module")

    def locate(storage):
        entry = entries.get(f"{prefix}data/{storage.key}")
        if entry is None:
            raise CheckpointError(f"{path}: storage {short(storage.key)} is not in the archive")
        return data_offset(file, entry, path), entry.file_size

    return value, length, locate


def _prefix(entries, path):
    if any(name.endswith("/model.json") and name.count("/") == 1 for name in entries):
        raise CheckpointError(f"{path} is a TorchScript archive in an old layout; save it again with a current torch")
    found = [name for name in entries if name == "data.pkl" or (name.endswith("/data.pkl") and name.count("/") == 1)]
    if len(found) != 1:
        raise CheckpointError(f"{path} is not a torch file: a zip archive with {len(found)} entries */data.pkl, not 1")
    return found[0].removesuffix("data.pkl")


def _content(file, entry, path, limit):
    if entry.file_size > limit:
        raise CheckpointError(f"{path}: {short(entry.filename)} has {entry.file_size} bytes, more than {limit}")
    file.seek(data_offset(file, entry, path))
    return file.read(entry.file_size)


def _read_stream(path, size):
    """Read five pickles - magic number, version, system, object, keys - and the storages behind them."""
    data = memoryview(map_file(path, size))
    values, at = [], 0
    for index in range(5):
        value, length = unpickle(data[at:], path)
        values.append((value, length))
        at += length
        if index == 0 and (type(value) is not int or value != MAGIC):
            raise CheckpointError(f"{path} is a pickle, but torch did not write it")
    (_, _), (_, _), (system, _), (value, length), (keys, _) = values
    if type(system) is not dict or system.get("little_endian") is not True:
        raise CheckpointError(f"{path} is not little-endian; save it again on a little-endian machine")
    if type(keys) is not list or not all(type(key) is str for key in keys) or len(set(keys)) < len(keys):
        raise CheckpointError(f"{path}: the list of storages is damaged")
    return value, length, _stream_locator(data, at, keys, _storages(value), path)


def _stream_locator(data, at, keys, storages, path):
    places = {}
    for key in keys:
        count = int.from_bytes(data[at : at + 8], "little")
        itemsize = storages[key].dtype.itemsize if key in storages else 1
        if at + 8 + count * itemsize > len(data):
            raise CheckpointError(f"{path} is truncated in storage {short(key)}, or damaged")
        if key not in storages:
            raise CheckpointError(f"{path}: no tensor says how long the elements of storage {short(key)} are")
        places[key] = (at + 8, count * itemsize)
        at += 8 + count * itemsize
    if at != len(data):
        raise CheckpointError(f"{path}: {len(data) - at} bytes after the last storage")

    def locate(storage):
        if storage.key not in places:
            raise CheckpointError(f"{path}: storage {short(storage.key)} is not in the file")
        return places[storage.key]

    return locate


def _storages(value):
    """Find all storages in the object: also those in parts that give no leaf have bytes in the stream."""
    storages, seen, stack = {}, set(), [value]
    while stack:
        item = stack.pop()
        if type(item) is Tensor:
            item = item.storage
        if type(item) is Storage:
            storages.setdefault(item.key, item)
        elif type(item) in (dict, list, tuple) and id(item) not in seen:
            seen.add(id(item))
            stack.extend(item.values() if type(item) is dict else item)
    return storages


def _leaves(value, length, path, locate, tree):
    tensors, ignored = _named_tensors(value, memory_for(length), path, tree)
    leaves, aliases, first = [], {}, {}
    for name, tensor in tensors.items():
        leaf, identity = _leaf(name, tensor, path, locate)
        if leaf.nbytes and identity in first:
            aliases[name] = first[identity]
            continue
        first[identity] = name
        leaves.append(leaf)
    leaves.sort(key=lambda leaf: leaf.strided[0] if leaf.strided else leaf.offset or 0)
    return leaves, aliases, ignored


def _named_tensors(value, limit, path, tree):
    kind = type(value)
    if kind not in (dict, Module):
        held = short(value.name) if kind is Record else kind.__name__
        raise CheckpointError(f"{path} holds a {held}, not tensors by name")
    ignored = []
    if kind is dict:
        if tree not in (None, ALL) and not any(f"{tree}/".startswith(f"{key}/") for key in value):
            value = nested(value)  # the keys may be in the names of tensors
        value, ignored = weights(value, path, is_tensor=_is_leaf, choice=tree, wrapped=True)
    elif tree is not None:
        raise CheckpointError(f"{path} is a TorchScript archive, which has no trees to choose {short(tree)} from")
    tensors, spent = {}, 0
    for name, item in _walk(value, path):
        if is_array(item):
            item = read_array(item, f"{path}: tensor {short(name)}")
            spent += item.nbytes
        is_leaf = type(item) in (Tensor, np.ndarray)
        spent += len(name) + (LEAF if is_leaf else 100)
        if spent > limit:
            raise CheckpointError(
                f"{path}: {_KINDS[kind]} inside each other, with more names than the size of the file allows"
            )
        if name in tensors:
            raise CheckpointError(f"{path}: two tensors are named {short(name)}")
        if is_leaf:
            tensors[name] = item
        elif type(item) is not kind:
            if (
                kind is dict
                and tree is None
                and type(item) in (list, tuple)
                and not is_beside(name)
                and _storages(item)
            ):
                raise CheckpointError(
                    f"{path}: {short(name)} has tensors in a list, without names: save a state_dict, or take what has "
                    f"names with PATH@{ALL}"
                )
            ignored.append(name)
    if tree is None:
        check_no_moments(tensors, path)
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors by name{', only ' * bool(ignored)}{listed(ignored)}")
    if kind is Module:  # hundreds of modules have the same settings
        ignored = list(dict.fromkeys(name.rpartition(".")[2] for name in ignored))
    return tensors, ignored


def _is_leaf(item):
    return type(item) is Tensor or is_array(item)


def _walk(node, path, prefix="", depth=0):
    kind = type(node)
    if depth > MAX_DEPTH:
        raise CheckpointError(f"{path}: {_KINDS[kind]} that contain themselves, or are nested deeper than {MAX_DEPTH}")
    for key, item in (node if kind is dict else node.attributes or {}).items():
        name = prefix + key
        if len(name) > MAX_NAME:
            raise CheckpointError(f"{path}: a name of more than {MAX_NAME} characters, {short(name)}")
        yield name, item
        if type(item) is kind:
            yield from _walk(item, path, f"{name}.", depth + 1)


def _leaf(name, tensor, path, locate):
    if type(tensor) is np.ndarray:
        return Leaf(name, tensor.shape, tensor.dtype, path, None, tensor.nbytes, load=tensor.__getitem__), name
    where = f"{path}: tensor {short(name)}"
    nbytes = checked_nbytes(tensor.shape, tensor.dtype, where)
    start, available = locate(tensor.storage)
    if tensor.storage.nbytes != available:
        raise CheckpointError(f"{where}: its storage has {available} bytes instead of {tensor.storage.nbytes}")
    itemsize = tensor.dtype.itemsize
    # a dimension of 1 may have any stride
    strides = tuple(s if n > 1 else 0 for n, s in zip(tensor.shape, tensor.strides, strict=True))
    last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, strides, strict=True))
    if nbytes and (last + 1) * itemsize > available:
        raise CheckpointError(f"{where} reaches to byte {(last + 1) * itemsize} of a storage of {available} bytes")
    if nbytes > max(available, MAX_EXPANDED):
        raise CheckpointError(f"{where} repeats the elements of its storage to {nbytes} bytes")
    first = start + tensor.offset * itemsize if nbytes else start
    identity = (tensor.storage.key, first, tensor.shape, strides, tensor.dtype)
    if not nbytes or strides == _contiguous(tensor.shape):
        return Leaf(name, tensor.shape, tensor.dtype, path, first, nbytes), identity
    in_bytes = tuple(stride * itemsize for stride in strides)
    return Leaf(name, tensor.shape, tensor.dtype, path, None, nbytes, (first, in_bytes)), identity


def _contiguous(shape):
    strides, stride = [], 1
    for size in reversed(shape):
        strides.append(stride if size > 1 else 0)
        stride *= size
    return tuple(reversed(strides))
