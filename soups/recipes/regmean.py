"""Merge linear layers so that their outputs stay as near to the members' as a least-squares fit can bring them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from soups import arguments, arrays, tree
from soups.engine import Recipe
from soups.lazy import is_jax, jax, jit, jnp
from soups.names import check_name
from soups.recipes.declare import Inputs, method, python_only

Grams = Mapping[str, Any]  # by the name of a kernel [*in, *out]: Xᵀ X / rows of its inputs X [rows, in], as [in, in]


def gram_sizes(shape: Sequence[int], inputs: str) -> list[int]:
    """Return how many inputs a kernel can have: if they are "first" the axes are [*in, *out], if "last" [out, *in]."""
    if inputs == "last":
        return [math.prod(shape[1:])]
    return [math.prod(shape[:axes]) for axes in range(1, len(shape))]


def _check_grams(leaves, beside, settings):
    grams = beside["grams"]
    if odd := [member for member, of_member in grams.items() if not isinstance(of_member, Mapping)]:
        raise ValueError(
            f"grams must be a mapping {{name of a kernel: matrix}} for each member; that of {odd[0]} is not"
        )
    first_name, first = next(iter(grams.items()))
    for member, of_member in grams.items():
        for name in of_member:
            check_name(name, leaves, "leaf in the grams")
        if different := sorted(set(of_member) ^ set(first)):
            raise ValueError(
                f"grams must be given for the same leaves in all members; members {first_name} and {member} differ in: "
                + ", ".join(different)
            )
        for name, gram in of_member.items():
            _check_gram(member, name, gram, leaves[name], settings["inputs"])


def _check_gram(member, name, gram, leaf, inputs):
    if not tree.is_float(leaf) or len(leaf.shape) < 2:
        raise ValueError(
            f"leaf {name} of shape {tuple(leaf.shape)} and dtype {leaf.dtype} is not the kernel of a linear layer"
        )
    sizes = gram_sizes(leaf.shape, inputs)
    if len(gram.shape) != 2 or gram.shape[0] != gram.shape[1] or gram.shape[0] not in sizes:
        raise ValueError(
            f"the Gram matrix of member {member} for {name} has shape {tuple(gram.shape)}, but a kernel of shape "
            f"{tuple(leaf.shape)} with its inputs {inputs} needs [in, in] with in = {' or '.join(map(str, sizes))}"
        )
    if not tree.traced(gram) and not tree.all_finite(gram):
        raise ValueError(f"NaN or infinity in the Gram matrix of member {member} for {name}")


@method(
    per_member=("weights",),
    beside=("grams",),
    grams=True,
    check=_check_grams,
    in_files={"inputs": "last"},
    title="RegMean",
)
def regmean(given: Inputs, *, alpha: float = 0.9, weights: ArrayLike = 1.0, inputs: str = "first") -> Recipe:
    """Merge the linear layers by regression, and average all other leaves.

    W = (Σ_i c_i G̃_i)⁻¹ Σ_i c_i G̃_i W_i minimises Σ_i c_i |X_i W − X_i W_i|² for kernels W [in, out] and G = XᵀX / rows,
    with α in [0, 1] times its off-diagonal elements: G̃ = α G + (1 − α) diag(G). A kernel of several axes, such as [in,
    heads, head_dim] or [heads, head_dim, out], has as many of its first axes for inputs as its Gram matrix is large.

    Solved by Cholesky as mean + (Σ c G̃)⁻¹ Σ c G̃_i (W_i − mean), in float64 if the members are NumPy's, else on their
    devices in float32, where it may be traced. Inputs, or directions of them, in which no member has data keep the
    average (those whose share of the Gram matrix, scaled to a diagonal of ones, is below `in` times float32's epsilon).
    All else is Σ c_i θ_i / Σ c_i. The paper's language models need α = 0.1 to 0.9, or 1.

    Args:
        grams: for each member {name of a kernel: G [in, in]}, as `soups.models.linear_inputs_gram` gives them. Kernels
            without one are averaged.
        inputs: "first" for kernels [*in, *out] as Flax keeps them, "last" for [out, *in] as torch does.
        alpha: how much of the correlation between inputs counts; 0 weights each input by its power alone.
        weights: the c_i ≥ 0, all 1 without; their scale does not matter.

    Raises:
        ValueError: grams that are not one mapping for each member, that name leaves which do not exist or are not
            kernels of linear layers, that are of other leaves in one member than in another, or that are not finite or
            have the wrong shape; α outside [0, 1]; negative weights, or only zeros.

    Jin et al., "Dataless knowledge fusion by merging weights of language models", 2022, arXiv 2212.09849.
    """
    arguments.check_within("alpha", alpha, "[0, 1]")
    check_name(inputs, ("first", "last"), "place of the inputs")
    shares = arguments.shares(arguments.check_weights(weights))

    def merge(part, _):
        kernels, grams = part.leaves[: len(shares)], part.leaves[len(shares) :]
        if not grams:
            return arrays.mix(kernels, shares)
        if inputs == "first":
            return _regress(kernels, grams, shares, alpha)
        turned = [kernel.reshape(len(kernel), -1).T for kernel in kernels]
        return _regress(turned, grams, shares, alpha).T.reshape(kernels[0].shape)

    return Recipe(merge, unit="leaf")


@python_only("needs the networks to measure inputs with: use soups.regmean_pp in Python")
def regmean_pp(
    members: arguments.Members,
    grams_of: Sequence[Callable[[tree.Tree], Grams]] | Mapping[str, Callable[[tree.Tree], Grams]],
    *,
    groups: Sequence[str],
    alpha: float = 0.9,
    weights: arguments.PerMember[ArrayLike] = 1.0,
) -> tree.Tree:
    """Merge the linear layers by regression, one after the other, on inputs that come through the merged ones before.

    For each group of leaves in turn: member i's Gram matrices are measured with the merged weights in the groups before
    it and in the leaves of no group, and with its own in this group and those after it; then `regmean` merges the
    group. A layer's inputs are then those that the merged network will give it.

    The memory is that of all members and the result.

    Args:
        grams_of: for each member a function from weights to {name of a kernel: G [in, in]}, measured on its own data;
            called once for each group. Kernels of other groups are left unread.
        groups: a regex for the leaves of each layer, in the order of the forward pass: also those of its norms and
            biases. A leaf belongs to the first that matches; those of no group (embeddings, the head) are averaged.

    Raises:
        ValueError: as `regmean`; no groups, a group without leaves, or a group for which `grams_of` gives no Gram
            matrix.

    Nguyen et al., "RegMean++: Enhancing effectiveness and generalization of regression mean for model merging", 2025,
    arXiv 2508.03121.
    """
    if isinstance(groups, str) or not (groups := list(groups)):
        raise ValueError(f"groups must be a list of at least one regex, not {groups!r}")
    members = arguments.as_mapping(members)
    members = {name: members[name] for name in members}
    grams_of = dict(zip(members, arguments.per_member(grams_of, members, "grams_of"), strict=True))
    first = next(iter(members.values()))
    merged = regmean(members, [{}] * len(members), alpha=alpha, weights=weights)  # checks, and averages
    group_of = tree.match(first, [*((group, index) for index, group in enumerate(groups)), (".*", -1)])
    groups_by_name = tree.flatten(group_of)
    for index, group in enumerate(groups):
        own = {
            name: jax.tree.map(lambda a, b, place, at=index: b if place >= at else a, merged, member, group_of)
            for name, member in members.items()
        }
        grams = {name: _of_group(grams_of[name](own[name]), groups_by_name, index, group) for name in members}
        parts = {
            name: {leaf: array for leaf, array in tree.flatten(member).items() if groups_by_name[leaf] == index}
            for name, member in members.items()
        }
        part = regmean(parts, grams, alpha=alpha, weights=weights)
        merged = tree.map_with_names(lambda name, leaf, part=part: part.get(name, leaf), merged)
    return merged


def _regress(leaves, grams, shares, alpha):
    size = grams[0].shape[0]
    on_host = tree.namespace(leaves) is np and not tree.traced(grams)
    grams = jax.device_get(grams) if on_host else grams
    xp, dtype = (np, np.float64) if on_host else (jnp, leaves[0].dtype)
    mean = arrays.mix(leaves, shares)
    # deviations from the mean: where nothing is known, nothing is added to it
    deviations = [(leaf.astype(dtype) - mean.astype(dtype)).reshape(size, -1) for leaf in leaves]
    scaled = [_scale_off_diagonal(gram.astype(dtype), alpha, xp) for gram in grams]
    products = [arrays.matmul(gram, deviation) for gram, deviation in zip(scaled, deviations, strict=True)]
    change = (_solve_on_host if on_host else _solve)(arrays.mix(scaled, shares), arrays.mix(products, shares))
    return (mean.astype(dtype) + change.reshape(leaves[0].shape)).astype(leaves[0].dtype)


def _scale_off_diagonal(gram, alpha, xp):
    identity = xp.eye(gram.shape[0], dtype=bool)
    return xp.where(identity, gram, gram * (alpha.astype(gram.dtype) if is_jax(alpha) else alpha))


def _scaled(left, xp):
    # to a diagonal of ones, so that no input is lost for its unit; 0 where no member has data
    diagonal = xp.diagonal(left)
    scales = xp.where(diagonal > 0, 1 / xp.sqrt(xp.where(diagonal > 0, diagonal, 1)), 0)[:, None]
    return scales, left * scales * scales.T + xp.diag((scales[:, 0] == 0).astype(left.dtype))


def _limit(size):
    return size * float(np.finfo(np.float32).eps)  # of Gram matrices that were measured in float32


def _solve_on_host(left, right):
    scales, unit = _scaled(left, np)
    try:
        factor = np.linalg.cholesky(unit)
        if np.diagonal(factor).min() ** 2 > _limit(len(unit)):
            import scipy.linalg  # a tenth of a second

            return scales * scipy.linalg.cho_solve((factor, True), scales * right, check_finite=False)
    except np.linalg.LinAlgError:
        pass  # singular to working precision, as a small pivot
    return scales * (np.linalg.pinv(unit, rcond=_limit(len(unit)), hermitian=True) @ (scales * right))


@jit()
def _solve(left, right):
    scales, unit = _scaled(left, jnp)
    factor = jnp.linalg.cholesky(unit)

    def by_cholesky(right):
        return jax.scipy.linalg.cho_solve((factor, True), right)

    def by_eigenvalues(right):
        values, vectors = jnp.linalg.eigh(unit)
        kept = values > _limit(len(unit)) * values[-1]
        inverse = arrays.ratio(jnp, 1, values, kept)
        return arrays.matmul(vectors, inverse[:, None] * arrays.matmul(vectors.T, right))

    regular = jnp.min(jnp.diagonal(factor)) ** 2 > _limit(len(unit))  # false for NaN, too
    return scales * jax.lax.cond(regular, by_cholesky, by_eigenvalues, scales * right)


def _of_group(grams, groups, index, group):
    chosen = {
        name: gram for name, gram in grams.items() if groups[check_name(name, groups, "leaf in the grams")] == index
    }
    if not chosen:
        raise ValueError(
            f"grams_of gave no Gram matrix of a leaf in group {group!r}, only of: {', '.join(grams) or '-'}"
        )
    return chosen
