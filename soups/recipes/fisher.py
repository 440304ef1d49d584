"""Average members with the weights that their Fisher information gives each parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from soups import arguments, arrays, engine, tree
from soups.engine import Recipe
from soups.lazy import jax, jit, jnp
from soups.names import check_name
from soups.recipes.declare import Inputs, check_alike, check_real, method, python_only

ESTIMATORS = ("exact", "sampled", "empirical", "batch")


@python_only("measures a checkpoint on inputs: use soups.fisher_information in Python")
def fisher_information(
    apply_fn: Callable[[tree.Tree, Any], jax.Array],
    params: tree.Tree,
    inputs: Any,
    *,
    estimator: str = "exact",
    labels: ArrayLike | None = None,
    key: jax.Array | None = None,
    batch_size: int = 32,
) -> tree.Tree:
    """Estimate the diagonal of the Fisher information of a classifier.

    F = (1/n) Σ_x E_y (∂ log p(y|x, θ) / ∂θ)², element by element, with the gradient of each example by itself:

    * "exact": the expectation Σ_c p(c|x) (...)² over all classes, one backward pass for each;
    * "sampled": one label drawn from p(·|x) with `key`; unbiased, and the same for every `batch_size`;
    * "empirical": the label that is given, which measures the fit and not the curvature where the model is wrong;
    * "batch": (1/n) Σ_batches (∂/∂θ Σ_{x in batch} Σ_c √p(c|x) log p(c|x))² with √p held fixed: what several published
      programs call Fisher. Squared after the sum, it keeps the products of different examples and classes, so it is
      NOT the Fisher diagonal, and it depends on `batch_size`. For comparison only.

    Args:
        apply_fn: gives the logits [B, C] of weights on inputs, in evaluation mode.
        inputs: an array [n, ...], or a tree of arrays whose first axes are n.
        labels: integers [n] below C, for "empirical".
        key: a JAX key, for "sampled".
        batch_size: examples at a time; except for "batch" the device holds as many gradients.

    Returns:
        A tree of the structure of `params` in float32; integer leaves count zero.

    Raises:
        ValueError: an unknown estimator; labels or a key that the estimator needs but did not get, or got but does not
            use; labels that are not one class for each input; no inputs, or arrays with different numbers of examples;
            logits that are not [B, C]; NaN or infinity in the result.

    Matena and Raffel, "Merging models with Fisher-weighted averaging", 2021, arXiv 2111.09832.
    """
    batch_size = arguments.check_within("batch_size", batch_size, "[1, inf)", whole=True)
    arguments.check_takes("apply_fn", apply_fn, "params, inputs")
    count = _check(apply_fn, params, inputs, estimator, labels, key)
    labels = np.zeros(count, np.int32) if labels is None else labels
    total = None
    for start in range(0, count, min(batch_size, count)):
        # the last batch is filled up with what weighs nothing: one program for all
        index = np.arange(start, start + min(batch_size, count))
        chosen = np.minimum(index, count - 1)
        kept = (index < count).astype(np.float32)
        batch = jax.tree.map(lambda leaf, i=chosen: leaf[i], inputs)
        part = _sum_of_squares(apply_fn, estimator, params, batch, labels[chosen], kept, chosen.astype(np.int32), key)
        total = part if total is None else jax.tree.map(jnp.add, total, part)
    information = jax.tree.map(lambda leaf: leaf / np.float32(count), total)
    if not tree.traced(information) and (bad := tree.nonfinite_names(information)):
        raise ValueError(f"NaN or infinity in the Fisher information of {', '.join(bad)}: check weights and inputs")
    return information


@method(
    per_member=("weights", "floor"),
    beside=("fishers",),
    takes_complex=True,
    check=check_alike,
    gone={"favor": "floor takes one number for each member: above 0 for the one to favour, 0 for the others"},
    title="Fisher",
)
def fisher(inputs: Inputs, *, weights: ArrayLike = 1.0, floor: float = 1e-6, normalize: bool = False) -> Recipe:
    """Average members, each parameter weighted by its Fisher information.

    θ = Σ_i c_i max(F_i, floor) θ_i / Σ_i c_i max(F_i, floor), in float32 or wider, cast once to the members' dtypes.
    Pure and element-wise; F_i = 1 gives the weighted average.

        fishers = [soups.fisher_information(model.apply, member, inputs) for member in members]
        merged = soups.fisher(members, fishers)

    Args:
        fishers: the diagonals F_i ≥ 0, one tree for each member, as `fisher_information` gives them.
        weights: the c_i ≥ 0, all 1 without; their scale does not matter.
        floor: the least information, one or one for each member. Where all F_i are below it, members count by c_i
            alone: it should be small against the F_i that matter. Above 0 for one member alone, such as the first in
            the published code, it lets that one decide where nobody knows more.
        normalize: divide c_i by the Euclidean norm of F_i over all leaves, so that no member wins by its scale. For a
            part of a model divide `weights` by `tree.norm` of the whole F_i instead.

    Raises:
        ValueError: fishers that are not one for each member, have other names or shapes than the members, are negative
            or not finite, or are all zero where `normalize` divides by their norm; negative weights, or only zeros; a
            negative floor, or no member with both its weight and its floor above 0.

    Matena and Raffel, "Merging models with Fisher-weighted averaging", 2021, arXiv 2111.09832.
    """
    floors = [arguments.check_within("floor", least, "[0, inf)") for least in floor]
    arguments.check_weights(weights)
    if not tree.traced((weights, floors)) and not any(w > 0 and f > 0 for w, f in zip(weights, floors, strict=True)):
        raise ValueError("floor must be above 0 for a member whose weight is above 0")
    number = inputs.number

    def measure(parts):
        squares = engine.sum_over(parts, lambda part: [arrays.inner(leaf, leaf) for leaf in part.leaves[number:]])
        for place, square in enumerate(squares):
            if not tree.traced(square) and not square > 0:
                raise ValueError(f"the Fisher information of member {place} is all zeros, so it cannot be normalized")
        return [weight / square**0.5 for weight, square in zip(weights, squares, strict=True)]

    def merge(part, shares):
        leaves, fishers = part.leaves[:number], part.leaves[number:]
        for place, values in enumerate(fishers):
            if not tree.traced(values) and bool((values < 0).any()):
                raise ValueError(f"negative Fisher information of member {place}: {part.name}")
        xp, counts = tree.namespace([*leaves, *fishers]), weights if shares is None else shares
        masses = [xp.maximum(f.astype(x.dtype), least) for f, x, least in zip(fishers, leaves, floors, strict=True)]
        weighed = [mass * leaf for mass, leaf in zip(masses, leaves, strict=True)]
        return arrays.mix(weighed, counts) / arrays.mix(masses, counts)

    return Recipe(merge, measure, scope="model") if normalize else Recipe(merge)


@method(
    base="first",
    members=(1, 1),
    single=True,
    base_beside="fisher_base",
    beside=("fisher_member",),
    takes_complex=True,
    check=check_alike,
    title="Fisher, interpolated",
)
def fisher_interpolate(
    inputs: Inputs, *, alpha: ArrayLike = 0.5, floor: float = 1e-6, normalize: bool = False
) -> Recipe:
    """Interpolate from the base to a member, each parameter as far as the two Fisher diagonals say.

    θ = ((1 − α) F_0 θ_0 + α F_1 θ_1) / ((1 − α) F_0 + α F_1), α in [0, 1], both F not below the floor; `wise_ft` where
    F_0 = F_1.

    Matena and Raffel, "Merging models with Fisher-weighted averaging", 2021, arXiv 2111.09832.
    """
    arguments.check_within("alpha", alpha, "[0, 1]")
    return fisher.recipe(inputs, weights=[1.0 - alpha, alpha], floor=floor, normalize=normalize)


@jit(static_argnums=(0, 1))
def _sum_of_squares(apply_fn, estimator, params, inputs, labels, kept, index, key):
    """Sum over the examples of one batch, in float32; `kept` [B] is 1 for those that count."""
    floats, rest = tree.split_floats(params)

    def log_probs(floats, inputs):
        return jax.nn.log_softmax(apply_fn(tree.combine(floats, rest), inputs).astype(jnp.float32))

    def log_prob(floats, example, label):
        return log_probs(floats, jax.tree.map(lambda leaf: leaf[None], example))[0, label]

    def weighted_squares(labels, weigh):
        values, grads = jax.vmap(jax.value_and_grad(log_prob), (None, 0, 0))(floats, inputs, labels)
        weights = weigh(values)

        def square(leaf):  # no dot product: accelerators round its factors
            return jnp.sum(jnp.expand_dims(weights.astype(leaf.dtype), range(1, leaf.ndim)) * leaf * leaf, axis=0)

        return jax.tree.map(square, tree.widen(grads))

    def of_batch(floats):
        values = log_probs(floats, inputs)
        return jnp.sum(kept[:, None] * jax.lax.stop_gradient(jnp.exp(values / 2)) * values)

    if estimator == "batch":
        sums = jax.tree.map(jnp.square, tree.widen(jax.grad(of_batch)(floats)))
    elif estimator == "exact":
        sums = _sum_over_classes(
            lambda label: weighted_squares(jnp.full_like(index, label), lambda values: kept * jnp.exp(values)),
            jax.eval_shape(log_probs, floats, inputs).shape[1],
        )
    else:
        if estimator == "sampled":  # a key for each example by its number: the size of the batches does not matter
            draw = jax.vmap(lambda number, row: jax.random.categorical(jax.random.fold_in(key, number), row))
            labels = draw(index, log_probs(floats, inputs))
        sums = weighted_squares(labels, lambda _: kept)
    return jax.tree.map(
        lambda leaf, total: jnp.zeros(leaf.shape, "float32") if total is None else total.astype("float32"), params, sums
    )


def _sum_over_classes(of_class, num_classes):
    # a loop, so that the device holds the gradients of one class
    def step(total, label):
        return jax.tree.map(jnp.add, total, of_class(label)), None

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(of_class, np.int32(0)))
    return jax.lax.scan(step, zeros, jnp.arange(num_classes, dtype=jnp.int32))[0]


def _check(apply_fn, params, inputs, estimator, labels, key):
    check_name(estimator, ESTIMATORS, "estimator")
    tree.check_arrays([params], ["params"])
    check_real("fisher_information", tree.flatten(params))
    for value, owner, what in ((labels, "empirical", "labels"), (key, "sampled", "key")):
        if (value is None) == (estimator == owner):
            wrong = f"needs {what}" if value is None else f"does not use {what}: only {owner!r} does"
            raise ValueError(f"estimator {estimator!r} {wrong}")
    counts = {leaf.shape[0] for leaf in jax.tree.leaves(inputs)}
    if len(counts) != 1 or counts == {0}:
        raise ValueError(
            f"inputs must be arrays with the same number of examples, at least 1, but they have {sorted(counts)}"
        )
    count = counts.pop()
    logits = jax.eval_shape(apply_fn, params, jax.tree.map(lambda leaf: leaf[:1], inputs))
    if arguments.check_logits(logits).shape[0] != 1:
        raise ValueError(f"apply_fn must give logits [1, C] for one example, but it gave {logits.shape}")
    if labels is not None:
        _check_labels(labels, count, logits.shape[1])
    return count


def _check_labels(labels, count, num_classes):
    if labels.shape != (count,) or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels must be {count} integers, not {labels.dtype} of shape {tuple(labels.shape)}")
    low, high = (0, 0) if tree.traced(labels) else (int(labels.min()), int(labels.max()))
    if low < 0 or high >= num_classes:
        raise ValueError(f"labels must be in 0..{num_classes - 1}, but are in {low}..{high}")
