"""Write safetensors files to an object store as they are made: each tensor by any thread, in about the files' order."""

import contextlib
import json
import threading
from collections.abc import Mapping

import numpy as np

from soups.files import replace_file
from soups.formats.text import read_json
from soups.formats.write import INDEX, SHARD_BYTES, Spec, index_of, laid_out
from soups.names import check_name
from soups.stores import StorePath

WINDOW = 1 << 26  # bytes that may wait for those before them


class FarWriter(contextlib.AbstractContextManager):
    """Write to a store what `soups.formats.Writer` writes to a folder, with the same methods, and `WINDOW` in memory.

    A shard is there when all of it is, and the last of them, or of several the index, when `finish` is called.
    `folder`: where the shards come; or, with `single`, the one file. `state`: a folder of the store for notes on
    finished shards, by which a later writer goes on. Threads that are far ahead of the first tensor that is not whole
    wait for it, so tensors must be begun in the order of `shards`, and each be written from its start to its end.

    Raises:
        ValueError, OSError: as `Writer`; what a store did not do.
    """

    def __init__(
        self,
        folder: StorePath,
        state: StorePath,
        leaves: Mapping[str, Spec],
        *,
        shard_bytes: int = SHARD_BYTES,
        metadata: Mapping[str, str] | None = None,
        single: bool = False,
    ):
        self._leaves, files = laid_out(leaves, shard_bytes, metadata or {})
        self._files, self._folder, self._state = dict(files), folder, state
        self.shards = {shard: tuple(file.places) for shard, file in files.items()}
        self._shard_of = {leaf: shard for shard, names in self.shards.items() for leaf in names}
        self._places = {shard: folder if single else folder / shard for shard in self.shards}
        self._uploads: dict[str, _Upload] = {}
        self._lock = threading.Lock()
        self._done = {shard for shard in self.shards if self._is_noted(shard)}

    def __exit__(self, *_) -> None:
        self.close()

    def is_done(self, shard: str) -> bool:
        """Say whether a shard is finished, whoever wrote it."""
        return check_name(shard, self._files, "shard") in self._done

    def write(self, name: str, array: np.ndarray, start: int = 0) -> None:
        """Put the elements of an array, in C order, at element `start` of a tensor; any thread may."""
        file = self._files[self._shard_of[name]]
        raw, offset = file.placed(name, array, start)
        self._upload(self._shard_of[name]).write(offset, raw.tobytes())
        file.note(name, start, array.size)

    def written(self, name: str) -> list[tuple[int, int]]:
        """Return nothing: no other process writes to this one's uploads."""
        return []

    def note_written(self, name: str, ranges: list[tuple[int, int]]) -> None:
        """Do nothing, as `written`."""

    def finish_shard(self, shard: str) -> None:
        """Let a shard appear, unless it is the only one, which appears at the end."""
        if not self.is_done(shard) and len(self.shards) > 1:
            self._finish(shard)

    def finish(self) -> None:
        """Let the last of it appear: all shards, then the index."""
        for shard in self.shards.keys() - self._done:
            self._finish(shard)
        if len(self.shards) > 1:
            replace_file(self._folder / INDEX, index_of(self._leaves, self._shard_of))

    def close(self) -> None:
        """Take back what was sent of shards that are not finished."""
        for upload in self._uploads.values():
            upload.abort()

    def _finish(self, shard):
        self._files[shard].check_whole()
        self._upload(shard).finish()
        status = self._places[shard].stat()
        note = {"size": status.st_size, "e_tag": status.version.e_tag}
        replace_file(self._state / f"{shard}.done", json.dumps(note))
        self._done.add(shard)

    def _upload(self, shard):
        with self._lock:
            if shard not in self._uploads:
                file = self._files[shard]
                self._uploads[shard] = _Upload(self._places[shard], file.size)
                self._uploads[shard].write(0, file.header)
            return self._uploads[shard]

    def _is_noted(self, shard):
        try:
            note, status = read_json(self._state / f"{shard}.done"), self._places[shard].stat()
        except (FileNotFoundError, ValueError):
            return False
        return note == {"size": status.st_size, "e_tag": status.version.e_tag}


class _Upload:
    """Send an object in its order, though its bytes come from several threads; it appears at `finish`."""

    def __init__(self, path, size):
        self._path, self._size, self._position = path, size, 0
        self._waiting, self._changed = {}, threading.Condition()
        self._may_end, self._error = False, None
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def write(self, offset, content):
        with self._changed:
            self._changed.wait_for(lambda: self._error or offset <= self._position + WINDOW)
            self._check()
            if content:
                self._waiting[offset] = content
                self._changed.notify_all()

    def finish(self):
        self._end(None)
        self._check()

    def abort(self):
        self._end(InterruptedError(f"{self._path} is not finished"))

    def _end(self, error):
        with self._changed:
            self._may_end, self._error = True, self._error or error
            self._changed.notify_all()
        self._thread.join()

    def _check(self):
        if self._error:
            raise self._error

    def _send(self):
        try:
            self._path.upload(self._parts(), self._size)
        except BaseException as error:
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()

    def _parts(self):
        while self._position < self._size:
            with self._changed:
                self._changed.wait_for(lambda: self._error or self._position in self._waiting)
                self._check()
                content = self._waiting.pop(self._position)
            yield content
            with self._changed:
                self._position += len(content)
                self._changed.notify_all()
        with self._changed:
            self._changed.wait_for(lambda: self._may_end)
            self._check()
