"""Search the settings of any recipe by evolution against a held-out score."""

import functools
import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from soups import arguments, tree
from soups.journal import Journal, content_digest
from soups.names import check_name
from soups.recipes._scores import direction, score_of
from soups.recipes.declare import python_only
from soups.recipes.soup import Soup, digests

Range = Sequence[Any]  # (low, high) or (low, high, "log")


@python_only("needs a function that evaluates weights: use soups.evolve in Python")
def evolve(
    recipe: Callable[..., tree.Tree],
    members: arguments.Members,
    evaluate: Callable[[tree.Tree], float | Mapping[str, float]],
    *,
    base: tree.Tree | None = None,
    settings: Mapping[str, Range] | None = None,
    weights: Range | None = None,
    budget: int = 50,
    population: int | None = None,
    seed: int = 0,
    metric: str | None = None,
    mode: str | None = None,
    journal: str | os.PathLike | None = None,
) -> Soup:
    """Find the settings with which a recipe merges best on held-out data, by CMA-ES.

    Each candidate is one merge and one evaluation. All ranges, on a logarithmic scale where that is asked for, are
    mapped to [0, 1]; the search starts from the middle with σ = 0.3 and stays inside. A score of NaN or infinity ranks
    below all others. The best candidate is returned, of equals the earlier. Selection among many candidates overfits
    small held-out data: `history` has them all.

    Args:
        recipe: a merge function; fix other settings with `functools.partial(soups.ties, scope="leaf")`.
        evaluate: gives the held-out score of weights, as a float or a mapping of metrics.
        base: given to the recipe unless None.
        settings: for the name of each setting of the recipe (low, high), or (low, high, "log").
        weights: such a range for the weight of each member.
        budget: how many candidates are evaluated.
        population: candidates of a generation; 4 + ⌊3 ln n⌋ for n searched numbers.
        metric, mode: as in `greedy`.
        journal: a file for all scores; the same call goes on from it after a crash and evaluates nothing twice, and
            with a larger budget it continues the search.

    Returns:
        A soup: `recipe` has the settings found, `ingredients` the weights, 1.0 where none were searched.

    Raises:
        ValueError: nothing to search; a setting that the recipe does not have; a range that is none; no
            positive budget; a population below 2; another mode; an unknown metric; no finite score; a journal of
            another search; what the recipe raises, with the settings that it was given.

    Akiba et al., "Evolutionary optimization of model merging recipes", 2024, arXiv 2403.13187; Hansen, "The CMA
    evolution strategy: a tutorial", 2016, arXiv 1604.00772, as the package cmaes has it.
    """
    mode = direction(metric, mode, evaluate)
    budget = arguments.check_within("budget", budget, "[1, inf)", whole=True)
    if population is not None:
        population = arguments.check_within("population", population, "[2, inf)", whole=True)
    seed = arguments.check_within("seed", seed, "[0, 4294967295]", whole=True)
    usable = arguments.as_mapping(members)
    name, axes = _name(recipe), _axes(recipe, settings or {}, weights, len(usable))
    search = {"of": name, "axes": [list(axis) for axis in axes], "population": population, "seed": seed, "mode": mode}
    header = {"recipe": "evolve", **search, "metric": metric, "fixed": _fixed(recipe)}
    if journal is not None:
        header["base"] = None if base is None else content_digest(base)
    log = Journal(journal, header, members=usable)
    as_given = members if isinstance(members, Sequence) else usable
    merge = functools.partial(_merge, name, recipe, as_given, {} if base is None else {"base": base})

    def scored(number, chosen):
        done = log.replay("candidate", number)
        if done is None:
            score = score_of(evaluate, merge(chosen), metric)
            done = log.write({"kind": "candidate", "member": number, "score": score, **chosen})
        return done["score"]

    history = _search(axes, _strategy(len(axes), population, seed), budget, mode, scored)
    best = min(history, key=lambda step: _loss(step["score"], mode))
    if not math.isfinite(best["score"]):
        raise ValueError(f"none of the {budget} candidates has a finite score")
    found = {key: value for key, value in best.items() if key != "score"}
    return Soup(
        params=merge(found),
        recipe={"name": "evolve", **search, "metric": metric, "settings": found},
        ingredients=dict(zip(usable, found.get("weights", [1.0] * len(usable)), strict=True)),
        history=history,
        score=best["score"],
        digests=digests(usable, usable),
    )


