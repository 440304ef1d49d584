"""Train low-rank changes of a network's matrices, and leave its weights as they are.

Hu et al., "LoRA: Low-rank adaptation of large language models", 2021, arXiv 2106.09685.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from soups import tree
from soups.arguments import check_within
from soups.formats.tensors import nested
from soups.models.functional import as_variables, in_mode
from soups.names import pattern
from soups.tree import Tree

#: for `learning_rate_rules` of a training: the low-rank changes are trained, and nothing else
LORA_RULES = ((r"lora/.*", 1.0), (r".*", 0.0))


def lora_params(
    model: nn.Module,
    params: Tree,
    inputs: Any,
    key: jax.Array,
    *,
    rank: int = 8,
    only: str = r".*/(query|key|value|out)/kernel",
) -> dict[str, Tree]:
    """Return {"base": params, "lora": ...} with a change for each linear layer, which begins as no change.

        params = lora_params(arch.model(None), start, inputs, jax.random.key(0))
        loss = NextToken(lora_fn(arch.train_apply_fn(None)))
        made = fit(loss, params, data, learning_rate_rules=LORA_RULES, ...)
        member = merge_lora(made["params"])

    A kernel [in, out] gets "a" [in, rank], drawn from ±1/√in, and "b" [rank, out], of zeros; kernels of several axes,
    such as those of heads, keep them. Linear layers are nn.Dense and nn.DenseGeneral on the last axes of their inputs.

    Args:
        model: a Linen network without state.
        params: its weights.
        inputs: a batch of what it takes; nothing is computed.
        key: of the drawn numbers.
        rank: of every change.
        only: a regex for the names of the kernels.

    Raises:
        ValueError: a rank below 1, or no linear layer whose kernel has such a name.
    """
    check_within("rank", rank, "[1, inf)", whole=True)
    shapes = _linear_shapes(model, params, inputs)
    matched = pattern(only, "only")
    chosen = {name: shape for name, shape in shapes.items() if matched.fullmatch(f"{name}/kernel")}
    if not chosen:
        some = ", ".join(f"{name}/kernel" for name in list(shapes)[:3])
        raise ValueError(f"no linear layer matches only={only!r}; kernels of linear layers are {some}, ...")
    keys, leaves = jax.random.split(key, len(chosen)), {}
    for (name, (before, after)), one in zip(chosen.items(), keys, strict=True):
        bound = math.prod(before) ** -0.5
        leaves[f"{name}/a"] = np.asarray(jax.random.uniform(one, (*before, rank), jnp.float32, -bound, bound))
        leaves[f"{name}/b"] = np.zeros((rank, *after), np.float32)
    return {"base": params, "lora": nested(leaves)}


def lora_fn(function: Callable, *, alpha: float = 16.0) -> Callable:
    """Return `function(params, ...)` of a Linen network as one of {"base", "lora"}: y = x W + (alpha / rank) x A B.

    `function`: such as those of `soups.models.apply_fn` and `train_apply_fn`; of the latter the weights that it returns
    are those that it was given. A low-rank change costs two thin products, and no matrix of the size of W.
    """

    def adapted(params: Mapping[str, Tree], *arguments: Any) -> Any:
        with nn.intercept_methods(_added(params["lora"], alpha)):
            result = function(params["base"], *arguments)
        return (result[0], params) if isinstance(result, tuple) else result

    return adapted


def merge_lora(params: Mapping[str, Tree], *, alpha: float = 16.0) -> Tree:
    """Return the weights that {"base", "lora"} stand for, W + (alpha / rank) A B, as arrays on the host."""
    base, changes = tree.flatten(params["base"]), _parts(params["lora"])
    made = {name: np.asarray(leaf) for name, leaf in base.items()}
    for name, (a, b) in changes.items():
        kernel = made[f"{name}/kernel"]
        change = np.tensordot(np.asarray(a, np.float64), np.asarray(b, np.float64), 1) * (alpha / len(b))
        made[f"{name}/kernel"] = (kernel + change).astype(kernel.dtype)
    return nested(made)


def _linear_shapes(model, params, inputs):
    """Return the axes before and behind each linear layer by its name."""
    found, (model, flags) = {}, in_mode(model, train=False)

    def watch(call, args, kwargs, context):
        outputs, layer = call(*args, **kwargs), context.module
        if context.method_name == "__call__" and (count := _contracted(layer)):
            shape = (args[0] if args else kwargs["inputs"]).shape
            rest = len(shape) - count
            found["/".join(layer.path)] = shape[rest:], outputs.shape[rest:]
        return outputs

    with nn.intercept_methods(watch):
        jax.eval_shape(lambda params: model.apply(as_variables(params), inputs, **flags), params)
    return found


def _contracted(layer):
    """Return how many of the last axes of its inputs a linear layer contracts; 0 for another layer."""
    if isinstance(layer, nn.Dense):
        return 1
    if not isinstance(layer, nn.DenseGeneral) or layer.batch_dims:
        return 0
    axes = (layer.axis,) if isinstance(layer.axis, int) else tuple(layer.axis)
    return len(axes) if axes == tuple(range(-len(axes), 0)) else 0


def _added(changes, alpha):
    parts = _parts(changes)

    def intercept(call, args, kwargs, context):
        outputs, layer = call(*args, **kwargs), context.module
        if context.method_name != "__call__" or "/".join(layer.path) not in parts:
            return outputs
        a, b = (part.astype(outputs.dtype) for part in parts["/".join(layer.path)])
        inputs = (args[0] if args else kwargs["inputs"]).astype(outputs.dtype)
        thin = jnp.tensordot(inputs, a, a.ndim - 1)
        return outputs + jnp.tensordot(thin, b, 1) * jnp.asarray(alpha / len(b), outputs.dtype)

    return intercept


def _parts(changes):
    leaves = tree.flatten(changes)
    return {
        name.removesuffix("/a"): (leaf, leaves[f"{name[:-1]}b"]) for name, leaf in leaves.items() if name[-2:] == "/a"
    }
