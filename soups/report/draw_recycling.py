"""Draw what recycling asks: diversity and barriers by what differs, shares of a second start, starts by targets."""

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from soups.report import results as files
from soups.report import style
from soups.report.figures import ALL, SPREAD, figure
from soups.report.tables import Spread, format_metric, format_number, spread

_DIVERSITY = {"ratio_error": "ratio error", "q_diversity": "q-diversity"}
_BARRIERS = {"barrier": "out of domain", "barrier_in_domain": "in domain"}
_COLORS = ("#0072b2", "#c44e00", "#00805e", "#a8487f", "#946c00", "#6a51a3")
_MARKERS = "osD^vP"
_BASE, _FIRST, _START, _TARGET = "mean member", "pre-trained", "start", "target"


@figure("Diversity and what averaging two gains", seeds=ALL)
def diversity(results: Mapping):
    """Each dot is a pair of members: the accuracy of their average less the mean of theirs, out of domain, against how
    differently they err, by what differs between the two; farther right is more diverse. Lines are fitted to all dots
    of a panel by least squares, and r is their correlation.
    """
    pairs = _by_difference(results, "gain")
    measures = [name for name in _DIVERSITY if _points(pairs, name)[0].size > 1]
    if not measures:
        return None
    domains = files.grouped(pairs, lambda pair: pair["of"].get("domain", ""))
    if len(domains) > 1:
        size = {"width": max(7, 1.9 * len(domains) + 0.6), "height": 0.5 + 2.3 * len(measures)}
        figure, grid = style.panels(len(measures), len(domains), sharey=True, **size)
    else:
        figure, grid = style.panels(1, len(measures), height=3.6, sharey=True)
        grid = grid.T
    looks, every = _looks(pairs), np.concatenate([_points(pairs, measure)[1] for measure in measures])
    low, high = style.robust_limits(every, keep=[0.0], whisker=4)
    edge = 0.025 * (high - low)
    grid[0, 0].set_ylim(low, high)
    for line, measure in zip(grid, measures, strict=True):
        for axes, (domain, found) in zip(line, domains.items(), strict=True):
            for differ, those in files.grouped(found, _differ).items():
                (color, marker), (x, y) = looks[differ], _points(those, measure)
                axes.scatter(
                    x, np.clip(y, low + edge, high - edge), s=14, color=color, marker=marker, alpha=0.65, linewidth=0
                )
            axes.axhline(0, color=style.INK, linewidth=0.8, zorder=1)
            axes.set_title(", ".join(filter(None, [str(domain), _fit(axes, *_points(found, measure))])), fontsize=8.5)
            axes.set_xlabel(_DIVERSITY[measure])
            axes.xaxis.set_major_locator(MaxNLocator(4))
    for axes in grid[:, 0] if len(domains) > 1 else grid[:1, 0]:
        axes.set_ylabel("gain of the average, points")
    _legend(figure, looks)
    if outside := int(((every < low) | (every > high)).sum()):
        style.footnote(figure, "Drawn at the edge", [f"{outside} of {len(every)} dots, which lie farther out"])
    return figure


@figure("Barriers by what differs", seeds=ALL)
def barriers(results: Mapping):
    """Accuracy points lost at the worst place of the straight path between two members, against the line between its
    ends, by what differs between the two. Each dot is a pair; boxes hold the middle half of them, and bars are the
    medians. At 0 the two are connected. Where barriers are high the axis is logarithmic above 1 point.
    """
    pairs = _by_difference(results, *_BARRIERS)
    measures = [name for name in _BARRIERS if any(_known(pair, name) for pair in pairs)]
    if not measures:
        return None
    looks = _looks(pairs)
    figure, (panels,) = style.panels(1, len(measures), width=7 if len(measures) > 1 else 4.6, height=3.6, sharey=True)
    for axes, measure in zip(panels, measures, strict=True):
        names = []
        for place, (differ, (color, marker)) in enumerate(looks.items()):
            found = np.array([100 * p["values"][measure] for p in pairs if _differ(p) == differ and _known(p, measure)])
            names.append(f"{differ}\n{len(found)} pairs")
            if found.size:
                _strip(axes, place, found, color, marker)
                names[-1] += f"\nmedian {format_number(np.median(found))}\n{100 * (found > 1).mean():.0f} % above 1"
        axes.set_xticks(range(len(looks)), names, fontsize=7.5)
        axes.set_xlim(-0.6, len(looks) - 0.4)
        axes.axhline(0, color=style.INK, linewidth=0.8, zorder=1)
        axes.set_title(_BARRIERS[measure], fontsize=9)
        axes.grid(axis="x", visible=False)
    panels[0].set_ylabel("barrier, accuracy points")
    high = max(100 * pair["values"][name] for pair in pairs for name in measures if _known(pair, name))
    panels[0].set_ylim(-0.05 * high, 1.1 * high + 1e-3)
    if high > 10:
        panels[0].set_yscale("symlog", linthresh=1, linscale=0.5, subs=(2, 5))
        panels[0].set_ylim(-0.2, 1.3 * high)
        panels[0].yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panels[0].yaxis.set_minor_formatter(lambda value, _: f"{value:g}")
    return figure


