"""Test that every path of every command is one of this machine, and that outputs are looked at before any work."""

import os
import pathlib

import numpy as np
import pytest

import soups
from soups import state
from soups.cli import main
from soups.formats import Writer, open_checkpoint, write_safetensors
from soups.pool import load_checkpoint, save_checkpoint, save_soup
from soups.report import write_report
from soups.writers import open_writer

# commands that take paths on stores look at the name of the bucket first, and those two are none
URLS = ["gs://b/model", "s3://b/m", "https://huggingface.co/a/b", "file:///tmp/m", "hf://a/b"]
LINEAR = ["merge", "--method", "linear", "--members"]


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize(
    "words",
    [
        ["merge", "URL", "out"],
        ["merge", "recipe.yml", "URL"],
        ["merge", "recipe.yml", "--out", "URL"],
        ["merge", "recipe.yml", "--out", "URL:soup", "--format", "pool"],
        ["merge", "--verify", "URL"],
        ["merge", "--plugin", "URL", "--methods"],
        [*LINEAR, "a", "URL", "--out", "out"],
        [*LINEAR, "a+URL", "--out", "out"],
        [*LINEAR, "a", "--base", "URL", "--out", "out"],
        [*LINEAR, "a", "--align", "URL", "--out", "out"],
        ["pool", "list", "URL"],
        ["pool", "show", "URL", "name"],
        ["pool", "verify", "URL"],
        ["pool", "remove", "URL", "name"],
        ["pool", "add", "URL", "name", "checkpoint"],
        ["pool", "add", "pool", "name", "URL"],
        ["pool", "import", "--arch", "resnet50", "--pool", "URL", "file.pt"],
        ["pool", "import", "--arch", "resnet50", "--pool", "pool", "URL"],
        ["pool", "import", "--arch", "resnet50", "--pool", "pool", "file.pt", "--hparams", "URL"],
        ["run", "--config", "URL"],
        ["cook", "URL", "--held-out", "a:b", "--test", "a:b", "--workdir", "out"],
        ["cook", "pool", "--held-out", "a:b", "--test", "a:b", "--workdir", "URL"],
        ["report", "URL"],
        ["predict", "--pool", "URL", "--member", "a", "--images", "images", "--out", "out.npz"],
        ["predict", "--weights", "file.pt", "--arch", "resnet50", "--images", "URL", "--out", "out.npz"],
        ["zero-shot", "--arch", "clip-vit-b32", "--clip", "file.pt", "--tokenizer", "vocabulary", "--out", "URL"],
    ],
    ids=" ".join,
)
def test_urls_are_refused(words, url, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([word.replace("URL", url) for word in words]) == 2
    err = capsys.readouterr().err
    assert "is a URL: give a local path" in err or (url[:5] in ("gs://", "s3://") and "does not name a bucket" in err)
    assert url in err and err.count("\n") == 1
    assert not os.listdir(tmp_path)


ONE = {"w": np.ones(3, np.float32)}
IN_PYTHON = {
    "open_checkpoint": open_checkpoint,
    "Writer": lambda url: Writer(url, {"w": ((3,), np.dtype(np.float32))}),
    "write_safetensors": lambda url: write_safetensors(url, ONE),
    "load_checkpoint": load_checkpoint,
    "save_checkpoint": lambda url: save_checkpoint(url, ONE),
    "Pool": soups.Pool,
    "save_soup": lambda url: save_soup(url, ONE),
    "journal": lambda url: soups.greedy([ONE], lambda params: 1.0, journal=url),
    "open_writer": lambda url: open_writer(url).__enter__(),
    "write_report": write_report,
    "state": state.read,
}


@pytest.mark.parametrize("place", [str, pathlib.Path])
@pytest.mark.parametrize("function", IN_PYTHON)
def test_urls_are_refused_in_python(function, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"'gs:/+b/model' (is a URL: give a local path|does not name a bucket)"):
        IN_PYTHON[function](place("gs://b/model"))
    assert not os.listdir(tmp_path)


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    write_safetensors(tmp_path / "a" / "model.safetensors", {"w": np.ones(3, np.float32)})
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "file").write_text("")
    soups.Pool("pool").add("a", {"w": np.ones(3, np.float32)}, {})


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("a", "a exists: choose a new path for the merge"),
        ("file", "file exists"),
        ("dangling", "dangling exists"),
        ("a/out", "a/out would lie inside the model a: choose a place beside it"),
        ("link/deep/out", "link/deep/out would lie inside the model a"),
        ("b/../a/out", "would lie inside the model a"),
        ("file/deep/out", "cannot write file/deep/out: "),
        ("", "is not a path: it is empty"),
        ("pool:soup", "pool:soup would be a folder beside the pool: --format pool writes a member"),
    ],
)
@pytest.mark.parametrize("kind", ["huggingface", "orbax"])
def test_places_are_checked_before_any_work(model, tmp_path, capsys, out, message, kind):
    before = sorted(tmp_path.rglob("*"))
    for more in ([], ["--dry-run"]):
        assert main([*LINEAR, "a", "a", "--out", out, "--format", kind, *more]) == 2
        assert message in capsys.readouterr().err
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", ["orbax", "pool"])
def test_orbax_writes_to_no_path_with_a_backslash(model, tmp_path, capsys, kind):
    before = sorted(tmp_path.rglob("*"))
    assert main([*LINEAR, "a", "a", "--out", "new\\out:soup", "--format", kind]) == 2
    assert "new\\out:soup has a backslash, which Orbax takes for a slash" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "option"),
    [
        ([*LINEAR, "a", "--members", "a", "--out", "new"], "--members"),
        ([*LINEAR, "a", "a", "--out", "new", "--weight", "1", "--weight=2"], "--weight"),
        ([*LINEAR, "a", "a", "--out", "new", "--keep_first", "w", "--keep-first", "v"], "--keep-first"),
        ([*LINEAR, "a", "a", "--out", "new", "--method", "ties"], "--method"),
        (["pool", "add", "new", "n", "a", "--metadata", "{}", "--metadata", "{}"], "--metadata"),
    ],
)
def test_no_option_takes_the_place_of_itself(model, tmp_path, capsys, words, option):
    assert main(words) == 2
    assert f"{option} is given 2 times" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_place_without_permission_is_named(model, monkeypatch, capsys):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    assert main([*LINEAR, "a", "a", "--out", "new/out"]) == 2
    assert "cannot write new/out: there is no permission to write in " in capsys.readouterr().err


