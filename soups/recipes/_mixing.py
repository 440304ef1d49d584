"""Mix trees leaf by leaf with coefficients [L or 1, K], row l for leaf l, and descend along the gradient of these."""

from collections.abc import Callable, Sequence

import numpy as np

from soups import tree
from soups.lazy import jax


def by_rows(function: Callable, trees: Sequence[tree.Tree], coefficients: np.ndarray) -> tree.Tree:
    """Return the tree of `function(leaves of all trees, their row)`."""
    leaves, structure = jax.tree.flatten(trees[0])
    rows = np.broadcast_to(coefficients, (len(leaves), coefficients.shape[1]))
    columns = zip(*map(jax.tree.leaves, trees), strict=True)
    return jax.tree.unflatten(structure, map(function, columns, rows))


def gradient(grads: tree.Tree, trees: Sequence[tree.Tree], number: int) -> np.ndarray:
    """Return <g_l, θ_{i,l}> in `number` rows, one with the sums or one for each leaf; leaves without gradient are 0."""
    flat_grads = tree.flatten(jax.device_get(grads) if tree.namespace_of(trees) is np else grads)
    columns = [
        [
            tree.dot(flat_grads[name], leaf) if name in flat_grads else np.float32(0)
            for name, leaf in tree.flatten(one).items()
        ]
        for one in trees
    ]
    products = np.asarray(jax.device_get(columns), np.float32).T
    return products.sum(0, keepdims=True) if number == 1 else products


def stepping(optimizer) -> Callable:
    """Return the compiled step of an optimizer: (gradients, state, parameters) -> (parameters, state)."""
    import optax  # takes a third of a second to import; most of this library does without

    def step(grads, state, params):
        # optax mixes Python floats with integer counts, which a program with strict promotion would refuse
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

    return jax.jit(step)


def by_leaf(coefficients: np.ndarray, like: tree.Tree, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the coefficients by the names of leaf and member."""
    rows = dict(zip(tree.names(like), coefficients, strict=True))
    return {leaf: {name: float(value) for name, value in zip(names, row, strict=True)} for leaf, row in rows.items()}
