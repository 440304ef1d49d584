"""Let one process at a time hold something, on any hosts that share a folder or an object store, without locks.

A lease is a file that is created where there is none, in which one process alone succeeds, and that a thread renews as
long as it is held. When its process has ended, or did not renew it in time by the clock of the storage, it is over: it
is taken over by creating its heir, a file with its identifier in the name, in which again one process alone succeeds.
"""

import contextlib
import errno
import json
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Optional

from soups.files import AnyPath, create_file, made_folder, replace_file
from soups.presence import described, has_ended
from soups.stores import StorePath

SECONDS = 30.0  #: after which a lease that was not renewed is over
_WHOLE = 1.0  # seconds that two times may seem farther apart than they are, for stores tell whole ones
_LOOK = 0.25  # seconds from one look at a lease that another process holds to the next
_CLOCK = 60.0  # seconds for which the clock of a storage is known
_clocks: dict[
    Any, tuple[float, float]
] = {}  # of folders: when it was asked, and what it then was ahead of the one here


class Lease:
    """Hold a lease, renewed with what `told` returns; or, instead, for as long as the lease `on` beside it is held."""

    def __init__(self, path: AnyPath, told: Callable[[], dict] = dict, on: Optional["Lease"] = None):
        self.path, self._first, self._before, self._told, self._on = path, path, [], told, on
        self._mine = described() | {"id": uuid.uuid4().hex, "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        self._mine |= {"on": on.path.name} if on else {}
        self._renewed, self._done = time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._renewing, name=f"renewing {path.name[:40]}", daemon=True)

    @property
    def lost(self) -> bool:
        """Say whether another process may hold it by now."""
        late = time.monotonic() - (self._on or self)._renewed > SECONDS
        return late or _heir(self._first, self._mine).is_file()

    def check(self) -> None:
        """Raise a BlockingIOError if another process may hold it by now."""
        if self.lost:
            late = f"could not be renewed for {SECONDS:g} s"
            raise BlockingIOError(f"the lease {self.path} {late}: another process may be writing now")

    def renew(self) -> None:
        """Write it anew, unless another process may hold it by now."""
        begun = time.monotonic()
        if not self.lost:
            replace_file(self.path, json.dumps(self._mine | self._told()))
            self._renewed = begun

    def end(self) -> None:
        """Release the lease."""
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()
        with contextlib.suppress(OSError):  # it ends by itself
            for path in () if self.lost else (*self._before, self.path):  # the oldest first: see `_create`
                path.unlink(missing_ok=True)

    def _create(self):
        """Create the file, or the heir of the last one that is over; return what another holder says, or None.

        Who gives an heir back deletes the first file first. So as long as those before this one are as they were when
        they were over, nobody can hold one that comes before it.
        """
        before = {}
        while True:
            try:
                create_file(self.path, json.dumps(self._mine | self._told()))
            except FileExistsError:
                there, written = _look(self.path)
                if not _is_over(self.path, there, written):
                    return there
                before[self.path] = there
                self.path = _heir(self._first, there)
                continue
            self._before = list(before)
            if all(_is_still(path, there) for path, there in before.items()):
                return None
            self.path.unlink(missing_ok=True)
            raise FileNotFoundError(errno.ENOENT, "the lease that it was to follow was released", str(self.path))

    def _renewing(self):
        while not self._done.wait(SECONDS / 6):
            with contextlib.suppress(OSError):  # a store that is away for a moment
                self.renew()


def take(path: AnyPath, out: object, what: str, *, wait: bool = False, **options: Any) -> Lease:
    """Take a lease, in a folder that is made where it is not there; `options`: those of `Lease`.

    One of a process of this machine that has ended is free at once, any other `SECONDS` after it was renewed.

    Raises:
        BlockingIOError: without `wait`, another process holds it; the message says which, and since when.
    """
    while True:
        lease = Lease(path, **options)
        try:
            there = lease._create()
        except FileNotFoundError:  # it was given back, or its folder taken away, just now
            made_folder(path.parent)
            continue
        if there is None:
            if not lease._on:
                lease._thread.start()
            return lease
        if not wait:
            holder = "process {pid} on {host}, since {since}".format(**there) if there else "it has just begun"
            killed = f"if it was killed, its lease ends in {SECONDS:g} s"
            raise BlockingIOError(f"another {what} is writing to {out}: {holder}; {killed}")
        time.sleep(_LOOK)


@contextlib.contextmanager
def leased(path: AnyPath, out: object, what: str, *, wait: bool = False) -> Iterator[Lease]:
    """Hold a lease during a block; errors as of `take`, and of `Lease.check` at its end."""
    lease = take(path, out, what, wait=wait)
    try:
        yield lease
        lease.check()
    finally:
        lease.end()


def is_held(path: AnyPath) -> bool:
    """Say whether a process holds a lease."""
    try:
        return not _is_over(path, *_look(path))
    except FileNotFoundError:
        return False


def _is_over(path, there, written):
    if "place" in there and has_ended(there):
        return True
    if on := there.get("on"):  # which is there before the lease, and goes after it
        return not is_held(path.with_name(on))
    return _now(path.parent) - written > SECONDS + _WHOLE


def _look(path):
    """Return what a file says, {} while it is being written, and when it was written."""
    if isinstance(path, StorePath):
        text, status = path.read_with_status()
        text, written = bytes(text), status.written.timestamp()
    else:
        with open(path, "rb") as file:  # what a mounted folder knows of a file may be old until it is opened
            text, written = file.read(), os.fstat(file.fileno()).st_mtime
    try:
        return json.loads(text), written
    except ValueError:
        return {}, written


def _now(folder):
    """Return the time by the clock of a storage: that of a file which is written now, or was a minute ago or less."""
    asked, ahead = _clocks.get(folder, (-math.inf, 0.0))
    if time.monotonic() - asked > _CLOCK:
        probe = folder / f".{uuid.uuid4().hex}.clock"
        create_file(probe, "now")
        asked = time.monotonic()
        try:
            ahead = _look(probe)[1] - asked
        finally:
            probe.unlink(missing_ok=True)
        _clocks[folder] = asked, ahead
    return time.monotonic() + ahead


def _is_still(path, there):
    try:
        return _look(path)[0].get("id") == there.get("id")
    except FileNotFoundError:
        return False


def _heir(path, there):
    return path.with_name(f"{path.name}.{there.get('id', 'unwritten')}")  # by a process that was killed just then
