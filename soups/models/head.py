"""Find and replace the head of a network, mostly the leaves named head/kernel and head/bias."""

import jax
import numpy as np

from soups import tree
from soups.names import pattern
from soups.tree import Tree


def head_rule(params: Tree) -> str:
    """Return the regex that selects the head by name: "head/.*", or "params/head/.*" for a network with state.

    Weights without a module named "head" are a ValueError.
    """
    top = sorted({name.removeprefix("params/").split("/")[0] for name in tree.names(params)})
    rule = "params/head/.*" if "params" in params else "head/.*"
    if not any(name.startswith(rule.removesuffix(".*")) for name in tree.names(params)):
        raise ValueError(f"these weights have no module named 'head', only {', '.join(top)}: give a regex for yours")
    return rule


def replace_head(
    params: Tree, key: jax.Array | None, num_classes: int, zero: bool = True, *, head: str | None = None
) -> Tree:
    """Return the weights a new head for `num_classes` classes: zeros, or with `zero=False` drawn with `key`.

    A drawn kernel is LeCun-normal, the bias is zero in both cases; the dtypes are those of the old head.

    Args:
        head: the place of the head in the weights, such as "classifier", or a regex for the names of its kernel
            [features, classes] and bias, if it has one; default: that of `head_rule`.

    Raises:
        ValueError: no head to replace, or leaves that are not one kernel and its bias; fewer than two classes; no key
            to draw the head with.
    """
    rule = pattern(head_rule(params) if head is None else head, "head")
    below = f"{rule.pattern}/"
    old = {n: leaf for n, leaf in tree.flatten(params).items() if rule.fullmatch(n) or n.startswith(below)}
    if sorted(leaf.ndim for leaf in old.values()) not in ([2], [1, 2]):
        shapes = ", ".join(f"{name} {leaf.shape}" for name, leaf in old.items()) or "no leaf"
        raise ValueError(
            f"a head must be a kernel [features, classes], with or without a bias, but {rule.pattern!r} is {shapes}"
        )
    if not zero and key is None:
        raise ValueError("a head that is drawn at random needs a key")
    if not isinstance(num_classes, int | np.integer) or num_classes < 2:
        raise ValueError(f"a head needs at least two classes, not {num_classes!r}")
    draw = jax.nn.initializers.zeros if zero else jax.nn.initializers.lecun_normal()

    def leaf(name, value):
        if name not in old:
            return value
        make = draw if value.ndim == 2 else jax.nn.initializers.zeros
        return make(key, (*value.shape[:-1], num_classes), value.dtype)

    return tree.map_with_names(leaf, params)
