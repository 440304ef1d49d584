"""Test every published method end to end, from files to files: they are the library's functions."""

import json
import re

import numpy as np
import pytest

import soups
from soups import merging
from soups.formats import write_safetensors
from soups.merging.methods import find_method
from soups.recipes.declare import in_files

WEIGHTS = {"a": 1.0, "b": -0.5, "c": 0.75}
NEEDED = {"t": 0.3}  # values of settings without a default
OTHER = {"density": 0.4, "gamma": 0.1, "scale": 0.5, "seed": 3, "select_topk": 0.5, "epsilon": 0.1, "votes": 1}
OTHER |= {"rescale": 0.5, "limit": 0.3, "alpha": 0.3, "floor": 1e-3, "threshold": 0.2, "steps": 5, "only": ".*proj.*"}


def cases():
    """Yield every published method with its defaults, and with other settings; two kinds have tests of their own."""
    for name, method in merging.methods_of("published").items():
        if not method.grams and not method.base_beside:
            needed = {setting: value for setting, value in NEEDED.items() if setting in method.defaults}
            yield pytest.param(method, needed, method.base in ("required", "first"), id=name)
            if other := dict(other_settings(method)):
                yield pytest.param(method, needed | other, method.base != "none", id=f"{name}, other settings")


def other_settings(method):
    for name, default in method.defaults.items():
        if name == "scope":
            yield name, "model" if default == "leaf" else "leaf"
        elif name == "weights":
            yield name, WEIGHTS if method.base == "required" else {"a": 1.0, "b": 0.5, "c": 0.75}
        elif name in OTHER:
            yield name, OTHER[name]
        elif isinstance(default, bool) and not method.beside:
            yield name, not default


def settings(**values):
    return {"parameters": values}


def test_where_a_kept_element_did_not_move_it_counts_in_the_mean(small, tmp_path):
    for name, values in {"base": [1, 1], "a": [2, 5], "b": [1, 3]}.items():
        small.write_model(tmp_path / name, {"x": np.asarray(values, np.float32)})
    recipe = {"vocabulary": "published", "merge_method": "localize_and_stitch", "base_model": tmp_path / "base"}
    recipe |= {"models": [tmp_path / "a", tmp_path / "b"], "parameters": {"density": 1.0}}
    np.testing.assert_array_equal(small.merge(recipe, tmp_path / "out")["x"], [1.5, 4])


# --- With a Fisher diagonal for each model ---


@pytest.fixture(scope="module")
def fishers(small, trees, tmp_path_factory):
    """Return (path, diagonal) by the names of the models; that of "a" has a tensor without information."""
    root, rng, made = tmp_path_factory.mktemp("fishers"), np.random.default_rng(7), {}
    for name, leaves in trees.items():
        diagonal = {leaf: np.asarray(rng.random(x.shape) ** 2, np.float32) for leaf, x in leaves.items()}
        if name == "a":
            diagonal["model.norm.weight"][:] = 0
        # as soups.fisher_information counts tensors of integers
        stored = diagonal | {"model.position_ids": np.zeros(4, np.float32)}
        made[name] = write_safetensors(root / f"{name}.safetensors", stored), diagonal
    return made


@pytest.mark.parametrize(("method", "chosen", "has_base"), list(cases()))
def test_published_methods_are_those_of_the_library(small, run, trees, fishers, method, chosen, has_base):
    names = "abc"[: method.members[1]]
    chosen = {n: {x: v[x] for x in names} if isinstance(v, dict) else v for n, v in chosen.items()}
    of_members, parameters = {"fisher": {x: str(fishers[x][0]) for x in names}} if method.beside else {}, {}
    for name, value in chosen.items():
        if name in method.per_member:
            of_members[in_files(name)] = value if isinstance(value, dict) else dict.fromkeys(names, value)
        else:
            parameters[in_files(name)] = value
    options = {"base": "base" if has_base else None, "parameters": parameters, **of_members}
    merged = run(method.name, names, vocabulary="published", **options)
    members = {x: trees[x] for x in names}
    beside = [{x: fishers[x][1] for x in names}] * len(method.beside)
    base = {"base": trees["base"]} if has_base else {}
    given = members["a"] if method.single else members
    expected = method(given, *beside, **base, **{**method.in_files, **chosen})
    assert set(merged) == set(expected)
    for name in merged:
        # files are merged with the leaves in their own order, in which sums over the model round otherwise
        if chosen.get("scope") == "model" or method.name == "pcb":
            small.near(merged[name], expected[name])
        else:
            np.testing.assert_array_equal(merged[name], expected[name])


def test_fisher_with_norms_is_that_of_the_library(small, run, trees, fishers):
    files = {x: str(fishers[x][0]) for x in "abc"}
    merged = run("fisher", base=None, vocabulary="published", fisher=files, **settings(normalize=True, floor=1e-3))
    given = [trees[x] for x in "abc"], [fishers[x][1] for x in "abc"]
    expected = soups.fisher(*given, normalize=True, floor=1e-3)
    for name in merged:
        small.near(merged[name], expected[name])


