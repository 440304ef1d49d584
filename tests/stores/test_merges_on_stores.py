"""Test merges from object stores to object stores: streamed, gone on with after a kill, the same to the bit."""

import re
import signal
import subprocess
import sys

import numpy as np
import pytest

import soups
from soups import merging, stores
from soups.cli import main
from soups.formats import CheckpointError, open_checkpoint, write_safetensors
from soups.stores import store_path

RNG = np.random.default_rng(0)
SHAPES = {"e": (700, 1000), "b": (7,), "s": (), "t": (100, 30), "empty": (0, 3), "u": (900, 900)}
NAMES = "a", "b", "c"
MEMBERS = {
    name: {leaf: RNG.standard_normal(shape).astype(np.float32) for leaf, shape in SHAPES.items()} for name in NAMES
}
SHARDED = ("--shard-size", "3MB")  # e and u have a shard each


def put(folder, files):
    for name, path in files.items():
        (store_path(folder) / name).write_bytes(path.read_bytes())


@pytest.fixture
def models(folder, tmp_path):
    """Return the URLs of three folders of Hugging Face on a store; the same lie in `tmp_path`."""
    for name, leaves in MEMBERS.items():
        (tmp_path / name).mkdir()
        write_safetensors(tmp_path / name / "model.safetensors", leaves)
        (tmp_path / name / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
        (tmp_path / name / "vocab.txt").write_text("a\nb\n")
        put(f"{folder}/{name}", {path.name: path for path in (tmp_path / name).iterdir()})
    return [f"{folder}/{name}" for name in NAMES]


def merge(members, out, *options):
    return main(
        ["merge", "--quiet", "--method", "uniform", "--members", *map(str, members), "--out", str(out), *options]
    )


def check(out, tmp_path, *options):
    """Compare an output with that of the same merge of local files."""
    assert merge([tmp_path / name for name in NAMES], tmp_path / "there", *options) == 0
    here, there = open_checkpoint(out), open_checkpoint(tmp_path / "there")
    assert here.leaves.keys() == there.leaves.keys()
    for name in there.leaves:
        a, b = here.read(name), there.read(name)
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize(("store", "options"), [("s3", ()), ("s3", SHARDED), ("gs", SHARDED)])
def test_a_merge_streams_from_store_to_store(store, options, models, folder, tmp_path, proxy):
    folder, models = folder.replace("s3", store), [model.replace("s3", store) for model in models]
    out = f"{folder}/out"
    assert merge(models, out, *options) == 0
    names = {path.relative_to(store_path(out)) for path in store_path(out).sizes()}
    weights = {name for name in names if "safetensors" in name}
    assert names - weights == {"config.json", "vocab.txt", "merge.json", "recipe.yml", "README.md"}
    assert len(weights) == (3 if options else 1)
    assert not list(store_path(folder).glob(".*"))  # neither leases nor what is unfinished
    check(out, tmp_path, *options)
    assert main(["merge", "--quiet", "--verify", out]) == 0
    assert merge(models, out, *options) == 2  # a new place is needed
    name = folder.rpartition("/")[2]
    listings = [request for request in proxy.seen if "list-type=2" in request]
    assert listings and all(f"prefix={name}%2F" in request for request in listings)


def test_files_and_local_places(models, folder, tmp_path):
    files = [f"{model}/model.safetensors" for model in models]
    for out in (f"{folder}/soup.safetensors", tmp_path / "soup.safetensors"):
        assert merge(files, out) == 0
        assert main(["merge", "--quiet", "--verify", str(out)]) == 0
    check(f"{folder}/soup.safetensors", tmp_path)
    assert (store_path(folder) / "soup.safetensors.merge.json").is_file()
    assert merge([tmp_path / name for name in NAMES], f"{folder}/up") == 0
    assert (
        open_checkpoint(f"{folder}/up").read("e").tobytes() == open_checkpoint(tmp_path / "there").read("e").tobytes()
    )


def test_members_of_pools_on_stores(models, folder):
    pool = f"{folder}/pool"
    for name, model in zip(NAMES, models, strict=True):
        assert main(["pool", "add", "--quiet", pool, name, model]) == 0
    assert soups.Pool(pool).names == list(NAMES)
    assert merge([pool], f"{pool}:soup", "--format", "pool") == 0
    assert main(["merge", "--quiet", "--verify", f"{pool}:soup"]) == 0
    assert merge([f"{pool}:a", f"{pool}:b"], f"{folder}/out") == 0
    assert (store_path(folder) / "out/config.json").is_file()
    wanted = ((MEMBERS["a"]["e"].astype(np.float64) + MEMBERS["b"]["e"]) / 2).astype(np.float32)
    np.testing.assert_allclose(open_checkpoint(f"{folder}/out").read("e"), wanted, rtol=1e-6)


def test_parts_of_tensors_ask_for_their_rows(models, proxy):
    model = open_checkpoint(models[0])
    proxy.seen.clear()
    for index in [(slice(3, 5), ...), (slice(3, 5), slice(1, 2)), (slice(None), slice(2)), ..., (slice(5, 2), ...)]:
        np.testing.assert_array_equal(model.read("e", index), MEMBERS["a"]["e"][index])
    for name in SHAPES:
        np.testing.assert_array_equal(model.read(name), MEMBERS["a"][name])
    assert not any("config" in request for request in proxy.seen)


def test_what_changed_since_it_was_planned_is_an_error(models, folder):
    plan = merging.plan(merging.parse_recipe(recipe(models)), merging.open_model)
    place = store_path(models[1]) / "model.safetensors"
    content = bytearray(place.read_bytes())
    content[-1] ^= 1
    place.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"/b/model\.safetensors has changed since its header was read"):
        merging.merge_to_folder(plan, f"{folder}/out")
    assert not (store_path(folder) / "out").exists()


