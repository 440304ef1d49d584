"""Measure outputs against targets that are no single class: numbers, several labels, tokens, matches.

Everything here is NumPy on the host in float64, as in `soups.evaluate.classification`, and takes (outputs, targets).
`METRICS` has all that is ready-made, by the names that `Evaluator(metrics=[...])` takes.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # its parts are imported when they are used
from numpy.typing import ArrayLike

from soups.arguments import check_takes
from soups.evaluate import classification
from soups.evaluate.classification import check_finite
from soups.names import check_name, did_you_mean
from soups.recipes._scores import MODES, direction

IGNORED = -100  # the target of a token that does not count, as in Hugging Face's data


class Metric(NamedTuple):
    """Hold a metric: `function(outputs, targets) -> float`, and "max" or "min", whichever is better."""

    function: Callable[[Any, Any], float]
    mode: str


# --- Numbers --------------------------------------------------------------------------------------------------------


def mse(outputs: ArrayLike, targets: ArrayLike) -> float:
    """Return the mean squared error over all numbers of outputs and targets [N, ...]."""
    outputs, targets = _numbers(outputs, targets)
    return float(np.square(outputs - targets).mean())


def mae(outputs: ArrayLike, targets: ArrayLike) -> float:
    """Return the mean absolute error over all numbers of outputs and targets [N, ...]."""
    outputs, targets = _numbers(outputs, targets)
    return float(np.abs(outputs - targets).mean())


def r2(outputs: ArrayLike, targets: ArrayLike) -> float:
    """Return 1 − Σ (y − ŷ)² / Σ (y − ȳ)² of each column of [N, ...], as the mean over the columns.

    A column whose targets are all equal counts 1 where it is met exactly, else 0, as in scikit-learn.
    """
    outputs, targets = _columns(outputs, targets)
    left = np.square(targets - outputs).sum(0)
    total = np.square(targets - targets.mean(0)).sum(0)
    constant = np.where(left == 0, 1.0, 0.0)
    return float(np.where(total > 0, 1 - left / np.where(total > 0, total, 1), constant).mean())


def pearson(outputs: ArrayLike, targets: ArrayLike) -> float:
    """Return Pearson's correlation of each column of [N, ...], as the mean over the columns.

    Where outputs or targets are all equal it is 0, not SciPy's NaN: a search ranks such weights, and goes on.
    """
    return _correlation(*_columns(outputs, targets))


def spearman(outputs: ArrayLike, targets: ArrayLike) -> float:
    """Return Spearman's rank correlation, as `pearson`; equal numbers share the mean of their ranks."""
    outputs, targets = _columns(outputs, targets)
    return _correlation(*(scipy.stats.rankdata(values, axis=0) for values in (outputs, targets)))


# --- Several labels for one example ---------------------------------------------------------------------------------


def mean_average_precision(outputs: ArrayLike, targets: ArrayLike) -> float:
    """Return the mean over the classes of the average precision Σ_n (R_n − R_{n−1}) P_n, without interpolation.

    Examples of equal score are one threshold; classes without a positive example are left out.

    Args:
        outputs: scores [N, C], such as logits, of which more is more likely.
        targets: 0 or 1, or booleans, [N, C].

    Raises:
        ValueError: scores and targets whose shapes do not fit; targets that are not 0 or 1; scores that are not finite;
            no positive example at all.
    """
    scores, truth = _multi_label(outputs, targets)
    used = [column for column in range(truth.shape[1]) if truth[:, column].any()]
    if not used:
        raise ValueError("no class has a positive example: there is no average precision")
    return float(np.mean([_average_precision(scores[:, column], truth[:, column]) for column in used]))


def micro_f1(outputs: ArrayLike, targets: ArrayLike) -> float:
    """Return 2 TP / (2 TP + FP + FN) over all classes together, of scores [N, C] that are positive above 0."""
    found, truth = _predicted_labels(outputs, targets)
    return _f1(found.ravel(), truth.ravel())


def macro_f1(outputs: ArrayLike, targets: ArrayLike) -> float:
    """Return F1 as the mean over the classes: of multi-label scores [N, C], or of logits [N, C] and labels [N]."""
    if np.ndim(targets) == 1:
        found, truth = _classes(outputs, targets)
        return float(np.mean([_f1(found == c, truth == c) for c in np.union1d(found, truth)]))
    found, truth = _predicted_labels(outputs, targets)
    return float(np.mean([_f1(found[:, c], truth[:, c]) for c in range(truth.shape[1])]))


# --- Tokens ---------------------------------------------------------------------------------------------------------


