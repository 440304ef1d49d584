"""Save, restore and describe checkpoints: the only module that knows Orbax and its files.

A checkpoint is written without OCDBT and without compression, one Zarr (v2) chunk for each leaf and shard. So Orbax
restores it into any sharding, and the chunk of an unsharded leaf is a file of its raw bytes, which can be mapped.
Checkpoints of any version are read: their trees from `_METADATA` or, as older ones have it, a MessagePack file
`checkpoint`, which holds small leaves itself; their arrays by TensorStore where they do not lie raw. Orbax, TensorStore
and JAX are imported when they are used: half a second that reading files of other formats need not wait.
"""

import contextlib
import dataclasses
import logging
import os
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from soups.files import cannot_write, local_path
from soups.formats import msgpack, zarr
from soups.formats.orbax_steps import AGGREGATE, DATABASE, TREE_METADATA, known_tree, newest, trees
from soups.formats.tensors import Checkpoint, CheckpointError, Leaf, listed, nested, short
from soups.formats.text import read_bytes, read_json
from soups.formats.weights import ALL, BELONG, left_out, several, weights_by_path
from soups.lazy import jax
from soups.names import bounded, shown
from soups.tree import Tree, flatten

ARRAY_METADATA = zarr.ZARR2
MAX_KEYS = 64  # of one leaf
_PLACEHOLDER = "PLACEHOLDER://"


def save_checkpoint(path: str | os.PathLike, tree: Tree) -> None:
    """Write nested dicts of arrays as a new checkpoint; with several processes, all of them must call it.

    Raises:
        ValueError: leaves of a dtype that Orbax does not store, all in one message; a URL; a path with a backslash.
        OSError: it cannot be written there.
    """
    from orbax.checkpoint import v1 as ocp

    path = local_path(path)
    check_path(path)
    if wrong := {name: leaf for name, leaf in flatten(tree).items() if not zarr.holds(_dtype(leaf))}:
        lines = [f"  {shown(name)} has dtype {_dtype(leaf)}" for name, leaf in wrong.items()]
        raise ValueError(f"{path} cannot be written, for Orbax has no such numbers:\n{bounded(lines)}")
    context = ocp.Context()
    saving = context.array.saving
    saving.use_ocdbt = saving.use_zarr3 = saving.use_compression = False
    saving.use_replica_parallel = False  # would cut replicated arrays into one chunk per device
    # the thread that makes directories does not report its errors: a save to an unwritable place waits 20 minutes
    context.asynchronous.create_directories_asynchronously = False
    try:
        with context, _without_messages():
            ocp.save(path.absolute(), jax.tree.map(_storable, tree))
    except ValueError as error:
        if code := re.search(r"os_error_code='(\d+)'", str(error)):
            raise cannot_write(path, OSError(int(code[1]), os.strerror(int(code[1])))) from error
        raise


def check_path(path: pathlib.Path) -> None:
    """Raise a ValueError unless checkpoints can be written there: Orbax takes a backslash for a slash."""
    if "\\" in str(path.absolute()):
        raise ValueError(f"{path} has a backslash, which Orbax takes for a slash: choose another path")


def load(path: pathlib.Path, abstract: Tree) -> Tree:
    """Restore a checkpoint to `abstract`: jax.ShapeDtypeStructs with shardings become JAX arrays in those shardings."""
    from orbax.checkpoint import v1 as ocp

    return ocp.load(path.absolute(), abstract)


