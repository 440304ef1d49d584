"""Take members as users have them: a sequence of trees, a mapping from names to trees, or a pool."""

import logging
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from soups import tree

Members = Sequence[tree.Tree] | Mapping[str, tree.Tree]

logger = logging.getLogger("soups")


def as_mapping(members: Members) -> Mapping[str, tree.Tree]:
    """Give members by name; those of a sequence are called "0", "1", ...

    A pool's non-finite members are left out, with a warning that names them.

    Raises:
        ValueError: there are no members.
    """
    usable = getattr(members, "usable", members)
    if len(usable) < len(members):
        left_out = [name for name in members if name not in usable]
        logger.warning("left out, because they hold NaN or infinity: %s", ", ".join(left_out))
    if not len(usable):
        raise ValueError("no members were given: at least one (finite) member is needed")
    if isinstance(usable, Mapping):
        return usable
    return {str(index): member for index, member in enumerate(usable)}


def merge(members: Mapping[str, tree.Tree], recipe: Callable[[list[tree.Tree]], tree.Tree]) -> tree.Tree:
    """Apply a leaf-separable recipe; a pool streams it through its files, with the memory of a few leaves.

    Raises:
        ValueError: the result holds NaN or infinity; the members and leaves at fault are named.
    """

    def checked(trees):
        with np.errstate(over="ignore", invalid="ignore"):  # reported below, with names
            result = recipe(trees)
        leaves = jax.tree.leaves(result)
        if not any(isinstance(leaf, jax.core.Tracer) for leaf in leaves) and not tree.all_finite(result):
            raise ValueError(_blame(list(members), trees, result))
        return result

    if hasattr(members, "merge_leaves"):
        return members.merge_leaves(checked)
    return checked(list(members.values()))


def _blame(names, trees, result):
    lines = []
    for name, member in zip(names, trees, strict=True):
        if bad := tree.nonfinite_names(member):
            lines.append(f"  member {name}: {', '.join(bad)}")
    if not lines:
        lines.append(f"  no member does, the sum overflows in: {', '.join(tree.nonfinite_names(result))}")
    return "NaN or infinity in the members; leave out those that diverged:\n" + "\n".join(lines)
