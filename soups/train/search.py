"""Say which hyper-parameters the members of a sweep have: a sweep is a list of plain dicts."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def grid(**choices: Sequence[Any]) -> list[dict[str, Any]]:
    """List all combinations of the choices, the last name changing fastest."""
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


def zipped(**choices: Sequence[Any]) -> list[dict[str, Any]]:
    """List the choices side by side: the first of each, the second of each, ...

    Raises:
        ValueError: they are not equally many.
    """
    if len({len(values) for values in choices.values()}) > 1:
        raise ValueError(f"zipped choices differ in number: { {name: len(v) for name, v in choices.items()} }")
    return [dict(zip(choices, values, strict=True)) for values in zip(*choices.values(), strict=True)]


def random(number: int, seed: int, /, **distributions: Callable[[np.random.Generator], Any]) -> list[dict[str, Any]]:
    """Draw `number` members; each hyper-parameter is a function of a NumPy generator.

    Member i depends on `seed` and i alone: a longer sweep begins with the members of a shorter one.
    """
    generators = [np.random.default_rng([seed, index]) for index in range(number)]
    return [{name: draw(generator) for name, draw in distributions.items()} for generator in generators]


def log_uniform(low: float, high: float) -> Callable[[np.random.Generator], float]:
    """Return a distribution whose logarithm is uniform between those of `low` and `high`."""
    return lambda generator: float(np.exp(generator.uniform(np.log(low), np.log(high))))


def uniform(low: float, high: float) -> Callable[[np.random.Generator], float]:
    """Return the uniform distribution on [low, high)."""
    return lambda generator: float(generator.uniform(low, high))


def integers(low: int, high: int) -> Callable[[np.random.Generator], int]:
    """Return the uniform distribution on the integers from `low` to `high`, both included."""
    return lambda generator: int(generator.integers(low, high + 1))


def zero_or(probability: float, distribution: Callable) -> Callable[[np.random.Generator], Any]:
    """Return zero with this probability, else a draw from `distribution`."""
    return lambda generator: distribution(generator) if generator.uniform() >= probability else 0