def load_checkpoint(path) -> Tree:
    """Read any Orbax checkpoint of one pytree of arrays into nested containers of NumPy arrays.

    Where Orbax does not read a layout of older versions any more, a dict of the keys "0", "1", ... stands for a list.

    Raises:
        FileNotFoundError: there is no directory at `path`.
        ValueError: the directory is not an Orbax checkpoint of one pytree, or is damaged.
    """
    from orbax.checkpoint import v1 as ocp

    path = local_path(path).absolute()
    if not path.is_dir():
        raise FileNotFoundError(f"there is no checkpoint directory {path}")
    try:
        stored = ocp.metadata(path).metadata
    except (ocp.errors.InvalidLayoutError, FileNotFoundError, KeyError, AssertionError):
        try:
            there = open_leaves(path)
            return nested({there.keys[name]: there.read(name) for name in there.leaves})
        except CheckpointError as error:
            raise ValueError(f"{path} is not an Orbax checkpoint of one pytree: {error}") from error

    def on_host(leaf):
        return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape) if hasattr(leaf, "shape") else leaf

    return jax.tree.map(np.asarray, load(path, jax.tree.map(on_host, stored)))


def open_orbax(path: str | os.PathLike, tree: str | None = None) -> Checkpoint:
    """Open the weights in an Orbax checkpoint of any version, or in Flax's MessagePack file.

    `path`: of a checkpoint; of a step, whose parts are then trees; or of the folder of a CheckpointManager, of which
    the newest finished step is taken. `tree`: the keys of the tree that is taken, joined with "/", or "." for all; else
    the weights are, as `soups.formats.weights` decides. What was taken and left out is in `notes`.
    """
    path = local_path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    folder, notes = newest(pathlib.Path(os.path.realpath(path)))
    items = trees(folder)
    if tree is None and len(items) > 1:
        items, beside = known_tree(items)
        notes += left_out(beside)
    leaves, strings = {}, []
    for name, item in items.items():
        keys = (name,) if len(items) > 1 else ()
        found, texts = _tree(item)
        leaves |= {(*keys, *own): leaf for own, leaf in found.items()}
        strings += ["/".join((*keys, *own)) for own in texts]
    if len(items) == 1 and tree is not None:  # PATH@default/params and PATH@params
        (item,) = items
        first, _, rest = tree.partition("/")
        tree = (rest or ALL) if first == item and not any(keys[0] == item for keys in leaves) else tree
    chosen, left = weights_by_path(leaves, path, tree)
    if not chosen:
        raise CheckpointError(f"{path} holds no arrays")
    if tree is None and len(items) > 1 and len(first := {keys[0] for keys in chosen.values()} - {*BELONG}) > 1:
        raise several(path, sorted(first))
    places = {new: leaves[old] for new, old in chosen.items()}
    return _open(places, path, items.values(), (*notes, *left_out([*left, *strings])))


def open_leaves(path: str | os.PathLike) -> Checkpoint:
    """Open all leaves of an Orbax checkpoint of one pytree, by their keys joined with "/"."""
    path = local_path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"there is no checkpoint directory {path}")
    items = trees(pathlib.Path(os.path.realpath(path)))
    if len(items) != 1:
        raise CheckpointError(f"{path} holds {len(items)} trees: one Orbax checkpoint of one pytree is needed")
    (item,) = items.values()
    leaves, strings = _tree(item)
    if strings:
        raise CheckpointError(
            f"{path} holds strings, which are not arrays: {listed('/'.join(keys) for keys in strings)}"
        )
    return _open(leaves, path, [item])


@dataclasses.dataclass(frozen=True)
class _Place:
    """Say where a leaf lies: in the files of `item` under `name`, or, in the tree itself, as `value`."""

    item: pathlib.Path
    name: str
    storage: Mapping[str, Any]
    value: np.ndarray | None = None


