"""Draw lines: against the number of members, along WiSE-FT, losses, straight paths and barriers against width."""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from soups.report import labels, style
from soups.report import results as files
from soups.report.figures import FIRST, SPREAD, figure
from soups.report.tables import Row, rows_table, spread

_DASHED = (0, (4, 2))
_DOTTED = (0, (1, 1.6))
_SO_FAR = "best on held-out"  # the row of the best of the first members
_MOST_LINES = 7  # splits that a mean is over, beside the mean


@figure("How many models", seeds=SPREAD)
def number_of_models(results: Mapping):
    """When only the first k members are there. Where it is known which of these is the best on held-out data, the
    difference from it in the same seed is shown, else the level. A soup predicts with one forward pass however many
    members are in it, the ensemble with k. Dashed, if any: not repaired.
    """
    rows = [row for group in ("main", "curve") for row in rows_table(results, group) if "models" in row.of]
    columns = files.grouped(rows, _place)
    if len({row.of["models"] for row in rows}) < 2:
        return None
    panels = [(split, False) for role, split in files.summary_splits(results).items() if role in ("test", "shift")]
    alone, gains = len(columns) == 1, any(row.name == _SO_FAR for row in rows)
    panels = panels if gains or len(panels) > 1 else [*panels, (panels[0][0], True)]
    figure, grid = _grid(len(panels), len(columns), width=7 if alone else None, sharex="col", sharey="row")
    for column, (place, found) in enumerate(columns.items()):
        for axes, (split, _) in zip(grid[:, column], panels, strict=True):
            _draw_counts(axes, results, found, split)
        grid[0, column].set_title(", ".join(str(value) for _, value in place), fontsize=9)
        grid[-1, column].set_xlabel("number of members")
    for line, (split, enlarged) in zip(grid, panels, strict=True):
        _limits_of_counts(line[0], results, rows, split, enlarged)
        title = f"{files.title_of(results, split)}{', enlarged' if enlarged else ''}"
        unit = "points" if files.metric_of(results).percent else "difference"
        line[0].set_ylabel(f"{title}: {unit} over\nthe best member so far" if gains else title)
    names = list(dict.fromkeys(row.name for row in rows))
    if alone:
        _label_ends(figure, grid[:, 0], [split for split, _ in panels], rows, results)
    else:
        _legend(figure, {name: (_series_color(name), _dash(name, names)) for name in names})
    return figure


@figure("From the start to the best member", seeds="Means over {} seeds; bands: 95 % intervals.")
def wise_ft(results: Mapping):
    """Weights (1 − α) · base + α · member, the base being what fine-tuning started from. Left: along the path; right:
    the same path as test against shifts. The star is the α that is best on held-out data: the choice one can make
    without the test set.
    """
    rows = [row for row in rows_table(results, "curve") if "alpha" in row.of]
    rows.sort(key=lambda row: row.of["alpha"])
    splits = {role: split for role, split in files.summary_splits(results).items() if role != "train"}
    splits = {role: split for role, split in splits.items() if np.isfinite(_means(results, rows, split)[0]).any()}
    if len(rows) < 2 or "test" not in splits:
        return None
    both = "shift" in splits
    figure, (axes,) = style.panels(1, 2 if both else 1, height=3.9, **({"width_ratios": [1.15, 1]} if both else {}))
    by = _means(results, rows, splits.get("held_out", splits["test"]))[0]
    sign = files.metric_of(results).sign
    best = len(by) - 1 - int(np.nanargmax(sign * by[::-1]))  # the largest of equal ones, as the study chooses
    shown = [s for split in splits.values() for s in (split, *files.details(results, split))]
    shown = shown if len(shown) <= _MOST_LINES + 2 else list(splits.values())
    ends = _along_alpha(axes[0], results, rows, shown, best)
    if both:
        _test_against_shifts(axes[1], results, rows, splits, best)
        figure.get_layout_engine().set(wspace=0.28)
    else:
        figure.get_layout_engine().set(rect=(0, 0, 0.86, 1))
    style.freeze_layout(figure)
    labels.label_line_ends(axes[0], ends, size=8, gap=5)
    if both:
        _label_alphas(axes[1], results, rows, splits, best)
    return figure


