"""Save, restore and describe checkpoints: the only module that knows Orbax and its files.

A checkpoint is written without OCDBT and without compression, one Zarr (v2) chunk for each leaf and shard. So Orbax
restores it into any sharding, and the chunk of an unsharded leaf is a file of its raw bytes, which can be mapped.
Orbax and TensorStore are imported when they are used: half a second that reading files of other formats need not wait.
"""

import dataclasses
import json
import logging
import math
import pathlib
import re
from typing import Any

import numpy as np

from soups.formats.mapping import mapped
from soups.lazy import jax
from soups.tree import Tree

ARRAY_METADATA, TREE_METADATA = ".zarray", "_METADATA"

# Orbax says on each save that it found nothing of OCDBT to merge, which is how these checkpoints are meant.
logging.getLogger("absl").addFilter(lambda record: "Skipping merge of OCDBT" not in record.getMessage())


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """Say how an array lies in its folder: raw in one file, or in several or encoded ones (`file` is then None)."""

    shape: tuple[int, ...]
    dtype: np.dtype
    file: str | None

    @property
    def size(self) -> int:
        """Give the number of bytes."""
        return self.dtype.itemsize * math.prod(self.shape)


def save_checkpoint(path: pathlib.Path, tree: Tree) -> None:
    """Write nested dicts of arrays as a new checkpoint; with several processes, all of them must call it.

    Raises:
        OSError: what the file system said, such as a full disk.
    """
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    saving = context.array.saving
    saving.use_ocdbt = saving.use_zarr3 = saving.use_compression = False
    saving.use_replica_parallel = False  # would cut replicated arrays into one chunk per device
    # the thread that makes directories does not report its errors: a save to an unwritable place waits 20 minutes
    context.asynchronous.create_directories_asynchronously = False
    try:
        with context:
            ocp.save(path.absolute(), jax.tree.map(_storable, tree))
    except ValueError as error:
        if code := re.search(r"os_error_code='(\d+)'", str(error)):
            raise OSError(int(code[1]), _first_line(error), str(path)) from error
        raise


def load(path: pathlib.Path, abstract: Tree) -> Tree:
    """Restore a checkpoint to `abstract`: jax.ShapeDtypeStructs with shardings become JAX arrays in those shardings."""
    from orbax.checkpoint import v1 as ocp

    return ocp.load(path.absolute(), abstract)


def load_checkpoint(path) -> Tree:
    """Read any Orbax checkpoint of one pytree of arrays into nested containers of NumPy arrays.

    Raises:
        FileNotFoundError: there is no directory at `path`.
        ValueError: it is no Orbax checkpoint of one pytree.
    """
    from orbax.checkpoint import v1 as ocp

    path = pathlib.Path(path).absolute()
    if not path.is_dir():
        raise FileNotFoundError(f"there is no checkpoint directory {path}")
    try:
        stored = ocp.metadata(path).metadata
    except (ocp.errors.InvalidLayoutError, FileNotFoundError, KeyError) as error:
        raise ValueError(f"{path} is no Orbax checkpoint of one pytree: {error}") from error
    return jax.tree.map(np.asarray, load(path, jax.tree.map(_host_placeholder, stored)))


@dataclasses.dataclass(frozen=True)
class StoredLeaf:
    """Read a leaf of a checkpoint, or a part of it: mapped where it lies raw in one file, else from its chunks."""

    path: str
    source: Any  # np.ndarray or tensorstore.TensorStore

    @property
    def shape(self) -> tuple[int, ...]:
        """Give the shape of the whole leaf."""
        return tuple(self.source.shape)

    @property
    def dtype(self) -> np.dtype:
        """Give the dtype."""
        return self.source.dtype if isinstance(self.source, np.ndarray) else self.source.dtype.numpy_dtype

    def read(self, index=...) -> np.ndarray:
        """Give the elements at `index`, slices for all axes; of chunks only those are read that hold them.

        Raises:
            ValueError: a chunk is missing or damaged.
        """
        if isinstance(self.source, np.ndarray):
            return self.source[index]
        try:
            return self.source[index].read().result()
        except ValueError as error:
            raise ValueError(f"{self.path} cannot be read: {_first_line(error)}") from error


