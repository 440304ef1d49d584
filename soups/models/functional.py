"""Turn Linen modules into pure functions of named weights.

`params` are what the whole library calls weights: for a network without state the dict of its parameters, for one with
BatchNorm {"params": ..., "batch_stats": ...}. A module is called as `module(inputs, train=...)`, or with another of the
flags of `IN_TRAINING` that its call takes or that it has as a field; without one for neither BatchNorm nor dropout.
"""

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx
from flax.errors import ModifyScopeVariableError
from numpy.typing import ArrayLike

from soups.models.resnet import ConvNorm
from soups.tree import Tree

#: the flags that tell a network its mode, with what they are in training
IN_TRAINING = dict.fromkeys(("train", "training", "is_training"), True)
IN_TRAINING |= dict.fromkeys(("deterministic", "use_running_average", "inference"), False)
_MODES = dict.fromkeys((nn.Dropout, nn.MultiHeadDotProductAttention), "deterministic")
_MODES |= {nn.BatchNorm: "use_running_average"}


def init(model: nn.Module, key: jax.Array, image_shape: Sequence[int] | Mapping[str, ArrayLike]) -> Tree:
    """Make start weights for images of shape [H, W, C]; a nested plain dict of float32 arrays.

    A network that takes arrays by name, such as `soups.models.TextEncoder`, needs a batch of them instead of a shape.
    """
    if isinstance(image_shape, Mapping):
        inputs = image_shape
    elif isinstance(image_shape, Sequence) and all(isinstance(n, int | np.integer) and n > 0 for n in image_shape):
        inputs = jnp.zeros((1, *image_shape), jnp.float32)
    else:
        raise ValueError(f"image_shape must be whole numbers above 0, such as (224, 224, 3), not {image_shape!r:.200}")
    model, flags = in_mode(model, train=False)
    variables = jax.jit(lambda key: model.init(key, inputs, **flags))(key)
    return variables if len(variables) > 1 else variables["params"]


