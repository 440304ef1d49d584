"""Tell apart what trees hold."""

from typing import Any

import jax

from soups import tree


def split(params: tree.Tree) -> tuple[tree.Tree, tree.Tree]:
    """Give (floats, rest), with None in the places of the other part; `soups.tree.combine` undoes it."""
    floats = jax.tree.map(lambda leaf: leaf if tree.is_float(leaf) else None, params)
    return floats, jax.tree.map(lambda leaf: None if tree.is_float(leaf) else leaf, params)


def traced(values: Any) -> bool:
    """Say whether the numbers are not known yet, because a JAX transformation is under way."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def namespace(values: Any):
    """Give numpy if all leaves of a tree are NumPy's, else jax.numpy."""
    return tree.namespace(jax.tree.leaves(values))
