"""Do arithmetic on task vectors, τ_i = θ_i − θ_base: sparsify each, let them agree on signs, combine, scale."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from soups import arrays, engine
from soups.engine import Recipe
from soups.names import check_name
from soups.recipes.declare import Inputs, method
from soups.recipes.sparsify import KEEP_ALL, Sparsifier, drop, magprune, measured, outliers, scaled, trim

HELD = 2**22  # elements of all members that may be kept in float32


@method(
    base="required",
    per_member=("sparsify", "weights"),
    only_in_python="takes functions that sparsify: use soups.combine_task_vectors in Python",
)
def combine_task_vectors(
    inputs: Inputs,
    *,
    sparsify: Sparsifier = KEEP_ALL,
    weights: ArrayLike = 1.0,
    elect: bool = False,
    normalize: bool = False,
    scale: ArrayLike = 1.0,
    tie: str = "majority",
    scope: str = "model",
) -> Recipe:
    """Merge task vectors by the parts that all named methods are made of.

    θ = θ_base + scale · c(w_1 s(τ_1), …, w_K s(τ_K)) with the sparsifier s; c is the sum, or with `elect` the sum over
    the members that agree with the elected sign, sign(Σ_i w_i s(τ_i)); `normalize` divides it by the sum of the weights
    (with `elect` of the members that agree). Float leaves [...] of any dtype, computed in float32 or wider.

    Args:
        sparsify: `trim`, `drop`, `magprune`, `outliers`, or a sequence with one for each member.
        scale: λ in the papers.
        tie: the sign where the sum is exactly zero: "positive", or "majority", that of most elements.
        scope: "model" or "leaf": over what a sparsifier ranks magnitudes and a majority is counted.

    Ilharco et al., "Editing models with task arithmetic", 2022, arXiv 2212.04089; the parts as in the methods below.
    """
    check_name(tie, ("majority", "positive"), "tie")
    check_name(scope, ("model", "leaf"), "scope")
    if odd := [found for found in sparsify if not isinstance(found, Sparsifier)]:
        raise ValueError(f"sparsify must be made by soups.trim, drop, magprune or outliers, not {odd[0]!r:.200}")

    def sparse(part, seen):
        return [one.apply(part, index, own) for index, (one, own) in enumerate(zip(sparsify, seen, strict=True))]

    def measure(parts):
        parts = _held(parts)
        seen = measured(sparsify, parts)
        if not elect or tie == "positive":
            return seen, None
        return seen, engine.sum_over(parts, lambda part: _surplus(part.xp, sparse(part, seen), weights))

    def merge(part, seen):
        seen, surplus = seen
        vectors = sparse(part, seen)
        if elect:
            merged = _agreeing(part.xp, vectors, weights, surplus, normalize)
        else:
            merged = arrays.mix(vectors, weights)
            if normalize:
                total = arrays.sum_in_order([arrays.scalar(w, merged) for w in weights])
                merged = merged / _or_one(part.xp, total, weights)
        return part.base + arrays.scalar(scale, merged) * merged

    if not (elect and tie == "majority") and not any(sparsifier.measure for sparsifier in sparsify):
        scope = "leaf"  # nothing is measured, so every leaf may be merged by itself
    unit = "row" if any(sparsifier.unit == "row" for sparsifier in sparsify) else "element"
    return Recipe(merge, measure, scope, unit)


@method(base="required", per_member=("weights",), takes_complex=True, title="task arithmetic")
def task_arithmetic(inputs: Inputs, *, scale: ArrayLike = 0.3, weights: ArrayLike = 1.0) -> Recipe:
    """Add scaled task vectors to the base; a negative scale forgets a task.

    θ = θ_base + λ Σ_i w_i τ_i. The paper searches λ on held-out data; 0.3 is its choice for eight tasks.

    Ilharco et al., "Editing models with task arithmetic", 2022, arXiv 2212.04089.
    """
    return combine_task_vectors.recipe(inputs, weights=weights, scale=scale)


@method(base="required", per_member=("weights", "density"), title="TIES")
def ties(
    inputs: Inputs,
    *,
    density: float = 0.2,
    scale: ArrayLike = 1.0,
    weights: ArrayLike = 1.0,
    normalize: bool = True,
    scope: str = "model",
) -> Recipe:
    """Trim task vectors, elect a sign for each element, average the members that agree (TIES).

    τ̂_i keeps the largest magnitudes of τ_i, a fraction `density` in (0, 1] over the whole model (`scope="leaf"`: over
    each leaf); γ = sign(Σ_i w_i τ̂_i), by the majority of all elements where that is zero; θ = θ_base + λ · the mean
    over {i: sign τ̂_i = γ} of τ̂_i, weighted. `normalize=False` takes their sum, as for its CLIP results (λ = 0.3).

        merged = soups.ties({"math": a, "code": b}, base=base, density={"math": 0.2, "code": 0.4})

    Yadav et al., "TIES-Merging: resolving interference when merging models", 2023, arXiv 2306.01708.
    """
    return combine_task_vectors.recipe(
        inputs,
        sparsify=[trim(share, surplus=1) for share in density],
        weights=weights,
        elect=True,
        normalize=normalize,
        scale=scale,
        scope=scope,
    )


@method(base="required", per_member=("weights", "density"), title="DARE")
def dare(
    inputs: Inputs,
    *,
    density: float = 0.1,
    scale: ArrayLike = 1.0,
    weights: ArrayLike = 1.0,
    elect: bool = False,
    seed: int = 0,
) -> Recipe:
    """Drop elements of the task vectors at random, rescale the others, and add them (DARE).

    τ̂_i = m ⊙ τ_i / density with m ~ Bernoulli(density), density in (0, 1]; θ = θ_base + λ Σ_i w_i τ̂_i, or with
    `elect` the mean of the members that agree, as in TIES. The mask depends on the seed, the leaf's name, the member's
    place and the element alone. The paper drops 90 % (density 0.1) of models with billions of weights, less of smaller
    ones.

    Yu et al., "Language models are super Mario: absorbing abilities from homologous models as a free lunch", 2023,
    arXiv 2311.03099.
    """
    return combine_task_vectors.recipe(
        inputs,
        sparsify=[drop(share, seed=seed) for share in density],
        weights=weights,
        elect=elect,
        normalize=elect,
        scale=scale,
    )


@method(base="required", per_member=("weights", "density", "epsilon"), title="DELLA")
def della(
    inputs: Inputs,
    *,
    density: float = 0.7,
    epsilon: float = 0.07,
    scale: ArrayLike = 1.1,
    weights: ArrayLike = 1.0,
    seed: int = 0,
) -> Recipe:
    """Drop small elements of each row more often than large ones, elect signs and average (DELLA).

    An element of rank r among the n magnitudes of its row is kept with p = density − ε + 2 ε (r − 1) / (n − 1) and
    divided by p, in (0, 1]; then signs are elected and members that agree averaged, as in TIES. The defaults are the
    paper's example: drop rate 0.3, window 0.14, λ = 1.1.

    Deep et al., "DELLA-Merging: reducing interference in model merging through magnitude-based sampling", 2024,
    arXiv 2406.11617.
    """
    return combine_task_vectors.recipe(
        inputs,
        sparsify=[magprune(share, width, seed=seed) for share, width in zip(density, epsilon, strict=True)],
        weights=weights,
        elect=True,
        normalize=True,
        scale=scale,
    )


@method(base="required", per_member=("weights", "density", "gamma"), title="Breadcrumbs")
def breadcrumbs(
    inputs: Inputs, *, density: float = 0.9, gamma: float = 0.01, scale: ArrayLike = 0.3, weights: ArrayLike = 1.0
) -> Recipe:
    """Leave out the largest and the smallest elements of the task vectors in each leaf, and add the others.

    Of n magnitudes the int(γ n) largest are outliers and go, the int(density · n) largest of the rest stay, with
    γ in [0, 1), and θ = θ_base + λ Σ_i w_i τ̂_i.

    Davari and Belilovsky, "Model breadcrumbs: scaling multi-task model merging with sparse masks", 2023,
    arXiv 2312.06795.
    """
    return combine_task_vectors.recipe(
        inputs,
        sparsify=[outliers(share, top) for share, top in zip(density, gamma, strict=True)],
        weights=weights,
        scale=scale,
        scope="leaf",
    )


def _held(parts):
    """Return small parts made once and kept: else each member's pass would make the parts of all members."""
    held, elements = [], 0
    for part in parts():
        elements += len(part.leaves) * part.leaves[0].size
        if elements > HELD:
            return parts
        held.append(part)
    return lambda: held


