"""Average by angles and lengths: on arcs, by mean directions, and by their mean on the sphere."""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import ArrayLike

from soups import arguments, arrays, tree
from soups.engine import Recipe
from soups.lazy import jax
from soups.recipes._gram import cosines_of, gram_recipe, length_of, lengths_of, quadratic
from soups.recipes.declare import Inputs, method


@method(base="first", members=(1, 1), single=True, takes_complex=True, title="SLERP")
def slerp(inputs: Inputs, *, t: ArrayLike, scope: str = "leaf", parallel: float = 1 - 1e-6) -> Recipe:
    """Go along the arc from the base (t = 0) to a member (t = 1).

    [sin((1−t)Ω) a + sin(tΩ) b] / sin Ω with Ω the angle between the base a and the member b; linear where
    |cos Ω| > `parallel`. `scope`: one angle for each "leaf", or for the "model".

    Shoemake, "Animating rotation with quaternion curves", 1985.
    """
    t = arguments.setting(t, 0.5, "t")

    def coefficients(xp, gram, products, epsilon):
        return _slerp(xp, gram, xp.asarray(t, gram.dtype), products, epsilon, parallel=parallel)

    return gram_recipe(coefficients, False, scope)


@method(base="optional", per_member=("weights",), members=(2, 2), takes_complex=True, title="SLERP")
def nuslerp(inputs: Inputs, *, weights: ArrayLike = 1.0, scope: str = "leaf") -> Recipe:
    """Go along the arc between two members to where their weights say.

    [sin((1−t)Ω) a + sin(tΩ) b] / sin Ω with t = w_2 / (w_1 + w_2) and Ω the angle between a and b, which are the
    members or, with a base, their task vectors; linear where a and b are (anti)parallel up to rounding, sin Ω at most
    64 times the epsilon of their dtype, as leaves of one element are; t = 1/2 where w_1 + w_2 is zero. `scope`: one
    angle for each "leaf", for the "model", or for each "row" (along the last axis) or "column" (along the first).

    Shoemake, "Animating rotation with quaternion curves", 1985.
    """
    weights = weights if tree.traced(weights) else arguments.balanced(weights)

    def coefficients(xp, gram, products, epsilon):
        total, second = (xp.asarray(w, gram.dtype) for w in (weights[0] + weights[1], weights[1]))
        t = arrays.ratio(xp, second, total, xp.abs(total) >= 1e-6, xp.asarray(0.5, gram.dtype))
        return _slerp(xp, gram, t, products, epsilon)

    return gram_recipe(coefficients, inputs.has_base, scope, ("model", "leaf", "row", "column"))


@method(base="optional", per_member=("weights",), takes_complex=True, title="MultiSLERP")
def multislerp(
    inputs: Inputs, *, weights: ArrayLike = 1.0, scope: str = "leaf", normalize: bool = True, epsilon: float = 0.0
) -> Recipe:
    """Average directions and lengths apart.

    (Σ_i w_i |v_i|) · s / |s| with s = Σ_i w_i v_i / |v_i| and weights that are normalised to one; v_i are the members
    or, with a base, their task vectors. Where the directions cancel up to rounding, as those of scalars of opposite
    signs do, |s| at most 64 times the epsilon of the dtype, it is Σ_i w_i v_i. An `epsilon` above 0 does as mergekit:
    it is added to the |v_i| that divide, directions cancel where |s| is below it, and elsewhere the result is
    multiplied by its cosine.

    Raises:
        ValueError: weights that sum to zero; with an `epsilon`, directions of more than two members that cancel.
    """
    shares = np.asarray(arguments.shares(weights) if normalize else weights, np.float64)

    def coefficients(xp, gram, products, resolution):
        share, lengths = xp.asarray(shares, gram.dtype), lengths_of(xp, gram)
        mixed = share * lengths / (lengths + epsilon)
        length = length_of(xp, products, mixed / lengths)
        cancels = length < (epsilon or 64 * resolution)
        if epsilon and xp is np and inputs.number > 2 and cancels and gram.any():
            raise ValueError("the members' directions cancel out, so they have no mean direction")
        total = math.cos(epsilon) * xp.sum(share * lengths) * mixed
        return xp.where(cancels, share, total / (lengths * xp.where(cancels, 1.0, length)))

    return gram_recipe(coefficients, inputs.has_base, scope)


