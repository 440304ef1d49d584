"""Measure BatchNorm statistics again, which a soup needs: the average of its members' statistics is not its own."""

from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from soups import tree
from soups.arguments import check_batches, check_takes
from soups.models.functional import as_variables, in_mode, normalizer, of_batch_norms
from soups.models.nnx import batch_statistics
from soups.names import bounded
from soups.tree import Tree


def stats_fn(
    model: nn.Module | nnx.Module, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> Callable:
    """Return `stats(params, inputs) -> batch_stats`, the means and biased variances of exactly this batch.

    Every BatchNorm, whatever its momentum, sees the batch normalised by itself as in training, and no running average
    enters; dropout is off. Of another library's network, see `running_stats_fn`.

    Args:
        model: a Linen module, or an NNX one, whose weights are as `from_nnx` gives them; in evaluation mode.
        mean, std: those of `apply_fn`; inputs are normalised and checked as there, with the same errors.

    Raises (when called):
        ValueError: weights without BatchNorm statistics, or statistics that no `BatchNorm` of Flax keeps.
    """
    normalized = normalizer(mean, std)
    measure = batch_statistics(model) if isinstance(model, nnx.Module) else _of_linen(model)

    def stats(params, inputs):
        fresh, measured = measure(_from_zeros(params), normalized(inputs))
        if lost := [name for name in tree.names(fresh) if name.rpartition("/")[0] not in measured]:
            raise ValueError(
                f"these statistics are not those of a BatchNorm of Flax, or it was not called:\n{bounded(lost)}\n"
                "Measure them with running_stats_fn."
            )
        return fresh

    return stats


def running_stats_fn(update: Callable[[Tree, Tree], Tree]) -> Callable:
    """Return `stats(params, inputs) -> batch_stats` of any network, of Equinox or Haiku or of one's own.

    What is measured is how running averages move: new = m · old + (1 − m) · batch for zeros and ones in the place of
    the old ones tells m and the batch's, to about 1e-7 / (1 − m) of their size.

    Args:
        update: gives `params` as they are after a forward pass in training, such as
            `lambda params, inputs: train_apply(params, inputs, key)[1]`. The batch itself must normalise it. Statistics
            that it leaves as they are become NaN.
    """

    def stats(params, inputs):
        zeros = _from_zeros(params)
        ones = {**zeros, "batch_stats": jax.tree.map(jnp.ones_like, zeros["batch_stats"])}
        low, high = (update(start, inputs)["batch_stats"] for start in (zeros, ones))
        return jax.tree.map(lambda low, high: low / (1 - (high - low)), low, high)

    return stats


def reestimate_batch_stats(stats: Callable, params: Tree, batches: Iterable) -> Tree:
    """Replace the BatchNorm statistics of `params` by those over all `batches` of inputs.

    `stats`: from `stats_fn`. With batches b of n_b inputs and n = Σ n_b: mean = Σ (n_b/n) mean_b and, by the law of
    total variance, var = Σ (n_b/n) (var_b + (mean_b − mean)²), in float64. So the first BatchNorm has exactly the mean
    and biased variance of all the data; the later ones see inputs normalised batch by batch: prefer large batches.
    Needed after averaging weights: Izmailov et al., "Averaging Weights Leads to Wider Optima" (2018), arXiv:1803.05407.

    Raises:
        ValueError: weights that have no BatchNorm statistics; no batches, or one array in their place; a batch that
            holds NaN or infinity; `stats` that does not give the statistics of these weights.
    """
    check_takes("stats", stats, "params, inputs")
    old = _from_zeros(params)["batch_stats"]
    measure = jax.jit(stats)
    count, pooled = 0, None
    for index, inputs in enumerate(check_batches(batches)):
        if tree.nonfinite_names(inputs):
            raise ValueError(f"batch {index} holds NaN or infinity, and so would all statistics: leave such inputs out")
        batch = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), measure(params, inputs))
        size = jax.tree.leaves(inputs)[0].shape[0]
        count += size
        pooled = batch if pooled is None else _pool(pooled, batch, size / count)
    if pooled is None:
        raise ValueError("no batches were given: BatchNorm statistics need at least one")
    leaves, structure = jax.tree.flatten(old)  # which may be other containers
    if [np.shape(new) for new in jax.tree.leaves(pooled)] != [leaf.shape for leaf in leaves]:
        raise ValueError(
            f"stats must give new statistics for all of {tree.names(old)[:5]}, not {tree.names(pooled)[:5]}"
        )
    cast = [jnp.asarray(new, leaf.dtype) for new, leaf in zip(jax.tree.leaves(pooled), leaves, strict=True)]
    return {**params, "batch_stats": jax.tree.unflatten(structure, cast)}


def _from_zeros(params):
    """Return the weights with statistics of zero, as 0 · nan is nan and a member's old ones may have diverged."""
    if "batch_stats" not in params:
        raise ValueError("these weights have no 'batch_stats': a network without BatchNorm needs no re-estimation")
    return {**params, "batch_stats": jax.tree.map(jnp.zeros_like, params["batch_stats"])}


def _of_linen(model):
    evaluated, flags = in_mode(model, train=False)

    def measure(params, inputs):
        measured = set()
        intercept = of_batch_norms(use_running_average=False, called=measured.add, momentum=0.0)
        with nn.intercept_methods(intercept):
            _, state = evaluated.apply(as_variables(params), inputs, **flags, mutable=["batch_stats"])
        return state["batch_stats"], measured

    return measure


def _pool(old, new, weight):
    # the statistics of a union of two sets of inputs; `weight`: the share of the new set
    if "mean" not in old:
        return {name: _pool(old[name], new[name], weight) for name in old}
    shift = new["mean"] - old["mean"]
    return {
        "mean": old["mean"] + weight * shift,
        "var": old["var"] + weight * (new["var"] - old["var"]) + weight * (1 - weight) * shift**2,
    }