@figure("Losses of the members", seeds=FIRST)
def losses(results: Mapping):
    """Training loss of every member, averaged over parts of its training, faint; and over a tenth of it before each
    place. Darker for a higher learning rate.
    """
    every = (results["members"].get(str(seed), ()) for seed in results["seeds"])
    members = next((kept for found in every if (kept := [m for m in found if len(m.get("losses", ())) > 1])), [])
    if not members:
        return None
    figure, ((axes,),) = style.panels(height=3.6)
    rates = [member.get("config", {}).get("learning_rate") for member in members]
    known = all(isinstance(rate, int | float) and 0 < rate < 1e30 for rate in rates)
    norm = style.scale_norm(rates) if known else None
    for member, rate in zip(members, rates, strict=True):
        line = np.array([math.nan if loss is None else loss for loss in member["losses"]], np.float64)
        color = style.GREYS(norm(rate)) if known else style.QUIET
        parts = max(1, round(len(line) / 10))
        axes.plot(np.linspace(0, 100, len(line)), _trailing(line, parts), color=color, linewidth=1.3, zorder=3)
        if parts > 1:
            axes.plot(np.linspace(0, 100, len(line)), line, color=color, linewidth=0.6, alpha=0.3)
    if all(loss is None or loss > 0 for member in members for loss in member["losses"]):
        axes.set_yscale("log")
        style.plain_log_axis(axes.yaxis)
    axes.set(xlabel="share of the training", ylabel="training loss", xlim=(0, 100))
    style.percent_axis(axes.xaxis)
    if known:
        style.colorbar(figure, ScalarMappable(norm, style.GREYS), axes, "learning rate", values=rates)
    return figure


@figure("The straight path between independent networks", seeds="Pairs of all {} seeds.")
def paths(results: Mapping):
    """Weights (1 − λ) A + λ π(B) between two networks trained from different starts, π being the permutation of B's
    units that each matching found; naive: none. Solid: test, with a band of one standard deviation over the pairs;
    dotted: train. Where the statistics are re-estimated, those of BatchNorm are measured anew at every λ.
    """
    pairs = [pair for pair in results["pairs"] if "network" in pair.get("of", {})]
    pairs = [pair for pair in pairs if {"nll", "accuracy"} <= pair.get("path", {}).get("test", {}).keys()]
    pairs = [pair for pair in pairs if pair["of"]["network"] in _most_matched(pairs)]
    columns = files.grouped(pairs, lambda pair: (pair["of"]["network"], pair["of"].get("statistics", "")))
    if not columns:
        return None
    figure, grid = _grid(3, len(columns), sharex=True, sharey="row")
    lowest = []
    for column, ((network, statistics), found) in enumerate(columns.items()):
        for matching, of_matching in files.grouped(found, _matching).items():
            for axes, metric in zip(grid[:, column], ("nll", "accuracy", "accuracy"), strict=True):
                _draw_path(axes, of_matching, matching, metric)
            lowest.append((column, _lines(of_matching, "test", "accuracy").mean(axis=0).min()))
        grid[0, column].set_title(f"{network}\n{statistics}".strip(), fontsize=9)
        grid[-1, column].set_xlabel("λ")
        grid[-1, column].set_xticks([0, 0.5, 1], ["0", "½", "1"])
    grid[0, 0].set_yscale("log")
    style.plain_log_axis(grid[0, 0].yaxis)
    best = [max(low for place, low in lowest if place == column) for column in range(len(columns))]
    grid[2, 0].set_ylim(100 * float(np.median(best)) - 4, 100.7)
    _label_rows(grid, ("loss (NLL, nats)", "accuracy", "accuracy, enlarged"), percent=(1, 2))
    matchings = dict.fromkeys(map(_matching, pairs))
    _legend(figure, {name: (style.series_color(name), "-") for name in matchings}, {"test": "-", "train": _DOTTED})
    return figure


