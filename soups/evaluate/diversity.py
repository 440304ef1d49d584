"""Measure how differently members fail.

The counts behind the measures: N_11 examples that both members get right, N_10 and N_01 that only one of them does, and
N_00 that both get wrong.
"""

import itertools
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike

from soups.evaluate.classification import correct


def ratio_error(correct_a: ArrayLike, correct_b: ArrayLike) -> float:
    """Return the ratio of separate to simultaneous errors, (N_01 + N_10) / N_00; more is more diverse.

    Where the members never fail together it is 2 (N_01 + N_10), as if they had failed on half an example.

    Args:
        correct_a: bool [N], whether the first member is right; correct_b of the second.

    Aksela, "Comparison of classifier selection methods for improving committee performance", 2003.
    """
    _, only_a, only_b, neither = _counts(correct_a, correct_b)
    return (only_a + only_b) / (neither or 0.5)


def q_statistic(correct_a: ArrayLike, correct_b: ArrayLike) -> float:
    """Return Yule's Q = (N_11 N_00 − N_01 N_10) / (N_11 N_00 + N_01 N_10), 0 for independent members, 1 for equal ones.

    Where that is 0/0 one member is always right or always wrong: 1 if the two never differ, else 0.

    Kuncheva and Whitaker, "Measures of diversity in classifier ensembles", 2003.
    """
    both, only_a, only_b, neither = _counts(correct_a, correct_b)
    together, apart = both * neither, only_a * only_b
    if together + apart == 0:
        return float(only_a + only_b == 0)
    return (together - apart) / (together + apart)


def q_diversity(correct_a: ArrayLike, correct_b: ArrayLike) -> float:
    """Return 1 − Q: 0 for equal members, 1 for independent ones, up to 2 for opposite ones."""
    return 1.0 - q_statistic(correct_a, correct_b)


def prediction_diversity(correct_a: ArrayLike, correct_b: ArrayLike) -> float:
    """Return the fraction of examples that exactly one of the two gets right, (N_01 + N_10) / N.

    Wortsman et al., "Robust fine-tuning of zero-shot models", 2022, arXiv 2109.01903, appendix E.
    """
    both, only_a, only_b, neither = _counts(correct_a, correct_b)
    return (only_a + only_b) / (both + only_a + only_b + neither)


def kappa_complement(predictions_a: ArrayLike, predictions_b: ArrayLike) -> float:
    """Return 1 − κ = (1 − p_o) / (1 − p_e): disagreement relative to that of independent members.

    p_o is the fraction of equal predictions and p_e = Σ_c p_a(c) p_b(c) the one expected by chance; 0 where both always
    predict the same single class.

    Args:
        predictions_a: integer [N], the class the first member predicts; predictions_b the second's.

    Cohen, 1960; for members: Wortsman et al., 2022, arXiv 2109.01903, appendix E.
    """
    a, b = _pair(predictions_a, predictions_b)
    classes, index = np.unique(np.concatenate([a, b]), return_inverse=True)
    share_a = np.bincount(index[: len(a)], minlength=len(classes)) / len(a)
    share_b = np.bincount(index[len(a) :], minlength=len(classes)) / len(b)
    if len(classes) == 1:
        return 0.0
    return float(np.mean(a != b) / (1.0 - share_a @ share_b))


def mean_pairwise(measure: Callable, values: Mapping[str, np.ndarray]) -> float:
    """Average a measure of two members over all pairs of members.

    Raises:
        ValueError: fewer than two members; members with different numbers of values.
    """
    if len(values) < 2:
        raise ValueError(f"diversity needs at least two members, but {len(values)} were given")
    return float(np.mean([measure(a, b) for a, b in itertools.combinations(values.values(), 2)]))


def pairwise_diversity(logits_by_member: Mapping[str, np.ndarray], labels: ArrayLike) -> dict[str, float]:
    """Return every measure of this file as its mean over all pairs of members.

    Args:
        logits_by_member: [N, C] by member name.
        labels: [N] integers.

    Returns:
        "ratio_error", "q_diversity", "prediction_diversity" and "kappa_complement"; more is more diverse.
    """
    right = {name: correct(logits, labels) for name, logits in logits_by_member.items()}
    predicted = {name: np.asarray(logits).argmax(axis=1) for name, logits in logits_by_member.items()}
    return {
        "ratio_error": mean_pairwise(ratio_error, right),
        "q_diversity": mean_pairwise(q_diversity, right),
        "prediction_diversity": mean_pairwise(prediction_diversity, right),
        "kappa_complement": mean_pairwise(kappa_complement, predicted),
    }


def _counts(correct_a, correct_b) -> tuple[int, int, int, int]:
    a, b = _pair(correct_a, correct_b)
    if a.dtype != bool or b.dtype != bool:
        raise ValueError(f"members must be boolean arrays, True where they are right, not {a.dtype} and {b.dtype}")
    return tuple(int(np.count_nonzero(both)) for both in (a & b, a & ~b, ~a & b, ~a & ~b))


def _pair(a, b):
    a, b = np.asarray(a), np.asarray(b)
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise ValueError(f"two members need arrays [N] of one length, not of shapes {a.shape} and {b.shape}")
    return a, b
