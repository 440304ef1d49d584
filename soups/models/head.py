"""Find and replace the head of a network: the leaves named head/kernel and head/bias."""

import jax
import jax.numpy as jnp

from soups import tree
from soups.tree import Tree


def head_rule(params: Tree) -> str:
    """Return the regex that selects the head by name: "head/.*", or "params/head/.*" for a network with state.

    Raises:
        ValueError: weights without a module named "head".
    """
    top = sorted({name.removeprefix("params/").split("/")[0] for name in tree.names(params)})
    rule = "params/head/.*" if "params" in params else "head/.*"
    if not any(name.startswith(rule.removesuffix(".*")) for name in tree.names(params)):
        raise ValueError(f"these weights have no module named 'head', only {', '.join(top)}: give a regex for yours")
    return rule


def replace_head(params: Tree, key: jax.Array | None, num_classes: int, zero: bool = True) -> Tree:
    """Return the weights a new head for `num_classes` classes: zeros, or with `zero=False` drawn with `key`.

    A drawn kernel is LeCun-normal, the bias is zero in both cases; the dtype is that of the old head.

    Raises:
        ValueError: no head to replace, fewer than two classes, or no key to draw with.
    """
    head_rule(params)
    if not zero and key is None:
        raise ValueError("a head that is not zero is drawn at random and needs a key")
    if num_classes < 2:
        raise ValueError(f"a head needs at least two classes, not {num_classes}")
    if "params" in params:
        return {**params, "params": replace_head(params["params"], key, num_classes, zero)}
    old = params["head"]["kernel"]
    initializer = jax.nn.initializers.zeros if zero else jax.nn.initializers.lecun_normal()
    kernel = initializer(key, (old.shape[0], num_classes), old.dtype)
    return {**params, "head": {"kernel": kernel, "bias": jnp.zeros((num_classes,), old.dtype)}}
