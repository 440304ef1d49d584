"""Members that count twice, and a base among them, are named wherever models are merged."""

import json
import logging
import shutil

import numpy as np
import pytest

import soups
from soups import merging
from soups.cli import main
from soups.formats import write_safetensors

TWICE, BASE = "members with the same weights, each of which counts: ", "the base counts as a member: "


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Work in a folder with models a, b and base, a link to a, a copy of a, and a pool in which base is a member."""
    monkeypatch.chdir(tmp_path)
    pool = soups.Pool("pool")
    for index, name in enumerate(("base", "a", "b")):
        weights = np.float32([index, 1, 2 * index])
        write_safetensors(name, {"w": weights, "steps": np.asarray(7)})
        pool.add(name, {"w": weights, "steps": np.asarray(7)}, base=None if name == "base" else pool.digest("base"))
    shutil.copy("a", "copy")
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "score.py").write_text(
        "from soups.formats import open_checkpoint\n\n\ndef score(path):\n"
        "    return float(open_checkpoint(path).read('w').sum())\n"
    )
    return tmp_path


def merged(capsys, *words):
    assert main(["merge", *words, "--out", "out"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("uniform", "a", "b", "a"), "members that are given more than once, and count as often: a (2 times)"),
        (("uniform", "a", "b", "link"), f"{TWICE}a, link"),
        (("uniform", "a", "b", "copy"), f"{TWICE}a, copy"),  # known when all was read
        (("uniform", "pool"), f"{BASE}pool:base"),
        (("uniform", "a", "base", "--base", "base"), "base is the base and not a member"),
        (("task_arithmetic", "a", "base", "--base", "base"), "base is the base and not a member"),
        (("ties", "a", "*ase", "--base", "./base"), "./base is the base and not a member"),
        (("uniform", "pool", "--base", "pool:base"), "pool:base is the base and not a member"),
        (("task_arithmetic", "a", "pool:base", "--base", "base"), f"{BASE}pool:base"),
    ],
)
def test_a_merge_says_it_and_its_record_too(place, capsys, words, sentence):
    method, *members = words
    printed = merged(capsys, "--method", method, "--members", *members)
    assert printed.splitlines().count(sentence) == 1
    assert sentence in json.loads((place / "out" / "merge.json").read_text())["notes"]
    assert sentence in (place / "out" / "README.md").read_text()
    assert main(["merge", "--verify", "out"]) == 0


def test_what_is_as_it_should_be_is_not_remarked(place, capsys):
    printed = merged(capsys, "--method", "ties", "--base", "base", "--members", "a", "b")
    assert "count" not in printed and "notes" not in json.loads((place / "out" / "merge.json").read_text())


def test_what_is_named_as_the_base_is_no_member_of_any_method(place, capsys):
    for number, method in enumerate(("uniform", "linear", "geometric_median")):
        words = ["--members", "a", "b", "base", "--base", "base", "--out", f"out{number}"]
        assert main(["merge", "--method", method, *words]) == 0
        np.testing.assert_allclose(merging.open_model(f"out{number}").read("w"), [1.5, 1, 3], rtol=1e-6)
    mergekit = "{merge_method: linear, parameters: {weight: 1}, base_model: base, models: [a, b, base]}"  # it counts it
    weights, _ = merging.run.merge_in_memory(merging.plan(merging.parse_recipe(mergekit), merging.open_model))
    np.testing.assert_allclose(weights["w"], [1, 1, 2])


@pytest.mark.parametrize("members", [[], ["--members", "a", "b", "base"]], ids=["all", "named"])
def test_what_is_named_as_the_base_is_no_ingredient_of_a_release(place, capsys, members):
    assert main(["pool", "release", "pool", "--base", "base", *members]) == 0
    said = " ".join(capsys.readouterr().out.split())  # lines are as long as a terminal is wide
    assert f"{place / 'pool'}:base is the base and not a member" in said
    assert soups.Pool("pool").releases.record("1")["metadata"]["ingredients"].keys() == {"a", "b"}


def test_a_member_given_twice_counts_twice(place):
    recipe = "{vocabulary: published, merge_method: uniform, models: [a, a, b]}"
    weights, _ = merging.run.merge_in_memory(merging.plan(merging.parse_recipe(recipe), merging.open_model))
    np.testing.assert_allclose(weights["w"], [4 / 3, 1, 8 / 3])


def test_layers_that_are_taken_twice_are_meant(small, models):
    cut = [{"sources": [{"model": models["a"], "layer_range": [0, 2]}]}] * 2
    assert small.plan({"merge_method": "passthrough", "slices": cut}).repeated == ()


@pytest.mark.parametrize(
    "words",
    [
        ("greedy", "--members", "a", "b", "copy", "--out", "out"),
        ("rank", "--members", "a", "b", "copy"),
        ("search", "--method", "linear", "--members", "a", "b", "copy", "--range", "weight=0.5:1", "--out", "out"),
    ],
    ids=lambda words: words[0],
)
def test_what_chooses_by_an_evaluation_says_it_first(place, capsys, words):
    budget = ["--budget", "1", "--by", "random"] if words[0] == "search" else []
    assert main([*words, *budget, "--eval", "score.py:score"]) == 0
    assert f"{TWICE}a, copy" in capsys.readouterr().out.partition(" in ")[0].splitlines()


def test_methods_in_python_warn_of_names_once(place, caplog):
    caplog.set_level(logging.WARNING)
    pool = soups.Pool("pool")
    pool.add("copy", pool["a"])
    for _ in range(2):
        soups.uniform(pool)
    assert [record.getMessage() for record in caplog.records] == [f"{TWICE}a, copy", f"{BASE}base"]
    caplog.clear()
    soups.uniform(pool.select(["a", "b"]))
    assert not caplog.records
    tree = {"w": np.ones(2, np.float32)}
    soups.linear({"x": tree, "y": tree, "z": {"w": np.zeros(2, np.float32)}})
    assert [record.getMessage() for record in caplog.records] == [f"{TWICE}x, y"]
