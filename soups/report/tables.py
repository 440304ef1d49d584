"""Aggregate the rows of results over seeds, and lay them out as one table: on the terminal, as CSV and as LaTeX."""

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from soups.report import results as files

#: kinds of rows that predict with more than one set of weights, stand for several networks, or were chosen by test data
NOT_ALONE = ("ensemble", "members", "masked", "oracle")


class Spread(NamedTuple):
    """Hold the values of all seeds: their mean, their sample standard deviation (NaN for one), and the values.

    `error`: the standard error of the mean where it is not that of the values but known from the examples.
    """

    mean: float
    deviation: float
    values: tuple[float, ...] = ()
    error: float = math.nan

    @property
    def half(self) -> float:
        """Return half the width of the 95 % interval of the mean (Student's t); NaN where it is not known."""
        number = len(self.values)
        if number > 1:
            return float(stdtrit(number - 1, 0.975)) * self.deviation / math.sqrt(number)
        return 1.96 * self.error


def spread(values: Iterable[float | None], error: float = math.nan) -> Spread:
    """Return mean and sample standard deviation of one value for each seed."""
    values = tuple(math.nan if value is None else float(value) for value in values)
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return Spread(float(np.mean(values)), deviation, values, error)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """Hold a main row, aggregated over the seeds that have it.

    Attributes:
        of: what it is of, such as a network, by name.
        metrics: `Spread` by split and metric.
        gain: the difference of the main metric from that of the reference in the same seed, by split; empty without.
        classes: the main metric by split and class.
        published: by split what was published for it.
    """

    name: str
    kind: str
    family: str
    of: Mapping[str, Any]
    seeds: tuple[int, ...]
    metrics: Mapping[str, Mapping[str, Spread]]
    gain: Mapping[str, Spread]
    classes: Mapping[str, Mapping[str, Spread]]
    num_ingredients: Spread
    cost: Mapping[str, Spread]
    settings: tuple[Mapping, ...]
    ingredients: tuple[Mapping, ...]
    published: Mapping[str, Mapping]

    @property
    def alone(self) -> bool:
        """Say whether it predicts with one network and one forward pass, which no test data chose."""
        passes = self.cost["inference"].mean if "inference" in self.cost else 1.0
        return self.kind not in NOT_ALONE and not passes > 1


def rows_table(results: Mapping, group: str = "main") -> list[Row]:
    """Aggregate the rows of a group over seeds, in the order of the file."""
    grouped = files.grouped(files.rows_of(results, group), lambda row: (row["name"], files.facets(row)))
    main = [row for row in files.rows_of(results, "main") if row["name"] == results["reference"]]
    references = {(row["seed"], files.facets(row)): row for row in main}
    return [_aggregate(results, rows, references) for rows in grouped.values()]


def row_named(rows: Sequence[Row], name: str) -> Row | None:
    """Find the first aggregated row of this name."""
    return next((row for row in rows if row.name == name), None)


def best_of(results: Mapping, rows: Sequence[Row], split: str, metric: str | None = None) -> list[Row]:
    """List the rows that share the best mean of a metric, of the main one if none is named."""
    metric = metric or results["metric"]
    better = max if files.metric_of(results, metric).better == "higher" else min
    means = [row.metrics[split][metric].mean if metric in row.metrics.get(split, ()) else math.nan for row in rows]
    best = better((mean for mean in means if math.isfinite(mean)), default=None)
    return [row for row, mean in zip(rows, means, strict=True) if mean == best]


def _aggregate(results, rows, references) -> Row:
    first, metric = rows[0], results["metric"]
    paired = [(row, references[key]) for row in rows if (key := (row["seed"], files.facets(row))) in references]
    splits = [split for split in results["splits"] if any(split in row["metrics"] for row in rows)]

    def spreads(split):
        return {n: spread([files.value(row, split, n) for row in rows]) for n in first["metrics"].get(split, ())}

    return Row(
        name=first["name"],
        kind=first["kind"],
        family=first.get("family", ""),
        of=first.get("of", {}),
        seeds=tuple(row["seed"] for row in rows),
        metrics={split: spreads(split) for split in splits},
        gain={split: _gain(results, paired, split, metric) for split in splits} if len(paired) == len(rows) else {},
        classes={
            split: {name: spread([row.get("classes", {}).get(split, {}).get(name) for row in rows]) for name in found}
            for split, found in first.get("classes", {}).items()
        },
        num_ingredients=spread([row.get("num_ingredients", len(row.get("ingredients", ())) or None) for row in rows]),
        cost={cost: spread([row.get("cost", {}).get(cost) for row in rows]) for cost in first.get("cost", {})},
        settings=tuple(row.get("settings", {}) for row in rows),
        ingredients=tuple(row.get("ingredients", {}) for row in rows),
        published=first.get("published", {}),
    )


