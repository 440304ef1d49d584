"""Sparsify task vectors: by magnitude, at random, or both. Each gives a `Sparsifier` for `combine_task_vectors`.

A density lies in (0, 1], γ in [0, 1): else, and for another way to rescale, there is a ValueError. The papers are those
of `ties` (trim), `dare` (drop), `breadcrumbs` (outliers) and `della` (magprune).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from soups import arguments, arrays, engine
from soups.lazy import is_jax, jnp
from soups.recipes import _random
from soups.recipes._select import kth_magnitudes


@dataclasses.dataclass(frozen=True)
class Sparsifier:
    """State how one member's task vector becomes sparse."""

    #: from a part, the member's index and what was measured to the sparse task vector of that part
    apply: Callable[[engine.Part, int, Any], Any]
    #: from the parts of one scope and the member's index to anything; None where nothing need be known
    measure: Callable[[engine.Parts, int], Any] | None = None
    unit: str = "element"  #: what a part must hold whole: an "element" or a "row"
    #: from a part, the index and what was measured to |τ|_1 and |m ⊙ τ|_1 of the part, with m the mask of what is kept:
    #: `apply` then gets what was measured and the ratio of both over all parts
    norms: Callable[[engine.Part, int, Any], Any] | None = None


def measured(sparsifiers: Sequence[Sparsifier], parts: engine.Parts) -> list:
    """Return for each member what `apply` gets; the norms of all members are taken in one pass."""
    seen = [one.measure(parts, index) if one.measure else None for index, one in enumerate(sparsifiers)]
    norms = {index: one.norms for index, one in enumerate(sparsifiers) if one.norms}
    if norms:
        sums = engine.sum_over(parts, lambda part: {i: take(part, i, seen[i]) for i, take in norms.items()})
        for index in norms:
            seen[index] = seen[index], _ratio(*sums[index])
    return seen


#: leaves a task vector as it is
KEEP_ALL = Sparsifier(lambda part, index, _: part.vector(index))


def trim(density: float, *, surplus: int = 0, rescale: bool = False) -> Sparsifier:
    """Keep the largest magnitudes, max(1, int(density · n)) + `surplus` of n.

    Magnitudes that tie at the threshold all stay. TIES as published keeps one more than the fraction says (surplus 1).
    `rescale`: restore the L1 norm of the scope.

    Yadav et al., "TIES-Merging", 2023, arXiv 2306.01708.
    """
    arguments.check_within("density", density, "(0, 1]")
    arguments.setting(surplus, 0, "surplus")

    def find(parts, index):
        size = sum(part.leaves[index].size for part in parts())
        kept = max(1, int(density * size)) + surplus
        if kept >= size:
            return None
        return kth_magnitudes(lambda: (part.vector(index) for part in parts()), size, [size - kept + 1])[0]

    def mask(part, index, vector, threshold):
        return None if threshold is None else abs(vector) >= threshold

    return _sparsifier(mask, find, norm=rescale)


def drop(density: float, *, seed: int = 0, rescale: str | None = "probability") -> Sparsifier:
    """Keep each element with probability `density`.

    `rescale`: "probability" divides by the density, as published; "norm" restores the L1 norm of the scope; None.

    Yu et al., "Language models are super Mario", 2023, arXiv 2311.03099.
    """
    arguments.check_within("density", density, "(0, 1]")
    _check_random(seed, rescale)
    if density >= 1:
        return KEEP_ALL

    def mask(part, index, vector, _):
        return _random.below([density], seed, f"drop/{index}", part, vector.shape)[0]

    return _sparsifier(mask, factor=1.0 / density if rescale == "probability" else 1.0, norm=rescale == "norm")


