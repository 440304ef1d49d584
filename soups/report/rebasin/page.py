"""Write the report of the experiment on independent networks: figures and one HTML file that needs no other."""

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import NamedTuple

from soups.files import replace_file
from soups.report import page_tables, style
from soups.report.figures import Drawn
from soups.report.rebasin import draw
from soups.report.rebasin.tables import (
    PATH_HEADS,
    check_rebasin,
    conclusions,
    matching_title,
    note,
    path_cells,
    path_rows,
    soup_rows,
    soup_title,
    title_of,
)
from soups.report.shell import figures, folded, head_cell, number_cell, shell, text_cell
from soups.report.tables import format_percent, format_spread


class _Plan(NamedTuple):
    name: str
    title: str
    draw: Callable
    caption: str


PLANS = (
    _Plan(
        "paths",
        "The straight path between independent networks",
        draw.paths,
        "Weights (1 − λ) A + λ π(B) between two networks trained from different starts on different orders of the "
        "data, π being the permutation of B's units that each matching found; naive: none. Solid: test, with one "
        "standard deviation over the pairs; dotted: train. Where the statistics are re-estimated, those of BatchNorm "
        "are measured anew at every λ, the ends included.",
    ),
    _Plan(
        "width",
        "Barriers against width",
        draw.width,
        "The most by which the path is worse on the test set than the line between its ends, against the units of the "
        "first hidden layer. Lines: means over the pairs; small dots: single pairs. Logarithmic axes, linear near 0.",
    ),
    _Plan(
        "soups",
        "Soups of independent networks",
        draw.soups,
        "Test accuracy of the average of the first k networks: as they are, aligned to the first by weight matching, "
        "and by MergeMany. Solid: repaired, which for BatchNorm means that its statistics were re-estimated; dashed: "
        "as averaged. The ensemble costs k forward passes a prediction, everything else one.",
    ),
)


def write_rebasin_report(results: Mapping, directory: str | os.PathLike) -> list[str]:
    """Make `report.html` and `figures/*.png` in a directory from the results alone; list what was written.

    Raises:
        ValueError: results of another schema, or without keys that are required.
        OSError: as `soups.files.replace_file`.
    """
    check_rebasin(results)
    directory = pathlib.Path(directory)
    (directory / "figures").mkdir(exist_ok=True)
    drawn = _draw_all(results)
    for name in {plan.name for plan in PLANS} - {figure.name for figure in drawn}:
        (directory / "figures" / f"{name}.png").unlink(missing_ok=True)
    paths = [replace_file(directory / "figures" / f"{figure.name}.png", figure.png) for figure in drawn]
    return [str(path) for path in (replace_file(directory / "report.html", page(results, drawn)), *paths)]


def _draw_all(results) -> list[Drawn]:
    drawn = []
    with style.look():
        for plan in PLANS:
            if (figure := plan.draw(results)) is not None:
                drawn.append(Drawn(plan.name, plan.title, plan.caption, style.png(figure)))
    return drawn


def page(results: Mapping, drawn: Sequence[Drawn]) -> str:
    """Write the page with its tables and figures."""
    sections = [
        ("figures", "Figures", figures(drawn)),
        ("paths", "Straight paths", _paths_table(results)),
        ("soups", "Soups", _soups_table(results) if results["soups"] else ""),
        ("run", "The run", _run(results)),
    ]
    said = "".join(f"<li>{escape(text)}</li>" for text in conclusions(results))
    intro = f"<h3>What was measured</h3><ul>{said}</ul>"
    return shell(results, sections, intro=intro, described="docs/results_rebasin.md")


def _paths_table(results):
    body = [
        [
            head_cell(title_of(row["network"], results)),
            text_cell(matching_title(row)),
            *(number_cell(text, value) for text, value in path_cells(row)),
        ]
        for row in path_rows(results)
    ]
    return page_tables.table(["network", "matching", *PATH_HEADS], body, note(results))


def _soups_table(results):
    parts = []
    for network in dict.fromkeys(row["network"] for row in results["soups"]):
        rows = [row for row in soup_rows(results) if row["network"] == network]
        sizes = list(rows[0]["sizes"])
        heads = [f"{size} models, {what}" for what in ("test %", "NLL") for size in sizes]
        body = [[head_cell(soup_title(row)), *_soup_cells(row, sizes)] for row in rows]
        parts.append(f"<h3>{escape(title_of(network, results))}</h3>{page_tables.table(['', *heads], body)}")
    seeds = len(results["seeds"])
    spread = f" Mean ± standard deviation over {seeds} seeds." if seeds > 1 else ""
    return "".join(parts) + f'<p class="quiet">On the test set. The best member is chosen on held-out data.{spread}</p>'


def _soup_cells(row, sizes):
    accuracies = [row["sizes"][size]["accuracy"] for size in sizes]
    losses = [row["sizes"][size]["nll"] for size in sizes]
    cells = [number_cell(format_percent(value), value.mean) for value in accuracies]
    return cells + [number_cell(format_spread(value, digits=3), value.mean) for value in losses]


def _run(results):
    parts = [("Configuration", results["config"]), ("Splits, numbers of examples", results["splits"])]
    parts += [("Networks", results["networks"]), ("Versions", results.get("versions", {}))]
    return folded([*parts, ("Seconds of each stage", results.get("timings", {}))])
