"""Diversity against counts in loops."""

import itertools

import numpy as np
import pytest

from soups import evaluate


def counts_loop(a, b):
    n = {(x, y): 0 for x in (0, 1) for y in (0, 1)}
    for x, y in zip(a.tolist(), b.tolist(), strict=True):
        n[int(x), int(y)] += 1
    return n


def bools(text):
    return np.array([letter == "1" for letter in text])


def test_measures_on_correctness_equal_the_loops(rng):
    for _ in range(10):
        a, b = rng.random(50) < 0.7, rng.random(50) < 0.6
        n = counts_loop(a, b)
        apart = n[0, 1] + n[1, 0]
        together, crossed = n[1, 1] * n[0, 0], n[0, 1] * n[1, 0]
        assert evaluate.ratio_error(a, b) == pytest.approx(apart / n[0, 0])
        assert evaluate.q_statistic(a, b) == pytest.approx((together - crossed) / (together + crossed))
        assert evaluate.q_diversity(a, b) == pytest.approx(1 - (together - crossed) / (together + crossed))
        assert evaluate.prediction_diversity(a, b) == pytest.approx(apart / 50)


def test_ratio_error_where_members_never_fail_together():
    assert evaluate.ratio_error(bools("1100"), bools("1111")) == 4
    assert evaluate.ratio_error(bools("1100"), bools("0011")) == 8
    assert evaluate.ratio_error(bools("1111"), bools("1111")) == 0


def test_q_at_its_limits():
    assert evaluate.q_statistic(bools("1100"), bools("1100")) == 1
    assert evaluate.q_statistic(bools("1100"), bools("0011")) == -1
    assert evaluate.q_statistic(bools("1100"), bools("1010")) == 0
    assert evaluate.q_statistic(bools("1111"), bools("1111")) == 1  # 0/0, never different
    assert evaluate.q_statistic(bools("1111"), bools("1100")) == 0  # 0/0, one is always right
    assert evaluate.q_statistic(bools("0000"), bools("1100")) == 0


def test_kappa_complement_equals_the_loop(rng):
    a, b = rng.integers(2, 6, 80), rng.integers(2, 6, 80)
    expected_agreement = sum(np.mean(a == c) * np.mean(b == c) for c in range(10))
    disagreement = sum(x != y for x, y in zip(a, b, strict=True)) / 80
    assert evaluate.kappa_complement(a, b) == pytest.approx(disagreement / (1 - expected_agreement))
    assert evaluate.kappa_complement(a, a) == 0
    assert evaluate.kappa_complement(np.ones(3, int), np.ones(3, int)) == 0
    assert evaluate.kappa_complement(np.ones(3, int), np.zeros(3, int)) == 1


def test_pairwise_diversity_is_the_mean_over_pairs(rng):
    labels = rng.integers(0, 3, 60)
    pool = {name: np.eye(3)[labels] + rng.normal(size=(60, 3)) for name in "abcd"}
    measured = evaluate.pairwise_diversity(pool, labels)
    predicted = {name: logits.argmax(axis=1) for name, logits in pool.items()}
    ratio, kappa = [], []
    for a, b in itertools.combinations("abcd", 2):
        n = counts_loop(predicted[a] == labels, predicted[b] == labels)
        ratio.append((n[0, 1] + n[1, 0]) / n[0, 0])
        kappa.append(evaluate.kappa_complement(predicted[a], predicted[b]))
    assert measured["ratio_error"] == pytest.approx(np.mean(ratio))
    assert measured["kappa_complement"] == pytest.approx(np.mean(kappa))
    assert set(measured) == {"ratio_error", "q_diversity", "prediction_diversity", "kappa_complement"}


def test_errors_of_diversity():
    with pytest.raises(ValueError, match=r"one length, not of shapes \(2,\) and \(3,\)"):
        evaluate.ratio_error(bools("11"), bools("110"))
    with pytest.raises(ValueError, match="True where they are right, not int64"):
        evaluate.q_statistic(np.array([0, 2]), np.array([1, 2]))
    with pytest.raises(ValueError, match="one length"):
        evaluate.kappa_complement([], [])
    with pytest.raises(ValueError, match="diversity needs at least two members, but 1 were given"):
        evaluate.mean_pairwise(evaluate.ratio_error, {"a": bools("10")})
