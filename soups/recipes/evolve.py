"""Search the settings of any recipe by evolution against a held-out score."""

import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from soups import arguments, tree
from soups.journal import Journal, content_digest
from soups.names import check_name
from soups.recipes._scores import direction, score_of
from soups.recipes._search import Axis, best_of, ranged, search
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
        ValueError: nothing to search; a setting that the recipe does not have; a range whose ends are not finite
            numbers, or whose low end is not below its high end; a budget below 1 or a population below 2; an unknown
            mode or metric; no candidate with a finite score; a journal of another search. What the recipe raises is
            raised again, with the settings that it was given.

    Akiba et al., "Evolutionary optimization of model merging recipes", 2024, arXiv 2403.13187; Hansen, "The CMA
    evolution strategy: a tutorial", 2016, arXiv 1604.00772, as the package cmaes has it.
    """
    mode = direction(metric, mode, evaluate)
    budget = arguments.check_within("budget", budget, "[1, inf)", whole=True)
    if population is not None:
        population = arguments.check_within("population", population, "[2, inf)", whole=True)
    seed = arguments.check_within("seed", seed, "[0, 4294967295]", whole=True)
    if not callable(recipe):
        raise ValueError(f"recipe must be a merge function, such as soups.ties, not {recipe!r:.200}")
    usable = arguments.as_mapping(members)
    name, axes = _name(recipe), _axes(recipe, settings or {}, weights, len(usable))
    sought = {"of": name, "axes": [[a.name, a.low, a.high, a.logarithmic] for a in axes]}
    sought |= {"population": population, "seed": seed, "mode": mode}
    header = {"recipe": "evolve", **sought, "metric": metric, "fixed": _fixed(recipe)}
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

    history = search(axes, scored, by="cma", budget=budget, mode=mode, seed=seed, population=population)
    best = best_of(history, mode)
    found = best["settings"]
    return Soup(
        params=merge(found),
        recipe={"name": "evolve", **sought, "metric": metric, "settings": found},
        ingredients=dict(zip(usable, found.get("weights", [1.0] * len(usable)), strict=True)),
        history=[{**step["settings"], "score": step["score"]} for step in history],
        score=best["score"],
        digests=digests(usable, usable),
    )


def _axes(recipe, settings, weights, number) -> list[Axis]:
    parameters = inspect.signature(recipe).parameters.values()
    anything = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    known = [parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    for name in [*settings, *(["weights"] if weights is not None else [])]:
        if not anything:
            check_name(name, known, f"setting of {_name(recipe)}")
    axes = [ranged(name, given) for name, given in settings.items()]
    if weights is not None:
        axes += [ranged("weights", weights, of_member=True)] * number
    if not axes:
        raise ValueError('nothing to search: give settings={"name": (low, high)}, or weights=(low, high)')
    return axes


def _merge(name, recipe, members, given, chosen):
    try:
        return recipe(members, **given, **chosen)
    except ValueError as error:
        raise ValueError(f"{name} cannot merge with {chosen}: {error}") from error


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
