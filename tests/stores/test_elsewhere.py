"""Test that what does not take a path on a store says so in one sentence, and makes no folder that is called "s3:"."""

import os

import pytest

import soups
from soups.cli import main
from soups.files import any_path, local_path
from soups.stores import StorePath, is_store

URL = "s3://bucket/place"
COMMANDS = [
    ("run", "--config", URL),
    ("pool", "export", "pool:a", URL),
    ("merge", URL, "out"),
    ("merge", "--method", "uniform", "--members", "a", "--out", "out", "--align", URL),
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_refuse_what_they_do_not_take(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*words]) == 2
    error = capsys.readouterr().err
    assert f"'{URL}' is a URL: give a local path" in error and error.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_functions_refuse_what_they_do_not_take(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"is a URL: give a local path.*s3:// and gs:// are for pools, members, workd"):
        soups.pool.save_soup(URL, {"w": 1.0})
    assert os.listdir(tmp_path) == []


def test_paths_of_stores_are_no_local_paths(tmp_path):
    path = any_path("gs://bucket/a/b.txt")
    assert isinstance(path, StorePath) and is_store(path) and any_path(path) is path
    assert (path.name, path.stem, path.suffix, str(path.parent)) == ("b.txt", "b", ".txt", "gs://bucket/a")
    assert str(path.parent / "c" / "d") == "gs://bucket/a/c/d" and path.with_name("c") == any_path("gs://bucket/a/c")
    assert [str(place) for place in path.parents] == ["gs://bucket/a", "gs://bucket"]
    with pytest.raises(TypeError):
        os.fspath(path)
    with pytest.raises(ValueError, match="is a URL"):
        local_path(path)
    assert any_path(tmp_path) == tmp_path
