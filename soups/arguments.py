"""Take what users give: members as a sequence of trees, a mapping by name or a pool, and what is given for each."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from soups import tree
from soups.names import did_you_mean

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
    if not tree.traced(result) and not tree.all_finite(result):
        lines = _blame(names, trees)
        overflows = f"  no member does, the sum overflows in: {', '.join(tree.nonfinite_names(result))}"
        raise ValueError(_DIVERGED + "\n".join(lines or [overflows]))
    return result


def check_all_finite(names: Iterable[str], trees: Sequence[tree.Tree]) -> None:
    """Look at all members before they are merged by a method that would pass over a NaN, as comparisons do.

    Raises:
        ValueError: one holds NaN or infinity; the members and leaves at fault are named.
    """
    if not tree.traced(trees) and (lines := _blame(names, trees)):
        raise ValueError(_DIVERGED + "\n".join(lines))


_DIVERGED = "NaN or infinity in the members; leave out those that diverged:\n"


def _blame(names, trees):
    found = {name: tree.nonfinite_names(member) for name, member in zip(names, trees, strict=True)}
    return [f"  member {name}: {', '.join(bad)}" for name, bad in found.items() if bad]


# --- What is given once for each member ---


def aligned(given: Any, members: Mapping[str, Any], kind: str) -> list[Any]:
    """List what is given for each member: by the members' names, or as many as there are, in their order.

    Raises:
        ValueError: other names, or another number; `kind` says in the plural of what.
    """
    if not isinstance(given, Mapping):
        given = list(given)
        if len(given) != len(members):
            raise ValueError(f"{len(members)} members need {len(members)} {kind}, but {len(given)} were given")
        return given
    lines = [f"  - {name} is missing" for name in members if name not in given]
    lines += [f"  + {name} is extra{did_you_mean(name, members)}" for name in given if name not in members]
    if lines:
        raise ValueError(f"{kind} must be given by the names of the members:\n" + "\n".join(lines))
    return [given[name] for name in members]


def weights_of(weights: Any, members: Mapping[str, Any]) -> list[Any]:
    """List the weight of each member, 1 without `weights`.

    Raises:
        ValueError: as `aligned`; a weight that is negative or not finite; all weights zero.
    """
    if weights is None:
        return [1.0] * len(members)
    weights = aligned(weights, members, "weights")
    if tree.traced(weights):
        return weights
    numbers = np.asarray([float(weight) for weight in weights])
    if not np.isfinite(numbers).all() or (numbers < 0).any() or not numbers.any():
        raise ValueError(f"weights must be finite, not negative and not all zero, but they are {numbers.tolist()}")
    return weights
