"""Hold what is measured and known of weights, and take means of it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Row = dict[str, Any]


class Measured(NamedTuple):
    """Hold the metrics of weights by split, None where outputs are not finite, and which examples they have right.

    The latter, of shape [N] or, where the main metric is no accuracy, [0].
    """

    metrics: dict[str, dict[str, float | None]]
    right: dict[str, np.ndarray]


def known_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what results tell of a member, from its record in a pool: its digest, hyper-parameters and losses."""
    known = record["metadata"]
    return {"digest": record["digest"]} | {part: known[part] for part in ("config", "losses") if part in known}


def mean_of(values: Sequence[Any]) -> Any:
    """Return the mean of numbers, or of each number of nested mappings; None where one is None."""
    if isinstance(values[0], Mapping):
        return {name: mean_of([value[name] for value in values]) for name in values[0]}
    return None if None in values else float(np.mean(values))
