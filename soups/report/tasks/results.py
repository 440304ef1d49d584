"""Read the results of a multi-task experiment and aggregate them over seeds; docs/results_tasks.md has the schema."""

import math
from collections.abc import Mapping, Sequence

from soups.report.tables import spread

SCHEMA = "soups.tasks/1"
MEMBERS, JOINT, BASE = "individual members", "multi-task learning", "base with the members' heads"
BASELINES = "baselines"
COSTS = ("seconds", "search_seconds", "search_points", "bytes", "labelled", "unlabelled")

_REQUIRED = ("schema", "experiment", "created", "config", "versions", "device", "seeds", "tasks", "trunk", "rows")
_ROW = ("seed", "name", "family", "held_out", "test", "mean", "normalised", "cost")


def check_tasks_results(results) -> None:
    """Raise one ValueError that lists everything that is missing in `results`."""
    if not isinstance(results, Mapping):
        raise ValueError(f"the results must be a JSON object, not a {type(results).__name__}")
    if results.get("schema", SCHEMA) != SCHEMA:
        raise ValueError(f"the results have schema {results['schema']!r}, but {SCHEMA!r} is needed")
    problems = [f"{key} is missing" for key in _REQUIRED if key not in results]
    for index, row in enumerate(results.get("rows", ())):
        problems += [f"rows[{index}].{key} is missing" for key in _ROW if key not in row]
        for split in ("held_out", "test"):
            lacking = [task for task in results.get("tasks", ()) if task not in row.get(split, {})]
            problems += [f"rows[{index}].{split} lacks {', '.join(lacking)}"] * bool(lacking)
    for seed in results.get("seeds", ()):
        names = [row.get("name") for row in results.get("rows", ()) if row.get("seed") == seed]
        problems += [f"seed {seed} has no row {MEMBERS!r}"] * (MEMBERS not in names)
    if problems:
        raise ValueError(f"not complete {SCHEMA} results:\n" + "\n".join(f"  {problem}" for problem in problems))


def tasks_rows(results: Mapping) -> list[dict]:
    """Aggregate the rows over seeds, in the order of the file.

    Each has `name`, `family`, `seeds`, `settings` (of each seed), and as `Spread`: `mean`, `normalised`, by task
    `accuracy` and `score` (the accuracy divided by the member's), by name `cost` (NaN where it is not recorded).
    """
    of_members = {row["seed"]: row["test"] for row in results["rows"] if row["name"] == MEMBERS}
    grouped: dict[str, list[Mapping]] = {}
    for row in results["rows"]:
        grouped.setdefault(row["name"], []).append(row)
    return [_aggregate(results["tasks"], rows, of_members) for rows in grouped.values()]


def masks_of(results: Mapping) -> dict[str, dict]:
    """Return each method's masks, averaged over seeds: by task `percent` and `alone`, and `jaccard` as a matrix."""
    tasks, found = list(results["tasks"]), {}
    for row in (row for row in results["rows"] if row.get("masks")):
        found.setdefault(row["name"], []).append(row["masks"])
    return {
        name: {
            **{
                key: {task: spread([mask[key][task] for mask in masks]) for task in tasks}
                for key in ("percent", "alone")
            },
            "jaccard": [[spread([m["jaccard"][a][b] for m in masks]).mean for b in tasks] for a in tasks],
        }
        for name, masks in found.items()
    }


def row_of(rows: Sequence[dict], name: str) -> dict | None:
    """Find an aggregated row by its name."""
    return next((row for row in rows if row["name"] == name), None)


def _aggregate(tasks, rows, of_members):
    def score(row, task):
        of_member = of_members[row["seed"]][task]
        return row["test"][task] / of_member if of_member else math.nan

    return {
        "name": rows[0]["name"],
        "family": rows[0]["family"],
        "seeds": [row["seed"] for row in rows],
        "settings": [row.get("setting", {}) for row in rows],
        "mean": spread([row["mean"] for row in rows]),
        "normalised": spread([row["normalised"] for row in rows]),
        "accuracy": {task: spread([row["test"][task] for row in rows]) for task in tasks},
        "score": {task: spread([score(row, task) for row in rows]) for task in tasks},
        "cost": {cost: spread([row["cost"].get(cost, math.nan) for row in rows]) for cost in COSTS},
    }