def _gain(results, paired, split, metric) -> Spread:
    differences = [files.value(row, split, metric) - files.value(other, split, metric) for row, other in paired]
    if len(paired) > 1:
        return spread(differences)
    # parts of a mean may share examples: its error is at most the mean of theirs
    parts = files.details(results, split) or [split]
    return spread(differences, sum(_error(results, paired[0][0], part) for part in parts) / len(parts))


def _error(results, row, split):
    """Return the standard error of a difference of two accuracies, from the examples that only one of them has right.

    NaN where nobody counted those.
    """
    won, lost = row.get("wins", {}).get(split, (math.nan, math.nan))
    number = results["splits"][split].get("examples", 0)
    return math.sqrt(max(won + lost - (won - lost) ** 2 / number, 0)) / number if number > 0 else math.nan


def format_number(number: float, scale: float = 1.0, digits: int = 2, sign: str = "") -> str:
    """Write a number with a true minus sign, a dash for NaN, and no sign before zero."""
    if not math.isfinite(number):
        return "–"
    text = f"{scale * number:{sign},.{digits}f}".replace("-", "−")
    return text.lstrip("+−") if float(text.replace(",", "").replace("−", "-")) == 0 else text


def format_spread(found: Spread, scale: float = 1.0, digits: int = 2, sign: str = "", half: float | None = None) -> str:
    """Write a mean and half of its 95 % interval ("97.12 ±0.11"), or another `half`; a dash for NaN.

    Without an interval it is the mean alone.
    """
    text, half = format_number(found.mean, scale, digits, sign), found.half if half is None else half
    known = math.isfinite(found.mean) and math.isfinite(half)
    return text + (f" ±{scale * half:.{digits}f}" if known else "")


def format_metric(found: Spread, metric: files.Metric, digits: int = 2) -> str:
    """Write a metric: percentages of two decimals without the sign, other numbers of three."""
    return format_spread(found, 100, digits) if metric.percent else format_spread(found, digits=3)


def format_gain(found: Spread, metric: files.Metric) -> str:
    """Write a difference with its sign, and its 95 % interval as "+0.60 [+0.12, +1.08]"."""
    shown = metric.scale, metric.digits, "+"
    text = format_number(found.mean, *shown)
    if math.isfinite(found.mean) and found.half > 0:
        ends = [format_number(found.mean + side * found.half, *shown) for side in (-1, 1)]
        text += f" [{ends[0]}, {ends[1]}]"
    return text


def format_count(found: Spread) -> str:
    """Write a count: an integer where it is the same in all seeds, else one decimal and half of the interval."""
    same = not found.deviation > 0
    return format_number(found.mean, digits=0) if same else format_spread(found, digits=1)


def format_seconds(found: Spread) -> str:
    """Write seconds: one decimal, two below one."""
    return format_spread(found, digits=1 if not math.isfinite(found.mean) or found.mean >= 1 else 2)


def format_bytes(found: Spread) -> str:
    """Write a size in the unit that gives it one to three digits before the point."""
    size, unit = found.mean, 0
    while size >= 1000 and unit < 4:
        size, unit = size / 1000, unit + 1
    return f"{size:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[unit]}" if math.isfinite(size) else "–"


class Cell(NamedTuple):
    """Hold a cell: its text, the number or text that sorts it, what is said beside it and where one points at it."""

    text: str
    value: float | str
    beside: str = ""
    hover: str = ""
    look: str = ""  # "best", "plus", "minus", "code", "kind" and the kind of a row
    found: Spread | None = None


class Table(NamedTuple):
    """Hold a finished table: headings, rows of cells of which the first are the names, and what explains them."""

    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