def recipe(models):
    members = "".join(f"  - model: {model}\n    parameters: {{weight: 1.0}}\n" for model in models)
    return f"merge_method: linear\nmodels:\n{members}"


CHILD = """
import sys
from soups import leases
leases.SECONDS = 2.5
from soups.cli import main
sys.exit(main(["merge", "--method", "uniform", "--threads", "2", *sys.argv[1:]]))
"""


@pytest.mark.parametrize("place", ["model-00002-of-00002", "index.json"])
def test_a_merge_that_was_killed_goes_on(place, models, folder, tmp_path, proxy):
    out = f"{folder}/out"
    arguments = ["--members", *models, "--out", out, *SHARDED]
    process = None

    def kill(method, path):
        if process and "/out/" in path and place in path and method in ("PUT", "POST"):
            process.kill()
            return True
        return False

    proxy.fails = kill
    process = subprocess.Popen([sys.executable, "-c", CHILD, *arguments])
    assert process.wait() == -signal.SIGKILL
    proxy.mend()
    with pytest.raises(CheckpointError, match="holds none of"):
        open_checkpoint(out)
    proxy.seen.clear()
    assert merge(models, out, *SHARDED, "--threads", "2") == 0
    first = [request for request in proxy.seen if "00001-of" in request and request.startswith(("PUT", "POST"))]
    assert first == []  # the shard that was finished is not sent again
    check(out, tmp_path, *SHARDED)
    assert main(["merge", "--quiet", "--verify", out]) == 0


def test_two_merges_to_one_place(models, folder, tmp_path, proxy):
    proxy.seconds = 0.05
    arguments = ["--members", *models, "--out", f"{folder}/out"]
    processes = [
        subprocess.Popen([sys.executable, "-c", CHILD, *arguments], stderr=subprocess.PIPE, text=True) for _ in "ab"
    ]
    errors = [process.communicate()[1] for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 2]
    assert re.search("another merge is writing to|exists: choose a new path for the merge", "".join(errors))
    check(f"{folder}/out", tmp_path)


def test_a_store_that_fails_now_and_then(models, folder, tmp_path, proxy):
    counts = {}

    def third(method, path):
        counts[method] = counts.get(method, 0) + 1
        return counts[method] % 3 == 1

    proxy.fails = third
    assert merge(models, f"{folder}/out") == 0
    proxy.mend()
    check(f"{folder}/out", tmp_path)


def test_a_merge_that_fails_leaves_no_upload(models, folder, proxy, capsys, monkeypatch):
    monkeypatch.setattr(stores, "RETRIES", 1)
    stores._store.cache_clear()
    proxy.fails = lambda method, path: method in ("PUT", "POST") and "/out/model" in path
    assert merge(models, f"{folder}/out") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "the store failed: it answered 503 Service Unavailable" in error
    proxy.mend()
    assert merge(models, f"{folder}/out") == 0


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("out.npz", (), "a file on a store must end in .safetensors"),
        ("out.bin", (), "would be a folder: on a store a merge writes folders, and files that end in .safetensors"),
        ("out", ("--format", "orbax"), "Orbax checkpoints are not written to a store"),
        ("a/out", (), "would lie inside the model"),
        ("a", (), "exists: choose a new path for the merge"),
    ],
)
def test_places_that_are_refused(out, options, message, models, folder, capsys):
    assert merge(models, f"{folder}/{out}", *options) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("x.bin", "no checkpoint at"),
        ("b/none.safetensors", "no checkpoint at"),
        ("nothing", "no checkpoint at"),
        ("a*", "patterns on stores choose members of pools alone"),
    ],
)
def test_members_that_are_not_read(path, message, models, folder, capsys, tmp_path):
    assert merge([models[0], f"{folder}/{path}"], tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
