"""Say which hyper-parameters the members of a sweep have: a sweep is a list of plain dicts."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from soups.arguments import check_takes, check_within


def grid(**choices: Sequence[Any]) -> list[dict[str, Any]]:
    """List all combinations of the choices, the last name changing fastest; one value for several is a ValueError."""
    choices = _several(choices)
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


def zipped(**choices: Sequence[Any]) -> list[dict[str, Any]]:
    """List the choices side by side: the first of each, the second of each, ...; a ValueError if the numbers differ."""
    choices = _several(choices)
    if len({len(values) for values in choices.values()}) > 1:
        raise ValueError(f"zipped choices need equally many values: { {name: len(v) for name, v in choices.items()} }")
    return [dict(zip(choices, values, strict=True)) for values in zip(*choices.values(), strict=True)]


def random(number: int, seed: int, /, **distributions: Callable[[np.random.Generator], Any]) -> list[dict[str, Any]]:
    """Draw `number` members; each hyper-parameter is a function of a NumPy generator.

    Member i depends on `seed` and i alone: a longer sweep begins with the members of a shorter one.

    Raises:
        ValueError: a number or a seed that is negative or not whole; a hyper-parameter that is not a distribution.
    """
    number = check_within("number", number, "[0, inf)", whole=True)
    seed = check_within("seed", seed, "[0, inf)", whole=True)
    if wrong := [name for name, draw in distributions.items() if not callable(draw)]:
        raise ValueError(f"{', '.join(wrong)} must be a distribution, such as search.uniform(0, 1)")
    for name, draw in distributions.items():
        check_takes(name, draw, "generator")
    generators = [np.random.default_rng([seed, index]) for index in range(number)]
    return [{name: draw(generator) for name, draw in distributions.items()} for generator in generators]


def log_uniform(low: float, high: float) -> Callable[[np.random.Generator], float]:
    """Return a distribution whose logarithm is uniform between those of `low` and `high`.

    Raises:
        ValueError: bounds that are not finite, are not above 0, or are in the wrong order. The distributions below
            check theirs likewise.
    """
    low, high = _bounds("log_uniform", low, high, "(0, inf)")
    return lambda generator: float(np.exp(generator.uniform(np.log(low), np.log(high))))


def uniform(low: float, high: float) -> Callable[[np.random.Generator], float]:
    """Return the uniform distribution on [low, high)."""
    low, high = _bounds("uniform", low, high)
    return lambda generator: float(generator.uniform(low, high))


def integers(low: int, high: int) -> Callable[[np.random.Generator], int]:
    """Return the uniform distribution on the integers from `low` to `high`, both included."""
    low, high = _bounds("integers", low, high, whole=True)
    return lambda generator: int(generator.integers(low, high + 1))


def zero_or(probability: float, distribution: Callable) -> Callable[[np.random.Generator], Any]:
    """Return zero with this probability, else a draw from `distribution`."""
    probability = check_within("the probability of zero_or", probability, "[0, 1]")
    if not callable(distribution):
        raise ValueError(f"zero_or takes a distribution, such as search.uniform(0, 1), not {distribution!r:.200}")
    return lambda generator: distribution(generator) if generator.uniform() >= probability else 0


def _several(choices):
    if wrong := [name for name, values in choices.items() if not isinstance(values, Iterable)]:
        raise ValueError(
            f"the choices of {', '.join(wrong)} must be a list of values, such as [{choices[wrong[0]]!r:.200}]"
        )
    return {name: list(values) for name, values in choices.items()}


def _bounds(name, low, high, interval="(-inf, inf)", *, whole=False):
    interval = f"[{-(2**53)}, {2**53}]" if whole else interval
    low = check_within(f"the lower bound of {name}", low, interval, whole=whole)
    high = check_within(f"the upper bound of {name}", high, interval, whole=whole)
    if low > high:
        raise ValueError(f"the lower bound of {name}, {low}, is above the upper one, {high}")
    if not math.isfinite(high - low):
        raise ValueError(f"the bounds of {name}, {low} and {high}, are too far apart")
    return low, high
