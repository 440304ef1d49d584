"""Find the few weights that a task needs, and stitch those of several tasks into the base.

He et al., "Localize-and-Stitch: Efficient model merging via sparse task arithmetic", 2024, arXiv 2408.13656.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from soups import arguments, arrays, tree
from soups.engine import Recipe
from soups.lazy import jax, jit, jnp
from soups.names import check_name, pattern
from soups.recipes import _select
from soups.recipes.declare import Inputs, check_real, method, python_only
from soups.recipes.sparsify import trim

START = 5.0  # a mask starts at ±5: σ is 0.993 in the first region, 0.007 elsewhere


@python_only("needs examples of each task: use soups.localize in Python, or localize_and_stitch, which needs none")
def localize(
    loss_fn: Callable[[tree.Tree, Any], jax.Array],
    batches: Iterable[Any],
    *,
    base: tree.Tree,
    member: tree.Tree,
    density: float = 1e-5,
    epochs: int = 10,
    learning_rate: float = 1e7,
    l1_strength: float = 10.0,
    only: str = ".*",
    update: str = "paper",
) -> tree.Tree:
    """Learn which weights of a member its task needs, a boolean tree, from a few examples (Localize-and-Stitch).

    min over S of Σ_batches loss(θ_base + σ(S) ⊙ τ) + (l1_strength / learning_rate) |σ(S)|_1, τ = θ_member − θ_base, by
    one gradient step over all batches in each epoch: S ← S − σ'(S) (learning_rate · Σ g ⊙ τ + l1_strength). S starts at
    +5 for the int(density · n) largest |τ| (see `localize_dataless`), at −5 elsewhere; the mask is S > 0.

    update="released" takes the sign that the published program gives the last term, σ'(S) (... − l1_strength sign(S)),
    which is no L1 penalty: it drives each element away from 0 to the side where it is.

    Args:
        loss_fn: gives the mean loss of weights on a batch.
        batches: gone through once in each epoch, so a list and no generator.
        base, member: the weights before and after fine-tuning; the device holds about five models.
        epochs, learning_rate, l1_strength: the published settings, for language; 1 is that for the strength in vision.
        only: a regex for the names of the leaves that may be in the mask; the others stay the base's (the paper leaves
            out embeddings and heads).

    Raises:
        ValueError: no batches, one array in their place, or an iterator that ends before the last epoch; a density
            outside (0, 1]; fewer than one epoch; an unknown `update`; a regex that matches no leaf; a loss that is not
            finite.

    He et al., "Localize-and-Stitch: Efficient model merging via sparse task arithmetic", 2024, arXiv 2408.13656.
    """
    check_name(update, ("paper", "released"), "update")
    epochs = arguments.check_within("epochs", epochs, "[1, inf)", whole=True)
    arguments.check_within("density", density, "(0, 1]")
    learning_rate = arguments.check_within("learning_rate", learning_rate, "(0, inf)")
    l1_strength = arguments.check_within("l1_strength", l1_strength, "[0, inf)")
    arguments.check_takes("loss_fn", loss_fn, "params, batch")
    arguments.check_batches(batches)
    # on the device once, not for every batch
    vectors, start = jax.device_put((_task_vector(member, base, only), base))
    first = tree.flatten(localize_dataless(member, base=base, density=density, only=only))
    masks = {name: jnp.where(first[name], np.float32(START), np.float32(-START)) for name in vectors}
    step = functools.partial(_step, learning_rate=learning_rate, l1_strength=l1_strength, released=update == "released")
    for epoch in range(epochs):
        masks = step(masks, vectors, _gradient_sum(loss_fn, batches, start, vectors, masks, epoch))
    return tree.map_with_names(lambda name, leaf: _final(masks.get(name), leaf), base)


def localize_dataless(member: tree.Tree, *, base: tree.Tree, density: float = 0.05, only: str = ".*") -> tree.Tree:
    """Take the weights that fine-tuning moved most: a mask without data (Localize-and-Stitch).

    The max(1, int(density · n)) largest |θ_member − θ_base| in float32 or wider, over the n elements of all float
    leaves that match the regex `only`, jointly. Of equal ones the first go in, by order of leaves, then of elements.
    Exact, without sorting; it may be traced.

    He et al., "Localize-and-Stitch: Efficient model merging via sparse task arithmetic", 2024, arXiv 2408.13656.
    """
    arguments.check_within("density", density, "(0, 1]")
    vectors = _task_vector(member, base, only)
    kept = max(1, int(density * sum(leaf.size for leaf in vectors.values())))
    masks = _largest(vectors, kept)
    return tree.map_with_names(lambda name, leaf: masks[name] if name in masks else _no(leaf), base)


def _check_masks(trees, labels):
    tree.check_same_structure(trees, labels, dtypes=False)
    for label, mask in zip(labels[1:], trees[1:], strict=True):
        if wrong := [name for name, leaf in tree.flatten(mask).items() if leaf.dtype != bool]:
            raise ValueError(
                f"masks must be boolean; in the mask of member {label} these leaves are not: {', '.join(wrong)}"
            )


@method(
    base="required",
    beside=("masks",),
    takes_complex=True,
    check=lambda leaves, beside, settings: _check_masks(
        [leaves, *map(tree.flatten, beside["masks"].values())], ["the weights", *beside["masks"]]
    ),
    only_in_python="needs a mask for each member: use soups.stitch in Python, or localize_and_stitch",
)
def stitch(inputs: Inputs) -> Recipe:
    """Put the masked part of every member into the base; where masks overlap, the mean of those members.

    θ = θ_base + Σ_i γ'_i ⊙ τ_i with γ'_i = γ_i / Σ_j γ_j (0 where no mask is) and τ_i = θ_i − θ_base, in float32 or
    wider, cast once to the members' dtypes. Pure and element-wise. `masks`: one boolean tree for each member, as
    `localize` and `localize_dataless` give them.

    Raises:
        ValueError: masks that are not one for each member, have other names or shapes than the members, or are not
            boolean.

    He et al., "Localize-and-Stitch: Efficient model merging via sparse task arithmetic", 2024, arXiv 2408.13656.
    """
    number = inputs.number

    def merge(part, _):
        return _stitched(part, [mask.astype(part.base.dtype) for mask in part.leaves[number:]])

    return Recipe(merge)


@method(base="required", per_member=("density",), title="Localize-and-Stitch, dataless")
def localize_and_stitch(inputs: Inputs, *, density: float = 0.05, only: str = ".*") -> Recipe:
    """Put the elements that moved most in each member into the base (Localize-and-Stitch without data).

    As `stitch` with the masks of `localize_dataless`, but magnitudes that tie at a threshold all go in.

    He et al., "Localize-and-Stitch: Efficient model merging via sparse task arithmetic", 2024, arXiv 2408.13656.
    """
    chosen, sparsifiers = pattern(only, "only"), [trim(share) for share in density]

    def measure(parts):
        def seen():
            return (part for part in parts() if chosen.fullmatch(part.name))

        thresholds = [sparsifier.measure(seen, index) for index, sparsifier in enumerate(sparsifiers)]
        return [0.0 if threshold is None else threshold for threshold in thresholds]

    def merge(part, thresholds):
        if not chosen.fullmatch(part.name):
            return part.base
        vectors = part.vectors
        gates = [(part.xp.abs(x) >= least).astype(x.dtype) for x, least in zip(vectors, thresholds, strict=True)]
        return _stitched(part, gates)

    return Recipe(merge, measure, scope="model")


def mask_overlap(masks: Sequence[tree.Tree] | Mapping[str, tree.Tree]) -> dict[str, Any]:
    """Measure how large masks are and how much they share.

    Returns:
        {"percent": {name: share of the elements in it}, "jaccard": {name: {other: |A ∩ B| / |A ∪ B|}}}; two empty masks
        are the same (1). The masks of a sequence are called "0", "1", ...
    """
    masks = arguments.as_mapping(masks)
    names, trees = list(masks), list(masks.values())
    _check_masks([trees[0], *trees], [names[0], *names])
    leaves = {name: jax.tree.leaves(jax.device_get(mask)) for name, mask in masks.items()}
    sizes = {name: sum(int(np.count_nonzero(leaf)) for leaf in mask) for name, mask in leaves.items()}

    def share(a, b):
        common = sum(int(np.count_nonzero(x & y)) for x, y in zip(leaves[a], leaves[b], strict=True))
        union = sizes[a] + sizes[b] - common
        return common / union if union else 1.0

    return {
        "percent": {name: 100.0 * size / max(1, tree.count(trees[0])) for name, size in sizes.items()},
        "jaccard": {name: {other: share(name, other) for other in names} for name in names},
    }


def _gradient_sum(loss_fn, batches, base, vectors, masks, epoch):
    total = None
    for batch in batches:
        value, grads = _loss_and_gradient(loss_fn, base, vectors, masks, batch)
        if not np.isfinite(value):
            raise ValueError(f"the loss is {float(value)} in epoch {epoch}: check the weights and the batches")
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
    if total is None:
        raise ValueError(
            f"no batches in epoch {epoch}: the list is empty, or an iterator that is exhausted: give a list"
        )
    return total


@jit(static_argnums=0)
def _loss_and_gradient(loss_fn, base, vectors, masks, batch):
    leaves = tree.flatten(base)
    mixed = {name: _masked(leaves[name], masks[name], vector) for name, vector in vectors.items()}

    def loss(mixed):
        params = tree.map_with_names(lambda name, leaf: mixed.get(name, leaf), base)
        return arguments.check_loss(loss_fn(params, batch))

    value, grads = jax.value_and_grad(loss)(mixed)
    return value.astype(jnp.float32), {name: leaf.astype(jnp.float32) for name, leaf in grads.items()}


def _masked(leaf, mask, vector):
    wide = tree.widen(leaf)
    return (wide + jax.nn.sigmoid(mask).astype(wide.dtype) * vector).astype(leaf.dtype)


@jit(static_argnames="released")
def _step(masks, vectors, grads, learning_rate, l1_strength, released):
    def move(mask, vector, grad):
        slope = jax.nn.sigmoid(mask) * jax.nn.sigmoid(-mask)
        penalty = -l1_strength * jnp.sign(mask) if released else l1_strength
        return mask - slope * (learning_rate * grad * vector.astype(jnp.float32) + penalty)

    return jax.tree.map(move, masks, vectors, grads)


def _final(mask, leaf):
    if mask is None:
        return _no(leaf)
    return np.asarray(mask > 0) if isinstance(leaf, np.ndarray) else mask > 0


def _task_vector(member, base, only):
    """Return member − base by name, for the float leaves that may be in a mask."""
    tree.check_usable({"base": base, "member": member}, dtypes=False)
    chosen = tree.flatten(tree.match(base, only))
    leaves = {name: leaf for name, leaf in tree.flatten(base).items() if tree.is_float(leaf) and chosen[name]}
    if not leaves:
        raise ValueError(f"no float leaf matches {only!r}")
    flat = tree.flatten(member)
    wide = {name: tree.widen_leaves([flat[name], leaf]) for name, leaf in leaves.items()}
    vectors = {name: theirs - start for name, (theirs, start) in wide.items()}
    check_real("localize", vectors)
    return vectors


def _largest(vectors, kept):
    xp = tree.namespace_of(vectors)
    wide = functools.reduce(np.promote_types, [leaf.dtype for leaf in vectors.values()])
    magnitudes = {name: xp.abs(leaf).astype(wide) for name, leaf in vectors.items()}
    number = sum(leaf.size for leaf in magnitudes.values())
    (threshold,) = _select.kth_magnitudes(magnitudes.values, number, [number - kept + 1])
    above = {name: leaf > threshold for name, leaf in magnitudes.items()}
    room = xp.asarray(kept, np.uint32) - sum(leaf.sum(dtype=np.uint32) for leaf in above.values())
    masks = {}
    for name, leaf in magnitudes.items():
        equal = leaf == threshold
        rank = xp.cumsum(equal.ravel(), dtype=np.uint32).reshape(leaf.shape)
        masks[name] = above[name] | (equal & (rank <= room))
        room = room - xp.minimum(room, equal.sum(dtype=np.uint32))
    return masks


def _no(leaf):
    return (np if isinstance(leaf, np.ndarray) else jnp).zeros(leaf.shape, bool)


def _stitched(part, gates):
    total = arrays.sum_in_order(gates)
    change = arrays.sum_in_order([gate * part.vector(index) for index, gate in enumerate(gates)])
    return part.base + change / part.xp.maximum(total, part.xp.ones_like(total))
