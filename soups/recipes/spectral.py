"""Merge task vectors as matrices: by their singular vectors, or by the inputs that their columns see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from soups import arguments, arrays
from soups.engine import Recipe
from soups.lazy import is_jax, jax
from soups.names import check_name, pattern
from soups.recipes.declare import Inputs, method


@method(base="required", title="TSV-Merge")
def tsv_merge(inputs: Inputs, *, scale: ArrayLike = 1.0, only: str = ".*") -> Recipe:
    """Merge the first singular vectors of the task matrices after making them orthogonal (TSV-Merge).

    T_i = U_i S_i V_iᵀ [m, n], cut to the max(1, min(m, n) // K) largest singular values; U = [U_1 … U_K] and V alike
    are replaced by their nearest orthogonal matrices, U (UᵀU)^(−1/2); θ = θ_base + α U⊥ diag(S_1 … S_K) V⊥ᵀ. Where
    members share directions the inverse is the pseudo-inverse; directions without a singular value are left out.

    Leaves with two axes or more are matrices [product of all but the last, last]; those with fewer, and those that do
    not match the regex `only`, get α times the mean of the task vectors. Singular value decompositions are in float64
    on the host, in float32 or wider under JAX; a matrix is never cut into parts or kept on several devices.

    Gargiulo et al., "Task singular vectors: reducing task interference in model merging", 2024, arXiv 2412.00081.
    """
    return matrix_recipe(inputs.number, _orthogonal_sum, scale, only)


@method(base="required", title="Iso-C")
def iso_c(inputs: Inputs, *, scale: ArrayLike = 1.0, only: str = ".*") -> Recipe:
    """Replace the singular values of the summed task matrices by their mean (Iso-C).

    Σ_i T_i = U diag(σ) Vᵀ; θ = θ_base + α mean(σ) U Vᵀ, over the directions that have a singular value. Leaves as in
    `tsv_merge`; the paper searches α on held-out data.

    Marczak et al., "No task left behind: isotropic model merging with common and task-specific subspaces", 2025,
    arXiv 2502.04959.
    """
    return matrix_recipe(inputs.number, _isotropic, scale, only)


@method(base="required", in_files={"inputs": "last"}, title="WUDI")
def wudi(
    given: Inputs,
    *,
    steps: int = 300,
    learning_rate: float = 1e-5,
    scale: ArrayLike = 1.0,
    only: str = ".*",
    inputs: str = "first",
) -> Recipe:
    """Find the task matrix that interferes least with every member's inputs, without data (WUDI-Merging).

    min over T of Σ_i |T_iᵀ (T − T_i)|² / |T_i|² by Adam from Σ_i T_i; θ = θ_base + α T. The matrices are [in, out], as
    Flax has them: a member's inputs lie in the span of its columns. For weights [out, in, ...] as PyTorch has them,
    inputs="last". Leaves otherwise as in `tsv_merge`; the published program leaves those that are no kernels of
    attention or of a perceptron at the base. The paper needs no scale α.

    Cheng et al., "Whoever started the interference should end it: guiding data-free model merging via task vectors",
    2025, arXiv 2503.08099.
    """
    check_name(inputs, ("first", "last"), "axis of the inputs")
    arguments.check_within("steps", steps, "[0, inf)")
    arguments.check_within("learning_rate", learning_rate, "(0, inf)")

    def merged(xp, matrices):
        if inputs == "first":
            return _least_interference(xp, matrices, steps, learning_rate)
        return _least_interference(xp, [matrix.T for matrix in matrices], steps, learning_rate).T

    return matrix_recipe(given.number, merged, scale, only, rows_first=inputs == "last")


def matrix_recipe(
    number: int, merged: Callable[[Any, list[Any]], Any], scale: Any, only: str, *, rows_first: bool = False
) -> Recipe:
    """Return the recipe that adds α · `merged(xp, matrices)` to the base, or α · the mean where leaves are no matrices.

    Matrices: [product of all axes but the last, last], with `rows_first` [first, product of the others].
    """
    matched = pattern(only, "only")

    def merge(part, _):
        vectors, shape = part.vectors, part.base.shape
        if len(shape) < 2 or 0 in shape or not matched.fullmatch(part.name):
            vector = arrays.sum_in_order(vectors) / arrays.scalar(number, vectors[0])
        else:
            matrix_shape = (shape[0], -1) if rows_first else (-1, shape[-1])
            vector = merged(part.xp, [vector.reshape(matrix_shape) for vector in vectors])
            vector = vector.reshape(shape).astype(part.base.dtype)
        merged_leaf = part.base + arrays.scalar(scale, vector) * vector
        if is_jax(part.leaves[0]) and not isinstance(merged_leaf, jax.core.Tracer):
            # a decomposition leaves its result on one device, or on all
            return jax.device_put(merged_leaf, part.leaves[0].sharding)
        return merged_leaf

    return Recipe(merge, unit="leaf")


def _orthogonal_sum(xp, matrices):
    rank = max(1, min(matrices[0].shape) // len(matrices))
    lefts, values, rights = zip(*(_decomposed(xp, matrix) for matrix in matrices), strict=True)
    dtype = matrices[0].dtype
    left = _orthogonal(xp, xp.concatenate([left[:, :rank] for left in lefts], axis=1), dtype)
    right = _orthogonal(xp, xp.concatenate([right[:rank] for right in rights], axis=0), dtype)
    return arrays.matmul(left * xp.concatenate([value[:rank] for value in values])[None, :], right)


def _isotropic(xp, matrices):
    left, values, right = _decomposed(xp, arrays.sum_in_order(matrices))
    return xp.mean(values) * arrays.matmul(left, right)


def _orthogonal(xp, matrix, dtype):
    left, _, right = _decomposed(xp, matrix, dtype)
    return arrays.matmul(left, right)


def _decomposed(xp, matrix, dtype=None):
    """Return U, σ and Vᵀ of a thin decomposition, with zeros for the vectors where σ is zero up to rounding.

    `dtype`: that the numbers were rounded to, if the matrix is of a wider one.
    """
    noise = 8 * np.finfo(dtype or matrix.dtype).eps * max(matrix.shape)
    matrix = matrix.astype(np.float64) if xp is np else matrix
    left, values, right = xp.linalg.svd(matrix, full_matrices=False)
    real = (values > values[0] * noise).astype(values.dtype)
    return left * real[None, :], values * real, right * real[:, None]


def _least_interference(xp, matrices, steps, learning_rate):
    """Descend from the sum M of matrices T_i [in, out]; the gradient at M + D is 2 (C Cᵀ D + G)."""
    start = arrays.sum_in_order(matrices)
    squares = [xp.sum(xp.square(matrix)) for matrix in matrices]
    # of a member that equals the base nothing remains
    inverse = [arrays.ratio(xp, 1, square, square > 0).astype(start.dtype) for square in squares]
    pulls = [arrays.matmul(matrix, arrays.matmul(matrix.T, start - matrix)) for matrix in matrices]
    constant = arrays.sum_in_order([weight * pull for weight, pull in zip(inverse, pulls, strict=True)])
    columns = [xp.sqrt(weight) * matrix for weight, matrix in zip(inverse, matrices, strict=True)]
    spread = xp.concatenate(columns, axis=1)  # C
    narrow = spread.shape[0] > 2 * spread.shape[1]  # then C Cᵀ would be larger than C
    square = None if narrow else arrays.matmul(spread, spread.T)

    def gradient(moved):
        product = arrays.matmul(spread, arrays.matmul(spread.T, moved)) if narrow else arrays.matmul(square, moved)
        return 2 * (product + constant)

    return start + _adam(xp, gradient, xp.zeros_like(start), steps, learning_rate)


def _adam(xp, gradient, value, steps, learning_rate, beta_1=0.9, beta_2=0.999, epsilon=1e-8):
    """Minimise by Adam (Kingma and Ba, 2014, arXiv 1412.6980), on the host without compiling anything."""
    counts = np.arange(1, steps + 1)
    corrections = xp.asarray(np.stack([1 - beta_1**counts, 1 - beta_2**counts], axis=1).astype(value.dtype))

    def step(number, state):
        value, first, second = state
        slope = gradient(value)
        first = beta_1 * first + (1 - beta_1) * slope
        second = beta_2 * second + (1 - beta_2) * xp.square(slope)
        length = xp.sqrt(second / corrections[number, 1]) + epsilon
        return value - learning_rate * (first / corrections[number, 0]) / length, first, second

    state = (value, xp.zeros_like(value), xp.zeros_like(value))
    if xp is not np:
        return jax.lax.fori_loop(0, steps, step, state)[0]
    for number in range(steps):
        state = step(number, state)
    return state[0]
