"""Let one merge at a time write to a place."""

import contextlib
import errno
import fcntl
import functools
import os
import pathlib
import time
from collections.abc import Callable, Iterator

from soups.files import cannot_write


def one_at_a_time(merge: Callable) -> Callable:
    """Wrap a function of (plan, out, ...) so that it holds the lock of `out` while it runs."""

    @functools.wraps(merge)
    def alone(plan, out, *arguments, **options):
        with locked(pathlib.Path(out).absolute()):
            return merge(plan, out, *arguments, **options)

    return alone


@contextlib.contextmanager
def locked(out: pathlib.Path) -> Iterator[None]:
    """Hold the lock of an output: a file beside it, which says who holds it.

    Raises:
        BlockingIOError: another process, or thread, holds it. That of a killed process is free.
        OSError: nothing can be written there.
    """
    path = out.with_name(f".{out.name}.lock")
    with _held(path, out) as file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _held(path, out):
    while True:
        file = _open(path, out)
        try:
            # it ends with the descriptor, so a killed process leaves none behind
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                file.seek(0)
                holder = file.read() or "it has just begun"
            raise BlockingIOError(f"another merge writes to {out}: {holder}") from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # its last holder has just taken it away


def _open(path, out):
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "a+")
    except OSError as error:
        if isinstance(error, FileExistsError):  # what should be a folder above it is a file
            error = NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        raise cannot_write(out.with_name(f".{out.name}.unfinished"), error) from error
