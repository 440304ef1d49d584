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
    coefficients: Callable[[Any, Any, Any, float], Any],
    has_base: bool,
    scope: str,
    scopes: Sequence[str] = ("model", "leaf"),
    *,
    mixed: Callable[[Any, Any], Any] | None = None,
    distances: bool = False,
) -> Recipe:
    """Return the recipe that sums vectors with coefficients [K] made from their Gram matrix [K, K].

    `coefficients(xp, gram, length, epsilon)`; float64 in NumPy, float32 in JAX; epsilon is that of the members' dtype.
    `length` is |Σ_i m_i v_i / |v_i|| with m = `mixed(xp, lengths)`, or None. The vectors v_i are the task vectors if
    there is a base, which is then added, or the members. With `distances` they are the differences to the first member,
    which lose no digits, and in place of the Gram matrix are the squares of all distances. With the scopes "row" and
    "column" each row (along the last axis), or column (along the first), goes by itself: Gram matrices [R, K, K].
    """
    check_name(scope, scopes, "scope")
    if scope in ("row", "column"):
        return _row_recipe(coefficients, has_base, mixed, columns=scope == "column")

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
        length = None if mixed is None else _length(xp, gram, mixed, lambda: map(vectors, parts()), size)
        return coefficients(xp, gram, length, max(epsilons))

    def merge(part, weights):
        total = arrays.mix(vectors(part), weights)
        if distances:
            return part.leaves[0] + total
        return part.base + total if has_base else total

    return Recipe(merge, measure, scope)


def _row_recipe(coefficients, has_base, mixed, *, columns):
    def rows(array):
        shape = array.shape or (1,)
        if columns:
            return array.reshape(shape[0], math.prod(shape[1:])).T
        return array.reshape(math.prod(shape[:-1]), shape[-1])

    def merge(part, _):
        xp = part.xp
        vectors = [rows(vector) for vector in (part.vectors if has_base else part.leaves)]
        wide = list(map(arrays.doubled, vectors)) if xp is np else vectors
        gram = xp.stack([xp.stack([_along_rows(xp, a, b) for b in wide], axis=-1) for a in wide], axis=-1)
        size = _size(gram)
        gram = gram / size[..., None, None] ** 2
        length = None
        if mixed is not None:
            share = _share(xp, gram, mixed)
            total = arrays.sum_in_order([share[:, i, None].astype(x.dtype) * x for i, x in enumerate(wide)])
            length = xp.sqrt(_along_rows(xp, total, total)) / size
        weights = coefficients(xp, gram, length, float(np.finfo(vectors[0].dtype).eps))
        total = arrays.sum_in_order([weights[:, i, None].astype(x.dtype) * x for i, x in enumerate(vectors)])
        merged = (total.T if columns else total).reshape(part.leaves[0].shape)
        return part.base + merged if has_base else merged

    return Recipe(merge, unit="leaf" if columns else "row")


def _products(xp, vectors):
    if xp is np:
        return _products_on_host(vectors)
    return _square(xp, [[arrays.inner(a, b) for b in vectors[: index + 1]] for index, a in enumerate(vectors)])


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


def _along_rows(xp, a, b):
    return xp.sum(xp.conj(a) * b, axis=-1).real


def _size(gram):
    """Return a power of two near the length [...] of the longest vectors, 1 where thresholds need not be relative.

    So on devices, where float32 has no room for squares beyond the thresholds.
    """
    if not isinstance(gram, np.ndarray):
        return jnp.ones(gram.shape[:-2], gram.dtype)
    largest = gram.max(axis=(-2, -1), initial=0.0)
    usual = (largest == 0) | ((largest > 1e-24) & (largest < 1e24))
    return np.exp2(np.round(np.log2(np.where(usual, 1.0, largest)) / 2))


def _length(xp, gram, mixed, vectors, size):
    """Measure |Σ_i m_i v_i / |v_i||, by itself where the products would cancel in it."""
    share = _share(xp, gram, mixed)
    square = quadratic(gram, share)
    if xp is not np or square < 1e-2:
        sums = (arrays.mix(list(map(arrays.doubled, v)) if xp is np else v, share) for v in vectors())
        square = arrays.sum_in_order([arrays.inner(total, total) for total in sums]) / size**2
    return xp.sqrt(xp.maximum(square, 1e-30))  # far below any rounding, and with a finite slope


def _share(xp, gram, mixed):
    lengths = lengths_of(xp, gram)
    return mixed(xp, lengths) / lengths


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
