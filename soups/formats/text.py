"""Read the JSON and text files that lie beside weights: one door, bounded in size and depth."""

import codecs
import csv
import io
import os
import pathlib
import re
import stat
from collections.abc import Iterator, Mapping

from soups import state
from soups.files import PathLike
from soups.formats.hub import how_to_complete
from soups.formats.tensors import CheckpointError, short
from soups.stores import StorePath

MAX_TEXT = 1 << 26  # bytes; Gemma 3's tokenizer.json has half of it
STAND_INS = (
    (rb"version https://git-lfs\.github\.com/spec/", "a Git LFS pointer, not the file itself: run `git lfs pull`"),
    (rb"(?s).{257}ustar", "a tar archive, as torch 0.1 wrote; load it there and save its state_dict again"),
    (rb"\x1f\x8b|\xfd7zXZ|\x28\xb5\x2f\xfd|BZh[1-9]", "compressed: unpack it first"),
    (rb"\x89HDF\r\n", "an HDF5 file, which is not read; save its arrays with numpy.savez or as safetensors"),
    (rb"\x93NUMPY", "a single array without a name; save arrays by name with numpy.savez"),
    (rb"(?i)(\xef\xbb\xbf)?\s{0,100}<(!doctype html|html|head|\?xml)", "a web page, not the file: download it again"),
)
_BYTE_ORDER = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


def read_json(path: PathLike, *, limit: int = MAX_TEXT) -> dict:
    """Return the JSON object in a file.

    NaN and Infinity are numbers here, as Hugging Face writes them into config.json.
    """
    return parse_json(read_text(path, limit=limit), path)


def parse_json(text: str | bytes, where: object, hooks: Mapping = {}) -> dict:
    """Return the object in a JSON text; `where` begins a message, and `hooks` are `json.loads`'s for numbers."""
    try:
        return state.parsed(text, where, hooks)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def read_text(path: PathLike, *, limit: int = MAX_TEXT) -> str:
    """Return the text of a file in UTF-8, or in UTF-16 with a byte order mark."""
    content = read_bytes(path, limit=limit)
    mark, encoding = next((pair for pair in _BYTE_ORDER if content.startswith(pair[0])), (b"", "utf-8"))
    try:
        text = content.decode(encoding)[len(mark) and 1 :]
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not text in UTF-8: {error.reason} at byte {error.start}") from error
    if "\0" in text:
        raise CheckpointError(f"{path} is not text in UTF-8, but binary or UTF-16 without a byte order mark")
    return text


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the number and text of each line that is not blank; only newlines end one, not U+2028 and its like."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line.removesuffix("\r")


def numbered_rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a table with commas that are not empty, each with the number of the line where it begins."""
    reader, begin = csv.reader(io.StringIO(text, newline="")), 1
    for row in reader:
        if row:
            yield begin, row
        begin = reader.line_num + 1


def read_bytes(path: PathLike, *, limit: int = MAX_TEXT) -> bytes:
    """Return the bytes of a small file."""
    content = _content(path, limit)
    check_stand_in(path, content[:300])
    return content


def _content(path, limit):
    if isinstance(path, StorePath):
        try:
            return bytes(path.read_with_status(limit)[0])
        except ValueError as error:
            raise CheckpointError(str(error)) from None
    size = check_file(path)
    if size > limit:
        raise CheckpointError(f"{path} has {size} bytes, more than {limit}")
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def check_file(path: PathLike) -> int:
    """Return the size of a regular file, or of an object of a store."""
    if isinstance(path, StorePath):
        return path.stat().st_size
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        kind = "a link to a file that is not there" if os.path.islink(path) else "not there"
        raise FileNotFoundError(f"{path} is {kind}{how_to_complete(path)}") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise CheckpointError(f"{short(str(path))} cannot be read: {getattr(error, 'strerror', error)}") from error
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise CheckpointError(f"{path} is {'a directory' if stat.S_ISDIR(status.st_mode) else 'not a file'}")
    return status.st_size


def check_stand_in(path: PathLike, start: bytes) -> None:
    """Raise a CheckpointError if a file's first bytes are those of what is often found in a file's place."""
    if not start:
        raise CheckpointError(f"{path} is empty")
    for pattern, kind in STAND_INS:
        if re.match(pattern, start):
            raise CheckpointError(f"{path} is {kind}")
