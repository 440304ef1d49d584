"""Read a results file and find things in it; docs/results.md describes the schema."""

import difflib
import math
import pathlib
from collections import Counter
from collections.abc import Mapping

from soups import state

SCHEMA = "soups.results/1"
GROUPS = ("main", "member", "curve")
METRICS = ("accuracy", "nll", "brier", "ece")

_REQUIRED = ("schema", "experiment", "created", "config", "versions", "device", "seeds", "splits", "rows")
_OPTIONAL = ("pool", "curves", "histories", "timings", "conclusions")
_ROW = ("seed", "name", "kind", "group", "metrics")
_SPLITS = ("held_out", "test", "shifts", "shift_mean")


def load_results(path) -> dict:
    """Read and check a results file, given as the file or as the directory that holds `results.json`.

    Sections that may be missing (`pool`, `curves`, `histories`, `timings`, `conclusions`) are empty in the result.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: damaged, another version of the schema, or keys that are missing; all of them are listed.
    """
    results = read_json(path)
    check(results, path)
    return {name: [] if name == "conclusions" else {} for name in _OPTIONAL} | results


def read_json(path):
    """Read a results file of any experiment, given as the file or as the directory that holds `results.json`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not what was written; as `soups.state.read`.
    """
    path = pathlib.Path(path)
    path = path / "results.json" if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(f"no results file at {path}: run the experiment first, it writes results.json")
    return state.read(path)


def check(results, where="results") -> None:
    """Raise one ValueError that lists everything that is missing or contradictory in `results`."""
    version = results.get("schema") if isinstance(results, Mapping) else None
    if version is not None and version != SCHEMA:
        raise ValueError(f"{where} has schema {version!r}, but this version of soups reads {SCHEMA!r}")
    if not isinstance(results, Mapping):
        raise ValueError(f"{where} must hold a JSON object, not a {type(results).__name__}")
    problems = _missing(results, _REQUIRED, "")
    if "splits" in results:
        problems += _missing(results["splits"], ("held_out", "test", "shifts"), "splits.")
    problems += _row_problems(results)
    if problems:
        raise ValueError(f"{where} is not a complete {SCHEMA} file:\n" + "\n".join(f"  {line}" for line in problems))


def value(row: Mapping, split: str, metric: str = "accuracy") -> float:
    """Return a metric of a row; `split`: held_out, test, shift_mean, or the name of a shift. NaN where it is null."""
    metrics = row["metrics"]
    found = metrics[split] if split in ("held_out", "test", "shift_mean") else metrics["shifts"][split]
    number = found.get(metric)
    return math.nan if number is None else float(number)


def rows_of(results: Mapping, group: str, seed=None) -> list[dict]:
    """List the rows of a group, of one seed or of all."""
    return [row for row in results["rows"] if row["group"] == group and seed in (None, row["seed"])]


def row_named(results: Mapping, name: str, seed) -> dict | None:
    """Find the main row with this name; None where the experiment has none."""
    return next((row for row in rows_of(results, "main", seed) if row["name"] == name), None)


def best_member(results: Mapping, seed) -> dict | None:
    """Find the row of the best member: the main row "best member", else the highest member on held-out."""
    named = row_named(results, "best member", seed)
    members = [row for row in rows_of(results, "member", seed) if math.isfinite(value(row, "held_out"))]
    return named or max(members, key=lambda row: value(row, "held_out"), default=None)


def curve(results: Mapping, name: str, seed) -> dict | None:
    """Return a curve of a seed; None where the experiment did not compute it."""
    return results["curves"].get(str(seed), {}).get(name) or None


def first_curve(results: Mapping, name: str) -> dict | None:
    """Return a curve of the first seed that has it."""
    return next((found for seed in results["seeds"] if (found := curve(results, name, seed))), None)


# --- Checking ---------------------------------------------------------------------------------------------------------


def _missing(found, keys, prefix):
    if not isinstance(found, Mapping):
        return [f"{prefix.rstrip('.')} must be an object, not {type(found).__name__}"]
    lines = []
    for key in (key for key in keys if key not in found):
        close = difflib.get_close_matches(key, [name for name in found if name not in keys], n=1)
        lines.append(f"{prefix}{key} is missing" + (f" (did you misspell it as {close[0]!r}?)" if close else ""))
    return lines


def _row_problems(results):
    rows = results.get("rows", [])
    if not isinstance(rows, list):
        return [f"rows must be a list, not {type(rows).__name__}"]
    splits = results.get("splits")
    shifts = splits.get("shifts", {}) if isinstance(splits, Mapping) else {}
    # the same key is mostly missing in many rows: one line for each key, with the rows that lack it
    places: dict[str, list[str]] = {}
    for index, row in enumerate(rows):
        for problem in _problems_of_row(row, shifts, results.get("seeds")):
            places.setdefault(problem, []).append(_row_label(row, index))
    lines = [f"{problem} in {len(found)} row(s): {_shorten(found)}" for problem, found in places.items()]
    keys = Counter((row.get("seed"), row.get("group"), row.get("name")) for row in rows if isinstance(row, Mapping))
    doubled = [f"{name!r} (seed {seed})" for (seed, group, name), n in keys.items() if n > 1 and group != "curve"]
    return lines + ([f"rows appear twice: {_shorten(doubled)}"] if doubled else [])


def _problems_of_row(row, shifts, seeds):
    problems = _missing(row, _ROW, "")
    if problems:
        return problems
    if row["group"] not in GROUPS:
        problems.append(f"group {row['group']!r} is none of {', '.join(GROUPS)}")
    if seeds is not None and row["seed"] not in seeds:
        problems.append(f"seed {row['seed']!r} is not in seeds")
    metrics = row["metrics"]
    problems += _missing(metrics, _SPLITS, "metrics.")
    if problems:
        return problems
    for split in ("held_out", "test", "shift_mean"):
        problems += _missing(metrics[split], METRICS, f"metrics.{split}.")
    problems += _missing(metrics["shifts"], tuple(shifts), "metrics.shifts.")
    for name in (name for name in shifts if name in metrics["shifts"]):
        problems += _missing(metrics["shifts"][name], METRICS, f"metrics.shifts.{name}.")
    return problems


def _row_label(row, index):
    if isinstance(row, Mapping) and "name" in row:
        return f"{row['name']!r} (seed {row.get('seed', '?')})"
    return f"rows[{index}]"


def _shorten(names, most=4):
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
