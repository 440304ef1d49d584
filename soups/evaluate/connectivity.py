"""Look at the landscape between members: straight paths, barriers, angles and planes.

`evaluate` is any function `params -> float`, or one that gives metrics by name, such as an `Evaluator`, of which
`metric` chooses one. Which way is better is known of it, as in `soups.greedy`, or said by `mode`.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from soups import arguments, tree
from soups.evaluate import geometry
from soups.recipes._scores import direction, score_of

Evaluate = Callable[[tree.Tree], float | Mapping[str, float]]


# --- Straight lines ---------------------------------------------------------------------------------------------------


def path(
    evaluate: Evaluate, a: tree.Tree, b: tree.Tree, ts: Sequence[float], *, metric: str | None = None
) -> list[float]:
    """Evaluate the weights (1 − t) a + t b for each t; at 0 and 1 exactly `a` and `b`; NaN where outputs overflow."""
    return [score_of(evaluate, _between(a, b, t), metric) for t in ts]


def interpolation_advantage(
    evaluate: Evaluate, a: tree.Tree, b: tree.Tree, *, metric: str | None = None, mode: str | None = None
) -> float:
    """Return what averaging two members gains: S(½a + ½b) − ½(S(a) + S(b)), S being `evaluate`.

    Its negative where less is better (mode "min").

    Wortsman et al., "Model soups", 2022, arXiv 2203.05482, section 4.
    """
    sign = _sign(metric, mode, evaluate)
    middle, *ends = (score_of(evaluate, params, metric) for params in (tree.mean([a, b]), a, b))
    return sign * (middle - sum(ends) / 2)


def barrier(
    evaluate: Evaluate,
    a: tree.Tree,
    b: tree.Tree,
    ts: Sequence[float] | None = None,
    *,
    metric: str | None = None,
    mode: str | None = None,
) -> float:
    """Return how far the score falls, on the straight path, below the straight line between the scores of its ends.

    max_t [(1 − t) S(a) + t S(b) − S((1 − t) a + t b)] where more is better (mode "max", an accuracy), and its negative
    inside, the rise of a loss, where less is better (mode "min"). At least 0, the value at the ends; 0 means that the
    members are linearly connected.

    Args:
        evaluate: S, a function of weights.
        a, b: the ends.
        ts: where to look, numbers in [0, 1]; default 0.1, 0.2, …, 0.9. The ends are always evaluated.
        metric: which entry to use where `evaluate` gives a mapping.
        mode: "max" or "min"; default: that of a known metric, and "max" where `evaluate` gives a float.

    Raises:
        ValueError: a mode other than "max" and "min"; an unknown metric, or one of which it is not known whether more
            is better; a t outside [0, 1].

    Frankle et al., "Linear mode connectivity and the lottery ticket hypothesis", 2020, arXiv 1912.05671; relative to
    the line between the ends: Entezari et al., 2022, arXiv 2110.06296.
    """
    return float(barriers(evaluate, [a, b], ts, metric=metric, mode=mode)[0, 1])


def barriers(
    evaluate: Evaluate,
    members: arguments.Members,
    ts: Sequence[float] | None = None,
    *,
    metric: str | None = None,
    mode: str | None = None,
) -> np.ndarray:
    """Return the barrier between each two members: a symmetric float64 matrix [K, K], zero on the diagonal.

    `members`: K trees, in a sequence or by name. Evaluates each member once and each pair at every t; see `barrier`.
    """
    sign = _sign(metric, mode, evaluate)
    ts = np.linspace(0, 1, 11)[1:-1] if ts is None else np.asarray(ts, np.float64)
    if not ((ts >= 0) & (ts <= 1)).all():
        raise ValueError(f"ts must lie in [0, 1]: {ts.tolist()}")
    members = _as_list(members)

    def score(params):
        return score_of(evaluate, params, metric)

    ends = [score(member) for member in members]
    matrix = np.zeros((len(members), len(members)))
    for i, j in itertools.combinations(range(len(members)), 2):
        matrix[i, j] = matrix[j, i] = drop(score, members[i], members[j], (ends[i], ends[j]), ts, sign)
    return matrix


def drop(
    evaluate: Evaluate, a: tree.Tree, b: tree.Tree, ends: tuple[float, float], ts: np.ndarray, sign: float
) -> float:
    """Return the barrier between two members whose scores `ends` are known; `sign`: -1 where less is better."""
    return _fall(path(evaluate, a, b, ts), ends, ts, sign)


def path_barrier(scores: Sequence[float], ts: Sequence[float], *, mode: str) -> float:
    """Return the barrier of a path whose scores are known at each t, the first and last of which are its ends.

    `mode`: "max" where more is better, or "min"; see `barrier`.
    """
    return _fall(scores, (scores[0], scores[-1]), np.asarray(ts), 1.0 if mode == "max" else -1.0)


def _fall(scores, ends, ts, sign):
    line = (1 - ts) * ends[0] + ts * ends[1]
    return float(np.max(sign * (line - np.asarray(scores)), initial=0.0))


def _sign(metric, mode, evaluate):
    return 1.0 if direction(metric, mode, evaluate) == "max" else -1.0


def _between(a, b, t):
    if t == 0:
        return a
    return b if t == 1 else tree.lerp(a, b, t)


# --- Angles ----------------------------------------------------------------------------------------------------


def angle(a: tree.Tree, b: tree.Tree, base: tree.Tree) -> float:
    """Return the angle between the task vectors a − base and b − base in degrees; see `angles`."""
    return float(angles([a, b], base)[0, 1])


def angles(members: arguments.Members, base: tree.Tree) -> np.ndarray:
    """Return the angle between each two task vectors member − base in degrees: float64 [K, K].

    `members`: K trees, in a sequence or by name.

    Raises:
        ValueError: weights whose structures differ; a member that equals the base and so has no direction.
    """
    gram = task_vector_products(members, base)
    lengths = np.sqrt(np.diag(gram))
    if not lengths.all():
        labels = np.array(_labels(members))[lengths == 0]
        raise ValueError(f"there is no angle, because these members equal the base: {', '.join(labels)}")
    cosines = geometry.cosines(gram)
    np.fill_diagonal(cosines, 1)
    return np.degrees(np.arccos(cosines))


def norms(members: arguments.Members, base: tree.Tree) -> np.ndarray:
    """Return the Euclidean norm of each task vector member − base: float64 [K]."""
    return np.sqrt(np.diag(task_vector_products(members, base)))


def task_vector_products(members: arguments.Members, base: tree.Tree) -> np.ndarray:
    """Return the inner products of all task vectors member − base: float64 [K, K].

    `members`: K trees, in a sequence or by name; a ValueError if structures differ.
    """
    trees = _as_list(members)
    tree.check_same_structure([base, *trees], ["base", *_labels(members)], dtypes=False)
    floats = {name: "all" for name, leaf in tree.flatten(base).items() if tree.is_float(leaf)}
    grams = geometry.measure(trees, base, floats).get("all", ())
    return sum((gram.deviations for gram in grams), np.zeros((len(trees),) * 2))


def _as_list(members) -> list[tree.Tree]:
    return list(members.values()) if isinstance(members, Mapping) else list(members)


def _labels(members) -> list[str]:
    return [str(label) for label in (members if isinstance(members, Mapping) else range(len(members)))]


# --- Planes ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plane:
    """Hold the plane through three sets of weights: origin + x u + y v.

    Attributes:
        origin: the base.
        u, v: orthonormal directions, trees in float32 or wider.
        points: coordinates (x, y) of "base", "a", "b" and "mean", the average of `a` and `b`.
    """

    origin: tree.Tree
    u: tree.Tree
    v: tree.Tree
    points: dict[str, tuple[float, float]]

    def at(self, x: float, y: float) -> tree.Tree:
        """Return the weights at (x, y) in the dtypes of the base."""
        step = tree.weighted_sum([self.u, self.v], [x, y])
        return tree.add_scaled(self.origin, step)


def plane(base: tree.Tree, a: tree.Tree, b: tree.Tree) -> Plane:
    """Make the plane through three sets of weights by Gram-Schmidt.

    u = (a − base) / |a − base|, and v the normalised part of b − base that is orthogonal to u; distances in the plane
    are distances between weights.

    Raises:
        ValueError: weights whose structures differ; three points that lie on one line.

    Garipov et al., "Loss surfaces, mode connectivity, and fast ensembling of DNNs", 2018, arXiv 1802.10026.
    """
    to_a, to_b = tree.sub(a, base), tree.sub(b, base)
    length_a, length_b = float(tree.norm(to_a)), float(tree.norm(to_b))
    u = tree.weighted_sum([to_a], [1 / length_a]) if length_a else to_a
    along = float(tree.dot(to_b, u))
    across = tree.add_scaled(to_b, u, -along)
    height = float(tree.norm(across))
    # below that the direction of `across` is rounding of float32
    if not length_a or height <= 1e-5 * length_b:
        raise ValueError("base, a and b lie on one line: they span no plane")
    points = {
        "base": (0.0, 0.0),
        "a": (length_a, 0.0),
        "b": (along, height),
        "mean": ((length_a + along) / 2, height / 2),
    }
    return Plane(origin=base, u=u, v=tree.weighted_sum([across], [1 / height]), points=points)


def plane_grid(
    evaluate: Evaluate,
    base: tree.Tree,
    a: tree.Tree,
    b: tree.Tree,
    *,
    metric: str | None = None,
    points_per_axis: int = 21,
    margin: float = 0.3,
) -> dict[str, Any]:
    """Evaluate the weights on a grid in the plane through base, a and b: a loss surface.

    The grid covers the box of the three points, widened on each side by `margin` times its width or height. Calls
    `evaluate` points_per_axis² times.

    Returns:
        {"x": [n], "y": [n], "values": [n][n], "points": {"base": [x, y], "a": …, "b": …, "mean": …}}, ready for JSON;
        values[i][j] is the score at (x[j], y[i]).

    Raises:
        ValueError: as `plane`; fewer than two points per axis; a negative margin.
    """
    if points_per_axis < 2 or margin < 0:
        raise ValueError(
            f"a grid needs at least 2 points per axis and a margin of at least 0, not {points_per_axis} and {margin}"
        )
    surface = plane(base, a, b)
    xs, ys = (_axis(values, points_per_axis, margin) for values in zip(*surface.points.values(), strict=True))
    return {
        "x": xs,
        "y": ys,
        "values": [[score_of(evaluate, surface.at(x, y), metric) for x in xs] for y in ys],
        "points": {name: list(point) for name, point in surface.points.items()},
    }


def _axis(values, count, margin) -> list[float]:
    low, high = min(values), max(values)
    reach = margin * (high - low)
    return np.linspace(low - reach, high + reach, count).tolist()
