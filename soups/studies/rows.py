"""Hold what is measured and known of weights, and take means of it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from soups.pool import Pool

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


def described(pool: Pool, prefix: str, called: str) -> list[dict[str, Any]]:
    """Return the members of a pool whose names begin with a prefix as results hold them, with other begins of names."""
    names = [name for name in pool if name.startswith(prefix)]
    return [{"name": f"{called} {name.removeprefix(prefix)}", **known_of(pool.record(name))} for name in names]


def splits_of(
    sizes: Mapping[str, tuple[int, int]],
    parts: str,
    selecting: str = "{}, held-out",
    beside: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Return, as results hold them, the splits of a study whose rows are means over several parts, such as tasks.

    `sizes`: by part the numbers of examples that test and that select. `selecting`: what the latter are called.
    `beside`: splits of their own.
    """
    chosen = {name: selecting.format(name) for name in sizes}
    return {
        "test": {"role": "test", "mean_of": list(sizes), "title": f"mean of {parts}"},
        "held_out": {"role": "held_out", "mean_of": list(chosen.values())},
        **(beside or {}),
        **{name: {"role": "test", "examples": count} for name, (count, _) in sizes.items()},
        **{chosen[name]: {"role": "held_out", "examples": count} for name, (_, count) in sizes.items()},
    }


def claims_of(seed: int, rows: Sequence[Row], pairs: Sequence[tuple[str, str]], metric: str = "accuracy") -> list[dict]:
    """Return claims that one main row is above another on test data, where both are there, with the differences."""
    test = {row["name"]: row["metrics"]["test"][metric] for row in rows if row["group"] == "main"}
    return [
        {"seed": seed, "title": f"{better} > {than}", "value": test[better] - test[than]}
        for better, than in pairs
        if {better, than} <= test.keys()
    ]


def mean_of(values: Sequence[Any]) -> Any:
    """Return the mean of numbers, or of each number of nested mappings; None where one is None."""
    if isinstance(values[0], Mapping):
        return {name: mean_of([value[name] for value in values]) for name in values[0]}
    return None if None in values else float(np.mean(values))
