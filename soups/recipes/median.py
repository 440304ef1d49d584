"""Find the geometric median of the members, from the distances between them alone."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from soups import arguments, arrays
from soups.engine import Recipe
from soups.lazy import jax, jnp
from soups.recipes._gram import gram_recipe, quadratic
from soups.recipes.declare import Inputs, method


@method(per_member=("weights",), takes_complex=True, title="geometric median")
def geometric_median(inputs: Inputs, *, weights: ArrayLike = 1.0, scope: str = "leaf", iterations: int = 100) -> Recipe:
    """Find the point with the smallest sum of distances to the members, which one odd member hardly moves.

    argmin_x Σ_i w_i |x − θ_i|, w_i ≥ 0, not all 0: a member where the test of Vardi and Zhang says that it is the
    median, or the middle of those that are, such as of two; else by Newton's steps, or Weiszfeld's where those do not
    lead down, until no digit changes or `iterations` are done. Forward and reverse gradients are those of the median
    itself.

    Weiszfeld, "Sur le point pour lequel la somme des distances de n points donnés est minimum", 1937. Vardi and Zhang,
    "The multivariate L1-median and associated data depth", 2000.
    """
    arguments.check_within("iterations", iterations, "[0, inf)")
    shares = np.asarray(arguments.shares(arguments.check_weights(weights)), np.float64)

    def coefficients(xp, gram, products, epsilon):
        share = xp.asarray(shares, gram.dtype)
        limit = max(64 * epsilon, math.sqrt(64 * np.finfo(np.float64).eps))
        return _median_coefficients(xp, gram, share, limit, iterations)

    return gram_recipe(coefficients, False, scope, distances=True)


def _median_coefficients(xp, squares, share, limit, iterations):
    """Return the coefficients of the median of points from the squares [K, K] of their distances."""
    goals = arrays.matmul(xp.sqrt(squares), share)
    best = xp.argmin(goals)
    # inner products of the differences to the member that serves best
    gram = (squares[best][:, None] + squares[best][None, :] - squares) / 2
    alone = (xp.arange(len(share)) == best).astype(share.dtype)
    distances = xp.sqrt(squares[best])
    here = distances <= limit * xp.max(distances)
    pull = xp.where(here, 0.0, share / xp.where(here, 1.0, distances))
    force = xp.sqrt(xp.maximum(quadratic(gram, pull), 0.0))
    stays = force <= xp.sum(xp.where(here, share, 0.0)) * (1 + limit)
    # from there downhill, to where no member is better
    total = xp.sum(pull)
    step = xp.where(stays, 0.0, 1 - xp.sum(xp.where(here, share, 0.0)) / xp.where(stays, 1.0, force))
    start = (1 - step) * alone + step * pull / xp.where(total > 0, total, 1.0)
    # of several as good, such as two members, the middle
    equal = (goals <= goals[best] * (1 + 16 * float(np.finfo(goals.dtype).eps))).astype(share.dtype)
    descend = _descend if xp is np else _descend_with_gradient
    return xp.where(stays, equal / xp.sum(equal), descend(xp, gram, share, start, iterations, stays))


def _descend(xp, gram, share, p, iterations, stays):
    epsilon = float(np.finfo(gram.dtype).eps)

    def moves(state):
        number, old, p = state
        return (number < iterations) & (xp.max(xp.abs(p - old)) > 4 * epsilon)

    def step(state):
        number, _, p = state
        newton, weiszfeld = _steps(xp, gram, share, p)
        goals = [xp.sum(share * _distances_to(xp, gram, tried)) for tried in (newton, weiszfeld)]
        # equal up to rounding where little is left to do, and there Newton's is the better one; not so a NaN
        return number + 1, p, xp.where(goals[0] <= goals[1] * (1 + 8 * epsilon), newton, weiszfeld)

    state = (0, p + 1, p)
    if xp is not np:
        return jax.lax.while_loop(moves, step, state)[2]
    while moves(state):
        state = step(state)
    return state[2]


def _descend_with_gradient(xp, gram, share, p, iterations, stays):
    """Descend; the gradient is that of one step of Newton's at the end, for there it does not depend on its start."""

    @jax.custom_jvp
    def descend(gram, share, p, stays):
        return _descend(xp, gram, share, p, iterations, stays)

    @descend.defjvp
    def _(primals, tangents):
        gram, share, _, stays = primals
        end = descend(*primals)
        # at a member there is nothing to derive, and nothing that is finite
        regular = jnp.where(stays, jnp.eye(len(share), dtype=gram.dtype), gram), share
        place = jnp.where(stays, 0.0, end)
        return end, jax.jvp(lambda gram, share: _steps(xp, gram, share, place)[0], regular, tuple(tangents[:2]))[1]

    return descend(gram, share, p, stays)


def _distances_to(xp, gram, p):
    product, squares = arrays.matmul(gram, p), xp.diagonal(gram)
    distances = arrays.matmul(p, product) - 2.0 * product + squares
    nearest = xp.argmin(distances)
    at = xp.arange(len(p)) == nearest
    # of the nearest member the difference would lose all digits
    distances = xp.where(at, quadratic(gram, p - at.astype(p.dtype)), distances)
    return xp.sqrt(xp.maximum(distances, 1e-30))


def _steps(xp, gram, share, p):
    """Return the coefficients of the point after Newton's step and after Weiszfeld's."""
    distances = _distances_to(xp, gram, p)
    pull = share / distances
    total = xp.sum(pull)
    slope = total * p - pull
    product, slopes = arrays.matmul(gram, p), arrays.matmul(gram, slope)
    between = arrays.matmul(p, product) - product[:, None] - product[None, :] + gram
    scale = xp.sqrt(pull) / distances
    identity = xp.eye(len(p), dtype=p.dtype)
    between = xp.where(identity > 0, distances[:, None] ** 2, between)
    # total · I − Σ u uᵀ of the directions u to the members, inverted in their span
    matrix = total * (1 + 64 * float(np.finfo(p.dtype).eps)) * identity - scale[:, None] * scale[None, :] * between
    solved = xp.linalg.solve(matrix, (scale * (arrays.matmul(p, slopes) - slopes))[:, None])[:, 0] * scale
    return p - (slope + xp.sum(solved) * p - solved) / total, pull / total