@figure("Barriers against width", seeds="Pairs of all {} seeds.")
def width(results: Mapping):
    """The most by which the path is worse on the test set than the line between its ends, against the units of the
    first hidden layer. Lines: means over the pairs; small dots: single pairs. Logarithmic axes, linear near 0.
    """
    pairs = _of_several_widths([pair for pair in results["pairs"] if {"network", "units"} <= pair.get("of", {}).keys()])
    columns = files.grouped(pairs, lambda pair: (_network_kind(pair), pair["of"].get("statistics", "")))
    if not columns:
        return None
    figure, grid = _grid(2, len(columns), sharex="col", sharey="row")
    for column, ((kind, statistics), found) in enumerate(columns.items()):
        for axes, (name, scale) in zip(grid[:, column], _BARRIERS, strict=True):
            _draw_widths(axes, found, name, scale)
        grid[0, column].set_title(f"{kind}\n{statistics}".strip(), fontsize=9)
        grid[1, column].set_xlabel("units of the first layer")
    for axes, linear in zip(grid[:, 0], (0.01, 1.0), strict=True):  # near 0, where that of a wide network is
        axes.set_yscale("symlog", linthresh=linear, linscale=0.5)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_ylim(bottom=-0.3 * linear)  # a dot at 0 is whole
    grid[1, 0].set_ylim(top=110)
    _label_rows(grid, ("test barrier, loss (nats)", "test barrier, accuracy (points)"))
    _legend(figure, {m: (style.series_color(m), "-") for m in dict.fromkeys(map(_matching, pairs))})
    return figure


def _trailing(line, parts):
    """Return the mean of each value and those before it, so many in all, as far as they are there."""
    return np.array([line[max(0, end - parts) : end].mean() for end in range(1, len(line) + 1)])


def _place(row: Row):
    return tuple(item for item in row.of.items() if item[0] != "models")


def _means(results, rows, split):
    """Return mean and half interval of the main metric on a split, [rows]; NaN and 0 where it was not measured."""
    return _ends(results, [row.metrics.get(split, {}).get(results["metric"], spread([None])) for row in rows])


def _ends(results, found):
    scale = files.metric_of(results).scale
    mean, half = (scale * np.array([getattr(one, part) for one in found]) for part in ("mean", "half"))
    return mean, np.nan_to_num(half)


def _gains(results, rows, split, every):
    """Return the same of the differences from the best member so far, seed by seed."""
    best = {row.of["models"]: _by_seed(results, row, split) for row in every if row.name == _SO_FAR}
    differences = []
    for row in rows:
        theirs, ours = best.get(row.of["models"], {}), _by_seed(results, row, split)
        differences.append(spread([ours[seed] - theirs[seed] for seed in ours if seed in theirs] or [None]))
    return _ends(results, differences)


def _by_seed(results, row, split):
    found = row.metrics.get(split, {}).get(results["metric"], spread([None] * len(row.seeds)))
    return dict(zip(row.seeds, found.values, strict=True))


def _counted(rows, name):
    return sorted((row for row in rows if row.name == name), key=lambda row: row.of["models"])


def _aside(results, name, names):
    """Return how far a line is moved to the side, so that none of its whiskers hides another's."""
    return 0.1 * (names.index(name) - (len(names) - 1) / 2) if len(results["seeds"]) > 1 else 0.0


def _shown(results, rows, split, every):
    """Return means and half intervals as they are drawn: gains where it is known over what."""
    gains = any(row.name == _SO_FAR for row in every)
    return _gains(results, rows, split, every) if gains else _means(results, rows, split)


def _draw_counts(axes, results, rows, split):
    names = list(dict.fromkeys(row.name for row in rows))
    for name in names:
        found = _counted(rows, name)
        counts = np.array([row.of["models"] for row in found]) + _aside(results, name, names)
        mean, half = _shown(results, found, split, rows)
        look = {"color": _series_color(name), "linestyle": _dash(name, names), "zorder": 4}
        marked = len(counts) <= 12 and mean.any()  # the line that gains are over has none
        axes.plot(counts, mean, marker="o" if marked else None, markersize=3.5, **look)
        axes.vlines(counts, mean - half, mean + half, color=look["color"], alpha=0.5, linewidth=1.1)
    places = sorted({row.of["models"] for row in rows})
    axes.set_xlim(places[0] - 0.5, places[-1] + 0.5)
    if len(places) > 9:
        ticks = MaxNLocator(9, integer=True).tick_values(places[0], places[-1])
        places = [places[0], *(tick for tick in ticks if places[0] + 1 < tick <= places[-1])]
    axes.set_xticks(places)
    if _SO_FAR not in names:
        style.metric_axes(files.metric_of(results), axes.yaxis)


