"""Write files that are whole or not there, and let one process at a time write to a place."""

import contextlib
import errno
import functools
import os
import pathlib
import re
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from typing import IO, TypeVar

from soups.names import closest, shown
from soups.stores import StorePath, is_store, store_path

try:
    import fcntl
except ModuleNotFoundError:  # Windows, which has msvcrt instead
    fcntl = None

PathLike = str | os.PathLike[str] | StorePath
AnyPath = TypeVar("AnyPath", pathlib.Path, StorePath)

# file systems whose locks may hold on one host alone
_SHARED = re.compile(r"nfs\d?|cifs|smb3?|9p|virtiofs|lustre|gpfs|beegfs|ceph|glusterfs|afs|fuse(\..*)?")
_BEYOND = 2**30  # a place in a file behind its text: what is locked on Windows, nobody else reads
_UNFINISHED = re.compile(r"\.[0-9a-f]{32}\.unfinished$")
# a scheme of two letters or more, for one letter is a drive of Windows; pathlib makes one slash of two
_URL = re.compile(r"(.*\+)?[A-Za-z][A-Za-z0-9+.-]+:/", re.DOTALL)  # also of an adapter, MODEL+URL
_OF_HUB = re.compile(
    r"(?:https?:/+(?:www\.)?(?:huggingface|hf)\.co|hf:)/+(?!datasets/|spaces/)(?:models/)?([\w.-]+/[\w.-]+?)"
    r"(?:/(?:tree|blob|resolve)/.*|/)?"
)


def any_path(path: PathLike) -> pathlib.Path | StorePath:
    """Return a path of an object store, s3://BUCKET/NAME or gs://BUCKET/NAME, or one as of `local_path`.

    A ValueError as of `local_path`, or for a URL without a bucket, or with a name that no object has.
    """
    if isinstance(path, StorePath):
        return path
    return store_path(path) if isinstance(path, str) and is_store(path) else local_path(path)


def data_path(path: PathLike) -> pathlib.Path | StorePath:
    """Return the path of data, as `any_path`, but "~" is the home folder, as in a config that is shared."""
    return any_path(path if isinstance(path, StorePath) else os.path.expanduser(path))


def local_path(path: PathLike) -> pathlib.Path:
    """Return a path of this machine's file system.

    A ValueError for what is neither text nor a path object; a URL, such as gs://bucket/model, which would otherwise
    become a local folder "gs:"; an empty path, which would be the working directory; one that no file system can have;
    one below "~", unless it is there.
    """
    path = str(path) if isinstance(path, StorePath) else path
    if not isinstance(path, str | os.PathLike) or not isinstance(text := os.fspath(path), str):
        raise ValueError(f"{path!r:.200} is not a path: give text or a pathlib.Path")
    if _URL.match(text):
        where = "; s3:// and gs:// are for pools, members, workdirs, journals and merges" if is_store(text) else ""
        if found := _OF_HUB.fullmatch(text):
            where = f"; where a model of the Hugging Face hub is taken, it is named by its id, {found[1]}"
        raise ValueError(f"{text[:200]!a} is a URL: give a local path, such as that of a copy or of a mount{where}")
    parts = pathlib.PurePath(text).parts
    # what is longer no Linux or macOS opens
    if max((len(os.fsencode(part)) for part in parts), default=0) > 255 or len(text) > 4095:
        raise ValueError(f"{text[:200]!a}... is not a path: it is too long for any file system")
    if parts[:1] == ("~",) and not os.path.lexists("~"):
        raise ValueError(f"{text[:200]!a} begins with ~, which only a shell expands: write your home folder in full")
    if not text or "\0" in text:
        raise ValueError(f"{text[:200]!a} is not a path: it is empty or contains a null character")
    return pathlib.Path(path)