class _Axis(NamedTuple):
    """State the range of one number that is searched."""

    name: str
    low: float
    high: float
    logarithmic: bool

    def at(self, place: float) -> float:
        """Return the number at a place between 0 and 1."""
        if self.logarithmic:
            return float(self.low * (self.high / self.low) ** place)
        return float(self.low + (self.high - self.low) * place)


def _axes(recipe, settings, weights, number) -> list[_Axis]:
    parameters = inspect.signature(recipe).parameters.values()
    anything = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    known = [parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    for name in [*settings, *(["weights"] if weights is not None else [])]:
        if not anything:
            check_name(name, known, f"setting of {_name(recipe)}")
    axes = [_axis(name, given) for name, given in settings.items()]
    if weights is not None:
        axes += [_axis("weights", weights)] * number
    if not axes:
        raise ValueError('nothing to search: give settings={"name": (low, high)}, or weights=(low, high)')
    return axes


def _axis(name, given):
    values = tuple(given)
    numbers = values[:2]
    if len(numbers) < 2 or values[2:] not in ((), ("log",)):
        raise ValueError(f'the range of {name} must be (low, high) or (low, high, "log"), not {given!r}')
    low, high = (arguments.setting(number, 0.0, f"an end of the range of {name}") for number in numbers)
    if not (math.isfinite(low) and math.isfinite(high) and low < high and (values[2:] == () or low > 0)):
        raise ValueError(f"the range of {name} must rise, and be above 0 where it is logarithmic, not {given!r}")
    return _Axis(name, float(low), float(high), values[2:] == ("log",))


def _arguments(axes, point) -> dict[str, Any]:
    """Return the recipe's keyword arguments at a point of the unit cube."""
    values = [(axis.name, axis.at(place)) for axis, place in zip(axes, point, strict=False)]
    chosen = {name: value for name, value in values if name != "weights"}
    weights = [value for name, value in values if name == "weights"]
    return chosen | ({"weights": weights} if weights else {})


def _search(axes, strategy, budget, mode, score_of):
    """Return the candidates with their scores, in order; each generation is told to the strategy."""
    history, generation = [], []
    for number in range(budget):
        point = strategy.ask()
        chosen = _arguments(axes, point)
        history.append({**chosen, "score": score_of(str(number), chosen)})
        generation.append((point, _loss(history[-1]["score"], mode)))
        if len(generation) == strategy.population_size:
            strategy.tell(generation)
            generation = []
    return history


def _merge(name, recipe, members, given, chosen):
    try:
        return recipe(members, **given, **chosen)
    except ValueError as error:
        raise ValueError(f"{name} cannot merge with {chosen}: {error}") from error


def _strategy(number, population, seed):
    from cmaes import CMA  # it imports scipy.stats, which takes longer than all of this library

    dimensions = max(2, number)  # it knows no fewer; a second number is then without effect
    bounds = np.tile([0.0, 1.0], (dimensions, 1))
    return CMA(np.full(dimensions, 0.5), 0.3, bounds=bounds, seed=seed, population_size=population)


def _loss(score, mode):
    if not math.isfinite(score):
        return math.inf
    return -score if mode == "max" else score


def _fixed(recipe) -> dict[str, Any]:
    """Return the settings that `functools.partial` fixes, arrays by their digest, as a journal can hold them."""
    if not isinstance(recipe, functools.partial):
        return {}
    own = {**{str(place): value for place, value in enumerate(recipe.args)}, **recipe.keywords}
    return {**_fixed(recipe.func), **{name: _plain(value) for name, value in own.items()}}


def _plain(value):
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return f"{type(value).__name__} {content_digest(value)}"


def _name(recipe):
    return _name(recipe.func) if isinstance(recipe, functools.partial) else getattr(recipe, "__name__", repr(recipe))
