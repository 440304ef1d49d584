"""Test merges of files: the same bytes however they are made, whole or not at all, and every damage named."""

import errno
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from soups import Pool, engine, merging
from soups.formats import CheckpointError, open_checkpoint, write_safetensors
from soups.tree import flatten

SHARD = 300  # bytes: several shards of several tensors


@pytest.fixture
def ties(models):
    """Return a recipe of three members."""
    return recipe("ties", models)


def recipe(method, models, vocabulary="mergekit", **parameters):
    of_mergekit = {"weight": 0.5, "density": 0.5} if vocabulary == "mergekit" else {}
    return {
        "vocabulary": vocabulary,
        "merge_method": method,
        "base_model": models["base"],
        "models": [models[x] for x in "abc"],
        "parameters": of_mergekit | parameters,
    }


# --- The same bytes ---

ELEMENTWISE = [
    *[("mergekit", method) for method in ("task_arithmetic", "ties", "breadcrumbs_ties")],
    *[("published", method) for method in ("ties", "dare", "della", "magmax", "breadcrumbs")],
]
REDUCING = [("mergekit", method) for method in ("dare_ties", "della", "model_stock", "sce")]


@pytest.mark.parametrize(("vocabulary", "method"), ELEMENTWISE + REDUCING)
def test_threads_and_blocks_change_nothing(models, small, tmp_path, monkeypatch, vocabulary, method):
    given = recipe(method, models, vocabulary)
    if method in ("model_stock", "sce"):
        given["parameters"] = {}
    small.merge(given, tmp_path / "one", threads=1)
    expected = small.content(tmp_path / "one")
    for threads in (2, 5):
        small.merge(given, tmp_path / f"{threads}", threads=threads)
        assert small.content(tmp_path / f"{threads}") == expected
    for block in (7, 16):
        monkeypatch.setattr(engine, "BLOCK", block)
        merged = small.merge(given, tmp_path / f"block {block}", threads=2)
        if (vocabulary, method) in ELEMENTWISE:
            assert small.content(tmp_path / f"block {block}") == expected
            continue
        for name, array in small.read(tmp_path / "one").items():
            np.testing.assert_allclose(merged[name], array, rtol=0, atol=1e-6 * np.abs(array).max())


def test_a_seed_draws_other_numbers_and_the_recipes_own_goes_first(models, small, tmp_path):
    def head(place, seed, **parameters):
        return small.merge(recipe("dare_ties", models, **parameters), tmp_path / place, seed=seed)["lm_head.weight"]

    first = head("a", 1)
    np.testing.assert_array_equal(head("b", 1), first)
    assert not np.array_equal(head("c", 2), first)
    given = recipe("dare_ties", models)
    given["parameters"]["seed"] = 1
    np.testing.assert_array_equal(small.merge(given, tmp_path / "d", seed=2)["lm_head.weight"], first)


def test_shards_have_an_index_and_the_same_tensors(ties, small, tmp_path):
    whole = small.merge(ties, tmp_path / "whole")
    sharded = small.merge(ties, tmp_path / "sharded", shard_bytes=SHARD)
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "sharded").glob("*.safetensors"))
    assert len(files) > 5 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert set(index["weight_map"]) == set(whole) and set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in whole.values())
    for name, array in whole.items():
        np.testing.assert_array_equal(sharded[name], array)
    assert {path.name for path in (tmp_path / "sharded").iterdir()} == {
        *files,
        "model.safetensors.index.json",
        "merge.json",
    }


def test_progress_counts_all_bytes(ties, small, tmp_path):
    counts = []
    made = small.plan(ties)
    merging.merge_to_folder(made, tmp_path / "out", threads=1, shard_bytes=SHARD, progress=counts.append)
    assert sum(counts) == made.write_bytes


