"""Say in a few short sentences what was seen in one run, whether soups helped or not."""

import math
from collections.abc import Mapping, Sequence

from soups.report import results as files
from soups.report.claims import verdicts
from soups.report.tables import Row, Spread, best_of, format_gain, format_metric, row_named, rows_table

#: rows that are compared with the reference wherever they are, chosen before anything is measured
COMPARED = ("uniform soup", "greedy soup", "learned soup", "ensemble")
_VERDICTS = ("better", "not clearly different", "worse")


def sentences(results: Mapping) -> list[str]:
    """Say what was measured, and on test and on shifts how soups compare with the reference.

    Where the usual soups are not there, or are among families of methods, it is the best soup in hindsight. A
    difference is called one where its 95 % interval excludes zero. Last, how many claims were seen, if there are any.
    """
    rows, splits = rows_table(results), files.summary_splits(results)
    # those that may be compared with each other: all, or those of the last place that rows are of
    rows = [row for row in rows if row.of == rows[-1].of]
    compared = [
        row for name in COMPARED if (row := row_named(rows, name)) and row.gain and not row.of and not row.family
    ]
    soups = [row for row in rows if row.alone and row.kind in ("soup", "interpolation", "trajectory")]
    said = [_measured(results, splits, row_named(rows, results["reference"]) if compared else None)]
    shown = [split for role in ("test", "shift") if (split := splits.get(role))]
    for split in shown:
        if compared:
            said.append(_compared(results, compared, row_named(rows, results["reference"]), split))
        elif best := best_of(results, soups, split):
            said.append(_best(results, best[0], split))
    if len(shown) < 2 and (chosen := best_of(results, [row for row in rows if row.alone], splits.get("held_out", ""))):
        found = f"{_level(results, chosen[-1], splits['test'])} on {files.title_of(results, splits['test'])}"
        said.append(f"Held-out data alone would choose {chosen[-1].name}: {found}.")
    return [*said, *filter(None, [verdicts(results)])]


def leading(results: Mapping, most: int = 10) -> list[str]:
    """Name the rows of a table of at most so many: base, reference and the usual soups, and the best by held-out data.

    Test data choose none of them.
    """
    rows, metric = rows_table(results), results["metric"]
    held_out, sign = files.summary_splits(results).get("held_out", ""), files.metric_of(results).sign

    def place(row):
        found = row.metrics.get(held_out, {}).get(metric)
        first = row.name in ("base", results["reference"], *COMPARED)
        return not first, -sign * found.mean if found and math.isfinite(found.mean) else math.inf

    return [row.name for row in sorted(rows, key=place)[:most]]


def _measured(results, splits, reference):
    seeds = len(results["seeds"])
    members = max(len(_members(results, seed)) for seed in results["seeds"])
    who = f"{members} members" if members else f"{len(rows_table(results))} rows"
    shown = [splits[role] for role in ("test", "shift") if role in splits]
    tests = [part for split in shown for part in files.details(results, split) or [split]]
    examples = sum(results["splits"][split].get("examples", 0) for split in tests)
    on = f"{examples:,} examples" + (f" of {len(tests)} test sets" if len(tests) > 1 else "")
    said = f"{who} were measured on {on}"
    if seeds > 1:
        return f"{said}, with {seeds} seeds" + ("; intervals (95 %) are those of Student's t." if reference else ".")
    half = _sampling(results, splits["test"], reference) if reference else math.nan
    if not math.isfinite(half):
        return f"{said}, with one seed."
    title = files.title_of(results, splits["test"])
    return (
        f"{said}, with one seed: intervals (95 %) are of the sampling of the examples alone (±{100 * half:.1f} points "
        f"for an accuracy on {title}), and another seed may differ by more."
    )


def _members(results, seed):
    """Return the names of the members of a seed that were measured, without those that only rows beside them are of."""
    measured = {row["name"] for row in files.rows_of(results, "member", seed)}
    return measured & {member["name"] for member in results["members"].get(str(seed), ())} or measured


def _sampling(results, split, row):
    """Return half of the 95 % interval of an accuracy, from the number of examples; NaN of another metric."""
    number, level = results["splits"][split].get("examples", 0), row.metrics[split][results["metric"]].mean
    known = results["metric"] == "accuracy" and number > 0 and 0 <= level <= 1
    return 1.96 * math.sqrt(level * (1 - level) / number) if known else math.nan


def _compared(results, rows: Sequence[Row], reference, split):
    metric = files.metric_of(results)
    over = f"{results['reference']}: {_level(results, reference, split)}"
    where = f"On {files.title_of(results, split)} ({over})"
    if not any(math.isfinite(row.gain[split].half) for row in rows if row is not reference):
        each = ", ".join(f"{row.name} {format_gain(row.gain[split], metric)}" for row in rows)
        points = ", in points" if metric.percent else ""
        return f"{where}{points}: {each}; {metric.better} is better, and no interval is known."
    found = {verdict: [] for verdict in _VERDICTS}
    for row in rows:
        gain = row.gain[split]
        sure = math.isfinite(gain.half) and abs(gain.mean) > gain.half
        verdict = _VERDICTS[1 if not sure else 0 if metric.sign * gain.mean > 0 else 2]
        found[verdict].append(f"{row.name} {format_gain(gain, metric)}")
    parts = []
    for verdict, those in found.items():
        listed = " and ".join([", ".join(those[:-1]), those[-1]] if len(those) > 1 else those)
        parts += [f"{listed} {'are' if len(those) > 1 else 'is'} {verdict}"] if those else []
    unit = ", in points" if metric.percent else ""
    return f"{where}{unit}: {'; '.join(parts)}."


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
