"""Resolve the values of a recipe's parameters, which may differ from tensor to tensor.

A value is one of: a scalar; a list of numbers, a gradient over the layers; a list of {"filter": text, "value": value},
the first of which applies whose text is part of the tensor's name, or of the name that mergekit gives an expert ("*" or
none: always). This is mergekit's grammar.
"""

import dataclasses
import math
import re
import sys
from collections.abc import Mapping
from typing import Any

Value = Any
_EXPERT = re.compile(r"\.experts\.\d+\.(w[123]|(?:gate|up|down)_proj)\.weight$")
_PARTS = {"w2": "down_proj", "down_proj": "down_proj"}


@dataclasses.dataclass(frozen=True)
class Place:
    """Say where a tensor stands: its name, and how far through the layers, 0 to 1, its layer is."""

    name: str
    depth: float = 0.0


def resolve(value: Value, place: Place, kind: type = float) -> Any:
    """Return the scalar that holds at this place; None where no filter applies.

    A gradient of numbers is linear between its values, which are spread evenly over the layers, and rounded down where
    whole numbers are wanted. Of booleans and texts it is the entry at or before the place: the last in the last layer.
    """
    if not isinstance(value, list):
        return math.floor(value) if kind is int and isinstance(value, float) else value
    if value and isinstance(value[0], Mapping):
        for rule in value:
            text = rule.get("filter")
            if text in (None, "*") or text in place.name or text in stacked(place.name):
                return resolve(rule["value"], place, kind)
        return None
    position = place.depth * (len(value) - 1)
    left = min(int(position), len(value) - 1)
    if kind in (bool, str) or isinstance(value[left], bool | str):
        return value[left]
    right, share = min(left + 1, len(value) - 1), position - left
    return resolve((1.0 - share) * value[left] + share * value[right], place, kind)


def stacked(name: str) -> str:
    """Return the name that mergekit gives a tensor of one expert: that of all experts in one tensor."""
    if ".experts." not in name and ".block_sparse_moe." not in name:
        return name
    end = _EXPERT.sub(lambda found: ".experts." + _PARTS.get(found[1], "gate_up_proj"), name)
    return end.replace(".block_sparse_moe.", ".mlp.")


def check(value: Value, where: str, kind: type) -> None:
    """Raise a ValueError that names `where` unless all scalars of the value are finite and of this kind.

    0 and 1 may stand for false and true, as some programs write them.
    """
    if not isinstance(value, list):
        _check_scalar(value, where, kind)
        return
    if not value:
        raise ValueError(f"{where} is an empty list")
    if len({isinstance(item, Mapping) for item in value}) > 1:
        raise ValueError(f"{where} mixes numbers with filters: give every number a filter, or none")
    for item in value:
        if isinstance(item, list):
            raise ValueError(f"{where} is a list of lists")
        if not isinstance(item, Mapping):
            _check_scalar(item, where, kind)
            continue
        if unknown := set(item) - {"filter", "value"}:
            raise ValueError(f"{where}: a filter has the fields 'filter' and 'value', not {sorted(unknown)[0]!r}")
        if "value" not in item:
            raise ValueError(f"{where}: a filter without a value: {brief(dict(item))}")
        if not isinstance(item.get("filter", "*"), str | None):
            raise ValueError(f"{where}: a filter must be part of a tensor's name, not {brief(item['filter'])}")
        check(item["value"], f"{where}[{item.get('filter', '*')}]", kind)


def _check_scalar(value, where, kind):
    if kind is bool and value in (0, 1):
        return
    number = isinstance(value, int | float)
    finite = number and abs(value) <= sys.float_info.max  # math.isfinite raises for 10**400
    fits = {float: number, int: finite and value == int(value)}.get(kind, isinstance(value, kind))
    if not fits or (isinstance(value, bool) and kind is not bool):
        name = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}[kind]
        raise ValueError(f"{where} must be {name}, not {brief(value)}")
    if kind is float and not finite:
        raise ValueError(f"{where} must be finite, not {brief(value)}")


def brief(value: Any) -> str:
    """Return a value as an error shows it, shortened if it is long."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def is_constant(value: Value) -> bool:
    """Say whether the value is the same for all tensors."""
    return not isinstance(value, list)