@figure("A share of members from a second start", seeds=SPREAD)
def shares(results: Mapping):
    """The average of members of which a share μ was fine-tuned from a second start, the others from the first. Where
    it was measured, the difference from the mean of these members in the same seed is shown, else the level.
    """
    rows = [row for row in files.rows_of(results, "curve") if "share" in row.get("of", {})]
    base = {_mixed(row): row for row in rows if _line(row)[0] == _BASE}
    lines = files.grouped((row for row in rows if _line(row)[0] != _BASE), _line)
    known = {split for found in lines.values() for row in found for split in row["metrics"]}
    splits = [split for split in files.summary_splits(results).values() if split in known]
    if len({row["of"]["share"] for found in lines.values() for row in found}) < 2 or not splits:
        return None
    gains = all(_mixed(row) in base for found in lines.values() for row in found)
    metric = files.metric_of(results)
    figure, (panels,) = style.panels(1, len(splits), width=7 if len(splits) > 1 else 5.2, height=3.7)
    looks = dict(zip(lines, _cycle(), strict=False))
    for axes, split in zip(panels, splits, strict=True):
        for index, (name, found) in enumerate(lines.items()):
            _share_line(axes, results, found, base if gains else {}, split, looks[name], index - (len(lines) - 1) / 2)
        if gains:
            axes.axhline(0, color=style.INK, linewidth=0.8, zorder=1)
        axes.set_title(files.title_of(results, split), fontsize=9)
        axes.set_xlabel("share μ from the second start")
    unit = "points" if metric.percent else metric.title
    panels[0].set_ylabel(f"gain over the mean member, {unit}" if gains else f"{metric.title}{' %' * metric.percent}")
    told = [index for index, parts in enumerate(zip(*looks, strict=False)) if len(set(parts)) > 1 or len(looks) == 1]
    named = {", ".join(filter(None, (name[i] for i in told if i < len(name)))): look for name, look in looks.items()}
    _legend(figure, named, line="-")
    return figure


@figure("Starts by targets", seeds="Means over {} seeds.")
def starts(results: Mapping):
    """Fine-tuned on each target from each start: the difference from the first one, whose level the first row tells;
    blue is better, orange is worse, bold where the 95 % interval excludes 0.
    """
    rows = [row for group in ("main", "curve") for row in files.rows_of(results, group)]
    rows = [row for row in rows if {_START, _TARGET} <= row.get("of", {}).keys()]
    places = files.grouped(rows, lambda row: _others(row, _START, _TARGET))
    first = {place: _first(results, found) for place, found in places.items()}
    places = {place: found for place, found in places.items() if first[place]}
    sizes = [len({row["of"][_START] for row in found}) for found in places.values()]
    if not places or max(sizes) < 2:
        return None
    targets = max(len({row["of"][_TARGET] for row in found}) for found in places.values())
    size = {"width": max(7, 3 + 0.55 * targets), "height": 0.3 + sum(1.1 + 0.24 * number for number in sizes)}
    figure, grid = style.panels(len(places), 1, height_ratios=sizes, **size)
    for axes, (place, found) in zip(grid[:, 0], places.items(), strict=True):
        _matrix(axes, results, found, first[place])
        axes.set_title(", ".join(f"{name} {value}" for name, value in place), fontsize=9)
    return figure


def _by_difference(results, *names):
    """List the pairs that say what differs and have one of the values."""
    pairs = [pair for pair in results["pairs"] if "differ" in pair.get("of", {})]
    return [pair for pair in pairs if any(_known(pair, name) for name in names)]


def _known(pair, name):
    return pair["values"].get(name) is not None


def _differ(pair):
    return str(pair["of"]["differ"])


def _looks(pairs) -> dict[str, tuple[str, str]]:
    """Return a colour and a marker for all that may differ, in the order of the file."""
    return dict(zip(dict.fromkeys(map(_differ, pairs)), _cycle(), strict=False))


def _cycle():
    """Return colours with markers without an end."""
    while True:
        yield from zip(_COLORS, _MARKERS, strict=True)


def _points(pairs, measure) -> tuple[np.ndarray, np.ndarray]:
    """Return a measure of diversity and the gain in points of the pairs that have both."""
    found = [pair["values"] for pair in pairs if _known(pair, measure) and _known(pair, "gain")]
    return np.array([one[measure] for one in found]), 100 * np.array([one["gain"] for one in found])


