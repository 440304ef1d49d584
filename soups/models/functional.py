"""Turn Linen modules into pure functions of named weights.

`params` are what the whole library calls weights: for a network without state the dict of its parameters, for one with
BatchNorm {"params": ..., "batch_stats": ...}. A module is called as `module(inputs, train=...)`, or as `module(inputs)`
if it takes no `train`, for what has neither BatchNorm nor dropout.
"""

import inspect
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from soups.tree import Tree


def init(model: nn.Module, key: jax.Array, image_shape: Sequence[int]) -> Tree:
    """Make start weights for images of shape [H, W, C]; a nested plain dict of float32 arrays."""
    images = jnp.zeros((1, *image_shape), jnp.float32)
    variables = jax.jit(lambda key: model.init(key, images))(key)
    return variables if len(variables) > 1 else variables["params"]


def apply_fn(model: nn.Module, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> Callable:
    """Return `apply(params, inputs) -> logits [B, C]` in float32, in evaluation mode.

    `mean`, `std`: of each channel, the last axis; given, the network sees (inputs − mean) / std, in float32. `apply`
    raises a ValueError for inputs as `normalizer` does.

    Raises:
        ValueError: only one of `mean` and `std`, not one of each for a channel, or a `std` that is not positive.
    """
    normalized = normalizer(mean, std)

    def apply(params, inputs):
        inputs = normalized(inputs)
        return model.apply(as_variables(params), inputs, **in_mode(model, train=False)).astype(jnp.float32)

    return apply


def train_apply_fn(
    model: nn.Module, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> Callable:
    """Return `train_apply(params, inputs, key) -> (logits [B, C], params)`, in training mode.

    The key is for dropout. BatchNorm normalises by the batch and the returned params hold its updated running
    statistics; a network without state returns the params it was given. Inputs are normalised and checked as in
    `apply_fn`, with the same errors.
    """
    normalized = normalizer(mean, std)

    def train_apply(params, inputs, key):
        inputs = normalized(inputs)
        options = {"rngs": {"dropout": key}, "mutable": ["batch_stats"]}
        logits, state = model.apply(as_variables(params), inputs, **in_mode(model, train=True), **options)
        return logits.astype(jnp.float32), {**params, **state}

    return train_apply


def as_variables(params: Tree) -> Tree:
    """Return the variable collections that Linen wants: {"params": ...} around weights that lack them."""
    return params if "params" in params else {"params": params}


def in_mode(model: nn.Module, *, train: bool) -> dict[str, bool]:
    """Return the keywords that call a module in training or in evaluation mode: none if it takes no `train`."""
    parameters = inspect.signature(type(model).__call__).parameters.values()
    # nn.Sequential hands its keywords to its first layer
    takes = any(one.name == "train" or one.kind is one.VAR_KEYWORD for one in parameters)
    return {"train": train} if takes and not isinstance(model, nn.Sequential) else {}


def normalizer(mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> Callable:
    """Return `normalized(inputs)`, through which whatever takes a network sends its inputs: (inputs − mean) / std.

    Inputs are any pytree, with `mean` and `std` one array, whose last axis is the channels. `normalized` raises a
    ValueError for arrays that are neither floats nor booleans, as raw bytes in 0..255 would give silly outputs, or that
    have another number of channels. Integers of 32 bits or more on at most two axes pass: they are tokens.

    Raises:
        ValueError: only one of `mean` and `std`, not one of each for a channel, or a `std` that is not positive.
    """
    if mean is None and std is None:
        return _checked
    if mean is None or std is None:
        raise ValueError("inputs are normalised with both mean and std: give both or neither")
    if len(mean) != len(std) or not all(0 < number < np.inf for number in std) or not np.isfinite(mean).all():
        raise ValueError(f"mean and std need a number for each channel, std positive ones, not {mean} and {std}")
    shift, scale = np.asarray(mean, np.float32), np.asarray(std, np.float32)

    def normalized(inputs):
        if not jnp.issubdtype(_checked(inputs).dtype, jnp.floating):
            raise ValueError(f"inputs of {inputs.dtype} are not normalised: give floats, or neither mean nor std")
        if inputs.shape[-1] != len(shift):
            raise ValueError(f"inputs have {inputs.shape[-1]} channels, but mean and std are of {len(shift)}")
        shape = (1,) * (inputs.ndim - 1) + (-1,)
        return (inputs.astype(jnp.float32) - shift.reshape(shape)) / scale.reshape(shape)

    return normalized


def _checked(inputs):
    for leaf in jax.tree.leaves(inputs):
        tokens = jnp.issubdtype(leaf.dtype, jnp.integer) and leaf.dtype.itemsize >= 4 and leaf.ndim <= 2
        if not tokens and not jnp.issubdtype(leaf.dtype, jnp.inexact) and leaf.dtype != bool:
            raise ValueError(f"inputs must be floats, but they are {leaf.dtype}: scale the images first")
    return inputs
