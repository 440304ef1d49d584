"""Measure BatchNorm statistics again, which a soup needs: the average of its members' statistics is not its own."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from soups.models.functional import as_variables
from soups.tree import Tree


def stats_fn(model: nn.Module) -> Callable:
    """Return `stats(params, inputs) -> batch_stats`, the means and biased variances of exactly this batch.

    Every layer sees the batch normalised by itself, as in training, and no running average enters.

    Raises:
        ValueError: a model without a field `momentum`, that of its BatchNorm layers.
    """
    if not hasattr(model, "momentum"):
        raise ValueError(f"{type(model).__name__} has no field 'momentum', so no BatchNorm statistics to measure")
    fresh = model.clone(momentum=0.0)

    def stats(params, inputs):
        # from zeros, because 0 · nan is nan and a member's old statistics may have diverged
        variables = {**as_variables(params), "batch_stats": jax.tree.map(jnp.zeros_like, params["batch_stats"])}
        _, state = fresh.apply(variables, inputs, train=True, mutable=["batch_stats"])
        return state["batch_stats"]

    return stats


def reestimate_batch_stats(stats: Callable, params: Tree, batches: Iterable) -> Tree:
    """Replace the BatchNorm statistics of `params` by those over all `batches` of inputs.

    `stats`: from `stats_fn`. With batches b of n_b inputs and n = Σ n_b: mean = Σ (n_b/n) mean_b and, by the law of
    total variance, var = Σ (n_b/n) (var_b + (mean_b − mean)²), in float64. So the first BatchNorm has exactly the mean
    and biased variance of all the data; the later ones see inputs normalised batch by batch: prefer large batches.
    Needed after averaging weights: Izmailov et al., "Averaging Weights Leads to Wider Optima" (2018), arXiv:1803.05407.

    Raises:
        ValueError: weights without BatchNorm statistics, or no batches.
    """
    if "batch_stats" not in params:
        raise ValueError("these weights have no 'batch_stats': a network without BatchNorm needs no re-estimation")
    measure = jax.jit(stats)
    count, pooled = 0, None
    for inputs in batches:
        batch = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), measure(params, inputs))
        count += inputs.shape[0]
        pooled = batch if pooled is None else _pool(pooled, batch, inputs.shape[0] / count)
    if pooled is None:
        raise ValueError("no batches were given: BatchNorm statistics need at least one")
    cast = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), pooled, params["batch_stats"])
    return {**params, "batch_stats": cast}


def _pool(old, new, weight):
    # the statistics of a union of two sets of inputs; `weight`: the share of the new set
    if "mean" not in old:
        return {name: _pool(old[name], new[name], weight) for name in old}
    shift = new["mean"] - old["mean"]
    return {
        "mean": old["mean"] + weight * shift,
        "var": old["var"] + weight * (new["var"] - old["var"]) + weight * (1 - weight) * shift**2,
    }
