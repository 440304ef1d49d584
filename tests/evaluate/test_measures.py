"""Metrics of numbers, several labels, tokens and matches against their formulas, written as loops in float64."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from soups import evaluate
from soups.evaluate import METRICS
from soups.recipes._scores import MODES


def mean(values):
    values = list(values)
    return math.fsum(values) / len(values)


def correlation_loop(a, b):
    a, b = [x - mean(a) for x in a], [y - mean(b) for y in b]
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(
        math.fsum(x * x for x in a) * math.fsum(y * y for y in b)
    )


def rank_loop(values):
    return [mean(1 + sum(w < v for w in values) + k for k in range(sum(w == v for w in values))) for v in values]


def f1_loop(found, truth):
    pairs = list(zip(found, truth, strict=True))
    right, wrong, missed = (sum(p == pair for p in pairs) for pair in ((True, True), (True, False), (False, True)))
    return 2 * right / (2 * right + wrong + missed) if right + wrong + missed else 0.0


def average_precision_loop(scores, truth):
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = [t for s, t in zip(scores, truth, strict=True) if s >= threshold]
        recall = sum(taken) / sum(truth)
        total, before = total + (recall - before) * sum(taken) / len(taken), recall
    return total


def softmax_losses(row, label):
    top = max(row)
    return top + math.log(sum(math.exp(v - top) for v in row)) - row[label]


@pytest.fixture
def numbers(rng):
    targets = rng.normal(size=(40, 3))
    return (targets + rng.normal(size=(40, 3))).round(1).astype(np.float32), targets.round(1)


def columns(*arrays):
    return zip(*(np.asarray(a, np.float64).reshape(len(a), -1).T.tolist() for a in arrays), strict=True)


@pytest.mark.parametrize("shape", [(40, 3), (120,), (40, 3, 1)])
def test_numbers_equal_the_loops(numbers, shape):
    outputs, targets = (values.reshape(shape) for values in numbers)
    errors = [o - t for o, t in zip(outputs.astype(np.float64).ravel(), targets.ravel(), strict=True)]
    assert evaluate.mse(outputs, targets) == pytest.approx(mean(e * e for e in errors), rel=1e-12)
    assert evaluate.mae(outputs, targets) == pytest.approx(mean(map(abs, errors)), rel=1e-12)
    r2, pearson, spearman = [], [], []
    for found, truth in columns(outputs, targets):
        left = math.fsum((t - o) ** 2 for o, t in zip(found, truth, strict=True))
        r2.append(1 - left / math.fsum((t - mean(truth)) ** 2 for t in truth))
        pearson.append(correlation_loop(found, truth))
        spearman.append(correlation_loop(rank_loop(found), rank_loop(truth)))
        assert correlation_loop(rank_loop(found), rank_loop(truth)) == pytest.approx(stats.spearmanr(found, truth)[0])
    assert evaluate.r2(outputs, targets) == pytest.approx(mean(r2), rel=1e-12)
    assert evaluate.pearson(outputs, targets) == pytest.approx(mean(pearson), rel=1e-12)
    assert evaluate.spearman(outputs, targets) == pytest.approx(mean(spearman), rel=1e-12)


def test_constant_columns():
    flat, steps = np.ones(4), np.arange(4.0)
    assert evaluate.pearson(flat, steps) == evaluate.spearman(steps, flat) == 0.0
    assert evaluate.r2(flat, flat) == 1.0 and evaluate.r2(steps, flat) == 0.0
    assert evaluate.mse(steps[:, None], steps) == 0.0  # a last axis of one number


@pytest.fixture
def several(rng):
    return rng.normal(size=(30, 4)).round(1), rng.random((30, 4)) < [0.1, 0.5, 0.9, 0.3]


def test_several_labels_equal_the_loops(several):
    scores, truth = several
    pairs = list(columns(scores, truth))
    expected = mean(average_precision_loop(s, t) for s, t in pairs)
    assert evaluate.mean_average_precision(scores, truth) == pytest.approx(expected, rel=1e-12)
    found = [[v > 0 for v in s] for s, _ in pairs]
    truths = [[bool(v) for v in t] for _, t in pairs]
    assert evaluate.macro_f1(scores, truth) == pytest.approx(mean(map(f1_loop, found, truths)), rel=1e-12)
    everything = f1_loop(list(itertools.chain(*found)), list(itertools.chain(*truths)))
    assert evaluate.micro_f1(scores, truth.astype(np.int32)) == pytest.approx(everything, rel=1e-12)


def test_classes_without_a_positive_example_are_left_out_of_average_precision(several):
    scores, truth = several
    without = np.where([True, True, False, True], truth, False)
    kept = [0, 1, 3]
    assert evaluate.mean_average_precision(scores, without) == evaluate.mean_average_precision(
        scores[:, kept], truth[:, kept]
    )
    assert evaluate.mean_average_precision([[0.3], [0.3], [0.1]], [[1], [0], [0]]) == 0.5  # a tie is one threshold


@pytest.fixture
def tokens(rng):
    logits, targets = rng.normal(size=(6, 5, 7)).astype(np.float32) * 3, rng.integers(0, 7, (6, 5))
    targets = np.where(rng.random((6, 5)) < 0.6, logits.argmax(-1), targets)
    return logits, np.where(rng.random((6, 5)) < 0.3, -100, targets)


def test_tokens_equal_the_loops_and_those_ignored_do_not_count(tokens):
    logits, targets = tokens
    counted = [(logits[place].astype(np.float64).tolist(), int(targets[place])) for place in np.ndindex(6, 5)]
    counted = [(row, label) for row, label in counted if label != -100]
    nll = mean(softmax_losses(row, label) for row, label in counted)
    assert evaluate.token_nll(logits, targets) == pytest.approx(nll, rel=1e-12)
    assert evaluate.perplexity(logits, targets) == pytest.approx(math.exp(nll), rel=1e-12)
    right = mean(row.index(max(row)) == label for row, label in counted)
    assert evaluate.token_accuracy(logits, targets) == pytest.approx(right, rel=1e-12)
    kept = evaluate.token_scores(logits, targets)
    assert evaluate.token_nll(kept, targets) == pytest.approx(nll, rel=1e-5)
    assert evaluate.token_accuracy(kept, targets) == right
    whole = mean(
        all(t in (-100, row.index(max(row))) for row, t in zip(rows, labels, strict=True))
        for rows, labels in zip(logits.tolist(), targets.tolist(), strict=True)
    )
    assert 0 < whole < 1 and evaluate.exact_match(logits, targets) == whole
    assert evaluate.exact_match(logits.argmax(-1), targets) == whole


def matthews_loop(found, truth):
    """Write the coefficient of two classes by its counts."""
    pairs = list(zip(found, truth, strict=True))
    tp, fp, fn, tn = (pairs.count(pair) for pair in ((1, 1), (1, 0), (0, 1), (0, 0)))
    return (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))


def test_matches_equal_the_loops(rng):
    logits = rng.normal(size=(50, 2))
    truth = np.where(rng.random(50) < 0.7, logits.argmax(1), rng.integers(0, 2, 50))
    found = logits.argmax(1).tolist()
    for outputs in (logits, np.array(found)):
        assert evaluate.matthews(outputs, truth) == pytest.approx(matthews_loop(found, truth.tolist()), rel=1e-12)
        expected = f1_loop([f == 1 for f in found], [t == 1 for t in truth.tolist()])
        assert evaluate.f1(outputs, truth) == pytest.approx(expected, rel=1e-12)
    many, labels = rng.integers(0, 4, 60), rng.integers(0, 4, 60)
    one_hot = [np.eye(4)[values].ravel() - np.tile(np.eye(4)[values].mean(0), 60) for values in (many, labels)]
    expected = one_hot[0] @ one_hot[1] / math.sqrt((one_hot[0] @ one_hot[0]) * (one_hot[1] @ one_hot[1]))
    assert evaluate.matthews(many, labels) == pytest.approx(expected, rel=1e-12)
    macro = mean(f1_loop((many == c).tolist(), (labels == c).tolist()) for c in range(4))
    assert evaluate.macro_f1(many, labels) == pytest.approx(macro, rel=1e-12)
    assert evaluate.matthews(many, many) == 1.0 and evaluate.matthews(many, np.zeros(60, int)) == 0.0
    assert evaluate.f1([0, 0], [0, 0]) == 0.0


def test_directions_are_right(rng):
    """Every ready-made metric gets better in its direction when outputs come nearer to the targets."""
    labels, truth, numbers = rng.integers(0, 6, 80), rng.random((80, 3)) < 0.5, rng.normal(size=80)
    two, words = rng.integers(0, 2, 80), rng.integers(0, 6, (80, 4))
    given = {name: labels for name in METRICS}
    given |= dict.fromkeys(("mse", "mae", "r2", "pearson", "spearman"), numbers)
    given |= dict.fromkeys(("map", "micro_f1"), truth) | dict.fromkeys(("f1", "matthews"), two)
    given |= dict.fromkeys(("token_accuracy", "token_nll", "perplexity", "exact_match"), words)
    for name, (measure, mode) in METRICS.items():
        targets = given[name]
        if targets is numbers:
            exact, noise = targets, rng.normal(size=80)
        elif targets is truth:
            exact, noise = 2.0 * targets - 1, rng.normal(size=targets.shape)
        else:
            exact = np.eye(targets.max() + 1)[targets] * 8
            noise = rng.normal(size=exact.shape)
        good, bad = measure(exact + 0.1 * noise, targets), measure(0.1 * exact + 2 * noise, targets)
        assert (good > bad) if mode == "max" else (good < bad), name
        assert mode == MODES[name]


BROKEN = np.array([[0.0, 1.0], [np.nan, 0.0], [1.0, np.inf]])


@pytest.mark.parametrize("name", METRICS)
def test_outputs_that_are_not_finite_are_named(name):
    targets = {"map": [[0, 1]] * 3, "micro_f1": [[0, 1]] * 3}.get(name, np.array([0, 1, 1]))
    outputs = BROKEN
    if name in ("mse", "mae", "r2", "pearson", "spearman"):
        outputs = BROKEN[:, 0]
    elif name == "top_5":
        outputs = np.tile(BROKEN, 3)
    with pytest.raises(evaluate.NotFiniteError, match=r"of [12] of 3 examples hold NaN or infinity, .* example 1"):
        METRICS[name].function(outputs, targets)


@pytest.mark.parametrize(
    ("measure", "outputs", "targets", "message"),
    [
        (evaluate.mse, np.zeros(3), np.zeros(4), r"outputs \(3,\) and targets \(4,\) must be of one shape"),
        (evaluate.spearman, np.zeros(0), np.zeros(0), "must be of one shape"),
        (evaluate.mean_average_precision, np.zeros((3, 2)), np.full((3, 2), 2), "must be 0 or 1"),
        (evaluate.mean_average_precision, np.zeros((3, 2)), np.zeros((3, 2)), "no class has a positive example"),
        (evaluate.micro_f1, np.zeros(3), np.zeros(3), r"must be 0 or 1 \[N, C\], not of shape \(3,\)"),
        (evaluate.f1, np.zeros(3), np.zeros(3, int), "integer classes .* not float64"),
        (evaluate.matthews, np.zeros((3, 2)), np.zeros(4, int), "are needed for integer targets"),
        (evaluate.token_nll, np.zeros((3, 2)), np.zeros((3, 2), int), r"need logits \(3, 2, 'V'\), not of shape"),
        (evaluate.token_nll, np.zeros((3, 2, 4)), np.full((3, 2), 4), r"tokens must be in \[0, 4\)"),
        (evaluate.perplexity, np.zeros((3, 2, 4)), np.full((3, 2), -100), "no token counts"),
        (evaluate.token_nll, np.zeros((3, 2, 4)), np.full((3, 2), -1), "at least 0, or -100 .* one is -1"),
        (
            evaluate.token_accuracy,
            {"nll": np.zeros((3, 2)), "correct": np.zeros((3, 2), bool)},
            np.full((3, 2), -1),
            "at least 0, or -100 .* one is -1",
        ),
        (
            evaluate.token_accuracy,
            {"nll": np.zeros((3, 4)), "correct": np.zeros((3, 4), bool)},
            np.zeros((3, 2), int),
            "or what token_scores gives",
        ),
    ],
)
def test_what_does_not_fit_is_an_error(measure, outputs, targets, message):
    with pytest.raises(ValueError, match=message):
        measure(outputs, targets)


@pytest.mark.parametrize("name", ["mse", "mae", "r2", "pearson", "spearman"])
def test_targets_that_are_no_numbers_are_an_error(name):
    with pytest.raises(ValueError, match="targets hold NaN or infinity") as error:
        METRICS[name].function(np.zeros(3), np.array([0.0, np.nan, 1.0]))
    assert not isinstance(error.value, evaluate.NotFiniteError)  # no fault of the network