def test_names_of_tensors_and_files_are_printed_as_escapes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {
        "a\x1b[31m": {"w\x1b[2J": np.ones(2, np.float32), "n\x07": np.arange(2)},
        "b\x9b": {"w": np.ones(2, np.float32)},
    }
    for name, leaves in names.items():
        write_safetensors(tmp_path / name, leaves)
    assert main([*LINEAR, *names, "--out", "out"]) == 2
    assert main([*LINEAR, "a\x1b[31m", "a\x1b[31m", "--out", "out\x1b[0m"]) == 0
    assert main(["merge", "--verify", "out\x1b[0m"]) == 0
    text = "".join(capsys.readouterr())
    assert all(line.isprintable() for line in text.splitlines())
    assert all(shown in text for shown in (r"a\x1b[31m", r"w\x1b[2J", r"copied, not merged: n\x07", r"out\x1b[0m"))


def test_names_that_are_not_utf8(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name, out = os.fsdecode(b"caf\xe9"), os.fsdecode(b"out\xff")
    os.mkdir(name)
    write_safetensors(os.path.join(name, "model.safetensors"), {"w": np.ones(2, np.float32)})
    for words in ([name, name], ["link", "--base", name]):
        assert main([*LINEAR, *words, "--out", out]) == 2
        message = r"the name caf\xe9 is not UTF-8, as a recipe must be: rename it, or give a link to it"
        assert message in capsys.readouterr().err
    os.symlink(name, "link")
    assert main([*LINEAR, "link", "link", "--out", out]) == 0, capsys.readouterr().err
    assert r"wrote out\xff in" in capsys.readouterr().out
    assert main(["merge", "--verify", out]) == 0