def test_the_record_is_enough_to_make_the_merge_again(ties, small, models, tmp_path):
    made = small.plan(ties, seed=4)
    merging.merge_to_folder(made, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert record["format"] == "soups.merge/1" and record["recipe"] == made.job.text and record["seed"] == 4
    assert record["method"] == "ties" and set(record["versions"]) == {"soups", "numpy"}
    assert list(record["inputs"]) == [str(models[x]) for x in ("base", "a", "b", "c")]
    digests = {entry["digest"] for entry in record["inputs"].values()}
    assert len(digests) == 4
    assert {entry["tensors"] for entry in record["inputs"].values()} == {len(small.tensors(0))}


# --- What cannot be merged ---


@pytest.fixture
def changed(models, small, tmp_path):
    """Return a function that writes a model with one tensor changed and the recipe in which it stands for another."""

    def make(stands_for, name, value, method="ties", vocabulary="mergekit"):
        leaves = small.tensors(list(models).index(stands_for))
        leaves[name] = np.asarray(value, leaves[name].dtype)
        path = small.write_model(tmp_path / "changed", leaves)
        return recipe(method, {**models, stands_for: path}, vocabulary), path

    return make


@pytest.mark.parametrize("stands_for", ["base", "a", "c"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("vocabulary", "method"),
    [("mergekit", "ties"), ("published", "ties"), ("published", "iso_c"), ("published", "pcb")],
)
def test_a_model_that_is_not_finite_is_named(changed, small, tmp_path, stands_for, bad, vocabulary, method):
    name = "model.layers.1.mlp.up_proj.weight"
    values = small.tensors(0)[name]
    values[3, 2] = bad
    given, path = changed(stands_for, name, values, method, vocabulary)
    with pytest.raises(ValueError, match=f"{path}: {name} holds NaN or infinity; leave it out"):
        small.merge(given, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_sum_that_overflows_is_named(changed, small, tmp_path):
    given, _ = changed("a", "model.norm.weight", np.full(6, 3e38), "task_arithmetic")
    given["parameters"]["weight"] = 2.0
    with pytest.raises(ValueError, match=r"the merged model.norm.weight overflows float32, though no member does"):
        small.merge(given, tmp_path / "out")
    given["parameters"]["weight"] = 1e-4
    with pytest.raises(ValueError, match=r"model.norm.weight overflows float16, though no member does"):
        small.merge(given | {"out_dtype": "float16"}, tmp_path / "out")


def test_tensors_that_are_not_floats_must_be_the_same(changed, small, models, tmp_path):
    given, path = changed("b", "model.position_ids", [0, 1, 2, 4])
    with pytest.raises(
        ValueError, match=f"model.position_ids does not hold floats .* {path} differs from {models['a']}"
    ):
        small.merge(given, tmp_path / "out")


def test_an_input_that_shrinks_after_the_plan_is_named(changed, small, tmp_path):
    given, path = changed("b", "model.position_ids", np.arange(4))
    made = small.plan(given)
    os.truncate(path / "model.safetensors", 1000)
    with pytest.raises(CheckpointError, match=r"changed.model.safetensors has changed since its header was read"):
        merging.merge_to_folder(made, tmp_path / "out")


# --- Whole or not at all ---


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite"])
def test_a_full_disk_is_named(ties, small, tmp_path, monkeypatch, call):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        with pytest.raises(OSError, match=r"cannot write .*model.safetensors: No space left"):
            small.merge(ties, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    small.merge(ties, tmp_path / "out")  # the same command goes on when there is space


class Stop(Exception):
    pass


def interrupted(plan, out, after, **options):
    """Merge until so many bytes are written, and give the unfinished folder."""
    seen = [0]

    def count(number):
        seen[0] += number
        if seen[0] > after:
            raise Stop

    with pytest.raises(Stop):
        merging.merge_to_folder(plan, out, threads=1, shard_bytes=SHARD, progress=count, **options)
    assert not out.exists()
    return out.with_name(f".{out.name}.unfinished")


def finished(folder):
    """Return the identity of each finished shard's file."""
    shards = [note.with_suffix("") for note in sorted(folder.glob("*.done"))]
    return {shard.name: (shard.stat().st_ino, shard.stat().st_mtime_ns) for shard in shards}


def test_only_the_same_merge_goes_on(models, small, tmp_path):
    own = small.write_model(tmp_path / "own", small.tensors(1))
    given = recipe("dare_ties", {**models, "a": own})
    made = small.plan(given)

    def starts_anew(place, change):
        out = tmp_path / place
        folder = interrupted(made, out, 900)
        assert len(finished(folder)) >= 2
        before = folder.stat().st_ino
        (folder / "sentinel").write_text("")
        change(out)
        return folder, before

    def other_recipe(out):
        merged = small.merge(recipe("dare_ties", {**models, "a": own}, density=0.7), out, shard_bytes=SHARD)
        clean = small.merge(recipe("dare_ties", {**models, "a": own}, density=0.7), tmp_path / "clean recipe")
        for name, array in clean.items():
            np.testing.assert_array_equal(merged[name], array)

    def other_seed(out):
        merged = small.merge(given, out, seed=8, shard_bytes=SHARD)
        clean = small.merge(given, tmp_path / "clean seed", seed=8)
        for name, array in clean.items():
            np.testing.assert_array_equal(merged[name], array)

    def other_shards(out):
        small.merge(given, out)
        assert (out / "model.safetensors").exists()

    def other_input(out):
        content = (models["b"] / "model.safetensors").read_bytes()
        (own / "model.safetensors").write_bytes(content)
        merged = small.merge(given, out, shard_bytes=SHARD)
        clean = small.merge(given, tmp_path / "clean input")
        for name, array in clean.items():
            np.testing.assert_array_equal(merged[name], array)

    for place, change in (("r", other_recipe), ("s", other_seed), ("t", other_shards), ("u", other_input)):
        starts_anew(place, change)
        assert not (tmp_path / place / "sentinel").exists()


SLOW = """
import sys, time
from soups import merging
from soups.formats import open_checkpoint
plan = merging.plan(merging.read_recipe(sys.argv[1], seed=2), open_checkpoint)
merging.merge_to_folder(plan, sys.argv[2], threads=2, shard_bytes=300, progress=lambda _: time.sleep(0.05))
"""


def test_a_killed_merge_goes_on_from_its_finished_shards(models, small, tmp_path):
    made = small.plan(recipe("dare_ties", models), seed=2)
    (tmp_path / "recipe.yml").write_text(made.job.text)
    clean, out, folder = tmp_path / "clean", tmp_path / "out", tmp_path / ".out.unfinished"
    merging.merge_to_folder(made, clean, shard_bytes=SHARD)
    arguments = [sys.executable, "-c", SLOW, tmp_path / "recipe.yml", out]
    with subprocess.Popen(arguments, cwd=pathlib.Path(__file__).parents[2]) as process:
        deadline = time.monotonic() + 60
        while len(finished(folder) if folder.exists() else {}) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    before = finished(folder)
    assert len(before) >= 3 and not out.exists()
    merging.merge_to_folder(made, out, shard_bytes=SHARD)
    assert small.content(out) == small.content(clean)
    stats = {name: (out / name).stat() for name in before}
    assert {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()} == before
    assert not folder.exists()


# --- Verification ---


def flip(path, name, element):
    """Flip one bit of an element of a tensor in a file."""
    leaf = open_checkpoint(path.parent).leaves[name]
    content = bytearray(path.read_bytes())
    content[leaf.offset + element * leaf.dtype.itemsize] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("block", [8, engine.BLOCK])
def test_verify_finds_a_changed_element(ties, small, tmp_path, monkeypatch, block):
    monkeypatch.setattr(engine, "BLOCK", block)
    made, out = small.plan(ties), tmp_path / "out"
    merging.merge_to_folder(made, out)
    assert merging.verify_output(made, out, threads=2) == []
    flip(out / "model.safetensors", "lm_head.weight", 29)
    flip(out / "model.safetensors", "model.position_ids", 2)
    assert merging.verify_output(made, out) == [
        "lm_head.weight differs from element 29 on",
        "model.position_ids differs from element 2 on",
    ]


def test_verify_finds_tensors_that_are_missing_extra_or_of_another_kind(ties, small, tmp_path):
    made, out = small.plan(ties), tmp_path / "out"
    merged = small.merge(ties, out)
    del merged["model.norm.weight"]
    merged["lm_head.weight"] = merged["lm_head.weight"].T.copy()
    merged["more"] = np.zeros(2)
    write_safetensors(out / "model.safetensors", merged)
    assert merging.verify_output(made, out) == [
        "lm_head.weight is missing, or has another shape or dtype",
        "model.norm.weight is missing, or has another shape or dtype",
        "more is extra",
    ]


def test_verify_names_an_input_that_changed(changed, small, tmp_path):
    given, path = changed("b", "model.position_ids", np.arange(4))
    small.merge(given, tmp_path / "out")
    flip(path / "model.safetensors", "model.layers.0.norm.gate", 0)
    found = merging.verify_output(small.plan(given), tmp_path / "out")
    assert found[-1] == f"{path} is not the model that was merged: its tensors changed"


def test_verify_needs_the_record(ties, small, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"merge.json"):
        merging.verify_output(small.plan(ties), tmp_path)


# --- Into pools ---


def leaves(seed):
    rng = np.random.default_rng(seed)
    return {"head": {"kernel": rng.normal(size=(3, 2)).astype(np.float32), "bias": np.full(2, seed, np.float32)}}


@pytest.fixture
def pool(tmp_path):
    """Return the path of a pool of the members "a" and "b"."""
    pool = Pool(tmp_path / "pool")
    for seed, name in enumerate("ab", start=1):
        pool.add(name, leaves(seed), base="start")
    return tmp_path / "pool"


def average(small, *models):
    entries = [{"model": model, "parameters": {"weight": 1}} for model in models]
    text = small.plain({"merge_method": "linear", "models": entries})
    return merging.plan(merging.parse_recipe(str(text)), merging.open_model)


def test_a_merge_becomes_a_member(small, pool):
    done = []
    plan = average(small, f"{pool}:a", f"{pool}:b")
    record = merging.merge_to_pool(plan, f"{pool}:soup", progress=done.append)
    merged = flatten(Pool(pool)["soup"])
    for name, array in flatten(leaves(1)).items():
        expected = (array.astype(np.float64) + flatten(leaves(2))[name]) / 2
        small.near(merged[name], expected)
    assert sum(done) == plan.write_bytes and record["base"] == "start"
    assert record["metadata"]["merge"]["method"] == "linear"
    assert set(record["metadata"]["merge"]["inputs"]) == {f"{pool}:a", f"{pool}:b"}
    assert Pool(pool).verify() == {"a": [], "b": [], "soup": []}


def test_a_pool_is_made_by_its_first_member(small, pool, tmp_path):
    record = merging.merge_to_pool(average(small, f"{pool}:a"), f"{tmp_path}/new:soup")
    np.testing.assert_array_equal(Pool(tmp_path / "new")["soup"]["head"]["bias"], [1, 1])
    assert record["base"] is None  # of that pool nobody knows the base