def meant_path(path: PathLike) -> str:
    """Return " (did you mean 'runs/a/model'?)" for the path that is most like one that is not there, or nothing.

    What is compared is the first part of it that is not there, with what lies beside; on a store nothing is looked for.
    """
    if isinstance(path, StorePath):
        return ""
    path = pathlib.Path(path)
    above = next((place for place in path.parents if place.is_dir()), None)
    if above is None or os.path.lexists(path):
        return ""
    first, *rest = path.relative_to(above).parts
    try:
        beside = [name for name in os.listdir(above) if not name.startswith(".")]
    except OSError:  # it may not be listed
        return ""
    if (close := closest(first, beside)) is None:
        return ""
    whole = (above / close).joinpath(*rest)
    return f" (did you mean {shown(str(whole if whole.exists() else above / close))!r}?)"


def create_file(path: pathlib.Path | StorePath, content: str) -> None:
    """Write a file where none is, of several processes one alone; a FileExistsError if there is one."""
    if isinstance(path, StorePath):
        path.create(content.encode())
        return
    with open(path, "x") as file:
        file.write(content)


def same_place(one: PathLike, other: PathLike) -> bool:
    """Say whether two paths are of one place, behind all links."""
    one, other = any_path(one), any_path(other)
    if isinstance(one, StorePath) or isinstance(other, StorePath):
        return one == other
    return os.path.realpath(one) == os.path.realpath(other)


def from_here(path: AnyPath) -> str:
    """Return how a path is best shown: from the working directory on, or the URL; whole on another drive of Windows."""
    try:
        return str(path) if isinstance(path, StorePath) else os.path.relpath(path)
    except ValueError:
        return str(path)


def made_folder(path: AnyPath) -> AnyPath:
    """Make a folder, and those above it, where they are not there yet, and return it; a store needs none.

    A NotADirectoryError if a file is there, or above it; else an OSError with the path.
    """
    if isinstance(path, StorePath):
        return path
    path = local_path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        file = next(place for place in (path, *path.parents) if place.is_file() or place.is_symlink())
        raise NotADirectoryError(f"{path} must be a folder, but {file} is a file") from None
    except OSError as error:
        raise cannot_write(path, error) from error
    return path