def token_scores(logits: ArrayLike, targets: ArrayLike) -> dict[str, Any]:
    """Return {"nll", "correct"} [B, T] of logits [B, T, V]: an `Evaluator(keep=)`, whose metrics take it for logits.

    Targets of -100 do not count, and get 0 in both.
    """
    counted = targets != IGNORED
    own = jnp.where(counted, targets, 0)[..., None]
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    nll = -jnp.take_along_axis(log_probabilities, own, axis=-1)[..., 0]
    correct = logits.argmax(axis=-1) == own[..., 0]
    return {"nll": jnp.where(counted, nll, 0.0), "correct": correct & counted}


def token_accuracy(outputs: ArrayLike, targets: ArrayLike) -> float:
    """Return the fraction of the tokens [N, T] that logits [N, T, V] predict; targets of -100 do not count."""
    scores, counted = _tokens(outputs, targets)
    return float(scores["correct"][counted].mean())


def token_nll(outputs: ArrayLike, targets: ArrayLike) -> float:
    """Return the mean negative log-likelihood of the tokens [N, T] in nats; targets of -100 do not count."""
    scores, counted = _tokens(outputs, targets)
    return float(check_finite(scores["nll"], "token losses")[counted].mean(dtype=np.float64))


def perplexity(outputs: ArrayLike, targets: ArrayLike) -> float:
    """Return exp(`token_nll`)."""
    return float(np.exp(token_nll(outputs, targets)))


# --- Matches --------------------------------------------------------------------------------------------------------


def exact_match(outputs: ArrayLike, targets: ArrayLike) -> float:
    """Return the fraction of examples all of whose classes are right, of logits [N, ..., C] or classes [N, ...].

    Targets of -100 do not count.
    """
    found, truth = _classes(outputs, targets)
    right = (found == truth) | (truth == IGNORED)
    return float(right.reshape(len(right), -1).all(axis=1).mean())


def f1(outputs: ArrayLike, targets: ArrayLike) -> float:
    """Return 2 TP / (2 TP + FP + FN) of the class 1, of logits [N, C] or classes [N]; 0 where that is 0 / 0."""
    found, truth = _classes(outputs, targets)
    return _f1(found == 1, truth == 1)


def matthews(outputs: ArrayLike, targets: ArrayLike) -> float:
    """Return the Matthews correlation of predicted and true classes, of logits [N, C] or classes [N].

    The covariance of their indicator vectors over the root of the product of their variances, for any number of classes
    (Gorodkin, 2004); 0 where one of them is constant.
    """
    found, truth = _classes(outputs, targets)
    classes = np.union1d(found, truth)
    a, b = ((values[:, None] == classes).astype(np.float64) for values in (found, truth))
    a, b = a - a.mean(0), b - b.mean(0)
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / scale) if scale else 0.0


# --- All of them by name --------------------------------------------------------------------------------------------

_BY_OWN_NAME = (
    *(classification.accuracy, classification.top_5, classification.per_class_accuracy),
    *(classification.nll, classification.brier, classification.ece),
    *(mse, mae, r2, pearson, spearman, micro_f1, macro_f1),
    *(token_accuracy, token_nll, perplexity, exact_match, f1, matthews),
)
_READY = {
    **{function.__name__: function for function in _BY_OWN_NAME},
    "top_1": classification.accuracy,
    "ece_equal_width": functools.partial(classification.ece, mass="width"),
    "map": mean_average_precision,
}
#: ready-made metrics by name, each with the direction in which it is better
METRICS = {name: Metric(function, MODES[name]) for name, function in _READY.items()}
CLASS_METRICS = tuple(METRICS[name] for name in (*classification.NAMES, "top_1", "top_5", "per_class_accuracy"))


def chosen_metrics(metrics: Sequence[str] | Mapping[str, Callable | Metric]) -> dict[str, Metric]:
    """Return metrics by name, of names alone or of functions by name.

    Raises:
        ValueError: an unknown name, a function whose direction is not known, or none.
    """
    if not isinstance(metrics, Mapping | Sequence) or isinstance(metrics, str) or not metrics:  # a set has no first one
        raise ValueError(f"metrics must be a list of names, or a mapping from names to functions, not {metrics!r}")
    if isinstance(metrics, Mapping):
        return {name: _metric(name, given) for name, given in metrics.items()}
    return {check_name(name, METRICS, "metric"): METRICS[name] for name in metrics}


def _metric(name, given):
    function, mode = given if isinstance(given, tuple) else (given, None)
    if mode is None and name.rpartition("/")[2] not in MODES:
        both = "Metric(function, 'max') or Metric(function, 'min')"
        raise ValueError(f"say whether a higher or a lower {name!r} is better{did_you_mean(name, MODES)}: give {both}")
    check_takes(f"metrics[{name!r}]", function, "outputs, targets")
    return Metric(function, direction(name, mode))


