"""Read and write objects of s3:// and gs:// stores, by paths that are used as those of `pathlib` are.

Requests that fail on their way, or that a store answers with 5xx, are tried again, `RETRIES` times and for `PATIENCE`
seconds; what then fails is an OSError of one sentence. Nothing here lists more than what lies below one path. The
client is obstore, of the extra soups[stores], which is imported when a store is first asked for. It takes credentials
and endpoints from the usual variables (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS,
STORAGE_EMULATOR_HOST, ...) and from the machine's own role.
"""

import contextlib
import datetime
import errno
import fnmatch
import functools
import io
import json
import os
import pathlib
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from soups.lazy import extra

RETRIES = 8  #: of one request, the first not counted
PATIENCE = 60.0  #: seconds for one request with all its retries
TIMEOUT = 30.0  #: seconds that a connection may be silent
PART = 8 << 20  #: bytes that are asked for, or sent, together
SIDE_BY_SIDE = 16  #: requests
MOST_PARTS = 9_000  # of one upload; stores take 10,000
_URL = re.compile(r"(?P<root>(?:s3|gs)://(?P<bucket>[^/]*))(?:/(?P<key>.*))?", re.DOTALL)


class StoreError(OSError):
    """Say in one sentence what a store did not do, although it was asked again."""


class Version(NamedTuple):
    """Tell an object from others that have its name before or after it; S3 has the first of these, GCS both."""

    e_tag: str
    generation: str | None


class Status(NamedTuple):
    """Say what a store knows of an object: its size, its version, and when it was written, by the store's clock."""

    st_size: int
    version: Version
    written: datetime.datetime

    @property
    def st_mtime_ns(self) -> int:
        return int(self.written.timestamp()) * 10**9


