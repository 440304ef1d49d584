"""Build the tables of the report page; every text that comes from the results is escaped."""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from numbers import Real

from soups.report import results as files
from soups.report import style
from soups.report.tables import (
    COSTS,
    all_best,
    format_count,
    format_percent,
    format_points,
    format_spread,
    one_pass,
    row_label,
    split_values,
)


def main_table(results: Mapping, rows: Sequence[Mapping]) -> str:
    """Build the table of the main rows: accuracies, gains, calibration on the test set, ingredients, cost."""
    gains = all(row["gain"] for row in rows)
    heads = ["", "held-out %", "test %", *(["gain"] if gains else []), "shift mean %", *(["gain"] if gains else [])]
    heads += ["NLL", "ECE %", "models", "passes", "selection", "training"]
    body = []
    for row in rows:
        cells = [_head(row, results), _metric(row, rows, "held_out", "accuracy")]
        for split in ("test", "shift_mean"):
            cells += [_metric(row, rows, split, "accuracy"), *([_gain(row["gain"][split])] if gains else [])]
        cells += [_metric(row, rows, "test", "nll"), _metric(row, rows, "test", "ece")]
        cells += [_cell(format_count(row["num_ingredients"]), row["num_ingredients"].mean)]
        cells += [_cell(format_count(row["cost"][cost]), row["cost"][cost].mean) for cost in COSTS]
        body.append(cells)
    notes = [
        "Gain: accuracy points over the best member of the same seed. NLL and ECE: on the test set. Passes: forward "
        "passes for a prediction. Selection: examples pushed forward on held-out data to choose or make it. Training: "
        "examples pushed forward in training beyond the pool's.",
        _legend(results),
    ]
    return table(heads, body, " ".join(notes))


def calibration_table(results: Mapping, rows: Sequence[Mapping]) -> str:
    """Build the table of NLL, Brier score and both calibration errors on the test set and the shifts' mean."""
    names = {"nll": "NLL", "brier": "Brier", "ece": "ECE %", "ece_equal_width": "ECE equal width %"}
    metrics = [metric for metric in names if all(metric in row["test"] for row in rows)]
    splits = {"test": "test", "shift_mean": "shifts"}
    heads = ["", *(f"{names[metric]}, {splits[split]}" for split in splits for metric in metrics)]
    body = [[_head(row, results), *(_metric(row, rows, s, m) for s in splits for m in metrics)] for row in rows]
    return table(heads, body, f"Lower is better everywhere. {_legend(results)}")


def shift_table(results: Mapping, rows: Sequence[Mapping]) -> str:
    """Build the table of the accuracy on every shift."""
    shifts = list(results["splits"]["shifts"])
    body = [
        [_head(row, results), *(_metric(row, rows, shift, "accuracy", digits=1) for shift in (*shifts, "shift_mean"))]
        for row in rows
    ]
    return table(["", *shifts, "mean"], body, f"Accuracy in percent. {_legend(results)}")


def pool_table(results: Mapping, seed) -> str:
    """Build the table of the members of one seed: hyper-parameters, accuracies, status, digest."""
    members = results["pool"].get(str(seed), [])
    rows = {row["name"]: row for row in files.rows_of(results, "member", seed)}
    chosen = (files.row_named(results, "greedy soup", seed) or {}).get("ingredients", {})
    keys = list(dict.fromkeys(key for member in members for key in member.get("config", {})))
    body = []
    for member in members:
        cells = [_text(member["name"], head=True), _text(member.get("status", ""))]
        for split in ("held_out", "test", "shift_mean"):
            found = files.value(rows[member["name"]], split) if member["name"] in rows else math.nan
            cells.append(_cell(f"{100 * found:.2f}" if math.isfinite(found) else "–", found))
        cells.append(_text("yes" if member["name"] in chosen else ""))
        cells += [_setting(member.get("config", {}).get(key)) for key in keys]
        cells.append(_text(str(member.get("digest", ""))[:12], code=True))
        body.append(cells)
    heads = ["member", "status", "held-out %", "test %", "shift mean %", "in greedy soup"]
    return table([*heads, *map(style.words, keys), "digest"], body)