def _limits_of_counts(axes, results, rows, split, enlarged):
    mean, half = _shown(results, rows, split, rows)
    ends = np.concatenate([mean - half, mean + half])
    if not np.isfinite(mean).any():
        return
    sign = files.metric_of(results).sign
    if enlarged:
        ends = ends[sign * ends >= np.nanmedian(sign * mean)]
    least = 0.02 * files.metric_of(results).scale  # no axis shall make two points look like a collapse
    low, high = style.robust_limits(ends, whisker=20 if enlarged else 6, least=0.0 if enlarged else least)
    axes.set_ylim(low, high)
    worst = sign * float(np.nanmin(sign * mean))
    if not enlarged and not low <= worst <= high:
        style.note(axes, f"the worst point, {worst:.4g}, lies off the axis".replace("-", "−"))


def _label_ends(figure, grid, splits, rows, results):
    figure.get_layout_engine().set(rect=(0, 0, 0.84, 1))
    style.freeze_layout(figure)
    for axes, split in zip(grid, splits, strict=True):
        ends, names = [], list(dict.fromkeys(row.name for row in rows))
        for name in names:
            last = _counted(rows, name)[-1]
            mean, _ = _shown(results, [last], split, rows)
            if math.isfinite(mean[0]):
                y = float(np.clip(mean[0], *sorted(axes.get_ylim())))
                beyond = "" if y == mean[0] else " ↑" if mean[0] > y else " ↓"
                ends.append((last.of["models"] + _aside(results, name, names), y, name + beyond, _series_color(name)))
        labels.label_line_ends(axes, ends, size=8)


def _series_color(name):
    return style.series_color(name.removesuffix(", repaired"))


def _dash(name, names):
    if name.startswith(("best", "mean")):
        return _DOTTED
    return _DASHED if f"{name}, repaired" in names else "-"


def _along_alpha(axes, results, rows, splits, best):
    alphas, ends = [row.of["alpha"] for row in rows], []
    main = set(files.summary_splits(results).values())
    parts = [split for split in splits if split not in main]
    for split in splits:
        mean, half = _means(results, rows, split)
        color = style.series_color(split) if split in main else style.OTHERS[parts.index(split) % len(style.OTHERS)]
        axes.plot(alphas, mean, color=color, marker="o", markersize=3, linewidth=2 if split in main else 1.1)
        axes.fill_between(alphas, mean - half, mean + half, color=color, alpha=0.13, linewidth=0)
        ends.append((alphas[-1], mean[-1], files.title_of(results, split), color))
    axes.axvline(alphas[best], color=style.KINDS["soup"][0], linewidth=1, linestyle=(0, (2, 2)), zorder=1)
    axes.set(xlabel="α (0: base, 1: member)", title="Along the straight path", xlim=(-0.02, 1.02))
    style.metric_axes(files.metric_of(results), axes.yaxis)
    return ends


def _test_against_shifts(axes, results, rows, splits, best):
    color = style.KINDS["interpolation"][0]
    (test, _), (shift, _) = (_means(results, rows, splits[role]) for role in ("test", "shift"))
    axes.plot(test, shift, color=color, marker="o", markersize=3.5, zorder=3)
    axes.scatter(test[best], shift[best], s=120, marker="*", color=style.KINDS["soup"][0], edgecolor="white", zorder=5)
    axes.set(xlabel=files.title_of(results, splits["test"]), ylabel=files.title_of(results, splits["shift"]))
    axes.set_title("Test against shifts")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    style.metric_axes(files.metric_of(results), axes.xaxis, axes.yaxis)
    # a base far below its members, for instance one with a new head, must not squash the rest of the path
    axes.set_xlim(*style.robust_limits(test, keep=[test[best]], whisker=3, margin=0.14))
    axes.set_ylim(*style.robust_limits(shift, keep=[shift[best]], whisker=3, margin=0.14))
    far = [i for i in range(len(test)) if not style.inside(axes, test[i], shift[i])]
    if far:
        digits = files.metric_of(results).drawn_digits
        texts = [f"α = {rows[i].of['alpha']:g} at {test[i]:.{digits}f}, {shift[i]:.{digits}f}" for i in far[:2]]
        style.note(axes, "\n".join(["off the axes:", *texts, *(["…"] if len(far) > 2 else [])]))