class StorePath:
    """Name an object of a store, or a folder: what begins with its name and a slash.

    It has those methods of `pathlib.Path` that a store can carry out; but it is no `os.PathLike`, so that nothing takes
    it for a local file by mistake. Folders are not made: they are there as long as something lies in them.
    """

    __slots__ = ("_parts", "root", "version")

    def __init__(self, root: str, *parts: str, version: "Version | None" = None):
        self.version = version
        self.root, self._parts = root, tuple(part for part in "/".join(parts).split("/") if part not in ("", "."))

    def at(self, version: "Version") -> "StorePath":
        """Return the same path, by which only this version of the object is read."""
        return StorePath(self.root, *self._parts, version=version)

    @property
    def key(self) -> str:
        """Return the name of the object in its bucket."""
        return "/".join(self._parts)

    @property
    def name(self) -> str:
        return self._parts[-1] if self._parts else ""

    @property
    def suffix(self) -> str:
        return os.path.splitext(self.name)[1]

    @property
    def stem(self) -> str:
        return os.path.splitext(self.name)[0]

    @property
    def parent(self) -> "StorePath":
        return StorePath(self.root, *self._parts[:-1])

    @property
    def parents(self) -> list["StorePath"]:
        return [StorePath(self.root, *self._parts[:end]) for end in reversed(range(len(self._parts)))]

    def __truediv__(self, name: object) -> "StorePath":
        return StorePath(self.root, *self._parts, str(name))

    def with_name(self, name: str) -> "StorePath":
        return self.parent / name

    def relative_to(self, other: "StorePath") -> str:
        """Return the rest of the path below another, joined with "/"."""
        return "/".join(self._parts[len(other._parts) :])

    def absolute(self) -> "StorePath":
        return self

    def __str__(self) -> str:
        return "/".join((self.root, *self._parts))

    def __repr__(self) -> str:
        return f"StorePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StorePath) and str(self) == str(other)

    def __lt__(self, other: "StorePath") -> bool:
        return str(self) < str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    # --- looking ---

    def stat(self) -> Status:
        """Return the status of an object; a FileNotFoundError without one."""
        with _explained(self):
            return _status(_client().head(_store(self.root), self.key))

    def is_file(self) -> bool:
        if not self._parts:
            return False
        try:
            return bool(self.stat())
        except FileNotFoundError:
            return False

    def is_dir(self) -> bool:
        with _explained(self):
            return any(_client().list(_store(self.root), prefix=self.key, chunk_size=1))

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def is_symlink(self) -> bool:
        return False

    def iterdir(self) -> Iterator["StorePath"]:
        """Yield what lies directly below, with one request for each thousand of them."""
        folders, files = self.scan()
        return (self / name for name in sorted([*folders, *files]))

    def scan(self) -> tuple[list[str], dict[str, int]]:
        """Return the names of the folders directly below, and those of the objects with their sizes."""
        with _explained(self):
            found = _client().list_with_delimiter(_store(self.root), self.key or None)
        name = lambda path: path.rstrip("/").rpartition("/")[2]  # noqa: E731
        return [name(path) for path in found["common_prefixes"]], {
            name(entry["path"]): entry["size"] for entry in found["objects"]
        }

    def glob(self, pattern: str) -> Iterator["StorePath"]:
        """Yield what lies directly below with names that match."""
        return (path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, pattern))

    def rglob(self, pattern: str) -> Iterator["StorePath"]:
        """Yield all objects below with names that match."""
        return (path for path in self.sizes() if fnmatch.fnmatchcase(path.name, pattern))

    def sizes(self) -> dict["StorePath", int]:
        """Return the sizes of all objects below."""
        with _explained(self):
            found = [entry for part in _client().list(_store(self.root), prefix=self.key) for entry in part]
        return {StorePath(self.root, entry["path"]): entry["size"] for entry in found}

    # --- reading ---

    def read_bytes(self) -> bytes:
        """Return the content of an object, whose parts are asked for side by side where it is large."""
        return bytes(self.read_with_status()[0])

    def read_with_status(self, limit: int | None = None) -> tuple[Any, Status]:
        """Return the bytes of an object, as a buffer, and its status; a ValueError if it has more than `limit`."""
        start, status = self.read_start(PART)
        if limit is not None and status.st_size > limit:
            raise ValueError(f"{self} has {status.st_size} bytes, more than {limit}")
        if status.st_size <= PART:
            return start, status
        whole = bytearray(status.st_size)
        whole[:PART] = start
        self.at(status.version).read_into(memoryview(whole)[PART:], PART)
        return whole, status

    def read_start(self, count: int) -> tuple[Any, Status]:
        """Return the first bytes of an object, `count` of them if it has as many, as a buffer, and its status."""
        options = {"range": (0, count)}
        try:
            with _explained(self):
                found = _client().get(_store(self.root), self.key, options=options)
                return found.bytes(), _status(found.meta)
        except StoreError as error:
            if "answered 416" not in str(error):  # as it is where there is not a byte
                raise
            return b"", self.stat()

    def read_range(self, start: int, stop: int) -> Any:
        """Return some bytes as a buffer; of a path `at` a version an error if it has changed since.

        Raises:
            ValueError: the object has another version by now.
            FileNotFoundError, PermissionError, StoreError: as all methods.
        """
        if stop - start <= PART + PART // 2:
            return self._get(start, stop)
        whole = bytearray(stop - start)
        self.read_into(memoryview(whole), start)
        return whole

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill a buffer with the bytes from `start` on, as `read_range` reads them."""
        from soups.workers import in_threads  # which imports NumPy

        def fetch(at):
            part = buffer[at : at + PART]
            part[:] = self._get(start + at, start + at + len(part))

        in_threads(fetch, range(0, len(buffer), PART), SIDE_BY_SIDE)

    def _get(self, start, stop):
        if start == stop:
            return b""
        options = {"range": (start, stop), **({"if_match": self.version.e_tag} if self.version else {})}
        with _explained(self):
            content = _client().get(_store(self.root), self.key, options=options).bytes()
        if len(content) != stop - start:
            raise ValueError(f"{self} has {len(content)} bytes at {start} instead of {stop - start}")
        return content

    def open(self, mode: str = "rb") -> io.BufferedReader:
        """Open an object to read it here and there: what is asked for is fetched, 64 KiB at least."""
        if mode != "rb":
            raise ValueError(f"an object of a store is opened with 'rb', not {mode!r}")
        return io.BufferedReader(_Ranges(self), 1 << 16)

    # --- writing ---

    def write_bytes(self, content: Any, *, version: Version | None = None) -> Version:
        """Write an object, which is there whole or not at all, in the place of any other, and return its version.

        `version`: of the one that may be replaced; a ValueError if there is another one by now, or none.
        """
        known = {"e_tag": version.e_tag, "version": version.generation} if version else {}
        return self._put(content, {name: value for name, value in known.items() if value} or "overwrite")

    def create(self, content: bytes) -> Version:
        """Write an object where none is, and return its version; a FileExistsError if there is one.

        Of several writers exactly one makes it: the store sees to that. The content must be this writer's own, for one
        with the same is taken for an earlier try.
        """
        try:
            return self._put(content, "create")
        except FileExistsError:
            # the answer to the first try may have been lost on its way
            with contextlib.suppress(FileNotFoundError, ValueError):  # it was deleted, or replaced, meanwhile
                there, status = self.read_with_status()
                if bytes(there) == content and content:
                    return status.version
            raise

    def upload(self, parts: Iterable[Any], size: int) -> None:
        """Write an object of `size` bytes from buffers, in several parts at a time; it appears when all is there.

        If the buffers end with an error, what was sent is taken back.
        """
        options = {"chunk_size": max(PART, -(-size // MOST_PARTS)), "max_concurrency": 4, "use_multipart": True}
        with _explained(self):
            _client().put(_store(self.root), self.key, iter(parts), **options)

    def _put(self, content, mode):
        content = content.encode() if isinstance(content, str) else content
        with _explained(self):
            made = _client().put(_store(self.root), self.key, content, mode=mode, use_multipart=False)
        return Version(made["e_tag"], made["version"])

    def unlink(self, missing_ok: bool = False) -> None:
        if not missing_ok and not self.is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        with _explained(self), contextlib.suppress(FileNotFoundError):
            _client().delete(_store(self.root), self.key)

    def delete_below(self) -> None:
        """Delete all objects below this path."""
        names = [path.key for path in self.sizes()]
        with _explained(self):
            for first in range(0, len(names), 1000):
                _client().delete(_store(self.root), names[first : first + 1000])

    def rmdir(self) -> None:
        """Do nothing, as `mkdir`."""

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a store has no folders."""


