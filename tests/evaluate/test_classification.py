"""Metrics and calibration against explicit loops in float64."""

import itertools
import math

import ml_dtypes
import numpy as np
import pytest

from soups import evaluate


def softmax_loop(row):
    top = max(row)
    powers = [math.exp(value - top) for value in row]
    return [power / sum(powers) for power in powers]


def metrics_loop(logits, labels, temperature=1.0):
    right, nll, brier = 0, 0.0, 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        probabilities = softmax_loop([value / temperature for value in row])
        right += row.index(max(row)) == label
        nll -= math.log(probabilities[label])
        brier += sum((p - (c == label)) ** 2 for c, p in enumerate(probabilities))
    return {"accuracy": right / len(labels), "nll": nll / len(labels), "brier": brier / len(labels)}


def ece_loop(bins_of_pairs):
    """Sum over bins of (confidence, right) pairs."""
    total = sum(len(pairs) for pairs in bins_of_pairs)
    error = 0.0
    for pairs in bins_of_pairs:
        if pairs:
            error += abs(sum(r for _, r in pairs) - sum(c for c, _ in pairs)) / total
    return error


def pairs_loop(logits, labels):
    pairs = []
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        probabilities = softmax_loop(row)
        pairs.append((max(probabilities), probabilities.index(max(probabilities)) == label))
    return pairs


def width_bins(pairs, bins):
    return [[p for p in pairs if b / bins < p[0] <= (b + 1) / bins] for b in range(bins)]


def mass_bins(pairs, bins):
    pairs = sorted(pairs)
    edges = [math.ceil(b * len(pairs) / bins) for b in range(bins + 1)]
    return [pairs[low:high] for low, high in itertools.pairwise(edges)]


def from_confidences(confidences):
    """Make two-class logits whose first class has the given probability."""
    return np.array([[math.log(c), math.log(1 - c)] for c in confidences])


@pytest.fixture
def logits(rng):
    return rng.normal(size=(203, 7)).astype(np.float32) * 3


@pytest.fixture
def labels(rng, logits):
    return np.where(rng.random(203) < 0.6, logits.argmax(axis=1), rng.integers(0, 7, 203))


@pytest.mark.parametrize("k", [1, 3, 5, 7])
def test_the_label_is_among_the_k_largest(logits, labels, k):
    rounded = logits.round()  # so that some are equal
    ranked = [sorted(range(7), key=lambda c, row=row: (-row[c], c)) for row in rounded.tolist()]
    expected = sum(label in row[:k] for row, label in zip(ranked, labels.tolist(), strict=True)) / len(labels)
    assert evaluate.top_k(rounded, labels, k) == pytest.approx(expected, rel=1e-12)
    assert k != 1 or expected == evaluate.accuracy(rounded, labels)
    assert k != 5 or expected == evaluate.top_5(rounded, labels)


def test_accuracy_of_each_class(logits, labels):
    wider = np.pad(logits, [(0, 0), (0, 1)], constant_values=-9)  # a class without examples
    found = evaluate.per_class(wider, labels)
    own = {c: [row.index(max(row)) == c for row in wider[labels == c].tolist()] for c in range(8)}
    assert found["count"].tolist() == [len(right) for right in own.values()]
    expected = [sum(right) / len(right) if right else math.nan for right in own.values()]
    np.testing.assert_allclose(found["accuracy"], expected, rtol=1e-12)
    assert evaluate.per_class_accuracy(wider, labels) == pytest.approx(sum(expected[:7]) / 7, rel=1e-12)


@pytest.mark.parametrize("k", [0, 8])
def test_a_k_that_is_no_rank_is_an_error(logits, labels, k):
    with pytest.raises(ValueError, match=f"k must be between 1 and the 7 classes, not {k}"):
        evaluate.top_k(logits, labels, k)


@pytest.mark.parametrize("temperature", [1.0, 0.3, 4.0])
def test_metrics_equal_the_loops(logits, labels, temperature):
    measured = evaluate.metrics(logits, labels, temperature=temperature)
    for name, value in metrics_loop(logits.astype(np.float64), labels, temperature).items():
        assert measured[name] == pytest.approx(value, rel=1e-12), name
    pairs = pairs_loop(logits.astype(np.float64) / temperature, labels)
    assert measured["ece"] == pytest.approx(ece_loop(mass_bins(pairs, 15)), rel=1e-10)
    assert measured["ece_equal_width"] == pytest.approx(ece_loop(width_bins(pairs, 15)), rel=1e-10)


def test_single_metrics_are_entries_of_metrics(logits, labels):
    measured = evaluate.metrics(logits, labels)
    assert evaluate.accuracy(logits, labels) == measured["accuracy"]
    assert evaluate.nll(logits, labels) == measured["nll"]
    assert evaluate.brier(logits, labels) == measured["brier"]
    assert evaluate.ece(logits, labels) == measured["ece"]
    assert evaluate.ece(logits, labels, mass="width") == measured["ece_equal_width"]
    assert evaluate.correct(logits, labels).sum() == round(measured["accuracy"] * 203)


def test_many_examples_are_measured_in_blocks(rng):
    logits, labels = rng.normal(size=(9_001, 3)), rng.integers(0, 3, 9_001)
    expected = metrics_loop(logits, labels)
    measured = evaluate.metrics(logits, labels)
    assert {name: measured[name] for name in expected} == pytest.approx(expected, rel=1e-10)


