"""Test every published method end to end, from files to files: they are the library's functions."""

import json
import re

import numpy as np
import pytest

import soups
from soups import merging
from soups.formats import write_safetensors
from soups.merging.methods import find_method

WEIGHTS = {"a": 1.0, "b": -0.5, "c": 0.75}


def settings(**values):
    return {"parameters": values}


PUBLISHED = {
    "uniform": (dict(base=None), lambda m, base: soups.uniform(m)),
    "linear": (dict(base=None, weight=WEIGHTS), None),
    "slerp": (dict(members="a", **settings(t=0.3)), None),
    "nuslerp": (dict(members="ac", weight=WEIGHTS), lambda m, base: soups.nuslerp(m, base=base, weights=[1.0, 0.75])),
    "multislerp": (
        dict(weight={"a": 1, "b": 2, "c": 3}),
        lambda m, base: soups.multislerp(m, base=base, weights=[1, 2, 3]),
    ),
    "karcher": (
        dict(base=None, **settings(scope="model")),
        lambda m, base: soups.karcher(m, scope="model"),
    ),
    "geometric_median": (
        dict(base=None, weight={"a": 1, "b": 2, "c": 3}),
        lambda m, base: soups.geometric_median(m, weights=[1, 2, 3]),
    ),
    "model_stock": (dict(), soups.model_stock),
    "task_arithmetic": (
        dict(weight=WEIGHTS),
        lambda m, base: soups.task_arithmetic(m, base=base, weights=[1, -0.5, 0.75]),
    ),
    "ties": (dict(), soups.ties),
    "ties, settings": (
        dict(weight=WEIGHTS, **settings(scope="leaf", density=0.5, scale=0.3, normalize=False)),
        lambda m, base: soups.ties(
            m, base=base, weights=[1, -0.5, 0.75], scope="leaf", density=0.5, scale=0.3, normalize=False
        ),
    ),
    "dare": (dict(), soups.dare),
    "dare, settings": (
        settings(density=0.4, elect=True, seed=3, scale=0.5),
        lambda m, base: soups.dare(m, base=base, density=0.4, elect=True, seed=3, scale=0.5),
    ),
    "della": (settings(seed=2), lambda m, base: soups.della(m, base=base, seed=2)),
    "breadcrumbs": (settings(gamma=0.1), lambda m, base: soups.breadcrumbs(m, base=base, gamma=0.1)),
    "sce": (settings(select_topk=0.5), lambda m, base: soups.sce(m, base=base, select_topk=0.5)),
    "consensus": (dict(), soups.consensus),
    "pcb": (dict(), soups.pcb),
    "magmax": (dict(), soups.magmax),
    "ram": (settings(epsilon=0.1), lambda m, base: soups.ram(m, base=base, epsilon=0.1)),
    "tsv_merge": (settings(only=".*proj.*"), lambda m, base: soups.tsv_merge(m, base=base, only=".*proj.*")),
    "iso_c": (dict(), soups.iso_c),
    "wudi": (settings(steps=5), lambda m, base: soups.wudi(m, base=base, steps=5, inputs="last")),
    "ram_plus": (
        settings(epsilon=0.1, rescale=0.5, limit=0.3),
        lambda m, base: soups.ram_plus(m, base=base, epsilon=0.1, rescale=0.5, limit=0.3),
    ),
    "ram_plus, model": (
        settings(epsilon=0.1, scope="model"),
        lambda m, base: soups.ram_plus(m, base=base, epsilon=0.1, scope="model"),
    ),
    "nearswap": (dict(members="a", **settings(t=0.1)), lambda m, base: soups.nearswap(m, base=base, t=0.1)),
    "arcee_fusion": (dict(members="a"), soups.arcee_fusion),
    "wise_ft": (dict(members="a", **settings(alpha=0.3)), lambda m, base: soups.wise_ft(m["a"], base=base, alpha=0.3)),
    "wise_ft, only": (
        dict(members="a", **settings(only=".*mlp.*")),
        lambda m, base: soups.wise_ft(m["a"], base=base, only=".*mlp.*"),
    ),
    "localize_and_stitch": (dict(), soups.localize_and_stitch),
    "localize_and_stitch, all": (
        dict(density=dict.fromkeys("abc", 1.0)),
        lambda m, base: soups.localize_and_stitch(m, base=base, density=1.0),
    ),
    "localize_and_stitch, settings": (
        dict(density=dict.fromkeys("abc", 0.3), **settings(only=".*proj.*")),
        lambda m, base: soups.localize_and_stitch(m, base=base, density=0.3, only=".*proj.*"),
    ),
    "passthrough": (dict(members="a", base=None, scale={"a": 0.5}), None),
}
WITH_FILES = {"fisher", "fisher_interpolate", "regmean"}  # tested below


def oracle_linear(members):
    return sum(w * x for w, x in zip(WEIGHTS.values(), members, strict=True)) / sum(WEIGHTS.values())


def oracle_slerp(base, member, t):
    cosine = np.sum(base * member) / np.linalg.norm(base) / np.linalg.norm(member)
    if abs(cosine) > 1 - 1e-6:
        return (1 - t) * base + t * member
    omega = np.arccos(cosine)
    return (np.sin((1 - t) * omega) * base + np.sin(t * omega) * member) / np.sin(omega)


