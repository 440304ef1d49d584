"""Test that a file is replaced whole or not at all."""

import errno
import os

import pytest

from soups.files import replace_file


def test_the_file_is_replaced(tmp_path):
    path = replace_file(tmp_path / "a.txt", "é1")
    assert path.read_bytes() == "é1".encode()
    replace_file(path, b"2")
    assert path.read_bytes() == b"2"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_full_disk_is_named_and_the_old_file_stays(tmp_path, monkeypatch):
    path = replace_file(tmp_path / "a.txt", "old")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*a\.txt: No space left on device") as error:
        replace_file(path, "new")
    assert error.value.errno == errno.ENOSPC
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cannot write .*nowhere/a\.txt"):
        replace_file(tmp_path / "nowhere" / "a.txt", "")
