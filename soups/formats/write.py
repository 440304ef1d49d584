"""Write safetensors files in place: sizes first, then tensors in any order, by any thread."""

import contextlib
import errno
import json
import math
import os
import pathlib
import threading
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from soups.files import cannot_write, local_path, replace_file, sweep_unfinished, sync_folder, unfinished
from soups.formats import safetensors
from soups.formats.mapping import hash_files
from soups.formats.text import read_json
from soups.names import check_name
from soups.tree import check_arrays
from soups.workers import in_threads

SHARD_BYTES = 5_000_000_000
PIECE = 2**22  # bytes that are given to the disk together
_BINARY = getattr(os, "O_BINARY", 0)  # of Windows, which else writes two bytes for the end of a line
_PLACE = threading.Lock()  # of the one place in a file that all threads share where there is no pwrite, on Windows
INDEX = "model.safetensors.index.json"

Spec = tuple[tuple[int, ...], np.dtype]


class Writer(contextlib.AbstractContextManager):
    """Write the folder that Hugging Face's tools read, shard by shard, without a shard in memory.

    `folder`: an existing, unfinished folder; renaming it is the caller's. `leaves`: shape and dtype of every tensor by
    name, in the order in which they are put into shards; within a shard those with the widest elements come first, so
    that all are aligned. A shard is closed before the tensor that would make it longer than `shard_bytes`. One shard is
    model.safetensors; N are model-00001-of-0000N.safetensors ... with model.safetensors.index.json. `metadata`: strings
    for the header of every shard.

    The disk space of all shards is taken at once. A finished shard is known by a note beside it, `<shard>.done`, with
    the XXH3 digest of its bytes, written when they are on the disk: a writer of the same leaves and metadata in the
    same folder leaves such shards alone, and begins the others anew. `shards`: the names of each shard's tensors.

    Raises:
        ValueError: no leaves; a name, dtype or metadata that the format cannot hold; a negative size; a `shard_bytes`
            below 1; a folder with shards that are divided otherwise. The methods: an unknown shard or tensor, a wrong
            dtype, elements beyond a tensor's end, a shard that is already finished or, at the end, not completely
            written.
        OSError: the disk is full or cannot be written to; the file is named.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        leaves: Mapping[str, Spec],
        *,
        shard_bytes: int = SHARD_BYTES,
        metadata: Mapping[str, str] | None = None,
    ):
        self.folder = local_path(folder)
        self._leaves, self._files = laid_out(leaves, shard_bytes, metadata or {}, self.folder)
        self.shards = {name: tuple(file.places) for name, file in self._files.items()}
        self._shard_of = {leaf: shard for shard, leaves in self.shards.items() for leaf in leaves}
        _check_folder(self.folder, list(self._files))
        self._done = {name for name, file in self._files.items() if _is_noted(file)}
        try:
            for name in sorted(self.shards.keys() - self._done):
                _note(self._files[name]).unlink(missing_ok=True)
                self._files[name].create()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_) -> None:
        self.close()

    def is_done(self, shard: str) -> bool:
        """Say whether a shard is finished: all of it is on the disk, whoever wrote it."""
        return check_name(shard, self._files, "shard") in self._done

    def write(self, name: str, array: np.ndarray, start: int = 0) -> None:
        """Put the elements of an array, in C order, at element `start` of a tensor; any thread may."""
        if name not in self._shard_of:
            check_name(name, self._shard_of, "tensor")
        shard = self._shard_of[name]
        if shard in self._done:
            raise ValueError(f"{name}: its shard {shard} is finished")
        self._files[shard].write(name, array, start)

    def written(self, name: str) -> list[tuple[int, int]]:
        """Return the ranges of elements of a tensor that this process has written."""
        return self._files[self._shard_of[name]].written[name]

    def note_written(self, name: str, ranges: list[tuple[int, int]]) -> None:
        """Take in what another process has written of a tensor, as its writer says."""
        self._files[self._shard_of[name]].written[name].extend(ranges)

    def finish_shard(self, shard: str) -> None:
        """See a shard to the disk and note its digest; one that is finished is left alone."""
        if self.is_done(shard):
            return
        file = self._files[shard]
        file.check_whole()
        # the bytes are in memory still: they are read while the disk writes them
        digest, _ = in_threads(lambda step: step(), [lambda: hash_files(file.path), file.finish])
        replace_file(_note(file), json.dumps({"xxh3_128": digest}))
        self._done.add(shard)

    def finish(self) -> None:
        """Finish all shards, write the index, and see the folder to the disk; the notes stay until `forget`."""
        for shard in self.shards:
            self.finish_shard(shard)
        if len(self.shards) > 1:
            replace_file(self.folder / INDEX, index_of(self._leaves, self._shard_of))
        sync_folder(self.folder)

    def forget(self) -> None:
        """Remove the notes on finished shards: no later writer goes on from here."""
        for file in self._files.values():
            _note(file).unlink(missing_ok=True)
        sweep_unfinished(self.folder)  # what a killed process was writing, whose merge this one has finished
        sync_folder(self.folder)

    def close(self) -> None:
        """Close the files; what is not finished stays so."""
        for file in self._files.values():
            file.close()


def laid_out(
    leaves: Mapping[str, Spec], shard_bytes: int, metadata: Mapping[str, str], folder: pathlib.Path = pathlib.Path()
) -> "tuple[dict[str, Spec], dict[str, _File]]":
    """Return the leaves and the file of each shard by its name, none of which is made; errors are as of `Writer`."""
    known = _checked(leaves, metadata)
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes must be at least 1, not {shard_bytes}")
    groups = _groups(known, shard_bytes)
    names = [f"model-{i:05d}-of-{len(groups):05d}.safetensors" for i in range(1, len(groups) + 1)]
    names = ["model.safetensors"] if len(groups) == 1 else names
    return known, {name: _File(folder / name, group, metadata) for name, group in zip(names, groups, strict=True)}


def index_of(leaves: Mapping[str, Spec], shard_of: Mapping[str, str]) -> str:
    """Return the text of the index of several shards."""
    total = sum(_nbytes(spec) for spec in leaves.values())
    index = {"metadata": {"total_size": total}, "weight_map": {name: shard_of[name] for name in leaves}}
    return json.dumps(index, indent=2) + "\n"


def write_safetensors(
    path: str | os.PathLike, leaves: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> pathlib.Path:
    """Write one safetensors file under another name, see it to the disk, and rename it; errors are as of `Writer`."""
    path = local_path(path)
    check_arrays([dict(leaves)], [str(path)], abstract=False)
    arrays = {name: np.asarray(leaf) for name, leaf in leaves.items()}
    specs = _checked({name: (array.shape, array.dtype) for name, array in arrays.items()}, metadata or {})
    file = _File(unfinished(path), specs, metadata or {}, path)
    try:
        file.create()
        for name, array in arrays.items():
            file.write(name, array, 0)
        file.check_whole()
        file.finish()
        with file.named_errors():
            os.replace(file.path, path)
            sync_folder(path.parent)
    except BaseException:
        file.close()
        file.path.unlink(missing_ok=True)
        raise
    return path


class _Place(NamedTuple):
    offset: int
    count: int
    dtype: np.dtype


class _File:
    """Hold one safetensors file of known layout, and what of it is written."""

    def __init__(self, path, specs, metadata, named=None):
        # stable, and aligned for every reader: the widest elements first
        specs = dict(sorted(specs.items(), key=lambda item: -item[1][1].itemsize))
        self.path, self._named = path, named or path  # the name that a user knows
        self.header = safetensors.write_header(specs, metadata)
        self.size = len(self.header)
        self.places = {}
        for name, spec in specs.items():
            self.places[name] = _Place(self.size, math.prod(spec[0]), spec[1])
            self.size += _nbytes(spec)
        self.written = {name: [] for name in specs}
        self._lock = threading.Lock()
        self._descriptor = None

    def create(self):
        with self.named_errors():
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | _BINARY, 0o666)
            _allocate(self._descriptor, self.size)
            _write_at(self._descriptor, self.header, 0)

    def placed(self, name, array, start):
        """Return the bytes of some elements of a tensor, and where in the file they lie."""
        array, place = np.asarray(array), self.places[name]
        if array.dtype != place.dtype:
            raise ValueError(f"{name} has dtype {array.dtype} instead of {place.dtype}")
        if not 0 <= start <= place.count - array.size:
            end = start + array.size
            raise ValueError(f"{name} has {place.count} elements, not enough for elements {start} to {end}")
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return raw, place.offset + start * place.dtype.itemsize

    def write(self, name, array, start):
        raw, offset = self.placed(name, array, start)
        if self._descriptor is None:
            raise ValueError(f"{name}: the writer is closed")
        if raw.size:
            with self.named_errors():
                _write_at(self._descriptor, raw, offset)
        self.note(name, start, np.size(array))

    def note(self, name, start, count):
        """Note that some elements of a tensor are written."""
        with self._lock:
            self.written[name].append((start, start + count))

    def check_whole(self):
        if lacking := [name for name in self.places if not self._is_whole(name)]:
            raise ValueError(
                f"{self.path.name} is not finished: these tensors are not completely written: {', '.join(lacking)}"
            )

    def finish(self):
        with self.named_errors():
            os.fsync(self._descriptor)
        self.close()

    def close(self):
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _is_whole(self, name):
        end = 0
        for start, stop in sorted(self.written[name]):
            if start > end:
                return False
            end = max(end, stop)
        return end == self.places[name].count

    @contextlib.contextmanager
    def named_errors(self):
        try:
            yield
        except OSError as error:
            raise cannot_write(self._named, error) from error


def _write_at(descriptor, content, offset):
    content, start = memoryview(content), offset
    while content:
        written = _pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written
    first, last = start // PIECE, offset // PIECE
    if last > first and hasattr(os, "posix_fadvise"):
        # the disk begins with pieces that are full, so that the sync at the end waits for the last ones alone
        os.posix_fadvise(descriptor, first * PIECE, (last - first) * PIECE, os.POSIX_FADV_DONTNEED)


def _pwrite(descriptor, content, offset):
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, content, offset)
    with _PLACE:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.write(descriptor, content)


def _allocate(descriptor, size):
    # a disk that is too small says so now, and not after hours
    try:
        os.posix_fallocate(descriptor, 0, size)
    except (AttributeError, OSError) as error:
        if getattr(error, "errno", errno.ENOSYS) not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        os.ftruncate(descriptor, size)


def _note(file):
    return file.path.with_name(f"{file.path.name}.done")


def _is_noted(file):
    """Compare a shard with its note and with the layout that it should have."""
    try:
        note = read_json(_note(file))
        with open(file.path, "rb") as stream:
            fits = file.path.stat().st_size == file.size and stream.read(len(file.header)) == file.header
        return fits and note.get("xxh3_128") == hash_files(file.path)
    except (OSError, ValueError):
        return False


def _check_folder(folder, names):
    # a reader would take them for parts of this checkpoint
    allowed = {*names, INDEX} if len(names) > 1 else set(names)
    patterns = ("model.safetensors", "model-*-of-*.safetensors", INDEX)
    if others := sorted({file.name for pattern in patterns for file in folder.glob(pattern)} - allowed):
        raise ValueError(f"{folder} holds files of another checkpoint, remove them first: {', '.join(others)}")


def _checked(leaves, metadata):
    if not leaves:
        raise ValueError("no leaves to write: at least one is needed")
    if not all(isinstance(text, str) for item in metadata.items() for text in item):
        raise ValueError("the metadata of a safetensors file must map strings to strings")
    lines = [f"  {name!r}: {problem}" for name, spec in leaves.items() if (problem := _problem(name, *spec))]
    if lines:
        raise ValueError("leaves that a safetensors file cannot hold:\n" + "\n".join(lines))
    return {name: (tuple(map(int, shape)), np.dtype(dtype)) for name, (shape, dtype) in leaves.items()}


def _problem(name, shape, dtype):
    if not isinstance(name, str) or name == "__metadata__":
        return "a name must be a string other than '__metadata__'"
    if any(size < 0 for size in shape):
        return f"shape {tuple(shape)} is negative"
    if np.dtype(dtype) not in safetensors.NAMES:
        return f"dtype {np.dtype(dtype)}; it can be {', '.join(map(str, safetensors.NAMES))}"
    return ""


def _groups(leaves, shard_bytes):
    groups, size = [{}], 0
    for name, spec in leaves.items():
        if groups[-1] and size + _nbytes(spec) > shard_bytes:
            groups.append({})
            size = 0
        groups[-1][name] = spec
        size += _nbytes(spec)
    return groups


def _nbytes(spec):
    return math.prod(spec[0]) * spec[1].itemsize
