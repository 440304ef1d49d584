"""Read checkpoints on an object store: headers first, then just the bytes that are needed.

That are safetensors, plain .npz, torch's zip files, GGUF that is not quantised, and folders of these. Where tensors
lie otherwise in a file, such as compressed, it is copied to this machine. The small files beside the weights, such as
configs and tokenizers, are copied to a temporary folder for as long as the checkpoint is used. Every read asks for the
version that the header was of.
"""

import dataclasses
import math
import pathlib
import re
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from soups.formats.tensors import SUFFIXES, Checkpoint, CheckpointError, Header, map_file
from soups.formats.text import MAX_TEXT
from soups.stores import Copies, StorePath

_WINDOW, _WINDOWS = 1 << 20, 4  # bytes that are read together where a tensor has few, and how many such stay
_WEIGHTS = re.compile(r".*\.(safetensors|bin|pt|pth|ckpt|tar|h5|msgpack|onnx|gguf|npz|npy)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class FarCheckpoint(Checkpoint):
    """Be the `Tensors` of a file or folder on a store; `path` is local: of the copies of what lies beside it."""

    directory: StorePath | None = None  #: where it lies
    copies: tuple[Copies, ...] = dataclasses.field(default=(), repr=False, compare=False)  #: which live as long
    _windows: dict[tuple[StorePath, int], Any] = dataclasses.field(default_factory=dict, repr=False, compare=False)
    _lock: Any = dataclasses.field(default_factory=threading.Lock, repr=False, compare=False)

    def making(self, name: str) -> int:
        return self._leaf(name).nbytes if self._is_far(name) else super().making(name)

    def chunk_rows(self, name: str) -> int:
        shape = self._leaf(name).shape
        return (1 if shape and shape[0] > 1 else 0) if self._is_far(name) else super().chunk_rows(name)

    def _is_far(self, name):
        return isinstance(self._leaf(name).file, StorePath)

    def _map(self, file):
        if file not in self._maps:
            self._maps[file] = map_file(file, file.stat().st_size)
        return self._maps[file]

    def read(self, name: str, index: Any = ...) -> np.ndarray:
        """Read a tensor, or the part at an index, for which no more than its rows are asked for."""
        leaf = self._leaf(name)
        if not self._is_far(name):
            return super().read(name, index)
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
                content = self._content(leaf.file, leaf.offset + first * row, leaf.offset + last * row)
            except (FileNotFoundError, ValueError) as error:
                raise CheckpointError(f"{leaf.file} has changed since its header was read: {error}") from error
        array = np.frombuffer(content, leaf.dtype).reshape(shape)
        array.flags.writeable = False
        return array

    def _content(self, file, start, stop):
        """Return some bytes of a file; few of them with those around, which are wanted next."""
        number = start // _WINDOW
        if stop - start > _WINDOW // 4 or stop > (number + 1) * _WINDOW:
            return file.read_range(start, stop)
        with self._lock:
            if (file, number) not in self._windows:
                end = min((number + 1) * _WINDOW, self.sizes[file])
                self._windows[file, number] = file.read_range(number * _WINDOW, end)
            window = self._windows[file, number]
            if len(self._windows) > _WINDOWS:
                del self._windows[next(iter(self._windows))]
        return window[start - number * _WINDOW : stop - number * _WINDOW]


def far_header(path: StorePath, read: Callable[[StorePath | pathlib.Path], Header], copies: Copies) -> Header:
    """Read the header of a file by a function of its path; of a file that is not read by ranges that of a copy."""
    if path.suffix == ".safetensors":  # whose offsets need no look
        return read(path)
    status = path.stat()
    path = path.at(status.version)
    if bytes(path.read_range(0, min(1, status.st_size))) != b"\x80":  # torch's older files, a pickle and what follows
        header = read(path)
        if all(leaf.offset is not None or not leaf.nbytes for leaf in header.leaves):
            return header
    copies.fill({path.key: path}, {path: status.st_size})
    return read(copies.folder / path.key)


def copied(path: StorePath, open_folder: Callable[[pathlib.Path], Checkpoint]) -> FarCheckpoint:
    """Copy a folder to this machine and open it there."""
    copies, sizes = Copies(), path.sizes()
    copies.fill({file.relative_to(path): file for file in sizes}, sizes)
    found = open_folder(copies.folder)
    own = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    own["notes"] = (*found.notes, _note(path, copies))
    return FarCheckpoint(**own, directory=path, copies=(copies,))


def far(found: Checkpoint, path: StorePath, weights: Copies) -> FarCheckpoint:
    """Return a checkpoint, whose headers were read, of copies of `weights` where that was needed."""
    single = path.suffix in SUFFIXES
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
    notes = tuple(_note(path, weights) for _ in range(any(weights.folder.iterdir())))
    own |= {"path": local / path.name if single else local, "notes": (*found.notes, *notes)}
    return FarCheckpoint(**own, directory=path, copies=(copies, weights))


def _note(path, copies):
    return f"{path} was copied to {copies.folder}, since it cannot be read in parts"
