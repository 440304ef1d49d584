"""Let task vectors compete for each element: by variance, votes, signs or balanced scores."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from soups import arguments, engine, tree
from soups.names import check_name
from soups.recipes._select import GATHERED, kth_magnitude
from soups.recipes.sparsify import check_density, masked

SCOPES = ("model", "leaf")


def sce(members: arguments.Members, *, base: tree.Tree, select_topk: float = 1.0) -> tree.Tree:
    """Select the elements that vary most, weigh members by their energy there, erase the minority sign (SCE).

    In each leaf: of the n elements whose variance over the members is not zero the ⌊select_topk · n⌋ with the largest
    stay in the task vectors (those within 1e-6 of the least of them too); c_i = mean τ_i² / Σ_j mean τ_j², or 1/K where
    that sum is below 1e-6; m_i = [sign τ_i = γ], γ = 1 where Σ_i τ_i ≥ 0, else −1;
    θ = θ_base + Σ_i c_i m_i τ_i / max(Σ_i c_i m_i, 1e-6). Float leaves [...], in float32 or wider.

    Raises:
        ValueError: no members, other structures, NaN or infinity, select_topk outside (0, 1].

    Wan et al., "FuseChat: knowledge fusion of chat models", 2024, arXiv 2408.07990.
    """
    members = arguments.as_mapping(members)
    return engine.apply(sce_recipe(len(members), select_topk), members, base)


def consensus(members: arguments.Members, *, base: tree.Tree, threshold=0.4, votes: int = 2, scale=0.3) -> tree.Tree:
    """Keep the elements of the summed task vectors that several members need (Consensus Merging).

    θ = θ_base + α τ ⊙ [Σ_i m_i ≥ k], τ = Σ_i τ_i, with the masks m_i of `tall_masks`, k `votes` and α `scale`. Votes of
    0 keep all, 1 leaves out what no member needs, 2 also what one alone does. The paper searches α on held-out data.

    Raises:
        ValueError: as `tall_masks`; votes below 0 or above the number of members.

    Wang et al., "Localizing task information for improved model merging and compression", 2024, arXiv 2405.07813.
    """
    members = arguments.as_mapping(members)
    return engine.apply(consensus_recipe(len(members), threshold, votes, scale), members, base)


def tall_masks(members: arguments.Members, *, base: tree.Tree, threshold=0.4) -> dict[str, tree.Tree]:
    """Find for each member where the summed task vectors serve it (TALL masks).

    m_i = [|τ_i| ≥ λ_i |τ − τ_i|], τ = Σ_j τ_j: boolean trees by the members' names; False in integer leaves. θ_base +
    m_i ⊙ τ is then close to member i. `threshold`: λ, one or one for each member; the paper searches 0.2, 0.3, … 0.6
    for each task on held-out data.

    Raises:
        ValueError: no members, other structures, NaN or infinity, not one threshold for each member.

    Wang et al., "Localizing task information for improved model merging and compression", 2024, arXiv 2405.07813.
    """
    members, trees = _checked(members, base)
    thresholds = engine.per_member(threshold, len(trees), "thresholds")

    def masks(start, *leaves):
        vectors = _task_vectors(start, leaves)
        return _needed(vectors, tree.sum_in_order(vectors), thresholds)

    return _by_member(members, base, _map_floats(masks, _no, base, trees))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Elected:
    """Hold what `emr` makes of the members; a pytree.

    Attributes:
        unified: the elected task vector τ_uni, a tree in float32 or wider; zeros in integer leaves.
        masks: a boolean tree for each member, by name.
        rescalers: a number for each member, by name.
    """

    unified: tree.Tree
    masks: dict[str, tree.Tree]
    rescalers: dict[str, Any]


def emr(members: arguments.Members, *, base: tree.Tree) -> Elected:
    """Elect one task vector, with a mask and a rescaler for each member (EMR-Merging); see `emr_restore`.

    τ_uni = γ ⊙ max over {i: sign τ_i = γ} of |τ_i|, γ = sign(Σ_i τ_i); M_i = [τ_i ⊙ τ_uni > 0]; λ_i = Σ |τ_i| /
    Σ |M_i ⊙ τ_uni| over all elements of the model, as the paper has it; 0 for a member that equals the base.

    Raises:
        ValueError: no members, other structures, NaN or infinity.

    Huang et al., "EMR-Merging: tuning-free high-performance model merging", 2024, arXiv 2405.17461.
    """
    members, trees = _checked(members, base)
    unified = _map_floats(lambda start, *leaves: _elect(_task_vectors(start, leaves)), _zeros, base, trees)
    masks, rescalers = {}, {}
    for name, member in zip(members, trees, strict=True):
        vector = _map_floats(lambda start, leaf: _task_vectors(start, [leaf])[0], _zeros, base, [member])
        masks[name] = jax.tree.map(lambda v, u: v * u > 0, vector, unified)
        before, after = _l1_norm(vector), _l1_norm(_masked(unified, masks[name]))
        xp = tree.namespace([after])
        rescalers[name] = xp.where(after > 0, before / xp.where(after > 0, after, 1), xp.zeros_like(after))
    return Elected(unified, masks, rescalers)


def emr_restore(merged: Elected, member: str | int, *, base: tree.Tree) -> tree.Tree:
    """Make the weights for one member's task: θ_base + λ_i M_i ⊙ τ_uni, in the dtypes of the base (EMR-Merging).

    `member`: its name, or its number if the members were a sequence. Integer leaves are those of the base.

    Raises:
        ValueError: no such member, a base of another structure.

    Huang et al., "EMR-Merging: tuning-free high-performance model merging", 2024, arXiv 2405.17461.
    """
    name = check_name(str(member), merged.masks, "member")
    return tree.add_scaled(base, _masked(merged.unified, merged.masks[name]), merged.rescalers[name])


def pcb(
    members: arguments.Members, *, base: tree.Tree, density: float = 0.1, scale=1.0, scope: str = "model"
) -> tree.Tree:
    """Balance the competition of elements within and between task vectors, drop the low scores (PCB-Merging).

    β_i = Softmax(K N(τ_i ⊙ τ_i)) ⊙ Σ_j Softmax(N(τ_i ⊙ τ_j)), where N maps the smallest element to 0 and the largest to
    1 and the softmax is over the elements; β̂_i keeps the max(1, int(density · n)) largest (those within 1e-6 of the
    least of them too); θ = θ_base + Σ_i β̂_i ⊙ λ_i τ_i / Σ_i β̂_i, the base's element where no β̂_i is left. These are
    the paper's formulas; the program published with it has tanh, clipped quantiles and a second normalisation instead.

    Args:
        members: a sequence of trees, a mapping from names to trees, or a pool.
        base: the weights that all members were fine-tuned from.
        density: r in the paper, searched on held-out data with λ.
        scale: λ, one or one for each member.
        scope: over what elements compete: the "model" or each "leaf".

    Raises:
        ValueError: no members, other structures, NaN or infinity, a density outside (0, 1], not one scale for each
            member, another scope.

    Du et al., "Parameter competition balancing for model merging", 2024, arXiv 2410.02396.
    """
    members = arguments.as_mapping(members)
    return engine.apply(pcb_recipe(len(members), density, scale, scope), members, base)


def sce_recipe(number: int, select_topk: float) -> engine.Recipe:
    """Give the recipe of `sce`."""
    if not 0 < select_topk <= 1:
        raise ValueError(f"select_topk must be in (0, 1], not {select_topk}")

    def measure(parts):
        xp, size = next(iter(parts())).xp, sum(part.leaves[0].size for part in parts())
        kept = None if select_topk >= 1 else engine.remembered(_varying_most(parts, size, select_topk))

        def energies(part):
            mask = None if kept is None else kept(part)
            squares = [xp.square(vector) for vector in _vectors(part)]
            return [engine.total(xp, square if mask is None else masked(square, mask)) for square in squares]

        sums = xp.stack(engine.sum_over(parts, energies)) / size
        known = xp.sum(sums) >= 1e-6
        return kept, xp.where(known, sums / xp.where(known, xp.sum(sums), 1), 1.0 / number)

    def merge(part, seen):
        kept, share = seen
        xp, vectors = part.xp, _vectors(part)
        positive = tree.sum_in_order(vectors) >= 0
        sign = 2.0 * positive.astype(vectors[0].dtype) - 1.0
        # what points along the sign is positive after multiplying with it
        zeros = xp.zeros_like(sign)
        agreeing = [xp.maximum(sign * vector, zeros) for vector in vectors]
        divisor = tree.mix([(vector > 0).astype(vector.dtype) for vector in agreeing], share)
        step = sign * tree.mix(agreeing, share) / xp.maximum(divisor, tree.scalar(1e-6, divisor))
        return part.base + (step if kept is None else masked(step, kept(part)))

    return engine.Recipe(merge, measure)


def consensus_recipe(number: int, threshold: Any = 0.4, votes: int = 2, scale: Any = 0.3) -> engine.Recipe:
    """Give the recipe of `consensus`."""
    thresholds = engine.per_member(threshold, number, "thresholds")
    if not 0 <= votes <= number:
        raise ValueError(f"votes must be between 0 and {number}, the number of members, not {votes}")

    def merge(part, _):
        vectors = _vectors(part)
        total = tree.sum_in_order(vectors)
        count = tree.sum_in_order([mask.astype(np.int32) for mask in _needed(vectors, total, thresholds)])
        kept = masked(total, count >= votes)
        return part.base + tree.scalar(scale, kept) * kept

    return engine.Recipe(merge)


def pcb_recipe(number: int, density: float = 0.1, scale: Any = 1.0, scope: str = "model") -> engine.Recipe:
    """Give the recipe of `pcb`."""
    check_density(density)
    check_name(scope, SCOPES, "scope")
    scales = engine.per_member(scale, number, "scales")

    def measure(parts):
        size = sum(part.leaves[0].size for part in parts())
        ranges = _ranges(parts, number)
        sums = engine.sum_over(parts, lambda part: _sums_of_exponentials(part, ranges))
        means = {key: total / size for key, total in sums.items()}
        rank = size - max(1, int(density * size)) + 1
        least = [
            kth_magnitude(lambda i=index: (_balance(part, i, ranges, means) for part in parts()), size, rank)
            for index in range(number)
        ]
        return ranges, means, [_just_below(score) for score in least]

    def merge(part, seen):
        ranges, means, least = seen
        xp, total, divisor = part.xp, part.xp.zeros_like(part.base), part.xp.zeros_like(part.base)
        for index in range(number):
            score, vector = _balance(part, index, ranges, means), part.vector(index)
            score = masked(score, score >= tree.scalar(least[index], score))
            total = total + score * (tree.scalar(scales[index], vector) * vector)
            divisor = divisor + score
        return part.base + total / xp.where(divisor > 0, divisor, xp.ones_like(divisor))

    return engine.Recipe(merge, measure, scope)


def _vectors(part):
    return [part.vector(index) for index in range(len(part.leaves))]


def _just_below(score):
    # a compiler may round the same score otherwise where it is compared
    return score * tree.scalar(1 - 1e-6, score)


# --- SCE ---


def _variance(part):
    # of the differences to the first member: exactly zero where all are equal
    steps = [leaf - part.leaves[0] for leaf in part.leaves[1:]]
    count = tree.scalar(len(part.leaves), part.leaves[0])
    if not steps:
        return part.xp.zeros_like(part.leaves[0])
    mean = tree.sum_in_order(steps) / count
    return tree.sum_in_order([part.xp.square(step - mean) for step in [*steps, 0.0 * mean]]) / count


def _varying_most(parts, size, fraction):
    """Give the function that says of a part which elements are among the fraction of largest variances."""
    variance = engine.remembered(_variance) if 2 * size <= GATHERED else _variance
    threshold = _just_below(_least_variance(parts, variance, size, fraction))
    return lambda part: variance(part) >= tree.scalar(threshold, part.leaves[0])


def _least_variance(parts, variance, size, fraction):
    xp = next(iter(parts())).xp
    varying = engine.sum_over(parts, lambda part: xp.sum((variance(part) > 0).astype(np.uint32)))
    kept = _floor_of_product(varying if xp is not np else int(varying), fraction)
    if xp is np and kept == 0:
        return np.float32(np.inf)
    # with nothing kept the rank is beyond the last: the pattern found is that of a NaN, which nothing reaches
    return kth_magnitude(lambda: map(variance, parts()), size, size + 1 - kept)


def _floor_of_product(count, fraction):
    """Give ⌊count · fraction⌋ the same for a number and for a traced uint32, which has no 64 bits."""
    factor = min(math.ceil(fraction * 2**32), 2**32 - 1)
    if isinstance(count, int):
        return count * factor >> 32
    word, (high, low) = np.uint32, divmod(factor, 2**16)
    top, bottom = count >> word(16), count & word(0xFFFF)
    one, other = top * word(low), bottom * word(high)
    carried = (one & word(0xFFFF)) + (other & word(0xFFFF)) + (bottom * word(low) >> word(16))
    return top * word(high) + (one >> word(16)) + (other >> word(16)) + (carried >> word(16))


# --- Masks ---


def _needed(vectors, total, thresholds):
    return [
        abs(vector) >= tree.scalar(threshold, vector) * abs(total - vector)
        for vector, threshold in zip(vectors, thresholds, strict=True)
    ]


def _checked(members, base):
    members = arguments.as_mapping(members)
    trees = [members[name] for name in members]
    tree.check_same_structure([*trees, base], [*members, "base"], dtypes=False)
    tree.check_copied(trees)
    arguments.check_all_finite([*members, "base"], [*trees, base])
    return list(members), trees


def _task_vectors(base, leaves):
    *wide, start = tree.widen_leaves([*leaves, base])
    return [leaf - start for leaf in wide]


def _map_floats(function, otherwise, base, trees):
    return jax.tree.map(
        lambda start, *leaves: function(start, *leaves) if tree.is_float(start) else otherwise(start), base, *trees
    )


def _no(leaf):
    return tree.namespace([leaf]).zeros(leaf.shape, bool)


def _zeros(leaf):
    return tree.namespace([leaf]).zeros_like(leaf)


def _by_member(names, base, lists):
    """Turn a tree of one list for each float leaf into a tree for each member."""

    def of(index):
        return jax.tree.map(lambda _, found: found[index] if isinstance(found, list) else found, base, lists)

    return {name: of(index) for index, name in enumerate(names)}


def _elect(vectors):
    xp, total = tree.namespace(vectors), tree.sum_in_order(vectors)
    sign = xp.sign(total)
    largest = xp.zeros_like(total)
    for vector in vectors:
        largest = xp.maximum(largest, vector * sign)
    return sign * largest


def _masked(vector, mask):
    return jax.tree.map(lambda leaf, kept: leaf * kept.astype(leaf.dtype), vector, mask)


def _l1_norm(vector):
    sums = [tree.namespace([leaf]).sum(abs(leaf)) for leaf in jax.tree.leaves(vector) if tree.is_float(leaf)]
    return tree.sum_in_order(sums)


# --- PCB ---


def _pairs(number):
    return [(i, j) for i in range(number) for j in range(i + 1)]


def _product(part, i, j):
    return part.vector(i) * part.vector(j)


def _ranges(parts, number):
    lows, highs = {}, {}
    for part in parts():
        xp = part.xp
        for pair in _pairs(number):
            product = _product(part, *pair)
            low, high = xp.min(product, initial=np.inf), xp.max(product, initial=-np.inf)
            lows[pair] = xp.minimum(lows.get(pair, low), low)
            highs[pair] = xp.maximum(highs.get(pair, high), high)
    return {pair: (lows[pair], highs[pair]) for pair in lows}


def _exponential(part, pair, ranges, factor=1):
    # less the largest exponent, which the mean takes out again
    xp, product = part.xp, _product(part, *pair)
    low, high = (tree.scalar(bound, product) for bound in ranges[pair])
    width = xp.where(high > low, high - low, xp.ones_like(high))
    return xp.exp(tree.scalar(factor, product) * ((product - low) / width - 1))


def _sums_of_exponentials(part, ranges):
    number, xp = len(part.leaves), part.xp
    sums = {pair: xp.sum(_exponential(part, pair, ranges)) for pair in _pairs(number)}
    return sums | {(i,): xp.sum(_exponential(part, (i, i), ranges, number)) for i in range(number)}


def _balance(part, index, ranges, means):
    """Give β of one member, times the squared number of elements: that cancels, and no element underflows."""
    number = len(part.leaves)
    within = _exponential(part, (index, index), ranges, number)
    within = within / tree.scalar(means[index,], within)
    between = []
    for other in range(number):
        pair = (max(index, other), min(index, other))
        between.append(_exponential(part, pair, ranges) / tree.scalar(means[pair], within))
    return within * tree.sum_in_order(between)
