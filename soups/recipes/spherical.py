"""Average by angles and lengths: all that these methods need of the members is the matrix of their inner products.

So each is a weighted sum whose weights follow from one Gram matrix [K, K], per leaf or of the whole model, which is all
that travels between devices and all that a stream has to remember.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soups import arguments, engine, tree
from soups.names import check_name
from soups.recipes.task_vectors import Weights


def nuslerp(
    members: arguments.Members,
    *,
    weights: Weights = 1.0,
    base: tree.Tree | None = None,
    scope: str = "leaf",
) -> tree.Tree:
    """Go along the arc between two members to where their weights say.

    [sin((1−t)Ω) a + sin(tΩ) b] / sin Ω with t = w_2 / (w_1 + w_2) and Ω the angle between a and b, which are the
    members or, with a base, their task vectors; linear where sin² Ω ≤ 1e-16 in float64, 1e-12 in float32. `scope`: one
    angle for each "leaf", for the "model", or for each "row" (along the last axis) or "column" (along the first).

    Raises:
        ValueError: not two members, other structures, NaN or infinity, another scope.

    Shoemake, "Animating rotation with quaternion curves", 1985.
    """
    members = arguments.as_mapping(members)
    return engine.apply(nuslerp_recipe(len(members), weights, base is not None, scope), members, base)


def multislerp(
    members: arguments.Members,
    *,
    weights: Weights = 1.0,
    base: tree.Tree | None = None,
    scope: str = "leaf",
) -> tree.Tree:
    """Average directions and lengths apart.

    (Σ_i w_i |v_i|) · s / |s| with s = Σ_i w_i v_i / |v_i| and weights that are normalised to one; v_i are the members
    or, with a base, their task vectors. Where the directions of two cancel, |s| < 1e-8, it is their average.

    Raises:
        ValueError: no members, other structures, NaN or infinity, another scope, weights that sum to zero, directions
            of more than two members that cancel.
    """
    members = arguments.as_mapping(members)
    return engine.apply(multislerp_recipe(len(members), weights, base is not None, scope), members, base)


def karcher(
    members: arguments.Members, *, base: tree.Tree | None = None, scope: str = "leaf", iterations: int = 10
) -> tree.Tree:
    """Take the Karcher mean of the members' directions on the sphere, with the mean of their lengths.

    μ ← exp_μ((1/K) Σ_i log_μ u_i), u_i = v_i / |v_i|, from their normalised mean, until the step is below 1e-5 or
    `iterations` are done; the result is μ · (1/K) Σ_i |v_i|.

    Raises:
        ValueError: no members, other structures, NaN or infinity, another scope.

    Karcher, "Riemannian center of mass and mollifier smoothing", 1977.
    """
    members = arguments.as_mapping(members)
    return engine.apply(karcher_recipe(len(members), base is not None, scope, iterations), members, base)


def model_stock(members: arguments.Members, *, base: tree.Tree, scope: str = "leaf") -> tree.Tree:
    """Move from the base towards the mean of the members as far as their angles say.

    θ = t mean(θ_i) + (1 − t) θ_base, t = K cos / (1 + (K − 1) cos), cos the mean of the cosines between all pairs of
    task vectors; t = 0 where the divisor is below 1e-6. `scope`: one t for each "leaf", for the "model", or for each
    "row" (along the last axis).

    Raises:
        ValueError: fewer than two members, other structures, NaN or infinity, another scope.

    Jang et al., "Model Stock: all we need is just a few fine-tuned models", 2024, arXiv 2403.19522.
    """
    members = arguments.as_mapping(members)
    return engine.apply(model_stock_recipe(len(members), scope), members, base)


def geometric_median(
    members: arguments.Members, *, weights: Weights = 1.0, scope: str = "leaf", iterations: int = 100
) -> tree.Tree:
    """Find the point with the smallest sum of distances to the members, which one odd member hardly moves.

    argmin_x Σ_i w_i |x − θ_i| by Weiszfeld's iteration from the mean.

    Raises:
        ValueError: no members, other structures, NaN or infinity, another scope.

    Weiszfeld, "Sur le point pour lequel la somme des distances de n points donnés est minimum", 1937.
    """
    members = arguments.as_mapping(members)
    return engine.apply(geometric_median_recipe(len(members), weights, scope, iterations), members)


def nuslerp_recipe(number: int, weights: Weights, has_base: bool, scope: str) -> engine.Recipe:
    """Give the recipe of `nuslerp`."""
    if number != 2:
        raise ValueError(f"nuslerp goes between two members, not {number}")
    weights = engine.per_member(weights, number, "weights")

    def coefficients(xp, gram):
        total = xp.asarray(weights[0] + weights[1], gram.dtype)
        known = xp.abs(total) >= 1e-6
        t = xp.where(known, xp.asarray(weights[1], gram.dtype) / xp.where(known, total, 1), xp.asarray(0.5, gram.dtype))
        return slerp_coefficients(xp, gram, t)

    return _by_scope(coefficients, has_base, scope, ("model", "leaf", "row", "column"))


def slerp_recipe(t: float, scope: str = "leaf", parallel: float = 0.9995) -> engine.Recipe:
    """Give the recipe of the arc from the first of two members to the second, linear where |cos Ω| > `parallel`."""
    return gram_recipe(
        lambda xp, gram: slerp_coefficients(xp, gram, xp.asarray(t, gram.dtype), parallel=parallel), False, scope
    )


def multislerp_recipe(
    number: int, weights: Weights, has_base: bool, scope: str, *, normalize: bool = True, epsilon: float = 0.0
) -> engine.Recipe:
    """Give the recipe of `multislerp`.

    Without `normalize` the weights stay as they are. `epsilon` is mergekit's: added to each length before the division,
    and the angle of a last step, so that the result is cos(ε) times as long.
    """
    weights = np.asarray(engine.per_member(weights, number, "weights"), np.float64)
    if normalize and abs(weights.sum()) < 1e-8:
        raise ValueError(f"weights that sum to zero cannot be normalized: {weights.tolist()}")

    def coefficients(xp, gram):
        share = xp.asarray(weights / weights.sum() if normalize else weights, gram.dtype)
        lengths, cosines = _lengths_and_cosines(xp, gram)
        part = share * lengths / (lengths + epsilon)
        norm = xp.sqrt(_positive(xp, part @ cosines @ part))
        cancels = norm < max(epsilon, 1e-8)
        if xp is np and number > 2 and cancels and gram.any():
            raise ValueError("the members' directions cancel: there is no mean direction")
        arc = math.cos(epsilon) * xp.sum(share * lengths) * part / (lengths * norm)
        return xp.where(cancels, share, arc)

    return gram_recipe(coefficients, has_base, scope)


def karcher_recipe(
    number: int,
    has_base: bool,
    scope: str,
    iterations: int = 10,
    *,
    tolerance: float = 1e-5,
    least: float = 0.0,
) -> engine.Recipe:
    """Give the recipe of `karcher`.

    It ends when a step is below `tolerance`. Vectors not longer than `least` have no direction, only a length, and the
    result is zero if all are that short; mergekit takes its tolerance for both.
    """

    def coefficients(xp, gram):
        lengths, cosines = _lengths_and_cosines(xp, gram)
        counted = lengths > least
        share = counted.astype(gram.dtype) / xp.maximum(xp.sum(counted), 1).astype(gram.dtype)
        length = xp.sqrt(_positive(xp, share @ cosines @ share))
        first = (xp.arange(number) == xp.argmax(counted)).astype(gram.dtype)
        start = xp.where(length < tolerance, first, share / length)
        # μ = Σ_i m_i u_i, so that all of the iteration is in the coefficients m
        direction = _iterate(xp, lambda m: _karcher_step(xp, cosines, share, m, tolerance), start, iterations)
        return xp.mean(lengths) * direction / lengths * xp.any(counted).astype(gram.dtype)

    return gram_recipe(coefficients, has_base, scope)


def model_stock_recipe(number: int, scope: str) -> engine.Recipe:
    """Give the recipe of `model_stock`."""
    if number < 2:
        raise ValueError(f"model_stock needs the angle between two members at least, but there is {number}")

    def coefficients(xp, gram):
        _, cosines = _lengths_and_cosines(xp, gram)
        diagonal = xp.sum(xp.diagonal(cosines, axis1=-2, axis2=-1), axis=-1)
        mean = (xp.sum(cosines, axis=(-2, -1)) - diagonal) / (number * (number - 1))
        divisor = 1.0 + (number - 1) * mean
        known = xp.abs(divisor) >= 1e-6
        t = xp.where(known, number * mean / xp.where(known, divisor, 1.0), 0.0 * mean)
        return xp.stack([t / number] * number, axis=-1)

    return _by_scope(coefficients, True, scope, ("model", "leaf", "row"))


def geometric_median_recipe(number: int, weights: Weights, scope: str, iterations: int = 100) -> engine.Recipe:
    """Give the recipe of `geometric_median`."""
    weights = np.asarray(engine.per_member(weights, number, "weights"), np.float64)

    def coefficients(xp, gram):
        share = xp.asarray(weights / weights.sum(), gram.dtype)
        squares = xp.diagonal(gram)

        def step(p):
            squared = p @ gram @ p - 2.0 * (gram @ p) + squares
            # a member that is met exactly takes nearly all of the weight
            pull = share / xp.sqrt(xp.maximum(squared, 1e-12 * (xp.max(squares) + 1e-30)))
            return pull / xp.sum(pull)

        return _iterate(xp, step, share, iterations)

    # distances are those of the differences to the first member, which lose no digits
    return gram_recipe(coefficients, False, scope, relative_to_first=True)


def gram_recipe(
    coefficients: Callable[[Any, Any], Any], has_base: bool, scope: str, *, relative_to_first: bool = False
) -> engine.Recipe:
    """Give the recipe that sums vectors with coefficients [K] made from their Gram matrix [K, K].

    `coefficients(xp, gram)`; float64 in NumPy, float32 in JAX. The vectors are the task vectors if there is a base,
    which is then added, or the members.
    """
    if scope not in ("model", "leaf"):
        raise ValueError(f"scope must be 'model' or 'leaf', not {scope!r}")

    def vectors(part):
        if relative_to_first:
            return [leaf - part.leaves[0] for leaf in part.leaves]
        return [part.vector(index) for index in range(len(part.leaves))] if has_base else part.leaves

    def products(part):
        here = vectors(part)
        return [tree.inner(a, b) for index, a in enumerate(here) for b in here[: index + 1]]

    def measure(parts):
        first = next(iter(parts()))
        xp, number = first.xp, len(first.leaves)
        sums = engine.sum_over(parts, products)
        rows, columns = np.tril_indices(number)
        place = np.zeros((number, number), np.int64)
        place[rows, columns] = place[columns, rows] = np.arange(len(rows))
        return coefficients(xp, xp.stack(sums)[place])

    def merge(part, weights):
        here = vectors(part)
        total = tree.sum_in_order([tree.scalar(weights[index], vector) * vector for index, vector in enumerate(here)])
        if relative_to_first:
            return part.leaves[0] + total
        return part.base + total if has_base else total

    return engine.Recipe(merge, measure, scope)


def _by_scope(coefficients, has_base, scope, scopes):
    check_name(scope, scopes, "scope")
    if scope in ("model", "leaf"):
        return gram_recipe(coefficients, has_base, scope)
    return _row_recipe(coefficients, has_base, columns=scope == "column")


def _row_recipe(coefficients, has_base, *, columns):
    """Give the recipe that does as `gram_recipe` for each row, or each column, by itself: Gram matrices [R, K, K]."""

    def rows(array):
        if columns:
            return array.reshape(array.shape[0] if array.ndim else 1, -1).T
        return array.reshape(-1, array.shape[-1] if array.ndim else 1)

    def merge(part, _):
        xp, number = part.xp, len(part.leaves)
        vectors = [rows(part.vector(i) if has_base else part.leaves[i]) for i in range(number)]
        wide = [x.astype(np.float64) for x in vectors] if xp is np else vectors
        gram = xp.stack([xp.stack([xp.sum(a * b, axis=-1) for b in wide], axis=-1) for a in wide], axis=-1)
        weights = coefficients(xp, gram)
        total = tree.sum_in_order([weights[:, i, None].astype(x.dtype) * x for i, x in enumerate(vectors)])
        merged = (total.T if columns else total).reshape(part.leaves[0].shape)
        return part.base + merged if has_base else merged

    return engine.Recipe(merge, unit="leaf" if columns else "row")


def slerp_coefficients(xp, gram, t, *, parallel: float | None = None):
    """Give the weights of two vectors at `t` of their arc; linear where they are parallel."""
    _, cosines = _lengths_and_cosines(xp, gram)
    cosine = xp.clip(cosines[..., 0, 1], -1.0, 1.0)
    squared_sine = 1.0 - cosine * cosine
    if parallel is None:
        straight = squared_sine <= (1e-16 if gram.dtype == np.float64 else 1e-12)
    else:
        straight = xp.abs(cosine) > parallel
    sine = xp.where(straight, 1.0, xp.sqrt(xp.where(straight, 1.0, squared_sine)))
    omega = xp.arccos(xp.where(straight, 0.0, cosine))
    a = xp.where(straight, 1.0 - t, xp.sin((1.0 - t) * omega) / sine)
    b = xp.where(straight, t, xp.sin(t * omega) / sine)
    return xp.stack([a, b], axis=-1)


def _lengths_and_cosines(xp, gram):
    lengths = xp.sqrt(_positive(xp, xp.diagonal(gram, axis1=-2, axis2=-1)))
    return lengths, gram / (lengths[..., :, None] * lengths[..., None, :])


def _positive(xp, squares):
    # a vector of zeros has no direction; its coefficient may be anything that is finite in float32 too
    return xp.maximum(squares, xp.asarray(1e-60 if squares.dtype == np.float64 else 1e-30, squares.dtype))


def _unit(xp, cosines, m):
    return m / xp.sqrt(_positive(xp, m @ cosines @ m))


def _karcher_step(xp, cosines, share, m, tolerance):
    cosine = xp.clip(cosines @ m, -1.0, 1.0)
    angle = xp.arccos(cosine)
    sine = xp.sqrt(1.0 - cosine * cosine)
    skipped = (angle < tolerance) | (sine == 0.0)
    ratio = xp.where(skipped, 0.0 * angle, angle / xp.where(skipped, 1.0, sine)) * share
    tangent = ratio - xp.sum(ratio * cosine) * m
    length = xp.sqrt(xp.maximum(tangent @ cosines @ tangent, 0.0))
    done = length < tolerance
    moved = xp.cos(length) * m + xp.sin(length) * tangent / xp.where(done, 1.0, length)
    return xp.where(done, m, _unit(xp, cosines, moved))


def _iterate(xp, step, value, number):
    if xp is jnp:
        return jax.lax.fori_loop(0, number, lambda _, value: step(value), value)
    for _ in range(number):
        value = step(value)
    return value