def _fit(axes, x, y) -> str:
    """Draw the line of least squares and return the correlation; nothing of less than three points or of equal ones."""
    if len(x) < 3 or np.ptp(x) <= 1e-12 * np.abs(x).max() or np.ptp(y) <= 1e-12 * np.abs(y).max():
        return ""
    slope, height = np.polyfit(x - x.mean(), y, 1)
    ends = np.array([x.min(), x.max()])
    axes.plot(ends, height + slope * (ends - x.mean()), color=style.INK, linewidth=1.2, zorder=4)
    return f"r = {format_number(float(np.corrcoef(x, y)[0, 1]))}"


def _strip(axes, place, values, color, marker):
    """Draw the values as dots beside each other, with a box of their quartiles and a bar at their median."""
    jitter = 0.5 * (np.modf(np.arange(len(values)) * 0.618034)[0] - 0.5)  # fixed, even
    axes.scatter(place + jitter, values, s=12, color=color, marker=marker, alpha=0.4, linewidth=0, zorder=2)
    first, median, third = np.percentile(values, [25, 50, 75])
    look = {"facecolor": "none", "edgecolor": color, "linewidth": 1.3, "zorder": 3}
    axes.bar(place, third - first, 0.62, bottom=first, **look)
    axes.plot([place - 0.31, place + 0.31], [median, median], color=color, linewidth=2.2, zorder=4)


def _line(row) -> tuple[str, ...]:
    """Return what tells the line of a row from others: of "uniform soup with fonts" the two, and what else it is of."""
    name, _, start = row["name"].partition(" with ")
    return name, start, *(str(value) for _, value in _others(row, "share"))


def _mixed(row):
    """Return what a row shares with the mean of the members that it averages."""
    return row["seed"], files.facets(row), _line(row)[1]


def _others(row, *names):
    return tuple(item for item in files.facets(row) if item[0] not in names)


def _share_line(axes, results, rows, base, split, look, offset):
    metric, (color, marker) = files.metric_of(results), look
    points = {}
    for share, found in sorted(files.grouped(rows, lambda row: row["of"]["share"]).items()):
        values = [files.value(row, split, results["metric"]) for row in found]
        lower = [files.value(base[_mixed(row)], split, results["metric"]) for row in found if base]
        points[share] = spread(np.subtract(values, lower) if base else values)
    x = np.array(list(points)) + 0.008 * offset  # whiskers lie beside each other
    y, half = (metric.scale * np.array([getattr(one, name) for one in points.values()]) for name in ("mean", "half"))
    axes.errorbar(x, y, np.nan_to_num(half), color=color, marker=marker, markersize=4.5, linewidth=1.4, elinewidth=1)


def _first(results, rows) -> str:
    """Return the start that others are compared with, named as the reference or "pre-trained"; "" where none is."""
    names = {row["of"][_START] for row in rows}
    return next((name for name in (results["reference"], _FIRST) if name in names), "")


def _matrix(axes, results, rows, first):
    metric = files.metric_of(results)
    found = files.grouped(rows, lambda row: (row["of"][_START], row["of"][_TARGET]))
    names = list(dict.fromkeys(start for start, _ in found))
    names.sort(key=lambda name: name != first)
    targets = list(dict.fromkeys(target for _, target in found))
    levels = {place: {row["seed"]: _level(results, row) for row in those} for place, those in found.items()}
    gains = [
        [_difference(levels.get((name, target), {}), levels.get((first, target), {})) for target in targets]
        for name in names
    ]
    values = metric.sign * metric.scale * np.array([[one.mean for one in line] for line in gains])
    sure = np.array([[abs(one.mean) > one.half for one in line] for line in gains])
    titles = [str(target) for target in targets]

    def words(number):
        return format_number(number, digits=metric.drawn_digits, sign="+")

    style.gains(axes, values, sure, list(map(str, names)), titles, words)
    for text in [text for text in axes.texts if text.get_position()[1] == 0]:
        level = spread(levels[first, targets[int(text.get_position()[0])]].values())
        text.set_text(format_metric(Spread(level.mean, math.nan), metric, metric.drawn_digits) + " %" * metric.percent)


def _level(results, row):
    """Return the metric of a row on the split of its target, else on that which stands for the test."""
    target = str(row["of"][_TARGET])
    split = target if target in row["metrics"] else files.summary_splits(results)["test"]
    return files.value(row, split, results["metric"])


def _difference(here, first) -> Spread:
    """Return the difference from the first start over the seeds that have both."""
    both = [seed for seed in here if seed in first]
    return spread([here[seed] - first[seed] for seed in both] or [None])


def _legend(figure, looks, line=""):
    handles = [
        Line2D([], [], ls=line, color=color, marker=marker, markersize=5, label=name)
        for name, (color, marker) in looks.items()
    ]
    columns = min(len(handles), max(1, 100 // (8 + max(map(len, looks)))))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False, fontsize=8)
