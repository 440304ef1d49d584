"""Print the results of a multi-task experiment."""

import math
from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from soups.report.tables import format_count, format_percent, format_spread
from soups.report.tasks.results import BASELINES, tasks_rows

# heading, text of an aggregated row; the most important ones first
_COLUMNS = (
    ("normalised %", lambda row, _: format_percent(row["normalised"])),
    ("mean %", lambda row, _: format_percent(row["mean"])),
    ("seconds", lambda row, _: format_seconds(row["cost"]["seconds"])),
    ("size", lambda row, trunk: format_size(row, trunk)),
    ("labelled", lambda row, _: format_count(row["cost"]["labelled"])),
    ("unlabelled", lambda row, _: format_count(row["cost"]["unlabelled"])),
    ("search s", lambda row, _: format_seconds(row["cost"]["search_seconds"])),
    ("points", lambda row, _: format_count(row["cost"]["search_points"])),
)


def print_tasks_table(results: Mapping, console: Console | None = None) -> None:
    """Print a line for each method and baseline, those that merge from the highest normalised score down."""
    console = console or Console()
    table = _table(results)
    if not console.is_terminal:
        console.width = max(console.width, Measurement.get(console, console.options.update(width=500), table).maximum)
    console.print(table)


def ranked(rows: list[dict]) -> list[dict]:
    """Put the baselines first, then all others from the highest normalised score down."""
    return sorted(
        rows, key=lambda row: (row["family"] != BASELINES, -row["normalised"].mean * (row["family"] != BASELINES))
    )


def format_seconds(found) -> str:
    """Write seconds: one decimal, two below one."""
    return format_spread(found, digits=1 if not math.isfinite(found.mean) or found.mean >= 1 else 2)


def format_size(row: Mapping, trunk: Mapping) -> str:
    """Write what is stored in units of one trunk."""
    return f"{row['cost']['bytes'].mean / trunk['bytes']:.3g}×"


def _table(results):
    seeds = len(results["seeds"])
    caption = (
        "normalised: mean over the tasks of the accuracy divided by that of the task's own member; size: in trunks"
    )
    caption += f"; mean ± standard deviation over {seeds} seeds" if seeds > 1 else ""
    title = Text(f"soups · {results['experiment']}", style="bold")
    table = Table(title=title, caption=Text(caption), box=SIMPLE_HEAD, pad_edge=False)
    table.title_justify = table.caption_justify = "left"
    table.add_column("", no_wrap=True)
    for name, _ in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for row in ranked(tasks_rows(results)):
        style = "bold" if row["family"] == BASELINES else ""
        table.add_row(Text(row["name"], style), *(Text(text(row, results["trunk"]), style) for _, text in _COLUMNS))
    return table