#: heading, how it is written, and what it counts, of each known cost
COSTS: dict[str, tuple[str, Callable[[Spread], str], str]] = {
    "inference": ("passes", format_count, "forward passes for a prediction"),
    "selection": ("selection", format_count, "examples pushed forward on held-out data to choose or make it"),
    "training": ("training", format_count, "examples pushed forward in training beyond the pool's"),
    "seconds": ("seconds", format_seconds, "of the merge with the chosen settings; of a baseline, its training"),
    "bytes": ("size", format_bytes, "what is stored"),
    "sent": ("sent", format_bytes, "what a worker sends while it trains"),
    "labelled": ("labelled", format_count, "examples taken to merge or train, beside those that choose settings"),
    "unlabelled": ("unlabelled", format_count, "the same without labels"),
    "search_seconds": ("search s", format_seconds, "all settings that were compared"),
    "search_points": ("points", format_count, "their number"),
}


def main_table(results: Mapping, names: Collection[str] = ()) -> Table:
    """Lay out the main rows: the main metric and its gain by role of the splits, other metrics on test, cost.

    With `names` it is a short table: of these rows alone, their main metric on test sets, and forward passes.
    """
    whole, splits = rows_table(results), files.summary_splits(results)
    rows = [row for row in whole if row.name in names] or whole
    if names:
        splits = {role: split for role, split in splits.items() if role in ("test", "shift")}
    main, test = files.metric_of(results), splits["test"]
    heads, columns = [], []

    def add(head, cells):
        heads.append(head)
        columns.append(cells)

    for facet in dict.fromkeys(facet for row in rows for facet in row.of):
        add(facet, [text_cell(row.of.get(facet, "")) for row in rows])
    if any(row.family for row in rows):
        add("family", [text_cell(row.family) for row in rows])
    for split in splits.values():
        add(_head(results, split, main), metric_cells(results, rows, split, results["metric"]))
        if split != splits.get("held_out") and split != splits.get("train") and any(row.gain for row in rows):
            add(
                f"{files.title_of(results, split)} {_called(main)}",
                [_gain_cell(row.gain.get(split), main) for row in rows],
            )
    others = dict.fromkeys(name for row in rows for name in row.metrics.get(test, ()) if name != results["metric"])
    others = {} if names else others
    for name in others:
        metric = files.metric_of(results, name)
        add(metric.title + " %" * metric.percent, metric_cells(results, rows, test, name))
    if any(math.isfinite(row.num_ingredients.mean) for row in rows):
        add("members", [_number_cell(row.num_ingredients, format_count) for row in rows])
    costs = dict.fromkeys(cost for row in rows for cost in row.cost if not names or cost == "inference")
    for name in costs:
        head, form, _ = COSTS.get(name, (name, format_spread, ""))
        add(head, [_number_cell(row.cost.get(name, spread([None])), form) for row in rows])
    body = [[name_cell(results, row), *cells] for row, *cells in zip(rows, *columns, strict=True)]
    left = len(whole) - len(rows)
    more = f" {left} more row{'s' * (left > 1)}: see report.html." if left else ""
    return Table(["", *heads], body, _note(results, rows, others, costs) + more)


def split_table(results: Mapping, splits: Sequence[str], metrics: Sequence[str] = (), group: str = "main") -> Table:
    """Lay out metrics of the rows of a group (only the main one unless some are named) on some splits."""
    rows, metrics = rows_table(results, group), metrics or [results["metric"]]
    heads = [_head(results, split, files.metric_of(results, name)) for split in splits for name in metrics]
    columns = [metric_cells(results, rows, split, name) for split in splits for name in metrics]
    body = [[name_cell(results, row), *cells] for row, *cells in zip(rows, *columns, strict=True)]
    return Table(["", *heads], body, " ".join([*_over_seeds(results), _HIGHLIGHTED]))


def class_table(results: Mapping, split: str) -> Table:
    """Lay out the main metric of each class on a split."""
    rows, metric = [row for row in rows_table(results) if split in row.classes], files.metric_of(results)
    names = list(dict.fromkeys(name for row in rows for name in row.classes[split]))
    body = []
    for row in rows:
        found = (row.classes[split].get(name, spread([None])) for name in names)
        cells = (_number_cell(one, lambda s: format_metric(s, metric, 1)) for one in found)
        body.append([name_cell(results, row), *cells])
    return Table(["", *names], body)


