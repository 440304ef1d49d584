"""Keep the records of a pool: one file for each member, changed under a lock, with reserved directories.

    manifest.json                    says of which format the pool is
    records/00000012-NAME.json       a member's record; the numbers are the order in which members were added
    members/NAME/                    its checkpoint

On an object store it is the same objects. There, and in folders that hosts share, locks are leases. What is not in the
records is not there yet.

A pool of the first format has all records in its manifest; it is read as it is, and the first change converts it.
"""

import contextlib
import os
import pathlib
import re
import shutil
import uuid
from collections.abc import Iterator

from soups.files import has_locks, lock, remove_held, remove_unfinished, replace_file, sweep_unfinished
from soups.leases import Lease, is_held, leased
from soups.names import bounded
from soups.pool import _record
from soups.pool._record import MEMBERS, PoolCorruptionError
from soups.stores import SIDE_BY_SIDE, StorePath
from soups.workers import in_threads

FORMAT, OLD_FORMAT = "soups.pool/2", "soups.pool/1"
RECORDS = "records"
_FILE = "manifest.json"
_MARKER = ".adding"
_RECORD = re.compile(r"(\d{8,})-([A-Za-z0-9_=-]+)\.json")


Path = pathlib.Path | StorePath


def exists(path: Path) -> bool:
    """Say whether `path` holds a pool."""
    return (path / _FILE).is_file()


