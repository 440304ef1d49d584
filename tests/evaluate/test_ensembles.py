"""Ensembles against loops."""

import numpy as np
import pytest

from soups import evaluate


def softmax(z):
    powers = np.exp(z - z.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def make_pool(rng, members=8, n=120, classes=4):
    """Make members that are right on different examples."""
    labels = rng.integers(0, classes, n)
    signal = np.eye(classes)[labels]
    noise = rng.uniform(0.4, 1.2, members)
    pool = {f"m{i}": (signal + s * rng.normal(size=(n, classes))).astype(np.float32) for i, s in enumerate(noise)}
    return pool, labels


def greedy_loop(pool, labels, sign, score, accept_equal=False):
    """Choose members in logit space, straight from the published recipe."""
    names, scores = list(pool), []
    for name in names:
        scores.append(sign * score(pool[name].astype(np.float64), labels))
    order = []
    while len(order) < len(names):  # repeatedly the best, the last-listed of equals
        best = None
        for i in range(len(names)):
            if i not in order and (best is None or scores[i] >= scores[best]):
                best = i
        order.append(best)
    chosen, top, tried = [], None, []
    for i in order:
        mean = np.mean([pool[names[j]].astype(np.float64) for j in [*chosen, i]], axis=0)
        value = sign * score(mean, labels)
        if top is None or value > top or (accept_equal and value == top):
            chosen, top = [*chosen, i], value
        tried.append((names[i], sign * value))
    return [names[i] for i in chosen], sign * top, tried


@pytest.mark.parametrize("as_mapping", [False, True])
def test_the_logit_ensemble_is_the_mean(rng, as_mapping):
    pool, _ = make_pool(rng, 3)
    given = pool if as_mapping else list(pool.values())
    combined = evaluate.ensemble_logits(given)
    assert combined.dtype == np.float32
    np.testing.assert_allclose(combined, np.mean(list(pool.values()), axis=0, dtype=np.float64), rtol=1e-6)


def test_the_probability_ensemble_averages_probabilities(rng):
    pool, _ = make_pool(rng, 3)
    doubles = {name: logits.astype(np.float64) * 5 for name, logits in pool.items()}
    combined = evaluate.ensemble_logits(doubles, [1, 2, 5], space="probabilities")
    expected = sum(w / 8 * softmax(z) for w, z in zip([1, 2, 5], doubles.values(), strict=True))
    np.testing.assert_allclose(softmax(combined), expected, rtol=1e-12)
    np.testing.assert_allclose(combined, np.log(expected), rtol=1e-9, atol=1e-12)


def test_probabilities_too_small_for_float64_stay_finite():
    combined = evaluate.ensemble_logits(np.array([[[0.0, 3000.0]], [[0.0, 2000.0]]]), space="probabilities")
    np.testing.assert_allclose(combined, [[-2000.0 - np.log(2), 0.0]])


def test_weights_are_divided_by_their_sum_and_may_go_by_name(rng):
    pool, _ = make_pool(rng, 3)
    expected = (pool["m0"].astype(np.float64) + 3 * pool["m2"]) / 4
    for weights in ([1, 0, 3], [0.25, 0, 0.75], {"m2": 6, "m0": 2}):
        np.testing.assert_allclose(evaluate.ensemble_logits(pool, weights), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("metric", "sign"), [("accuracy", 1), ("nll", -1), ("brier", -1)])
def test_the_greedy_ensemble_equals_the_loop(rng, metric, sign):
    pool, labels = make_pool(rng)
    result = evaluate.greedy_ensemble(pool, labels, metric=metric)
    chosen, score, tried = greedy_loop(pool, labels, sign, getattr(evaluate, metric))
    assert list(result.ingredients) == chosen
    assert 1 < len(chosen) < len(pool)
    assert result.score == pytest.approx(score, rel=1e-12)
    assert [(h["member"], pytest.approx(h["score"], rel=1e-12)) for h in result.history] == tried
    assert [h["member"] for h in result.history if h["accepted"]] == chosen
    expected = np.mean([pool[name] for name in chosen], axis=0, dtype=np.float64)
    np.testing.assert_allclose(result.logits, expected, rtol=1e-6)


def test_ingredients_make_the_same_ensemble_elsewhere(rng):
    pool, labels = make_pool(rng)
    result = evaluate.greedy_ensemble(pool, labels)
    np.testing.assert_allclose(evaluate.ensemble_logits(pool, result.ingredients), result.logits, rtol=1e-6)


def test_among_equal_members_the_later_listed_comes_first(rng):
    pool, labels = make_pool(rng, 1)
    pool = {"first": pool["m0"], "second": pool["m0"], "third": pool["m0"]}
    strict = evaluate.greedy_ensemble(pool, labels)
    assert [h["member"] for h in strict.history] == ["third", "second", "first"]
    assert strict.ingredients == {"third": 1.0}
    assert [h["num_ingredients"] for h in strict.history] == [1, 1, 1]
    lenient = evaluate.greedy_ensemble(pool, labels, accept="ge")
    assert list(lenient.ingredients) == ["third", "second", "first"]


def test_a_diverged_member_is_left_out_of_the_greedy_ensemble(rng):
    pool, labels = make_pool(rng)
    expected = evaluate.greedy_ensemble(pool, labels)
    broken = {"nan": np.full_like(pool["m0"], np.nan), **pool}
    result = evaluate.greedy_ensemble(broken, labels)
    assert result.ingredients == expected.ingredients
    assert result.history[-1]["member"] == "nan"
    assert result.history[-1]["reason"] == "NaN or infinity in the logits"
    with pytest.raises(ValueError, match="none of the 1 members has finite logits"):
        evaluate.greedy_ensemble({"nan": broken["nan"]}, labels)


def test_errors_of_ensembles(rng):
    pool, labels = make_pool(rng, 2)
    with pytest.raises(ValueError, match="at least one member"):
        evaluate.ensemble_logits([])
    with pytest.raises(ValueError, match=r"the first has \(120, 4\)\n  m1: \(120, 3\)"):
        evaluate.ensemble_logits({"m0": pool["m0"], "m1": pool["m1"][:, :3]})
    with pytest.raises(ValueError, match="NaN or infinity in the logits of: m1"):
        evaluate.ensemble_logits({"m0": pool["m0"], "m1": pool["m1"] * np.nan})
    with pytest.raises(ValueError, match="space must be 'logits' or 'probabilities', not 'logit'"):
        evaluate.ensemble_logits(pool, space="logit")
    with pytest.raises(ValueError, match="2 members need 2 weights"):
        evaluate.ensemble_logits(pool, [1, 2, 3])
    with pytest.raises(ValueError, match="no logits: m7"):
        evaluate.ensemble_logits(pool, {"m0": 1, "m7": 1})
    for weights in ([1, -1], [0, 0], [np.nan, 1]):
        with pytest.raises(ValueError, match="weights must be at least 0"):
            evaluate.ensemble_logits(pool, weights)
    with pytest.raises(ValueError, match=r"unknown metric 'acuracy' .did you mean 'accuracy'"):
        evaluate.greedy_ensemble(pool, labels, metric="acuracy")
    with pytest.raises(ValueError, match="accept must be 'gt' or 'ge'"):
        evaluate.greedy_ensemble(pool, labels, accept=">")
