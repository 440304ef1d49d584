"""Use Flax NNX models: their weights as a plain nested dict, their call as a pure function of it."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util

from soups import tree
from soups.models.functional import IN_TRAINING, mode_flags, normalizer, wrong_mode
from soups.tree import Tree

_NO_WEIGHTS = (nnx.RngState, nnx.Cache, nnx.Intermediate, nnx.Perturbation)


def from_nnx(
    model: nnx.Module, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> tuple[Callable, Tree]:
    """Return (apply, params) of an NNX model: `apply(params, inputs) -> logits` in float32, in evaluation mode.

    `params` is a nested plain dict with string keys ("layers/0/kernel"). Where the model has more than parameters, it
    is {"params": ..., "batch_stats": ..., ...}, with an entry for each further type of variable, your own too, so that
    a soup averages the statistics as well. Keys of random numbers, caches and intermediates are no weights: they are
    carried inside `apply`, as they are now. `apply` works under jit, vmap and grad; `model` is not changed. Its mode is
    set by `eval`, and by the flags of `soups.models.functional.IN_TRAINING` that its call takes or its parts have.

    Args:
        mean, std: as for `soups.models.apply_fn`; inputs are checked as there, with the same errors.
    """
    normalized = normalizer(mean, std)
    evaluated, flags = _in_mode(model, train=False)
    graph, weights, rest = _split(evaluated)
    template = jax.eval_shape(lambda: weights)

    def apply(params, inputs):
        network = nnx.merge(graph, _join(template, params), rest)
        return _called(network, normalized(inputs), flags, train=False).astype(jnp.float32)

    return apply, _plain(weights)


def nnx_train_apply_fn(
    model: nnx.Module,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    *,
    frozen_statistics: bool = False,
) -> Callable:
    """Return `train_apply(params, inputs, key) -> (logits, params)` of an NNX model, in training mode.

    As `soups.models.train_apply_fn` for Linen, with the same errors; `params` are those of `from_nnx`. All streams of
    random numbers, such as those of dropout, begin with the key; `model` is not changed.
    """
    normalized = normalizer(mean, std)
    training, flags = _in_mode(model, train=True)
    if frozen_statistics:
        for layer in _batch_norms(training).values():
            layer.__class__ = _with_running_statistics(type(layer))
    graph, weights, rest = _split(training)
    template = jax.eval_shape(lambda: weights)
    streams = sorted({node.key.tag for _, node in nnx.iter_graph(training) if isinstance(node, nnx.RngStream)})

    def train_apply(params, inputs, key):
        network = nnx.merge(graph, _join(template, params), rest)
        keys = {tag: jax.random.fold_in(key, number) for number, tag in enumerate(streams)}
        nnx.reseed(network, policy="match_shape", **keys)
        statistics = _moving(network, nnx.BatchStat)
        options = {"train": True, "frozen_statistics": frozen_statistics}
        logits = _called(network, normalized(inputs), flags, **options).astype(jnp.float32)
        moved = any(old is not new for old, new in zip(statistics, _moving(network, nnx.BatchStat), strict=True))
        if frozen_statistics and moved:
            raise ValueError("only the statistics of Flax's BatchNorm can be frozen: another layer moves its own")
        return logits, _plain(_split(network)[1])

    return train_apply


def into_nnx(model: nnx.Module, params: Tree) -> nnx.Module:
    """Make a copy of `model` with the weights `params`, which have the structure that `from_nnx` gives.

    A ValueError lists other names or shapes.
    """
    graph, weights, rest = _split(nnx.clone(model))
    return nnx.merge(graph, _join(weights, params), rest)


def batch_statistics(model: nnx.Module) -> Callable:
    """Return `measure(params, inputs) -> (batch_stats, paths of the BatchNorms that were called)` of this batch."""
    measuring, flags = _in_mode(model, train=True)
    measuring.set_attributes(rate=0.0, dropout_rate=0.0, raise_if_not_found=False)
    for layer in _batch_norms(measuring).values():
        layer.momentum, layer.use_running_average = 0.0, False
    graph, weights, rest = _split(measuring)
    template = jax.eval_shape(lambda: weights)

    def measure(params, inputs):
        network = nnx.merge(graph, _join(template, params), rest)
        layers = _batch_norms(network)
        before = {path: layer.mean.get_value() for path, layer in layers.items()}
        network(inputs, **flags)
        called = {path for path, layer in layers.items() if layer.mean.get_value() is not before[path]}
        return _plain(_split(network)[1])["batch_stats"], called

    return measure


def _in_mode(model, *, train):
    """Return a copy in training or in evaluation mode, and the flags that its call takes."""
    if not isinstance(model, nnx.Module):
        raise ValueError(f"the network must be an NNX module, not a {type(model).__name__}")
    model = nnx.clone(model)
    (model.train if train else model.eval)()
    fields = {name: value is train for name, value in IN_TRAINING.items() if name != "train"}  # which is a method
    model.set_attributes(**fields, raise_if_not_found=False)
    return model, mode_flags(type(model), train=train)


def _called(network, inputs, flags, *, train, frozen_statistics=False):
    """Call a network, and see that it is in its mode where no flag said so: Dropout and BatchNorm move in training."""
    modules = [module for _, module in nnx.iter_modules(network)]
    before = _moving(network)
    outputs = network(inputs, **flags)
    moved = any(old is not new for old, new in zip(before, _moving(network), strict=True))
    drops = any(getattr(one, "rate", 0) or getattr(one, "dropout_rate", 0) for one in modules)
    norms = not frozen_statistics and any(isinstance(one, nnx.BatchNorm) for one in modules)
    if not flags and moved is not train and (drops or norms):
        raise wrong_mode("Dropout and BatchNorm", train)
    return outputs


def _moving(network, *kinds):
    state = nnx.state(network, nnx.Any(*(kinds or (nnx.BatchStat, nnx.RngCount))))
    return [variable.get_value() for _, variable in nnx.to_flat_state(state)]


@functools.cache
def _with_running_statistics(kind):
    """Return a BatchNorm that normalises by its running statistics, whatever it is told."""

    def call(self, x, use_running_average=None, **options):
        return kind.__call__(self, x, use_running_average=True, **options)

    return type(kind.__name__, (kind,), {"__call__": call})


def _batch_norms(model):
    modules = nnx.iter_modules(model)
    return {"/".join(map(str, path)): module for path, module in modules if isinstance(module, nnx.BatchNorm)}


def _split(model):
    """Return the model's graph, its weights by collection, and its other state, in pure dicts.

    An nnx.State refuses to be updated under vmap of grad.
    """
    graph, weights, rest = nnx.split(model, nnx.Not(nnx.Any(*_NO_WEIGHTS)), ...)
    known, flat = {nnx.Param: "params", nnx.BatchStat: "batch_stats"}, {}
    for path, one in nnx.to_flat_state(weights):
        names = (name for kind, name in known.items() if isinstance(one, kind))
        flat[next(names, type(one).__name__), *path] = one.get_value()
    return graph, {"params": {}} | traverse_util.unflatten_dict(flat), nnx.to_pure_dict(rest)


def _plain(collections):
    """Return collections as weights: with string keys, and parameters that are all there is by themselves."""
    # the layers of a list have integers for keys, which no file format and no regex knows
    named = _string_keys(collections)
    return named if len(named) > 1 else named["params"]


def _join(template, params):
    tree.check_same_structure([_plain(template), params], ["model", "params"], dtypes=False)
    values = traverse_util.flatten_dict(params if len(template) > 1 else {"params": params})
    paths = traverse_util.flatten_dict(template)
    return traverse_util.unflatten_dict({path[1:]: values[tuple(map(str, path))] for path in paths})


def _string_keys(node):
    return {str(key): _string_keys(child) for key, child in node.items()} if isinstance(node, dict) else node
