"""Test opening folders: single files, shards with an index, Hugging Face's cache, and links that lead out."""

import json
import shutil

import numpy as np
import pytest

from soups.formats import CheckpointError, open_checkpoint, write_safetensors

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def write_index(folder, weight_map, name=INDEX):
    (folder / name).write_text(json.dumps({"metadata": {"total_size": 1.5}, "weight_map": weight_map}))


@pytest.fixture
def shards(tmp_path):
    """Return a folder of two shards and an index."""
    folder = tmp_path / "model"
    folder.mkdir()
    write_safetensors(folder / SECOND, {"c": np.float32([3])}, {"format": "pt", "shard": "2"})
    write_safetensors(folder / FIRST, {"b": np.float32([2]), "a": np.float32([1])}, {"format": "pt", "shard": "1"})
    write_index(folder, {"a": FIRST, "c": SECOND, "b": FIRST})
    return folder


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        open_checkpoint(tmp_path / "x.safetensors")


def test_a_name_of_another_kind(tmp_path):
    (tmp_path / "x.h5").write_bytes(b"\0" * 100)
    with pytest.raises(CheckpointError, match=r"x\.h5 is of an unknown kind, .* known are \.safetensors, \.gguf"):
        open_checkpoint(tmp_path / "x.h5")


def test_shards_come_one_after_the_other(shards):
    checkpoint = open_checkpoint(shards)
    assert list(checkpoint.leaves) == ["b", "a", "c"]
    assert [leaf.file.name for leaf in checkpoint.leaves.values()] == [FIRST, FIRST, SECOND]
    assert [checkpoint.read(name).tolist() for name in "abc"] == [[1], [2], [3]]
    assert checkpoint.metadata == {"format": "pt", "shard": "1"} and checkpoint.path == shards


def test_the_order_of_preference(shards, make, floats):
    leaf = make.mapping({"torch": make.tensor(make.storage("FloatStorage", "0", 6), (6,), (1,))})
    make.write_zip(shards / "pytorch_model.bin", make.pickled(leaf), {"0": floats[1]})
    assert set(open_checkpoint(shards).leaves) == {"a", "b", "c"}
    write_safetensors(shards / "model.safetensors", {"single": np.float32([1])})
    assert set(open_checkpoint(shards).leaves) == {"single"}
    (shards / "model.safetensors").unlink()
    (shards / INDEX).unlink()
    assert set(open_checkpoint(str(shards)).leaves) == {"torch"}


def test_torch_shards_with_ties(tmp_path, make, floats):
    leaf = make.tensor(make.storage("FloatStorage", "0", 6), (6,), (1,))
    for name, items in {"1.bin": {"a": leaf, "tied": leaf, "step": b"K\x01"}, "2.bin": {"b": leaf}}.items():
        make.write_zip(tmp_path / name, make.pickled(make.mapping(items)), {"0": floats[1]})
    write_index(tmp_path, {"a": "1.bin", "tied": "1.bin", "b": "2.bin"}, "pytorch_model.bin.index.json")
    checkpoint = open_checkpoint(tmp_path)
    assert list(checkpoint.leaves) == ["a", "b"] and checkpoint.aliases == {"tied": "a"}
    assert checkpoint.metadata == {} and checkpoint.notes == ("left out of 1.bin: 'step'",)
    np.testing.assert_array_equal(checkpoint.read("b"), floats[0])