def _label_alphas(axes, results, rows, splits, best):
    (test, _), (shift, _) = (_means(results, rows, splits[role]) for role in ("test", "shift"))
    marked = [i for i in dict.fromkeys([0, best, len(rows) - 1]) if style.inside(axes, test[i], shift[i])]
    chosen = " (held-out best)" if "held_out" in splits else " (best)"
    texts = [f"α = {rows[i].of['alpha']:g}" + chosen * (i == best) for i in marked]
    colors = [style.KINDS["soup"][0] if i == best else style.INK for i in marked]
    path = list(zip(test, shift, strict=True))
    labels.place_labels(axes, [path[i] for i in marked], texts, colors, lines=itertools.pairwise(path), size=8)


_BARRIERS = (("test barrier (NLL)", 1), ("test barrier (accuracy)", 100))


def _lines(pairs, split, metric):
    return np.array([pair["path"][split][metric] for pair in pairs], np.float64)


def _draw_path(axes, pairs, matching, metric):
    color, scale = style.series_color(matching), 100 if metric == "accuracy" else 1
    for split, line in (("train", _DOTTED), ("test", "-")):
        if all(metric in pair["path"].get(split, ()) for pair in pairs):
            values = scale * _lines(pairs, split, metric)
            mean = values.mean(axis=0)
            axes.plot(pairs[0]["lambdas"], mean, color=color, linestyle=line, linewidth=1.6)
            if split == "test" and len(values) > 1:
                deviation = values.std(axis=0, ddof=1)
                look = {"color": color, "alpha": 0.15, "linewidth": 0}
                axes.fill_between(pairs[0]["lambdas"], mean - deviation, mean + deviation, **look)


def _matching(pair):
    return str(pair["of"].get("matching", ""))


def _network_kind(pair):
    return str(pair["of"]["network"]).partition(" ")[0]


def _most_matched(pairs) -> Sequence[str]:
    matchings, best = {}, {}
    for pair in pairs:
        matchings.setdefault(pair["of"]["network"], set()).add(pair["of"].get("matching"))
    for pair in pairs:
        name = pair["of"]["network"]
        rank = len(matchings[name]), pair["of"].get("units", 0), str(name)
        best[_network_kind(pair)] = max(best.get(_network_kind(pair), (rank, name)), (rank, name))
    return [name for _, name in best.values()]


def _of_several_widths(pairs):
    alike = files.grouped(pairs, lambda pair: (_network_kind(pair), _matching(pair)))
    several = {kind for kind, found in alike.items() if len({pair["of"]["units"] for pair in found}) > 1}
    return [pair for pair in pairs if (_network_kind(pair), _matching(pair)) in several]


def _draw_widths(axes, pairs, name, scale):
    widths = sorted({pair["of"]["units"] for pair in pairs})
    for index, (matching, alike) in enumerate(files.grouped(pairs, _matching).items()):
        found = files.grouped(sorted(alike, key=lambda pair: pair["of"]["units"]), lambda pair: pair["of"]["units"])
        found = {w: scale * np.array([pair["values"].get(name) for pair in of], np.float64) for w, of in found.items()}
        look = {"color": style.series_color(matching), "zorder": 3}
        axes.plot(list(found), [np.mean(barriers) for barriers in found.values()], marker="o", markersize=4, **look)
        # single pairs: one that is stuck far above the others is no matter of a symmetric spread
        for width, barriers in found.items():
            places = np.full(len(barriers), width * 1.07 ** (index - 1))
            axes.scatter(places, barriers, s=9, alpha=0.45, linewidth=0, **look)
    axes.set_xscale("log", base=2)
    axes.set_xticks(widths, [f"{value:g}" for value in widths])
    axes.minorticks_off()


def _grid(rows, columns, width=None, **options):
    return style.panels(rows, columns, width=width or max(7, 2.7 * columns + 0.6), height=0.9 + 2.3 * rows, **options)


def _label_rows(grid, texts, percent=()):
    for index, (axes, text) in enumerate(zip(grid[:, 0], texts, strict=True)):
        axes.set_ylabel(text)
        if index in percent:
            style.percent_axis(axes.yaxis)


def _legend(figure, names: Mapping, lines: Mapping = {}):
    looks = {style.words(name): look for name, look in names.items()}
    looks |= {name: (style.INK, line) for name, line in lines.items()}
    handles = [Line2D([], [], color=color, linestyle=line, label=name) for name, (color, line) in looks.items()]
    columns = len(handles) if len(handles) <= 5 else -(-len(handles) // 2) if len(handles) <= 8 else 4
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False, fontsize=8)