class _Ranges(io.RawIOBase):
    """Read an object as a file."""

    def __init__(self, path):
        status = path.stat()
        self._path, self._size, self._at = path.at(path.version or status.version), status.st_size, 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=os.SEEK_SET):
        at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if at < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(self._path))
        self._at = at
        return at

    def readinto(self, buffer):
        count = max(0, min(len(buffer), self._size - self._at))
        buffer[:count] = self._path.read_range(self._at, self._at + count)
        self._at += count
        return count


class Copies:
    """Be a temporary folder of this machine, for copies of objects, that goes when nothing refers to it any more."""

    def __init__(self) -> None:
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="soups-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def fill(self, files: Mapping[str, StorePath], sizes: Mapping[StorePath, int] = {}) -> None:
        """Copy objects into the folder, by the names that they get there; of large ones, whose sizes are known, parts.

        An OSError before anything is copied if these have more bytes than are free.
        """
        from soups.workers import in_threads  # which imports NumPy

        needed, free = sum(sizes.get(path, 0) for path in files.values()), shutil.disk_usage(self.folder).free
        if needed > free:
            why = f"{needed} bytes are to be copied there, but only {free} are free: set TMPDIR to another folder"
            raise OSError(errno.ENOSPC, why, str(self.folder))
        small = {name: path for name, path in files.items() if sizes.get(path, 0) <= PART}
        parts = []
        for name, path in files.items():
            place, size = self.folder / name, sizes.get(path, 0)
            place.parent.mkdir(parents=True, exist_ok=True)
            if name not in small:
                place.touch()
                parts += [(place, path, at, min(at + PART, size)) for at in range(0, size, PART)]

        def copy_part(part):
            place, path, first, last = part
            with place.open("r+b") as file:
                file.seek(first)
                file.write(path.read_range(first, last))

        in_threads(lambda name: (self.folder / name).write_bytes(small[name].read_bytes()), small, SIDE_BY_SIDE)
        in_threads(copy_part, parts, SIDE_BY_SIDE)


def is_store(path: object) -> bool:
    """Say whether a text or a path begins as those of stores do."""
    return isinstance(path, StorePath) or (isinstance(path, str) and path.startswith(("s3://", "gs://")))