def _tree(item):
    """Return {keys: place} of the arrays of a tree, and the keys of its strings."""
    if item.is_file():
        return _packed(msgpack.read_tree(item), item, {})
    storage = read_json(item / TREE_METADATA) if (item / TREE_METADATA).is_file() else None
    inner, texts = {}, []
    if (item / AGGREGATE).is_file():
        inner, texts = _packed(msgpack.read_tree(item / AGGREGATE), item, storage or {})
    if storage is None:
        if not inner:
            raise CheckpointError(f"{item} has neither {TREE_METADATA} nor {AGGREGATE}, which say what it holds")
        return inner, texts
    try:
        return _described(item, storage, inner)
    except (LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{item / TREE_METADATA} is damaged, or not as Orbax writes it: {error!r}") from error


def _described(item, storage, inner):
    leaves, strings = {}, []
    for leaf in storage["tree_metadata"].values():
        keys = tuple(str(key["key"]) for key in leaf["key_metadata"])
        kind, skipped = leaf["value_metadata"]["value_type"], leaf["value_metadata"].get("skip_deserialize", False)
        if not keys or len(keys) > MAX_KEYS or keys in leaves:
            raise CheckpointError(
                f"{item / TREE_METADATA}: a leaf without keys, with too many, or listed twice: {short(str(keys[:4]))}"
            )
        if kind == "string":
            strings.append(keys)
        elif keys in inner and inner[keys].value is not None:
            leaves[keys] = inner[keys]
        elif not skipped:  # what is skipped are empty containers
            leaves[keys] = _Place(item, ".".join(keys), storage)
    return leaves, strings


def _packed(tree, item, storage):
    """Read the tree of a MessagePack file: arrays, and names of those that lie beside it."""
    leaves, strings, stack = {}, [], [((), tree)]
    while stack:
        keys, node = stack.pop()
        if isinstance(node, dict) and {"driver", "kvstore"} <= node.keys():  # as T5X names them
            path = node["kvstore"].get("path") if isinstance(node["kvstore"], dict) else None
            leaves[keys] = _Place(item, str(path).rstrip("/"), storage)
        elif isinstance(node, dict | list):
            pairs = node.items() if isinstance(node, dict) else ((str(at), part) for at, part in enumerate(node))
            stack += reversed([((*keys, key), part) for key, part in pairs])
        elif isinstance(node, str) and node.startswith(_PLACEHOLDER):
            leaves[keys] = _Place(item, node.removeprefix(_PLACEHOLDER), storage)
        elif isinstance(node, np.ndarray) and (node.dtype != np.uint8 or keys):
            leaves[keys] = _Place(item, "", storage, node)
        elif isinstance(node, bool | int | float):
            leaves[keys] = _Place(item, "", storage, np.asarray(node))
        elif node is not None:
            strings.append(keys)
    if () in leaves or () in strings:
        raise CheckpointError(f"{item} holds a single value, not a tree")
    return leaves, strings


def _open(places, path, items, notes=()):
    """Open the arrays at places that are given by their keys."""
    keys = {"/".join(own): own for own in places}
    if len(keys) < len(places):
        raise CheckpointError(f"{path}: two tensors have the same name when their keys are joined with '/'")
    sizes = {item: _sizes(item) for item in items}
    beside = {item: (_database(item), sum(own.values())) for item, own in sizes.items()}
    reading = [_begin(name, places[own], *beside[places[own].item]) for name, own in keys.items()]
    opening = [read() for read in reading]
    leaves = {name: opened() for name, opened in zip(keys, opening, strict=True)}
    files = {leaf.file: leaf.nbytes for leaf in leaves.values() if leaf.offset is not None}
    files |= {file: size for own in sizes.values() for file, size in own.items()}
    return Checkpoint(path, leaves, {}, {}, files, notes, keys)


def _begin(name, place, database, available):
    """Begin to read a header; the function that is returned begins to open its array, and returns the one that ends."""
    if place.value is not None:
        leaf = Leaf(name, place.value.shape, place.value.dtype, place.item, None, place.value.nbytes)
        return lambda: lambda: dataclasses.replace(leaf, load=place.value.__getitem__)
    kind = zarr.ZARR3 if place.storage.get("use_zarr3") is True else zarr.ZARR2
    where = f"{place.item}/{place.name}"
    if database is None:
        parts = place.name.split("/")
        if not any(parts) or ".." in parts or place.name.startswith("/") or "\0" in place.name:
            raise CheckpointError(f"{place.item}: a tensor's files would lie outside it, in {short(place.name)}")
        try:
            content = read_bytes(f"{where}/{kind}", limit=zarr.MAX_HEADER)
        except FileNotFoundError as error:
            raise CheckpointError(f"{where} cannot be opened: {error}") from error
        return lambda: _from_files(name, place, kind, zarr.header(content, kind, where, available), where)
    value = database.read(f"{place.name}/{kind}")

    def read():
        found = zarr.result(value, where).value
        if not found:
            raise CheckpointError(f"{where} cannot be opened: it is not in the database")
        array = zarr.header(found, kind, where, available)
        return _from_chunks(name, place, kind, array, where, {"driver": "ocdbt", "base": _files(place.item)})

    return read


def _from_files(name, place, kind, array, where):
    file = pathlib.Path(f"{where}/{array.file}")
    if array.file is None or not array.nbytes or not file.is_file():
        return _from_chunks(name, place, kind, array, where, _files(place.item))
    if (actual := file.stat().st_size) != array.nbytes:
        raise CheckpointError(f"{where} cannot be opened: {file} has {actual} bytes instead of {array.nbytes}")
    return lambda: Leaf(name, array.shape, array.dtype, file, 0, array.nbytes)


def _from_chunks(name, place, kind, array, where, store):
    spec = {
        "driver": "zarr" if kind == zarr.ZARR2 else "zarr3",
        "kvstore": store,
        "path": f"{place.name}/",
        # else a chunk that was lost would be read as zeros
        "fill_missing_data_reads": array.fills
        and place.storage.get("store_array_data_equal_to_fill_value") is not True,
    }
    opened = zarr.opening(spec, where, array)

    def leaf():
        stored = opened()
        like = name, array.shape, array.dtype, place.item, None, array.nbytes
        return Leaf(*like, None, stored.read, stored.making, array.chunk_rows)

    return leaf


def _database(item):
    if not (item / DATABASE).is_file():
        if any(item.glob(f"ocdbt.process_*/{DATABASE}")):
            raise CheckpointError(f"{item} was not finished: the databases of its processes were not merged")
        return None
    import tensorstore

    spec = {"driver": "ocdbt", "base": _files(item)}
    return zarr.result(tensorstore.KvStore.open(spec, context=zarr.context()), item / DATABASE)


def _files(folder):
    return {"driver": "file", "path": f"{folder}/"}


def _sizes(place):
    if place.is_file():
        return {place: place.stat().st_size}
    found = (os.path.join(folder, file) for folder, _, files in os.walk(place) for file in files)
    return {pathlib.Path(file): os.stat(file).st_size for file in sorted(found) if os.path.isfile(file)}


@contextlib.contextmanager
def _without_messages() -> Iterator[None]:
    # Orbax says on each save that it found nothing of OCDBT to merge, which is how these checkpoints are meant; and of
    # an error, which it raises, each of its threads tells too, and TensorStore what it cannot tell the loop any more
    def other(record):
        return not re.search(r"Skipping merge of OCDBT|_SignalingThread.* raised an exception", record.getMessage())

    def hook(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    logger, before = logging.getLogger("absl"), sys.unraisablehook
    logger.addFilter(other)
    sys.unraisablehook = hook
    ends = True
    try:
        yield
    except KeyboardInterrupt:
        ends = False  # its threads go on, and tell of it
        raise
    finally:
        if ends:
            logger.removeFilter(other)
            sys.unraisablehook = before


def _dtype(leaf):
    return leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype


def _storable(leaf):
    # An array that is whole on one device is stored from the host, as one file. In a run of several processes Orbax
    # refuses JAX arrays that only one of them can see.
    sharded = isinstance(leaf, jax.Array) and not leaf.is_fully_replicated
    if sharded and (jax.process_count() == 1 or not leaf.is_fully_addressable):
        return leaf
    return np.asarray(leaf)
