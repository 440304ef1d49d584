"""Average by angles and lengths: all that these methods need of the members is the matrix of their inner products.

So each is a weighted sum whose weights follow from one Gram matrix [K, K], per leaf or of the whole model, which is all
that travels between devices and all that a stream has to remember.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from soups import arguments, engine, tree
from soups.engine import Recipe
from soups.lazy import jax, jnp
from soups.names import check_name
from soups.recipes.declare import MANY, Inputs, method


@method(
    base="first",
    members=(1, 1),
    single=True,
    takes_complex=True,
    title="SLERP",
    summary="arc from the base (t = 0) to the member (t = 1)",
    paper="Shoemake 1985",
)
def slerp(inputs: Inputs, *, t, scope: str = "leaf", parallel: float = 1 - 1e-6) -> Recipe:
    """Go along the arc from the base to a member.

    [sin((1−t)Ω) a + sin(tΩ) b] / sin Ω with Ω the angle between the base a and the member b; linear where
    |cos Ω| > `parallel`. `scope`: one angle for each "leaf", or for the "model".

    Raises:
        ValueError: mismatched structures, NaN or infinity, an unknown scope.

    Shoemake, "Animating rotation with quaternion curves", 1985.
    """
    t = arguments.setting(t, 0.5, "t")

    def coefficients(xp, gram, length, epsilon):
        return slerp_coefficients(xp, gram, xp.asarray(t, gram.dtype), length, epsilon, parallel=parallel)

    return gram_recipe(coefficients, False, scope, mixed=_both)


@method(
    base="optional",
    per_member=("weights",),
    members=(2, 2),
    takes_complex=True,
    title="SLERP",
    summary="arc between two members, or their task vectors",
    paper="Shoemake 1985",
)
def nuslerp(inputs: Inputs, *, weights=1.0, scope: str = "leaf") -> Recipe:
    """Go along the arc between two members to where their weights say.

    [sin((1−t)Ω) a + sin(tΩ) b] / sin Ω with t = w_2 / (w_1 + w_2) and Ω the angle between a and b, which are the
    members or, with a base, their task vectors; linear where a and b are (anti)parallel up to rounding, sin Ω at most
    64 times the epsilon of their dtype, as leaves of one element are; t = 1/2 where w_1 + w_2 is zero. `scope`: one
    angle for each "leaf", for the "model", or for each "row" (along the last axis) or "column" (along the first).

    Raises:
        ValueError: not two members, mismatched structures, NaN or infinity, an unknown scope.

    Shoemake, "Animating rotation with quaternion curves", 1985.
    """

    weights = weights if tree.traced(weights) else arguments.balanced(weights)

    def coefficients(xp, gram, length, epsilon):
        total = xp.asarray(weights[0] + weights[1], gram.dtype)
        known = xp.abs(total) >= 1e-6
        t = xp.where(known, xp.asarray(weights[1], gram.dtype) / xp.where(known, total, 1), xp.asarray(0.5, gram.dtype))
        return slerp_coefficients(xp, gram, t, length, epsilon)

    return _by_scope(coefficients, inputs.has_base, scope, ("model", "leaf", "row", "column"), _both)


@method(
    base="optional",
    per_member=("weights",),
    takes_complex=True,
    title="MultiSLERP",
    summary="mean direction times mean length",
)
def multislerp(
    inputs: Inputs,
    *,
    weights=1.0,
    scope: str = "leaf",
    normalize: bool = True,
    epsilon: float = 0.0,
) -> Recipe:
    """Average directions and lengths apart.

    (Σ_i w_i |v_i|) · s / |s| with s = Σ_i w_i v_i / |v_i| and weights that are normalised to one; v_i are the members
    or, with a base, their task vectors. Where the directions cancel up to rounding, as those of scalars of opposite
    signs do, |s| at most 64 times the epsilon of the dtype, it is Σ_i w_i v_i.

    Raises:
        ValueError: no members, mismatched structures, NaN or infinity, an unknown scope, weights that sum to zero.
    """
    shares = np.asarray(arguments.shares(weights) if normalize else weights, np.float64)

    def mixed(xp, lengths):
        share = xp.asarray(shares, lengths.dtype)
        return share * lengths / (lengths + epsilon)

    def coefficients(xp, gram, length, resolution):
        share = xp.asarray(shares, gram.dtype)
        lengths = _lengths(xp, gram)
        cancels = length < (epsilon or 64 * resolution)
        if epsilon and xp is np and inputs.number > 2 and cancels and gram.any():
            raise ValueError("the members' directions cancel: there is no mean direction")
        total = math.cos(epsilon) * xp.sum(share * lengths) * mixed(xp, lengths)
        return xp.where(cancels, share, total / (lengths * xp.where(cancels, 1.0, length)))

    return gram_recipe(coefficients, inputs.has_base, scope, mixed=mixed)


@method(
    base="optional",
    takes_complex=True,
    title="Karcher mean",
    summary="Karcher mean of the directions times mean length",
    paper="Karcher 1977",
)
def karcher(
    inputs: Inputs,
    *,
    scope: str = "leaf",
    iterations: int = 10,
    tolerance: float = 1e-5,
    least: float = 0.0,
) -> Recipe:
    """Take the Karcher mean of the members' directions on the sphere, with the mean of their lengths.

    μ ← exp_μ((1/K) Σ_i log_μ u_i), u_i = v_i / |v_i|, from their normalised mean, until the step is below 1e-5 or
    `iterations` are done; the result is μ · (1/K) Σ_i |v_i|. Where the directions cancel up to rounding, as those of
    scalars of opposite signs do, μ starts from the first member's. A member opposite to μ does not pull.

    Raises:
        ValueError: no members, mismatched structures, NaN or infinity, an unknown scope.

    Karcher, "Riemannian center of mass and mollifier smoothing", 1977.
    """

    def counted(xp, lengths):
        return (lengths > least).astype(lengths.dtype)

    def mixed(xp, lengths):
        return counted(xp, lengths) / xp.maximum(xp.sum(counted(xp, lengths)), 1.0)

    def coefficients(xp, gram, length, epsilon):
        lengths, cosines = _lengths_and_cosines(xp, gram)
        share, members = mixed(xp, lengths), counted(xp, lengths)
        first = (xp.arange(inputs.number) == xp.argmax(members)).astype(gram.dtype)
        cancels = length < max(least, 64 * epsilon)
        start = xp.where(cancels, first, share / xp.where(cancels, 1.0, length))
        # cosines are known to the rounding of the products, so angles near 0 and π to its root
        limits = tolerance, max(64 * epsilon, math.sqrt(64 * np.finfo(gram.dtype).eps))
        # μ = Σ_i m_i u_i, so that all of the iteration is in the coefficients m
        direction = _iterate(xp, lambda m: _karcher_step(xp, cosines, share, m, *limits), start, iterations)
        return xp.mean(lengths) * direction / lengths * xp.max(members)

    return gram_recipe(coefficients, inputs.has_base, scope, mixed=mixed)


@method(
    base="required",
    members=(2, MANY),
    title="model stock",
    summary="from the base towards the mean, as far as the members' angles say",
    paper="Jang et al. 2024, 2403.19522",
)
def model_stock(inputs: Inputs, *, scope: str = "leaf") -> Recipe:
    """Move from the base towards the mean of the members as far as their angles say.

    θ = t mean(θ_i) + (1 − t) θ_base, t = K cos / (1 + (K − 1) cos), cos the mean of the cosines between all pairs of
    task vectors; t = 0 where the divisor is below 1e-6. `scope`: one t for each "leaf", for the "model", or for each
    "row" (along the last axis).

    Raises:
        ValueError: fewer than two members, mismatched structures, NaN or infinity, an unknown scope.

    Jang et al., "Model Stock: all we need is just a few fine-tuned models", 2024, arXiv 2403.19522.
    """
    number = inputs.number

    def coefficients(xp, gram, length, epsilon):
        _, cosines = _lengths_and_cosines(xp, gram)
        diagonal = xp.sum(xp.diagonal(cosines, axis1=-2, axis2=-1), axis=-1)
        mean = (xp.sum(cosines, axis=(-2, -1)) - diagonal) / (number * (number - 1))
        divisor = 1.0 + (number - 1) * mean
        known = xp.abs(divisor) >= max(1e-6, 8 * number * float(np.finfo(gram.dtype).eps))
        t = xp.where(known, number * mean / xp.where(known, divisor, 1.0), 0.0 * mean)
        return xp.stack([t / number] * number, axis=-1)

    return _by_scope(coefficients, True, scope, ("model", "leaf", "row"))


@method(
    per_member=("weights",),
    takes_complex=True,
    title="geometric median",
    summary="smallest sum of distances to the members; one odd member hardly counts",
    paper="Weiszfeld 1937",
)
def geometric_median(inputs: Inputs, *, weights=1.0, scope: str = "leaf", iterations: int = 100) -> Recipe:
    """Find the point with the smallest sum of distances to the members, which one odd member hardly moves.

    argmin_x Σ_i w_i |x − θ_i|, w_i ≥ 0: a member where the test of Vardi and Zhang says that it is the median, or the
    middle of those that are, such as of two; else by Newton's steps, or Weiszfeld's where those do not lead down, until
    no digit changes or `iterations` are done.

    Raises:
        ValueError: no members, mismatched structures, NaN or infinity, an unknown scope; weights that are negative, not
            finite or all zero.

    Weiszfeld, "Sur le point pour lequel la somme des distances de n points donnés est minimum", 1937. Vardi and Zhang,
    "The multivariate L1-median and associated data depth", 2000.
    """
    shares = np.asarray(arguments.shares(arguments.check_weights(weights)), np.float64)

    def coefficients(xp, gram, length, epsilon):
        share = xp.asarray(shares, gram.dtype)
        limit = max(64 * epsilon, math.sqrt(64 * np.finfo(np.float64).eps))
        return _median_coefficients(xp, gram, share, limit, iterations)

    return gram_recipe(coefficients, False, scope, distances=True)


def gram_recipe(
    coefficients: Callable[[Any, Any, Any, float], Any],
    has_base: bool,
    scope: str,
    *,
    mixed: Callable[[Any, Any], Any] | None = None,
    distances: bool = False,
) -> Recipe:
    """Return the recipe that sums vectors with coefficients [K] made from their Gram matrix [K, K].

    `coefficients(xp, gram, length, epsilon)`; float64 in NumPy, float32 in JAX; epsilon is that of the members' dtype.
    `length` is |Σ_i m_i v_i / |v_i|| with m = `mixed(xp, lengths)`, or None. The vectors v_i are the task vectors if
    there is a base, which is then added, or the members. With `distances` they are the differences to the first member,
    which lose no digits, and in place of the Gram matrix are the squares of all distances.
    """
    check_name(scope, ("model", "leaf"), "scope")

    def vectors(part):
        if distances:
            return [leaf - part.leaves[0] for leaf in part.leaves]
        return [part.vector(index) for index in range(len(part.leaves))] if has_base else part.leaves

    def measure(parts):
        epsilons = set()

        def products(part):
            epsilons.add(float(np.finfo(part.leaves[0].dtype).eps))
            return (_distances if distances else _products)(part.xp, vectors(part))

        gram = engine.sum_over(parts, products)
        xp = np if isinstance(gram, np.ndarray) else jnp
        length = None if mixed is None else _length(xp, gram, mixed, lambda: map(vectors, parts()))
        return coefficients(xp, gram, length, max(epsilons))

    def merge(part, weights):
        total = tree.mix(vectors(part), weights)
        if distances:
            return part.leaves[0] + total
        return part.base + total if has_base else total

    return Recipe(merge, measure, scope)


def _products(xp, vectors):
    """Return the inner products [K, K] of all pairs."""
    if xp is np:
        return _products_on_host(vectors)
    return _square(xp, [[tree.inner(a, b) for b in vectors[: index + 1]] for index, a in enumerate(vectors)])


def _products_on_host(vectors):
    # in float64, as many elements at a time as fit into the cache
    flat = [np.asarray(vector).reshape(-1) for vector in vectors]
    step = max(256, 2**18 // len(flat))
    total = np.zeros((len(flat), len(flat)))
    for start in range(0, flat[0].size, step):
        wide = np.stack([tree.wide_pairs(vector[start : start + step]) for vector in flat])
        total += wide @ wide.T
    return total


def _distances(xp, vectors):
    """Return the squares [K, K] of the distances of all pairs."""
    if xp is np:
        gram = _products_on_host(vectors)
        squares = np.diagonal(gram)
        return np.maximum(squares[:, None] + squares[None, :] - 2 * gram, 0) * (1 - np.eye(len(gram)))
    steps = [[a - b for b in vectors[: index + 1]] for index, a in enumerate(vectors)]
    return _square(xp, [[tree.inner(step, step) for step in row] for row in steps])


def _square(xp, rows):
    """Return the symmetric matrix whose lower half these rows are."""
    place = np.zeros((len(rows), len(rows)), np.int64)
    low, high = np.tril_indices(len(rows))
    place[low, high] = place[high, low] = np.arange(len(low))
    return xp.stack([product for row in rows for product in row])[place]


def _length(xp, gram, mixed, vectors):
    """Measure |Σ_i m_i v_i / |v_i||, by itself where the products would cancel in it."""
    lengths = _lengths(xp, gram)
    share = mixed(xp, lengths) / lengths
    square = _quadratic(xp, gram, share)
    if xp is not np or square < 1e-2:
        sums = (tree.mix([x.astype(np.float64) for x in v] if xp is np else v, share) for v in vectors())
        square = tree.sum_in_order([tree.inner(total, total) for total in sums])
    return xp.sqrt(xp.maximum(square, 1e-30))  # far below any rounding, and with a finite slope


def _by_scope(coefficients, has_base, scope, scopes, mixed=None):
    check_name(scope, scopes, "scope")
    if scope in ("model", "leaf"):
        return gram_recipe(coefficients, has_base, scope, mixed=mixed)
    return _row_recipe(coefficients, has_base, mixed, columns=scope == "column")


def _row_recipe(coefficients, has_base, mixed, *, columns):
    """Return the recipe that does as `gram_recipe` for each row, or each column, by itself: Gram matrices [R, K, K]."""

    def rows(array):
        shape = array.shape or (1,)
        if columns:
            return array.reshape(shape[0], math.prod(shape[1:])).T
        return array.reshape(math.prod(shape[:-1]), shape[-1])

    def merge(part, _):
        xp, number = part.xp, len(part.leaves)
        vectors = [rows(part.vector(i) if has_base else part.leaves[i]) for i in range(number)]
        wide = [x.astype(np.float64) for x in vectors] if xp is np else vectors
        gram = xp.stack([xp.stack([_along_rows(xp, a, b) for b in wide], axis=-1) for a in wide], axis=-1)
        length = None
        if mixed is not None:
            lengths = _lengths(xp, gram)
            share = mixed(xp, lengths) / lengths
            total = tree.sum_in_order([share[:, i, None] * x for i, x in enumerate(wide)])
            length = xp.sqrt(_along_rows(xp, total, total))
        weights = coefficients(xp, gram, length, float(np.finfo(vectors[0].dtype).eps))
        total = tree.sum_in_order([weights[:, i, None].astype(x.dtype) * x for i, x in enumerate(vectors)])
        merged = (total.T if columns else total).reshape(part.leaves[0].shape)
        return part.base + merged if has_base else merged

    return Recipe(merge, unit="leaf" if columns else "row")


def slerp_coefficients(xp, gram, t, length, epsilon, *, parallel: float | None = None):
    """Return the weights of two vectors at `t` of their arc; linear where they are parallel.

    `length`: of the sum of their directions, 2 cos Ω/2, which says more than cos Ω where they are nearly opposite.
    """
    _, cosines = _lengths_and_cosines(xp, gram)
    cosine, half = xp.clip(cosines[..., 0, 1], -1.0, 1.0), xp.clip(length / 2, 0.0, 1.0)
    opposite = cosine < -0.5
    square = xp.where(opposite, 4 * half * half * (1 - half * half), 1 - cosine * cosine)
    straight = xp.sqrt(square) <= 64 * epsilon if parallel is None else xp.abs(cosine) > parallel
    # nothing is taken where its slope is infinite: gradients would be NaN
    by_half = xp.arccos(xp.where(opposite & ~straight, half, 0.0))
    omega = xp.where(opposite, 2 * by_half, xp.arccos(xp.where(opposite | straight, 0.0, cosine)))
    sine = xp.sqrt(xp.where(straight, 1.0, square))
    a = xp.where(straight, 1.0 - t, xp.sin((1.0 - t) * omega) / sine)
    b = xp.where(straight, t, xp.sin(t * omega) / sine)
    return xp.stack([a, b], axis=-1)


def _both(xp, lengths):
    return xp.ones_like(lengths)


def _along_rows(xp, a, b):
    product = xp.sum(xp.conj(a) * b, axis=-1)
    return product.real


def _lengths(xp, gram):
    # a vector of zeros has no direction; its coefficient may be anything that is finite in float32 too
    squares = xp.diagonal(gram, axis1=-2, axis2=-1)
    return xp.sqrt(xp.maximum(squares, xp.asarray(1e-60 if squares.dtype == np.float64 else 1e-30, squares.dtype)))


def _lengths_and_cosines(xp, gram):
    lengths = _lengths(xp, gram)
    return lengths, gram / (lengths[..., :, None] * lengths[..., None, :])


def _times(xp, matrix, vector):
    # accelerators would round the factors
    return matrix @ vector if xp is np else jnp.matmul(matrix, vector, precision="highest")


def _quadratic(xp, matrix, vector):
    return _times(xp, vector, _times(xp, matrix, vector))


def _karcher_step(xp, cosines, share, m, tolerance, limit):
    cosine = xp.clip(_times(xp, cosines, m), -1.0, 1.0)
    square = 1.0 - cosine * cosine
    straight = xp.sqrt(square) <= limit
    # where the slopes of both are infinite neither is taken: gradients would be NaN
    angle, sine = xp.arccos(xp.where(straight, 0.0, cosine)), xp.sqrt(xp.where(straight, 1.0, square))
    ratio = xp.where(straight, (cosine > 0).astype(sine.dtype), angle / sine)
    ratio = xp.where(xp.arccos(cosine) < tolerance, 0.0, ratio) * share
    tangent = ratio - xp.sum(ratio * cosine) * m
    length = xp.sqrt(xp.maximum(_quadratic(xp, cosines, tangent), 1e-30))
    done = length < tolerance
    moved = xp.cos(length) * m + xp.sin(length) * tangent / xp.where(done, 1.0, length)
    return xp.where(done, m, moved / xp.sqrt(xp.maximum(_quadratic(xp, cosines, moved), 1e-30)))


# --- The median ---


def _median_coefficients(xp, squares, share, limit, iterations):
    """Return the coefficients of the median of points from the squares [K, K] of their distances."""
    goals = _times(xp, xp.sqrt(squares), share)
    best = xp.argmin(goals)
    # inner products of the differences to the member that serves best
    gram = (squares[best][:, None] + squares[best][None, :] - squares) / 2
    alone = (xp.arange(len(share)) == best).astype(share.dtype)
    distances = xp.sqrt(squares[best])
    here = distances <= limit * xp.max(distances)
    pull = xp.where(here, 0.0, share / xp.where(here, 1.0, distances))
    force = xp.sqrt(xp.maximum(_quadratic(xp, gram, pull), 0.0))
    stays = force <= xp.sum(xp.where(here, share, 0.0)) * (1 + limit)
    # from there downhill, to where no member is better
    total = xp.sum(pull)
    step = xp.where(stays, 0.0, 1 - xp.sum(xp.where(here, share, 0.0)) / xp.where(stays, 1.0, force))
    start = (1 - step) * alone + step * pull / xp.where(total > 0, total, 1.0)
    # of several as good, such as two members, the middle
    equal = (goals <= goals[best] * (1 + 16 * float(np.finfo(goals.dtype).eps))).astype(share.dtype)
    return xp.where(stays, equal / xp.sum(equal), _descend(xp, gram, share, start, iterations))


def _descend(xp, gram, share, p, iterations):
    epsilon = float(np.finfo(gram.dtype).eps)

    def moves(state):
        number, old, p = state
        return (number < iterations) & (xp.max(xp.abs(p - old)) > 4 * epsilon)

    def step(state):
        number, _, p = state
        distances = _distances_to(xp, gram, p)
        newton, weiszfeld = _steps(xp, gram, share, p, distances)
        goals = [xp.sum(share * _distances_to(xp, gram, tried)) for tried in (newton, weiszfeld)]
        # equal up to rounding where little is left to do, and there Newton's is the better one; not so a NaN
        return number + 1, p, xp.where(goals[0] <= goals[1] * (1 + 8 * epsilon), newton, weiszfeld)

    state = (0, p + 1, p)
    if xp is not np:
        return jax.lax.while_loop(moves, step, state)[2]
    while moves(state):
        state = step(state)
    return state[2]


def _distances_to(xp, gram, p):
    product, squares = _times(xp, gram, p), xp.diagonal(gram)
    distances = _times(xp, p, product) - 2.0 * product + squares
    nearest = xp.argmin(distances)
    at = xp.arange(len(p)) == nearest
    # of the nearest member the difference would lose all digits
    distances = xp.where(at, _quadratic(xp, gram, p - at.astype(p.dtype)), distances)
    return xp.sqrt(xp.maximum(distances, 1e-30))


def _steps(xp, gram, share, p, distances):
    """Return the coefficients of the point after Newton's step and after Weiszfeld's."""
    pull = share / distances
    total = xp.sum(pull)
    slope = total * p - pull
    product, slopes = _times(xp, gram, p), _times(xp, gram, slope)
    between = _times(xp, p, product) - product[:, None] - product[None, :] + gram
    scale = xp.sqrt(pull) / distances
    identity = xp.eye(len(p), dtype=p.dtype)
    between = xp.where(identity > 0, distances[:, None] ** 2, between)
    # total · I − Σ u uᵀ of the directions u to the members, inverted in their span
    matrix = total * (1 + 64 * float(np.finfo(p.dtype).eps)) * identity - scale[:, None] * scale[None, :] * between
    solved = xp.linalg.solve(matrix, (scale * (_times(xp, p, slopes) - slopes))[:, None])[:, 0] * scale
    return p - (slope + xp.sum(solved) * p - solved) / total, pull / total


def _iterate(xp, step, value, number):
    if xp is not np:
        return jax.lax.fori_loop(0, number, lambda _, value: step(value), value)
    for _ in range(number):
        value = step(value)
    return value
