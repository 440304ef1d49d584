"""Write the report of the experiment on independent networks: figures and one HTML file that needs no other."""

import base64
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import NamedTuple

from soups.files import replace_file
from soups.report import page_assets, page_tables, style
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
        ("figures", "Figures", "".join(map(_figure, drawn))),
        ("paths", "Straight paths", _paths_table(results)),
        ("soups", "Soups", _soups_table(results) if results["soups"] else ""),
        ("run", "The run", _run(results)),
    ]
    sections = [section for section in sections if section[2]]
    title = escape(f"Soups: {results['experiment']}")
    links = "".join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in sections)
    said = "".join(f"<li>{escape(text)}</li>" for text in conclusions(results))
    body = "".join(f'<section><h2 id="{name}">{heading}</h2>\n{text}\n</section>\n' for name, heading, text in sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{page_assets.CSS}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p class="quiet">{_facts(results)}</p>
<nav>{links}</nav>
</header>
<main>
<h3>What was measured</h3><ul>{said}</ul>
{body}</main>
<footer class="quiet">Made from results.json alone, which is described in docs/results_rebasin.md.</footer>
<script>{page_assets.SCRIPT}</script>
</body>
</html>
"""


def _facts(results):
    facts = [results.get("created", ""), f"seeds {', '.join(map(str, results['seeds']))}", results.get("device", "")]
    return " · ".join(escape(str(fact)) for fact in facts if fact)


def _figure(drawn):
    data = base64.b64encode(drawn.png).decode("ascii")
    return (
        f'<figure id="figure-{drawn.name}"><img alt="{escape(drawn.title)}" src="data:image/png;base64,{data}">'
        f"<figcaption><h3>{escape(drawn.title)}</h3><p>{escape(drawn.caption)}</p>"
        f"<code>figures/{drawn.name}.png</code></figcaption></figure>\n"
    )


def _paths_table(results):
    body = [
        [
            _head(f"{title_of(row['network'], results)}"),
            f'<td class="text" data-v="{escape(matching_title(row))}">{escape(matching_title(row))}</td>',
            *(_cell(text, value) for text, value in path_cells(row)),
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
        body = [[_head(soup_title(row)), *_soup_cells(row, sizes)] for row in rows]
        parts.append(f"<h3>{escape(title_of(network, results))}</h3>{page_tables.table(['', *heads], body)}")
    seeds = len(results["seeds"])
    spread = f" Mean ± standard deviation over {seeds} seeds." if seeds > 1 else ""
    return "".join(parts) + f'<p class="quiet">On the test set. The best member is chosen on held-out data.{spread}</p>'


def _soup_cells(row, sizes):
    accuracies = [row["sizes"][size]["accuracy"] for size in sizes]
    losses = [row["sizes"][size]["nll"] for size in sizes]
    cells = [_cell(format_percent(value), value.mean) for value in accuracies]
    return cells + [_cell(format_spread(value, digits=3), value.mean) for value in losses]


def _head(text):
    return f'<th scope="row" class="text" data-v="{escape(text)}">{escape(text)}</th>'


def _cell(text, value):
    mean, _, deviation = text.partition(" ±")
    inner = escape(mean) + (f' <small class="spread">±{escape(deviation)}</small>' if deviation else "")
    return f'<td data-v="{value:.10g}">{inner}</td>' if math.isfinite(value) else f'<td data-v="">{inner}</td>'


def _run(results):
    parts = [("Configuration", results["config"]), ("Splits, numbers of examples", results["splits"])]
    parts += [("Networks", results["networks"]), ("Versions", results.get("versions", {}))]
    parts += [("Seconds of each stage", results.get("timings", {}))]
    return "".join(
        f"<details><summary>{name}</summary>{page_tables.pairs_table(found)}</details>\n"
        for name, found in parts
        if found
    )
