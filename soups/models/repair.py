"""Repair soups whose activations have lost their variance, as those of aligned independent networks do."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from soups import arguments, tree
from soups.models.batch_stats import reestimate_batch_stats, stats_fn
from soups.models.functional import as_variables, in_mode, normalizer
from soups.names import did_you_mean, pattern
from soups.tree import Tree

TRUNK = r"(?!head$).*"  # the head is not repaired: the scale of its logits is a matter of calibration
LAYERS = (nn.Dense, nn.Conv)


def repair(
    model: nn.Module,
    soup: Tree,
    members: Sequence[Tree] | Mapping[str, Tree],
    batches: Iterable,
    *,
    weights: Sequence[float] | Mapping[str, float] | None = None,
    layers: str = TRUNK,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Tree:
    """Return a soup the statistics of activations that lie between those of its members: REPAIR.

    With mean m_l and standard deviation s_l of each unit of a layer's output over all data and places, the goals are
    m*_l = Σ_i w_i m_l(θ_i) and s*_l = Σ_i w_i s_l(θ_i). Going up, each layer of the soup is made to give
    (y − m_l) s*_l / s_l + m*_l, by its kernel and bias. Statistics of the soup are measured with the layers below
    repaired for the same batch, and pooled as in `reestimate_batch_stats`: exact from a single batch, so prefer large
    ones. A network with BatchNorm has its statistics re-estimated instead.

    Args:
        model: a Linen module; in evaluation mode.
        soup: the averaged weights.
        members: the weights that were averaged, after alignment.
        batches: inputs, to be read once for each member and once for the soup: a list.
        weights: w, one float for each member, or by name; default equal ones.
        layers: a regex of the paths ("layer_0", "stage_0/conv") of the Dense and Conv layers to repair; default all
            but the head.
        mean, std: those of `apply_fn`; inputs are normalised and checked as there, with the same errors.

    Raises:
        ValueError: no members or no batches; one array in their place; batches that can be read only once; weights
            whose structures differ; NaN or infinity; `weights` that are not one for each member, or only zeros; layers
            that do not exist, have no bias, or are called more than once.

    Jordan et al., "REPAIR: REnormalizing permuted activations for interpolation repair", 2022, arXiv:2211.08403.
    """
    members = dict(arguments.as_mapping(members))
    weights = _check(soup, members, batches, weights)
    if "batch_stats" in soup:
        return reestimate_batch_stats(stats_fn(model, mean, std), soup, batches)
    normalized = normalizer(mean, std)
    measure = _measure(model, layers, normalized)
    _check_layers(jax.eval_shape(measure, {"weights": soup}, _first(batches)), layers, soup, biases=True)
    measured = [_statistics(measure, params, batches) for params in members.values()]
    goals = {path: _goal([statistics[path] for statistics in measured], weights) for path in measured[0]}
    statistics = _statistics(_measure(model, layers, normalized, goals), soup, batches)
    return _fold(soup, statistics, goals)


def activation_statistics(
    model: nn.Module,
    params: Tree,
    batches: Iterable,
    *,
    layers: str = ".*",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> dict[str, dict]:
    """Measure the mean and biased variance of each unit of the Dense and Conv layers' outputs.

    Gives {"layer_0": {"mean": [units], "var": [units]}, ...} over all data and places, before the nonlinearity, pooled
    over batches in float64 and given in float32. Arguments and errors are those of `repair`.
    """
    measure = _measure(model, layers, normalizer(mean, std))
    _check_layers(jax.eval_shape(measure, {"weights": params}, _first(batches)), layers, params, biases=False)
    return _statistics(measure, params, batches)


def _check(soup, members, batches, weights):
    if iter(arguments.check_batches(batches)) is batches:
        raise ValueError("batches are read once for each member: give a list, not an iterator")
    labels, trees = ["soup", *members], [soup, *members.values()]
    tree.check_same_structure(trees, labels, dtypes=False)
    for label, params in zip(labels, trees, strict=True):
        if bad := tree.nonfinite_names(params):
            raise ValueError(f"NaN or infinity in member {label}: {', '.join(bad)}")
    weights = arguments.per_member(1 / len(members) if weights is None else weights, members, "weights")
    return arguments.check_weights(weights)


def _check_layers(found, layers, params, *, biases):
    names = {name.removeprefix("params/") for name in tree.names(params)}
    if not found:
        paths = sorted({name.rpartition("/")[0] for name in names})
        raise ValueError(f"layers {layers!r} match no Dense or Conv layer{did_you_mean(layers, paths)}")
    if missing := [path for path in found if biases and f"{path}/bias" not in names]:
        raise ValueError(
            f"these layers have no bias to take the shift: {', '.join(missing)}; make them with use_bias=True, or "
            "leave them out by `layers`"
        )


def _first(batches):
    inputs = next(iter(arguments.check_batches(batches)), None)
    if inputs is None:
        raise ValueError("no batches were given: statistics of activations need at least one")
    return inputs


def _statistics(measure, params, batches):
    # pooled as BatchNorm's statistics are, whose place in the weights these take
    holder = {"weights": params}
    shapes = jax.eval_shape(measure, holder, _first(batches))
    holder |= {"batch_stats": jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)}
    return jax.device_get(reestimate_batch_stats(measure, holder, batches)["batch_stats"])


def _measure(model: nn.Module, layers: str, normalized: Callable, goals: Mapping | None = None) -> Callable:
    """Return `measure({"weights": params}, inputs) -> {path: {"mean", "var"}}` of one batch.

    With `goals` the layers are repaired on the way.
    """
    matched, (model, flags) = pattern(layers, "layers"), in_mode(model, train=False)

    def measure(holder, inputs):
        found = {}

        def intercept(call, args, kwargs, context):
            outputs = call(*args, **kwargs)
            path = "/".join(context.module.path)
            is_layer = context.method_name == "__call__" and isinstance(context.module, LAYERS)
            if not is_layer or not matched.fullmatch(path):
                return outputs
            if path in found:
                raise ValueError(f"layer {path} is called more than once, so it has no statistics of its own")
            wide = outputs.astype(jnp.float32)
            axes = tuple(range(wide.ndim - 1))
            found[path] = {"mean": jnp.mean(wide, axes), "var": jnp.var(wide, axes)}
            return outputs if goals is None else _towards(outputs, found[path], goals[path])

        with nn.intercept_methods(intercept):
            model.apply(as_variables(holder["weights"]), normalized(inputs), **flags)
        return found

    return measure


def _towards(outputs, moments, goal):
    scale, shift = _affine(moments, goal, jnp)
    shape = (1,) * (outputs.ndim - 1) + (-1,)
    return (outputs.astype(jnp.float32) * scale.reshape(shape) + shift.reshape(shape)).astype(outputs.dtype)


def _goal(measured, weights):
    pairs = list(zip(measured, weights, strict=True))
    return {
        "mean": sum(np.float32(weight) * moments["mean"] for moments, weight in pairs),
        "std": sum(np.float32(weight) * np.sqrt(moments["var"]) for moments, weight in pairs),
    }


def _affine(moments, goal, xp):
    """Return scale and shift with scale · y + shift of the goal's statistics; a constant unit is only shifted."""
    # below this share of the mean's square a variance in float32 is rounding
    alive = moments["var"] > 1e-10 * moments["mean"] ** 2 + 1e-30
    scale = xp.where(alive, goal["std"] / xp.sqrt(xp.where(alive, moments["var"], 1)), 1)
    return scale, goal["mean"] - scale * moments["mean"]


def _fold(soup, statistics, goals):
    affine = {path: _affine(statistics[path], goals[path], np) for path in goals}

    def leaf(name, value):
        path, _, kind = name.removeprefix("params/").rpartition("/")
        if path not in affine or kind not in ("kernel", "bias"):
            return value
        scale, shift = affine[path]
        wide = tree.widen(value)
        scale, shift = scale.astype(wide.dtype), shift.astype(wide.dtype)
        if kind == "kernel":
            return (wide * scale.reshape((1,) * (value.ndim - 1) + (-1,))).astype(value.dtype)
        return (wide * scale + shift).astype(value.dtype)

    return tree.map_with_names(leaf, soup)
