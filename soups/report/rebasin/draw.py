"""Draw the experiment on independent networks: straight paths, barriers against width, soups of several."""

from collections.abc import Mapping

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from soups.report import style
from soups.report.rebasin.tables import path_rows, soup_rows, title_of

COLORS = {
    "naive": "#7b8794",
    "weight": "#0072b2",
    "activation": "#00805e",
    "straight_through": "#c44e00",
    "uniform soup": "#7b8794",
    "aligned to the first": "#0072b2",
    "MergeMany": "#00805e",
    "ensemble": "#c44e00",
    "best member": "#1f2933",
    "mean member": "#1f2933",
}
_SINGLE = ("mean member", "best member", "ensemble")
_DASHED = (0, (4, 2))
_DOTTED = (0, (1, 1.6))


def paths(results: Mapping):
    """Draw loss and accuracy along λ, train and test; of each kind the network with the most matchings, then units."""
    rows = [row for row in path_rows(results) if row["network"] in _most_matched(results)]
    columns = list(dict.fromkeys((row["network"], row["path"]) for row in rows))
    figure, grid = _grid(3, len(columns), sharex=True, sharey="row")
    for column, (network, path) in enumerate(columns):
        for axes, metric in zip(grid[:, column], ("nll", "accuracy", "accuracy"), strict=True):
            for row in (row for row in rows if (row["network"], row["path"]) == (network, path)):
                _draw_path(axes, results["lambdas"], row, metric)
        repaired = "statistics re-estimated" if path == "repaired" else ""
        grid[0, column].set_title(f"{title_of(network, results)}\n{repaired}", fontsize=9)
        grid[-1, column].set_xlabel("λ")
        grid[-1, column].set_xticks([0, 0.5, 1], ["0", "½", "1"])
    grid[0, 0].set_yscale("log")
    style.plain_log_axis(grid[0, 0].yaxis)
    grid[2, 0].set_ylim(*_near_the_best(rows))
    _label_rows(grid, ("loss (NLL, nats)", "accuracy", "accuracy, enlarged"), percent=(1, 2))
    _legend(figure, dict.fromkeys(row["matching"] for row in rows), {"test": "-", "train": _DOTTED})
    return figure


def width(results: Mapping):
    """Draw the barriers on the test set against the width, one column for each kind of network of several widths."""
    rows = _of_several_widths(results, path_rows(results))
    columns = list(dict.fromkeys((row["kind"], row["path"]) for row in rows))
    if not columns:
        return None
    figure, grid = _grid(2, len(columns), sharex="col", sharey="row")
    for column, (kind, path) in enumerate(columns):
        found = [row for row in rows if (row["kind"], row["path"]) == (kind, path)]
        for axes, metric in zip(grid[:, column], ("nll", "accuracy"), strict=True):
            _draw_widths(axes, found, metric)
        repaired = "statistics re-estimated" if path == "repaired" else ""
        grid[0, column].set_title(f"{kind.upper()}\n{repaired}", fontsize=9)
        grid[1, column].set_xlabel("units of the first layer")
    # linear near 0, where the barrier of a wide network is
    for axes, linear in ((grid[0, 0], 0.01), (grid[1, 0], 1.0)):
        axes.set_yscale("symlog", linthresh=linear, linscale=0.5)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_ylim(bottom=0)
    grid[1, 0].set_ylim(top=110)
    _label_rows(grid, ("test barrier, loss (nats)", "test barrier, accuracy (points)"))
    _legend(figure, dict.fromkeys(row["matching"] for row in rows), {})
    return figure


def soups(results: Mapping):
    """Draw the test accuracy of soups against the number of models, one column for each network."""
    rows = soup_rows(results)
    networks = list(dict.fromkeys(row["network"] for row in rows))
    if not networks:
        return None
    figure, grid = _grid(2, len(networks), sharex="col", sharey="row")
    for column, network in enumerate(networks):
        for row in (row for row in rows if row["network"] == network):
            for axes in grid[:, column]:
                _draw_soup(axes, row)
        grid[0, column].set_title(title_of(network, results), fontsize=9)
        grid[1, column].set_xlabel("number of models")
    good = [row for row in rows if row["name"] in _SINGLE or (row["repaired"] and row["name"] != "uniform soup")]
    shown = [100 * found.mean for row in good for found in _accuracies(row)]
    grid[1, 0].set_ylim(min(shown) - 2, max(shown) + 0.7)
    _label_rows(grid, ("test accuracy", "test accuracy, enlarged"), percent=(0, 1))
    _legend(figure, dict.fromkeys(row["name"] for row in rows), {"as averaged": _DASHED, "repaired": "-"})
    return figure