def test_a_folder_of_other_files_says_which(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds none of model\.safetensors, .*pytorch_model\.bin\.index\.json$"):
        open_checkpoint(tmp_path)
    write_safetensors(tmp_path / "adapter_model.safetensors", {"a": np.zeros(1)})
    with pytest.raises(CheckpointError, match=r"open one of its files by name: 'adapter_model\.safetensors'"):
        open_checkpoint(tmp_path)


def test_a_folder_of_models_says_which(tmp_path):
    for name, file in {"checkpoint-20": "model.safetensors", "checkpoint-10": "pytorch_model.bin.index.json"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / file).touch()
    (tmp_path / "runs").mkdir()
    with pytest.raises(
        CheckpointError, match=r"; there are models in it: name one of 'checkpoint-10', 'checkpoint-20'$"
    ):
        open_checkpoint(tmp_path)


def test_a_folder_in_the_place_of_a_file(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a directory"):
        open_checkpoint(tmp_path)


def test_every_difference_of_index_and_shards_is_listed(shards):
    write_index(shards, {"a": FIRST, "b": SECOND, "c": SECOND, "d": SECOND})
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(shards)
    message = str(error.value)
    assert f"+ {FIRST} also holds 'b'" in message and f"- {SECOND} lacks 'b', 'd'" in message


def test_missing_shards_are_listed(shards):
    (shards / FIRST).unlink()
    with pytest.raises(CheckpointError, match=f"names shards that do not exist: '{FIRST}'"):
        open_checkpoint(shards)


def test_a_tensor_in_two_shards(shards):
    write_safetensors(shards / SECOND, {"c": np.float32([3]), "a": np.float32([1])})
    with pytest.raises(CheckpointError, match=f"{SECOND} also holds 'a'"):
        open_checkpoint(shards)


INDICES = {
    "no JSON": ("{", "is not valid JSON"),
    "a list": ("[]", "is not a JSON object"),
    "no map": ('{"metadata": {}}', "must have a weight_map"),
    "an empty map": ('{"weight_map": {}}', "must have a weight_map"),
    "numbers as files": ('{"weight_map": {"a": 1}}', "must have a weight_map"),
    "a name twice": ('{"weight_map": {"a": "x", "a": "y"}}', "'a' appears twice"),
    "deep nesting": ("[" * 100_000, "is not valid JSON"),
}


@pytest.mark.parametrize("case", INDICES)
def test_refuses_indices(case, shards):
    content, message = INDICES[case]
    (shards / INDEX).write_text(content)
    with pytest.raises(CheckpointError, match=f"{INDEX}.*{message}"):
        open_checkpoint(shards)


# --- Ways out of the folder ---


@pytest.mark.parametrize("name", ["../out.safetensors", "sub/../../out.safetensors", "{}/out.safetensors", "", "a\0b"])
def test_index_entries_stay_in_the_folder(name, shards, tmp_path):
    write_safetensors(tmp_path / "out.safetensors", {"a": np.zeros(1)})
    write_index(shards, {"a": name.format(tmp_path)})
    with pytest.raises(CheckpointError, match="which is not a file of this folder"):
        open_checkpoint(shards)


@pytest.mark.parametrize("name", [FIRST, INDEX, "model.safetensors"])
def test_links_that_lead_out_are_refused(name, shards, tmp_path):
    outside = tmp_path / "outside"
    shutil.move(shards / (name if (shards / name).exists() else FIRST), outside)
    (shards / name).symlink_to(outside)
    with pytest.raises(CheckpointError, match=f"{name} is a link that leads out of its folder"):
        open_checkpoint(shards)


def test_a_linked_folder_that_leads_out_is_refused(shards, tmp_path):
    (tmp_path / "other").mkdir()
    shutil.move(shards / FIRST, tmp_path / "other" / FIRST)
    (shards / "sub").symlink_to(tmp_path / "other")
    write_index(shards, {"a": f"sub/{FIRST}", "b": f"sub/{FIRST}", "c": SECOND})
    with pytest.raises(CheckpointError, match="is a link that leads out of its folder"):
        open_checkpoint(shards)


def test_links_within_the_folder_and_to_the_folder_work(shards, tmp_path):
    (shards / "files").mkdir()
    shutil.move(shards / FIRST, shards / "files" / "x")
    (shards / FIRST).symlink_to("files/x")
    (tmp_path / "link").symlink_to(shards)
    for folder in (shards, tmp_path / "link"):
        assert open_checkpoint(folder).read("a").tolist() == [1]


def test_a_file_that_the_user_names_may_be_a_link(tmp_path):
    write_safetensors(tmp_path / "blob", {"a": np.float32([4])})
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x.safetensors").symlink_to(tmp_path / "blob")
    assert open_checkpoint(tmp_path / "folder" / "x.safetensors").read("a").tolist() == [4]


def test_the_cache_of_hugging_face(shards, tmp_path):
    model = tmp_path / "hub" / "models--org--name"
    (model / "blobs").mkdir(parents=True)
    snapshot = model / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    for index, file in enumerate(sorted(shards.iterdir())):
        shutil.move(file, model / "blobs" / f"{index:064x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{index:064x}")
    assert open_checkpoint(snapshot).read("c").tolist() == [3]
    local = tmp_path / "local"  # of `huggingface-cli download --local-dir`
    local.mkdir()
    for file in snapshot.iterdir():
        (local / file.name).symlink_to(file.resolve())
    assert open_checkpoint(local).read("c").tolist() == [3]


@pytest.mark.parametrize(
    "target", ["models--org--name/blobs/model", "models--org--name/refs/{}", "datasets--name/blobs/{}", "x/blobs/{}"]
)
def test_only_blobs_of_models_are_linked(target, shards, tmp_path):
    outside = tmp_path / "hub" / target.format("0a" * 20)
    outside.parent.mkdir(parents=True)
    shutil.move(shards / FIRST, outside)
    (shards / FIRST).symlink_to(outside)
    with pytest.raises(CheckpointError, match=f"{FIRST} is a link that leads out of its folder"):
        open_checkpoint(shards)


def test_a_tree_of_flat_names_is_chosen(shards, tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"model.a.b": np.ones(2), "model.c": np.ones(1), "ema.a.b": np.zeros(2)})
    checkpoint = open_checkpoint(path, "ema")
    assert checkpoint.read("a.b").tolist() == [0, 0] and list(checkpoint.leaves) == ["a.b"]
    assert checkpoint.notes == ("left out of x.safetensors: 'model'",)
    assert set(open_checkpoint(path, "model.a").leaves) == set(open_checkpoint(path, "model/a").leaves) == {"b"}
    assert set(open_checkpoint(path, ".").leaves) == {"model.a.b", "model.c", "ema.a.b"}
    with pytest.raises(CheckpointError, match=r"no tree 'emma'; there are: 'model', 'ema', 'model/a'"):
        open_checkpoint(path, "emma")
    with pytest.raises(CheckpointError, match="has no tree 'a'; it holds tensors, not trees"):
        open_checkpoint(shards, "a")


def test_a_tree_of_shards_is_chosen(tmp_path, make, floats):
    tensors = {name: make.tensor(make.storage("FloatStorage", "0", 6), (6,), (1,)) for name in ("m.a", "m.b", "n.a")}
    files = {"1.bin": ("m.a", "n.a"), "2.bin": ("m.b",)}
    for name, own in files.items():
        make.write_zip(tmp_path / name, make.pickled(make.mapping({x: tensors[x] for x in own})), {"0": floats[1]})
    write_index(tmp_path, {x: name for name, own in files.items() for x in own}, "pytorch_model.bin.index.json")
    checkpoint = open_checkpoint(tmp_path, "m")
    assert set(checkpoint.leaves) == {"a", "b"} and checkpoint.notes == ("left out: 'n'",)
    # the tensor that it is tied to lies in another tree
    assert set(open_checkpoint(tmp_path, "n").leaves) == {"a"}
