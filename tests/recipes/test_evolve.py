"""Test the search of settings on problems whose optimum is known."""

import functools
import json
import math

import numpy as np
import pytest

import soups
from soups.pool import Pool
from soups.recipes.evolve import evolve

RNG = np.random.default_rng(3)
BASE = {"w": RNG.normal(size=12).astype(np.float32)}
STEPS = RNG.normal(size=(3, 12)).astype(np.float32)
MEMBERS = {f"m{index}": {"w": BASE["w"] + step} for index, step in enumerate(STEPS)}


def distance_to(*weights):
    """Return an `evaluate` whose best weights are the base plus the steps by these weights."""
    target = BASE["w"] + np.tensordot(weights, STEPS, 1)
    return lambda params: float(np.sum((params["w"].astype(np.float64) - target) ** 2))


def score_of(*weights):
    distance = distance_to(*weights)
    return lambda params: -distance(params)


SCALE = {"scale": (0.0, 2.0)}


def search(evaluate, settings=SCALE, recipe=soups.task_arithmetic, members=MEMBERS, **options):
    return evolve(recipe, members, evaluate, base=BASE, settings=settings, **options)


def test_finds_the_best_scale():
    soup = search(score_of(0.8, 0.8, 0.8), budget=60)
    assert soup.recipe["settings"]["scale"] == pytest.approx(0.8, abs=1e-3)
    best = max(soup.history, key=lambda step: step["score"])
    assert soup.score == best["score"] and soup.recipe["settings"] == {"scale": best["scale"]}
    np.testing.assert_array_equal(soup.params["w"], soups.task_arithmetic(MEMBERS, base=BASE, scale=best["scale"])["w"])
    assert soup.ingredients == {"m0": 1.0, "m1": 1.0, "m2": 1.0} and len(soup.history) == 60


def test_finds_the_best_weights_and_a_setting_together():
    half = functools.partial(soups.task_arithmetic, scale=0.5)
    soup = search(score_of(0.5, 0.1, -0.25), {}, half, weights=(-1.0, 2.0), budget=250)
    np.testing.assert_allclose(list(soup.ingredients.values()), [1.0, 0.2, -0.5], atol=0.02)
    assert list(soup.recipe["settings"]) == ["weights"]

    def bowl(members, *, a, weights):
        return {"w": np.float32([a, *weights])}

    soup = evolve(
        bowl,
        list(MEMBERS.values()),
        lambda params: float(np.sum((params["w"] - [3.0, 0.2, 0.4, 0.6]) ** 2)),
        settings={"a": (0.0, 5.0)},
        weights=(0.0, 1.0),
        mode="min",
        budget=300,
    )
    assert soup.recipe["settings"]["a"] == pytest.approx(3.0, abs=0.02)
    np.testing.assert_allclose(list(soup.ingredients.values()), [0.2, 0.4, 0.6], atol=0.02)


def test_a_logarithmic_range_starts_from_its_geometric_middle():
    def soups_of(given):
        seen = [step["x"] for step in search(lambda p: 0.0, {"x": given}, lambda members, *, base, x: base).history]
        assert min(seen) >= given[0] and max(seen) <= given[1]
        return np.array(seen)

    # the same points of the unit interval, mapped otherwise
    places = (soups_of((1e-4, 1.0)) - 1e-4) / (1.0 - 1e-4)
    np.testing.assert_allclose(soups_of((1e-4, 1.0, "log")), 1e-4 ** (1 - places), rtol=1e-6)


def test_a_seed_gives_the_same_search_and_another_one_another():
    first, again = (search(score_of(1, 0, 0), budget=20, seed=5) for _ in range(2))
    assert first.history == again.history
    np.testing.assert_array_equal(first.params["w"], again.params["w"])
    assert search(score_of(1, 0, 0), budget=20, seed=6).history != first.history


def test_the_first_of_equal_scores_wins():
    soup = search(lambda params: 1.0, budget=10)
    assert soup.recipe["settings"]["scale"] == soup.history[0]["scale"]


