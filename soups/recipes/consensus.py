"""Let task vectors compete for each element: by variance, votes, signs or balanced scores."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from soups import arguments, arrays, engine
from soups.engine import Recipe
from soups.names import check_name
from soups.recipes._select import GATHERED, kth_magnitudes
from soups.recipes.declare import Inputs, method
from soups.recipes.sparsify import masked


@method(base="required", title="SCE")
def sce(inputs: Inputs, *, select_topk: float = 1.0) -> Recipe:
    """Select the elements that vary most, weigh members by their energy there, erase the minority sign (SCE).

    In each leaf: of the n elements whose variance over the members is not zero the ⌊select_topk · n⌋ with the largest
    stay in the task vectors (those within 1e-6 of the least of them too); c_i = mean τ_i² / Σ_j mean τ_j², or 1/K where
    that sum is below 1e-6; m_i = [sign τ_i = γ], γ = 1 where Σ_i τ_i ≥ 0, else −1;
    θ = θ_base + Σ_i c_i m_i τ_i / max(Σ_i c_i m_i, 1e-6). Float leaves [...], in float32 or wider.

    Wan et al., "FuseChat: knowledge fusion of chat models", 2024, arXiv 2408.07990.
    """
    arguments.check_within("select_topk", select_topk, "(0, 1]")

    def measure(parts):
        xp, size = next(iter(parts())).xp, sum(part.leaves[0].size for part in parts())
        kept = None if select_topk >= 1 else engine.remembered(_varying_most(parts, size, select_topk))

        def energies(part):
            mask = None if kept is None else kept(part)
            squares = [xp.square(vector) for vector in part.vectors]
            return [arrays.total(xp, square if mask is None else masked(square, mask)) for square in squares]

        sums = xp.stack(engine.sum_over(parts, energies)) / size
        return kept, arrays.ratio(xp, sums, xp.sum(sums), xp.sum(sums) >= 1e-6, otherwise=1.0 / inputs.number)

    def merge(part, seen):
        kept, share = seen
        xp, vectors = part.xp, part.vectors
        positive = arrays.sum_in_order(vectors) >= 0
        sign = 2.0 * positive.astype(vectors[0].dtype) - 1.0
        # what points along the sign is positive after multiplying with it
        zeros = xp.zeros_like(sign)
        agreeing = [xp.maximum(sign * vector, zeros) for vector in vectors]
        divisor = arrays.mix([(vector > 0).astype(vector.dtype) for vector in agreeing], share)
        step = sign * arrays.mix(agreeing, share) / xp.maximum(divisor, arrays.scalar(1e-6, divisor))
        return part.base + (step if kept is None else masked(step, kept(part)))

    return Recipe(merge, measure)


@method(base="required", per_member=("threshold",), title="consensus")
def consensus(inputs: Inputs, *, threshold: ArrayLike = 0.4, votes: int = 2, scale: ArrayLike = 0.3) -> Recipe:
    """Keep the elements of the summed task vectors that several members need (Consensus Merging).

    θ = θ_base + α τ ⊙ [Σ_i m_i ≥ k], τ = Σ_i τ_i, with the masks m_i of `tall_masks`, k `votes` ≤ K and α `scale`.
    Votes of 0 keep all, 1 leaves out what no member needs, 2 also what one alone does. The paper searches α on held-out
    data.

    Wang et al., "Localizing task information for improved model merging and compression", 2024, arXiv 2405.07813.
    """
    if not 0 <= votes <= inputs.number:
        raise ValueError(f"votes must be between 0 and {inputs.number}, the number of members, not {votes}")

    def merge(part, _):
        vectors = part.vectors
        total = arrays.sum_in_order(vectors)
        count = arrays.sum_in_order([mask.astype(np.int32) for mask in needed(vectors, total, threshold)])
        kept = masked(total, count >= votes)
        return part.base + arrays.scalar(scale, kept) * kept

    return Recipe(merge)


@method(base="required", per_member=("scale",), title="PCB")
def pcb(inputs: Inputs, *, density: float = 0.1, scale: ArrayLike = 1.0, scope: str = "model") -> Recipe:
    """Balance the competition of elements within and between task vectors, drop the low scores (PCB-Merging).

    β_i = Softmax(K N(τ_i ⊙ τ_i)) ⊙ Σ_j Softmax(N(τ_i ⊙ τ_j)), where N maps the smallest element to 0 and the largest to
    1 and the softmax is over the elements; β̂_i keeps the max(1, int(density · n)) largest (those within 1e-6 of the
    least of them too); θ = θ_base + Σ_i β̂_i ⊙ λ_i τ_i / Σ_i β̂_i, the base's element where no β̂_i is left. These are
    the paper's formulas; the program published with it has tanh, clipped quantiles and a second normalisation instead.
    Each pair of members has a softmax with a range of its own, so the time grows with the square of their number.

    The paper searches density, in (0, 1], and λ, the scale, on held-out data. `scope`: elements compete over the
    "model" or each "leaf".

    Du et al., "Parameter competition balancing for model merging", 2024, arXiv 2410.02396.
    """
    arguments.check_within("density", density, "(0, 1]")
    number = inputs.number
    check_name(scope, ("model", "leaf"), "scope")

    def measure(parts):
        size = sum(part.leaves[0].size for part in parts())
        units = _units(parts, number)
        known = units, _ranges(parts, units)
        sums = engine.sum_over(parts, lambda part: _sums_of_exponentials(part, *known))
        means = {key: total / size for key, total in sums.items()}
        rank = size - max(1, int(density * size)) + 1
        least = [
            kth_magnitudes(lambda i=index: (_balance(part, i, *known, means) for part in parts()), size, [rank])[0]
            for index in range(number)
        ]
        return known, means, [_just_below(score) for score in least]

    def merge(part, seen):
        known, means, least = seen
        xp, total, divisor = part.xp, part.xp.zeros_like(part.base), part.xp.zeros_like(part.base)
        for index in range(number):
            score, vector = _balance(part, index, *known, means), part.vector(index)
            score = masked(score, score >= arrays.scalar(least[index], score))
            total = total + score * (arrays.scalar(scale[index], vector) * vector)
            divisor = divisor + score
        return part.base + total / xp.where(divisor > 0, divisor, xp.ones_like(divisor))

    return Recipe(merge, measure, scope)


def _just_below(score):
    # a compiler may round the same score otherwise where it is compared
    return score * arrays.scalar(1 - 1e-6, score)


def _variance(part):
    # of the differences to the first member: exactly zero where all are equal
    steps = [leaf - part.leaves[0] for leaf in part.leaves[1:]]
    count = arrays.scalar(len(part.leaves), part.leaves[0])
    if not steps:
        return part.xp.zeros_like(part.leaves[0])
    mean = arrays.sum_in_order(steps) / count
    return arrays.sum_in_order([part.xp.square(step - mean) for step in [*steps, 0.0 * mean]]) / count


def _varying_most(parts, size, fraction):
    """Return a function that says which elements of a part are among this fraction of largest variances."""
    variance = engine.remembered(_variance) if 2 * size <= GATHERED else _variance
    threshold = _just_below(_least_variance(parts, variance, size, fraction))
    return lambda part: variance(part) >= arrays.scalar(threshold, part.leaves[0])


def _least_variance(parts, variance, size, fraction):
    xp = next(iter(parts())).xp
    varying = engine.sum_over(parts, lambda part: xp.sum((variance(part) > 0).astype(np.uint32)))
    kept = _floor_of_product(varying if xp is not np else int(varying), fraction)
    if xp is np and kept == 0:
        return np.float32(np.inf)
    # with nothing kept the rank is beyond the last: the pattern found is that of a NaN, which nothing reaches
    return kth_magnitudes(lambda: map(variance, parts()), size, [size + 1 - kept])[0]


def _floor_of_product(count, fraction):
    """Return ⌊count · fraction⌋ the same for a number and for a traced uint32, which has no 64 bits."""
    factor = min(math.ceil(fraction * 2**32), 2**32 - 1)
    if isinstance(count, int):
        return count * factor >> 32
    word, (high, low) = np.uint32, divmod(factor, 2**16)
    top, bottom = count >> word(16), count & word(0xFFFF)
    one, other = top * word(low), bottom * word(high)
    carried = (one & word(0xFFFF)) + (other & word(0xFFFF)) + (bottom * word(low) >> word(16))
    return top * word(high) + (one >> word(16)) + (other >> word(16)) + (carried >> word(16))


def needed(vectors, total, thresholds):
    """Say for each member where the summed task vectors serve it: |τ_i| ≥ λ_i |τ − τ_i|."""
    return [
        abs(vector) >= arrays.scalar(threshold, vector) * abs(total - vector)
        for vector, threshold in zip(vectors, thresholds, strict=True)
    ]


def _pairs(number):
    return [(i, j) for i in range(number) for j in range(i + 1)]


def _units(parts, number):
    """Return for each member the power of two that takes its largest element to about 1: products stay finite."""
    largest = [0.0] * number
    for part in parts():
        xp = part.xp
        largest = [xp.maximum(xp.max(abs(part.vector(i)), initial=0), most) for i, most in enumerate(largest)]
    exponents = [xp.clip(xp.frexp(most)[1], -125, 125) for most in largest]
    return [xp.ldexp(xp.ones_like(most), -exponent) for most, exponent in zip(largest, exponents, strict=True)]


def _product(part, i, j, units):
    return (part.vector(i) * units[i]) * (part.vector(j) * units[j])


def _ranges(parts, units):
    lows, highs = {}, {}
    for part in parts():
        xp = part.xp
        for pair in _pairs(len(units)):
            product = _product(part, *pair, units)
            low, high = xp.min(product, initial=np.inf), xp.max(product, initial=-np.inf)
            lows[pair] = xp.minimum(lows.get(pair, low), low)
            highs[pair] = xp.maximum(highs.get(pair, high), high)
    return {pair: (lows[pair], highs[pair]) for pair in lows}


def _exponential(part, pair, units, ranges, factor=1):
    # less the largest exponent, which the mean takes out again
    xp, product = part.xp, _product(part, *pair, units)
    low, high = (arrays.scalar(bound, product) for bound in ranges[pair])
    width = xp.where(high > low, high - low, xp.ones_like(high))
    return xp.exp(arrays.scalar(factor, product) * ((product - high) / width))


def _sums_of_exponentials(part, units, ranges):
    number, xp = len(part.leaves), part.xp
    sums = {pair: xp.sum(_exponential(part, pair, units, ranges)) for pair in _pairs(number)}
    return sums | {(i,): xp.sum(_exponential(part, (i, i), units, ranges, number)) for i in range(number)}


def _balance(part, index, units, ranges, means):
    """Return β of one member, times the squared number of elements: that cancels, and no element underflows."""
    number = len(part.leaves)
    within = _exponential(part, (index, index), units, ranges, number)
    within = within / arrays.scalar(means[index,], within)
    between = []
    for other in range(number):
        pair = (max(index, other), min(index, other))
        between.append(_exponential(part, pair, units, ranges) / arrays.scalar(means[pair], within))
    return within * arrays.sum_in_order(between)
