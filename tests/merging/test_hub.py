"""Test that models of the hub are found in its local cache, and nowhere else."""

import pathlib

import numpy as np
import pytest

from soups import merging
from soups.formats import open_checkpoint, write_safetensors
from soups.merging.hub import cache, cached_model, how_to_download
from soups.merging.lora import absolute_reference

COMMIT, OLDER = "0123456789abcdef" * 2 + "01234567", "f" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    model = tmp_path / "hub" / "models--org--name"
    (model / "refs" / "pr").mkdir(parents=True)
    for commit, value in ((COMMIT, 1.0), (OLDER, 3.0)):
        (model / "blobs").mkdir(exist_ok=True)
        stored = write_safetensors(tmp_path / "stored", {"w": np.full(3, value, np.float32)})
        blob = stored.rename(model / "blobs" / (commit + "0" * 24))
        folder = model / "snapshots" / commit
        folder.mkdir(parents=True)
        (folder / "model.safetensors").symlink_to(f"../../blobs/{blob.name}")
    (model / "refs" / "main").write_text(COMMIT)
    (model / "refs" / "pr" / "1").write_text(OLDER + "\n")
    (model / "refs" / "gone").write_text("a" * 40)
    (model / "refs" / "odd").write_text("../../../..")
    return model


@pytest.mark.parametrize(
    ("reference", "commit"),
    [("org/name", COMMIT), ("org/name@main", COMMIT), ("org/name@pr/1", OLDER), (f"org/name@{OLDER}", OLDER)],
)
def test_a_cached_model_is_found(hub, reference, commit):
    assert cached_model(reference) == str(hub / "snapshots" / commit)


@pytest.mark.parametrize(
    "reference",
    ["org/other", "org/name@v2", "org/name@gone", "org/name@odd", "org/name@../main", "a/b/c", "./org/name", "pool:m"],
)
def test_what_is_not_cached_stays_as_it_is(hub, reference):
    assert cached_model(reference) == reference


@pytest.mark.parametrize("reference", ["org/name", "org/name@main", "org/name@params"])
def test_a_local_path_goes_first(hub, reference):
    pathlib.Path("org/name").mkdir(parents=True)
    assert cached_model(reference) == reference


def test_recipes_name_cached_models(hub):
    nested = "{model: {path: org/name, revision: pr/1}}"
    text = f"{{merge_method: linear, models: [org/name, {nested}], parameters: {{weight: 1}}}}"
    plan = merging.plan(merging.parse_recipe(text), merging.open_model)
    assert plan.job.models == ["org/name", "org/name@pr/1"]
    out = merging.merge_to_folder(plan, "out")
    np.testing.assert_array_equal(open_checkpoint(out).read("w"), np.full(3, 2.0, np.float32))
    assert str(hub / "snapshots" / OLDER) in (out / "merge.json").read_text()
    assert absolute_reference("org/name+org/name@pr/1").count(str(hub / "snapshots")) == 2


def test_what_is_nowhere_says_how_to_download_it(hub):
    job = merging.parse_recipe("{merge_method: passthrough, models: [org/other@v1]}")
    with pytest.raises(
        FileNotFoundError, match=r"org/other is not there, nor is it in .*hub; .* hf download org/other --revision v1"
    ):
        merging.plan(job, merging.open_model)
    assert how_to_download("folder") == how_to_download("/a/b") == ""


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HUGGINGFACE_HUB_CACHE": "/a"}, "/a"),
        ({"HF_HOME": "/b"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
        ({}, "/home/me/.cache/huggingface/hub"),
    ],
)
def test_where_the_cache_is(monkeypatch, variables, expected):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **variables}.items():
        monkeypatch.setenv(name, value)
    assert cache() == pathlib.Path(expected)
