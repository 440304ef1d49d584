"""Find the k-th smallest magnitudes among many arrays, exactly, without sorting and without gathering."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from soups import tree
from soups.lazy import is_jax, jax, jnp

GATHERED = 2**26  # elements whose patterns may lie in memory together: 256 MB


def kth_magnitudes(arrays: Callable[[], Iterable], size: int, places: Sequence[int]) -> list:
    """Return for each k in `places` the k-th smallest |x| (1: the smallest) over all `size` elements; zero of none.

    Each call of `arrays` goes through them anew. Magnitudes order as their bits do, read as integers. NumPy arrays:
    a partition of the patterns, or where there are very many histograms of their halves. JAX arrays, also traced and
    sharded: bisection over the pattern, a count of all elements for each bit. XLA's sort would take seconds on a CPU.
    """
    first = next(iter(arrays()))
    if not size:
        return [tree.namespace([first]).zeros((), first.dtype)] * len(places)
    if is_jax(first):
        return [_bisect(list(arrays()), k) for k in places]
    if size > GATHERED:
        return [_by_histograms(arrays, k) for k in places]
    gathered, end = np.empty(size, first.dtype), 0
    for array in arrays():
        start, end = end, end + array.size
        np.abs(array.reshape(-1), out=gathered[start:end])
    patterns, found, start = gathered.view(_integer(first.dtype)), {}, 0
    for k in sorted(set(places)):  # one after the other: NumPy is ten times slower if asked for two at once
        patterns[start:].partition(k - 1 - start)
        found[k], start = gathered[k - 1], k
    return [found[k] for k in places]


def _integer(dtype):
    return np.dtype(f"int{8 * dtype.itemsize}")


def _by_histograms(arrays, k):
    dtype = next(iter(arrays())).dtype
    prefix, bits = 0, 8 * dtype.itemsize
    for shift in range(bits - 16, -1, -16):
        counts = np.zeros(2**16, np.int64)
        for array in arrays():
            patterns = np.abs(array.reshape(-1)).astype(dtype, copy=False).view(_integer(dtype))
            if shift < bits - 16:
                patterns = patterns[patterns >> (shift + 16) == prefix]
            counts += np.bincount((patterns >> shift) & 0xFFFF, minlength=2**16)
        below = np.cumsum(counts)
        found = int(np.searchsorted(below, k))
        k -= int(below[found - 1]) if found else 0
        prefix = (prefix << 16) | found
    return np.array(prefix, _integer(dtype)).view(dtype)[()]


def _bisect(arrays, k):
    if sum(array.size for array in arrays) >= 2**32:
        raise ValueError("arrays on devices hold more than 4,294,967,295 elements in all: take thresholds per leaf")
    dtype = jnp.result_type(*arrays)
    integer = _integer(np.dtype(dtype))
    patterns = [jax.lax.bitcast_convert_type(jnp.abs(array.astype(dtype)), integer) for array in arrays]

    def body(number, low):
        # the largest pattern that fewer than k elements lie below
        tried = low | (jnp.ones((), integer) << (8 * integer.itemsize - 2 - number).astype(integer))
        below = sum(jnp.sum(pattern < tried, dtype=jnp.uint32) for pattern in patterns)
        return jnp.where(below < jnp.uint32(k), tried, low)

    low = jax.lax.fori_loop(0, 8 * integer.itemsize - 1, body, jnp.zeros((), integer))
    return jax.lax.bitcast_convert_type(low, dtype)
