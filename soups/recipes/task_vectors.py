"""Do arithmetic on task vectors, τ_i = θ_i − θ_base: sparsify each, let them agree on signs, combine, scale."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from soups import arguments, engine, tree
from soups.recipes.sparsify import KEEP_ALL, Sparsifier, drop, magprune, outliers, scaled, trim

Weights = Sequence[float] | float


def combine_task_vectors(
    members: arguments.Members,
    *,
    base: tree.Tree,
    sparsify: Sparsifier | Sequence[Sparsifier] = KEEP_ALL,
    weights: Weights = 1.0,
    elect: bool = False,
    normalize: bool = False,
    scale=1.0,
    tie: str = "majority",
    scope: str = "model",
) -> tree.Tree:
    """Merge task vectors by the parts that all named methods are made of.

    θ = θ_base + scale · c(w_1 s(τ_1), …, w_K s(τ_K)) with the sparsifier s; c is the sum, or with `elect` the sum over
    the members that agree with the elected sign, sign(Σ_i w_i s(τ_i)); `normalize` divides it by the sum of the weights
    (with `elect` of the members that agree). Float leaves [...] of any dtype, computed in float32 or wider.

    Args:
        members: a sequence of trees, a mapping from names to trees, or a pool.
        base: the weights that all members were fine-tuned from.
        sparsify: `trim`, `drop`, `magprune`, `outliers`, or a sequence with one for each member.
        weights: one for all or one for each member.
        elect: whether members vote for signs.
        normalize: whether to average rather than to add.
        scale: λ in the papers.
        tie: the sign where the sum is exactly zero: "positive", or "majority", that of most elements.
        scope: "model" or "leaf": over what a sparsifier ranks magnitudes and a majority is counted.

    Raises:
        ValueError: no members, other structures, NaN or infinity, not one weight or sparsifier for each member, an
            unknown tie or scope.

    Ilharco et al., "Editing models with task arithmetic", 2022, arXiv 2212.04089; the parts as in the methods below.
    """
    members = arguments.as_mapping(members)
    recipe = task_vector_recipe(len(members), sparsify, weights, elect, normalize, scale, tie, scope)
    return engine.apply(recipe, members, base)


def task_arithmetic(members: arguments.Members, *, base: tree.Tree, scale=0.3, weights: Weights = 1.0) -> tree.Tree:
    """Add scaled task vectors to the base; a negative scale forgets a task.

    θ = θ_base + λ Σ_i w_i τ_i. The paper searches λ on held-out data; 0.3 is its choice for eight tasks.

    Raises:
        ValueError: as `combine_task_vectors`.

    Ilharco et al., "Editing models with task arithmetic", 2022, arXiv 2212.04089.
    """
    return combine_task_vectors(members, base=base, weights=weights, scale=scale)


def ties(
    members: arguments.Members,
    *,
    base: tree.Tree,
    density: float = 0.2,
    scale=1.0,
    weights: Weights = 1.0,
    normalize: bool = True,
    scope: str = "model",
) -> tree.Tree:
    """Trim task vectors, elect a sign for each element and average the members that agree with it (TIES).

    τ̂_i keeps the largest magnitudes of τ_i, a fraction `density` over the whole model (`scope="leaf"`: over each leaf);
    γ = sign(Σ_i w_i τ̂_i), by the majority of all elements where that is zero; θ = θ_base + λ · the mean over
    {i: sign τ̂_i = γ} of τ̂_i, weighted. `normalize=False` takes their sum, as the paper's CLIP results do with λ = 0.3.

    Raises:
        ValueError: as `combine_task_vectors`; a density outside (0, 1].

    Yadav et al., "TIES-Merging: resolving interference when merging models", 2023, arXiv 2306.01708.
    """
    return combine_task_vectors(
        members,
        base=base,
        sparsify=trim(density, surplus=1),
        weights=weights,
        elect=True,
        normalize=normalize,
        scale=scale,
        scope=scope,
    )


def dare(
    members: arguments.Members,
    *,
    base: tree.Tree,
    density: float = 0.1,
    scale=1.0,
    weights: Weights = 1.0,
    elect: bool = False,
    seed: int = 0,
) -> tree.Tree:
    """Drop elements of the task vectors at random, rescale the others, and add them (DARE).

    τ̂_i = m ⊙ τ_i / density with m ~ Bernoulli(density); θ = θ_base + λ Σ_i w_i τ̂_i, or with `elect` the mean of the
    members that agree, as in TIES. The mask depends on the seed, the leaf's name, the member's place and the element
    alone. The paper drops 90 % (density 0.1) of models with billions of weights, less of smaller ones.

    Raises:
        ValueError: as `combine_task_vectors`; a density outside (0, 1].

    Yu et al., "Language models are super Mario", 2023, arXiv 2311.03099.
    """
    return combine_task_vectors(
        members,
        base=base,
        sparsify=drop(density, seed=seed),
        weights=weights,
        elect=elect,
        normalize=elect,
        scale=scale,
    )


def della(
    members: arguments.Members,
    *,
    base: tree.Tree,
    density: float = 0.7,
    epsilon: float = 0.07,
    scale=1.1,
    weights: Weights = 1.0,
    seed: int = 0,
) -> tree.Tree:
    """Drop small elements of each row more often than large ones, elect signs and average (DELLA).

    An element of rank r among the n magnitudes of its row is kept with p = density − ε + 2 ε (r − 1) / (n − 1) and
    divided by p; then signs are elected and members that agree averaged, as in TIES. The defaults are the paper's
    example: drop rate 0.3, window 0.14, λ = 1.1.

    Raises:
        ValueError: as `combine_task_vectors`; density ± ε outside (0, 1].

    Deep et al., "DELLA-Merging", 2024, arXiv 2406.11617.
    """
    return combine_task_vectors(
        members,
        base=base,
        sparsify=magprune(density, epsilon, seed=seed),
        weights=weights,
        elect=True,
        normalize=True,
        scale=scale,
    )


def breadcrumbs(
    members: arguments.Members,
    *,
    base: tree.Tree,
    density: float = 0.9,
    gamma: float = 0.01,
    scale=0.3,
    weights: Weights = 1.0,
) -> tree.Tree:
    """Leave out the largest and the smallest elements of the task vectors in each leaf, and add the others.

    Of n magnitudes the int(γ n) largest are outliers and go, the int(density · n) largest of the rest stay, and
    θ = θ_base + λ Σ_i w_i τ̂_i.

    Raises:
        ValueError: as `combine_task_vectors`; a density outside (0, 1] or γ outside [0, 1).

    Davari and Belilovsky, "Model breadcrumbs", 2023, arXiv 2312.06795.
    """
    return combine_task_vectors(
        members, base=base, sparsify=outliers(density, gamma), weights=weights, scale=scale, scope="leaf"
    )


def task_vector_recipe(
    number: int,
    sparsify: Sparsifier | Sequence[Sparsifier] = KEEP_ALL,
    weights: Weights = 1.0,
    elect: bool = False,
    normalize: bool = False,
    scale: Any = 1.0,
    tie: str = "majority",
    scope: str = "model",
) -> engine.Recipe:
    """Give the recipe of `combine_task_vectors` for this number of members."""
    if tie not in ("majority", "positive"):
        raise ValueError(f"tie must be 'majority' or 'positive', not {tie!r}")
    if scope not in ("model", "leaf"):
        raise ValueError(f"scope must be 'model' or 'leaf', not {scope!r}")
    weights = engine.per_member(weights, number, "weights")
    sparsifiers = [sparsify] * number if isinstance(sparsify, Sparsifier) else list(sparsify)
    if len(sparsifiers) != number:
        raise ValueError(f"{number} members need {number} sparsifiers, but {len(sparsifiers)} were given")

    def sparse(part, measured):
        return [
            sparsifier.apply(part, index, seen)
            for index, (sparsifier, seen) in enumerate(zip(sparsifiers, measured, strict=True))
        ]

    def measure(parts):
        measured = [s.measure(parts, index) if s.measure else None for index, s in enumerate(sparsifiers)]
        if not elect or tie == "positive":
            return measured, None
        return measured, engine.sum_over(parts, lambda part: _surplus(part.xp, sparse(part, measured), weights))

    def merge(part, seen):
        measured, surplus = seen
        vectors = sparse(part, measured)
        if elect:
            merged = _agreeing(part.xp, vectors, weights, surplus, normalize)
        else:
            merged = tree.mix(vectors, weights)
            if normalize:
                merged = merged / _or_one(part.xp, tree.sum_in_order([tree.scalar(w, merged) for w in weights]))
        return part.base + tree.scalar(scale, merged) * merged

    if not (elect and tie == "majority") and not any(sparsifier.measure for sparsifier in sparsifiers):
        scope = "leaf"  # nothing is measured, so every leaf may be merged by itself
    unit = "row" if any(sparsifier.unit == "row" for sparsifier in sparsifiers) else "element"
    return engine.Recipe(merge, measure, scope, unit)


def _surplus(xp, vectors, weights):
    """Count how many more elements have a positive sum than a negative one."""
    mass = tree.mix(vectors, weights)
    return xp.sum(xp.sign(mass).astype(np.int32))


def _agreeing(xp, vectors, weights, surplus, normalize):
    weighted = [scaled(vector, weight) for weight, vector in zip(weights, vectors, strict=True)]
    mass = tree.sum_in_order(weighted)
    positive = mass >= 0
    if surplus is not None:  # where all cancel, the sign of most elements
        positive = (mass > 0) | ((mass == 0) & (surplus >= 0))
    sign = 2.0 * positive.astype(mass.dtype) - 1.0
    zeros = xp.zeros_like(mass)  # against a number, NumPy's maximum takes five times as long
    # what points along the sign is positive after multiplying with it
    agreeing = [xp.maximum(sign * vector, zeros) for vector in weighted]
    total = sign * tree.sum_in_order(agreeing)
    if not normalize:
        return total
    counted = [(vector > 0).astype(mass.dtype) for vector in agreeing]
    return total / _or_one(xp, tree.sum_in_order(map(scaled, counted, weights)))


def _or_one(xp, divisor):
    return xp.where(xp.abs(divisor) < 1e-8, xp.ones_like(divisor), divisor)
