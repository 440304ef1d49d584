"""Write the report of an ImageNet run: figures and one HTML file that needs no other."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from html import escape

from soups.files import replace_file
from soups.report import page_tables, style
from soups.report.figures import Drawn
from soups.report.imagenet import draw
from soups.report.imagenet.published import differences, member_differences, published, published_pool
from soups.report.imagenet.results import TITLES, check_imagenet, columns_of, row_named, rows_of, value
from soups.report.imagenet.tables import NOTE, difference_text, headings, percent, sentences
from soups.report.shell import figures, folded, head_cell, number_cell, shell, text_cell

PLANS = (
    (
        "imagenet",
        "ImageNet against its shifts",
        draw.scatter,
        "Farther right is better on ImageNet, farther up on the plain mean of V2, Sketch, R, ObjectNet and A. Dots are "
        "members, stars soups; the green line is WiSE-FT.",
    ),
    (
        "wise_ft",
        "Along WiSE-FT",
        draw.wise_ft,
        "Accuracy of the weights (1 − α) · base + α · member. Thick: ImageNet and the mean of the shifts.",
    ),
)


def write_imagenet_report(results: Mapping, directory: str | os.PathLike) -> list[str]:
    """Make `report.html` and `figures/*.png` in a directory from the results alone; list what was written.

    Raises:
        ValueError: results of another schema, or without keys that are required.
        OSError: as `soups.files.replace_file`.
    """
    check_imagenet(results)
    folder = pathlib.Path(directory) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    drawn = _draw_all(results)
    for name in {name for name, *_ in PLANS} - {figure.name for figure in drawn}:
        (folder / f"{name}.png").unlink(missing_ok=True)
    paths = [replace_file(folder / f"{figure.name}.png", figure.png) for figure in drawn]
    return [str(path) for path in (replace_file(folder.parent / "report.html", page(results, drawn)), *paths)]


def page(results: Mapping, drawn: Sequence[Drawn]) -> str:
    """Write the page with its tables and figures."""
    sections = [
        ("results", "Results", _rows_table(results, rows_of(results, "main"))),
        ("figures", "Figures", figures(drawn)),
        ("wise-ft", "Along WiSE-FT", _rows_table(results, rows_of(results, "curve"))),
        ("beside", "Members beside the published", _summary_table(results)),
        ("members", "Members", _members_table(results)),
        ("selection", "How the soups were chosen", _histories(results)),
        ("run", "The run", _run(results)),
    ]
    said = "".join(f"<li>{escape(text)}</li>" for text in sentences(results))
    notes = "".join(f'<p class="minus">{escape(text)}</p>' for text in results["notes"])
    intro = f"{notes}<h3>What was measured</h3><ul>{said}</ul>"
    return shell(results, sections, intro=intro, described="docs/results_imagenet.md")


def _draw_all(results) -> list[Drawn]:
    drawn = []
    with style.look():
        for name, title, plan, caption in PLANS:
            if (figure := plan(results)) is not None:
                beside = (
                    " Hollow: where the same was published." if published_pool(results) and name == "imagenet" else ""
                )
                drawn.append(Drawn(name, title, caption + beside, style.png(figure)))
    return drawn


def _rows_table(results, rows):
    if not rows:
        return ""
    body = []
    for row in rows:
        counts = [number_cell(str(row[key]), row[key]) for key in ("num_ingredients", "passes")]
        body.append([head_cell(row["name"]), *_accuracy_cells(results, row), *counts])
    note = "Accuracy in percent; passes: forward passes for a prediction."
    if published_pool(results):
        note += f" {NOTE} Below it, the published number."
    return page_tables.table(["", *headings(results), "models", "passes"], body, note)


def _accuracy_cells(results, row):
    found = differences(results, row)
    for column in columns_of(results):
        one, number = found.get(column), value(row, column)
        beside = ""
        if one is not None:
            color = "minus" if one.outside else "spread"
            beside = (
                f' <small class="{color}">{difference_text(one)}</small><br><small>{percent(one.published)}</small>'
            )
        yield f'<td data-v="{number:.10g}"><span>{percent(number)}</span>{beside}</td>'


def _summary_table(results):
    body = []
    for column, found in member_differences(results).items():
        known = "not known" if found["tolerance"] is None else f"±{found['tolerance']}"
        outside = "–" if found["tolerance"] is None else str(found["outside"])
        cells = [number_cell(f"{found[key]:+.4g}", found[key]) for key in ("mean", "largest")]
        body.append([head_cell(TITLES[column]), *cells, *map(text_cell, (found["member"], known, outside))])
    heads = ["", "mean difference", "largest", "of", "between machines", "members outside"]
    return page_tables.table(heads, body, "Ours − published, in images.") if body else ""


def _members_table(results):
    settings = _hyperparameters(results)
    keys = list(dict.fromkeys(key for found in settings.values() for key in found))
    greedy = next((row["ingredients"] for row in rows_of(results, "main") if row["name"] == "greedy soup"), {})
    body = []
    for row in rows_of(results, "member"):
        own = settings.get(row["name"], {})
        cells = [_setting(own.get(key)) for key in keys]
        taken = text_cell("yes" if row["name"] in greedy else "")
        digest = text_cell(row.get("digest", "")[:12])
        body.append([head_cell(row["name"]), *_accuracy_cells(results, row), taken, *cells, digest])
    return page_tables.table(["", *headings(results), "in greedy soup", *map(style.words, keys), "digest"], body)


def _hyperparameters(results):
    if published_pool(results) == "soups":
        return {name: member["hyperparameters"] for name, member in published()["members"].items()}
    return results.get("hyperparameters", {})


def _setting(found):
    return number_cell(f"{found:.4g}", found) if isinstance(found, int | float) else text_cell(found or "")


def _histories(results):
    parts = []
    for name, history in results.get("histories", {}).items():
        if history and isinstance(history[0], Mapping):
            table = page_tables.history_table(history)
        else:
            table = _mixture(row_named(results, name)) + page_tables.history_table([{"loss": loss} for loss in history])
        parts.append(f"<details><summary>{escape(name)}</summary>{table}</details>\n")
    return "".join(parts)


def _mixture(row):
    """Show the weights of a learned soup, the largest first, and its temperature."""
    if row is None:
        return ""
    weights = sorted(row["ingredients"].items(), key=lambda item: -item[1])
    body = [[head_cell(name), number_cell(f"{weight:.4f}", weight)] for name, weight in weights]
    return page_tables.table(["", "weight"], body, f"Logits are multiplied by {row['temperature']:.4g}.")


def _run(results):
    parts = [("Configuration", results["config"]), ("Sets", results["sets"]), ("Versions", results.get("versions", {}))]
    parts += [("Sources of the published numbers", published()["sources"])] if published_pool(results) else []
    return folded([*parts, ("Seconds of each stage", results.get("timings", {}))])
