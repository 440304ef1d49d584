"""Say over which axes of a mesh arrays are cut, and join what is cut."""

from collections.abc import Collection
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def check_mesh(mesh: Any, *axes: str) -> None:
    """See that a mesh, where one is given, is one and has these axes, or raise a ValueError."""
    if mesh is None:
        return
    if not isinstance(mesh, Mesh):
        raise ValueError(f"mesh must be a jax.sharding.Mesh, not a {type(mesh).__name__}")
    if missing := [axis for axis in axes if axis not in mesh.axis_names]:
        axes = ", ".join(map(repr, mesh.axis_names))
        raise ValueError(f"the mesh needs an axis {missing[0]!r}; it has {axes}")


def axes_of(spec: PartitionSpec) -> set[str]:
    """Return the axes over which a PartitionSpec cuts."""
    return set(jax.tree.leaves(tuple(spec)))


def joined(sharding: NamedSharding, over: Collection[str]) -> NamedSharding:
    """Return the sharding of an array that is gathered over some axes and stays cut over the others."""
    parts = [tuple(axis for axis in jax.tree.leaves(part) if axis not in over) for part in sharding.spec]
    return NamedSharding(sharding.mesh, PartitionSpec(*[part or None for part in parts]))


def constrained(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
    """Have XLA lay out an array so, also within `jax.shard_map`, whose mesh is that of the axes that are left there."""
    inside = AxisType.Manual in jax.sharding.get_abstract_mesh().axis_types
    return jax.lax.with_sharding_constraint(leaf, sharding.spec if inside else sharding)