def replace_file(path: PathLike, content: bytes | str | pathlib.Path) -> pathlib.Path | StorePath:
    """Write a file under another name, see it to the disk and rename it: no reader ever meets half of one.

    `content`: a path is that of a file to copy, for which folders are made where they are not there yet. Processes may
    write the same file side by side; the last one stays. An OSError has the path in its message; the old file stays.
    An object of a store is written at once, which is as good.
    """
    path = any_path(path)
    if isinstance(path, StorePath):
        path.write_bytes(content.read_bytes() if isinstance(content, pathlib.Path) else content)
        return path
    fresh = unfinished(path)
    try:
        if isinstance(content, pathlib.Path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with open(fresh, "xb") as file:
            if isinstance(content, pathlib.Path):
                with open(content, "rb") as source:
                    shutil.copyfileobj(source, file, 1 << 20)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
        sync_folder(path.parent)
    except BaseException as error:
        fresh.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise
    return path


def append(path: PathLike, content: bytes, *, sync: bool = False) -> None:
    """Append to a file, and with `sync` see it to the disk; an OSError has the path in its message.

    An object of a store, which cannot be appended to, is written anew.
    """
    path = any_path(path)
    if isinstance(path, StorePath):
        path.write_bytes((path.read_bytes() if path.is_file() else b"") + content)
        return
    try:
        with open(path, "ab") as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise cannot_write(path, error) from error


def unfinished(path: pathlib.Path) -> pathlib.Path:
    """Return a name beside `path` that no other writer takes, in this container or in another, to write under."""
    return path.with_name(f"{path.name[:40]}.{uuid.uuid4().hex}.unfinished")


def sweep_unfinished(folder: pathlib.Path) -> None:
    """Delete what killed writers left in a folder; the caller holds the lock that they would hold."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if _UNFINISHED.search(path.name) and (path.is_symlink() or path.is_file()):
            path.unlink(missing_ok=True)


def remove_unfinished(folder: pathlib.Path) -> None:
    """Remove a folder that was not completed, into which threads of Orbax may still write after their error."""
    for _ in range(40):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.isdir(folder):
            return
        time.sleep(0.05)


def sync_folder(folder: pathlib.Path) -> None:
    """See the names in a folder to the disk; an OSError if that is broken."""
    if os.name == "nt":  # which opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot
            raise
    finally:
        os.close(descriptor)


def sync_files(folder: pathlib.Path) -> None:
    """See all that lies below a folder to the disk; an OSError if that is full or broken."""
    from soups.workers import in_threads  # which imports NumPy

    folders, files = [], []
    for place, _, names in os.walk(folder):
        folders.append(pathlib.Path(place))
        files += [os.path.join(place, name) for name in names]
    in_threads(_sync_file, files)  # one by one each would wait for a turn of the disk of its own
    in_threads(sync_folder, folders)


def _sync_file(path):
    with open(path, "rb") as written:
        os.fsync(written.fileno())


def cannot_write(path: str | os.PathLike, error: OSError) -> OSError:
    """Return the same error with the path in its message: a full disk does not name the file."""
    return OSError(error.errno, f"cannot write {path}: {error.strerror}")


def has_locks(path: pathlib.Path | StorePath) -> bool:
    """Say whether a lock of a file keeps out the processes of all hosts; else there are leases, `soups.leases`.

    It is so where one host alone has the file system, as far as Linux tells; elsewhere it is taken to be so.
    """
    return not isinstance(path, StorePath) and not _SHARED.fullmatch(_file_system(os.path.realpath(path)))


@functools.lru_cache(256)
def _file_system(path):
    """Return the kind of file system that a path lies on, "" where that is not known."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            mounts = [line.split(" - ") for line in file]
    except OSError:
        return ""
    kinds = {_unescaped(left.split()[4]): right.split()[0] for left, right in mounts}
    return next((kinds[str(place)] for place in (path, *pathlib.Path(path).parents) if str(place) in kinds), "")


def _unescaped(text):
    return re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), text)


@contextlib.contextmanager
def locked(
    out: pathlib.Path | StorePath, lock: pathlib.Path | StorePath | None = None, what: str = "merge"
) -> Iterator[None]:
    """Hold the lock of an output: a file, by default beside it, which says who holds it; `what` works on the output.

    A BlockingIOError says which other process, or thread, holds it, where and since when; that of a killed process is
    free. Where there are no locks it is a lease, which after a kill ends by itself. An OSError if nothing can be
    written there.
    """
    path = lock or out.with_name(f".{out.name}.lock")
    if not has_locks(path.parent):
        from soups.leases import leased

        with leased(path, out, what):
            yield
        return
    with _held(path, out, what) as file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        try:
            yield
        finally:
            remove_held(path, file.close)


def lock(file: IO | int, *, wait: bool = True) -> None:
    """Lock an open file until it is closed, which the end of its process does too, however it ends.

    Without `wait` a BlockingIOError if another process has locked it, or this one through another descriptor.
    """
    if fcntl:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        return
    import msvcrt

    descriptor = file if isinstance(file, int) else file.fileno()
    while True:
        os.lseek(descriptor, _BEYOND, os.SEEK_SET)
        try:
            return msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if not wait:
                raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK)) from error
        time.sleep(0.05)


def remove_held(path: pathlib.Path, close: Callable[[], None]) -> None:
    """Delete a file that this process has locked, and close it; Windows keeps one that is open, here or elsewhere."""
    try:
        path.unlink(missing_ok=True)
    except PermissionError:
        close()
        with contextlib.suppress(PermissionError):
            path.unlink(missing_ok=True)
    else:
        close()


def _held(path, out, what):
    while True:
        file = _open(path, out)
        try:
            lock(file, wait=False)
        except BlockingIOError:
            with file:
                file.seek(0)
                holder = file.read() or "it has just begun"
            raise BlockingIOError(f"another {what} is writing to {out}: {holder}") from None
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
