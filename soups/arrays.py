"""Add and multiply arrays of NumPy or JAX, always in the same order and at full precision; tell their kinds."""

from __future__ import annotations

import functools

import ml_dtypes
import numpy as np

from soups.lazy import is_jax, jax, jnp

BLOCK = 2**16  # elements that an inner product on the host has in float64 at a time


def mix(leaves, weights):
    """Sum arrays, each times its weight."""
    return _sum_in_halves(list(zip(weights, leaves, strict=True)), lambda pair: scalar(pair[0], pair[1]) * pair[1])


def mean_of(leaves):
    """Average arrays of one float dtype; exactly the first where all are equal.

    Where the sum overflows, devices take the sum of the shares, and on the host the caller has wider floats.
    """
    number, total = scalar(len(leaves), leaves[0]), _sum_in_halves(leaves)
    if len(leaves) & (len(leaves) - 1) == 0:  # equal ones were only doubled
        mean = total / number
    else:  # less what the rounding of the same sum makes of as many copies of the first
        mean = leaves[0] + (total - _times_in_halves(leaves[0], len(leaves), {1: leaves[0]})) / number
    if not is_jax(mean):
        return mean
    return jnp.where(jnp.isfinite(mean), mean, _sum_in_halves(leaves, lambda leaf: leaf / number))


def sum_in_order(leaves):
    """Add arrays one after the other: streamed and in-memory sums are then the same to the bit."""
    return functools.reduce(lambda total, leaf: total + leaf, leaves)


def _sum_in_halves(items, term=lambda item: item):
    # the error grows with the logarithm of their number
    if len(items) == 1:
        return term(items[0])
    half = (len(items) + 1) // 2
    left, right = _sum_in_halves(items[:half], term), _sum_in_halves(items[half:], term)
    if half > 1 and isinstance(left, np.ndarray):
        left += right  # nobody else's: faster than a new array
        return left
    return left + right


def _times_in_halves(leaf, number, known):
    if number not in known:
        half = (number + 1) // 2
        known[number] = _times_in_halves(leaf, half, known) + _times_in_halves(leaf, number - half, known)
    return known[number]


def scalar(value, leaf):
    """Return a number, traced or not, in the dtype of a leaf, as strict promotion demands."""
    if is_jax(value):
        return value.astype(leaf.dtype)
    return leaf.dtype.type(value)


def inner(x, y):
    """Sum the products of two arrays' elements; in float64 on the host, at full precision on devices."""
    if isinstance(x, np.ndarray | np.generic) and isinstance(y, np.ndarray | np.generic):
        return _inner_on_host(x, y)
    # over all axes at once: vdot would ravel, which on sharded arrays means communication
    product = jnp.tensordot(jnp.conj(x), y, x.ndim, precision=jax.lax.Precision.HIGHEST)
    return product.real


def _inner_on_host(x, y):
    first, second = (np.ascontiguousarray(array).reshape(-1) for array in (x, y))
    total = np.float64(0)
    for start in range(0, first.size, BLOCK):
        wide = wide_pairs(first[start : start + BLOCK])
        total += wide @ (wide if x is y else wide_pairs(second[start : start + BLOCK]))
    return total


def total(xp, array):
    """Sum the elements of an array; NumPy's einsum takes a third of the time of its sum, but not bfloat16 or float8."""
    if xp is not np:
        return xp.sum(array)
    return np.einsum("i->", np.reshape(array, -1)) if array.dtype.isbuiltin == 1 else np.sum(array, dtype=np.float32)


def doubled(array):
    """Return a NumPy array in float64 or complex128."""
    return array.astype(np.promote_types(array.dtype, np.float64), copy=False)


def wide_pairs(vector):
    """Return the elements of a NumPy vector in float64, of complex ones the real and imaginary parts."""
    wide = doubled(vector)
    return wide.view(wide.real.dtype) if wide.dtype.kind == "c" else wide


def ratio(xp, a, b, known, otherwise=0):
    """Return a / b where `known` says that there is one, else `otherwise`; gradients are finite everywhere."""
    return xp.where(known, a / xp.where(known, b, 1), otherwise)