@method(base="optional", takes_complex=True, title="Karcher mean")
def karcher(
    inputs: Inputs, *, scope: str = "leaf", iterations: int = 10, tolerance: float = 1e-5, least: float = 0.0
) -> Recipe:
    """Take the Karcher mean of the members' directions on the sphere, with the mean of their lengths.

    μ ← exp_μ((1/K) Σ_i log_μ u_i), u_i = v_i / |v_i|, from their normalised mean, until a step is below `tolerance`
    or `iterations` are done; the result is μ · (1/K) Σ_i |v_i|. Where the directions cancel up to rounding, as those of
    scalars of opposite signs do, μ starts from the first member's. A member opposite to μ does not pull; one that is
    not longer than `least` has no direction.

    Karcher, "Riemannian center of mass and mollifier smoothing", 1977.
    """
    arguments.check_within("iterations", iterations, "[0, inf)")
    arguments.check_within("tolerance", tolerance, "[0, inf)")

    def coefficients(xp, gram, products, epsilon):
        lengths = lengths_of(xp, gram)
        members = (lengths > least).astype(gram.dtype)
        share = members / xp.maximum(xp.sum(members), 1.0)
        length = length_of(xp, products, share / lengths)
        first = (xp.arange(inputs.number) == xp.argmax(members)).astype(gram.dtype)
        cancels = length < max(least, 64 * epsilon)
        start = xp.where(cancels, first, share / xp.where(cancels, 1.0, length))
        # the differences u_i - μ_0 to the start, and the start: by their products float32 too knows angles near 0, and
        # the way where directions nearly cancel; float64 has digits enough
        rows = xp.concatenate([xp.eye(inputs.number, dtype=gram.dtype) - start[None], start[None]])
        rows = rows / lengths[None]
        gram = rows @ (gram @ rows.T) if xp is np else products(rows)
        # μ = Σ_i m_i (u_i - μ_0) + m_0 μ_0, so that all of the iteration is in the coefficients m
        m = (xp.arange(inputs.number + 1) == inputs.number).astype(gram.dtype)
        m = m / xp.sqrt(xp.maximum(gram[-1, -1], 1e-30))
        # angles near π are known to the root of the rounding of the products
        limits = tolerance, max(64 * epsilon, math.sqrt(64 * np.finfo(gram.dtype).eps))
        # what of these coefficients is nothing, for Σ_i start_i u_i is μ_0: with it they would grow, and lose digits
        nothing = xp.concatenate([start, xp.sum(start, keepdims=True) - 1]) / xp.sum(start)
        step = functools.partial(_karcher_step, xp, gram, nothing, share, *limits)
        if xp is np:
            m = functools.reduce(lambda m, _: step(m), range(iterations), m)
        else:
            m = jax.lax.fori_loop(0, iterations, lambda _, m: step(m), m)
        return xp.mean(lengths) * arrays.matmul(m, rows) * xp.max(members)

    return gram_recipe(coefficients, inputs.has_base, scope)


def _slerp(xp, gram, t, products, epsilon, *, parallel: float = 1.0):
    """Return the weights [..., 2] of two vectors at `t` of their arc; linear where they are parallel."""
    half = length_of(xp, products, 1 / lengths_of(xp, gram)) / 2

    def straight(sine, cosine):
        return (sine <= 64 * epsilon) | (cosine > parallel)

    return xp.stack(arrays.on_arc(xp, t, cosines_of(xp, gram)[..., 0, 1], half, straight), axis=-1)


def _karcher_step(xp, gram, nothing, share, tolerance, limit, m):
    """Go from μ to the mean of the members' tangents; of `gram`, `nothing` and `m` the start is the last."""
    moved = m - (xp.arange(len(m)) == len(m) - 1).astype(m.dtype)
    products = arrays.matmul(gram, moved)
    squares = (xp.diagonal(gram) - 2 * products + xp.sum(moved * products))[:-1]  # |u_i - μ|²
    squares = xp.clip(squares, 0.0, 4.0)
    straight = xp.sqrt(squares * (1 - squares / 4)) <= limit
    # where the slopes of angle and sine are infinite neither is taken: gradients would be NaN
    known = xp.where(straight, 1.0, squares)
    ratio = 2 * xp.arcsin(xp.sqrt(known) / 2) / xp.sqrt(known * (1 - known / 4))
    ratio = xp.where(straight, (squares < 2).astype(known.dtype), ratio)
    ones = (xp.diagonal(gram) + 2 * gram[-1] + gram[-1, -1])[:-1] > 0.5  # |u_i|²: vectors of zeros do not pull
    near = 2 * xp.arcsin(xp.sqrt(squares) / 2) < tolerance
    ratio = xp.where(ones & ~near, ratio, 0.0) * share
    total = xp.sum(ratio)
    tangent = xp.concatenate([ratio, xp.zeros_like(ratio[:1])]) - total * moved + xp.sum(ratio * squares / 2) * m
    tangent = tangent - xp.sum(tangent[:-1]) * nothing
    length = xp.sqrt(xp.maximum(quadratic(gram, tangent), 1e-30))
    done = length < tolerance
    moved = xp.cos(length) * m + xp.sin(length) * tangent / xp.where(done, 1.0, length)
    return xp.where(done, m, moved / xp.sqrt(xp.maximum(quadratic(gram, moved), 1e-30)))