def pair_table(results: Mapping) -> Table | None:
    """Lay out what was measured of pairs: the mean over the pairs of one kind, else pair by pair; None without."""
    if not results["pairs"]:
        return None

    def kind(pair):
        return tuple(pair["of"].items()) if pair.get("of") else (("a", pair["a"]), ("b", pair["b"]))

    grouped = files.grouped(results["pairs"], kind)
    facets = list(dict.fromkeys(name for key in grouped for name, _ in key))
    values = list(dict.fromkeys(name for pair in results["pairs"] for name in pair["values"]))
    body = []
    for key, pairs in grouped.items():
        cells = [text_cell(dict(key).get(facet, "")) for facet in facets]
        found = (spread([pair["values"].get(name) for pair in pairs]) for name in values)
        cells += (_number_cell(one, _format_pairs) for one in found)
        body.append(cells)
    heads = [str(name).replace("_", " ") for name in (*facets, *values)]
    return Table(heads, body, "Mean ± standard deviation over pairs and seeds.")


def _format_pairs(found):
    # pairs share members: what they show is how much they differ, not an interval
    return format_spread(found, digits=1 if found.mean >= 10 else 3, half=found.deviation)


def text_cell(text: Any, look: str = "") -> Cell:
    """Return a cell of text, or of a plain number."""
    if isinstance(text, bool) or text is None:
        text = {True: "yes", False: "no", None: ""}[text]
    if isinstance(text, float) or (isinstance(text, int) and abs(text) < 2**53):
        return Cell(f"{text:.4g}" if isinstance(text, float) else str(text), float(text), look=look)
    return Cell(str(text), str(text), look=look)


def name_cell(results: Mapping, row: Row) -> Cell:
    """Return the name of a row, with how many of the seeds have it where some lack it."""
    missing = len(row.seeds) < len(results["seeds"])
    name = row.name + (f" ({len(row.seeds)} of {len(results['seeds'])} seeds)" if missing else "")
    made = ", ".join(f"{member} {weight:.3g}" for member, weight in list(row.ingredients[0].items())[:12])
    return Cell(name, name, hover=made or row.family or row.kind, look=f"kind {row.family or row.kind}")


def metric_cells(results: Mapping, rows: Sequence[Row], split: str, name: str) -> list[Cell]:
    """Return a column of one metric; the best of the rows that predict with one network stand out."""
    metric = files.metric_of(results, name)
    best = best_of(results, [row for row in rows if row.alone], split, name)
    cells = []
    for row in rows:
        found = row.metrics.get(split, {}).get(name, spread([None]))
        cell = _number_cell(found, lambda s: format_metric(s, metric))
        beside, hover = _published(results, row, split, found) if name == results["metric"] else ("", "")
        hover = "; ".join(text for text in (_by_seed(row, found, metric), hover) if text)
        cells.append(cell._replace(beside=beside, hover=hover, look="best" if any(row is b for b in best) else ""))
    return cells


def _by_seed(row, found, metric):
    if len(found.values) < 2:
        return ""
    shown = metric.scale, metric.digits
    each = (f"seed {s}: {format_number(v, *shown)}" for s, v in zip(row.seeds, found.values, strict=True))
    ends = [format_number(found.mean + side * found.half, *shown) for side in (-1, 1)]
    error = format_number(found.deviation / math.sqrt(len(found.values)), *shown)
    return "; ".join([*each, f"95 % interval {ends[0]} to {ends[1]}", f"standard error {error}"])


def _published(results, row, split, found):
    """Say how far a number is from the published one: in examples where that is exact, else in points (p)."""
    if (theirs := row.published.get(split)) is None:
        return "", ""
    difference = found.mean - theirs["value"]
    examples = results["splits"][split].get("examples")
    if not theirs["exact"] or not examples or len(found.values) > 1 or not math.isfinite(difference):
        return f"{format_number(difference, 100, 2, '+')}p", f"published {100 * theirs['value']:.2f} %"
    count, known = round(difference * examples), theirs.get("tolerance")
    outside = known is not None and abs(count) > known
    hover = f"published {100 * theirs['value']:.3f} %, here {count:+d} examples"
    hover += "" if known is None else f"; two machines have differed by up to {known:g}"
    return f"{count:+d}".replace("-", "−") + "!" * outside, hover