def history_table(steps: Sequence[Mapping]) -> str:
    """Build the table of the steps of a greedy search."""
    keys = list(dict.fromkeys(key for step in steps for key in step))
    body = [
        [_text(str(index), head=True, value=index), *(_setting(step.get(key)) for key in keys)]
        for index, step in enumerate(steps, start=1)
    ]
    return table(["step", *map(style.words, keys)], body)


def pairs_table(pairs: Mapping) -> str:
    """Build a table of two columns, with nested objects written as dotted names."""
    body = [[_text(name, head=True, code=True), _text(text, code=True)] for name, text in _flatten(pairs)]
    return table(["", "value"], body)


def timings_table(results: Mapping) -> str:
    """Build the table of the seconds of each stage, by seed."""
    timings = results["timings"]
    stages = list(dict.fromkeys(stage for found in timings.values() for stage in found))
    body = []
    for stage in stages:
        seconds = [timings[seed].get(stage) for seed in timings]
        body.append([_text(stage, head=True), *(_cell("–" if s is None else f"{s:,.1f}", s) for s in seconds)])
    return table(["stage", *(f"seed {seed}, s" for seed in timings)], body)


def table(heads: Sequence[str], body: Sequence[Sequence[str]], note: str = "") -> str:
    """Join finished cells to a sortable table that scrolls sideways on its own."""
    head = "".join(f'<th scope="col"><button type="button">{escape(text) or "name"}</button></th>' for text in heads)
    rows = "\n".join(f"<tr>{''.join(cells)}</tr>" for cells in body)
    note = f'\n<p class="quiet">{escape(note)}</p>' if note else ""
    return (
        f'<div class="scroll"><table class="sortable"><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{rows}\n</tbody></table></div>{note}"
    )


# --- Cells ------------------------------------------------------------------------------------------------------------


def _legend(results):
    text = "Highlighted: best of the column; underlined: best with one forward pass a prediction."
    if len(results["seeds"]) > 1:
        text += f" Mean ± standard deviation over {len(results['seeds'])} seeds."
    return text


def _cell(text, value, classes=""):
    mean, _, deviation = text.partition(" ±")
    inner = escape(mean) + (f' <small class="spread">±{escape(deviation)}</small>' if deviation else "")
    number = "" if value is None or not math.isfinite(value) else f"{value:.10g}"
    return f'<td data-v="{number}"{classes and f" class={chr(34)}{classes}{chr(34)}"}><span>{inner}</span></td>'


def _text(text, *, head=False, code=False, value=None):
    text = escape(str(text))
    inner = f"<code>{text}</code>" if code and text else text
    tag, scope = ("th", ' scope="row"') if head else ("td", "")
    return f'<{tag}{scope} class="text" data-v="{text if value is None else value}">{inner}</{tag}>'


def _head(row, results):
    color = style.KINDS.get(row["kind"], style.KINDS["members"])[0]
    name = escape(row_label(row, results))
    dot = f'<span class="kind" style="background:{color}" title="{escape(row["kind"])}"></span>'
    return f'<th scope="row" data-v="{name}">{dot}{name}</th>'


def _metric(row, rows, split, metric, digits=2):
    found = split_values(row, split)[metric]
    is_percent = metric == "accuracy" or metric.startswith("ece")
    text = format_percent(found, digits) if is_percent else format_spread(found, digits=3)
    best = any(row is other for other in all_best(rows, split, metric))
    single = any(row is other for other in all_best([r for r in rows if one_pass(r)], split, metric))
    return _cell(text, found.mean, " ".join(name for name, on in (("best", best), ("single", single)) if on))


def _gain(gain):
    text = format_points(gain)
    return _cell(text, gain.mean, {"+": "plus", "−": "minus"}.get(text[0], ""))


def _setting(value):
    if isinstance(value, Real) and not isinstance(value, bool):
        return _cell(f"{value:.4g}", float(value))
    if isinstance(value, bool):
        return _text("yes" if value else "no")
    return _text("" if value is None else value if isinstance(value, str) else json.dumps(value))


def _flatten(pairs, prefix=""):
    for name, found in pairs.items():
        if isinstance(found, Mapping) and found:
            yield from _flatten(found, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", found if isinstance(found, str) else json.dumps(found)