def open_leaves(path) -> dict[str, StoredLeaf]:
    """Open any Orbax checkpoint of one pytree leaf by leaf, by the leaves' names; none is read yet.

    Raises:
        FileNotFoundError: there is no directory at `path`.
        ValueError: it is no Orbax checkpoint of one pytree of arrays, or a leaf is missing or damaged.
    """
    path = pathlib.Path(path).absolute()
    if not path.is_dir():
        raise FileNotFoundError(f"there is no checkpoint directory {path}")
    items = [folder for folder in (path, *sorted(path.iterdir())) if (folder / TREE_METADATA).is_file()]
    if len(items) != 1:
        raise ValueError(f"{path} holds {len(items)} trees: one Orbax checkpoint of one pytree is needed")
    try:
        storage = json.loads((items[0] / TREE_METADATA).read_text())
        kinds = {_name(leaf): leaf["value_metadata"] for leaf in storage["tree_metadata"].values()}
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{items[0] / TREE_METADATA} is damaged, or not as Orbax writes it: {error!r}") from error
    if strings := [name for name, kind in kinds.items() if kind["value_type"] == "string"]:
        raise ValueError(f"{path} holds strings, which are no arrays: {', '.join(strings)}")
    # what is skipped are empty containers
    opened = {name: _open_leaf(items[0], name, storage) for name, kind in kinds.items() if not kind["skip_deserialize"]}
    return {name: leaf() for name, leaf in opened.items()}


def stored_array(metadata: bytes) -> StoredArray:
    """Say from the contents of a `.zarray` file what its folder holds."""
    zarr = json.loads(metadata)
    shape = tuple(zarr["shape"])
    encoded = zarr["compressor"] or zarr["filters"] or zarr["order"] != "C" or zarr["zarr_format"] != 2
    raw = not encoded and tuple(zarr["chunks"]) == shape
    only_chunk = zarr["dimension_separator"].join("0" for _ in shape) or "0"
    return StoredArray(shape, np.dtype(zarr["dtype"]), only_chunk if raw else None)


def read_array(folder: pathlib.Path) -> np.ndarray:
    """Read an array of several chunks from its folder into memory."""
    import tensorstore

    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{folder}/"}}
    return tensorstore.open(spec, open=True, read=True).result().read().result()


def _name(leaf):
    return "/".join(str(key["key"]) for key in leaf["key_metadata"])


def _open_leaf(item, name, storage):
    """Begin to open a leaf and give the function that ends it, so that many are opened side by side."""
    import tensorstore

    folder = item / name.replace("/", ".")
    if (folder / ARRAY_METADATA).is_file():
        stored = stored_array((folder / ARRAY_METADATA).read_bytes())
        if stored.file is not None and (folder / stored.file).is_file():
            array = mapped(folder / stored.file, stored.size).view(stored.dtype).reshape(stored.shape)
            return lambda: StoredLeaf(str(folder), array)
    file = {"driver": "file", "path": f"{item}/"}
    spec = {
        "driver": "zarr3" if storage.get("use_zarr3") else "zarr",
        "kvstore": {"driver": "ocdbt", "base": file} if storage.get("use_ocdbt") else file,
        "path": f"{folder.name}/",
        # else a chunk that was lost would be read as zeros
        "fill_missing_data_reads": not storage.get("store_array_data_equal_to_fill_value"),
    }
    opening = tensorstore.open(spec, open=True, read=True)

    def opened():
        try:
            return StoredLeaf(str(folder), opening.result())
        except ValueError as error:
            raise ValueError(f"{folder} cannot be opened: {_first_line(error)}") from error

    return opened


def _first_line(error):
    return re.sub(r" \[[a-z_]+=.*", "", str(error).splitlines()[0])


def _storable(leaf):
    # An array that is whole on one device is stored from the host, as one file. In a run of several processes Orbax
    # refuses JAX arrays that only one of them can see.
    sharded = isinstance(leaf, jax.Array) and not leaf.is_fully_replicated
    if sharded and (jax.process_count() == 1 or not leaf.is_fully_addressable):
        return leaf
    return np.asarray(leaf)


def _host_placeholder(leaf):
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape) if hasattr(leaf, "shape") else leaf
