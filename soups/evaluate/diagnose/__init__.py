"""Ask, before anyone averages: can these be averaged, are they in one basin, and who should be left out?"""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from soups import arguments, tree
from soups.evaluate.diagnose import places, structure
from soups.evaluate.diagnose import scores as scoring
from soups.evaluate.diagnose.report import Book
from soups.evaluate.diagnose.report import Diagnosis as Diagnosis
from soups.evaluate.diagnose.report import Finding as Finding
from soups.evaluate.geometry import modules_of
from soups.names import did_you_mean, pattern
from soups.recipes._scores import direction


def diagnose(
    members: Sequence[tree.Tree] | Mapping[str, tree.Tree],
    *,
    base: tree.Tree | None = None,
    evaluate: Callable[[tree.Tree], float | Mapping[str, float]] | None = None,
    metric: str | None = None,
    mode: str | None = None,
    head: str | None = None,
    max_members: int = 12,
    points: int = 1,
) -> Diagnosis:
    """Say whether members can be averaged, whether they lie in one basin, and whom to leave out.

    Bad members are never an error here: what is wrong with them is in the findings. Looked at in this order: names,
    shapes and dtypes; NaN and infinity; integer leaves; running statistics and half precision; the base; copies; other
    starts, members far off and outliers, by the norms |τ_i| and cosines <τ_i, τ_j> / (|τ_i| |τ_j|) of the task vectors
    τ_i = θ_i − θ_base, or of the weights if there is no base; how far each module moved; and, with `evaluate`, scores,
    barriers and the uniform soup. `uniform` of all members works if the verdict is "average", and of those in `.keep`
    if it is "average some".

    Without `evaluate` a verdict is a guess from angles and norms, by the limits in `places`: only a measured barrier
    tells two basins apart, and where it is measured it decides. All inner products come from one pass over the weights
    in float64, a block of each leaf at a time: of a pool, what is read stays in its files.

    Args:
        members: K trees in a sequence or by name, or a pool.
        base: the common starting weights.
        evaluate: the held-out score of weights, a float or a mapping of metrics. It is called for each member, for each
            pair at `points` points, and for two soups. Where it raises a ValueError
            or gives NaN or infinity there is no score.
        metric: which entry to use where `evaluate` gives a mapping.
        mode: "max" if more is better, "min" if less is; default: that of a known metric, as in `soups.greedy`.
        head: regex of the names of the head's leaves, to tell another head from another network; default: modules
            named head, classifier, lm_head or fc.
        max_members: how many members, the best ones, are measured pair by pair, M (M − 1) / 2 paths; each further one
            only against the most central of them.
        points: how many points of each path are evaluated, evenly spaced: 1 is the middle.

    Raises:
        ValueError: no members, or something other than a sequence or mapping of them; an unknown mode; a metric that
            `evaluate` does not give, or one without `evaluate`; a head that is not a regex or matches no leaf;
            `max_members` below 2 or `points` below 1; an `evaluate` that gives no score for any member.

    Basins and barriers: Frankle et al., 2020, arXiv 1912.05671; angles: Wortsman et al., 2022, arXiv 2203.05482; other
    starts: Entezari et al., 2022, arXiv 2110.06296; outliers: Iglewicz and Hoaglin, 1993.
    """
    members = arguments.by_name(members)
    labels = {str(key): key for key in members}
    _check_settings(evaluate, metric, mode, head, max_members, points)
    book = Book()
    trees = structure.read(book, members, labels)
    trees = structure.same_structure(book, trees, _head_rule(head, trees))
    trees = structure.finite(book, trees)
    trees = structure.same_integers(book, trees)
    found = _look(book, trees, base, evaluate is not None) if trees else {}
    if trees and evaluate is not None:
        left = [name for name in trees if name not in book.leave_out]
        scorer = scoring.Scorer(evaluate, metric, mode)
        options = {"max_members": max_members, "points": points}
        found |= scoring.connect(book, members, trees, left, scorer, **options) if left else {}
    return _conclude(book, tuple(labels), found)


def _look(book, trees, base, measured):
    structure.remark_leaves(book, trees, measured)
    weights = structure.weights_of(trees)
    modules = modules_of(weights)
    used, shared = structure.usable_base(book, base, trees, weights)
    found = places.look(book, trees, used, {leaf: modules[leaf] for leaf in shared}, measured)
    places.remark_foreign_modules(book, trees, {leaf: modules[leaf] for leaf in weights if leaf not in shared})
    return {**found, "reference": "members" if used is None else "base"}


def _conclude(book, names, found) -> Diagnosis:
    if len(names) - len(book.leave_out) < 2 and not book.apart:
        kept = [name for name in names if name not in book.leave_out]
        book.add("problem", "few", "fewer than two members are left to be averaged", kept)
    scored = found.get("scores")
    return Diagnosis(
        verdict=_verdict(names, book),
        names=names,
        leave_out={name: book.leave_out[name] for name in names if name in book.leave_out},
        findings=book.sorted(),
        reference=found.get("reference", "members"),
        norms=_spread_out(names, found, "norms"),
        relative_norms=_spread_out(names, found, "relative_norms"),
        cosines=_spread_out(names, found, "cosines"),
        modules=tuple(found.get("modules", ())),
        barriers=None if scored is None else scoring.matrix(names, found["barriers"]),
        scores=None if scored is None else np.array([scored.get(name, np.nan) for name in names]),
        soup_scores=found.get("soup_scores", {}),
        tolerance=found.get("tolerance", 0.0),
    )


def _verdict(names, book):
    if book.apart:
        return "align first"
    if book.spoiled or len(names) - len(book.leave_out) < 2:
        return "do not average"
    return "average some" if book.leave_out else "average"


def _spread_out(names, found, key):
    """Return values of some members in the order of all, NaN for the others."""
    values = found.get(key, np.zeros((0, 0) if key == "cosines" else 0))
    places_of = [names.index(name) for name in found.get("names", ())]
    whole = np.full((len(names),) * values.ndim, np.nan)
    whole[np.ix_(*[places_of] * values.ndim)] = values
    return whole


def _check_settings(evaluate, metric, mode, head, max_members, points):
    direction(metric, mode, evaluate)
    if metric is not None and evaluate is None:
        raise ValueError(f"metric={metric!r} was given, but no evaluate to measure it")
    if max_members < 2 or points < 1:
        raise ValueError(f"max_members must be at least 2 and points at least 1, not {max_members} and {points}")
    pattern(head or "", "head")


def _head_rule(head, trees):
    if head is None:
        return structure.HEAD
    names = {name for member in trees.values() for name in tree.names(member)}
    if trees and not any(re.fullmatch(head, name) for name in names):
        raise ValueError(f"head={head!r} does not match the whole name of any leaf{did_you_mean(head, names)}")
    return head
