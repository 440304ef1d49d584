"""Shard weights and training state over a mesh ("pool", "data", "model"), by ordered rules on names."""

import dataclasses
import functools
import inspect
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from soups import tree
from soups.names import refuse
from soups.partition import axes_of, constrained, joined
from soups.train.step import Training

LARGEST = "largest"
MIN_SIZE = 2**16  # elements; to gather a smaller leaf takes longer than to keep it
_AXES = ("data", "model")


def param_shardings(
    params: tree.Tree, mesh: Mesh, rules: tree.Rules = ((".*", LARGEST),), *, min_size: int = MIN_SIZE
) -> tree.Tree:
    """Return the sharding of every leaf, by the first rule whose regex matches its whole name.

    `rules`: [(regex, value)]; a value is a PartitionSpec, or "largest": the longest dimension that "data" and "model"
    together divide is cut over both, which shards weights, gradients and optimizer state fully (FSDP); a leaf without
    such a dimension, or of fewer than `min_size` elements, is on every device. `params`: arrays or
    jax.ShapeDtypeStructs; `mesh`: with some of the axes "pool", "data" and "model".

    Raises:
        ValueError: rules that do not fit the tree, as in `soups.tree.match`; or, all in one message: values that are
            not one of these two, and specs that name an axis which the mesh lacks, have more dimensions than their
            leaf, or do not divide it.

    Rajbhandari et al., "ZeRO: memory optimizations toward training trillion parameter models", 2019, arXiv 1910.02054.
    """
    chosen, problems = tree.match(params, rules), []

    def spec_of(name, leaf, rule):
        spec = _largest(leaf.shape, mesh, min_size) if rule == LARGEST else rule
        problems.extend(f"{name} {problem}" for problem in _problems(leaf.shape, spec, mesh))
        return spec

    # a PartitionSpec is a leaf to JAX; that of a rule may be shared by several leaves
    specs = tree.map_with_names(spec_of, params, chosen)
    refuse(f"rules do not fit the mesh {dict(mesh.shape)}", problems)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda node: isinstance(node, P))


def state_shardings(training: Training, params: tree.Tree, shardings: tree.Tree) -> dict[str, Any]:
    """Return the sharding of every leaf of the training state: moments and averages lie as the weights they belong to.

    What belongs to no single weight, such as the count of steps, is on every device. `params`: arrays or
    jax.ShapeDtypeStructs; `shardings`: theirs, from `param_shardings`.
    """
    return shardings_like(training.abstract_state(params), params, shardings)


def shardings_like(state: tree.Tree, params: tree.Tree, shardings: tree.Tree) -> tree.Tree:
    """Return the sharding of every leaf of a state whose names end with those of the weights that they belong to."""
    weights, of_weight = tree.flatten(params), tree.flatten(shardings)
    everywhere = NamedSharding(mesh_of_shardings(shardings, None), P())

    def of_leaf(name, leaf):
        parts = name.split("/")
        owner = next((end for end in ("/".join(parts[i:]) for i in range(len(parts))) if end in weights), None)
        # an optimizer may keep something smaller than the weight, such as the sums of its rows
        return of_weight[owner] if owner is not None and weights[owner].shape == leaf.shape else everywhere

    return tree.map_with_names(of_leaf, state)


def gathered(training: Training, shardings: tree.Tree, over: tuple[str, ...] = ("data",)) -> Training:
    """Return a training whose loss gathers each weight cut over "data" before its use, and cuts its gradient again.

    Left to itself, XLA lets the cut of a weight decide how activations lie, and exchanges these as well, which are
    larger. `shardings`: of the weights; `over`: the axes over which they are gathered. Over "model" they stay cut by
    default, and their matrix products with them, as are those of weights that are cut over "model" alone.
    """

    def gather(leaf, sharding):
        if "data" not in axes_of(sharding.spec) or not tree.is_float(leaf):
            return leaf
        return _gather(leaf, joined(sharding, over), sharding)

    def loss(params, *rest, **hyperparameters):
        return training.loss(jax.tree.map(gather, params, shardings), *rest, **hyperparameters)

    loss.__signature__ = inspect.signature(training.loss)
    for name in ("prepare", "check", "optional"):
        if hasattr(training.loss, name):
            setattr(loss, name, getattr(training.loss, name))
    return dataclasses.replace(training, loss=loss)


def on_devices(arrays: tree.Tree, shardings) -> tree.Tree:
    """Put arrays that every process holds on the devices; `shardings`: of each, or one for all."""

    def put(array, sharding):
        host = np.asarray(array)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    if isinstance(shardings, jax.sharding.Sharding):
        return jax.tree.map(lambda array: put(array, shardings), arrays)
    return jax.tree.map(put, arrays, shardings)


def place(params: tree.Tree, shardings: tree.Tree) -> tree.Tree:
    """Put weights that every process holds, or that are sharded already, on the devices; each takes its own shards."""
    if all(getattr(leaf, "is_fully_addressable", True) for leaf in jax.tree.leaves(params)):
        return on_devices(params, shardings)
    return jax.device_put(params, shardings)


def mesh_of_shardings(shardings: tree.Tree, mesh: Mesh | None) -> Mesh:
    """Return the mesh of shardings; a ValueError if they are not all of one, or of another than `mesh`."""
    if wrong := [leaf for leaf in jax.tree.leaves(shardings) if not isinstance(leaf, NamedSharding)]:
        raise ValueError(f"shardings must be as param_shardings gives them, for each weight, not {wrong[0]!r:.200}")
    meshes = {leaf.mesh for leaf in jax.tree.leaves(shardings)}
    if len(meshes | ({mesh} - {None})) > 1:
        raise ValueError(f"the shardings are not all on the given mesh: {', '.join(map(str, meshes))} and {mesh}")
    return meshes.pop()


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(leaf, whole, cut):
    return constrained(leaf, whole)


_gather.defvjp(
    lambda leaf, whole, cut: (_gather(leaf, whole, cut), None),
    lambda whole, cut, _, gradient: (constrained(gradient, cut),),
)


def _largest(shape, mesh, min_size):
    axes = tuple(axis for axis in _AXES if mesh.shape.get(axis, 1) > 1)
    count = math.prod(mesh.shape[axis] for axis in axes)
    fitting = [dimension for dimension, size in enumerate(shape) if size % count == 0]
    if not axes or not fitting or math.prod(shape) < min_size:
        return P()
    longest = max(fitting, key=lambda dimension: shape[dimension])
    return P(*[None] * longest, axes)


def _problems(shape, spec, mesh):
    if not isinstance(spec, P):
        yield f"has the rule {spec!r}, which is neither a PartitionSpec nor {LARGEST!r}"
        return
    if len(spec) > len(shape):
        yield f"has {len(shape)} dimensions, but {spec} has {len(spec)}"
        return
    for size, axes in zip(shape, spec, strict=False):
        axes = () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)
        if unknown := [axis for axis in axes if axis not in mesh.axis_names]:
            yield f"is to be sharded over {unknown[0]!r}, an axis that the mesh does not have"
        elif size % (count := math.prod(mesh.shape[axis] for axis in axes)):
            yield f"has a dimension of {size}, which {count} devices do not divide: {spec}"
