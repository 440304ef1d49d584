"""Put the report page together: one HTML file that needs no other, the same bytes for the same results."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from numbers import Real

from soups.report import page_tables
from soups.report.figures import Drawn
from soups.report.shell import figures, shell
from soups.report.summary import summary
from soups.report.tables import best_of, format_count, format_percent, format_points, rows_table


def page(results: Mapping, drawn: Sequence[Drawn]) -> str:
    """Write the page with its tables and figures."""
    rows = rows_table(results)
    sections = [
        ("results", "Results", page_tables.main_table(results, rows)),
        ("figures", "Figures", figures(drawn)),
        ("shifts", "Every shift", page_tables.shift_table(results, rows) if results["splits"]["shifts"] else ""),
        ("calibration", "Calibration", page_tables.calibration_table(results, rows)),
        ("members", "Members", _by_seed(results, results["pool"], page_tables.pool_table)),
        ("selection", "How the soups were chosen", _histories(results)),
        ("run", "The run", _run(results)),
    ]
    intro = f"""{_tiles(rows)}
<p>{_unbroken(" ".join(summary(results)))}</p>
{_conclusions(results["conclusions"])}"""
    versions = [f"{name} {version}" for name, version in list(results["versions"].items())[:2]]
    return shell(results, sections, intro=intro, described="docs/results.md", facts=[", ".join(versions)])


def _unbroken(text):
    """Escape a text and keep a number on one line with its spread and its sign %."""
    return escape(text).replace(" %", "\u00a0%").replace(" ±", "\u00a0±")


def _tiles(rows):
    soups = [row for row in rows if row["kind"] == "soup"]
    member = next((row for row in rows if row["name"] == "best member"), None)
    test, shift = best_of(soups, "test"), best_of(soups, "shift_mean")
    ensemble = best_of([row for row in rows if row["kind"] == "ensemble"], "test")
    tiles = [
        (member, "Best member, on test", "test", lambda row: f"{_shift(row)} % on the shifts"),
        (test, "Highest soup on test", "test", lambda row: _over_member(row, "test")),
        (shift, "Highest soup on the shifts", "shift_mean", lambda row: _over_member(row, "shift_mean")),
        (ensemble, "Highest ensemble on test", "test", _passes),
    ]
    return f'<div class="tiles">{"".join(_tile(*tile) for tile in tiles if tile[0])}</div>'


def _tile(row, label, split, remark):
    mean, _, deviation = format_percent(row[split]["accuracy"]).partition(" ±")
    spread = f" <small>±{deviation}</small>" if deviation else ""
    return (
        f'<div class="tile"><div class="label">{escape(label)}</div><div class="value">{mean} %{spread}</div>'
        f'<div class="name">{escape(row["name"])}</div><div class="quiet">{escape(remark(row))}</div></div>'
    )


def _shift(row):
    return format_percent(row["shift_mean"]["accuracy"])


def _passes(row):
    return f"{format_count(row['cost']['inference'])} passes a prediction"


def _over_member(row, split):
    return f"{format_points(row['gain'][split])} points over the best member" if row["gain"] else ""


def _conclusions(sentences):
    if not sentences:
        return ""
    return f"<h3>Conclusions</h3><ul>{''.join(f'<li>{escape(str(text))}</li>' for text in sentences)}</ul>"


def _by_seed(results, found, build):
    parts = []
    for index, seed in enumerate(seed for seed in results["seeds"] if found.get(str(seed))):
        opened = " open" if index == 0 else ""
        parts.append(f"<details{opened}><summary>Seed {escape(str(seed))}</summary>{build(results, seed)}</details>\n")
    return "".join(parts)


def _histories(results):
    parts = []
    for seed in results["seeds"]:
        for name, history in results["histories"].get(str(seed), {}).items():
            if inner := _history(history):
                parts.append(f"<details><summary>{escape(name)}, seed {escape(str(seed))}</summary>{inner}</details>\n")
    return "".join(parts)


def _history(history):
    if history and all(isinstance(step, Mapping) for step in history):
        return page_tables.history_table(history)
    if len(history) > 1 and all(isinstance(value, Real) and math.isfinite(value) for value in history):
        return _line(history)
    return ""


def _line(values, width=700, height=150):
    """Draw a small line as SVG, with the first and the last value written beside it."""
    low, high = min(values), max(values)
    scale = (height - 20) / (high - low or 1)
    step = (width - 170) / (len(values) - 1)
    points = " ".join(f"{10 + step * i:.1f},{10 + scale * (high - value):.1f}" for i, value in enumerate(values))
    last = 10 + scale * (high - values[-1])
    ends = f"{values[0]:.4g} → {values[-1]:.4g}"
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{ends}">'
        f'<polyline points="{points}" fill="none" stroke="var(--accent)" stroke-width="2"/>'
        f'<text x="{width - 150}" y="{min(max(last + 4, 14), height - 6):.1f}" fill="currentColor" font-size="13">'
        f"{ends}</text></svg>"
    )


def _run(results):
    parts = [
        ("Configuration", page_tables.pairs_table(results["config"]) if results["config"] else ""),
        ("Splits, numbers of examples", page_tables.pairs_table(results["splits"])),
        ("Versions", page_tables.pairs_table(results["versions"])),
        ("Timings", page_tables.timings_table(results) if any(results["timings"].values()) else ""),
    ]
    return "".join(f"<details><summary>{name}</summary>{text}</details>\n" for name, text in parts if text)
