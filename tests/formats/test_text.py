"""Test the door for JSON and text: encodings, sizes, depth, and what stands in a file's place."""

import codecs
import json
import math
import os
import re

import pytest

from soups.formats import CheckpointError
from soups.formats.text import numbered_lines, numbered_rows, read_bytes, read_json, read_text

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PAGE = b"\n<!DOCTYPE html><html><body>Sign in</body></html>"
ENCODINGS = {"utf-8": b"", "utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}


@pytest.fixture
def file(tmp_path):
    """Return a function that writes a file."""

    def write(content):
        path = tmp_path / "config.json"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_encodings(encoding, file):
    content = {"name": "äß€😀", "parts": [1, {"x": None}], "big": 2**70, "text": "\u2028\\"}
    text = json.dumps(content, ensure_ascii=False)
    assert read_json(file(ENCODINGS[encoding] + text.encode(encoding))) == content
    assert read_json(file(codecs.BOM_UTF8 + text.encode())) == content
    assert read_text(file(ENCODINGS[encoding] + "a\r\nß".encode(encoding))) == "a\r\nß"


def test_numbers_that_hugging_face_writes(file):
    found = read_json(file('{"time_step_limit": [0.0, Infinity], "x": NaN, "low": -Infinity}'))
    assert found["time_step_limit"] == [0, math.inf] and math.isnan(found["x"]) and found["low"] == -math.inf


JSON = {
    "nothing": (b"", "is empty"),
    "cut": (b'{"a": ', "is not valid JSON: Expecting value"),
    "a list": (b"[]", "is not a JSON object"),
    "a number": (b"1", "is not a JSON object"),
    "a key twice": (b'{"a": {"b": 1, "c": 2, "b": 2}}', "is not valid JSON: 'b' appears twice"),
    "a key with an escape sequence twice": (rb'{"\u001b[2J": 1, "\u001b[2J": 2}', r"'\x1b[2J' appears twice"),
    "deep": (b'{"a":' * 64 + b"1" + b"}" * 64, "nested deeper than 64"),
    "deeper than Python": (b"[" * 100_000, "nested deeper than 64"),
    "deeper than Python, objects": (b'{"a":' * 100_000, "nested deeper than 64"),
    "a long integer": (b'{"a": ' + b"9" * 5000 + b"}", "is not valid JSON: Exceeds the limit"),
    "half a character": (rb'{"a": ["\ud800"]}', "is not valid JSON"),
    "half a character as a key": (rb'{"\uDC00": 1}', "is not valid JSON"),
    "Latin-1": ('{"a": "é"}'.encode("latin-1"), "is not text in UTF-8: .* at byte 7"),
    "UTF-16 without a mark": ('{"a": 1}'.encode("utf-16-le"), "is not text in UTF-8, but binary or UTF-16 without"),
    "half of UTF-16": (codecs.BOM_UTF16_LE + b"{", "is not text in UTF-8: truncated data"),
    "a pointer": (POINTER, "is a Git LFS pointer, not the file itself: run `git lfs pull`"),
    "a page": (PAGE, "is a web page, not the file: download it again"),
}


@pytest.mark.parametrize("case", JSON)
def test_refuses(case, file):
    content, message = JSON[case]
    path = file(content)
    with pytest.raises(CheckpointError) as error:
        read_json(path)
    text = str(error.value)
    assert text.startswith(str(path)) and (message in text or re.search(message, text)) and text.isprintable()


def test_the_deepest_that_is_read(file):
    assert read_json(file(b'{"a":' * 63 + b"1" + b"}" * 63))


def test_the_limit(file):
    path = file('{"a": 1}')
    assert read_json(path, limit=8) == {"a": 1}
    with pytest.raises(CheckpointError, match="has 8 bytes, more than 7"):
        read_json(path, limit=7)


@pytest.mark.parametrize("read", [read_json, read_text, read_bytes])
def test_what_is_no_file(read, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nothing")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError, match=r"x\.json is not there"):
        read(tmp_path / "x.json")
    with pytest.raises(FileNotFoundError, match="link is a link to a file that is not there"):
        read(tmp_path / "link")
    names = {"folder": "is a directory", "pipe": "is not a file", "x" * 300: "cannot be read", "a\0b": "cannot be read"}
    for name, message in names.items():
        with pytest.raises(CheckpointError, match=message):
            read(tmp_path / name)


def test_a_file_that_cannot_be_read(file, monkeypatch):
    path = file("{}")
    error = PermissionError(13, "Permission denied")
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda path: (_ for _ in ()).throw(error))
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read: Permission denied"):
        read_json(path)


def test_only_newlines_end_a_line():
    text = "one\u2028still one\x0b\x85\n\n  \r\nfour\r\n"
    assert list(numbered_lines(text)) == [(1, "one\u2028still one\x0b\x85"), (4, "four")]


def test_rows_are_counted_by_the_lines_where_they_begin():
    text = 'a,"two\nlines"\n\nb,c\r\n"d\n\n",e\nf,g'
    wanted = [(1, ["a", "two\nlines"]), (4, ["b", "c"]), (5, ["d\n\n", "e"]), (8, ["f", "g"])]
    assert list(numbered_rows(text)) == wanted
