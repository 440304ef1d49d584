"""Turn Linen modules into pure functions of named weights.

`params` are what the whole library calls weights: for a network without state the dict of its parameters, for one with
BatchNorm {"params": ..., "batch_stats": ...}. A module is called as `module(inputs, train=...)`.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from soups.tree import Tree


def init(model: nn.Module, key: jax.Array, image_shape: Sequence[int]) -> Tree:
    """Make start weights for images of shape [H, W, C]; a nested plain dict of float32 arrays."""
    images = jnp.zeros((1, *image_shape), jnp.float32)
    variables = jax.jit(lambda key: model.init(key, images))(key)
    return variables if len(variables) > 1 else variables["params"]


def apply_fn(model: nn.Module) -> Callable:
    """Give `apply(params, inputs) -> logits [B, C]` in float32, in evaluation mode.

    `apply` raises a ValueError for inputs that are not floats: raw bytes in 0..255 would give silly logits.
    """

    def apply(params, inputs):
        _check_floats(inputs)
        return model.apply(as_variables(params), inputs, train=False).astype(jnp.float32)

    return apply


def train_apply_fn(model: nn.Module) -> Callable:
    """Give `train_apply(params, inputs, key) -> (logits [B, C], params)`, in training mode.

    The key is for dropout. BatchNorm normalises by the batch and the returned params hold its updated running
    statistics; a network without state returns the params it was given. Inputs are checked as in `apply_fn`.
    """

    def train_apply(params, inputs, key):
        _check_floats(inputs)
        logits, state = model.apply(
            as_variables(params), inputs, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
        )
        return logits.astype(jnp.float32), {**params, **state}

    return train_apply


def as_variables(params: Tree) -> Tree:
    """Give the variable collections that Linen wants: {"params": ...} around weights that lack them."""
    return params if "params" in params else {"params": params}


def _check_floats(inputs):
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise ValueError(f"inputs must be floats, but they are {inputs.dtype}: scale the images first")
