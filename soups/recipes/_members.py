"""Take members as users have them: a sequence of trees, a mapping from names to trees, or a pool."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from soups import tree
from soups.recipes import _leaves

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
        return check_finite(result, members, trees)

    if hasattr(members, "merge_leaves"):
        return members.merge_leaves(checked)
    return checked(list(members.values()))


def check_finite(result: tree.Tree, names: Iterable[str], trees: Sequence[tree.Tree]) -> tree.Tree:
    """Give `result` back unless it holds NaN or infinity (traced results are not looked at).

    Raises:
        ValueError: it does; the members and leaves at fault are named.
    """
    if not _leaves.traced(result) and not tree.all_finite(result):
        lines = _blame(names, trees)
        overflows = f"  no member does, the sum overflows in: {', '.join(tree.nonfinite_names(result))}"
        raise ValueError(_DIVERGED + "\n".join(lines or [overflows]))
    return result


def check_all_finite(names: Iterable[str], trees: Sequence[tree.Tree]) -> None:
    """Look at all members before they are merged by a method that would pass over a NaN, as comparisons do.

    Raises:
        ValueError: one holds NaN or infinity; the members and leaves at fault are named.
    """
    if not _leaves.traced(trees) and (lines := _blame(names, trees)):
        raise ValueError(_DIVERGED + "\n".join(lines))


_DIVERGED = "NaN or infinity in the members; leave out those that diverged:\n"


def _blame(names, trees):
    found = {name: tree.nonfinite_names(member) for name, member in zip(names, trees, strict=True)}
    return [f"  member {name}: {', '.join(bad)}" for name, bad in found.items() if bad]
