"""Test that models of the hub are found in its local cache, and nowhere else."""

import json
import pathlib

import numpy as np
import pytest

from soups import merging
from soups.cli import main
from soups.formats import CheckpointError, open_checkpoint, write_safetensors
from soups.formats.hub import cache, cached_model, model_id, not_cached, pinned
from soups.merging.lora import absolute_reference
from soups.pool import Pool

COMMIT, OLDER = "0123456789abcdef" * 2 + "01234567", "f" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Return the folder of org/name in a cache: weights of 1 at main, of 3 at pr/1."""
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


def plan(*models, opener=merging.open_model):
    members = ", ".join(f"{{model: '{model}', parameters: {{weight: 1}}}}" for model in models)
    return merging.plan(merging.parse_recipe(f"{{merge_method: linear, models: [{members}]}}"), opener)


@pytest.mark.parametrize(
    ("reference", "commit"),
    [("org/name", COMMIT), ("org/name@main", COMMIT), ("org/name@pr/1", OLDER), (f"org/name@{OLDER}", OLDER)],
)
def test_a_cached_model_is_found(hub, reference, commit):
    folder = cached_model(reference)
    assert folder == str(hub / "snapshots" / commit)
    assert model_id(folder) == "org/name" and pinned(folder) == f"org/name@{commit}"
    for opened in (open_checkpoint(reference), merging.open_model(reference)):
        assert opened.read("w").tolist() == [1.0 if commit == COMMIT else 3.0] * 3


@pytest.mark.parametrize(
    "reference",
    [
        *["org/other", "org/name@v2", "org/name@gone", "org/name@odd", "org/name@../main", "org/name@../refs/main"],
        *["a/b/c", "./org/name", "pool:m", "org--name", "org/nàme", "org/name.git", "org/-name"],
    ],
)
def test_what_is_not_cached_stays_as_it_is(hub, reference):
    assert cached_model(reference) == reference


@pytest.mark.parametrize("reference", ["org/name", "org/name@main", "org/name@params"])
def test_a_local_path_goes_first(hub, reference):
    pathlib.Path("org/name").mkdir(parents=True)
    assert cached_model(reference) == reference


def test_that_a_local_path_went_first_is_said_with_what_names_the_other(hub):
    write_safetensors("m.safetensors", {"w": np.zeros(3, np.float32)})
    pathlib.Path("org").mkdir()
    pathlib.Path("m.safetensors").rename("org/name")
    (note,) = plan("org/name").notes
    assert note == f"org/name is the local path; the model of the hub of this name is org/name@{COMMIT}"
    assert plan(f"org/name@{COMMIT}").notes == ()
    assert merging.open_model(f"org/name@{COMMIT}").read("w").tolist() == [1, 1, 1]


def test_recipes_name_cached_models(hub):
    nested = "{model: {path: org/name, revision: pr/1}}"
    text = f"{{merge_method: linear, models: [org/name, {nested}], parameters: {{weight: 1}}}}"
    made = merging.plan(merging.parse_recipe(text), merging.open_model)
    assert made.job.models == ["org/name", "org/name@pr/1"]
    out = merging.merge_to_folder(made, "out")
    np.testing.assert_array_equal(open_checkpoint(out).read("w"), np.full(3, 2.0, np.float32))
    assert absolute_reference("org/name+org/name@pr/1") == f"org/name@{COMMIT}+org/name@{OLDER}"


def test_a_record_has_commits_that_are_found_in_any_cache(hub, tmp_path, monkeypatch):
    out = merging.merge_to_folder(plan("org/name", "org/name@pr/1"), tmp_path / "out")
    paths = [entry["path"] for entry in json.loads((out / "merge.json").read_text())["inputs"].values()]
    assert paths == [f"org/name@{COMMIT}", f"org/name@{OLDER}"]
    (hub / "refs" / "main").write_text(OLDER)  # a newer one was downloaded
    (tmp_path / "hub").rename(tmp_path / "elsewhere")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    again = merging.plan_again(merging.read_record(out))
    assert merging.verify_output(again, out) == []


def test_every_command_that_takes_a_model_takes_an_id(hub, tmp_path, capsys):
    for words in (
        ["merge", "--method", "wise_ft", "--base", "org/name", "--members", "org/name@pr/1", "--out", "out"],
        ["pool", "add", "pool", "member", "org/name@pr/1"],
    ):
        assert main(words) == 0, capsys.readouterr().err
    np.testing.assert_array_equal(open_checkpoint("out").read("w"), np.full(3, 2.0, np.float32))
    assert Pool("pool")["member"]["w"].tolist() == [3, 3, 3]
    capsys.readouterr()
    for words in (
        ["merge", "--method", "uniform", "--members", "org/name", "org/other@v1", "--out", "out2"],
        ["merge", "--method", "uniform", "--members", "org/name+org/other@v1", "--out", "out2"],
        ["pool", "add", "pool", "new", "org/other@v1"],
        ["pool", "import", "--arch", "clip-vit-b32", "--pool", "pool", "org/other@v1"],
    ):
        assert main(words) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "to download it, hf download org/other --revision v1" in err


def test_what_is_nowhere_says_how_to_download_it(hub):
    message = "no checkpoint at org/other@v1: .* not there; the Hugging Face cache .*hub has no model org/other: "
    for opener in (merging.open_model, open_checkpoint):
        with pytest.raises(FileNotFoundError, match=f"{message}to download it, hf download org/other --revision v1$"):
            opener("org/other@v1")
    with pytest.raises(FileNotFoundError, match=r"model org/name has only main, pr/1: .* org/name --revision v2$"):
        merging.open_model("org/name@v2")
    (hub / "refs").rename(hub / "lost")
    assert f"has only {COMMIT}, {OLDER}: to" in not_cached("org/name")
    assert not_cached("folder") == not_cached("/a/b") == ""


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("https://huggingface.co/org/name", True),
        ("https://huggingface.co/org/name/tree/main", True),
        ("hf://org/name/", True),
        ("https://huggingface.co/datasets/org/name", False),
        ("https://example.org/org/name", False),
    ],
)
def test_a_url_of_the_hub_says_the_id(url, named):
    with pytest.raises(ValueError, match="is a URL") as error:
        merging.open_model(url)
    assert str(error.value).endswith("its id, org/name") == named


# --- What is not whole ---


def link(hub, name, content=None, commit=COMMIT):
    """Put a file into a snapshot as the cache has it; without content the blob is missing."""
    digest = f"{sum(name.encode()):064x}"
    (hub / "snapshots" / commit / name).symlink_to(f"../../blobs/{digest}")
    if content is not None:
        (hub / "blobs" / digest).write_bytes(content)


COMPLETE = f"hf download org/name --revision {COMMIT}$"


def test_a_snapshot_without_weights_says_how_to_download_the_rest(hub):
    (hub / "snapshots" / COMMIT / "model.safetensors").unlink()
    link(hub, "config.json", b"{}")  # as AutoConfig downloads it
    with pytest.raises(CheckpointError, match=f"holds none of model.safetensors.*is incomplete.*{COMPLETE}"):
        merging.open_model("org/name")


def test_missing_shards_of_a_snapshot_are_named(hub):
    (hub / "snapshots" / COMMIT / "model.safetensors").unlink()
    index = {"weight_map": {"w": "1.safetensors", "v": "2.safetensors"}}
    link(hub, "model.safetensors.index.json", json.dumps(index).encode())
    (hub / "snapshots" / COMMIT / "1.safetensors").symlink_to(f"../../blobs/{COMMIT}{'0' * 24}")
    link(hub, "2.safetensors")
    with pytest.raises(CheckpointError, match=f"shards that do not exist: '2.safetensors'; .*{COMPLETE}"):
        merging.open_model("org/name")


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json", "config.json", "vocab.json"])
def test_a_link_to_a_blob_that_is_gone_is_an_error(hub, name):
    if name.startswith("model"):
        (hub / "snapshots" / COMMIT / "model.safetensors").unlink()
    link(hub, name)
    with pytest.raises(FileNotFoundError, match=f"{name} is a link to a file that is not there; .*{COMPLETE}"):
        plan("org/name", "org/name@pr/1")


def test_other_files_of_a_snapshot_are_copied_whole_or_not_at_all(hub):
    link(hub, "LICENSE")
    with pytest.raises(FileNotFoundError, match=f"LICENSE is a link to a file that is not there; .*{COMPLETE}"):
        merging.folder_files(plan("org/name"))
    link(hub, "pytorch_model.bin")  # not copied, so it may be gone
    (hub / "blobs" / f"{sum(b'LICENSE'):064x}").write_text("free")
    assert "LICENSE" in merging.folder_files(plan("org/name"))


def test_what_a_snapshot_lacks_by_its_list_is_said(hub):
    (hub / "trees").mkdir()
    names = ["model.safetensors", "config.json", "tokenizer.json", "pytorch_model.bin", "onnx/model.json", ".gitignore"]
    listing = hub / "trees" / f"{COMMIT}.json"
    listing.write_text(json.dumps({"format_version": 1, "files": {name: {"size": 1} for name in names}}))
    notes = merging.folder_notes(plan("org/name"))
    assert len(notes) == 1 and "lacks config.json, tokenizer.json; this snapshot" in notes[0]
    for damaged in ("{", "[]", "{}", '{"files": [1]}', '{"files": 1}'):
        listing.write_text(damaged)
        assert merging.folder_notes(plan("org/name")) == []


def test_blobs_that_repositories_share_are_read(hub):
    blob = hub / "blobs" / (COMMIT + "0" * 24)
    shared = hub.parent / "blobs" / "ab" / f"ab{0:062x}"
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to("../../blobs/ab/" + shared.name)
    assert merging.open_model("org/name").read("w").tolist() == [1, 1, 1]
    other = shared.parent.with_name("cd") / shared.name  # not where the cache would have it
    other.parent.mkdir()
    shared.rename(other)
    blob.unlink()
    blob.symlink_to("../../blobs/cd/" + shared.name)
    with pytest.raises(CheckpointError, match="leads out of its folder"):
        merging.open_model("org/name")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HUGGINGFACE_HUB_CACHE": "/a"}, "/a"),
        ({"HF_HOME": "/b"}, "/b/hub"),
        ({"HF_HOME": "$WHERE/b", "WHERE": "/a"}, "/a/b/hub"),
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