def _called(metric):
    return "gain" if metric.better == "higher" else "change"


def _gain_cell(found, metric):
    if found is None:
        return Cell("–", math.nan)
    text = format_gain(found, metric)
    look = "plus" if (found.mean > 0) == (metric.better == "higher") else "minus"
    # an interval that holds 0 says neither, nor does one that is not known
    better = sum(metric.sign * value > 0 for value in found.values)
    each = ", ".join(format_number(value, metric.scale, metric.digits, "+") for value in found.values)
    hover = f"better in {better} of {len(found.values)} seeds: {each}" if len(found.values) > 1 else ""
    return Cell(text, found.mean, hover=hover, look=look if abs(found.mean) > found.half else "", found=found)


def _number_cell(found, form):
    return Cell(form(found), found.mean, found=found)


def _head(results, split, metric):
    plain = metric is files.METRICS["accuracy"] or metric.title == "accuracy"
    return f"{files.title_of(results, split)}{'' if plain else f' {metric.title}'}{' %' if metric.percent else ''}"


def _note(results, rows, others, costs):
    parts = _over_seeds(results)
    if any(row.gain for row in rows):
        known = any(math.isfinite(found.half) for row in rows for found in row.gain.values())
        interval = ", with its 95 % interval, in colour where that excludes 0" if known else ""
        metric = files.metric_of(results)
        points = "points over" if metric.percent else "difference from"
        lower = "" if metric.better == "higher" else "; lower is better"
        parts.append(
            f"{_called(metric).capitalize()}: {points} the {results['reference']} of the same seed{lower}{interval}."
        )
    if others:
        parts.append(f"{', '.join(files.metric_of(results, name).title for name in others)}: on test.")
    explained = [f"{COSTS[name][0]}: {COSTS[name][2]}" for name in costs if name in COSTS]
    if explained:
        parts.append(f"{'; '.join(explained).capitalize()}.")
    if any(row.published for row in rows):
        parts.append(
            "Beside a number: its difference from the published one, in examples or points (p); ! is too much."
        )
    return " ".join([*parts, _HIGHLIGHTED])


_HIGHLIGHTED = "Highlighted: the best that predict with one network."


def _over_seeds(results):
    number = len(results["seeds"])
    return [f"Mean ± half of its 95 % interval over {number} seeds (Student's t)."] if number > 1 else []


def to_csv(table: Table) -> str:
    """Write a table as CSV: unrounded numbers, fractions and not percent, each with its deviation and its interval."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    columns = []
    for head, cells in zip(table.heads, zip(*table.rows, strict=True), strict=True):
        columns.append([head or "name", *(_plain(cell.value) for cell in cells)])
        if any(cell.found and len(cell.found.values) > 1 for cell in cells):
            for what in ("deviation", "half"):
                ends = (_plain(getattr(cell.found, what)) if cell.found else "" for cell in cells)
                columns.append([f"{head}, {'half of the 95 % interval' if what == 'half' else what}", *ends])
    writer.writerows(zip(*columns, strict=True))
    return file.getvalue()


def to_latex(table: Table) -> str:
    """Write a table as LaTeX for the package booktabs; what is highlighted is bold."""
    columns = "l" + "".join("l" if isinstance(cell.value, str) else "r" for row in table.rows[:1] for cell in row[1:])
    heads = f"{' & '.join(map(_latex, table.heads))} \\\\"
    lines = [f"\\begin{{tabular}}{{{columns}}}", "\\toprule", heads, "\\midrule"]
    for row in table.rows:
        cells = [f"\\textbf{{{_latex(cell.text)}}}" if cell.look == "best" else _latex(cell.text) for cell in row]
        lines.append(f"{' & '.join(cells)} \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {"~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
_LATEX |= {"\\": "\\textbackslash{}", "±": "$\\pm$", "−": "$-$", "–": "--", "α": "$\\alpha$", "<": "$<$", ">": "$>$"}


def _latex(text):
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _plain(found):
    return found if isinstance(found, str) else f"{found:.10g}" if math.isfinite(found) else ""
