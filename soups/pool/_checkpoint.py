"""Save, restore and describe checkpoints: the only module that knows Orbax and its files.

A checkpoint is written without OCDBT and without compression, one Zarr (v2) chunk for each leaf and shard. So Orbax
restores it into any sharding, and the chunk of an unsharded leaf is a file of its raw bytes, which can be mapped.
"""

import dataclasses
import json
import logging
import math
import pathlib
import re

import jax
import numpy as np
import tensorstore
from orbax.checkpoint import v1 as ocp

from soups.tree import Tree

ARRAY_METADATA = ".zarray"

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
            message = re.sub(r" \[os_error_code=.*", "", str(error).splitlines()[0])
            raise OSError(int(code[1]), message, str(path)) from error
        raise


def load(path: pathlib.Path, abstract: Tree) -> Tree:
    """Restore a checkpoint to `abstract`: jax.ShapeDtypeStructs with shardings become JAX arrays in those shardings."""
    return ocp.load(path.absolute(), abstract)


def load_checkpoint(path) -> Tree:
    """Read any Orbax checkpoint of one pytree of arrays into nested containers of NumPy arrays.

    Raises:
        FileNotFoundError: there is no directory at `path`.
        ValueError: it is no Orbax checkpoint of one pytree.
    """
    path = pathlib.Path(path).absolute()
    if not path.is_dir():
        raise FileNotFoundError(f"there is no checkpoint directory {path}")
    try:
        stored = ocp.metadata(path).metadata
    except (ocp.errors.InvalidLayoutError, FileNotFoundError, KeyError) as error:
        raise ValueError(f"{path} is no Orbax checkpoint of one pytree: {error}") from error
    return jax.tree.map(np.asarray, load(path, jax.tree.map(_host_placeholder, stored)))


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
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{folder}/"}}
    return tensorstore.open(spec, open=True, read=True).result().read().result()


def _storable(leaf):
    # An array that is whole on one device is stored from the host, as one file. In a run of several processes Orbax
    # refuses JAX arrays that only one of them can see.
    sharded = isinstance(leaf, jax.Array) and not leaf.is_fully_replicated
    if sharded and (jax.process_count() == 1 or not leaf.is_fully_addressable):
        return leaf
    return np.asarray(leaf)


def _host_placeholder(leaf):
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape) if hasattr(leaf, "shape") else leaf
