"""Let one process at a time write to a place of a store: by an object that it makes, and renews while it works."""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator

from soups.stores import StorePath, Version

SECONDS = 30.0  #: after which a lease that was not renewed is free
_WHOLE = 1.0  # seconds that two times may seem farther apart than they are, for stores tell whole ones
_LOOK = 0.25  # seconds from one look at a lease that another process holds to the next


class Lease:
    """Hold a lease: whether it is `lost`, since it could not be renewed in time and another process took it."""

    def __init__(self, path: StorePath, version: Version, content: dict[str, str]):
        self.path, self._version, self._content = path, version, content
        self._stop, self._renewed, self._gone = threading.Event(), time.monotonic(), False
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    @property
    def lost(self) -> bool:
        """Say whether another process may hold it by now."""
        return self._gone or time.monotonic() - self._renewed > SECONDS

    def check(self) -> None:
        """Raise a BlockingIOError if another process may hold it by now."""
        if self.lost:
            raise BlockingIOError(
                f"the lease {self.path} could not be renewed for {SECONDS:g} s: another may write now"
            )

    def end(self) -> None:
        """Return the lease back."""
        self._stop.set()
        self._thread.join()
        if not self.lost:
            with contextlib.suppress(OSError):  # it ends by itself
                self.path.unlink(missing_ok=True)

    def _renew(self):
        while not self._stop.wait(SECONDS / 3):
            begun = time.monotonic()
            try:
                content = _text(self._content | {"renewed": str(time.time())})
                self._version = self.path.write_bytes(content, version=self._version)
                self._renewed = begun
            except ValueError:
                self._gone = True
                return
            except OSError:
                continue  # a store that fails for a while


def take(path: StorePath, out: object, what: str, *, wait: bool = False) -> Lease:
    """Take a lease; one of a killed process is free `SECONDS` after it was renewed, by the clock of the store.

    Raises:
        BlockingIOError: without `wait`, another process holds it; the message says which, and since when.
    """
    mine = {"id": uuid.uuid4().hex, "holder": f"process {os.getpid()} on {socket.gethostname()}"}
    mine["since"] = time.strftime("%Y-%m-%d %H:%M:%S")
    while True:
        try:
            return Lease(path, path.create(_text(mine)), mine)
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError, ValueError):  # it was given back, or taken by a third
                content, status = path.read_with_status()
                if age(path, status.written) > SECONDS + _WHOLE:
                    return Lease(path, path.write_bytes(_text(mine), version=status.version), mine)
                if not wait:
                    raise BlockingIOError(f"another {what} writes to {out}: {_holder(content)}") from None
        time.sleep(_LOOK)


@contextlib.contextmanager
def leased(path: StorePath, out: object, what: str, *, wait: bool = False) -> Iterator[Lease]:
    """Hold a lease during a block; errors as of `take`, and of `Lease.check` at its end."""
    lease = take(path, out, what, wait=wait)
    try:
        yield lease
        lease.check()
    finally:
        lease.end()


def is_held(path: StorePath) -> bool:
    """Say whether a process holds a lease."""
    try:
        return age(path, path.stat().written) <= SECONDS + _WHOLE
    except FileNotFoundError:
        return False


def age(path: StorePath, written) -> float:
    """Return how many seconds ago something was written, by the clock of the store: an object made now tells it."""
    probe = path.with_name(f"{path.name}.{uuid.uuid4().hex}.clock")
    probe.write_bytes(b"now")
    try:
        return (probe.stat().written - written).total_seconds()
    finally:
        probe.unlink(missing_ok=True)


def _text(content):
    return json.dumps(content).encode()


def _holder(content):
    try:
        found = json.loads(bytes(content))
        return f"{found['holder']}, since {found['since']}; if it was killed, its lease ends in {SECONDS:g} s"
    except (ValueError, KeyError, TypeError):
        return "it has just begun"
