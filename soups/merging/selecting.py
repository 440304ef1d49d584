"""Choose among merges of models on disk by a user's own evaluation: a search, a greedy soup, a ranking."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import xxhash

from soups import arguments
from soups.merging.planning import Plan
from soups.merging.repeated import repeated
from soups.merging.trials import Recipe, Trials
from soups.names import few, shown
from soups.recipes import _search
from soups.recipes._candidates import Candidate, Candidates, Growing
from soups.recipes._search import Axis
from soups.recipes.greedy import select

Check = Callable[[Plan, str | None], None]
_INSIDE = 0.6  # a place in a range that is not its middle, so that weights rarely sum to zero


@dataclasses.dataclass(frozen=True)
class Selection:
    """Hold what was chosen.

    Attributes:
        recipe: of the best, as it stands in a recipe file; of a ranking None.
        score: of the best.
        steps: every candidate, decision or member with its score, in order.
        asked: by what it was chosen, and from which models, by their digests.
    """

    recipe: Recipe | None
    score: float
    steps: list[dict[str, Any]]
    asked: dict[str, Any]

    @property
    def identity(self) -> str:
        """Return the digest of what was asked."""
        return _identity(self.asked)

    @property
    def record(self) -> dict[str, Any]:
        """Return how the best was chosen, as strict JSON: a score that is not finite is null."""
        asked = {name: value for name, value in self.asked.items() if name not in ("merge", "digests")}
        return _strict({**asked, "identity": self.identity, "score": self.score, "steps": self.steps})


def search(
    trials: Trials,
    recipe: Recipe,
    axes: Sequence[Axis],
    *,
    by: str,
    budget: int,
    mode: str,
    population: int | None = None,
    check: Check = lambda plan, identity: None,
) -> Selection:
    """Find the settings with which a recipe merges best, as `soups.evolve` does of weights in memory.

    Args:
        recipe: as it stands in a recipe file; what is searched takes the place of its own parameters.
        axes: what is searched, by the names of recipe files; the seed is that of `trials`.
        by, budget, population: as for `soups.recipes._search.search`.
        mode: "max" if more is better, "min" if less is.
        check: is called before any work, and again when the identity of what is asked is known.

    Raises:
        ValueError: as `Trials.score`, and `_search.search`; models that cannot be merged with the ends of all ranges.
            Values that the method takes one by one but not together, such as weights that sum to zero, make a candidate
            without a score, whose step has the reason.
    """
    arguments.check_within("budget", budget, "[1, inf)", whole=True)
    seed = arguments.check_within("seed", trials.seed, "[0, 4294967295]", whole=True)
    if population is not None:
        arguments.check_within("population", population, "[2, inf)", whole=True)
    _search.check(axes, by, budget, population)
    for end in (0.0, 1.0):
        plan = _plan_at(end, trials, recipe, axes)
        check(plan, None)
    sought = {"by": by, "axes": [_said_axis(axis) for axis in axes], "population": population}
    asked = _asked("search", trials, [*plan.job.models, *plan.job.files], mode, {"merge": recipe, **sought})
    _tell(trials, [*plan.notes, *repeated(plan.job, asked["digests"])])
    check(plan, _identity(asked))

    reasons = {}

    def scored(number, settings):
        tried = with_settings(recipe, settings)
        try:
            plan = trials.plan(tried)
        except ValueError as error:
            score, reason = math.nan, str(error)
        else:
            score, reason = trials.score(number, said(number, settings), tried, plan=plan)
        reasons[json.dumps(settings)] = reason
        return score

    history = _search.search(axes, scored, by=by, budget=budget, mode=mode, seed=seed, population=population)
    best = _search.best_of(history, mode)
    steps = [{**step, "reason": reasons[json.dumps(step["settings"])]} for step in history]
    return Selection(with_settings(recipe, best["settings"]), best["score"], steps, asked)


def greedy(
    trials: Trials,
    members: Sequence[str],
    *,
    mode: str,
    accept: str = "gt",
    fields: Recipe | None = None,
    check: Check = lambda plan, identity: None,
) -> Selection:
    """Make the greedy soup of models on disk, as `soups.greedy` does of weights in memory.

    Every candidate is merged from its ingredients; a member alone is evaluated where it lies if that is as candidates
    are written.

    Args:
        members: references to models, each once.
        mode, accept: as for `soups.greedy`.
        fields: of the recipe beside its models, such as "dtype".
        check: as for `search`.

    Raises:
        ValueError: as `Trials.score` and `soups.greedy`; members that cannot be merged.
    """
    members, fields = _distinct(members), dict(fields or {})
    plan = trials.plan(_uniform(members, fields))
    check(plan, None)
    asked = _asked("greedy", trials, members, mode, {"accept": accept, "fields": fields})
    _tell(trials, [*plan.notes, *repeated(plan.job, asked["digests"])])
    check(plan, _identity(asked))
    candidates = _OnDisk(members, trials, fields)
    rules = {"mode": mode, "accept": accept, "metric": None}
    soup = select(candidates.members, lambda _: candidates, rules, scores=None, order=None, journal=None)
    steps = [{**step, "alone": candidates.alone[step["member"]]} for step in soup.history]
    return Selection(soup.params, soup.score, steps, asked)


def rank(trials: Trials, members: Sequence[str], *, mode: str) -> Selection:
    """Return the scores of models on disk, the best first; of equals the earlier.

    A model is evaluated where it lies if that is as candidates are written, else as a copy of that form.

    Raises:
        ValueError: as `Trials.score`.
    """
    members = _distinct(members)
    asked = _asked("rank", trials, members, mode, {})
    _tell(trials, arguments.repeated(asked["digests"]))
    steps = []
    for index, name in enumerate(members):
        score, reason = trials.score(str(index), name, _uniform([name]), in_place=True)
        steps.append({"member": name, "score": score, "reason": reason})
    steps.sort(key=lambda step: _search.loss(step["score"], mode))
    return Selection(None, steps[0]["score"], steps, asked)


def _tell(trials, sentences):
    for sentence in dict.fromkeys(sentences):
        trials.tell(sentence)


def _asked(recipe, trials, models, mode, more):
    """Return what was asked of a search or a selection, which decides what comes of it."""
    digests = trials.digests(dict.fromkeys(models))
    own = {"recipe": recipe, "mode": mode, **trials.evaluation.identity, "format": trials.kind, "seed": trials.seed}
    return {**own, **more, "digests": digests}


def _distinct(members):
    seen = set()
    if twice := [name for name in members if name in seen or seen.add(name)]:
        raise ValueError(f"{shown(twice[0])} is given twice: a member counts once")
    return list(members)


class _References(dict):
    """Be members by reference: none of them is read to be chosen from."""

    usable = property(lambda self: self)


class _OnDisk(Candidates):
    """Make candidates on disk: a growing soup is the list of its ingredients, until it is merged to be scored."""

    def __init__(self, members, trials, fields):
        super().__init__({}, lambda recipe: math.nan)
        self.members, self.alone = _References(zip(members, members, strict=True)), {}
        self._places, self._trials, self._fields = list(members), trials, fields

    def scored(self, names: Sequence[str], soup: Growing) -> Candidate:
        name, candidate = names[0], self.unscored(names[0], soup)
        place = f"{self._places.index(name)}{f'-with-{soup.count}' if soup.count else ''}"
        what = f"{name}{f' with {few(soup.mean, 3)}' if soup.count else ''}"
        alone = not (soup.count or self._fields)
        score, reason = self._trials.score(place, what, candidate.params, in_place=alone)
        if not soup.count:
            self.alone[name] = score
        return candidate._replace(score=score, reason=reason)

    def unscored(self, name: str, soup: Growing) -> Candidate:
        ingredients = [*(soup.mean or ()), name]
        return Candidate(Growing(ingredients, len(ingredients)), _uniform(ingredients, self._fields))

    def finished(self, soup: Growing) -> Recipe:
        return _uniform(soup.mean, self._fields)


def _uniform(models, fields=None) -> Recipe:
    return {"vocabulary": "published", "merge_method": "uniform", "models": list(models), **(fields or {})}


def said(number: str, settings: Mapping[str, Any]) -> str:
    """Return a candidate in words: "7: density 0.42, scale 1.1"."""
    return f"{number}: {', '.join(f'{name} {brief(value)}' for name, value in settings.items())}"


def _said_axis(axis):
    """Return what of an axis is not as it is without a word."""
    plain = Axis(axis.name)
    return {name: value for name, value in vars(axis).items() if name == "name" or value != getattr(plain, name)}


def brief(value: Any) -> str:
    """Return a value, or one of each member, in few digits."""
    if isinstance(value, list):
        return f"[{', '.join(map(brief, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plan_at(end, trials, recipe, axes):
    """Return the plan at one end of all ranges, of those that each member has only for the first member."""
    firsts = {axis.name: place for place, axis in reversed(list(enumerate(axes)))}
    for others in (_INSIDE, end):  # weights of one or the other may sum to zero
        places = [end if not axis.of_member or firsts[axis.name] == at else others for at, axis in enumerate(axes)]
        values = [axis.at(place) for axis, place in zip(axes, places, strict=True)]
        try:
            return trials.plan(with_settings(recipe, _search.settings_of(axes, values)))
        except ValueError:
            if others == end:
                raise


def with_settings(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """Return a recipe with settings of the whole merge, and with those that come as lists one for each member."""
    made = copy.deepcopy(dict(recipe))
    made["parameters"] = dict(made.get("parameters") or {})
    for name, value in settings.items():
        if not isinstance(value, list):
            made["parameters"][name] = value
            continue
        models = made["models"]
        if len(models) > len(value):  # the base is among them
            models = [model for model in models if model["model"] != made.get("base_model")]
        for model, own in zip(models, value, strict=True):
            model["parameters"] = {**(model.get("parameters") or {}), name: own}
    return made


def _identity(asked):
    """Return the digest of what was asked; scripts may have changed, if their scores were said to hold."""
    lasting = {name: value for name, value in asked.items() if name != "scripts"}
    return xxhash.xxh3_128_hexdigest(json.dumps(lasting, sort_keys=True).encode())


def _strict(value):
    """Return JSON in which numbers that are not finite are null, as any reader takes it."""
    if isinstance(value, dict):
        return {name: _strict(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