def outliers(density: float, gamma: float = 0.01, *, rescale: bool = False, fewer: bool = False) -> Sparsifier:
    """Leave out the int(γ n) largest of n magnitudes and keep the int(density · n) largest of the others.

    Magnitudes that tie at the lower threshold all stay, those that tie with the smallest outlier all go. `rescale`:
    restore the L1 norm of the scope. `fewer`: leave out fewer where both fractions are more than one, as mergekit does.

    Davari and Belilovsky, "Model breadcrumbs", 2023, arXiv 2312.06795.
    """
    arguments.check_within("density", density, "(0, 1]")
    arguments.check_within("gamma", gamma, "[0, 1)")

    def find(parts, index):
        size = sum(part.leaves[index].size for part in parts())
        top = min(int(gamma * size), size - int(density * size) if fewer else size)
        bottom = max(0, size - int(density * size) - top)
        if bottom + top == size:  # nothing is left of a leaf this small
            return np.inf, None
        places = [bottom + 1] + ([size - top + 1] if top else [])
        low, *high = kth_magnitudes(lambda: (part.vector(index) for part in parts()), size, places)
        return low, high[0] if top else None

    def mask(part, index, vector, thresholds):
        magnitude, (low, high) = abs(vector), thresholds
        return (magnitude >= low) if high is None else (magnitude >= low) & (magnitude < high)

    return _sparsifier(mask, find, norm=rescale)


def magprune(density: float, epsilon: float, *, seed: int = 0, rescale: str | None = "probability") -> Sparsifier:
    """Keep elements at random, small ones of a row (last axis) less often than large ones.

    p = density − ε + 2 ε (rank − 1) / (n − 1), in (0, 1], for the ranks 1 (smallest) to n of a row; elements of equal
    magnitude rank in their order. A row of one element has p = density. `rescale`: "probability" divides each by its p,
    as published; "norm" restores the L1 norm of the scope; None.

    Deep et al., "DELLA-Merging", 2024, arXiv 2406.11617.
    """
    for value, name in ((density, "density"), (epsilon, "epsilon")):
        arguments.setting(value, 0.0, name)
    if not (0 < density - epsilon <= 1 and 0 < density + epsilon <= 1):
        raise ValueError(f"density ± epsilon must lie in (0, 1], but they are {density} ± {epsilon}")
    _check_random(seed, rescale)

    def mask(part, index, vector, _):
        name, alone = f"magprune/{index}", vector.shape[-1:] in ((), (1,)) or not vector.size
        bounds = [density] * 2 if alone else [density - abs(epsilon), density + abs(epsilon)]
        sure, possible = _random.below(bounds, seed, name, part, vector.shape)
        return sure if alone else _or_larger(part, vector, sure, possible, seed, f"{name}/other", epsilon >= 0)

    def apply(part, index, _):
        vector = part.vector(index)
        probability = _rank_probability(part.xp, vector, density, epsilon)
        (kept,) = _random.below([probability], seed, f"magprune/{index}", part, vector.shape)
        return masked(vector / probability.astype(vector.dtype), kept)

    if rescale == "probability":
        return Sparsifier(apply, unit="row")
    return _sparsifier(mask, norm=rescale == "norm", unit="row")


def _sparsifier(mask, find=None, *, factor=1.0, norm=False, unit="element"):
    """Return the sparsifier that keeps where `mask(part, index, vector, found)` holds, or all where that is None.

    `found` is what `find(parts, index)` finds; what is kept is multiplied by `factor`, or by `norm` has the L1 norm of
    the scope again.
    """

    def measure(parts, index):
        found = find(parts, index) if find else None
        if not norm:
            return found
        if find and found is None:
            return found, lambda part, vector: None
        return found, engine.remembered(lambda part, vector: mask(part, index, vector, found))

    def norms(part, index, seen):
        vector = part.vector(index)
        if (kept := seen[1](part, vector)) is None:
            return 1.0, 1.0
        magnitude = abs(vector)
        return arrays.total(part.xp, magnitude), arrays.total(part.xp, masked(magnitude, kept))

    def apply(part, index, seen):
        vector, ratio = part.vector(index), factor
        if norm:
            (_, remembered), ratio = seen
        kept = remembered(part, vector) if norm else mask(part, index, vector, seen)
        return vector if kept is None else scaled(masked(vector, kept), ratio)

    return Sparsifier(apply, measure if find or norm else None, unit, norms if norm else None)


