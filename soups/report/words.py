"""Say in three short sentences what results show, and where soups did not help."""

import math
from collections.abc import Mapping

from soups.report import results as files
from soups.report.tables import Spread, best_of, format_gain, format_metric, rows_table


def sentences(results: Mapping) -> list[str]:
    """Say what was measured, and what the best soup is on test and on shifts, in hindsight, against the reference."""
    rows, splits = rows_table(results), files.summary_splits(results)
    # those that may be compared with each other: all, or those of the last place that rows are of
    rows = [row for row in rows if row.of == rows[-1].of]
    soups = [row for row in rows if row.alone and row.kind in ("soup", "interpolation", "trajectory")]
    said = [_measured(results, splits)]
    shown = [split for role in ("test", "shift") if (split := splits.get(role))]
    for split in shown:
        if best := best_of(results, soups, split):
            said.append(_best(results, best[0], split))
    if len(shown) < 2 and (chosen := best_of(results, [row for row in rows if row.alone], splits.get("held_out", ""))):
        found = f"{_level(results, chosen[-1], splits['test'])} on {files.title_of(results, splits['test'])}"
        said.append(f"Held-out data alone would choose {chosen[-1].name}: {found}.")
    return said


def _measured(results, splits):
    seeds = len(results["seeds"])
    members = max(len({row["name"] for row in files.rows_of(results, "member", seed)}) for seed in results["seeds"])
    who = f"{members} members" if members else f"{len(rows_table(results))} rows"
    shown = [splits[role] for role in ("test", "shift") if role in splits]
    tests = [part for split in shown for part in files.details(results, split) or [split]]
    examples = sum(results["splits"][split].get("examples", 0) for split in tests)
    on = f"{examples:,} examples" + (f" of {len(tests)} test sets" if len(tests) > 1 else "")
    return f"{who} were measured on {on}" + (f", with {seeds} seeds." if seeds > 1 else ", with one seed.")


def _best(results, row, split):
    metric = files.metric_of(results)
    level = _level(results, row, split)
    place = "".join(f", {name} {value}" for name, value in row.of.items())
    where = f"On {files.title_of(results, split)}{place and f'{place},'}"
    if not row.gain:
        return f"{where} the best soup in hindsight is {row.name}: {level}."
    gain = row.gain[split]
    text = format_gain(gain, metric).replace("[", "(95 % interval ").replace(", ", " to ").replace("]", ")")
    points = text.replace(" (", " points (") if "(" in text else f"{text} points"
    points = points if metric.percent else text
    if metric.sign * gain.mean <= 0:
        return f"{where} no soup is better than the {results['reference']}: the best is {row.name}, {level}, {points}."
    doubt = " The interval includes 0." if abs(gain.mean) <= gain.half else ""
    over = f"{level}, {points} over the {results['reference']}"
    return f"{where} the best soup in hindsight is {row.name}: {over}.{doubt}"


def _level(results, row, split):
    metric = files.metric_of(results)
    level = format_metric(Spread(row.metrics[split][results["metric"]].mean, math.nan), metric)
    return level + (" %" if metric.percent else "")