ORACLES = {
    "linear": lambda base, members: oracle_linear(members),
    "slerp": lambda base, members: oracle_slerp(base, members[0], 0.3),
    "passthrough": lambda base, members: 0.5 * members[0],
}


def test_every_published_method_is_tested():
    assert {name.split(",")[0] for name in PUBLISHED} | WITH_FILES == set(merging.methods_of("published"))


def test_where_a_kept_element_did_not_move_it_counts_in_the_mean(small, tmp_path):
    for name, values in {"base": [1, 1], "a": [2, 5], "b": [1, 3]}.items():
        small.write_model(tmp_path / name, {"x": np.asarray(values, np.float32)})
    recipe = {"vocabulary": "published", "merge_method": "localize_and_stitch", "base_model": tmp_path / "base"}
    recipe |= {"models": [tmp_path / "a", tmp_path / "b"], "parameters": {"density": 1.0}}
    np.testing.assert_array_equal(small.merge(recipe, tmp_path / "out")["x"], [1.5, 4])


@pytest.mark.parametrize("case", PUBLISHED)
def test_published_methods_are_those_of_the_library(small, run, trees, case):
    options, function = PUBLISHED[case]
    merged = run(case.split(",")[0], vocabulary="published", **options)
    members = {x: trees[x] for x in options.get("members", "abc")}
    if function is None:
        for name in merged:
            wide = [member[name].astype(np.float64) for member in members.values()]
            small.near(merged[name], ORACLES[case](trees["base"][name].astype(np.float64), wide))
        return
    expected = function(members, base=trees["base"])
    assert set(merged) == set(expected)
    for name in merged:
        # files are merged with the leaves in their own order, in which sums over the model round otherwise
        if options.get("parameters", {}).get("scope") == "model" or case == "pcb":
            small.near(merged[name], expected[name])
        else:
            np.testing.assert_array_equal(merged[name], expected[name])


# --- With a Fisher diagonal for each model ---


@pytest.fixture(scope="module")
def fishers(small, trees, tmp_path_factory):
    """Give (path, diagonal) by the names of the models; that of "a" has a tensor without information."""
    root, rng, made = tmp_path_factory.mktemp("fishers"), np.random.default_rng(7), {}
    for name, leaves in trees.items():
        diagonal = {leaf: np.asarray(rng.random(x.shape) ** 2, np.float32) for leaf, x in leaves.items()}
        if name == "a":
            diagonal["model.norm.weight"][:] = 0
        # as soups.fisher_information counts tensors of integers
        stored = diagonal | {"model.position_ids": np.zeros(4, np.float32)}
        made[name] = write_safetensors(root / f"{name}.safetensors", stored), diagonal
    return made


FISHER = {
    "plain": (dict(), dict()),
    "weights": (dict(weight=WEIGHTS | {"b": 0.5}), dict(weights=[1.0, 0.5, 0.75])),
    "normalize": (settings(normalize=True, floor=1e-3), dict(normalize=True, floor=1e-3)),
    "favor": (dict(favor={"a": False, "b": True, "c": False}), dict(favor="b")),
}


@pytest.mark.parametrize("case", FISHER)
def test_fisher_is_that_of_the_library(small, run, trees, fishers, case):
    options, arguments = FISHER[case]
    merged = run("fisher", base=None, vocabulary="published", fisher={x: str(fishers[x][0]) for x in "abc"}, **options)
    expected = soups.fisher(
        [trees[x] for x in "abc"],
        [fishers[x][1] for x in "abc"],
        **{**arguments, **({"favor": 1} if "favor" in arguments else {})},
    )
    assert set(merged) == set(expected)
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
            "negative Fisher information beside member 1: lm_head",
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
    refused("fisher is one path for all tensors, not", fisher={**files, "a": [files["a"], files["b"]]})
    refused("floor must be above 0, not 0.0", parameters={"floor": 0.0})
    refused("weights must be finite, not negative", weight=WEIGHTS)
    refused(
        "the favoured member needs a weight above 0",
        weight={"a": 0, "b": 1, "c": 1},
        favor={"a": True, "b": False, "c": False},
    )
    refused("'fisher' is a file of each model", parameters={"fisher": files["a"]})
    only = {"a": files["a"]}
    alpha = {"alpha": 1.5, "base_fisher": files["b"]}
    refused(r"alpha must be in \[0, 1\]", "fisher_interpolate", "a", "base", fisher=only, parameters=alpha)
    refused("fisher_interpolate needs a value of base_fisher", "fisher_interpolate", "a", "base", fisher=only)
    zero = write_safetensors(tmp_path / "zero.safetensors", {n: np.zeros_like(x) for n, x in trees["a"].items()})
    refused(
        "Fisher information beside member 0 is zero",
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
    with pytest.raises(ValueError, match=r"only must be a regex, the same for all tensors, not '\('"):
        run("wise_ft", "a", vocabulary="published", parameters={"only": "("})
    with pytest.raises(ValueError, match="only must be a regex"):
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
