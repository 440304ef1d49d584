"""Aggregate the results of the experiment on independent networks over pairs and seeds, and print them."""

import math
from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from soups.report import style
from soups.report.tables import Spread, format_percent, format_points, format_spread, spread

SCHEMA = "soups.rebasin/1"
REQUIRED = ("schema", "experiment", "config", "seeds", "splits", "lambdas", "networks", "pairs", "soups")
SPLITS = ("train", "test")
METRICS = ("accuracy", "nll")


def check_rebasin(results: Mapping) -> None:
    """Raise a ValueError for another schema or for keys that are missing; docs/results_rebasin.md describes them."""
    if results.get("schema") != SCHEMA:
        raise ValueError(f"these results have schema {results.get('schema')!r}, not {SCHEMA!r}")
    if missing := [key for key in REQUIRED if key not in results]:
        raise ValueError(f"the results are not a complete {SCHEMA} file; missing: {', '.join(missing)}")


def title_of(name: str, results: Mapping) -> str:
    """Return a network's name for people: MLP 256-256-256."""
    network = results["networks"][name]
    return f"{network['kind'].upper()} {'-'.join(map(str, network['widths']))}"


def matching_title(row: Mapping) -> str:
    """Name a matching and what was done to its path."""
    return style.words(row["matching"]) + (", statistics re-estimated" if row["path"] == "repaired" else "")


def soup_title(row: Mapping) -> str:
    """Name a soup and what was done to it."""
    return row["name"] + (", repaired" if row["repaired"] else "")


def path_rows(results: Mapping) -> list[dict]:
    """Aggregate over pairs and seeds: one row for each network, matching, and path ("plain" or "repaired").

    Each has as `Spread`: `barrier` and `middle` by split and metric, `seconds`; and `pairs`, how many there are,
    `difference`, the largest change of a logit by a permutation in units of the largest logit; of every pair, by split
    and metric, `barriers` [pairs] and the values along the path, `lines` [pairs, points].
    """
    rows = []
    for network in results["networks"]:
        of_network = [pair for pair in results["pairs"] if pair["network"] == network]
        for path in ("plain", "repaired"):
            for matching in dict.fromkeys(pair["matching"] for pair in of_network):
                found = [pair for pair in of_network if pair["matching"] == matching and path in pair["paths"]]
                if found:
                    rows.append({"network": network, "matching": matching, "path": path, **_over_pairs(found, path)})
    return rows


def _over_pairs(pairs, path):
    def values(split, metric):
        return [pair["paths"][path][split][metric] for pair in pairs]

    middle = len(pairs[0]["paths"][path]["test"]["nll"]) // 2
    barriers = {s: {m: [p["paths"][path]["barrier"][s][m] for p in pairs] for m in METRICS} for s in SPLITS}
    return {
        "pairs": len(pairs),
        "barriers": barriers,
        "barrier": {s: {m: spread(barriers[s][m]) for m in METRICS} for s in SPLITS},
        "middle": {s: {m: spread([line[middle] for line in values(s, m)]) for m in METRICS} for s in SPLITS},
        "lines": {s: {m: values(s, m) for m in METRICS} for s in SPLITS},
        "seconds": spread([pair["seconds"] for pair in pairs]),
        "difference": max(
            pair["unchanged"]["largest_difference"] / pair["unchanged"]["largest_logit"] for pair in pairs
        ),
    }


def soup_rows(results: Mapping) -> list[dict]:
    """Aggregate over seeds: one row for each network and soup or baseline, `sizes` by number of models and metric.

    Each value is a `Spread` of the test set.
    """
    rows = []
    keys = dict.fromkeys((row["network"], row["name"], row["repaired"]) for row in results["soups"])
    for network, name, repaired in keys:
        found = [
            row
            for row in results["soups"]
            if (row["network"], row["name"], row["repaired"]) == (network, name, repaired)
        ]
        sizes = {
            size: {m: spread([row["metrics"]["test"][m] for row in found if row["size"] == size]) for m in METRICS}
            for size in sorted({row["size"] for row in found})
        }
        rows.append({"network": network, "name": name, "repaired": repaired, "sizes": sizes})
    return rows


# --- Cells, for the terminal and the page -----------------------------------------------------------------------------

PATH_HEADS = (
    "test barrier",
    "train barrier",
    "test barrier, points",
    "test % at ½",
    "train % at ½",
    "seconds",
)


def path_cells(row: Mapping) -> list[tuple[str, float]]:
    """Return text and number of the cells under `PATH_HEADS`."""
    barrier, middle = row["barrier"], row["middle"]
    points = Spread(*(100 * value for value in barrier["test"]["accuracy"]))
    return [
        (format_spread(barrier["test"]["nll"], digits=3), barrier["test"]["nll"].mean),
        (format_spread(barrier["train"]["nll"], digits=3), barrier["train"]["nll"].mean),
        (format_spread(points), points.mean),
        (format_percent(middle["test"]["accuracy"]), middle["test"]["accuracy"].mean),
        (format_percent(middle["train"]["accuracy"]), middle["train"]["accuracy"].mean),
        (format_spread(row["seconds"]), row["seconds"].mean) if row["path"] == "plain" else ("", math.nan),
    ]


