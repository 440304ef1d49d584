"""Write down decisions one by one, or the state so far, so that a killed run goes on where it was."""

import json
import os
import pathlib
from typing import Any

from soups import state
from soups.files import cannot_write, replace_file
from soups.lazy import jax
from soups.processes import on_first_process


class Journal:
    """Keep records in a file of JSON lines, each with its digest; without a path, in memory.

    The first line states what is being decided; a journal of something else is refused. A last line that was cut off
    by a crash is dropped, and one that is damaged is a ValueError. Records are appended (`write`) or the newest alone
    is kept (`keep`). Of several JAX processes the first one reads and writes, and all get the same records.
    """

    def __init__(self, path: str | os.PathLike | None, header: dict[str, Any]):
        self._path = pathlib.Path(path) if path is not None else None
        self._old: list[dict[str, Any]] = []
        if self._path is not None:
            self._header = json.loads(json.dumps(header))
            self._old = on_first_process(self._open)

    def _open(self):
        lines = state.content(self._path).split(b"\n")[:-1] if self._path.exists() else []
        there, *records = [self._parsed(number, line) for number, line in enumerate(lines, 1)] or [self._header]
        if differences := _differences(there, self._header):
            raise ValueError(
                f"journal {self._path} belongs to another selection:\n" + "\n".join(differences) + "\n"
                "Remove it, or give another path."
            )
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # rewrite what is whole, so a cut-off line never stays in the middle
        replace_file(self._path, b"".join(line + b"\n" for line in lines) or state.sealed_line(self._header))
        return records

    def _parsed(self, number, line):
        try:
            return state.unsealed_line(line, f"line {number} of journal {self._path}")
        except ValueError as error:
            remedy = "Cut the file before it to go on from there, or remove the file." if number > 1 else "Remove it."
            raise ValueError(f"{error}: {line[:100]!r}\n{remedy}") from error

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
                with open(self._path, "ab") as file:
                    file.write(state.sealed_line(record))
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
            replace_file(self._path, state.sealed_line(self._header) + state.sealed_line(record))


def _differences(there, here):
    """List how the first line of a journal differs from the one of this selection."""
    return [
        f"  {name}: {there.get(name, '(absent)')} there, {here.get(name, '(absent)')} here"
        for name in sorted(there.keys() | here.keys())
        if json.dumps(there.get(name)) != json.dumps(here.get(name))  # for NaN is not NaN
    ]
