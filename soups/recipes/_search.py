"""Search a few settings: what each of them may be, which values are tried in which order, and what came of them."""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np

from soups import arguments
from soups.names import check_name

STRATEGIES = ("cma", "random", "grid")
_DIGITS = 12  # of a value: what is left out is the rounding of its place in a range


@dataclasses.dataclass(frozen=True)
class Axis:
    """State what one setting may be: a number in a range, or one of some values.

    Attributes:
        name: of the setting.
        low, high: the ends of the range.
        logarithmic: whether places in the range are those of its logarithm.
        whole: whether the number is a whole one.
        number: how many values a grid takes from the range; 0 where that was not said.
        values: those to choose from, in their order, in the place of a range.
        of_member: whether the axis is that of one member; the setting is then a list with one value of each.
    """

    name: str
    low: float = 0.0
    high: float = 1.0
    logarithmic: bool = False
    whole: bool = False
    number: int = 0
    values: tuple[Any, ...] = ()
    of_member: bool = False

    def at(self, place: float) -> Any:
        """Return the value at a place between 0 and 1."""
        if self.values:
            return self.values[min(int(place * len(self.values)), len(self.values) - 1)]
        if self.logarithmic:
            value = self.low * (self.high / self.low) ** place
        else:
            value = self.low + (self.high - self.low) * place
        value = min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high)
        return round(value) if self.whole else value

    def grid(self) -> list[Any]:
        """Return the values that a grid tries, each once."""
        if self.values:
            return list(self.values)
        return list(dict.fromkeys(self.at(step / max(self.number - 1, 1)) for step in range(self.number)))


def settings_of(axes: Sequence[Axis], values: Sequence[Any]) -> dict[str, Any]:
    """Return the settings by name: of axes of members the list of their values."""
    chosen = {}
    for axis, value in zip(axes, values, strict=True):
        if axis.of_member:
            chosen.setdefault(axis.name, []).append(value)
        else:
            chosen[axis.name] = value
    return chosen


def ranged(name: str, given: Sequence[Any], default: Any = 0.0, **more: Any) -> Axis:
    """Return the axis of a range (low, high), (low, high, "log"), and either of them with a number of values behind it.

    `default`: that of the setting, a whole number where it has only such; `more`: other attributes of the axis.

    Raises:
        ValueError: something else; ends that do not rise, are not finite, or not above 0 with "log".
    """
    values = list(given)
    number = values.pop() if len(values) > 2 and type(values[-1]) is int and values[-1] > 0 else 0
    if len(values) < 2 or values[2:] not in ([], ["log"]):
        raise ValueError(f'the range of {name} must be (low, high) or (low, high, "log"), not {given!r}')
    kind = type(default) if type(default) is int else float
    low, high = (arguments.setting(end, kind(), f"an end of the range of {name}") for end in values[:2])
    logarithmic = values[2:] == ["log"]
    if not (math.isfinite(low) and math.isfinite(high) and low < high and (not logarithmic or low > 0)):
        raise ValueError(
            f"the range of {name} needs finite ends, the lower first, and above 0 on a log scale, not {given!r}"
        )
    return Axis(name, kind(low), kind(high), logarithmic, kind is int, number, **more)


def search(
    axes: Sequence[Axis],
    score_of: Callable[[str, dict[str, Any]], float],
    *,
    by: str,
    budget: int,
    mode: str,
    seed: int = 0,
    population: int | None = None,
) -> list[dict[str, Any]]:
    """Try settings and return {"settings", "score"} of each candidate, in order; the same settings are scored once.

    Args:
        score_of: gives the score of a candidate by its number and its settings; one that is not finite is the worst.
        by: "cma", CMA-ES that starts from the middle of all ranges with σ = 0.3 of them and stays inside; "random",
            where candidate i depends on the seed and i alone; "grid", all combinations, the last axis changing fastest.
        budget: how many candidates there are at most; a larger one begins with those of a smaller one.

    Raises:
        ValueError: an unknown strategy; a population of another than CMA-ES; a grid of more candidates than the
            budget, or of a range that does not say how many values it has.
    """
    check(axes, by, budget, population)
    asked = {"cma": _cma, "random": _random, "grid": _grid}[by](axes, seed, population)
    history, known, values = [], {}, next(asked)
    for number in range(budget):
        chosen = settings_of(axes, values)
        key = json.dumps(chosen)
        if key not in known:
            known[key] = score_of(str(number), chosen)
        history.append({"settings": chosen, "score": known[key]})
        try:
            values = asked.send(loss(known[key], mode))
        except StopIteration:
            break
    return history


def check(axes: Sequence[Axis], by: str, budget: int, population: int | None = None) -> None:
    """Raise the errors of `search`."""
    check_name(by, STRATEGIES, "way to search")
    if population is not None and by != "cma":
        raise ValueError(f"population is for CMA-ES: a search by {by} takes none")
    numbered = [axis.name for axis in axes if axis.number]
    if numbered and by != "grid":
        raise ValueError(f"a number of values, as for {numbered[0]}, is for a grid: a search by {by} takes none")
    if by == "grid":
        _check_grid(axes, budget)


def _check_grid(axes, budget):
    if unsaid := [axis.name for axis in axes if not axis.grid()]:
        raise ValueError(f"a grid needs to know how many values of {unsaid[0]} it tries")
    sizes = [len(axis.grid()) for axis in axes]
    if math.prod(sizes) > budget:
        product = f"{' × '.join(map(str, sizes))} = " if len(sizes) > 1 else ""
        raise ValueError(
            f"a grid of {product}{math.prod(sizes)} candidates is more than the budget of {budget}: raise that, or try "
            "fewer values"
        )


def best_of(history: Sequence[dict[str, Any]], mode: str) -> dict[str, Any]:
    """Return the candidate with the best score, of equals the earlier; a ValueError if no score is finite."""
    best = min(history, key=lambda step: loss(step["score"], mode))
    if not math.isfinite(best["score"]):
        raise ValueError(f"none of the {len(history)} candidates has a finite score")
    return best


def loss(score: float, mode: str) -> float:
    """Return a number that is less for a better score, infinite for one that is not finite."""
    if not math.isfinite(score):
        return math.inf
    return -score if mode == "max" else score


Strategy = Generator[list[Any], float, None]  # of the values of all axes, which is sent the loss of each


def _cma(axes, seed, population) -> Strategy:
    from cmaes import CMA  # it imports scipy.stats, which takes longer than all of this library

    dimensions = max(2, len(axes))  # it knows no fewer; a second number is then without effect
    bounds = np.tile([0.0, 1.0], (dimensions, 1))
    evolution = CMA(np.full(dimensions, 0.5), 0.3, bounds=bounds, seed=seed, population_size=population)
    while True:
        generation = []
        for _ in range(evolution.population_size):
            point = evolution.ask()
            generation.append((point, (yield [axis.at(place) for axis, place in zip(axes, point, strict=False)])))
        evolution.tell(generation)


def _random(axes, seed, _) -> Strategy:
    for number in itertools.count():
        point = np.random.default_rng([seed, number]).random(len(axes))
        yield [axis.at(place) for axis, place in zip(axes, point, strict=True)]


def _grid(axes, *_) -> Strategy:
    for values in itertools.product(*(axis.grid() for axis in axes)):
        yield list(values)
