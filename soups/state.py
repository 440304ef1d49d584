"""Keep the JSON state of runs, with a digest inside: what is read is what was written, or an error that names the file.

A file is one JSON object. Its first line is `{"checksum": "…",`, the xxh3 of all that follows; a line of a journal
begins likewise. A file without it is refused, since a single flipped bit could make any file one:
`python -m soups.state FILE` puts the digest into a file that an older version wrote, or that was changed by hand.
"""

import json
import os
import re
import stat
import sys
from collections.abc import Mapping
from typing import Any

import xxhash

from soups.files import PathLike, any_path, replace_file
from soups.names import shown
from soups.stores import StorePath

MAX_NESTING = 64
_LARGEST = 1 << 30  # bytes
_KEY = b'{"checksum": "'
_HEAD = len(_KEY) + 32 + len(b'",\n')
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def write(path: PathLike, value: Mapping[str, Any]) -> dict:
    """Write an object with its digest, whole or not at all, and return it as it will be read.

    A ValueError if JSON cannot hold it: a number that is not finite, a value of another kind, a name that appears
    twice, nested too deep; an OSError as of `replace_file`.
    """
    try:
        sealed = seal(json.dumps(dict(value), indent=1, allow_nan=False).removeprefix("{\n").encode() + b"\n")
        kept = _opened(sealed, "its text")
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be written as JSON: {error}") from error
    replace_file(path, sealed)
    return kept


def read(path: PathLike, fields: Mapping[str, type | tuple[type, ...]] = {}) -> dict:
    """Return the object that `write` put into a file; `fields`: names that must be there, with their types.

    A ValueError names a file that is not what was written, too large or too deep, or another kind of state; else as
    `content`.
    """
    value = _opened(content(path), path)
    for name, kind in fields.items():
        if name not in value or not isinstance(value[name], kind):
            found = type(value[name]).__name__ if name in value else "not there"
            raise ValueError(f"{path} is state of another kind: its {name!r} is {found}")
    return value


def content(path: PathLike) -> bytes:
    """Return the bytes of a file of state.

    A ValueError if it is no regular file, or too large; an OSError, such as FileNotFoundError, has its path.
    """
    path = any_path(path)
    if isinstance(path, StorePath):
        return bytes(path.read_with_status(_LARGEST)[0])
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise ValueError(f"{path} is not a file")
    if status.st_size > _LARGEST:
        raise ValueError(f"{path} has {status.st_size} bytes, more than {_LARGEST}")
    return path.read_bytes()


def seal(rest: bytes, end: bytes = b"\n") -> bytes:
    """Put the digest before a JSON object whose opening brace is cut off; `end` ends the first line."""
    return _KEY + xxhash.xxh3_128_hexdigest(rest).encode() + b'",' + end + rest


def unseal(sealed: bytes, where: object, end: bytes = b"\n") -> bytes:
    """Return what `seal` was given; a ValueError, which begins with `where`, if it is not what was written."""
    rest = sealed[_HEAD:]
    if sealed == seal(rest, end):
        return rest
    why = "it is damaged, or was changed by hand"
    if not sealed.startswith(_KEY):
        why = "it does not begin with a checksum, so it is damaged, or was written by hand or by an older soups"
    raise ValueError(f"{where} does not have the bytes that were written: {why}")


def sealed_line(record: Mapping[str, Any]) -> bytes:
    """Return a record as one line of a journal, with its digest."""
    return seal(json.dumps(record)[1:].encode(), b" ") + b"\n"


def unsealed_line(line: bytes, where: object) -> dict:
    """Return the record in a line without its end; a ValueError as of `unseal`."""
    return _opened(line, where, b" ")


def parsed(text: str | bytes, where: object, hooks: Mapping = {}) -> dict:
    """Return the object in a JSON text of any origin; `where` begins a message, `hooks` are `json.loads`'s for numbers.

    NaN and Infinity are numbers here, as in Python. A ValueError for no JSON object, one nested deeper than
    MAX_NESTING, a name that appears twice, half a surrogate pair.
    """
    try:
        text = text.decode() if isinstance(text, bytes) else text
        value = json.loads(text, object_pairs_hook=_unique, **hooks)
        _check_depth(value)
        if _HALF.search(text):  # half a character, which no file can be written with
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError(f"{where} is not valid JSON: nested deeper than {MAX_NESTING}") from None
    except ValueError as error:
        raise ValueError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where} is not a JSON object")
    return value


def main(paths: list[str]) -> int:
    """Put the digest into files of JSON as they stand, and return the exit code."""
    for path in paths:
        try:
            value = parsed(content(path).decode(), path)
            value.pop("checksum", None)
            write(path, value)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        print(f"{path} bears its digest now")
    return 0


def _opened(sealed, where, end=b"\n"):
    unseal(sealed, where, end)
    value = parsed(sealed.decode("ascii", "replace"), where)
    del value["checksum"]
    return value


def _unique(pairs):
    result = dict(pairs)
    if len(result) < len(pairs):
        seen = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"'{shown(twice)}' appears twice")
    return result


def _check_depth(value):
    level = [[value]]
    for _ in range(MAX_NESTING):
        level = [
            item
            for part in level
            for item in (part.values() if type(part) is dict else part)
            if type(item) in (dict, list)
        ]
        if not level:
            return
    raise RecursionError


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