def _surplus(xp, vectors, weights):
    """Count how many more elements have a positive sum than a negative one."""
    mass = arrays.mix(vectors, weights)
    return xp.sum(xp.sign(mass).astype(np.int32))


def _agreeing(xp, vectors, weights, surplus, normalize):
    weighted = [scaled(vector, weight) for weight, vector in zip(weights, vectors, strict=True)]
    mass = arrays.sum_in_order(weighted)
    positive = mass >= 0
    if surplus is not None:  # where all cancel, the sign of most elements
        positive = (mass > 0) | ((mass == 0) & (surplus >= 0))
    sign = 2.0 * positive.astype(mass.dtype) - 1.0
    zeros = xp.zeros_like(mass)  # against a number, NumPy's maximum takes five times as long
    # what points along the sign is positive after multiplying with it
    agreeing = [xp.maximum(sign * vector, zeros) for vector in weighted]
    total = sign * arrays.sum_in_order(agreeing)
    if not normalize:
        return total
    counted = [(vector > 0).astype(mass.dtype) for vector in agreeing]
    return total / _or_one(xp, arrays.sum_in_order(map(scaled, counted, weights)), weights)


def _or_one(xp, divisor, weights):
    """Return sums of weights, and ones where these cancel."""
    least = arrays.sum_in_order([abs(arrays.scalar(weight, divisor)) for weight in weights])
    return xp.where(xp.abs(divisor) <= arrays.scalar(1e-8, divisor) * least, xp.ones_like(divisor), divisor)
