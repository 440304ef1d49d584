"""Rank models as starts, or as what is fused into one, and say what a ranking loses against the best choice.

A candidate's score is what a linear probe on one task gives (start from the best: 2211.00107), what is gained on
held-out tasks, how its task vector lies, or what the set grown so far has with it.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import scipy
from numpy.typing import ArrayLike

from soups import tree
from soups.evaluate import geometry
from soups.evaluate.connectivity import task_vector_products
from soups.names import check_name


def gains(scores: ArrayLike, base: ArrayLike) -> np.ndarray:
    """Return score − base of each model and task, float64 [M, T]: what a start gains over the pre-trained one.

    Args:
        scores: [M, T], of fine-tuning from each model on each task; base: [T], of fine-tuning the pre-trained one.

    Raises:
        ValueError: shapes that are not these; a number that is not finite.

    Choshen et al., "Where to start?", 2022, arXiv 2211.00107.
    """
    scores, base = np.asarray(scores, np.float64), np.asarray(base, np.float64)
    if scores.ndim != 2 or base.shape != scores.shape[1:] or not scores.size:
        raise ValueError(f"scores [M, T] and those of the base [T] are needed, not {scores.shape} and {base.shape}")
    if not (np.isfinite(scores).all() and np.isfinite(base).all()):
        raise ValueError("scores hold NaN or infinity: leave out the models that were not measured on all tasks")
    return scores - base


def rank_by_score(scores: Mapping[str, float]) -> list[str]:
    """Return names by their scores, the best first: such as of a linear probe on one task, or mean gains.

    Of equal scores the earlier goes first; NaN goes last. Where less is better, give the negative.
    """
    return sorted(scores, key=lambda name: math.inf if math.isnan(scores[name]) else -scores[name])


def rank_by_similarity(members: Mapping[str, tree.Tree], base: tree.Tree, like: tree.Tree | None = None) -> list[str]:
    """Return names by the cosine of the task vector, member − base, the most similar first.

    Args:
        members: candidates by name, at least one; without `like` at least two.
        like: weights, such as a short fine-tune on the target, to whose task vector each is compared; without them to
            the mean of the others' unit task vectors.

    Raises:
        ValueError: fewer members; weights whose structures differ; a member, or `like`, that equals the base.
    """
    if len(members) < (2 if like is None else 1):
        raise ValueError(f"there is nothing to compare {len(members)} members with: give more, or like=")
    given = {**members} if like is None else {**members, "like": like}
    if len(given) < len(members) + (like is not None):
        raise ValueError("a member is called 'like': give it another name")
    products = task_vector_products(given, base)
    if still := [name for name, square in zip(given, np.diag(products), strict=True) if square == 0]:
        raise ValueError(f"there is no direction, because these equal the base: {', '.join(still)}")
    cosines = geometry.cosines(products)
    found = geometry.agreement_with_others(cosines) if like is None else cosines[:-1, -1]
    return rank_by_score(dict(zip(members, found.tolist(), strict=True)))


def rank_greedily(
    names: Sequence[str], value: Callable[[tuple[str, ...]], float], size: int | None = None
) -> list[str]:
    """Return names in the order in which a set of them grows best: each time by the one that gives the best value.

    Args:
        names: candidates, each once.
        value: of a set, such as the held-out gain of the average of these models; more is better. It is given names in
            their own order, each set once; NaN is worse than all else.
        size: of the largest set, all by default.

    Raises:
        ValueError: a name that is given twice; a size that is not in [1, the number of names].
    """
    names, size = list(names), len(names) if size is None else size
    if len(set(names)) < len(names):
        raise ValueError("names are given twice: a candidate counts once")
    if not 1 <= size <= len(names):
        raise ValueError(f"size must be in [1, {len(names)}], not {size}")
    grown: list[str] = []
    while len(grown) < size:
        rest = [name for name in names if name not in grown]
        grown.append(rank_by_score({new: value(tuple(n for n in names if n in {*grown, new})) for new in rest})[0])
    return grown


def regret(values: Mapping[Collection[str], float] | Mapping[str, float], chosen: Collection[str] | str) -> float:
    """Return the best value less that of what was chosen: 0 where nothing better was there.

    Args:
        values: of all that might have been chosen, by name, or by sets of names in any order, such as all of one size.
        chosen: one of them.

    Raises:
        ValueError: a choice that has no value, a set that is there twice, a value that is not finite.
    """
    found = {_key(names): float(value) for names, value in values.items()}
    if len(found) < len(values):
        raise ValueError("the same set of names is given twice, in a different order")
    if not all(map(math.isfinite, found.values())):
        raise ValueError("values hold NaN or infinity")
    return max(found.values()) - found[check_name(_key(chosen), found, "choice")]


def split_half(scores: ArrayLike, *, splits: int = 1000, seed: int = 0) -> float:
    """Return Spearman's correlation of the models' mean scores on two halves of the tasks, averaged over random halves.

    1 where the same models are best whichever tasks are asked.

    Args:
        scores: [M, T], at least 2 models and 2 tasks; of an odd number of tasks one is left out of each split.

    Raises:
        ValueError: another shape; no splits; models that are equal on a half, which have no order.
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2 or min(scores.shape) < 2 or splits < 1:
        raise ValueError(f"scores of at least 2 models on 2 tasks, and a split, are needed: {scores.shape}, {splits}")
    random, half, found = np.random.default_rng(seed), scores.shape[1] // 2, []
    for _ in range(splits):
        order = random.permutation(scores.shape[1])
        ranks = [scipy.stats.rankdata(scores[:, part].mean(1)) for part in (order[:half], order[half : 2 * half])]
        if any(np.ptp(own) == 0 for own in ranks):
            raise ValueError("all models are equal on a half of the tasks: there is no order")
        found.append(np.corrcoef(*ranks)[0, 1])
    return float(np.mean(found))


def _key(names):
    return names if isinstance(names, str) else frozenset(names)