def _check_random(seed, rescale):
    arguments.setting(seed, 0, "seed")
    if rescale not in ("probability", "norm", None):
        raise ValueError(f"rescale must be 'probability', 'norm' or None, not {rescale!r}")


def masked(vector: Any, mask: Any) -> Any:
    """Return the elements where the mask holds, and zeros elsewhere."""
    if is_jax(vector):
        return jnp.where(mask, vector, jnp.zeros_like(vector))
    return vector * mask  # many times faster than numpy.where


def _or_larger(part, vector, sure, possible, seed, name, larger):
    """Add to a mask what is possible and larger (or smaller) than another of its row, each with one drawn for it alone.

    That one is smaller with the probability (rank - 1) / (n - 1): nothing need be sorted.
    """
    xp, size, magnitude = part.xp, vector.shape[-1], abs(vector)
    places = np.flatnonzero(sure != possible) if xp is np else jnp.arange(vector.size, dtype=np.uint32)
    whole = places.dtype.type
    drawn = _random.further_bits(seed, name, part, places) * np.float32(size - 1)
    rows = places // whole(size) * whole(size)
    columns = places - rows + whole(1) + xp.minimum(drawn.astype(whole), whole(size - 2))
    around = columns >= whole(size)  # then it comes before
    if xp is np:
        columns -= size * around
        own, other = magnitude.reshape(-1)[places], magnitude.reshape(-1)[rows + columns]
        sure.reshape(-1)[places] = ((own > other) | ((own == other) & around)) == larger
        return sure
    columns, around = (columns % whole(size)).reshape(vector.shape), around.reshape(vector.shape)
    other = jnp.take_along_axis(magnitude, columns, -1)
    return sure | (possible & (((magnitude > other) | ((magnitude == other) & around)) == larger))


def _rank_probability(xp, vector, density, epsilon):
    size = vector.shape[-1] if vector.ndim else 1
    if size <= 1:
        return xp.full(vector.shape, density, np.float32)

    def of_rank(ranks):
        return xp.minimum(ranks * np.float32(2 * epsilon / (size - 1)) + np.float32(density - epsilon), np.float32(1))

    if xp is not np:
        # on one row at a time XLA's sort is affordable; the argsort of a permutation is its inverse
        order = jnp.argsort(jnp.abs(vector), axis=-1, stable=True)
        return of_rank(jnp.argsort(order, axis=-1, stable=True).astype(np.float32))
    probability = np.empty(vector.size, np.float32)
    probability[_order_on_host(vector)] = np.tile(of_rank(np.arange(size, dtype=np.float32)), vector.size // size)
    return probability.reshape(vector.shape)


def _order_on_host(vector):
    """Return the places of a vector's elements, row by row, those of the smallest magnitudes first."""
    places = np.arange(vector.size).reshape(vector.shape)
    if vector.dtype != np.float32:
        return np.take_along_axis(places, np.argsort(np.abs(vector), axis=-1, kind="stable"), axis=-1).reshape(-1)
    # the magnitude's bits with the place behind them: sorting these numbers is much faster than a stable argsort
    keys = np.abs(vector).view(np.uint32).astype(np.int64)
    keys <<= 32
    keys |= places
    keys.sort(axis=-1)
    keys &= 0xFFFFFFFF
    return keys.reshape(-1)


def _ratio(before, after):
    """Return |τ|_1 / |m ⊙ τ|_1; 1 where either is nearly zero."""
    return arrays.ratio(arrays.namespace([before]), before, after, (before >= 1e-7) & (after >= 1e-7), otherwise=1)


def scaled(vector: Any, factor: Any) -> Any:
    """Multiply by a number; by the number 1.0 without looking at the elements."""
    return vector if isinstance(factor, float) and factor == 1.0 else vector * arrays.scalar(factor, vector)
