"""Look at each difference to the base: is it small, important, the largest, or one member's alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from soups import arguments, arrays, engine
from soups.engine import Recipe
from soups.names import check_name
from soups.recipes._select import kth_magnitudes
from soups.recipes.declare import Inputs, method


@method(base="required", members=(1, 1), title="NearSwap")
def nearswap(inputs: Inputs, *, t: ArrayLike = 1e-4) -> Recipe:
    """Go from the base to one member by at most `t` in each element: all the way where they are near.

    θ = θ_base + w τ, w = min(t / max(|τ|, 1e-6), 1). Float leaves [...], in float32 or wider. `t` ≥ 0 is in the units
    of the weights. The method is alchemonaut's (QuartetAnemoi-70B-t0.0001, 2024), who took 1e-4; there is no paper.
    """
    arguments.check_within("t", t, "[0, inf)")

    def merge(part, _):
        xp, vector = part.xp, part.vector(0)
        far = xp.maximum(xp.abs(vector), arrays.scalar(1e-6, vector))
        return part.base + xp.minimum(arrays.scalar(t, vector) / far, arrays.scalar(1, vector)) * vector

    return Recipe(merge)


@method(base="required", members=(1, 1), title="Arcee Fusion")
def arcee_fusion(inputs: Inputs) -> Recipe:
    """Take from one member the differences that are outliers of importance in their leaf, the rest from the base.

    Importance: |τ| · KL(p ‖ q) of the rows (last axis), p = softmax(θ) + 1e-8, q = softmax(θ_base) + 1e-8. τ stays
    where its importance ≥ q_½ + 1.5 (q_¾ − q_¼), q_f the element of rank int(f (n − 1)), from 0, of the n of the leaf:
    exactly, where the published program takes them of a sample of 1e6. Float leaves [...], in float32 or wider. The
    method is Arcee's (mergekit 0.1, 2025); there is no paper.
    """

    def measure(parts):
        size = sum(part.leaves[0].size for part in parts())
        places = [int(fraction * (size - 1)) + 1 for fraction in (0.25, 0.5, 0.75)]
        low, middle, high = kth_magnitudes(lambda: map(_importance, parts()), size, places)
        return middle + 1.5 * (high - low)

    def merge(part, threshold):
        vector = part.vector(0)
        return part.base + part.xp.where(_importance(part) >= threshold, vector, part.xp.zeros_like(vector))

    return Recipe(merge, measure, unit="row")


@method(base="required", title="MagMax")
def magmax(inputs: Inputs, *, scale: ArrayLike = 0.5) -> Recipe:
    """Take for each element the task vector of the largest magnitude (MagMax).

    θ = θ_base + λ τ_j, j = argmax_i |τ_i| for each element, the last of equal magnitudes; in float32 or wider. λ = 0.5
    is the published setting.

    Marczak et al., "MagMax: leveraging model merging for seamless continual learning", 2024, arXiv 2407.06322.
    """

    def merge(part, _):
        xp, largest = part.xp, part.vector(0)
        for index in range(1, inputs.number):
            vector = part.vector(index)
            largest = xp.where(xp.abs(vector) >= xp.abs(largest), vector, largest)
        return part.base + arrays.scalar(scale, largest) * largest

    return Recipe(merge)


@method(base="required", title="RAM")
def ram(inputs: Inputs, *, epsilon: float = 1e-5) -> Recipe:
    """Average each element over the members that changed it (RAM).

    θ = θ_base + the mean of τ_i over {i: |τ_i| > ε ≥ 0}; what one member alone changed stays whole. Float leaves [...],
    in float32 or wider.

    Yuan et al., "Behavior knowledge merge in reinforced agentic models", 2026, arXiv 2601.13572.
    """
    arguments.check_within("epsilon", epsilon, "[0, inf)")
    return Recipe(lambda part, _: _mean_of_active(part, epsilon, [1.0] * inputs.number))


@method(base="required", title="RAM+")
def ram_plus(
    inputs: Inputs, *, epsilon: float = 1e-5, rescale: float = 0.1, limit: float = 0.2, scope: str = "leaf"
) -> Recipe:
    """Average as `ram`, and enlarge what one member alone changed the more it shares with others (RAM+).

    τ_i of the elements that only member i changed is multiplied by 1 + r · min(shared_i / unique_i, α), of the numbers
    of elements that it changed with others and alone; r is `rescale`, α is `limit`, ≥ 0. `scope`: counted over each
    "leaf" or over the "model".

    Yuan et al., "Behavior knowledge merge in reinforced agentic models", 2026, arXiv 2601.13572.
    """
    arguments.check_within("epsilon", epsilon, "[0, inf)")
    arguments.check_within("limit", limit, "[0, inf)")
    check_name(scope, ("model", "leaf"), "scope")

    def counts(part):
        active, count = _active(part, epsilon)
        return [[part.xp.sum((on & other).astype(np.uint32)) for other in (count > 1, count == 1)] for on in active]

    def measure(parts):
        xp = next(iter(parts())).xp
        factors = []
        for shared, unique in engine.sum_over(parts, counts):
            shared, unique = shared.astype(np.float32), unique.astype(np.float32)
            factors.append(1.0 + rescale * xp.minimum(shared / xp.maximum(unique, 1.0), limit))
        return factors

    return Recipe(lambda part, factors: _mean_of_active(part, epsilon, factors), measure, scope)


def _importance(part):
    xp, shape = part.xp, part.base.shape
    wide = np.float64 if xp is np else part.base.dtype
    member, base = (leaf.reshape(shape or (1,)).astype(wide) for leaf in (part.leaves[0], part.base))
    p, q = _softmax(xp, member), _softmax(xp, base)
    # Σ p log(p/q) with p and q of equal sum; every term is positive, so that nothing cancels in float32
    ratio = (q - p) / p
    logarithm = xp.where(xp.abs(ratio) < 0.5, xp.log1p(ratio), xp.log(q / p))
    divergence = xp.sum(p * xp.maximum(ratio - logarithm, 0), axis=-1, keepdims=True)
    return (xp.abs(member - base) * divergence).reshape(shape)


def _softmax(xp, rows):
    exponentials = xp.exp(rows - xp.max(rows, axis=-1, keepdims=True, initial=-np.inf))
    return exponentials / xp.sum(exponentials, axis=-1, keepdims=True) + 1e-8


def _active(part, epsilon):
    active = []
    for index in range(len(part.leaves)):
        vector = part.vector(index)
        active.append(part.xp.abs(vector) > arrays.scalar(epsilon, vector))
    return active, arrays.sum_in_order([on.astype(np.int32) for on in active])


def _mean_of_active(part, epsilon, factors):
    xp, (active, count) = part.xp, _active(part, epsilon)
    total = xp.zeros_like(part.base)
    for index, on in enumerate(active):
        vector = part.vector(index)
        alone = xp.where(count == 1, arrays.scalar(factors[index], vector), xp.ones_like(vector))
        total = total + xp.where(on, alone * vector, xp.zeros_like(vector))
    return part.base + total / xp.maximum(count, 1).astype(total.dtype)