# --- Lines ------------------------------------------------------------------------------------------------------------


def _draw_path(axes, lambdas, row, metric):
    color, scale = COLORS[row["matching"]], 100 if metric == "accuracy" else 1
    for split, line in (("train", _DOTTED), ("test", "-")):
        values = scale * np.asarray(row["lines"][split][metric])
        mean = values.mean(axis=0)
        axes.plot(lambdas, mean, color=color, linestyle=line, linewidth=1.6)
        if split == "test" and len(values) > 1:
            deviation = values.std(axis=0, ddof=1)
            axes.fill_between(lambdas, mean - deviation, mean + deviation, color=color, alpha=0.15, linewidth=0)


def _draw_widths(axes, rows, metric):
    scale = 100 if metric == "accuracy" else 1
    for index, matching in enumerate(dict.fromkeys(row["matching"] for row in rows)):
        found = sorted((row for row in rows if row["matching"] == matching), key=lambda row: row["width"])
        look = {"color": COLORS[matching], "zorder": 3}
        mean = [scale * row["barrier"]["test"][metric].mean for row in found]
        axes.plot([row["width"] for row in found], mean, marker="o", markersize=4, **look)
        # single pairs: one that is stuck far above the others is no matter of a symmetric spread
        for row in found:
            barriers = scale * np.asarray(row["barriers"]["test"][metric])
            beside = np.full(len(barriers), row["width"] * 1.07 ** (index - 1))
            axes.scatter(beside, barriers, s=9, alpha=0.45, linewidth=0, **look)
    widths = sorted({row["width"] for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(widths, [str(value) for value in widths])
    axes.minorticks_off()


def _draw_soup(axes, row):
    mean, deviation = (100 * np.nan_to_num(values) for values in zip(*_accuracies(row), strict=True))
    line = {"mean member": _DOTTED}.get(row["name"], "-" if row["repaired"] or row["name"] in _SINGLE else _DASHED)
    look = {"color": COLORS[row["name"]], "linestyle": line, "marker": "o", "markersize": 3.5, "elinewidth": 1}
    axes.errorbar(list(row["sizes"]), mean, deviation, **look)
    axes.set_xticks(list(row["sizes"]))


def _accuracies(row):
    return [found["accuracy"] for found in row["sizes"].values()]


# --- What is shown, and its frame -------------------------------------------------------------------------------------


def _most_matched(results):
    matchings = {name: set() for name in results["networks"]}
    for pair in results["pairs"]:
        matchings[pair["network"]].add(pair["matching"])
    best = {}
    for name, network in results["networks"].items():
        rank = (len(matchings[name]), sum(network["widths"]), name)
        best[network["kind"]] = max(best.get(network["kind"], rank), rank)
    return [name for *_, name in best.values()]


def _of_several_widths(results, rows):
    """Add kind and width to the rows, and keep the matchings that were done at several widths."""
    networks = results["networks"]
    rows = [
        row | {"kind": networks[row["network"]]["kind"], "width": networks[row["network"]]["widths"][0]} for row in rows
    ]
    widths = {}
    for row in rows:
        widths.setdefault((row["kind"], row["matching"]), set()).add(row["width"])
    return [row for row in rows if len(widths[row["kind"], row["matching"]]) > 1]


def _near_the_best(rows):
    """Return limits of accuracy that hold the best path of every column but those far below the others."""
    lowest = {}
    for row in rows:
        place = float(np.mean(row["lines"]["test"]["accuracy"], axis=0).min())
        column = row["network"], row["path"]
        lowest[column] = max(lowest.get(column, 0.0), place)
    return 100 * float(np.median(list(lowest.values()))) - 4, 100.7


def _grid(rows, columns, **options):
    return style.panels(rows, columns, width=max(7, 2.7 * columns + 0.6), height=0.9 + 2.3 * rows, **options)


def _label_rows(grid, texts, percent=()):
    for index, (axes, text) in enumerate(zip(grid[:, 0], texts, strict=True)):
        axes.set_ylabel(text)
        if index in percent:
            style.percent_axis(axes.yaxis)


def _legend(figure, names, lines):
    handles = [
        Line2D([], [], color=COLORS[name], label=style.words(name), linestyle=_DOTTED if name == "mean member" else "-")
        for name in names
    ]
    handles += [Line2D([], [], color=style.INK, linestyle=line, label=label) for label, line in lines.items()]
    columns = len(handles) if len(handles) <= 6 else -(-len(handles) // 2)
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False, fontsize=8.5)
