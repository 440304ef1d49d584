"""Bring what is given once for each member into the order of the members."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from soups.names import did_you_mean
from soups.recipes import _leaves


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
    if _leaves.traced(weights):
        return weights
    numbers = np.asarray([float(weight) for weight in weights])
    if not np.isfinite(numbers).all() or (numbers < 0).any() or not numbers.any():
        raise ValueError(f"weights must be finite, not negative and not all zero, but they are {numbers.tolist()}")
    return weights
