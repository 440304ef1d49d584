"""Test `align:` in recipes: networks whose units were shuffled come back to the one that they were."""

import jax
import numpy as np
import pytest
import yaml

from soups import merging
from soups.formats import write_safetensors
from soups.merging.alignment import parse_rules
from soups.recipes.permutation import Blocks, permute, spec_from_rules
from soups.recipes.rebasin import weight_matching

RULES = [
    [r"first\.(?:weight|running_mean)", ["units", None]],
    [r"first\.bias", ["units"]],
    [r"second\.weight", [None, {"permutation": "units", "inner": 2}]],
    [".*", None],
]


def network(seed):
    rng = np.random.default_rng(seed)
    shapes = {"first.weight": (7, 5), "first.running_mean": (7, 1), "first.bias": (7,), "second.weight": (3, 14)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()} | {
        "second.bias": rng.normal(size=3).astype(np.float32)
    }


def shuffled(leaves, order):
    """Put the units of a network into another order, in every place that has them."""
    columns = np.ravel([[2 * unit, 2 * unit + 1] for unit in order])
    moved = {name: leaves[name][order] for name in leaves if name.startswith("first")}
    return leaves | moved | {"second.weight": leaves["second.weight"][:, columns]}


@pytest.fixture
def merged(tmp_path):
    def merge(recipe, *networks):
        paths = [write_safetensors(tmp_path / f"{i}.safetensors", leaves) for i, leaves in enumerate(networks)]
        recipe = {"vocabulary": "published", "merge_method": "linear", "models": list(map(str, paths))} | recipe
        plan = merging.plan(merging.parse_recipe(yaml.safe_dump(recipe)), merging.open_model)
        merging.merge_to_folder(plan, tmp_path / "out", threads=3)
        assert merging.verify_output(plan, tmp_path / "out") == []
        there = merging.open_model(str(tmp_path / "out"))
        return {name: there.read(name) for name in there.leaves}

    return merge


def test_shuffled_copies_are_merged_as_if_they_were_not(merged):
    first, noise = network(0), network(1)
    near = {name: leaf + 0.01 * noise[name] for name, leaf in first.items()}
    orders = [np.random.default_rng(seed).permutation(7) for seed in (2, 3)]
    found = merged({"align": RULES}, first, shuffled(near, orders[0]), shuffled(near, orders[1]))
    for name, leaf in found.items():
        np.testing.assert_allclose(leaf, first[name] + 0.02 / 3 * noise[name], atol=1e-6)


def test_independent_networks_are_matched_as_the_library_does(merged):
    first, second = network(0), network(1)
    found = merged({"align": RULES}, first, second)
    spec = spec_from_rules(first, parse_rules(RULES, "here"))
    ignored = r".*running_mean"
    matching = weight_matching(first, second, spec, key=jax.random.key(0), ignore=ignored)
    assert any((order != np.arange(7)).any() for order in matching.permutations.values())
    for name, leaf in permute(second, matching.permutations, spec).items():
        np.testing.assert_allclose(found[name], (first[name] + leaf) / 2, atol=1e-6)


def test_rules_are_understood():
    assert parse_rules(RULES, "here")[2] == (r"second\.weight", (None, Blocks("units", inner=2)))
    assert parse_rules(None, "here") is None


@pytest.mark.parametrize(
    ("align", "message"),
    [
        ("mlp", r"align must be a list of \[regex, axes\], not 'mlp'"),
        ([], "align must be a list"),
        ([["a", None], ["b"]], r"align\[1\] must be \[regex, axes\], not \['b'\]"),
        ([["(", None]], r"align\[0\]: the first entry must be a regular expression, not '\('"),
        ([["a", "units"]], r"align\[0\]: the axes must be null or a list .* not 'units'"),
        ([["a", [3]]], "an axis must be the name of a permutation, null or a mapping, not 3"),
        ([["a", [{"permutatoin": "units"}]]], "permutatoin"),
        ([["a", [{"permutation": "units", "inner": 1.5}]]], "outer and inner must be whole numbers"),
        (RULES[:1], "no rule|matches"),
        (
            [RULES[0], [r"first\.bias", ["other"]], *RULES[2:]],
            r"to permute units in one tensor alone .*\n  ~ permutation 'other' touches only first\.bias$",
        ),
        ([*RULES[:2], [r"second\.weight", [None, "units"]], RULES[3]], "'units' has 14 units, 7 at first"),
    ],
)
def test_rules_that_cannot_be_are_named(merged, align, message):
    with pytest.raises(ValueError, match=message):
        merged({"align": align}, network(0), network(1))


def test_files_beside_the_models_are_refused(merged, tmp_path):
    fisher = write_safetensors(tmp_path / "fisher.safetensors", network(3))
    paths = [write_safetensors(tmp_path / f"m{seed}.safetensors", network(seed)) for seed in range(2)]
    entries = [{"model": str(path), "parameters": {"fisher": str(fisher)}} for path in paths]
    with pytest.raises(ValueError, match=r"align would not permute the units in .*fisher.safetensors"):
        merged({"merge_method": "fisher", "models": entries, "align": RULES})