def note(results: Mapping) -> str:
    """Say what the numbers of the table of paths are."""
    seeds, pairs = len(results["seeds"]), results["config"]["paths"]["pairs"]
    spread_over = f" Mean ± standard deviation over {pairs * seeds} disjoint pairs, {pairs} of each seed."
    return (
        "Barrier: the most by which a straight path is worse than the line between its ends, in NLL (nats) or in "
        "accuracy points. ½: the average of the two. Seconds: of the matching, with its compilation."
        + (spread_over if pairs * seeds > 1 else "")
    )


# --- Sentences --------------------------------------------------------------------------------------------------------


def conclusions(results: Mapping) -> list[str]:
    """Say in plain sentences what was measured, and where alignment did not help."""
    found = path_rows(results)
    together = {key: [row for row in found if (row["network"], row["path"]) == key] for key in _columns(found)}
    sentences = [text for rows in together.values() if (text := _of_paths(results, rows))]
    return [*sentences, *_of_soups(results), _of_function(found)]


def _columns(rows):
    return dict.fromkeys((row["network"], row["path"]) for row in rows)


def _of_paths(results, rows):
    naive = next((row for row in rows if row["matching"] == "naive"), None)
    matched = [row for row in rows if row["matching"] != "naive"]
    if naive is None or not matched:
        return ""
    best = min(matched, key=_test_barrier)
    repaired = ", statistics re-estimated" if best["path"] == "repaired" else ""
    sentence = (
        f"{title_of(best['network'], results)}{repaired}: the barrier on the test set is "
        f"{format_spread(naive['barrier']['test']['nll'], digits=3)} without matching and at its lowest "
        f"{format_spread(best['barrier']['test']['nll'], digits=3)} with {style.words(best['matching'])}."
    )
    if poor := [text for row in matched if (text := _no_help(row, naive))]:
        sentence += f" Matching did not lower it for every pair: {'; '.join(poor)}."
    return sentence


def _no_help(row, naive):
    pairs = list(zip(row["barriers"]["test"]["nll"], naive["barriers"]["test"]["nll"], strict=True))
    kept = [barrier for barrier, unmatched in pairs if barrier >= unmatched]
    if not kept:
        return ""
    return f"{style.words(row['matching'])} left {len(kept)} of {len(pairs)} no lower, the highest at {max(kept):.3f}"


def _test_barrier(row):
    return row["barrier"]["test"]["nll"].mean


def _of_soups(results):
    rows = soup_rows(results)
    for network in dict.fromkeys(row["network"] for row in rows):
        found = {soup_title(row): row for row in rows if row["network"] == network}
        size = max(found["uniform soup"]["sizes"])
        values = {title: row["sizes"][size]["accuracy"] for title, row in found.items()}
        soups = [title for title in values if title not in ("mean member", "best member", "ensemble")]
        best = max(soups, key=lambda title: values[title].mean)
        gain = Spread(100 * (values[best].mean - values["mean member"].mean), math.nan)
        yield (
            f"{title_of(network, results)}, soups of {size}: as they are {format_percent(values['uniform soup'])} % on "
            f"the test set; the highest is {best} with {format_percent(values[best])} %, {format_points(gain)} points "
            f"from the mean member ({format_percent(values['mean member'])} %); the ensemble has "
            f"{format_percent(values['ensemble'])} %."
        )


def _of_function(paths):
    worst = max((row["difference"] for row in paths), default=0.0)
    return f"Permuting a network changed its logits by at most {worst:.1e} of the largest one: rounding."


# --- The terminal -----------------------------------------------------------------------------------------------------


def print_rebasin_table(results: Mapping, console: Console | None = None) -> None:
    """Print the barriers of every network and matching, the soups, and what they say."""
    console = console or Console()
    title = f"soups · {results['experiment']} · straight paths between independent networks"
    rows = [
        [title_of(row["network"], results), matching_title(row), *(text for text, _ in path_cells(row))]
        for row in path_rows(results)
    ]
    _print(console, title, ["", "matching", *PATH_HEADS], rows, note(results))
    for network in dict.fromkeys(row["network"] for row in results["soups"]):
        found = [row for row in soup_rows(results) if row["network"] == network]
        sizes = list(found[0]["sizes"])
        rows = [[soup_title(row), *(format_percent(row["sizes"][size]["accuracy"]) for size in sizes)] for row in found]
        heads = ["", *(f"{size} models" for size in sizes)]
        _print(console, f"{title_of(network, results)}: test accuracy in %", heads, rows, "")
    for sentence in conclusions(results):
        console.print(Text(sentence))


def _print(console, title, heads: Sequence[str], rows, caption):
    table = Table(title=Text(title, style="bold"), caption=Text(caption), box=SIMPLE_HEAD, pad_edge=False)
    table.title_justify = table.caption_justify = "left"
    for index, head in enumerate(heads):
        table.add_column(head, justify="left" if not index or head == "matching" else "right", no_wrap=True)
    previous = None
    for row in rows:
        same = row[0] == previous
        previous = row[0]
        table.add_row(*(Text("" if same and not index else cell) for index, cell in enumerate(row)))
    if not console.is_terminal:
        console.width = max(console.width, Measurement.get(console, console.options.update(width=500), table).maximum)
    console.print(table)