def on_arc(xp, t, cosine, half, straight):
    """Return the weights of two vectors at `t` of their arc, sin((1−t)Ω) / sin Ω and sin(tΩ) / sin Ω.

    `cosine`: cos Ω; `half`: half the length of the sum of their directions, cos Ω/2, which says more where they are
    nearly opposite. `straight(sin Ω, |cos Ω|)` says where the weights are 1 − t and t.
    """
    cosine, square = xp.clip(cosine, -1.0, 1.0), xp.clip(half * half, 0.0, 1.0)
    square = xp.where(cosine < -0.5, square, (1 + cosine) / 2)  # of cos Ω/2
    rest = xp.where(cosine < -0.5, 1 - square, (1 - cosine) / 2)  # that of sin Ω/2
    line = straight(2 * xp.sqrt(square * rest), xp.abs(square - rest))
    # nothing is taken where its slope is infinite: gradients would be NaN
    cos_half, sin_half = (xp.sqrt(xp.where(line, 0.5, x)) for x in (square, rest))
    angle, sine = 2 * xp.arctan2(sin_half, cos_half), 2 * sin_half * cos_half
    return xp.where(line, 1.0 - t, xp.sin((1.0 - t) * angle) / sine), xp.where(line, t, xp.sin(t * angle) / sine)


def matmul(a, b):
    """Multiply matrices or vectors; accelerators would otherwise round the factors of float32."""
    return a @ b if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) else jnp.matmul(a, b, precision="highest")


def as_bytes(array: np.ndarray) -> np.ndarray:
    """View an array as its bytes in C order, which every hash can read (bfloat16 has no buffer format)."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def refusal(array, *, numbers: bool = True) -> str:
    """Say why programs cannot take an array, "" where they can: a mask would be lost, another byte order misread.

    `numbers`: whether it must hold numbers, as what is computed with.
    """
    if isinstance(array, np.ma.MaskedArray):
        return "is a masked array: leave out what is masked, or give .filled()"
    if not isinstance(dtype := getattr(array, "dtype", None), np.dtype):
        return ""
    if numbers and (dtype.kind in "OSUTMm" or dtype.type is np.void):
        return f"has dtype {dtype}: programs take arrays of numbers alone"
    if not dtype.isnative:
        return f"has the byte order of other machines: give .astype({dtype.newbyteorder('=').name!r})"
    return ""


def is_array(leaf) -> bool:
    """Say whether a leaf is an array of numbers, or the shape and dtype of one."""
    try:
        dtype = np.dtype(leaf.dtype)
        return (
            leaf.shape is not None
            and not isinstance(leaf, np.ma.MaskedArray | np.matrix)
            and (dtype.kind == "b" or (dtype.kind != "m" and jnp.issubdtype(dtype, np.number)))
        )
    except (AttributeError, TypeError):  # Python's own, or another library's; NumPy knows no PRNG keys
        return False


def is_float(leaf) -> bool:
    """Say whether a leaf holds floats, which are mixed, or integers and booleans, which are copied."""
    return _is_inexact(leaf.dtype)


@functools.cache
def _is_inexact(dtype):
    if not isinstance(dtype, np.dtype):
        return False
    if dtype.kind != "V":
        return dtype.kind in "fc"
    try:
        return bool(ml_dtypes.finfo(dtype))
    except ValueError:
        return False


def is_complex(leaf) -> bool:
    """Say whether a leaf holds complex numbers."""
    return np.dtype(leaf.dtype).kind == "c"


def namespace(leaves):
    """Return numpy if all arrays are NumPy's, else jax.numpy."""
    return np if all(isinstance(leaf, (np.ndarray, np.generic, float)) for leaf in leaves) else jax.numpy


def widest(dtypes) -> np.dtype:
    """Return the narrowest dtype that holds all of some float dtypes: float32 for bfloat16 and float16."""
    return functools.reduce(_promoted, map(np.dtype, dtypes))


@functools.cache
def _promoted(a, b):
    if a == b:
        return a
    return np.promote_types(*(x if x.kind in "fc" and x.itemsize > 2 else np.dtype(np.float32) for x in (a, b)))


def widen_leaves(leaves):
    """Cast float arrays to the widest of their dtypes and float32."""
    wide = widest([np.float32, *(leaf.dtype for leaf in leaves)])
    return [leaf if leaf.dtype == wide else leaf.astype(wide) for leaf in leaves]


def is_finite(leaf):
    """Say whether an array of floats holds neither NaN nor infinity; for a JAX array the answer is one, too."""
    wide = widen_leaves((leaf,))[0]
    if is_jax(wide):
        return jnp.isfinite(wide).all()
    with np.errstate(all="ignore"):
        return np.isfinite(total(np, wide)) or np.isfinite(wide).all()  # a sum is faster
