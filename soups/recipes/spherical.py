"""Average by angles and lengths: all that these methods need of the members is the matrix of their inner products.

So each is a weighted sum whose weights follow from one Gram matrix [K, K], per leaf or of the whole model, which is all
that travels between devices and all that a stream has to remember.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soups import tree
from soups.recipes import _members, leafwise
from soups.recipes.task_vectors import Weights


def nuslerp(
    members: _members.Members,
    *,
    weights: Weights = 1.0,
    base: tree.Tree | None = None,
    scope: str = "leaf",
) -> tree.Tree:
    """Go along the arc between two members to where their weights say.

    [sin((1−t)Ω) a + sin(tΩ) b] / sin Ω with t = w_2 / (w_1 + w_2) and Ω the angle between a and b, which are the
    members or, with a base, their task vectors; linear where sin² Ω ≤ 1e-16 in float64, 1e-12 in float32. `scope`: one
    angle for each "leaf" or for the "model".

    Raises:
        ValueError: not two members, other structures, NaN or infinity, another scope.

    Shoemake, "Animating rotation with quaternion curves", 1985.
    """
    members = _members.as_mapping(members)
    return leafwise.apply(nuslerp_recipe(len(members), weights, base is not None, scope), members, base)


def multislerp(
    members: _members.Members,
    *,
    weights: Weights = 1.0,
    base: tree.Tree | None = None,
    scope: str = "leaf",
) -> tree.Tree:
    """Average directions and lengths apart.

    (Σ_i w_i |v_i|) · s / |s| with s = Σ_i w_i v_i / |v_i| and weights that are normalised to one; v_i are the members
    or, with a base, their task vectors.

    Raises:
        ValueError: no members, other structures, NaN or infinity, another scope, directions that cancel.
    """
    members = _members.as_mapping(members)
    return leafwise.apply(multislerp_recipe(len(members), weights, base is not None, scope), members, base)


def karcher(
    members: _members.Members, *, base: tree.Tree | None = None, scope: str = "leaf", iterations: int = 10
) -> tree.Tree:
    """Take the Karcher mean of the members' directions on the sphere, with the mean of their lengths.

    μ ← exp_μ((1/K) Σ_i log_μ u_i), u_i = v_i / |v_i|, from their normalised mean, until the step is below 1e-5 or
    `iterations` are done; the result is μ · (1/K) Σ_i |v_i|.

    Raises:
        ValueError: no members, other structures, NaN or infinity, another scope.

    Karcher, "Riemannian center of mass and mollifier smoothing", 1977.
    """
    members = _members.as_mapping(members)
    return leafwise.apply(karcher_recipe(len(members), base is not None, scope, iterations), members, base)


def model_stock(members: _members.Members, *, base: tree.Tree, scope: str = "leaf") -> tree.Tree:
    """Move from the base towards the mean of the members as far as their angles say.

    θ = t mean(θ_i) + (1 − t) θ_base, t = K cos / (1 + (K − 1) cos), cos the mean of the cosines between all pairs of
    task vectors; t = 0 where the divisor is below 1e-6.

    Raises:
        ValueError: fewer than two members, other structures, NaN or infinity, another scope.

    Jang et al., "Model Stock: all we need is just a few fine-tuned models", 2024, arXiv 2403.19522.
    """
    members = _members.as_mapping(members)
    return leafwise.apply(model_stock_recipe(len(members), scope), members, base)


def geometric_median(
    members: _members.Members, *, weights: Weights = 1.0, scope: str = "leaf", iterations: int = 100
) -> tree.Tree:
    """Find the point with the smallest sum of distances to the members, which one odd member hardly moves.

    argmin_x Σ_i w_i |x − θ_i| by Weiszfeld's iteration from the mean.

    Raises:
        ValueError: no members, other structures, NaN or infinity, another scope.

    Weiszfeld, "Sur le point pour lequel la somme des distances de n points donnés est minimum", 1937.
    """
    members = _members.as_mapping(members)
    return leafwise.apply(geometric_median_recipe(len(members), weights, scope, iterations), members)


def nuslerp_recipe(number: int, weights: Weights, has_base: bool, scope: str) -> leafwise.Recipe:
    """Give the recipe of `nuslerp`."""
    if number != 2:
        raise ValueError(f"nuslerp goes between two members, not {number}")
    weights = leafwise.per_member(weights, number, "weights")

    def coefficients(xp, gram):
        total = xp.asarray(weights[0] + weights[1], gram.dtype)
        known = xp.abs(total) >= 1e-6
        t = xp.where(known, xp.asarray(weights[1], gram.dtype) / xp.where(known, total, 1), xp.asarray(0.5, gram.dtype))
        return slerp_coefficients(xp, gram, t)

    return gram_recipe(coefficients, has_base, scope)


def slerp_recipe(t: float, scope: str = "leaf", parallel: float = 0.9995) -> leafwise.Recipe:
    """Give the recipe of the arc from the first of two members to the second, linear where |cos Ω| > `parallel`."""
    return gram_recipe(
        lambda xp, gram: slerp_coefficients(xp, gram, xp.asarray(t, gram.dtype), parallel=parallel), False, scope
    )


def multislerp_recipe(number: int, weights: Weights, has_base: bool, scope: str) -> leafwise.Recipe:
    """Give the recipe of `multislerp`."""
    weights = np.asarray(leafwise.per_member(weights, number, "weights"), np.float64)

    def coefficients(xp, gram):
        share = xp.asarray(weights / weights.sum(), gram.dtype)
        lengths, cosines = _lengths_and_cosines(xp, gram)
        long = _positive(xp, share @ cosines @ share)
        if xp is np and number > 2 and long < 1e-16:
            raise ValueError("the members' directions cancel: there is no mean direction")
        return xp.sum(share * lengths) * share / (lengths * xp.sqrt(long))

    return gram_recipe(coefficients, has_base, scope)


def karcher_recipe(number: int, has_base: bool, scope: str, iterations: int = 10) -> leafwise.Recipe:
    """Give the recipe of `karcher`."""

    def coefficients(xp, gram):
        lengths, cosines = _lengths_and_cosines(xp, gram)
        start = xp.full(number, 1.0 / number, gram.dtype)
        # μ = Σ_i m_i u_i, so that all of the iteration is in the coefficients m
        direction = _iterate(xp, lambda m: _karcher_step(xp, cosines, m), _unit(xp, cosines, start), iterations)
        return xp.mean(lengths) * direction / lengths

    return gram_recipe(coefficients, has_base, scope)


def model_stock_recipe(number: int, scope: str) -> leafwise.Recipe:
    """Give the recipe of `model_stock`."""
    if number < 2:
        raise ValueError(f"model_stock needs the angle between two members at least, but there is {number}")

    def coefficients(xp, gram):
        _, cosines = _lengths_and_cosines(xp, gram)
        mean = (xp.sum(cosines) - xp.trace(cosines)) / (number * (number - 1))
        divisor = 1.0 + (number - 1) * mean
        known = xp.abs(divisor) >= 1e-6
        t = xp.where(known, number * mean / xp.where(known, divisor, 1.0), 0.0 * mean)
        return xp.full(number, 1.0, gram.dtype) * t / number

    return gram_recipe(coefficients, True, scope)


def geometric_median_recipe(number: int, weights: Weights, scope: str, iterations: int = 100) -> leafwise.Recipe:
    """Give the recipe of `geometric_median`."""
    weights = np.asarray(leafwise.per_member(weights, number, "weights"), np.float64)

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
) -> leafwise.Recipe:
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
        sums = leafwise.sum_over(parts, products)
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

    return leafwise.Recipe(merge, measure, scope)


def slerp_coefficients(xp, gram, t, *, parallel: float | None = None):
    """Give the weights of two vectors at `t` of their arc; linear where they are parallel."""
    _, cosines = _lengths_and_cosines(xp, gram)
    cosine = xp.clip(cosines[0, 1], -1.0, 1.0)
    squared_sine = 1.0 - cosine * cosine
    if parallel is None:
        straight = squared_sine <= (1e-16 if gram.dtype == np.float64 else 1e-12)
    else:
        straight = xp.abs(cosine) > parallel
    sine = xp.where(straight, 1.0, xp.sqrt(xp.where(straight, 1.0, squared_sine)))
    omega = xp.arccos(xp.where(straight, 0.0, cosine))
    a = xp.where(straight, 1.0 - t, xp.sin((1.0 - t) * omega) / sine)
    b = xp.where(straight, t, xp.sin(t * omega) / sine)
    return xp.stack([a, b])


def _lengths_and_cosines(xp, gram):
    lengths = xp.sqrt(_positive(xp, xp.diagonal(gram)))
    return lengths, gram / (lengths[:, None] * lengths[None, :])


def _positive(xp, squares):
    # a vector of zeros has no direction; its coefficient may be anything finite
    return xp.maximum(squares, xp.asarray(np.finfo(squares.dtype).tiny * 1e8, squares.dtype))


def _unit(xp, cosines, m):
    return m / xp.sqrt(_positive(xp, m @ cosines @ m))


def _karcher_step(xp, cosines, m):
    cosine = xp.clip(cosines @ m, -1.0, 1.0)
    angle = xp.arccos(cosine)
    sine = xp.sqrt(1.0 - cosine * cosine)
    near = angle < 1e-5
    ratio = xp.where(near, 0.0 * angle, angle / xp.where(near, 1.0, sine)) / len(cosines)
    tangent = ratio - xp.sum(ratio * cosine) * m
    length = xp.sqrt(xp.maximum(tangent @ cosines @ tangent, 0.0))
    done = length < 1e-5
    moved = xp.cos(length) * m + xp.sin(length) * tangent / xp.where(done, 1.0, length)
    return xp.where(done, m, _unit(xp, cosines, moved))


def _iterate(xp, step, value, number):
    if xp is jnp:
        return jax.lax.fori_loop(0, number, lambda _, value: step(value), value)
    for _ in range(number):
        value = step(value)
    return value