class Records:
    """Hold the members that a pool has, by name in the order of their addition, and read a record when asked for it.

    All files are read and compared with their digests once, for the names; a change through `locked` looks for those
    that came since.
    """

    def __init__(self, path: Path):
        self._path = path
        self._names: dict[str, str] = {}  # of the members, by the file of their records
        self._seen: set[str] | None = None  # in the folder of the records
        self._lease: Lease | None = None  # of a pool without locks, while it is changed
        self.refresh()

    def refresh(self) -> None:
        """Look which members there are now."""
        manifest = self._manifest()
        if manifest is None and any((self._path / RECORDS).glob("*.json")):
            manifest = self._manifest()  # another process may have made it just now
            if manifest is None:
                raise PoolCorruptionError(f"{self._path / _FILE} is missing, though there are records of members")
        if manifest is None or manifest["format"] == OLD_FORMAT:
            self._files, self._read, self._seen = {}, {} if manifest is None else manifest["members"], None
            return
        seen = self._entries()
        if seen == self._seen:  # as mostly: the rest takes ten times as long
            self._read = {}
            return
        files = self._records_of(seen)
        self._names |= self._names_of([file for file in files if file not in self._names])
        by_name, self._read = {}, {}
        for file in files:
            if (name := self._names.get(file)) is not None and by_name.setdefault(name, file) != file:
                raise PoolCorruptionError(
                    f"{self._path / RECORDS}: {by_name[name]} and {file} are both records of {name!r}"
                )
        self._files, self._seen = by_name, seen

    def __iter__(self) -> Iterator[str]:
        return iter(self._files or self._read)

    def __contains__(self, name) -> bool:
        return name in (self._files or self._read)

    def __getitem__(self, name: str) -> dict:
        """Return a record."""
        record = self._read.get(name)
        if record is None:
            file = self._path / RECORDS / self._files[name]
            try:
                record = _record.checked(_record.parsed(_record.unsealed(file), file), file)
            except FileNotFoundError:
                raise PoolCorruptionError(
                    f"member {name!r} was removed from the pool {self._path}: there is no {file}"
                ) from None
            if record["path"] != f"{MEMBERS}/{_directory(file.name)}":
                raise PoolCorruptionError(f"{file} is the record of another member, in {record['path']}")
            del record["name"]
            self._read[name] = record
        return record

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the pool, as one that its records can be written to, and look which members there are now."""
        with _locked(self._path) as self._lease:
            self.refresh()
            yield

    def write(self, name: str, record: dict) -> None:
        """Write the record of a new or an old member; within `locked`."""
        _record.checked(record, self._path)  # what cannot be read back would close the pool
        self._begin()
        self._check_lease()
        last = next(reversed(self._files.values()), None)
        file = self._files.get(name) or _file(1 + (_number(last) if last else 0), record)
        replace_file(self._path / RECORDS / file, _record.sealed({"name": name, **record}))
        self._names[file] = name
        self._seen.add(file)
        self._files[name] = file
        self._read.pop(name, None)

    def delete(self, name: str) -> None:
        """Delete the record of a member; within `locked`."""
        self._begin()
        self._check_lease()
        (self._path / RECORDS / self._files[name]).unlink()
        self._seen.discard(self._files.pop(name))
        self._read.pop(name, None)

    def orphans(self) -> list[str]:
        """List what lies among the members, belongs to none and is not being written by a living process."""
        members = _record.no_link(self._path / MEMBERS)
        entries = sorted(members.iterdir()) if members.is_dir() else []
        idle = [entry for entry in entries if not _in_progress(entry)]
        owned = self._owned()  # read last: whatever was finished since the listing is in it
        return [f"{MEMBERS}/{entry.name}" for entry in idle if entry.name not in owned and _is_there(entry)]

    def sweep(self) -> list[str]:
        """Delete the orphans and return their names."""
        if not self._path.is_dir():
            return []
        with _locked(self._path):
            for folder in (self._path, _record.no_link(self._path / RECORDS)):
                if isinstance(folder, pathlib.Path):
                    sweep_unfinished(folder)
            found = self.orphans()
            for entry in found:
                delete(self._path / entry)
        return found

    def _manifest(self):
        try:
            text = _record.unsealed(self._path / _FILE)
        except FileNotFoundError:
            return None
        manifest = _record.parsed(text, self._path / _FILE)
        if manifest.get("format") not in (FORMAT, OLD_FORMAT):
            raise ValueError(
                f"{self._path / _FILE} has format {manifest.get('format')!r:.100}; "
                f"this version reads {FORMAT!r} and {OLD_FORMAT!r}"
            )
        if manifest["format"] == OLD_FORMAT:
            if not isinstance(members := manifest.get("members"), dict):
                raise PoolCorruptionError(f"{self._path / _FILE} is not the manifest of a pool: it has no members")
            for record in members.values():
                _record.checked(record, self._path / _FILE)
        return manifest

    def _entries(self):
        if isinstance(self._path, StorePath):  # where a folder without records is not there
            return {entry.name for entry in (self._path / RECORDS).iterdir()}
        try:
            return set(os.listdir(_record.no_link(self._path / RECORDS)))
        except (FileNotFoundError, NotADirectoryError):
            raise PoolCorruptionError(
                f"{self._path / RECORDS}, which holds the records of all members, is missing"
            ) from None

    def _records_of(self, entries):
        files = sorted((file for file in entries if _RECORD.fullmatch(file)), key=lambda file: (_number(file), file))
        owners = {}
        for file in files:
            if (owner := owners.setdefault(_directory(file), file)) != file:
                raise PoolCorruptionError(f"{self._path / RECORDS}: {owner} and {file} name the same directory")
        return files

    def _names_of(self, files):
        names, problems = {}, []

        def look(file):
            place = self._path / RECORDS / file
            try:
                names[file] = _record.name_of(_record.unsealed(place), place)
            except FileNotFoundError:
                pass  # removed since the listing
            except PoolCorruptionError as error:
                problems.append(f"{error}; if it is removed, the others can be read, and sweeping deletes its member")

        if isinstance(self._path, StorePath):
            in_threads(look, files, SIDE_BY_SIDE)
        else:
            for file in files:
                look(file)
        if problems:
            raise PoolCorruptionError(bounded(problems))
        return names

    def _owned(self):
        manifest = self._manifest()
        if manifest is None:
            return set()
        if manifest["format"] == OLD_FORMAT:
            return {pathlib.PurePath(record["path"]).name for record in manifest["members"].values()}
        return {_directory(file) for file in self._records_of(self._entries())}

    def _check_lease(self):
        if self._lease is not None:
            self._lease.check()

    def _begin(self):
        """Make the pool if it is not there yet, and convert one of the first format."""
        if self._files or ((manifest := self._manifest()) and manifest["format"] == FORMAT):
            return
        old, records = self._read, _record.no_link(self._path / RECORDS)
        delete(records)  # what a killed conversion left
        records.mkdir()
        for number, (name, record) in enumerate(old.items(), 1):
            replace_file(records / _file(number, record), _record.sealed({"name": name, **record}))
        replace_file(self._path / _FILE, _record.sealed({"format": FORMAT}))
        self.refresh()


@contextlib.contextmanager
def reserved(path: Path, name: str) -> Iterator[str]:
    """Keep the name of a new member directory ours during the block; delete the directory if the block fails.

    A marker file next to it stays locked as long as this process lives, so that others can tell work in progress
    from what a killed process left.
    """
    readable = re.sub(r"[^A-Za-z0-9_=-]+", "_", name)[:60]
    directory = f"{MEMBERS}/{readable}-{uuid.uuid4().hex[:12]}"
    marker = path / f"{directory}{_MARKER}"
    if not has_locks(path):
        with leased(marker, path, "process"):
            try:
                yield directory
            except BaseException:
                with contextlib.suppress(OSError):  # else it is an orphan
                    _delete_unfinished(path, directory)
                raise
        return
    with _locked(path):  # sweeping takes this lock too: it never sees a marker that is not locked yet
        _record.directory(path, directory).parent.mkdir(exist_ok=True)
        descriptor = os.open(marker, os.O_CREAT | os.O_EXCL | os.O_RDWR)
        lock(descriptor)
    try:
        yield directory
    except BaseException:
        _delete_unfinished(path, directory)
        raise
    finally:
        remove_held(marker, lambda: os.close(descriptor))


def _delete_unfinished(path, directory):
    if isinstance(path, StorePath):
        (path / directory).delete_below()
        return
    for unfinished in (path / MEMBERS).glob(f"{pathlib.Path(directory).name}*"):
        if _MARKER not in unfinished.name:
            remove_unfinished(unfinished)


def check_reserved(path: Path, directory: str) -> None:
    """Raise a BlockingIOError if the name of a directory is not kept any more; within `Records.locked`."""
    marker = path / f"{directory}{_MARKER}"
    if not has_locks(path) and not marker.is_file():
        raise BlockingIOError(f"{path / directory} was removed as abandoned, because its lease was not renewed in time")


@contextlib.contextmanager
def _locked(path):
    """Lock a pool, and yield the lease where it is one."""
    path.mkdir(parents=True, exist_ok=True)
    if not has_locks(path):
        with leased(path / ".lock", path, "process", wait=True) as lease:
            yield lease
        return
    with open(path / ".lock", "ab") as file:
        lock(file)
        yield None


def _file(number, record):
    return f"{number:08d}-{pathlib.PurePath(record['path']).name}.json"


def _number(file):
    return int(_RECORD.fullmatch(file)[1])


def _directory(file):
    return _RECORD.fullmatch(file)[2]


def delete(place: Path) -> None:
    """Delete a file, or a folder with all that is in it, if it is there."""
    if isinstance(place, StorePath):
        place.delete_below()
        place.unlink(missing_ok=True)
    elif place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def _is_there(place):
    return place.exists() if isinstance(place, StorePath) else os.path.lexists(place)


def _in_progress(entry):
    # Orbax writes to <directory>.orbax-checkpoint-tmp before it renames
    marker = entry.with_name(entry.name.partition(".")[0] + _MARKER)
    if not has_locks(entry.parent):
        return is_held(marker)
    try:
        with open(marker, "rb") as file:
            lock(file, wait=False)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
