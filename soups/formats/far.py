"""Read safetensors files, and folders of them, on an object store: headers first, then just the bytes that are needed.

The small files beside the weights, such as configs and tokenizers, are copied to a temporary folder of this machine for
as long as the checkpoint is used. Every read asks for the version that the header was of.
"""

import dataclasses
import math
import re
from typing import Any

import numpy as np

from soups.formats.tensors import Checkpoint, CheckpointError
from soups.formats.text import MAX_TEXT
from soups.stores import Copies, StorePath

ONLY = "of files on stores only safetensors, folders of them and members of pools are read: make a local copy"
_WEIGHTS = re.compile(r".*\.(safetensors|bin|pt|pth|ckpt|tar|h5|msgpack|onnx|gguf|npz|npy)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class FarCheckpoint(Checkpoint):
    """Be the `Tensors` of a file or folder on a store; `path` is local: of the copies of what lies beside it."""

    directory: StorePath | None = None  #: where it lies
    copies: Copies | None = dataclasses.field(default=None, repr=False, compare=False)

    def making(self, name: str) -> int:
        return self._leaf(name).nbytes

    def chunk_rows(self, name: str) -> int:
        shape = self._leaf(name).shape
        return 1 if shape and shape[0] > 1 else 0

    def read(self, name: str, index: Any = ...) -> np.ndarray:
        """Read a tensor, or the part at an index, for which no more than its rows are asked for."""
        leaf = self._leaf(name)
        rows, *others = index if isinstance(index, tuple) and index else (index,)
        if not leaf.shape or not isinstance(rows, slice) or rows.step not in (None, 1):
            return self._rows(leaf, 0, leaf.shape[0] if leaf.shape else 1).reshape(leaf.shape)[index]
        first, last, _ = rows.indices(leaf.shape[0])
        return self._rows(leaf, first, max(first, last))[(slice(None), *others)]

    def _rows(self, leaf, first, last):
        shape = (last - first, *leaf.shape[1:])
        row, content = math.prod(leaf.shape[1:]) * leaf.dtype.itemsize, b""
        if row and last > first:
            try:
                content = leaf.file.read_range(leaf.offset + first * row, leaf.offset + last * row)
            except (FileNotFoundError, ValueError) as error:
                raise CheckpointError(f"{leaf.file} has changed since its header was read: {error}") from error
        array = np.frombuffer(content, leaf.dtype).reshape(shape)
        array.flags.writeable = False
        return array


def far(found: Checkpoint, path: StorePath) -> FarCheckpoint:
    """Return a checkpoint, whose headers were read, as one that reads from its store."""
    single = path.suffix == ".safetensors"
    folder, beside = (path.parent if single else path), {}
    if not single:
        beside = folder.sizes()
    elif (folder / "config.json").is_file():
        beside = {file: file.stat().st_size for file in folder.iterdir() if not _WEIGHTS.fullmatch(file.name)}
    copies = Copies()
    local = copies.folder
    small = [file for file, size in beside.items() if size <= MAX_TEXT and not _WEIGHTS.fullmatch(file.name)]
    copies.fill({file.relative_to(folder): file for file in small})
    own = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    return FarCheckpoint(**own | {"path": local / path.name if single else local}, directory=path, copies=copies)