def apply_fn(model: nn.Module, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> Callable:
    """Return `apply(params, inputs) -> logits [B, C]` in float32, in evaluation mode.

    `mean`, `std`: of each channel, the last axis; given, the network sees (inputs − mean) / std, in float32. They and
    the inputs are checked as in `normalizer`, with the same errors.
    """
    normalized, (model, flags) = normalizer(mean, std), in_mode(model, train=False)

    def apply(params, inputs):
        return model.apply(as_variables(params), normalized(inputs), **flags).astype(jnp.float32)

    return apply


def train_apply_fn(
    model: nn.Module,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    *,
    frozen_statistics: bool = False,
) -> Callable:
    """Return `train_apply(params, inputs, key) -> (logits [B, C], params)`, in training mode.

    The key is for dropout. BatchNorm normalises by the batch and the returned params hold its updated running
    statistics; a network without state returns the params it was given. With `frozen_statistics` it normalises by the
    running statistics, which stay as they are, and its scale and bias are trained, as DomainBed fine-tunes (Gulrajani
    and Lopez-Paz, 2020, arXiv:2007.01434); the rest of the network trains as ever.

    Inputs are normalised and checked as in `apply_fn`, with the same errors; a ValueError also refuses a network with
    dropout or BatchNorm that stays in evaluation mode, for none of the flags of `IN_TRAINING` reaches it, and with
    `frozen_statistics` one whose statistics a layer moves that is not Flax's BatchNorm.
    """
    normalized, given = normalizer(mean, std), model
    model, flags = in_mode(model, train=True)
    told = flags or model is not given
    watched = [] if told else [functools.partial(_see_mode, frozen_statistics)]
    watched += [of_batch_norms(use_running_average=True), _fold] if frozen_statistics else []

    def train_apply(params, inputs, key):
        options = {"rngs": {"dropout": key}, "mutable": [] if frozen_statistics else ["batch_stats"]}
        with contextlib.ExitStack() as stack:
            for interceptor in watched:
                stack.enter_context(nn.intercept_methods(interceptor))
            try:
                logits, state = model.apply(as_variables(params), normalized(inputs), **flags, **options)
            except ModifyScopeVariableError as error:
                raise ValueError(f"only the statistics of Flax's BatchNorm can be frozen: {error}") from error
        return logits.astype(jnp.float32), {**params, **state}

    return train_apply


def of_batch_norms(*, use_running_average: bool, called: Callable[[str], Any] = lambda path: None, **fields: Any):
    """Return an interceptor of Linen calls under which each BatchNorm has this mode and these fields.

    `called` is told the path of each.
    """

    def intercept(call, args, kwargs, context):
        layer = context.module
        if not isinstance(layer, nn.BatchNorm) or context.method_name != "__call__":
            return call(*args, **kwargs)
        called("/".join(layer.path))
        for field, value in {**fields, "use_running_average": None}.items():
            object.__setattr__(layer, field, value)  # of this call's own copy
        return call(*args[:1], **{**kwargs, "use_running_average": use_running_average})

    return intercept


def as_variables(params: Tree) -> Tree:
    """Return the variable collections that Linen wants: {"params": ...} around weights that lack them."""
    if not isinstance(params, Mapping):
        raise ValueError(f"the weights of a Linen module must be a mapping, not a {type(params).__name__}")
    return params if "params" in params else {"params": params}


def in_mode(model: nn.Module, *, train: bool) -> tuple[nn.Module, dict[str, bool]]:
    """Return the module and the keywords with which it is called in training or in evaluation mode.

    Flags that the call takes are keywords; if it takes none, those that are fields of the module are set in a copy.
    """
    if not isinstance(model, nn.Module):
        hint = "; of an NNX one from_nnx gives function and weights" if isinstance(model, nnx.Module) else ""
        raise ValueError(f"the network must be a Linen module, not a {type(model).__name__}{hint}")
    flags = mode_flags(type(model), train=train)
    # nn.Sequential hands its keywords to its first layer
    hands_on = any(one.kind is one.VAR_KEYWORD for one in inspect.signature(type(model).__call__).parameters.values())
    if not flags and hands_on and not isinstance(model, nn.Sequential):
        flags = {"train": train}
    if flags:
        return model, flags
    fields = {field.name for field in dataclasses.fields(model)} & IN_TRAINING.keys()
    return (model.clone(**{name: IN_TRAINING[name] is train for name in fields}) if fields else model), {}


def mode_flags(kind: type, *, train: bool) -> dict[str, bool]:
    """Return those flags of `IN_TRAINING` that the call of a class takes, as they are in one mode."""
    taken = inspect.signature(kind.__call__).parameters
    return {name: value is train for name, value in IN_TRAINING.items() if name in taken}


def wrong_mode(layer: str, train: bool) -> ValueError:
    """Return the error that a layer is not in training, or in evaluation, as the network shall be."""
    shall, mode = ("in training", "evaluation") if train else ("in evaluation", "training")
    return ValueError(
        f"{shall} {layer} would stay in {mode} mode: let the network's __call__ take one of {', '.join(IN_TRAINING)} "
        "and hand it on, or write the function of weights and inputs yourself"
    )


def _see_mode(frozen_statistics, call, args, kwargs, context):
    """Call a layer, or refuse it if it has a mode and that is evaluation, but for BatchNorm of frozen statistics."""
    layer = context.module
    if frozen_statistics and isinstance(layer, nn.BatchNorm):
        return call(*args, **kwargs)
    flag = next((flag for kind, flag in _MODES.items() if isinstance(layer, kind)), None)
    idle = getattr(layer, "rate", getattr(layer, "dropout_rate", None)) == 0
    if flag and not idle and context.method_name == "__call__":
        at_call = inspect.signature(type(layer).__call__).bind(layer, *args, **kwargs).arguments.get(flag)
        if (getattr(layer, flag) if at_call is None else at_call) is True:
            raise wrong_mode(f"{'/'.join(layer.path)}, a {type(layer).__name__},", train=True)
    return call(*args, **kwargs)


def _fold(call, args, kwargs, context):
    """Call a layer, and let one of frozen statistics that has a convolution and its BatchNorm make one of both."""
    layer = context.module
    if isinstance(layer, ConvNorm) and layer.norm == "batch":
        object.__setattr__(layer, "frozen", True)  # of this call's own copy
    return call(*args, **kwargs)


def normalizer(mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> Callable:
    """Return `normalized(inputs)`, through which whatever takes a network sends its inputs: (inputs − mean) / std.

    Inputs are any pytree, with `mean` and `std` one array, whose last axis is the channels. `normalized` raises a
    ValueError for arrays that are neither floats nor booleans, as raw bytes in 0..255 would give silly outputs, or that
    have another number of channels. Integers of 32 bits or more on at most two axes pass: they are tokens. Only one of
    `mean` and `std`, not one of each for a channel, or a `std` that is not positive is a ValueError at once.
    """
    if mean is None and std is None:
        return _checked
    if mean is None or std is None:
        raise ValueError("inputs are normalised with both mean and std: give both or neither")
    try:
        shift, scale = np.asarray(mean, np.float32), np.asarray(std, np.float32)
        fits = shift.ndim == 1 and shift.shape == scale.shape
        fits = fits and np.isfinite(shift).all() and ((scale > 0) & (scale < np.inf)).all()
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(f"mean and std need a finite number for each channel, in std above 0, not {mean} and {std}")

    def normalized(inputs):
        if not jnp.issubdtype(_checked(inputs).dtype, jnp.floating):
            raise ValueError(f"inputs of {inputs.dtype} cannot be normalised: give floats, or neither mean nor std")
        if inputs.shape[-1] != len(shift):
            raise ValueError(f"inputs have {inputs.shape[-1]} channels, but mean and std have {len(shift)}")
        shape = (1,) * (inputs.ndim - 1) + (-1,)
        return (inputs.astype(jnp.float32) - shift.reshape(shape)) / scale.reshape(shape)

    return normalized


def _checked(inputs):
    leaves = jax.tree.leaves(inputs)
    if not leaves or any(not hasattr(leaf, "dtype") for leaf in leaves):
        raise ValueError(f"inputs must be arrays, not a {type(inputs).__name__}: numpy.asarray makes arrays of lists")
    for leaf in leaves:
        tokens = jnp.issubdtype(leaf.dtype, jnp.integer) and leaf.dtype.itemsize >= 4 and leaf.ndim <= 2
        if not tokens and not jnp.issubdtype(leaf.dtype, jnp.inexact) and leaf.dtype != bool:
            raise ValueError(f"inputs must be floats, but they are {leaf.dtype}: scale the images first")
        if not leaf.size:
            raise ValueError(f"an array {list(leaf.shape)} holds no inputs: a batch needs at least one example")
    return inputs
