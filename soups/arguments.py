"""Take what users give: members as a sequence of trees, a mapping by name or a pool, and what is given for each."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from soups import tree
from soups.names import check_name, differences

Members = Iterable[tree.Tree] | Mapping[str, tree.Tree]

logger = logging.getLogger("soups")


def as_mapping(members: Members) -> Mapping[str, tree.Tree]:
    """Return members by name; those of a sequence are called "0", "1", ...

    A pool's non-finite members are left out, with a warning that names them.

    Raises:
        ValueError: there are no members, or what is given is one tree, or the leaves of one.
    """
    usable = getattr(members, "usable", members)
    if usable is not members and len(usable) < len(members):
        left_out = [name for name in members if name not in usable]
        logger.warning("left out, because they hold NaN or infinity: %s", ", ".join(left_out))
    if _is_array(usable) or isinstance(usable, str | bytes) or not isinstance(usable, Iterable):
        raise ValueError(f"members are a sequence or mapping of trees, or a pool, not a {type(usable).__name__}")
    if not isinstance(usable, Mapping):
        usable = {str(index): member for index, member in enumerate(usable)}
    if type(usable) is dict:
        usable = {
            name: member.params if getattr(member, "is_soup", False) else member for name, member in usable.items()
        }
    if not len(usable):
        raise ValueError("no members were given: at least one (finite) member is needed")
    if not hasattr(usable, "usable"):
        arrays = [name for name, member in usable.items() if _is_array(member)] if type(usable) is dict else []
        if arrays:
            raise ValueError(
                f"members are trees, but {', '.join(map(repr, arrays[:5]))} are arrays, as the leaves of one tree "
                "would be: give a list of trees, or {name: tree}"
            )
    return usable


def per_member(values: Any, members: Iterable[str], kind: str) -> list[Any]:
    """Return one value for each member, of a single value, a sequence in their order, or a mapping by their names.

    Raises:
        ValueError: not one for each member; `kind` says of what.
    """
    members = list(members)
    if isinstance(values, Mapping):
        missing, extra = [n for n in members if n not in values], [n for n in values if n not in members]
        if missing or extra:
            raise ValueError(
                f"{kind} must be given by the names of the members:\n" + "\n".join(differences(missing, extra))
            )
        return [values[name] for name in members]
    if not (isinstance(values, Sequence) and not isinstance(values, str)) and not getattr(values, "ndim", 0):
        return [values] * len(members)
    if len(values) != len(members):
        raise ValueError(f"{len(members)} members need {len(members)} values of {kind}, but {len(values)} were given")
    return list(values)


def marked(value: Any, members: Iterable[str]) -> list[bool]:
    """Return for each member whether it is the one that is named, by its name or its index; None marks none.

    Raises:
        ValueError: there is no such member.
    """
    members = list(members)
    if value is None or value is False:
        return [False] * len(members)
    if isinstance(value, int | np.integer) and 0 <= value < len(members) and str(value) not in members:
        value = members[value]
    return [name == check_name(str(value), members, "member") for name in members]


def check_weights(weights: Sequence[Any]) -> Sequence[Any]:
    """Return weights that averages divide by, unless one is negative or not finite, or all are zero.

    Raises:
        ValueError: they are.
    """
    if not tree.traced(weights):
        numbers = np.asarray([float(weight) for weight in weights])
        if not np.isfinite(numbers).all() or (numbers < 0).any() or not numbers.any():
            raise ValueError(f"weights must be finite, not negative and not all zero, but they are {numbers.tolist()}")
    return weights


def _is_array(value):
    return hasattr(value, "shape") and hasattr(value, "dtype")
