"""Test every published method end to end, from files to files: they are the library's functions."""

import numpy as np
import pytest

import soups
from soups import merging

WEIGHTS = {"a": 1.0, "b": -0.5, "c": 0.75}


def settings(**values):
    return {"parameters": values}


PUBLISHED = {
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
    "passthrough": (dict(members="a", base=None, scale={"a": 0.5}), None),
}


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
    assert {name.split(",")[0] for name in PUBLISHED} == set(merging.PUBLISHED)


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