def test_fisher_interpolation_is_that_of_the_library(small, run, trees, fishers):
    parameters = {"alpha": 0.3, "base_fisher": str(fishers["base"][0])}
    of_a = {"a": str(fishers["a"][0])}
    merged = run("fisher_interpolate", "a", vocabulary="published", parameters=parameters, fisher=of_a)
    start, end = ((trees[x], fishers[x][1]) for x in ("base", "a"))
    expected = soups.fisher_interpolate(start[0], end[0], start[1], end[1], alpha=0.3)
    for name in merged:
        small.near(merged[name], expected[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lm_head.weight": None}, r"- .*bad.safetensors: lm_head.weight is missing"),
        ({"lm_head.wieght": np.ones(3, np.float32)}, r"\+ .*bad.safetensors: lm_head.wieght is extra"),
        ({"lm_head.weight": np.ones((6, 10), np.float32)}, r"~ .*bad.safetensors: lm_head.weight has shape \[6, 10\]"),
        ({"lm_head.weight": np.ones((10, 6), np.int32)}, r"~ .*bad.safetensors: lm_head.weight has dtype int32"),
        (
            {"lm_head.weight": -np.ones((10, 6), np.float32)},
            "negative Fisher information of member 1: lm_head",
        ),
        ({"lm_head.weight": np.full((10, 6), np.nan, np.float32)}, "bad.safetensors: lm_head.weight holds NaN"),
    ],
)
def test_fisher_files_that_do_not_fit_are_named(run, fishers, tmp_path, change, message):
    leaves = {name: leaf for name, leaf in (fishers["b"][1] | change).items() if leaf is not None}
    bad = write_safetensors(tmp_path / "bad.safetensors", leaves)
    files = {"a": str(fishers["a"][0]), "b": str(bad)}
    with pytest.raises(ValueError, match=message):
        run("fisher", "ab", base=None, vocabulary="published", fisher=files)


def test_settings_of_fisher_that_cannot_be_are_errors(run, fishers, small, trees, tmp_path):
    files = {x: str(fishers[x][0]) for x in "abc"}

    def refused(message, method="fisher", members="abc", base=None, fisher=files, **options):
        with pytest.raises(ValueError, match=message):
            run(method, members, base=base, vocabulary="published", fisher=fisher, **options)

    refused("fisher must be text, not 3", fisher=dict.fromkeys("abc", 3))
    refused("fisher must be one path, the same for all tensors, not", fisher={**files, "a": [files["a"], files["b"]]})
    refused("floor must be above 0 for a member", floor=dict.fromkeys("abc", 0.0))
    refused("weights must be finite, not negative", weight=WEIGHTS)
    refused("floor must be above 0 for a", weight={"a": 0, "b": 1, "c": 1}, floor={"a": 1e-6, "b": 0.0, "c": 0.0})
    refused("'fisher' is a file of each model", parameters={"fisher": files["a"]})
    only = {"a": files["a"]}
    alpha = {"alpha": 1.5, "base_fisher": files["b"]}
    refused(r"alpha must be in \[0, 1\]", "fisher_interpolate", "a", "base", fisher=only, parameters=alpha)
    refused("fisher_interpolate needs a value of base_fisher", "fisher_interpolate", "a", "base", fisher=only)
    zero = write_safetensors(tmp_path / "zero.safetensors", {n: np.zeros_like(x) for n, x in trees["a"].items()})
    refused(
        "Fisher information of member 0 is all zeros",
        fisher={**files, "a": str(zero)},
        parameters={"normalize": True},
    )


def test_the_record_holds_the_fishers_too(small, models, fishers, tmp_path):
    entries = [{"model": models[x], "parameters": {"fisher": str(fishers[x][0])}} for x in "ab"]
    recipe = {"vocabulary": "published", "merge_method": "fisher", "models": entries}
    small.merge(recipe, tmp_path / "out")
    inputs = json.loads((tmp_path / "out" / "merge.json").read_text())["inputs"]
    assert set(inputs) == {str(models["a"]), str(models["b"]), str(fishers["a"][0]), str(fishers["b"][0])}
    assert inputs[str(fishers["a"][0])]["tensors"] == len(fishers["a"][1])


def test_a_regex_that_is_none_is_named(run):
    with pytest.raises(ValueError, match=r"only must be a regular expression, not '\('"):
        run("wise_ft", "a", vocabulary="published", parameters={"only": "("})
    with pytest.raises(ValueError, match="only must be a regular expression"):
        run("iso_c", vocabulary="published", parameters={"only": [{"filter": "mlp", "value": ".*"}]})


# --- Where a method is, if not here ---


def test_methods_that_need_more_than_checkpoints_say_what():
    assert not set(merging.ELSEWHERE) & set(merging.methods_of("published"))
    for name, why in merging.ELSEWHERE.items():
        with pytest.raises(ValueError, match=f"method '{name}' ") as error:
            find_method(name, "published")
        assert why in str(error.value)
        for named in re.findall(r"soups\.(\w+)", why):
            assert hasattr(soups, named)


def test_a_method_of_the_other_vocabulary_is_said_to_be_one():
    with pytest.raises(ValueError, match="method 'dare_ties' is one of mergekit's: put it into a recipe file"):
        find_method("dare_ties", "published")
    with pytest.raises(ValueError, match="merge_method 'magmax' is not one of mergekit's: add vocabulary: published"):
        find_method("magmax", "mergekit", "merge_method")
    with pytest.raises(ValueError, match=r"unknown method 'regmeen'"):
        find_method("regmeen", "published")
