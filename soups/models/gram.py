"""Measure the Gram matrices of what goes into the linear layers of a Linen network."""

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from soups.arguments import check_batches
from soups.models.functional import as_variables, in_mode, normalizer
from soups.names import pattern
from soups.tree import Tree


def linear_inputs_gram(module: nn.Module, params: Tree, batches: Iterable, **settings: Any) -> dict[str, jax.Array]:
    """Measure XᵀX / rows of the inputs X [rows, in] of every linear layer, for `soups.recipes.regmean`.

    This is gram_fn(module, **settings)(params, batches); `gram_fn` itself compiles once for all members.
    """
    return gram_fn(module, **settings)(params, batches)


def gram_fn(
    module: nn.Module,
    *,
    only: str = ".*",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **arguments: Any,
) -> Callable[[Tree, Iterable], dict[str, jax.Array]]:
    """Return `grams(params, batches) -> {name of a kernel: XᵀX / rows}`, [in, in] in float32.

    Linear layers are nn.Dense and nn.DenseGeneral without batch_dims, wherever they are in the module; `name` is that
    of the kernel's leaf in `params`, with or without "params/". Every position is a row, padding too, and a layer that
    is called more than once counts all its calls. Contracted axes are flattened in the order of the kernel's first
    axes. The mean is over all rows of all batches, kept as a running mean, in float32.

    Args:
        module: in evaluation mode, and called as module(inputs, **arguments).
        only: a regex for the names of the kernels to measure; the matrices of a large network are larger than itself.
        mean, std: those of `apply_fn`; inputs are normalised and checked as there, with the same errors.

    Raises (when called):
        ValueError: no batches; no linear layer matches; layers inside nn.scan or nn.vmap, whose kernels are stacked.

    Jin et al., "Dataless knowledge fusion by merging weights of language models", 2022, arXiv 2212.09849.
    """
    matched, called, normalized = pattern(only, "only"), set(), normalizer(mean, std)
    module, flags = in_mode(module, train=False)

    def sums(params, inputs):
        prefix = ("params",) if "params" in params else ()

        def interceptor(call, args, kwargs, context):
            outputs = call(*args, **kwargs)
            layer = context.module
            name = "/".join((*prefix, *layer.path, "kernel"))
            linear = isinstance(layer, nn.Dense) or (isinstance(layer, nn.DenseGeneral) and not layer.batch_dims)
            if context.method_name == "__call__" and linear and matched.fullmatch(name):
                called.add(name)
                _sow(layer, _rows(layer, args[0] if args else kwargs["inputs"]))
            return outputs

        with nn.intercept_methods(interceptor):
            _, state = module.apply(as_variables(params), normalized(inputs), mutable=["grams"], **flags | arguments)
        return _by_kernel(state.get("grams", {}), prefix)

    measure = jax.jit(sums)

    def grams(params, batches):
        mean = None
        for inputs in check_batches(batches):
            batch = measure(params, inputs)
            _check(called, batch, only)
            mean = _fold(jax.tree.map(jnp.zeros_like, batch) if mean is None else mean, batch)
        if mean is None:
            raise ValueError("no batches were given: Gram matrices need at least one")
        return {name: entry["gram"] for name, entry in mean.items()}

    return grams


def _rows(layer, inputs):
    axes = getattr(layer, "axis", -1)
    axes = (axes,) if isinstance(axes, int) else tuple(axes)
    last = jnp.moveaxis(inputs.astype(jnp.float32), axes, range(-len(axes), 0))
    return last.reshape(-1, int(np.prod(last.shape[last.ndim - len(axes) :])))


def _sow(layer, rows):
    # as variables of the layer, which come out of nn.remat; a tracer put aside would not
    entry = {"gram": jnp.matmul(rows.T, rows, precision="highest"), "rows": jnp.float32(len(rows))}
    for name, value in entry.items():
        layer.sow("grams", name, value, reduce_fn=operator.add, init_fn=lambda: 0)


def _by_kernel(node, path):
    if "gram" in node and not isinstance(node["gram"], dict):
        return {"/".join((*path, "kernel")): {"gram": node["gram"], "rows": node["rows"]}}
    return {name: entry for key, child in node.items() for name, entry in _by_kernel(child, (*path, key)).items()}


@jax.jit
def _fold(mean, batch):
    def fold(old, new):
        rows = old["rows"] + new["rows"]
        return {"gram": old["gram"] + (new["gram"] - new["rows"] * old["gram"]) / rows, "rows": rows}

    return {name: fold(mean[name], batch[name]) for name in batch}


def _check(called, batch, only):
    if not called:
        raise ValueError(f"no kernel of an nn.Dense or nn.DenseGeneral matches {only!r}")
    if lost := sorted(called - set(batch)):
        raise ValueError(
            f"inputs inside nn.scan or nn.vmap, and those of stacked kernels, cannot be measured: {', '.join(lost)}; "
            "leave them out with `only`"
        )
