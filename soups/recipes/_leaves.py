"""Tell apart what leaves hold."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soups.tree import Tree


def is_float(leaf) -> bool:
    """Say whether a leaf holds floats, which are mixed, or integers and booleans, which are copied."""
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def split(params: Tree) -> tuple[Tree, Tree]:
    """Give (floats, rest), with None in the places of the other part; `soups.tree.combine` undoes it."""
    floats = jax.tree.map(lambda leaf: leaf if is_float(leaf) else None, params)
    return floats, jax.tree.map(lambda leaf: None if is_float(leaf) else leaf, params)


def traced(values: Any) -> bool:
    """Say whether the numbers are not known yet, because a JAX transformation is under way."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def namespace(values: Any):
    """Give numpy if all leaves are NumPy's, else jax.numpy."""
    return np if all(isinstance(leaf, np.ndarray | np.generic) for leaf in jax.tree.leaves(values)) else jnp
