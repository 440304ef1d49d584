"""Keep a manifest whole: read it, change it under a lock, reserve directories, find what killed processes left."""

import contextlib
import fcntl
import json
import os
import pathlib
import re
import shutil
import uuid
from collections.abc import Iterator

import xxhash

from soups.files import replace_file

FORMAT = "soups.pool/1"
MEMBERS = "members"
_FILE = "manifest.json"
_MARKER = ".adding"


class PoolCorruptionError(ValueError):
    """Say that the bytes on disk are not those that were written."""


def exists(path: pathlib.Path) -> bool:
    """Say whether `path` holds a pool."""
    return (path / _FILE).is_file()


def read(path: pathlib.Path) -> dict:
    """Give the manifest, {"format", "base", "members"}; that of an empty pool where there is none yet.

    Raises:
        PoolCorruptionError: it is not what was written.
        ValueError: another format.
    """
    try:
        text = (path / _FILE).read_bytes()
    except FileNotFoundError:
        return {"format": FORMAT, "base": None, "members": {}}
    first, _, rest = text.partition(b"\n")
    if first != _checksum_line(rest):
        raise PoolCorruptionError(
            f"{path / _FILE} does not have the bytes that were written: it is corrupted, or was edited by hand"
        )
    manifest = json.loads(text)
    if manifest["format"] != FORMAT:
        raise ValueError(f"{path / _FILE} has format {manifest['format']!r}; this version reads {FORMAT!r}")
    del manifest["checksum"]
    return manifest


def common_base(records: dict[str, dict]) -> str | None:
    """Give the base that all these members name, None if they differ."""
    bases = {record["base"] for record in records.values()}
    return bases.pop() if len(bases) == 1 else None


@contextlib.contextmanager
def changing(path: pathlib.Path) -> Iterator[dict]:
    """Lock the pool, hand out its newest manifest, and write what the block has made of it."""
    with _locked(path):
        manifest = read(path)
        yield manifest
        _write(path, manifest)


@contextlib.contextmanager
def reserved(path: pathlib.Path, name: str) -> Iterator[str]:
    """Keep the name of a new member directory ours during the block; delete the directory if the block fails.

    A marker file next to it stays locked as long as this process lives, so that others can tell work in progress
    from what a killed process left.
    """
    readable = re.sub(r"[^A-Za-z0-9_=-]+", "_", name)[:60]
    directory = f"{MEMBERS}/{readable}-{uuid.uuid4().hex[:12]}"
    marker = path / f"{directory}{_MARKER}"
    with _locked(path):  # sweeping takes this lock too: it never sees a marker that is not locked yet
        marker.parent.mkdir(exist_ok=True)
        descriptor = os.open(marker, os.O_CREAT | os.O_EXCL | os.O_RDWR)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield directory
    except BaseException:
        for unfinished in (path / MEMBERS).glob(f"{pathlib.Path(directory).name}*"):
            if unfinished != marker:
                shutil.rmtree(unfinished, ignore_errors=True)
        raise
    finally:
        marker.unlink(missing_ok=True)
        os.close(descriptor)


def orphans(path: pathlib.Path) -> list[str]:
    """List what lies among the members, belongs to none and is not being written by a living process."""
    entries = sorted((path / MEMBERS).iterdir()) if (path / MEMBERS).is_dir() else []
    idle = [entry.relative_to(path).as_posix() for entry in entries if not _in_progress(entry)]
    # read last: whatever was finished since the listing is in it
    members = {record["path"] for record in read(path)["members"].values()}
    return [entry for entry in idle if entry not in members and (path / entry).exists()]


def sweep(path: pathlib.Path) -> list[str]:
    """Delete the orphans and give their names."""
    if not path.is_dir():
        return []
    with _locked(path):
        found = orphans(path)
        for entry in found:
            if (path / entry).is_dir():
                shutil.rmtree(path / entry)
            else:
                (path / entry).unlink()
    return found


def _write(path, manifest):
    # one line for each member: quick to write and to read, and still something a person can look through
    records = manifest["members"]
    members = ",\n".join(f"{json.dumps(name)}: {json.dumps(record)}" for name, record in records.items())
    head = json.dumps({"format": manifest["format"], "base": common_base(records)})[1:-1]
    rest = f'{head}, "members": {{\n{members}\n}}}}\n'.encode()
    replace_file(path / _FILE, _checksum_line(rest) + b"\n" + rest)


def _checksum_line(rest):
    return b'{"checksum": "%s",' % xxhash.xxh3_128_hexdigest(rest).encode()


@contextlib.contextmanager
def _locked(path):
    path.mkdir(parents=True, exist_ok=True)
    # the lock ends with the descriptor, so a killed process leaves none behind
    with open(path / ".lock", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _in_progress(entry):
    # Orbax writes to <directory>.orbax-checkpoint-tmp before it renames
    marker = entry.with_name(entry.name.partition(".")[0] + _MARKER)
    try:
        with open(marker, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
