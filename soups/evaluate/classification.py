"""Measure logits against labels: accuracy, likelihood, calibration.

Everything here is NumPy on the host: the logits of one pass through the network answer every question, in float64, the
same on every machine. All functions take logits [N, C]; for probabilities give their logarithms, which are logits too.
"""

from typing import NamedTuple

import numpy as np
import scipy  # its parts are imported when they are used
from numpy.typing import ArrayLike

from soups.recipes._scores import NotFiniteError

NAMES = ("accuracy", "nll", "brier", "ece", "ece_equal_width")  # of `metrics`
BLOCK = 4096  # rows at a time: float64 copies of 50,000 x 1,000 logits would need several times their memory
_TEMPERATURES = (0.01, 100.0)


class _Examples(NamedTuple):
    """Hold what one example contributes to each metric: arrays [N]."""

    correct: np.ndarray
    confidence: np.ndarray
    nll: np.ndarray
    brier: np.ndarray


def metrics(logits: ArrayLike, labels: ArrayLike, *, temperature: float = 1.0) -> dict[str, float]:
    """Return accuracy, NLL, Brier score and both calibration errors of softmax(logits / temperature).

    Args:
        logits: [N, C], finite, C at least 2.
        labels: [N] integers in [0, C).
        temperature: divides the logits; see `fit_temperature`.

    Returns:
        "accuracy", "nll" (nats), "brier", "ece" (equal mass) and "ece_equal_width" (15 bins each), as Python floats.

    Raises:
        ValueError: logits and labels whose shapes do not fit; labels that are not classes; a temperature that is not
            positive.
        NotFiniteError: a ValueError: logits that hold NaN or infinity.
    """
    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature must be positive and finite, not {temperature}")
    examples = _per_example(logits, labels, temperature)
    means = [float(values.mean()) for values in (examples.correct, examples.nll, examples.brier)]
    errors = [_calibration_error(examples, 15, mass) for mass in ("equal", "width")]
    return dict(zip(NAMES, means + errors, strict=True))