def store_path(url: str) -> StorePath:
    """Return the path of a URL; a ValueError if it names no bucket, or nothing that a store could have."""
    found = _URL.fullmatch(url)
    if not found or not re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", found["bucket"]):
        raise ValueError(f"{url[:200]!a} does not name a bucket: s3://BUCKET/NAME or gs://BUCKET/NAME")
    parts = (found["key"] or "").removesuffix("/").split("/")
    if {".", "..", ""} & set(parts) and parts != [""]:
        raise ValueError(f"{url[:200]!a} has an empty part, '.' or '..', which stores do not resolve")
    if any(ord(letter) < 32 for letter in url) or len(url) > 1024:
        raise ValueError(f"{url[:200]!a} is not the name of an object: control characters, or more than 1,024 letters")
    return StorePath(found["root"], *parts)


def _status(meta):
    return Status(meta["size"], Version(meta["e_tag"], meta["version"]), meta["last_modified"])


@functools.cache
def _client() -> Any:
    with extra("stores"):
        import obstore

        return obstore


@functools.cache
def _store(root: str) -> Any:
    _client()
    from obstore.store import from_url

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    settings: dict[str, Any] = {"endpoint": endpoint} if endpoint and root.startswith("s3:") else {}
    if root.startswith("gs:") and (endpoint := os.environ.get("STORAGE_EMULATOR_HOST", "")):
        endpoint = endpoint if "://" in endpoint else f"http://{endpoint}"
        nobody = {"client_email": "", "private_key": "", "private_key_id": "", "disable_oauth": True}
        settings = {"service_account_key": json.dumps(nobody | {"gcs_base_url": endpoint})}
    client = {"timeout": f"{TIMEOUT:g}s", "connect_timeout": "10s", "allow_http": endpoint.startswith("http://")}
    seconds = datetime.timedelta(seconds=1)
    retry = {"max_retries": RETRIES, "retry_timeout": PATIENCE * seconds}
    retry["backoff"] = {"init_backoff": seconds / 10, "max_backoff": 10 * seconds, "base": 2}
    return from_url(root, client_options=client, retry_config=retry, **settings)


_REFUSED = r"\b40[13]\b|AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|InvalidToken|Unauthenticated"
_NO_KEYS = r"MissingAccessKeyId|169\.254\.169\.254|metadata\.google\.internal|Error getting token|[Cc]redential"
_HELP = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, run `gcloud auth application-default login`, or give it a role",
}


@contextlib.contextmanager
def _explained(path):
    """Raise what went wrong as one sentence."""
    kinds = _client().exceptions
    try:
        yield
    except kinds.AlreadyExistsError:
        raise FileExistsError(errno.EEXIST, "it already exists", str(path)) from None
    except kinds.PreconditionError:
        raise ValueError(f"{path} has changed since it was looked at") from None
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error):
            raise FileNotFoundError(errno.ENOENT, "there is no such bucket", path.root) from None
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
    except kinds.BaseError as error:
        raise _named(path, f"{error} {error.__cause__ or ''}") from error


def _named(path, text):
    if "NoSuchBucket" in text:
        return FileNotFoundError(errno.ENOENT, "there is no such bucket", path.root)
    code = re.search(r"<Code>(\w+)</Code>", text)
    if refused := re.search(_REFUSED, text):
        why = code[1] if code else refused[0]
        return PermissionError(
            errno.EACCES, f"the store refuses these credentials ({why}): {_HELP[path.root[:2]]}", str(path)
        )
    if re.search(_NO_KEYS, text):
        return PermissionError(errno.EACCES, f"no credentials were found: {_HELP[path.root[:2]]}", str(path))
    status = re.search(r"status code: (\d{3}[^:\n]*)", text)
    tries = re.search(r"after (\d+) retries", text)
    other = "it cannot be reached" if "HTTP error" in text else re.sub(r"\s+", " ", text)[:200]
    why = f"it answered {status[1].strip()}" if status else other
    tried = f", also in {tries[1]} more tries" if tries and tries[1] != "0" else ""
    return StoreError(errno.EIO, f"the store failed: {why}{tried}", str(path))