def test_scores_that_are_not_finite_rank_last_and_the_search_goes_on():
    evaluate = score_of(0.5, 0.5, 0.5)

    def fails_above(params):
        scale = np.mean((params["w"] - BASE["w"]) / STEPS.sum(0))
        if scale > 1.0:
            return math.inf if scale > 1.5 else math.nan
        return evaluate(params)

    soup = search(fails_above, budget=60)
    assert {math.isfinite(step["score"]) for step in soup.history} == {True, False}
    assert soup.recipe["settings"]["scale"] == pytest.approx(0.5, abs=1e-2)
    with pytest.raises(ValueError, match="none of the 3 candidates has a finite score"):
        search(lambda params: math.nan, budget=3)


def test_metrics_and_modes():
    distance = distance_to(0.8, 0.8, 0.8)
    soup = search(lambda p: {"loss": distance(p), "accuracy": 0.0}, metric="loss", mode="min", budget=20)
    assert soup.history == [
        {**step, "score": -step["score"]} for step in search(score_of(0.8, 0.8, 0.8), budget=20).history
    ]


class Killed(Exception):
    pass


@pytest.mark.parametrize("survived", [0, 1, 7, 19])
def test_goes_on_from_its_journal_and_continues_with_a_larger_budget(survived, tmp_path):
    evaluate, path = score_of(0.4, 0.4, 0.4), tmp_path / "evolve.jsonl"
    whole = search(evaluate, budget=30)
    left = survived

    def dies(params):
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        return evaluate(params)

    with pytest.raises(Killed):
        search(dies, budget=20, journal=path)
    path.write_text(path.read_text() + '{"kind": "candi')  # the crash cut a line off
    calls = []

    def counting(params):
        calls.append(1)
        return evaluate(params)

    assert search(counting, budget=20, journal=path).history == whole.history[:20]
    assert len(calls) == 20 - survived
    soup = search(counting, budget=30, journal=path)
    assert len(calls) == 30 - survived and soup.history == whole.history
    np.testing.assert_array_equal(soup.params["w"], whole.params["w"])
    with pytest.raises(ValueError, match="was written by a different call"):
        search(evaluate, {"scale": (0.0, 3.0)}, journal=path)


def test_a_pool_is_streamed_and_its_digests_are_recorded(tmp_path):
    pool = Pool(tmp_path / "pool")
    for name, member in MEMBERS.items():
        pool.add(name, member)
    found = search(score_of(0.8, 0.8, 0.8), members=pool, budget=8)
    assert found.history == search(score_of(0.8, 0.8, 0.8), budget=8).history
    assert found.digests == {name: pool.digest(name) for name in MEMBERS}
    assert json.loads(json.dumps(found.record()))["recipe"]["of"] == "task_arithmetic"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": []}, "no members"),
        ({"mode": "best"}, "mode must be"),
        ({"budget": 0}, "budget must be at least 1"),
        ({"population": 1}, "population must be at least 2, not 1"),
        ({"settings": {}}, r"nothing to search: give settings="),
        ({"settings": {"scael": (0, 1)}}, r"unknown setting of task_arithmetic 'scael' \(did you mean 'scale'"),
        ({"settings": {}, "weights": (0, 1), "recipe": soups.model_stock}, "unknown setting of model_stock 'weights'"),
        ({"settings": {"scale": (1.0,)}}, r"the range of scale must be \(low, high\)"),
        ({"settings": {"scale": (1.0, 2.0, "lgo")}}, r'or \(low, high, "log"\), not'),
        ({"settings": {"scale": (2.0, 1.0)}}, "the range of scale needs finite ends, the lower first"),
        ({"settings": {"scale": (0.0, math.inf)}}, "range of scale must be a finite number, not inf"),
        ({"settings": {"scale": (0.0, 1.0, "log")}}, "above 0 on a log scale"),
        ({"weights": (1.0, 1.0)}, "the range of weights needs finite ends, the lower first"),
        ({"metric": "accuracy"}, "returns a single number"),
        ({"recipe": "ties"}, "recipe must be a merge function, such as soups.ties, not 'ties'"),
        (
            {"settings": {"density": (1.5, 2.0)}, "recipe": soups.ties},
            r"ties cannot merge with \{'density': 1.*density must be in \(0, 1\]",
        ),
    ],
)
def test_wrong_options_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        search(lambda params: 1.0, **options)