def correct(logits: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """Say for each example whether its largest logit is its label's (the first of equal ones counts): bool [N]."""
    logits, labels = _checked(logits, labels)
    return logits.argmax(axis=1) == labels


def accuracy(logits: ArrayLike, labels: ArrayLike) -> float:
    """Return the fraction of examples whose largest logit is their label's."""
    return float(correct(logits, labels).mean())


def top_k(logits: ArrayLike, labels: ArrayLike, k: int) -> float:
    """Return the fraction of examples whose label is among the k largest logits (the first of equal ones counts).

    Raises:
        ValueError: as `metrics`, or a k that is not between 1 and the number of classes.
    """
    logits, labels = _checked(logits, labels)
    if not 1 <= k <= logits.shape[1]:
        raise ValueError(f"k must be between 1 and the {logits.shape[1]} classes, not {k}")
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    before = np.arange(logits.shape[1]) < labels[:, None]
    return float((((logits > own) | ((logits == own) & before)).sum(axis=1) < k).mean())


def top_5(logits: ArrayLike, labels: ArrayLike) -> float:
    """Return `top_k` for k = 5."""
    return top_k(logits, labels, 5)


def per_class(logits: ArrayLike, labels: ArrayLike) -> dict[str, np.ndarray]:
    """Return {"accuracy", "count"} [C] of the examples of each class; NaN for the accuracy of a class without any."""
    right = correct(logits, labels)
    count = np.bincount(labels, minlength=np.shape(logits)[1])
    hits = np.bincount(labels, weights=right, minlength=len(count))
    return {"accuracy": np.where(count > 0, hits / np.maximum(count, 1), np.nan), "count": count}


def per_class_accuracy(logits: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean of the classes' accuracies, over those that have examples."""
    return float(np.nanmean(per_class(logits, labels)["accuracy"]))


def nll(logits: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean negative log-likelihood −log softmax(z)_y in nats."""
    return float(_per_example(logits, labels).nll.mean())


def brier(logits: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean Brier score Σ_c (p_c − [c = y])², between 0 and 2 (Brier, 1950)."""
    return float(_per_example(logits, labels).brier.mean())


def ece(logits: ArrayLike, labels: ArrayLike, bins: int = 15, mass: str = "equal") -> float:
    """Return the expected calibration error Σ_b (n_b / N) |accuracy_b − confidence_b|.

    The confidence of an example is its largest probability; a bin's are means over its n_b examples.

    Args:
        logits: [N, C]; labels [N].
        bins: how many bins.
        mass: "equal" for bins of equally many examples, those of equal confidence in one bin (Nguyen and O'Connor,
            2015, arXiv 1508.05154); "width" for the bins (b/B, (b+1)/B] (Guo et al., 2017, arXiv 1706.04599).

    Raises:
        ValueError: as `metrics`, fewer than one bin, or another `mass`.
    """
    return _calibration_error(_per_example(logits, labels), bins, mass)


def reliability(logits: ArrayLike, labels: ArrayLike, bins: int = 15) -> list[dict[str, float]]:
    """Return mean confidence, accuracy and number of examples of each equal-mass bin: a reliability diagram.

    Returns:
        {"confidence", "accuracy", "count"} for each bin that has examples, from the least confident up.
    """
    examples = _per_example(logits, labels)
    count, confidence, right = _bin_means(examples, bins, "equal")
    return [
        {"confidence": float(c), "accuracy": float(r), "count": int(n)}
        for n, c, r in zip(count, confidence, right, strict=True)
    ]


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """Find the temperature T that minimises the NLL of softmax(logits / T) on held-out data.

    The NLL is convex in 1/T, so T is the one root of its slope: mean of E_p[z] − z_y over the examples, p =
    softmax(z / T). Where the slope has no root in [0.01, 100] the nearer end is returned: 0.01 if every example is
    right, 100 if the logits know less than nothing about the labels.

    Guo et al., "On calibration of modern neural networks", 2017, arXiv 1706.04599.
    """
    logits, labels = _checked(logits, labels)
    logits = logits.astype(np.float64)
    own = logits[np.arange(len(labels)), labels].mean()

    def slope(log_temperature):
        probabilities = scipy.special.softmax(logits * np.exp(-log_temperature), axis=1)
        return np.einsum("nc,nc->n", probabilities, logits).mean() - own

    low, high = np.log(_TEMPERATURES)
    if slope(low) <= 0:
        return _TEMPERATURES[0]
    if slope(high) >= 0:
        return _TEMPERATURES[1]
    return float(np.exp(scipy.optimize.brentq(slope, low, high, xtol=1e-10)))


def _per_example(logits, labels, temperature=1.0) -> _Examples:
    logits, labels = _checked(logits, labels)
    blocks = [
        _block(logits[start : start + BLOCK].astype(np.float64) / temperature, labels[start : start + BLOCK])
        for start in range(0, len(labels), BLOCK)
    ]
    return _Examples(*(np.concatenate(column) for column in zip(*blocks, strict=True)))


def losses(logits, labels) -> tuple[np.ndarray, np.ndarray]:
    """Return for logits [N, C] of any finite numbers each example's loss in nats and whether it is right: two [N]."""
    examples = _block(np.asarray(check_finite(logits, "logits"), np.float64), labels)
    return examples.nll, examples.correct


def check_finite(values, what: str) -> np.ndarray:
    """Return an array [N, ...] that holds neither NaN nor infinity.

    Raises:
        NotFiniteError: it does; `what` says of what.
    """
    broken = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
    if broken.size:
        raise NotFiniteError(
            f"{what} of {broken.size} of {len(values)} examples hold NaN or infinity, the first is example {broken[0]}"
        )
    return values


def _block(logits, labels) -> _Examples:
    rows = np.arange(len(labels))
    log_probabilities = scipy.special.log_softmax(logits, axis=1)
    probabilities = np.exp(log_probabilities)
    confidence = probabilities.max(axis=1)
    probabilities[rows, labels] -= 1.0
    return _Examples(
        correct=logits.argmax(axis=1) == labels,
        confidence=confidence,
        nll=-log_probabilities[rows, labels],
        brier=np.square(probabilities).sum(axis=1),
    )


def _calibration_error(examples, bins, mass) -> float:
    count, confidence, right = _bin_means(examples, bins, mass)
    return float((count * np.abs(right - confidence)).sum() / count.sum())


def _bin_means(examples, bins, mass):
    """Return count, mean confidence and accuracy of the bins that are not empty."""
    index = _bin_index(examples.confidence, bins, mass)
    count = np.bincount(index, minlength=bins)
    used = count > 0
    confidence, right = (
        np.bincount(index, weights=values, minlength=bins)[used] / count[used]
        for values in (examples.confidence, examples.correct)
    )
    return count[used], confidence, right


def _bin_index(confidence, bins, mass):
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    if mass == "width":
        return np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    if mass != "equal":
        raise ValueError(f"mass must be 'equal' or 'width', not {mass!r}")
    # ties share a bin, or the result would depend on the order of the examples
    rank = np.searchsorted(np.sort(confidence), confidence)
    return rank * bins // len(confidence)


def _checked(logits, labels):
    logits, labels = np.asarray(logits), np.asarray(labels)
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"logits must be [N, C] with at least two classes, not of shape {logits.shape}")
    if labels.shape != logits.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"logits {logits.shape} need {len(logits)} integer labels, not {labels.dtype} of shape {labels.shape}"
        )
    if not len(labels):
        raise ValueError("there are no examples to measure")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(
            f"labels lie in [{labels.min()}, {labels.max()}], "
            f"but logits of {logits.shape[1]} classes need them in [0, {logits.shape[1]})"
        )
    return check_finite(logits, "logits"), labels