# --- What is given --------------------------------------------------------------------------------------------------


def _numbers(outputs, targets):
    outputs, targets = np.asarray(outputs, np.float64), np.asarray(targets, np.float64)
    if outputs.shape == (*targets.shape, 1):
        outputs = outputs[..., 0]
    if outputs.shape != targets.shape or not outputs.size:
        raise ValueError(f"outputs {outputs.shape} and targets {targets.shape} must be of one shape [N, ...]")
    if not np.isfinite(targets).all():
        raise ValueError("targets hold NaN or infinity: leave out the examples without a number")
    return check_finite(outputs, "outputs"), targets


def _columns(outputs, targets):
    outputs, targets = _numbers(outputs, targets)
    return outputs.reshape(len(outputs), -1), targets.reshape(len(targets), -1)


def _correlation(a, b):
    a, b = a - a.mean(0), b - b.mean(0)
    scale = np.sqrt(np.square(a).sum(0) * np.square(b).sum(0))
    return float(np.where(scale > 0, (a * b).sum(0) / np.where(scale > 0, scale, 1), 0.0).mean())


def _multi_label(outputs, targets):
    scores, truth = _numbers(outputs, targets)
    if truth.ndim != 2 or not np.isin(truth, (0, 1)).all():
        raise ValueError(f"targets of several labels must be 0 or 1 [N, C], not of shape {truth.shape}")
    return scores, truth == 1


def _predicted_labels(outputs, targets):
    scores, truth = _multi_label(outputs, targets)
    return scores > 0, truth


def _average_precision(scores, truth):
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(truth[order])
    last = np.append(np.diff(scores[order]) != 0, True)  # of those of equal score
    precision = (hits / np.arange(1, len(hits) + 1))[last]
    return float((np.diff(hits[last], prepend=0) * precision).sum() / hits[-1])


def _f1(found, truth):
    both, either = np.count_nonzero(found & truth), np.count_nonzero(found) + np.count_nonzero(truth)
    return 2 * both / either if either else 0.0


def _classes(outputs, targets):
    """Return predicted and true classes [N, ...]."""
    outputs, targets = np.asarray(outputs), np.asarray(targets)
    if outputs.ndim == targets.ndim + 1:
        outputs = check_finite(outputs, "logits").argmax(axis=-1)
    integers = all(np.issubdtype(values.dtype, np.integer) or values.dtype == bool for values in (outputs, targets))
    if outputs.shape != targets.shape or not outputs.size or not integers:
        raise ValueError(
            f"logits [N, ..., C] or integer classes [N, ...] are needed for integer targets {targets.shape}, not "
            f"{outputs.dtype} of shape {outputs.shape}"
        )
    return outputs, targets


def _tokens(outputs, targets):
    """Return the scores of tokens and which of them count."""
    targets = np.asarray(targets)
    counted = targets != IGNORED
    if not counted.any():
        raise ValueError("no token counts: all targets are -100")
    if targets[counted].min() < 0:
        raise ValueError(
            f"tokens must be at least 0, or -100 where they do not count, but one is {targets[counted].min()}"
        )
    if not isinstance(outputs, Mapping):
        outputs = _token_scores_of(np.asarray(outputs), targets)
    outputs = {name: np.asarray(outputs[name]) for name in ("nll", "correct")}
    if any(leaf.shape != targets.shape for leaf in outputs.values()):
        raise ValueError(f"tokens {targets.shape} need logits {(*targets.shape, 'V')}, or what token_scores gives")
    return outputs, counted


def _token_scores_of(logits, targets):
    if logits.ndim != targets.ndim + 1 or logits.shape[:-1] != targets.shape:
        raise ValueError(f"tokens {targets.shape} need logits {(*targets.shape, 'V')}, not of shape {logits.shape}")
    vocabulary = logits.shape[-1]
    if targets.max() >= vocabulary:
        raise ValueError(f"tokens must be in [0, {vocabulary}), or -100 where they do not count, not {targets.max()}")
    rows, own = logits.reshape(-1, vocabulary), np.where(targets == IGNORED, 0, targets).ravel()
    found = [
        classification.losses(rows[start : start + classification.BLOCK], own[start : start + classification.BLOCK])
        for start in range(0, len(own), classification.BLOCK)
    ]
    nll, correct = (np.concatenate(column).reshape(targets.shape) for column in zip(*found, strict=True))
    return {"nll": nll, "correct": correct}
