"""Say over which axes of a mesh arrays are cut, and join what is cut."""

from collections.abc import Collection

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


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
