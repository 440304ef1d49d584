"""Put the report page of a multi-task experiment together: one HTML file that needs no other."""

import json
from collections.abc import Mapping, Sequence
from html import escape

from soups.report import page_tables, style
from soups.report.figures import Drawn
from soups.report.shell import figures, folded, head_cell, number_cell, shell, text_cell
from soups.report.tables import format_count, format_percent, format_spread
from soups.report.tasks.draw import FAMILIES
from soups.report.tasks.results import BASE, BASELINES, JOINT, masks_of, row_of, tasks_rows
from soups.report.tasks.tables import format_seconds, format_size, ranked


def tasks_page(results: Mapping, drawn: Sequence[Drawn]) -> str:
    """Write the page with its tables and figures."""
    rows = ranked(tasks_rows(results))
    sections = [
        ("results", "Results", _main_table(results, rows)),
        ("figures", "Figures", figures(drawn)),
        ("by-task", "Accuracy on each task", _by_task(results, rows)),
        ("masks", "Masks", _masks(results)),
        ("settings", "Settings, chosen on held-out data", _settings(results, rows)),
        ("run", "The run", _run(results)),
    ]
    intro = "".join(f"<p>{escape(sentence)}</p>" for sentence in tasks_summary(results))
    return shell(results, sections, intro=intro, described="docs/results_tasks.md")


def tasks_summary(results: Mapping) -> list[str]:
    """Say in plain sentences which method is best, and where merging did not help."""
    rows = tasks_rows(results)
    single = [
        row for row in rows if row["family"] != BASELINES and row["cost"]["bytes"].mean <= results["trunk"]["bytes"]
    ]
    if not single:
        return []
    best = max(single, key=lambda row: row["normalised"].mean)
    sentences = [
        f"{len(results['tasks'])} members, one for each task, were merged into one trunk; their heads are kept. Of the "
        f"methods that store one trunk, {best['name']} has the highest normalised score, "
        f"{format_percent(best['normalised'])} % of the members' accuracy."
    ]
    if (joint := row_of(rows, JOINT)) is not None:
        above = [row["name"] for row in single if row["normalised"].mean > joint["normalised"].mean]
        verdict = f"it is below {', '.join(above)}" if above else "no merged trunk reaches it"
        sentences.append(
            f"Training one trunk on all tasks together gives {format_percent(joint['normalised'])} %: {verdict}."
        )
    if (base := row_of(rows, BASE)) is not None:
        below = [row["name"] for row in single if row["normalised"].mean <= base["normalised"].mean]
        verdict = f"not above it, so of no help: {', '.join(below)}" if below else "all methods are above it"
        sentences.append(f"The base without any merging has {format_percent(base['normalised'])} %; {verdict}.")
    return sentences


def _main_table(results, rows):
    heads = ["", "family", "normalised %", "mean %", "seconds", "size", "labelled", "unlabelled", "search s", "points"]
    body = []
    for row in rows:
        cost = row["cost"]
        body.append(
            [
                _head(row),
                text_cell(row["family"]),
                number_cell(format_percent(row["normalised"]), row["normalised"].mean),
                number_cell(format_percent(row["mean"]), row["mean"].mean),
                number_cell(format_seconds(cost["seconds"]), cost["seconds"].mean),
                number_cell(format_size(row, results["trunk"]), cost["bytes"].mean),
                *(number_cell(format_count(cost[name]), cost[name].mean) for name in ("labelled", "unlabelled")),
                number_cell(format_seconds(cost["search_seconds"]), cost["search_seconds"].mean),
                number_cell(format_count(cost["search_points"]), cost["search_points"].mean),
            ]
        )
    note = (
        "Normalised: mean over the tasks of the test accuracy divided by that of the task's own member. Seconds: of "
        "the merge with the chosen settings and of what it measures on examples, compilation included where it is the "
        "first to need a program; of a baseline, its training. Size: bytes stored, in trunks. Labelled, unlabelled: "
        "examples taken to merge or train; the held-out ones that choose settings come on top. Search: all settings."
    )
    return page_tables.table(heads, body, f"{note} {_spread_note(results)}") + _skipped(results)


def _skipped(results):
    lines = [f"{name}: {reason}" for name, reason in results.get("skipped", {}).items()]
    return f'<p class="quiet">Left out: {escape("; ".join(lines))}.</p>' if lines else ""


def _by_task(results, rows):
    tasks = list(results["tasks"])
    body = [
        [_head(row), *(number_cell(format_percent(row["accuracy"][t]), row["accuracy"][t].mean) for t in tasks)]
        for row in rows
    ]
    return page_tables.table(["", *tasks], body, f"Test accuracy in percent. {_spread_note(results)}")


def _masks(results):
    tasks, parts = list(results["tasks"]), []
    note = (
        "Size: share of the trunk. Alone: test accuracy of the base with this mask's part. Others: |A ∩ B| / |A ∪ B|."
    )
    for name, mask in masks_of(results).items():
        body = []
        for task, row in zip(tasks, mask["jaccard"], strict=True):
            size, alone = mask["percent"][task], mask["alone"][task]
            overlaps = [
                number_cell("" if task == other else f"{x:.3f}", x) for other, x in zip(tasks, row, strict=True)
            ]
            own = [number_cell(format_spread(size), size.mean), number_cell(format_percent(alone), alone.mean)]
            body.append([head_cell(task), *own, *overlaps])
        table = page_tables.table(["", "size %", "alone %", *tasks], body, note)
        parts.append(f"<details{' open' if not parts else ''}><summary>{escape(name)}</summary>{table}</details>\n")
    return "".join(parts)


def _settings(results, rows):
    body = []
    for row in rows:
        if any(row["settings"]):
            texts = [", ".join(f"{name} {json.dumps(value)}" for name, value in s.items()) for s in row["settings"]]
            body.append([_head(row), *map(text_cell, texts)])
    return page_tables.table(["", *(f"seed {seed}" for seed in results["seeds"])], body) if body else ""


def _run(results):
    parts = [(name, results[name.lower()]) for name in ("Tasks", "Config", "Versions")]
    return folded([*parts, ("Seconds of each stage", results.get("timings", {}))])


def _spread_note(results):
    seeds = len(results["seeds"])
    return f"Mean ± standard deviation over {seeds} seeds." if seeds > 1 else "One seed."


def _head(row):
    color = FAMILIES.get(row["family"], (style.QUIET,))[0]
    name = escape(row["name"])
    return (
        f'<th scope="row" data-v="{name}"><span class="kind" style="background:{color}" '
        f'title="{escape(row["family"])}"></span>{name}</th>'
    )
