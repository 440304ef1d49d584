"""Say how the hyper-parameters of a sweep are drawn."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from soups.train import checks, search


def _or_zero(low, high):
    return search.zero_or(0.5, search.uniform(low, high))


_COMMON = {
    "learning_rate": search.log_uniform,
    "weight_decay": search.log_uniform,
    "label_smoothing": _or_zero,
    "mixup": _or_zero,
}


def choices(config: Mapping[str, Any], **more: Callable) -> dict[str, Callable]:
    """Return the distribution of each hyper-parameter between its ends in `config`, for `soups.train.search.random`.

    Learning rate and weight decay are log-uniform; half of the members have no label smoothing, and half no mixup.
    `more`: other hyper-parameters, and the functions from two ends to their distributions. Those that `config` does
    not have are left out.

    Raises:
        ValueError: ends that are not two finite numbers, the lower one first, or, where the logarithm is taken, are not
            positive, or ends that training refuses.
    """
    kinds = {name: make for name, make in {**_COMMON, **more}.items() if name in config}
    return {name: make(*_ends(name, config[name], make is search.log_uniform)) for name, make in kinds.items()}


def _ends(name, given, positive):
    numbers = np.asarray(given if isinstance(given, list | tuple) else ())
    fits = numbers.shape == (2,) and numbers.dtype.kind in "iuf" and np.isfinite(numbers).all()
    if not fits or numbers[0] > numbers[1] or (positive and numbers[0] <= 0):
        kind = "positive numbers" if positive else "numbers"
        raise ValueError(f"config.sweep.{name} must be two {kind}, the lower one first, not {given!r:.200}")
    for end in given:
        try:
            checks.number(name, end)
        except ValueError as error:
            raise ValueError(f"config.sweep.{error}") from None
    return given
