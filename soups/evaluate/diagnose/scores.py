"""Score members, the paths between them and their averages, for a diagnosis."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from soups import tree
from soups.evaluate.connectivity import drop
from soups.evaluate.diagnose.report import ALIGN, Book
from soups.evaluate.diagnose.structure import Trees
from soups.evaluate.geometry import OUTLIER_Z, robust_z, together
from soups.recipes._scores import direction, pick_metric
from soups.recipes.averages import uniform

# Relative, because a score may be a loss. Frankle et al. call networks that lose 2 points of accuracy on the path
# unstable; on small held-out sets that much is noise.
BARRIER = 0.05


class Scorer:
    """Score weights by `evaluate`: NaN where it raises a ValueError, as evaluators do for weights that overflow.

    An infinite score is none either: nothing can be compared with it.
    """

    def __init__(self, evaluate: Callable, metric: str | None, mode: str | None):
        self.sign = 1.0 if direction(metric, mode, evaluate) == "max" else -1.0
        self.error: ValueError | None = None
        self._evaluate, self._metric = evaluate, metric

    def __call__(self, params: tree.Tree) -> float:
        """Return the score as it is, not turned by its mode."""
        try:
            values = self._evaluate(params)
        except ValueError as error:
            self.error = error
            return math.nan
        score = pick_metric(values, self._metric)
        return score if math.isfinite(score) else math.nan


def connect(
    book: Book, members: Any, trees: Trees, left: Sequence[str], scorer: Scorer, *, max_members: int, points: int
) -> dict[str, Any]:
    """Write down what scores say; give {"scores", "barriers", "tolerance", "soup_scores"} by name and pair of names.

    Raises:
        ValueError: no member could be scored.
    """
    scores = _score_members(book, trees, left, scorer)
    scored = [name for name in scores if not math.isnan(scores[name])]
    tolerance = BARRIER * float(np.median([abs(scores[name]) for name in scored]))
    kept = _leave_weak(book, scores, scored, scorer.sign, tolerance)
    ordered = sorted(kept, key=lambda name: -scorer.sign * scores[name])
    barriers = _between(itertools.combinations(ordered[:max_members], 2), trees, scores, scorer, points)
    family = _family(ordered[:max_members], barriers, tolerance)
    if len(family) < 2:
        _all_apart(book, ordered[:max_members])
    else:
        center = _center(family, barriers)
        barriers |= _between([(center, name) for name in ordered[max_members:]], trees, scores, scorer, points)
        near = [name for name in ordered[max_members:] if barriers[center, name] <= tolerance]
        others = [name for name in ordered if name not in (*family, *near)]
        _leave_apart(book, family, others, barriers, max_members < len(ordered))
    soups = _soups(book, members, trees, scores, scorer, tolerance)
    return {"scores": scores, "barriers": barriers, "tolerance": tolerance, "soup_scores": soups}


def _score_members(book, trees, left, scorer):
    scores = {name: scorer(trees[name]) for name in left}
    failed = {name: "it has no score" for name, score in scores.items() if math.isnan(score)}
    why = f": {' '.join(str(scorer.error).split())}" if scorer.error else ""
    if len(failed) == len(scores):
        raise ValueError(f"evaluate gives no score for any member{why}") from scorer.error
    if failed:
        book.out("score", f"no score{why}", failed, "its outputs are probably not finite")
    return scores


def _leave_weak(book, scores, names, sign, tolerance):
    """Leave out members that are much worse than the others, which no barrier would show."""
    if len(names) < 3:
        return names
    values = sign * np.array([scores[name] for name in names])
    weak = (robust_z(values) < -OUTLIER_Z) & (values < np.median(values) - tolerance)
    middle = f"{sign * np.median(values):.4g}"
    reasons = {
        name: f"it scores {scores[name]:.4g}, the median is {middle}"
        for name, bad in zip(names, weak, strict=True)
        if bad
    }
    if reasons:
        book.out("weak", f"much worse than the others, whose median score is {middle}", reasons)
    return [name for name in names if name not in reasons]


def _between(pairs, trees, scores, scorer, points) -> dict[tuple[str, str], float]:
    """Return the barrier of each pair, infinite where a point of the path has no score."""
    ts = np.linspace(0, 1, points + 2)[1:-1]
    found = {(a, b): drop(scorer, trees[a], trees[b], (scores[a], scores[b]), ts, scorer.sign) for a, b in pairs}
    return {pair: math.inf if math.isnan(value) else value for pair, value in found.items()}


def _family(names, barriers, tolerance):
    apart = np.zeros((len(names),) * 2, bool)
    for i, j in itertools.combinations(range(len(names)), 2):
        apart[i, j] = apart[j, i] = barriers[names[i], names[j]] > tolerance
    return [names[index] for index in together(apart)]  # best first: in a tie the worst goes


def _center(names, barriers):
    return min(names, key=lambda name: np.median([b for pair, b in barriers.items() if name in pair]))


def _all_apart(book, names):
    if len(names) < 2:
        return
    book.apart = True
    what = "every average of two loses score: no two members lie in one basin"
    book.add("problem", "barrier", what, names, ALIGN)


def _leave_apart(book, family, names, barriers, partly):
    with_family = {name: [b for pair, b in barriers.items() if name in pair and {*family} & {*pair}] for name in names}
    own = {name: float(np.median(values)) for name, values in with_family.items()}
    if own:
        reasons = {
            name: f"a barrier of {value:.4g} (median) lies between it and the others" for name, value in own.items()
        }
        what = "in another basin: averaged with one of the others the score falls"
        book.out("barrier", what, reasons, ALIGN)
    if partly:
        what = "pairs were measured among the best members only, each further one against the most central of these"
        book.add("note", "pairs", what, (), "max_members= raises how many")


def _soups(book, members, trees, scores, scorer, tolerance):
    """Score the uniform soups of all comparable members and of those kept, and compare with single members."""
    kept = [name for name in trees if name not in book.leave_out]
    found = {"all": _score_soup(members, trees, list(trees), scorer)} if len(trees) > 1 else {}
    if len(kept) < 2 or book.apart:
        return found
    soup = found["all"] if len(kept) == len(trees) else _score_soup(members, trees, kept, scorer)
    best, worst = (max(kept, key=lambda name, s=sign: s * scores[name]) for sign in (scorer.sign, -scorer.sign))
    if not scorer.sign * (scores[worst] - soup) <= tolerance:
        book.spoiled = True
        what = f"the uniform soup scores {soup:.4g}, the worst of its members, {worst}, {scores[worst]:.4g}"
        book.add("problem", "soup", what, kept, "choose members with soups.greedy, or align them first")
    elif scorer.sign * (soup - scores[best]) < 0:
        what = f"the uniform soup scores {soup:.4g}, the best single member, {best}, {scores[best]:.4g}"
        book.add("warning", "soup", what, (), "choose members with soups.greedy")
    else:
        what = f"the uniform soup scores {soup:.4g}, not worse than the best single member, {best}: {scores[best]:.4g}"
        book.add("note", "soup", what)
    return {**found, "keep": soup}


def _score_soup(members, trees, names, scorer):
    # a pool streams its own members, in little memory
    chosen = members.select(names) if hasattr(members, "select") else {name: trees[name] for name in names}
    try:
        soup = uniform(chosen)
    except ValueError:  # finite members whose sum is not
        return math.nan
    return scorer(soup)


def matrix(names: Sequence[str], barriers: Mapping[tuple[str, str], float]) -> np.ndarray:
    """Return barriers by pairs of names: a symmetric matrix [K, K], NaN where none was measured, 0 on the diagonal."""
    place = {name: index for index, name in enumerate(names)}
    found = np.full((len(names),) * 2, np.nan)
    for pair, value in barriers.items():
        i, j = (place[name] for name in pair)
        found[i, j] = found[j, i] = value
    for name in {name for pair in barriers for name in pair}:
        found[place[name], place[name]] = 0.0
    return found
