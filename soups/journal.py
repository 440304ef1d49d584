"""Write down decisions one by one, or the state so far, so that a killed run goes on where it was."""

import json
import os
import pathlib
from typing import Any

import xxhash

from soups.files import cannot_write, replace_file
from soups.lazy import jax
from soups.processes import on_first_process


class Journal:
    """Keep records in a file of JSON lines; without a path, in memory.

    The first line states what is being decided; a journal of something else is refused. A last line that was cut off
    by a crash is dropped, and one that is damaged is a ValueError. Records are appended (`write`) or the newest alone
    is kept (`keep`). Of several JAX processes the first one reads and writes, and all get the same records.
    """

    def __init__(self, path: str | os.PathLike | None, header: dict[str, Any]):
        self._path = pathlib.Path(path) if path is not None else None
        self._old: list[dict[str, Any]] = []
        if self._path is not None:
            self._header = json.dumps(header)
            self._old = on_first_process(self._open)

    def _open(self):
        lines = self._path.read_text(errors="replace").split("\n")[:-1] if self._path.exists() else []
        if lines and (differences := _differences(lines[0], self._header)):
            raise ValueError(
                f"journal {self._path} belongs to another selection:\n" + "\n".join(differences) + "\n"
                "Remove it, or give another path."
            )
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # rewrite what is whole, so a cut-off line never stays in the middle
        replace_file(self._path, "".join(line + "\n" for line in lines or [self._header]))
        return [self._parsed(number, line) for number, line in enumerate(lines[1:], 2)]

    def _parsed(self, number, line):
        try:
            record = json.loads(line)
            # journals of before have none
            whole = record.pop("checksum", None) in (None, _checksum(json.dumps(record)))
        except (ValueError, RecursionError, TypeError, AttributeError):
            whole = False
        if not whole:
            raise ValueError(
                f"line {number} of journal {self._path} is damaged: {line[:100]!r}\n"
                "Cut the file before it to go on from there, or remove the file."
            )
        return record

    def replay(self, kind: str, member: str) -> dict[str, Any] | None:
        """Return the next old record if it is of this kind and member, else None."""
        if self._old and (self._old[0].get("kind"), self._old[0].get("member")) == (kind, member):
            return self._old.pop(0)
        return None

    def newest(self) -> dict[str, Any] | None:
        """Return the last old record, else None."""
        return self._old[-1] if self._old else None

    def write(self, record: dict[str, Any]) -> dict[str, Any]:
        """Append a record and see it to the disk.

        Raises:
            OSError: the disk is full or cannot be written to; the path is in the message.
        """
        if self._path is not None and jax.process_index() == 0:
            try:
                with open(self._path, "a") as file:
                    file.write(_line(record) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise cannot_write(self._path, error) from error
        return record

    def keep(self, record: dict[str, Any]) -> None:
        """Put a record in the place of all others.

        Raises:
            OSError: the disk is full or cannot be written to; the path is in the message, and the old records stay.
        """
        if self._path is not None and jax.process_index() == 0:
            replace_file(self._path, f"{self._header}\n{_line(record)}\n")


def _line(record):
    return json.dumps({**record, "checksum": _checksum(json.dumps(record))})


def _checksum(text):
    return xxhash.xxh3_64_hexdigest(text.encode())


def _differences(line, here):
    """List how the first line of a journal differs from the one of this selection."""
    try:
        there = json.loads(line)
    except ValueError:
        there = None
    if not isinstance(there, dict):
        return [f"  its first line is no line of a journal: {line[:100]!r}"]
    here = json.loads(here)
    return [
        f"  {name}: {there.get(name, '(absent)')} there, {here.get(name, '(absent)')} here"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]
