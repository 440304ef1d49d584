"""Sum vectors with coefficients that follow from their inner products alone.

So all that travels between devices, and all that a stream has to remember, is one Gram matrix [K, K], per leaf or of
the whole model.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from soups import arrays, engine
from soups.engine import Recipe
from soups.lazy import jnp
from soups.names import check_name


def gram_recipe(
    coefficients: Callable[[Any, Any, Callable, float], Any],
    has_base: bool,
    scope: str,
    scopes: Sequence[str] = ("model", "leaf"),
    *,
    distances: bool = False,
) -> Recipe:
    """Return the recipe that sums vectors with coefficients [K] made from their Gram matrix [K, K].

    `coefficients(xp, gram, products, epsilon)`; float64 in NumPy, float32 in JAX; epsilon: that of the members' dtype.
    `products(rows)` are the inner products [N, N] of the sums Σ_i rows[n, i] v_i, measured on devices and where those
    of the v_i would cancel in them. The vectors v_i are the task vectors if there is a base, which is then added, or
    the members. With `distances` they are the differences to the first member, which lose no digits, and in place of
    the Gram matrix are the squares of all distances. With the scopes "row" and "column" each row (along the last axis),
    or column (along the first), goes by itself: Gram matrices [R, K, K].
    """
    check_name(scope, scopes, "scope")
    if scope in ("row", "column"):
        return _row_recipe(coefficients, has_base, columns=scope == "column")

    def vectors(part):
        if distances:
            return [leaf - part.leaves[0] for leaf in part.leaves]
        return part.vectors if has_base else part.leaves

    def measure(parts):
        epsilons = set()

        def products(part):
            epsilons.add(float(np.finfo(part.leaves[0].dtype).eps))
            return (_distances if distances else _products)(part.xp, vectors(part))

        gram = engine.sum_over(parts, products)
        xp = np if isinstance(gram, np.ndarray) else jnp
        size = _size(gram)
        gram = gram / size**2

        def products_of(rows):
            if xp is np and (found := rows @ (gram @ rows.T)).diagonal().min() >= 1e-2:
                return found
            return engine.sum_over(parts, lambda part: _pairs(part.xp, _sums(part.xp, vectors(part), rows))) / size**2

        return coefficients(xp, gram, products_of, max(epsilons))

    def merge(part, weights):
        total = arrays.mix(vectors(part), weights)
        if distances:
            return part.leaves[0] + total
        return part.base + total if has_base else total

    return Recipe(merge, measure, scope)


def _row_recipe(coefficients, has_base, *, columns):
    def rows(array):
        shape = array.shape or (1,)
        if columns:
            return array.reshape(shape[0], math.prod(shape[1:])).T
        return array.reshape(math.prod(shape[:-1]), shape[-1])

    def mixed(vectors, weights):
        return arrays.sum_in_order([weights[:, i, None].astype(x.dtype) * x for i, x in enumerate(vectors)])

    def merge(part, _):
        xp = part.xp
        vectors = [rows(vector) for vector in (part.vectors if has_base else part.leaves)]
        wide = list(map(arrays.doubled, vectors)) if xp is np else vectors
        gram = _along_rows(xp, wide)
        size = _size(gram)[..., None, None]

        def products_of(sums):
            return _along_rows(xp, [mixed(wide, sums[:, n]) for n in range(sums.shape[1])]) / size**2

        weights = coefficients(xp, gram / size**2, products_of, float(np.finfo(vectors[0].dtype).eps))
        total = mixed(vectors, weights)
        merged = (total.T if columns else total).reshape(part.leaves[0].shape)
        return part.base + merged if has_base else merged

    return Recipe(merge, unit="leaf" if columns else "row")


def _products(xp, vectors):
    return _products_on_host(vectors) if xp is np else _pairs(xp, vectors)


def _pairs(xp, vectors):
    return _square(xp, [[arrays.inner(a, b) for b in vectors[: index + 1]] for index, a in enumerate(vectors)])


def _sums(xp, vectors, rows):
    wide = list(map(arrays.doubled, vectors)) if xp is np else vectors
    return [arrays.mix(wide, row) for row in rows]


def _products_on_host(vectors):
    # in float64, as many elements at a time as fit into the cache
    flat = [np.asarray(vector).reshape(-1) for vector in vectors]
    step = max(256, 2**18 // len(flat))
    total = np.zeros((len(flat), len(flat)))
    for start in range(0, flat[0].size, step):
        wide = np.stack([arrays.wide_pairs(vector[start : start + step]) for vector in flat])
        total += wide @ wide.T
    return total


def _distances(xp, vectors):
    if xp is np:
        gram = _products_on_host(vectors)
        squares = np.diagonal(gram)
        return np.maximum(squares[:, None] + squares[None, :] - 2 * gram, 0) * (1 - np.eye(len(gram)))
    steps = [[a - b for b in vectors[: index + 1]] for index, a in enumerate(vectors)]
    return _square(xp, [[arrays.inner(step, step) for step in row] for row in steps])


def _square(xp, rows):
    """Return the symmetric matrix whose lower half these rows are."""
    place = np.zeros((len(rows), len(rows)), np.int64)
    low, high = np.tril_indices(len(rows))
    place[low, high] = place[high, low] = np.arange(len(low))
    return xp.stack([product for row in rows for product in row])[place]


def _along_rows(xp, vectors):
    def inner(a, b):
        return xp.sum(xp.conj(a) * b, axis=-1).real

    return xp.stack([xp.stack([inner(a, b) for b in vectors], axis=-1) for a in vectors], axis=-1)


def _size(gram):
    """Return a power of two near the length [...] of the longest vectors, 1 where thresholds need not be relative.

    So on devices, where float32 has no room for squares beyond the thresholds.
    """
    if not isinstance(gram, np.ndarray):
        return jnp.ones(gram.shape[:-2], gram.dtype)
    largest = gram.max(axis=(-2, -1), initial=0.0)
    usual = (largest == 0) | ((largest > 1e-24) & (largest < 1e24))
    return np.exp2(np.round(np.log2(np.where(usual, 1.0, largest)) / 2))


def length_of(xp, products, weights):
    """Return |Σ_i w_i v_i| [...] for weights [..., K]."""
    square = products(weights[..., None, :])[..., 0, 0]
    return xp.sqrt(xp.maximum(square, 1e-30))  # far below any rounding, and with a finite slope


def lengths_of(xp, gram):
    """Return |v_i| [..., K], above zero: a vector of zeros has no direction, and any coefficient that is finite."""
    squares = xp.diagonal(gram, axis1=-2, axis2=-1)
    return xp.sqrt(xp.maximum(squares, xp.asarray(1e-60 if squares.dtype == np.float64 else 1e-30, squares.dtype)))


def cosines_of(xp, gram):
    """Return the cosines [..., K, K] of the angles between all pairs."""
    lengths = lengths_of(xp, gram)
    return gram / (lengths[..., :, None] * lengths[..., None, :])


def quadratic(matrix, vector):
    """Return vᵀ M v."""
    return arrays.matmul(vector, arrays.matmul(matrix, vector))
