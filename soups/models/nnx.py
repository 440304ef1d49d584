"""Use Flax NNX models: their weights as a plain nested dict, their call as a pure function of it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from soups import tree
from soups.tree import Tree


def from_nnx(model: nnx.Module) -> tuple[Callable, Tree]:
    """Return (apply, params) of an NNX model: `apply(params, inputs) -> logits` in float32, in evaluation mode.

    `params` is a nested plain dict with string keys ("layers/0/kernel"); with BatchNorm it is {"params": ...,
    "batch_stats": ...}, so that a soup averages the statistics too. All other state (keys of random numbers, caches) is
    carried inside `apply`, as it is now. `apply` works under jit, vmap and grad; `model` is not changed.
    """
    evaluated = nnx.clone(model)
    evaluated.eval()
    graph, weights, rest = _split(evaluated)
    template = jax.eval_shape(lambda: weights)

    def apply(params, inputs):
        return nnx.merge(graph, *_join(template, params), rest)(inputs).astype(jnp.float32)

    return apply, _string_keys(weights)


def into_nnx(model: nnx.Module, params: Tree) -> nnx.Module:
    """Make a copy of `model` with the weights `params`, which have the structure that `from_nnx` gives.

    Raises:
        ValueError: other names or shapes, all of them listed.
    """
    graph, weights, rest = _split(nnx.clone(model))
    return nnx.merge(graph, *_join(weights, params), rest)


def _split(model):
    # pure dicts, because an nnx.State refuses to be updated under vmap of grad
    graph, *states = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    params, batch_stats, rest = map(nnx.to_pure_dict, states)
    return graph, {"params": params, "batch_stats": batch_stats} if batch_stats else params, rest


def _join(template, params):
    tree.check_same_structure([_string_keys(template), params], ["model", "params"], dtypes=False)
    weights = _original_keys(template, params)
    return (weights["params"], weights["batch_stats"]) if "batch_stats" in weights else (weights, {})


def _string_keys(node):
    # the layers of a list have integers for keys, which no file format and no regex knows
    return {str(key): _string_keys(child) for key, child in node.items()} if isinstance(node, dict) else node


def _original_keys(template, node):
    if not isinstance(template, dict):
        return node
    return {key: _original_keys(child, node[str(key)]) for key, child in template.items()}
