"""Aggregate the rows of a results file over seeds, write numbers for people, and print the table."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from soups.report import results as files

SPLITS = ("held_out", "test", "shift_mean")
COSTS = ("inference", "selection", "training")


class Spread(NamedTuple):
    """Hold a mean over seeds and its sample standard deviation (n − 1), NaN for a single seed."""

    mean: float
    deviation: float


def spread(values) -> Spread:
    """Return mean and sample standard deviation of one value for each seed."""
    values = np.asarray(values, np.float64)
    return Spread(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else math.nan)


def rows_table(results: Mapping) -> list[dict]:
    """Aggregate the main rows over seeds, in the order of the file.

    Each has `name`, `kind`, `seeds` (those that have the row), and as `Spread` over these seeds: `held_out`, `test`,
    `shift_mean` and each of `shifts`, by metric; `gain` over the best member of the same seed in accuracy points, by
    split and shift (empty without members); `num_ingredients`; `cost` by kind of cost (NaN where it is not recorded).
    """
    names = dict.fromkeys(row["name"] for row in files.rows_of(results, "main"))
    return [_aggregate(results, [r for r in files.rows_of(results, "main") if r["name"] == name]) for name in names]


def split_values(row: Mapping, split: str) -> Mapping:
    """Return the metrics of an aggregated row on held_out, test, shift_mean, or a shift by its name."""
    return row[split] if split in SPLITS else row["shifts"][split]


def one_pass(row: Mapping) -> bool:
    """Say whether an aggregated row predicts with one forward pass, so that soups may be compared with it."""
    return row["cost"]["inference"].mean <= 1 and row["kind"] not in ("ensemble", "members")


def best_of(rows: list[dict], split: str, metric: str = "accuracy") -> dict | None:
    """Find the row with the highest mean accuracy, or the lowest mean of another metric; the first one in a tie."""
    return next(iter(all_best(rows, split, metric)), None)


def all_best(rows: list[dict], split: str, metric: str = "accuracy") -> list[dict]:
    """List the rows that share the best mean of a metric."""
    means = [split_values(row, split)[metric].mean for row in rows]
    finite = [mean for mean in means if math.isfinite(mean)]
    best = (max if metric == "accuracy" else min)(finite, default=None)
    return [row for row, mean in zip(rows, means, strict=True) if mean == best]


def _aggregate(results, rows):
    shifts = list(results["splits"]["shifts"])
    metrics = list(dict.fromkeys(metric for row in rows for metric in row["metrics"]["test"]))
    best = [files.best_member(results, row["seed"]) for row in rows]

    def over_seeds(split):
        return {metric: spread([files.value(row, split, metric) for row in rows]) for metric in metrics}

    def gain(split):
        pairs = zip(rows, best, strict=True)
        return spread([100 * (files.value(row, split) - files.value(other, split)) for row, other in pairs])

    return {
        "name": rows[0]["name"],
        "kind": rows[0]["kind"],
        "seeds": [row["seed"] for row in rows],
        **{split: over_seeds(split) for split in SPLITS},
        "shifts": {shift: over_seeds(shift) for shift in shifts},
        "gain": {split: gain(split) for split in (*SPLITS, *shifts)} if all(best) else {},
        "num_ingredients": spread([_number(row.get("num_ingredients")) for row in rows]),
        "cost": {cost: spread([_number(row.get("cost", {}).get(cost)) for row in rows]) for cost in COSTS},
    }


def _number(found):
    return math.nan if found is None else float(found)


# --- Numbers for people -----------------------------------------------------------------------------------------------


def format_spread(found: Spread, scale: float = 1.0, digits: int = 2, sign: str = "") -> str:
    """Write a mean and its deviation ("97.12 ±0.11"), the mean alone without a deviation, a dash for NaN."""
    if not math.isfinite(found.mean):
        return "–"
    text = f"{scale * found.mean:{sign},.{digits}f}".replace("-", "−")
    if float(text.replace(",", "").replace("−", "-")) == 0:
        text = text.lstrip("+−")
    return text + (f" ±{scale * found.deviation:.{digits}f}" if math.isfinite(found.deviation) else "")


def format_percent(found: Spread, digits: int = 2) -> str:
    """Write a fraction as a percentage, without the sign %."""
    return format_spread(found, 100, digits)


def format_points(found: Spread) -> str:
    """Write a difference in accuracy points, with its sign."""
    return format_spread(found, sign="+")


def format_count(found: Spread) -> str:
    """Write a count: an integer where it is the same in all seeds, else one decimal and the deviation."""
    same = not found.deviation > 0
    return format_spread(Spread(found.mean, math.nan), digits=0) if same else format_spread(found, digits=1)


def row_label(row: Mapping, results: Mapping) -> str:
    """Return the name of an aggregated row, and how many of the seeds have it where some lack it."""
    missing = len(row["seeds"]) < len(results["seeds"])
    return row["name"] + (f" ({len(row['seeds'])} of {len(results['seeds'])} seeds)" if missing else "")


# --- The table on the terminal ----------------------------------------------------------------------------------------

# heading, text of an aggregated row, split and metric in which the best rows stand out; the most important ones first
_COLUMNS = (
    ("test %", lambda row: format_percent(row["test"]["accuracy"]), ("test", "accuracy")),
    ("gain", lambda row: format_points(row["gain"]["test"]), None),
    ("shifts %", lambda row: format_percent(row["shift_mean"]["accuracy"]), ("shift_mean", "accuracy")),
    ("gain", lambda row: format_points(row["gain"]["shift_mean"]), None),
    ("held-out %", lambda row: format_percent(row["held_out"]["accuracy"]), ("held_out", "accuracy")),
    ("NLL", lambda row: format_spread(row["test"]["nll"], digits=3), ("test", "nll")),
    ("ECE %", lambda row: format_percent(row["test"]["ece"]), ("test", "ece")),
    ("models", lambda row: format_count(row["num_ingredients"]), None),
    ("passes", lambda row: format_count(row["cost"]["inference"]), None),
    ("selection", lambda row: format_count(row["cost"]["selection"]), None),
    ("training", lambda row: format_count(row["cost"]["training"]), None),
)


def print_table(results: Mapping, console: Console | None = None) -> None:
    """Print the main rows; where the terminal is narrow the last columns are left out, and the caption names them."""
    console = console or Console()
    rows = rows_table(results)
    columns = [column for column in _COLUMNS if column[0] != "gain" or all(row["gain"] for row in rows)]
    kept = len(columns)
    table = _terminal_table(results, rows, columns, kept)
    if not console.is_terminal:
        console.width = max(console.width, Measurement.get(console, console.options.update(width=500), table).maximum)
    while kept > 2 and _too_wide(console, table):
        kept -= 1
        table = _terminal_table(results, rows, columns, kept)
    console.print(table)


def _too_wide(console, table):
    return Measurement.get(console, console.options.update(width=500), table).maximum > console.width


def _terminal_table(results, rows, columns, kept):
    caption = "gain: points over the best member of the same seed; NLL, ECE: on test; bold: best of the column"
    if len(results["seeds"]) > 1:
        caption += f"; mean ± standard deviation over {len(results['seeds'])} seeds"
    if kept < len(columns):
        caption += f"; too narrow for {', '.join(name for name, _, _ in columns[kept:])}: see report.html"
    title = Text(f"soups · {results['experiment']}", style="bold")
    table = Table(title=title, caption=Text(caption), box=SIMPLE_HEAD, pad_edge=False)
    table.title_justify = table.caption_justify = "left"
    table.add_column("", no_wrap=True)
    for name, _, _ in columns[:kept]:
        table.add_column(name, justify="right", no_wrap=True)
    best = [all_best(rows, *by) if by else [] for _, _, by in columns[:kept]]
    for row in rows:
        cells = [
            Text(text(row), style="bold green" if any(row is found for found in winners) else "")
            for (_, text, _), winners in zip(columns[:kept], best, strict=True)
        ]
        table.add_row(Text(row_label(row, results)), *cells)
    return table
