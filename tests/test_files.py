"""Test that a file is replaced whole or not at all."""

import contextlib
import errno
import os
import pathlib
import re

import numpy as np
import pytest

import soups
from soups.cli import main
from soups.evaluate import LogitCache
from soups.files import local_path, replace_file, sweep_unfinished, sync_files
from soups.formats import write_safetensors
from soups.journal import Journal
from soups.writers import open_writer

URLS = ["gs://bucket/a", "s3://b/a", "hf://org/model", "https://x.org/a.pt", "file:///tmp/a", "HDFS://a", "gs:/b"]


@pytest.mark.parametrize("url", [*URLS, "/models/a+gs://bucket/lora", pathlib.Path("gs://bucket/a")])
def test_urls_are_no_local_paths(url):
    with pytest.raises(ValueError, match="is a URL: give a local path"):
        local_path(url)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("merge --method uniform --members runs/a/model runs/bb/model --out out", "runs/b/model"),
        ("merge --method uniform --members runs/a/modle --out out", "runs/a/model"),
        ("merge --method ties --base bse --members runs/a/model --out out", "base"),
        ("merge recipe.yaml out", "recipe.yml"),
        ("pool list pol", "{here}/pool"),
        ("cook pool --apply m:n --held-out m:h --test m:t --base strat.safetensors --workdir w", "start.safetensors"),
        ("report runs/finihsed", "runs/finished"),
        ("pool list zzz", None),
        ("merge --method uniform --members runs/a/model nowhere/at/all --out out", None),
    ],
)
def test_a_path_that_is_not_there_is_answered_by_the_one_that_may_be_meant(words, meant, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("runs/a/model", "runs/b/model", "base"):
        pathlib.Path(name).mkdir(parents=True)
        write_safetensors(pathlib.Path(name) / "model.safetensors", {"w": np.ones(2, np.float32)})
    for name in ("recipe.yml", "start.safetensors", "runs/finished/results.json"):
        pathlib.Path(name).parent.mkdir(exist_ok=True)
        pathlib.Path(name).touch()
    soups.Pool("pool").add("a", {"w": np.ones(2, np.float32)})
    assert main(words.split()) == 2
    printed = capsys.readouterr().err
    assert ("did you mean" in printed) == (meant is not None)
    assert meant is None or f"(did you mean '{meant.format(here=tmp_path)}'?)" in printed


@pytest.mark.parametrize("make", [Journal, LogitCache, open_writer])
def test_nothing_is_kept_in_a_folder_that_is_called_as_a_url(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is a URL: give a local path"), contextlib.ExitStack() as stack:
        made = make("hf://bucket/a", *([{}] if make is Journal else []))
        stack.enter_context(made)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_what_is_no_path(path):
    with pytest.raises(ValueError, match="is not a path: it is empty or contains a null character"):
        local_path(path)


@pytest.mark.parametrize("path", [None, 3, b"a", ["a"]])
def test_what_is_no_text(path):
    with pytest.raises(ValueError, match=re.escape(f"{path!r} is not a path: give text or a pathlib.Path")):
        local_path(path)


@pytest.mark.parametrize("path", ["~/models/a", "~"])
def test_a_home_folder_is_written_out(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="begins with ~, which only a shell expands"):
        local_path(path)
    (tmp_path / "~").mkdir()
    assert local_path(path) == pathlib.Path(path)


@pytest.mark.parametrize("path", ["a" * 256, "é" * 128, "a/" * 2100])
def test_what_is_too_long(path):
    with pytest.raises(ValueError, match="is not a path: it is too long"):
        local_path(path)


@pytest.mark.parametrize("path", ["a", "/a/b:c", "C:/a", "C:\\a", "pool:member", pathlib.Path("a"), "a b@params"])
def test_local_paths(path):
    assert local_path(path) == pathlib.Path(path)


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


def test_two_containers_with_one_process_id_do_not_write_to_one_name(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)
    path, names = tmp_path / "a.txt", []
    replace = os.replace

    def inside(fresh, target):
        names.append(os.path.basename(fresh))
        if len(names) == 1:
            replace_file(path, "other")
        replace(fresh, target)

    monkeypatch.setattr(os, "replace", inside)
    replace_file(path, "one")
    assert path.read_text() == "one" and len(set(names)) == 2 and os.listdir(tmp_path) == ["a.txt"]


def test_only_strays_are_swept_and_no_link_is_followed(tmp_path):
    stray = f"a.json.{'0' * 32}.unfinished"
    for name in ("a.json", "b.unfinished", stray):
        (tmp_path / name).write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / stray).write_text("")
    (tmp_path / f"b{stray}").symlink_to(tmp_path / "other" / stray)
    sweep_unfinished(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["a.json", "b.unfinished", "other"]
    assert os.listdir(tmp_path / "other") == [stray]
    sweep_unfinished(tmp_path / "nowhere")


def test_every_file_and_folder_is_seen_to_the_disk_and_an_error_of_one_is_raised(tmp_path, monkeypatch):
    for name in ("a", "b/c", "b/d/e"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    seen, real = [], os.fsync

    def fsync(descriptor):
        seen.append(os.fstat(descriptor).st_ino)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    sync_files(tmp_path)
    assert sorted(seen) == sorted(os.stat(path).st_ino for path in [tmp_path, *tmp_path.rglob("*")])

    def broken(descriptor):
        if os.fstat(descriptor).st_ino == (tmp_path / "b/d/e").stat().st_ino:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output error"):
        sync_files(tmp_path)
