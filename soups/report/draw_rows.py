"""Draw rows: what each gains, test against shifts, split by split, and members by their hyper-parameters."""

import itertools
import math
import re
from collections.abc import Mapping
from numbers import Real

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from soups.report import labels, style
from soups.report import results as files
from soups.report.figures import ALL, figure
from soups.report.tables import Row, format_number, row_named, rows_table


@figure("What each row gains", seeds="Dots: means over {} seeds.")
def overview(results: Mapping):
    """Test results of every row as the difference from the line at 0, {reference}, of the same seed. Whiskers, where
    they are known: the 95 % interval of the difference; one that crosses the line may be no difference. Arrows lead off
    the axis.
    """
    panels = _panels(results)
    if not panels:
        return None
    names = list(dict.fromkeys(row.name for _, _, rows in panels for row in rows))
    width = max(7, 2.2 * len(panels) + 2)
    figure, (axes,) = style.panels(1, len(panels), width=width, height=0.9 + 0.2 * len(names), sharey=True)
    for one, (title, split, rows) in zip(axes, panels, strict=True):
        _forest(one, results, split, rows, names)
        one.set_title(title, fontsize=9)
    axes[0].set_yticks(range(len(names)), map(style.clipped, names), fontsize=8)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    families = {row.family for _, _, rows in panels for row in rows}
    looks = {family: look for family, look in style.FAMILIES.items() if family in families}
    dots = [Line2D([], [], ls="", color=c, marker=m, markersize=5, label=family) for family, (c, m) in looks.items()]
    if dots:
        figure.legend(handles=dots, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return figure


@figure(
    "Test against shifts",
    seeds="Markers: means over {} seeds. The members are those of all seeds, each moved so that the best one of its "
    "seed lies at the star.",
)
def scatter(results: Mapping):
    """The test set from left to right, the shifted test sets upwards. Dots are single members, darker for a higher
    learning rate; the star is the best of them on held-out data, the dark cross the worst, and whiskers are 95 %
    intervals of the difference from the best in the same seed. Small blue dots are greedy soups in random orders, the
    green line is WiSE-FT from the weights that fine-tuning started from; hollow markers, if any, were published. What
    lies far off is named below.
    """
    splits = files.summary_splits(results)
    rows = [row for row in rows_table(results) if not row.of and row.metrics]
    if "shift" not in splits or not rows:
        return None
    x, y, metric = splits["test"], splits["shift"], results["metric"]
    scale = files.metric_of(results).scale
    points = {id(row): tuple(scale * row.metrics[split][metric].mean for split in (x, y)) for row in rows}
    whiskers = {id(row): scale * np.nan_to_num([_difference(row, s, metric).half for s in (x, y)]) for row in rows}
    named = [row for row in rows if all(map(math.isfinite, points[id(row)]))]
    places = _member_places(results, row_named(rows, results["reference"]), x, y)
    figure, ((axes,),) = style.panels(height=5.2)
    _scatter_limits(axes, named, points, whiskers, list(places.values()))
    inside = [row for row in named if style.inside(axes, *points[id(row)])]
    axes.set(xlabel=_axis(results, x), ylabel=_axis(results, y))
    style.metric_axes(files.metric_of(results), axes.xaxis, axes.yaxis)
    lines = []
    if results["reference"] in (best := {row.name: points[id(row)] for row in inside}):
        for line, place in zip((axes.axvline, axes.axhline), best[results["reference"]], strict=True):
            line(place, color=style.QUIET, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
        lines = _lines_through(axes, *best[results["reference"]])
    lines += _draw_path(axes, results, x, y)
    _member_dots(figure, axes, results, places)
    for row in inside:
        _marker(axes, row, points[id(row)], whiskers[id(row)], 0.25 if len(results["seeds"]) == 1 else 0.5)
    _draw_published(axes, rows_table(results) + rows_table(results, "member"), x, y, scale)
    _name_those_outside(figure, axes, results, [row for row in named if row not in inside], points, places)
    style.freeze_layout(figure)
    _name(axes, inside, points, list(places.values()), [*lines, *_crosses(inside, points, whiskers)])
    return figure


@figure("Split by split", seeds="Means over {} seeds.")
def by_split(results: Mapping):
    """The difference from {reference} on each test set that a mean is over, and that of the mean; blue is better,
    orange is worse, bold where the 95 % interval excludes 0. Numbers far out share the darkest colours.
    """
    roles = files.summary_splits(results)
    parts = {s: files.details(results, s) for role in ("test", "shift") if (s := roles.get(role))}
    means = [split for split, those in parts.items() if those]
    splits = [s for those in parts.values() for s in those] + means
    rows = [row for row in rows_table(results) if row.gain and row.name != results["reference"] and not row.of]
    if len(splits) - len(means) < 2 or not rows:
        return None
    metric = files.metric_of(results)
    values = metric.sign * metric.scale * np.array([[row.gain[s].mean for s in splits] for row in rows])
    sure = np.array([[abs(row.gain[s].mean) > row.gain[s].half for s in splits] for row in rows])
    figure, ((axes,),) = style.panels(width=7, height=1.4 + 0.19 * len(rows))
    titles = [files.title_of(results, split) for split in splits]
    style.gains(
        axes,
        values,
        sure,
        [row.name for row in rows],
        titles,
        lambda number: format_number(number, digits=metric.drawn_digits, sign="+"),
        aside=len(splits) - len(means),
    )
    return figure


@figure("Hyper-parameters of the members", seeds=ALL)
def hyper_parameters(results: Mapping):
    """Test results of every member against each hyper-parameter that varies. A blue ring: the greedy soup took it. A
    red cross at the edge: it diverged or lies beyond the axis.
    """
    members = _members(results)
    names = [name for name in _varying(members) if name != "seed"]
    finite = [test for *_, test in members if math.isfinite(test)]
    if not names or not finite:
        return None
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure, grid = style.panels(rows, columns, height=0.5 + 2.25 * rows, sharey=True)
    sign = files.metric_of(results).sign
    least = 0.05 * files.metric_of(results).scale  # five points are no divergence
    limits = style.robust_limits(finite, keep=[max(finite, key=lambda test: sign * test)], least=least)
    for axes, name in zip(grid.flat, names, strict=False):
        _strip(axes, members, name, limits, results)
        axes.set_title(style.words(name), fontsize=9)
        axes.set_ylim(limits)
        style.metric_axes(files.metric_of(results), axes.yaxis)
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel(_axis(results, files.summary_splits(results)["test"]))
    return figure


def _axis(results, split):
    metric = files.metric_of(results)
    return f"{files.title_of(results, split)} {metric.title}{_direction(metric)}"


def _direction(metric):
    return "; lower is better" if metric.better == "lower" else ""


def _panels(results) -> list[tuple[str, str, list[Row]]]:
    """List (title, split, rows) of each panel: by split, or by what the rows are of, of those the most members."""
    # starts against targets are a figure of their own
    rows = [row for row in rows_table(results) if not {"start", "target"} <= row.of.keys()]
    splits = files.summary_splits(results)
    most: dict[tuple, float] = {}
    for row in rows:
        place = tuple(item for item in row.of.items() if item[0] != "models")
        most[place] = max(most.get(place, 0), row.of.get("models", 0))
    if any(most):
        titles = {p: ", ".join(str(v) for _, v in p) + (f"\nof {n:g} members" if n else "") for p, n in most.items()}
        chosen = {p: [r for r in rows if r.of in (dict(p, models=n), dict(p))] for p, n in most.items()}
        return [(title, splits["test"], chosen[place]) for place, title in titles.items()]
    if any(row.family for row in rows):  # of many methods the best first, behind the baselines
        sign = -files.metric_of(results).sign
        worth = {id(row): sign * row.metrics[splits["test"]][results["metric"]].mean for row in rows}
        rows.sort(key=lambda row: (True, worth[id(row)]) if row.family != "baselines" else (False, 0))
    return [(files.title_of(results, s), s, rows) for role, s in splits.items() if role in ("test", "shift") and rows]


def _forest(axes, results, split, rows, names):
    metric, scale = results["metric"], files.metric_of(results).scale
    gains = all(row.gain for row in rows)
    found = {row.name: row.gain[split] if gains else row.metrics[split][metric] for row in rows}
    core = [scale * one.mean for row, one in zip(rows, found.values(), strict=True) if row.kind not in _FAR]
    low, high = style.robust_limits(core, keep=[0.0] if gains else (), whisker=3, margin=0.06)
    near = [one for one in found.values() if abs(2 * scale * one.mean - low - high) < 2 * (high - low)]
    ends = [scale * (one.mean + side * one.half) for one in near for side in (-1, 0, 1)]
    halves = [scale * one.half for one in found.values() if one.half > 0]
    reach = max(high - low, *np.percentile(halves, [75])) if halves else 0  # most intervals shall end on the axis
    inner = [end for end in ends if low - reach < end < high + reach]
    low, high = min([low, *inner]), max([high, *inner])
    low, high = low - 0.03 * (high - low), high + 0.03 * (high - low)
    axes.set_xlim(low, high)
    if gains:
        axes.axvline(0, color=style.INK, linewidth=1, zorder=1)
    for row in rows:
        one, place = found[row.name], names.index(row.name)
        color, marker = _look(row)
        if low <= scale * one.mean <= high:
            half = scale * one.half if math.isfinite(one.half) else 0
            axes.errorbar(scale * one.mean, place, xerr=half, color=color, elinewidth=1.3, zorder=3)
            for edge, arrow, leaves in ((low, "<", scale * one.mean - half < low),
                                        (high, ">", scale * one.mean + half > high)):  # fmt: skip
                if leaves:
                    axes.scatter(edge, place, s=22, color=color, marker=arrow, clip_on=False, zorder=4, linewidth=0)
            size = 60 if marker == "*" else 26
            axes.scatter(scale * one.mean, place, s=size, color=color, marker=marker, zorder=4, linewidth=0)
        elif math.isfinite(one.mean):
            left = scale * one.mean < low
            text = format_number(one.mean, scale, files.metric_of(results).drawn_digits, "+" if gains else "")
            axes.text(low if left else high, place, f" ◂ {text}" if left else f"{text} ▸ ", color=color, fontsize=7,
                      ha="left" if left else "right", va="center")  # fmt: skip
    metric = files.metric_of(results, metric)
    gain = f"{'points' if scale > 1 else metric.title} over {style.clipped(results['reference'], 30)}"
    axes.set_xlabel((gain if gains else metric.title) + _direction(metric))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="y", linewidth=0.4)


def _difference(row, split, metric):
    """Return what of a row is known with an interval: its gain, else its level."""
    return row.gain[split] if row.gain else row.metrics[split][metric]


def _member_places(results, reference, x, y):
    """Return where the members lie, by seed and name; of several seeds as differences from the reference's mean."""
    metric, scale, places = results["metric"], files.metric_of(results).scale, {}
    moved = {seed: (0.0, 0.0) for seed in results["seeds"]}
    if reference is not None and len(results["seeds"]) > 1:
        means = [reference.metrics[split][metric] for split in (x, y)]
        moved = {seed: [one.mean - one.values[i] for one in means] for i, seed in enumerate(reference.seeds)}
    for row in files.rows_of(results, "member"):
        if row["seed"] in moved:
            shift = zip((x, y), moved[row["seed"]], strict=True)
            place = tuple(scale * (files.value(row, split, metric) + by) for split, by in shift)
            if all(map(math.isfinite, place)):
                places[row["seed"], row["name"]] = place
    return places


_RANDOM = "random order"  # so many greedy soups close together that names would only crowd
_FAR = ("start", "probe", "members")  # may lie far away and must not squash the rest
_WORST = "worst member"


def _look(row):
    """Return colour and marker of a row; of the members only the best are stars."""
    color, marker = style.of_kind(row.kind, row.family)
    return color, "X" if row.name == _WORST else marker


def _scatter_limits(axes, named, points, whiskers, members):
    core = [points[id(row)] for row in named if row.kind not in _FAR and row.name != _WORST]
    rest = [*(points[id(row)] for row in named), *members]
    for index, setter in enumerate((axes.set_xlim, axes.set_ylim)):
        keep = style.robust_limits([p[index] for p in core], whisker=8, margin=0) if core else ()
        low, high = style.robust_limits([p[index] for p in rest], keep=keep, whisker=1.5, margin=0.08)
        ends = [points[id(row)][index] + side * whiskers[id(row)][index] for row in named for side in (-1.2, 0, 1.2)
                if low <= points[id(row)][index] <= high]  # fmt: skip
        low, high = min([low, *ends]), max([high, *ends])
        setter(low, high + 0.2 * (high - low))  # room for the labels of the best, at the upper right
        core, rest = ([p for p in found if low <= p[index] <= high] for found in (core, rest))


def _lines_through(axes, x, y):
    """Return the lines through a point from one end of the axes to the other, which labels keep off."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    return [((x, low), (x, high)), ((left, y), (right, y))]


def _draw_path(axes, results, x, y):
    """Draw the mean path over seeds and return the lines that it consists of."""
    rows = [row for row in rows_table(results, "curve") if "alpha" in row.of]
    if len(rows) < 2:
        return []
    line = [[files.metric_of(results).scale * row.metrics[s][results["metric"]].mean for row in rows] for s in (x, y)]
    axes.plot(*line, color=style.KINDS["interpolation"][0], linewidth=1.4, alpha=0.7, zorder=2)
    return list(itertools.pairwise(zip(*line, strict=True)))


def _member_dots(figure, axes, results, places):
    every = ((seed, member) for seed in results["seeds"] for member in results["members"].get(str(seed), ()))
    configs = {(seed, member["name"]): member.get("config", {}) for seed, member in every}
    rates = {name: configs.get(name, {}).get("learning_rate") for name in places}
    size = 26 if len(places) <= 40 else 12
    known = {name: rate for name, rate in rates.items() if isinstance(rate, Real) and 0 < rate < 1e30}
    # members of another sweep, such as SAM's, are in no pool and have no config: hollow dots
    plain = [place for name, place in places.items() if name not in known]
    if plain:
        look = {"facecolor": "white", "edgecolor": style.QUIET, "linewidth": 0.9}
        axes.scatter(*zip(*plain, strict=True), s=0.85 * size, zorder=3, **look)
    if known:
        colors = list(known.values())
        look = {"c": colors, "cmap": style.GREYS, "norm": style.scale_norm(colors)}
        points = zip(*(places[name] for name in known), strict=True)
        dots = axes.scatter(*points, s=size, edgecolor="white", linewidth=0.03 * size, zorder=3, **look)
        style.colorbar(figure, dots, axes, "learning rate of the members (dots)", values=colors)


def _marker(axes, row, point, whiskers, alpha):
    color, marker = _look(row)
    if whiskers.any():
        axes.errorbar(*point, *whiskers[::-1], color=color, elinewidth=0.8, alpha=alpha, zorder=2.5)
    area = 150 if marker == "*" else 18 if _RANDOM in row.name else 52
    axes.scatter(*point, s=area, marker=marker, color=color, edgecolor="white", linewidth=0.8, zorder=5)


def _draw_published(axes, rows, x, y, scale):
    for row in rows:
        if x in row.published and y in row.published:
            _, marker = style.of_kind(row.kind, row.family)
            point = (scale * row.published[split]["value"] for split in (x, y))
            axes.scatter(*point, s=110, marker=marker, facecolor="none", edgecolor=style.QUIET, linewidth=0.9, zorder=2)


def _name_those_outside(figure, axes, results, outside, points, members):
    digits = files.metric_of(results).drawn_digits
    places = {id(row): ", ".join(f"{value:.{digits}f}" for value in points[id(row)]) for row in outside}
    texts = [f"{row.name} {places[id(row)]}" for row in outside]
    if number := sum(not style.inside(axes, *place) for place in members.values()):
        texts.append(f"{number} of {len(members)} members")
    if texts:
        style.footnote(figure, "Off the axes (test, shifts)", texts)


def _crosses(rows, points, whiskers):
    """Return the lines of the whiskers of rows."""
    ends = [(points[id(row)], reach) for row in rows for reach in np.diag(whiskers[id(row)]) if reach.any()]
    return [(point - reach, point + reach) for point, reach in ends]


def _name(axes, rows, points, obstacles, lines):
    # rows at one point, such as WiSE-FT that chose α = 1, share a label
    together = files.grouped((row for row in rows if _RANDOM not in row.name), lambda row: points[id(row)])
    texts = [_shared([row.name for row in found]) for found in together.values()]
    colors = [style.of_kind(found[0].kind, found[0].family)[0] for found in together.values()]
    obstacles = [*obstacles, *(points[id(row)] for row in rows if _RANDOM in row.name)]
    seen = [point for point in obstacles if style.inside(axes, *point)]
    labels.place_labels(axes, list(together), texts, colors, obstacles=seen, lines=lines, size=8)


def _shared(names):
    """Return names as one label, with what they begin with alike, up to a comma, but once."""
    begins = {"".join(name.rpartition(", ")[:2]) for name in names}
    begin = begins.pop() if len(begins) == 1 else ""
    return begin + ("; " if begin else " = ").join(name.removeprefix(begin) for name in names)


def _members(results):
    """List (seed, name, config, test value) of every member; NaN for one that diverged."""
    test, found = files.summary_splits(results)["test"], []
    for seed in results["seeds"]:
        rows = {row["name"]: row for row in files.rows_of(results, "member", seed)}
        for member in results["members"].get(str(seed), ()):
            row = rows.get(member["name"], {"metrics": {}})
            value = files.metric_of(results).scale * files.value(row, test, results["metric"])
            found.append((seed, member["name"], member.get("config", {}), value))
    return found


def _is_shown(found):
    return isinstance(found, str) or (isinstance(found, Real) and abs(found) < 1e30)


def _varying(members):
    values: dict[str, set] = {}
    for _, _, config, _ in members:
        for key, found in config.items():
            if _is_shown(found):
                values.setdefault(key, set()).add(found)
    return [key for key, found in values.items() if len(found) > 1]


def _strip(axes, members, name, limits, results):
    """Draw one panel: dots, rings around the greedy soup's ingredients, crosses at the worse end for what is beyond."""
    members = [member for member in members if _is_shown(member[2].get(name))]
    x = _positions(axes, [config[name] for _, _, config, _ in members])
    y = np.array([test for *_, test in members])
    greedy = row_named(rows_table(results), "greedy soup")
    taken = dict(zip(greedy.seeds, greedy.ingredients, strict=True)) if greedy else {}
    chosen = np.array([member in taken.get(seed, ()) for seed, member, _, _ in members])
    rising = files.metric_of(results).sign > 0
    shown = y >= limits[0] if rising else y <= limits[1]
    axes.scatter(x[shown], y[shown], s=16, color="#8a96a3", alpha=0.75, linewidth=0, zorder=3)
    ring = shown & chosen
    axes.scatter(x[ring], y[ring], s=34, facecolor="none", edgecolor=style.KINDS["soup"][0], linewidth=1.2, zorder=4)
    edge = np.full((~shown).sum(), 0.03 if rising else 0.97)
    look = {"s": 18, "marker": "x", "color": style.ALARM, "linewidth": 1, "zorder": 4, "clip_on": False}
    axes.scatter(x[~shown], edge, transform=axes.get_xaxis_transform(), **look)
    axes.update_datalim(np.column_stack([x, np.full(len(x), limits[0])]))  # which those at the edge have no part in
    axes.autoscale_view(scaley=False)


def _natural(value):
    """Return the key that sorts numbers before names, and numbers within names by their size."""
    parts = re.split(r"(\d+)", value) if isinstance(value, str) else []
    return bool(parts), value if not parts else [int(part) if part.isdecimal() else part for part in parts]


def _positions(axes, values):
    """Return the places of the values on the x axis, whose scale is set: log, linear, or one for each of a few."""
    few = len(set(values)) <= 6 and 2 * len(set(values)) <= len(values)
    if all(isinstance(v, Real) for v in values) and not few:
        x = np.array(values, np.float64)
        if style.spans_decades(x):
            axes.set_xscale("log")
            axes.set_xlim(x.min() / 1.3, x.max() * 1.3)
            style.plain_log_axis(axes.xaxis)
        else:
            axes.xaxis.get_major_locator().set_params(nbins=4)
        return x
    categories = sorted(set(values), key=_natural)
    labels.label_categories(axes, [v if isinstance(v, str) else f"{v:.4g}" for v in categories])
    # a fixed, even jitter: dots of one category lie side by side, and the figure is the same every time
    jitter = 0.36 * (np.modf(np.arange(len(values)) * 0.618034)[0] - 0.5)
    return np.array([categories.index(v) for v in values]) + jitter
