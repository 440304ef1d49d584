"""Put the report together: one HTML file that needs no other, figures and the table, the same bytes each time."""

import base64
import itertools
import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from numbers import Real
from typing import Any

from soups.files import PathLike, any_path, replace_file
from soups.report import page_assets, style
from soups.report import results as files
from soups.report.claims import claim_table
from soups.report.figures import PLANS, Drawn, draw_all
from soups.report.tables import (
    Cell,
    Table,
    class_table,
    format_number,
    main_table,
    pair_table,
    split_table,
    text_cell,
    to_csv,
    to_latex,
)
from soups.report.words import sentences
from soups.stores import StorePath

#: names of the tables that are files, too
FILES = ("table", "test_sets", "claims")
_DEEPEST = 8  # levels of a configuration that become dotted names
_LONG = 24  # rows of pairs above which they are folded away


def write_report(directory: PathLike) -> list[pathlib.Path | StorePath]:
    """Make the report of a directory that holds `results.json`, and list what was written.

    That is `report.html`, which needs no other file, `figures/*.png` and `*.svg`, `table.csv` and `table.tex`, and with
    the same endings `test_sets` where the test is a mean over several, and `claims` if there are any. What an earlier
    report had of these and this one has not is removed. Each file is written under another name and renamed, so a
    report that is open in a browser is never half of one. The same results give the same bytes on one machine. Errors
    are those of `load_results` and `soups.files.replace_file`.
    """
    directory = any_path(directory)
    results = files.load_results(directory)
    drawn, folder = draw_all(results), directory / "figures"
    folder.mkdir(exist_ok=True)
    for name in PLANS.keys() - {figure.name for figure in drawn}:
        for ending in ("png", "svg"):
            (folder / f"{name}.{ending}").unlink(missing_ok=True)
    contents: dict[pathlib.Path | StorePath, str | bytes] = {directory / "report.html": page(results, drawn)}
    for figure in drawn:
        contents |= {folder / f"{figure.name}.png": figure.png, folder / f"{figure.name}.svg": figure.svg}
    tables = _tables(results)
    for name in FILES:
        for ending, written in ((".csv", to_csv), (".tex", to_latex)):
            if name in tables:
                contents[directory / f"{name}{ending}"] = written(tables[name])
            else:
                (directory / f"{name}{ending}").unlink(missing_ok=True)
    return [replace_file(path, content) for path, content in contents.items()]