def test_bfloat16_logits_and_far_apart_logits():
    logits = np.array([[1000.0, -1000.0], [0.0, 2.0]], ml_dtypes.bfloat16)
    measured = evaluate.metrics(logits, [1, 1])
    assert measured["nll"] == pytest.approx((2000 + math.log1p(math.exp(-2))) / 2)
    assert measured["accuracy"] == 0.5


def test_equal_logits_predict_the_first_class():
    assert evaluate.accuracy(np.zeros((2, 3)), np.array([0, 1])) == 0.5


def test_logarithms_of_probabilities_are_logits():
    assert evaluate.brier(np.log([[0.7, 0.2, 0.1]]), [0]) == pytest.approx(0.09 + 0.04 + 0.01)


def test_calibration_error_by_hand():
    # confidences .6 .7 .8 .9, right 1 0 1 1
    logits, labels = from_confidences([0.6, 0.7, 0.8, 0.9]), np.array([0, 1, 0, 0])
    assert evaluate.ece(logits, labels, bins=2) == pytest.approx(0.5 * 0.15 + 0.5 * 0.15)  # {.6 .7}, {.8 .9}
    # widths (.5, .75] and (.75, 1]: the same pairs; (2/3, 1] takes three
    assert evaluate.ece(logits, labels, bins=4, mass="width") == pytest.approx(0.15)
    assert evaluate.ece(logits, labels, bins=3, mass="width") == pytest.approx(0.25 * 0.4 + 0.75 * abs(2 / 3 - 0.8))


def test_equal_confidences_share_a_bin_whatever_their_order(rng):
    logits, labels = from_confidences([0.75] * 8), np.array([0, 0, 0, 0, 0, 0, 1, 1])
    assert evaluate.ece(logits, labels, bins=4) == pytest.approx(0.0, abs=1e-12)
    shuffled = rng.permutation(8)
    assert evaluate.ece(logits, labels[shuffled], bins=4) == pytest.approx(0.0, abs=1e-12)


def test_fewer_examples_than_bins():
    logits, labels = from_confidences([0.6, 0.9]), np.array([0, 1])
    assert evaluate.ece(logits, labels) == pytest.approx(0.5 * 0.4 + 0.5 * 0.9)


def test_reliability_lists_the_bins_of_ece(logits, labels):
    diagram = evaluate.reliability(logits, labels, bins=10)
    expected = mass_bins(pairs_loop(logits.astype(np.float64), labels), 10)
    assert [b["count"] for b in diagram] == [len(pairs) for pairs in expected]
    for entry, pairs in zip(diagram, expected, strict=True):
        assert entry["confidence"] == pytest.approx(sum(c for c, _ in pairs) / len(pairs))
        assert entry["accuracy"] == pytest.approx(sum(r for _, r in pairs) / len(pairs))


@pytest.mark.parametrize("temperature", [0.2, 1.0, 3.7])
def test_the_temperature_of_sampled_labels_is_recovered(rng, temperature):
    logits = rng.normal(size=(40_000, 4)) * 3
    gumbel = rng.gumbel(size=logits.shape)
    labels = (logits / temperature + gumbel).argmax(axis=1)  # sampled from softmax(logits / temperature)
    assert evaluate.fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)


def test_the_fitted_temperature_minimises_the_likelihood(logits, labels):
    best = evaluate.fit_temperature(logits, labels)
    at_best = evaluate.metrics(logits, labels, temperature=best)["nll"]
    grid = [evaluate.metrics(logits, labels, temperature=best * f)["nll"] for f in (0.5, 0.99, 1.01, 2)]
    assert at_best < min(grid)


def test_the_temperature_stays_in_its_range():
    logits = np.array([[3.0, 0.0], [0.0, 2.0]])
    assert evaluate.fit_temperature(logits, [0, 1]) == 0.01
    assert evaluate.fit_temperature(logits, [1, 0]) == 100.0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_named(value):
    logits = np.zeros((5, 3))
    logits[3, 1] = value
    with pytest.raises(ValueError, match=r"1 of 5 examples hold NaN or infinity, the first is example 3"):
        evaluate.metrics(logits, np.zeros(5, int))


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros(4), np.zeros(4, int), "at least two classes"),
        (np.zeros((4, 1)), np.zeros(4, int), "at least two classes"),
        (np.zeros((4, 2)), np.zeros(3, int), "4 integer labels"),
        (np.zeros((4, 2)), np.zeros(4), "integer labels, not float64"),
        (np.zeros((0, 2)), np.zeros(0, int), "no examples"),
        (np.zeros((2, 2)), np.array([0, 2]), r"labels lie in \[0, 2\].*in \[0, 2\)"),
        (np.zeros((2, 2)), np.array([-1, 1]), r"labels lie in \[-1, 1\]"),
    ],
)
def test_logits_and_labels_that_do_not_fit(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        evaluate.accuracy(logits, labels)


def test_settings_out_of_range():
    logits, labels = np.zeros((2, 2)), np.array([0, 1])
    for temperature in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="temperature must be positive"):
            evaluate.metrics(logits, labels, temperature=temperature)
    with pytest.raises(ValueError, match="bins must be at least 1"):
        evaluate.ece(logits, labels, bins=0)
    with pytest.raises(ValueError, match="mass must be 'equal' or 'width', not 'widht'"):
        evaluate.ece(logits, labels, mass="widht")