def page(results: Mapping, drawn: Sequence[Drawn]) -> str:
    """Write the page: the first figure with three sentences, the table, the other figures, and all else."""
    sections = [section for section in _sections(results, drawn[1:]) if section[2]]
    links = "".join(f'<a href="#{anchor}">{heading}</a>' for anchor, heading, _ in sections)
    body = "".join(f'<section><h2 id="{a}">{heading}</h2>\n{text}\n</section>\n' for a, heading, text in sections)
    title = escape(f"Soups: {results['experiment']}")
    versions = [f"{name} {version}" for name, version in list(results["versions"].items())[:2]]
    word = "seed" if len(results["seeds"]) == 1 else "seeds"
    facts = [results["created"], f"{word} {', '.join(map(str, results['seeds']))}", results["device"], *versions]
    # a number stays on one line with its sign
    said = "".join(f"<p>{escape(text)}</p>" for text in sentences(results)).replace(" %", "\u00a0%")
    notes = "".join(f'<p class="note">{escape(text)}</p>' for text in results["notes"])
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
<p class="quiet">{" · ".join(escape(fact) for fact in facts if fact)}</p>
<nav>{links}</nav>
</header>
<main>
<div class="said">{said}</div>
{_figures(drawn[:1])}{notes}
{body}</main>
<footer class="quiet">Made from results.json alone, which docs/results.md describes.</footer>
<script>{page_assets.SCRIPT}</script>
</body>
</html>
"""


def _sections(results, drawn) -> list[tuple[str, str, str]]:
    splits, pairs = files.summary_splits(results), pair_table(results)
    saved = {name: _downloads(table, name) + html(table) for name, table in _tables(results).items()}
    return [
        ("results", "Results", saved["table"]),
        ("claims", "Claims", saved.get("claims", "")),
        ("figures", "Figures", _figures(drawn)),
        ("split-test", "Every test set", saved.get("test_sets", "")),
        ("split-shift", "Every shift", _split_section(results, splits.get("shift"))),
        ("classes", "Every class", _class_section(results, splits["test"])),
        ("shift-metrics", "Other metrics on the shifts", _shift_metrics(results, splits.get("shift"))),
        ("curves", "Along WiSE-FT", _path_section(results, splits)),
        ("pairs", "Pairs", _folded(f"{len(pairs.rows)} rows", html(pairs), len(pairs.rows) <= _LONG) if pairs else ""),
        ("members", "Members", _members(results)),
        ("settings", "Settings, chosen on held-out data", _settings(results)),
        ("selection", "How the soups were chosen", _histories(results)),
        ("run", "The run", _run(results)),
    ]


def _tables(results) -> dict[str, Table]:
    """Return the tables that are files, too, by name."""
    test = files.summary_splits(results)["test"]
    parts = files.details(results, test)
    found = [main_table(results), split_table(results, [*parts, test]) if parts else None, claim_table(results)]
    return {name: table for name, table in zip(FILES, found, strict=True) if table}


def _split_section(results, split):
    parts = files.details(results, split)
    return html(split_table(results, [*parts, split])) if parts else ""


def _path_section(results, splits):
    rows = [row for row in files.rows_of(results, "curve") if "alpha" in row.get("of", {})]
    shown = [s for split in splits.values() for s in (*files.details(results, split), split)]
    shown = [split for split in shown if any(split in row["metrics"] for row in rows)]
    return html(split_table(results | {"rows": rows}, shown, group="curve")) if rows else ""


def _class_section(results, split):
    table = class_table(results, split)
    return html(table) if table.rows else ""


def _shift_metrics(results, split):
    found = (name for row in files.rows_of(results, "main") for name in row["metrics"].get(split, ()))
    names = [name for name in dict.fromkeys(found) if name != results["metric"]]
    return html(split_table(results, [split], names)) if names else ""


def _members(results):
    seeds = [seed for seed in results["seeds"] if results["members"].get(str(seed))]
    return "".join(_folded(f"Seed {seed}", html(_member_table(results, seed)), seed == seeds[0]) for seed in seeds)


def _member_table(results, seed) -> Table:
    """Lay out the members of one seed: status, main metric by role, hyper-parameters, digest."""
    members, splits = results["members"][str(seed)], files.summary_splits(results)
    rows = {row["name"]: row for row in files.rows_of(results, "member", seed)}
    greedy = [row for row in files.rows_of(results, "main", seed) if row["name"] == "greedy soup"]
    taken = greedy[0].get("ingredients", {}) if greedy else {}
    keys = list(dict.fromkeys(key for member in members for key in member.get("config", {})))
    metric = files.metric_of(results)
    body = []
    for member in members:
        row = rows.get(member["name"], {"metrics": {}})
        values = [files.value(row, split, results["metric"]) for split in splits.values()]
        numbers = [Cell(format_number(v, metric.scale, metric.digits), v) for v in values]
        setting = [_setting(member.get("config", {}).get(key)) for key in keys]
        chosen = text_cell("yes" if member["name"] in taken else "")
        digest = text_cell(member.get("digest", "")[:12], "code")
        head = text_cell(member["name"]), text_cell(member.get("status", ""))
        body.append([*head, *numbers, chosen, *setting, digest])
    heads = [files.title_of(results, split) for split in splits.values()]
    return Table(["", "status", *heads, "in greedy soup", *map(style.words, keys), "digest"], body)


def _settings(results):
    rows: dict[str, list[Cell]] = {}
    for row in files.rows_of(results, "main"):
        if row.get("settings"):
            text = ", ".join(f"{name} {_text(found)}" for name, found in row["settings"].items())
            rows.setdefault(row["name"], [text_cell(row["name"])]).append(text_cell(text))
    seeds = max(map(len, rows.values()), default=1) - 1
    body = [row + [text_cell("")] * (seeds + 1 - len(row)) for row in rows.values()]
    return html(Table(["", *(f"seed {seed}" for seed in results["seeds"][:seeds])], body)) if body else ""


def _histories(results):
    every = [
        (f"{n}, seed {seed}", _history(h)) for seed, found in results["histories"].items() for n, h in found.items()
    ]
    return "".join(_folded(name, inner) for name, inner in every if inner)


def _history(history):
    if history and all(isinstance(step, Mapping) for step in history):
        keys = list(dict.fromkeys(key for step in history for key in step))
        steps = enumerate(history, start=1)
        body = [[text_cell(number), *(_setting(step.get(key)) for key in keys)] for number, step in steps]
        return html(Table(["step", *map(style.words, keys)], body))
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
    parts = {"Configuration": results["config"], "Splits": results["splits"], "Versions": results["versions"]}
    parts |= results["facts"]
    folded = "".join(_folded(name, html(_pairs(found))) for name, found in parts.items() if found)
    return folded + (_folded("Seconds of each stage", html(_timings(results))) if results["timings"] else "")


def _folded(name, text, unfolded=False):
    return f"<details{' open' * unfolded}><summary>{escape(name)}</summary>{text}</details>\n"


def _pairs(found) -> Table:
    return Table(["", "value"], [[text_cell(text, "code") for text in pair] for pair in _flatten(found)])


def _flatten(pairs, prefix="", depth=0):
    for name, found in pairs.items():
        if isinstance(found, Mapping) and found and depth < _DEEPEST:
            yield from _flatten(found, f"{prefix}{name}.", depth + 1)
        else:
            yield f"{prefix}{name}", _text(found)


def _timings(results) -> Table:
    timings = results["timings"]
    stages = dict.fromkeys(stage for found in timings.values() for stage in found)
    body = [[text_cell(stage), *(_setting(found.get(stage)) for found in timings.values())] for stage in stages]
    return Table(["stage", *(f"seed {seed}, s" for seed in timings)], body)


def _setting(found: Any) -> Cell:
    return text_cell(found if isinstance(found, str | int | float | None) else _text(found))


def _text(found):
    return found if isinstance(found, str) else json.dumps(found)


def html(table: Table) -> str:
    """Write a table that scrolls sideways on its own and is sorted by a click on a heading."""
    looks = [' class="text"' * isinstance(cell.value, str) for cell in table.rows[0]] if table.rows else []
    heads = "".join(
        f'<th scope="col"{look}><button type="button">{escape(text) or "name"}</button></th>'
        for text, look in itertools.zip_longest(table.heads, looks, fillvalue="")
    )
    rows = "\n".join(f"<tr>{''.join(_cells(row))}</tr>" for row in table.rows)
    note = f'\n<p class="quiet">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<div class="scroll"><table class="sortable"><thead><tr>{heads}</tr></thead>'
        f"<tbody>\n{rows}\n</tbody></table></div>{note}"
    )


def _cells(row: Iterable[Cell]):
    for index, cell in enumerate(row):
        is_text = isinstance(cell.value, str)
        value = cell.value if is_text else f"{cell.value:.10g}" if math.isfinite(cell.value) else ""
        mean, mark, rest = cell.text.partition(" ±" if " ±" in cell.text else " [")
        inner = escape(mean) + (f' <small class="spread">{escape((mark + rest).strip())}</small>' if mark else "")
        inner = f"<code>{inner}</code>" if cell.look == "code" and inner else f"<span>{inner}</span>"
        if cell.look.startswith("kind "):
            color = style.of_kind(*[cell.look.removeprefix("kind ")] * 2)[0]
            inner = f'<span class="dot" style="background:{color}"></span>{inner}'
        if cell.beside:
            look = "minus" if cell.beside.endswith("!") else "spread"
            inner += f' <small class="{look}">{escape(cell.beside)}</small>'
        classes = " ".join(name for name in (cell.look.partition(" ")[0], "text" * is_text) if name)
        hover = f' title="{escape(cell.hover)}"' if cell.hover else ""
        tag, scope = ("td", "") if index else ("th", ' scope="row"')
        yield f'<{tag}{scope} class="{classes}" data-v="{escape(value)}"{hover}>{inner}</{tag}>'


def _figures(drawn: Sequence[Drawn]) -> str:
    """Write figures into the page itself, each with its title, its caption and buttons that save it."""
    return "".join(
        f'<figure id="figure-{figure.name}"><img alt="{escape(figure.title)}" '
        f'src="data:image/svg+xml;base64,{base64.b64encode(figure.svg).decode("ascii")}">'
        f"<figcaption><h3>{escape(figure.title)}</h3><p>{escape(figure.caption)}</p>"
        f'<button type="button" data-save="{figure.name}.svg">SVG</button> '
        f'<button type="button" data-save="{figure.name}.png">PNG</button></figcaption></figure>\n'
        for figure in drawn
    )


def _downloads(table, name):
    links = []
    for label, end, kind, text in (("CSV", "csv", "csv", to_csv(table)), ("LaTeX", "tex", "x-tex", to_latex(table))):
        address = f"data:text/{kind};base64,{base64.b64encode(text.encode()).decode('ascii')}"
        links.append(f'<a class="button" download="{name}.{end}" href="{address}">{label}</a>')
    return f'<p class="saved">{" ".join(links)}</p>\n'
