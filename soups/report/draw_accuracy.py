"""Draw accuracies: of members and soups, against the number of models, along WiSE-FT, against hyper-parameters."""

import math
from collections.abc import Mapping
from numbers import Real

import numpy as np
from matplotlib.ticker import MaxNLocator

from soups.report import labels, style
from soups.report import results as files

_SHOWN = {"held_out": "held-out accuracy", "test": "test accuracy", "shift_mean": "mean accuracy on shifts"}


def scatter(results: Mapping):
    """Draw test against shift mean for every member and every main row of the first seed; None without rows."""
    seed = results["seeds"][0]
    named = [row for row in files.rows_of(results, "main", seed) if _finite(_point(row))]
    members = [row for row in files.rows_of(results, "member", seed) if _finite(_point(row))]
    if not named:
        return None
    figure, ((axes,),) = style.panels(height=5.2)
    wise = files.curve(results, "wise_ft", seed)
    _scatter_limits(axes, named, members)
    inside = [row for row in named if _inside(axes, _point(row))]
    axes.set(xlabel="test accuracy", ylabel="mean accuracy on shifts")
    style.percent_axis(axes.xaxis)
    style.percent_axis(axes.yaxis)
    if wise:
        color = style.KINDS["interpolation"][0]
        axes.plot(*_percent(wise["test"], wise["shift_mean"]), color=color, linewidth=1.4, alpha=0.7, zorder=2)
    _member_dots(figure, axes, results, seed, members)
    for row in inside:
        color, marker = style.KINDS[row["kind"]]
        area = 150 if marker == "*" else 52
        axes.scatter(*_point(row), s=area, marker=marker, color=color, edgecolor="white", linewidth=0.8, zorder=5)
    _name_those_outside(figure, axes, named, members)
    style.freeze_layout(figure)
    path = labels.along(*_percent(wise["test"], wise["shift_mean"])) if wise else []
    obstacles = [point for point in [*map(_point, members), *path] if _inside(axes, point)]
    together = {}  # rows at one point, such as WiSE-FT that chose α = 1, share a label
    for row in inside:
        together.setdefault(_point(row), []).append(row)
    # the color says already that a random order is one of a greedy soup
    texts = [" = ".join(row["name"].removeprefix("greedy soup, ") for row in rows) for rows in together.values()]
    colors = [style.KINDS[rows[0]["kind"]][0] for rows in together.values()]
    labels.place_labels(axes, list(together), texts, colors, obstacles=obstacles, size=8)
    return figure


def number_of_models(results: Mapping):
    """Draw accuracy against the number of models, mean and deviation over the seeds; None without the curve."""
    curves = [found for seed in results["seeds"] if (found := files.curve(results, "number_of_models", seed))]
    if not curves:
        return None
    # seeds whose members diverged have fewer counts: only what all seeds have can be averaged
    counts = sorted(set.intersection(*(set(found["counts"]) for found in curves)))
    series = [name for name in curves[0] if name != "counts" and all(name in found for found in curves)]
    figure, axes_grid = style.panels(2, 1, height=6.4, sharex=True)
    lines = {}
    for axes, split in zip(axes_grid[:, 0], ("test", "shift_mean"), strict=True):
        aside = 0.14 * (np.arange(len(series)) - (len(series) - 1) / 2)  # so that no whisker hides another
        lines[axes] = [
            _line_over_seeds(axes, curves, counts, name, split, shift)
            for name, shift in zip(series, aside, strict=True)
        ]
        axes.set_title(_SHOWN[split][0].upper() + _SHOWN[split][1:])
        means = np.concatenate([mean for mean, _ in lines[axes]])
        ends = [mean[-1] for mean, _ in lines[axes]]
        axes.set_ylim(*style.robust_limits(means, keep=ends, whisker=6))
        axes.set_xlim(counts[0] - 0.4, counts[-1] + 0.4)
        if np.nanmin(means) < axes.get_ylim()[0]:
            style.note(axes, f"the lowest point, {np.nanmin(means):.1f} %, lies below the axis")
        style.percent_axis(axes.yaxis)
    axes_grid[1, 0].set_xlabel("number of models")
    ticks = MaxNLocator(9, integer=True).tick_values(counts[0], counts[-1])
    later = [tick for tick in ticks if counts[0] + 1 < tick <= counts[-1]]
    axes_grid[1, 0].set_xticks([counts[0], *later])
    figure.get_layout_engine().set(rect=(0, 0, 0.84, 1))
    style.freeze_layout(figure)
    for axes, drawn in lines.items():
        ends = [
            (counts[-1], mean[-1], name, style.series_color(name))
            for name, (mean, _) in zip(series, drawn, strict=True)
            if math.isfinite(mean[-1])
        ]
        labels.label_line_ends(axes, ends)
    return figure


def wise_ft(results: Mapping):
    """Draw accuracies along alpha, and test against shift mean with the held-out optimum; None without the curve."""
    wise = files.first_curve(results, "wise_ft")
    if not wise:
        return None
    figure, ((left, right),) = style.panels(1, 2, height=3.7)
    alpha = np.asarray(wise["alpha"], np.float64)
    best = int(np.nanargmax(_percent(wise["held_out"])[0]))
    _wise_lines(left, wise, alpha, best)
    _wise_path(right, results, wise, best)
    style.freeze_layout(figure)
    _label_along(left, wise, alpha, best)
    test, shift = _percent(wise["test"], wise["shift_mean"])
    marked = [i for i in dict.fromkeys([0, best, len(alpha) - 1]) if _inside(right, (test[i], shift[i]))]
    texts = [f"α = {alpha[i]:g}" + (" (held-out best)" if i == best else "") for i in marked]
    points = [(test[i], shift[i]) for i in marked]
    path = [point for point in labels.along(test, shift) if _inside(right, point)]
    colors = [style.KINDS["soup"][0] if i == best else style.INK for i in marked]
    labels.place_labels(right, points, texts, colors, obstacles=path)
    return figure


def hyper_parameters(results: Mapping):
    """Draw each member's test accuracy against each hyper-parameter, all seeds; None where nothing varies."""
    members = _members(results)
    names = [name for name in _varying(members) if name != "seed"]
    finite = [100 * test for *_, test in members if math.isfinite(test)]
    if not names or not finite:
        return None
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure, axes_grid = style.panels(rows, columns, height=0.5 + 2.25 * rows, sharey=True)
    low, high = style.robust_limits(finite, keep=[max(finite)])
    for axes, name in zip(axes_grid.flat, names, strict=False):
        _strip(axes, members, name, low, results)
        axes.set_title(style.words(name), fontsize=9)
        axes.set_ylim(low, high)
        style.percent_axis(axes.yaxis)
    for axes in axes_grid.flat[len(names) :]:
        axes.set_visible(False)
    for axes in axes_grid[:, 0]:
        axes.set_ylabel("test accuracy")
    return figure


# --- Test against shifts ----------------------------------------------------------------------------------------------


def _percent(*values):
    return [100 * np.array([math.nan if v is None else v for v in found], np.float64) for found in values]


def _point(row):
    return 100 * files.value(row, "test"), 100 * files.value(row, "shift_mean")


def _finite(point):
    return all(map(math.isfinite, point))


def _scatter_limits(axes, named, members):
    # start, probe and the worst member may lie far away: the footnote has their numbers, the limits leave them out
    core = [_point(row) for row in named if row["kind"] not in ("start", "probe", "members")]
    rest = [_point(row) for row in [*named, *members]]
    for index, setter in enumerate((axes.set_xlim, axes.set_ylim)):
        keep = style.robust_limits([p[index] for p in core], whisker=8, margin=0) if core else ()
        low, high = style.robust_limits([p[index] for p in rest], keep=keep, whisker=1.5, margin=0.06)
        setter(low, high + 0.2 * (high - low))  # room for the labels of the best, at the upper right


def _inside(axes, point):
    (x_low, x_high), (y_low, y_high) = axes.get_xlim(), axes.get_ylim()
    return x_low <= point[0] <= x_high and y_low <= point[1] <= y_high


def _name_those_outside(figure, axes, named, members):
    outside = [row for row in named if not _inside(axes, _point(row))]
    texts = [f"{row['name']} {_point(row)[0]:.1f} %, {_point(row)[1]:.1f} %" for row in outside]
    if number := sum(not _inside(axes, _point(row)) for row in members):
        texts.append(f"{number} of {len(members)} members")
    if texts:
        style.footnote(figure, "Off the axes (test, shifts)", texts)


def _member_dots(figure, axes, results, seed, members):
    configs = _configs(results, seed)
    rates = {row["name"]: configs.get(row["name"], {}).get("learning_rate") for row in members}
    # members of another sweep, such as SAM's, are in no pool and have no config: hollow dots
    plain = [_point(row) for row in members if not rates[row["name"]]]
    if plain:
        axes.scatter(*zip(*plain, strict=True), s=22, facecolor="white", edgecolor=style.QUIET, linewidth=0.9, zorder=3)
    known = [row for row in members if rates[row["name"]]]
    if known:
        colors = [rates[row["name"]] for row in known]
        places = zip(*map(_point, known), strict=True)
        look = {"c": colors, "cmap": style.GREYS, "norm": style.scale_norm(colors)}
        dots = axes.scatter(*places, s=26, edgecolor="white", linewidth=0.8, zorder=3, **look)
        style.colorbar(figure, dots, axes, "learning rate of the members (dots)", values=colors)


def _configs(results, seed):
    return {member["name"]: member.get("config", {}) for member in results["pool"].get(str(seed), [])}


# --- Number of models -------------------------------------------------------------------------------------------------


def _line_over_seeds(axes, curves, counts, name, split, aside):
    """Draw one line and the deviations as whiskers a little aside; give mean and deviation [counts]."""
    picked = [[found["counts"].index(count) for count in counts] for found in curves]
    by_seed = np.array([_percent(found[name][split])[0][places] for found, places in zip(curves, picked, strict=True)])
    mean = by_seed.mean(axis=0)
    deviation = by_seed.std(axis=0, ddof=1) if len(by_seed) > 1 else np.zeros_like(mean)
    color = style.series_color(name)
    dashes = (0, (4, 2)) if name.startswith("best") else "-"
    marker = "o" if len(counts) <= 12 else None
    axes.plot(counts, mean, color=color, linestyle=dashes, marker=marker, markersize=3.5, zorder=4)
    if len(by_seed) > 1:
        places = np.asarray(counts) + aside
        axes.vlines(places, mean - deviation, mean + deviation, color=color, alpha=0.45, linewidth=1.1, zorder=2)
    return mean, deviation


# --- WiSE-FT ----------------------------------------------------------------------------------------------------------


def _wise_lines(axes, wise, alpha, best):
    for split in _SHOWN:
        axes.plot(alpha, _percent(wise[split])[0], color=style.series_color(split), marker="o", markersize=3)
    axes.axvline(alpha[best], color=style.KINDS["soup"][0], linewidth=1, linestyle=(0, (2, 2)), zorder=1)
    axes.set(xlabel="α (0: base, 1: best member)", title="Accuracy along the straight path")
    axes.set_xlim(alpha[0] - 0.02, alpha[-1] + 0.02)
    style.percent_axis(axes.yaxis)


def _label_along(axes, wise, alpha, best):
    # beside the middle of each line: at the ends the three lines often meet
    lines = {split: _percent(wise[split])[0] for split in _SHOWN}
    every = [point for line in lines.values() for point in labels.along(alpha, line)]
    every += labels.along(alpha[[best, best]], axes.get_ylim(), 60)
    quarter = (len(alpha) - 1) / 4
    places = [(alpha[round(k * quarter)], lines[s][round(k * quarter)]) for k, s in enumerate(lines, start=1)]
    texts = [style.words(split) for split in lines]
    labels.place_labels(axes, places, texts, [style.series_color(split) for split in lines], obstacles=every)


def _wise_path(axes, results, shown, best):
    color = style.KINDS["interpolation"][0]
    for seed in results["seeds"]:
        other = files.curve(results, "wise_ft", seed)
        if other and other is not shown:
            axes.plot(*_percent(other["test"], other["shift_mean"]), color=color, alpha=0.25, linewidth=1, zorder=1)
    test, shift = _percent(shown["test"], shown["shift_mean"])
    axes.plot(test, shift, color=color, marker="o", markersize=3.5, zorder=3)
    axes.scatter(test[best], shift[best], s=120, marker="*", color=style.KINDS["soup"][0], edgecolor="white", zorder=5)
    axes.set(xlabel="test accuracy", ylabel="mean accuracy on shifts", title="Test against shifts")
    style.percent_axis(axes.xaxis)
    style.percent_axis(axes.yaxis)
    # a base far below its members, for instance one with a new head, must not squash the rest of the path
    axes.set_xlim(*style.robust_limits(test, keep=[test[best]], whisker=3, margin=0.12))
    axes.set_ylim(*style.robust_limits(shift, keep=[shift[best]], whisker=3, margin=0.12))
    far = [i for i in range(len(test)) if not _inside(axes, (test[i], shift[i]))]
    if far:
        texts = [f"α = {shown['alpha'][i]:g} at {test[i]:.1f} %, {shift[i]:.1f} %" for i in far[:2]]
        style.note(axes, "\n".join(["off the axes:", *texts, *(["…"] if len(far) > 2 else [])]))


# --- Hyper-parameters -------------------------------------------------------------------------------------------------


def _members(results):
    """List (seed, name, config, test accuracy) of every pool member; NaN for one that diverged."""
    found = []
    for seed in results["seeds"]:
        tests = {row["name"]: files.value(row, "test") for row in files.rows_of(results, "member", seed)}
        for name, config in _configs(results, seed).items():
            found.append((seed, name, config, tests.get(name, math.nan)))
    return found


def _varying(members):
    values: dict[str, set] = {}
    for _, _, config, _ in members:
        for key, found in config.items():
            if isinstance(found, (Real, str)):
                values.setdefault(key, set()).add(found)
    return [key for key, found in values.items() if len(found) > 1]


def _strip(axes, members, name, floor, results):
    """Draw one panel: dots, rings around the greedy soup's ingredients, crosses at the floor for what lies below."""
    members = [member for member in members if name in member[2]]
    x = _positions(axes, [config[name] for _, _, config, _ in members])
    y = np.array([100 * test for *_, test in members])
    rows = {seed: files.row_named(results, "greedy soup", seed) or {} for seed in results["seeds"]}
    chosen = np.array([name in rows[seed].get("ingredients", {}) for seed, name, _, _ in members])
    shown = y >= floor
    axes.scatter(x[shown], y[shown], s=16, color="#8a96a3", alpha=0.75, linewidth=0, zorder=3)
    ring = shown & chosen
    axes.scatter(x[ring], y[ring], s=34, facecolor="none", edgecolor=style.KINDS["soup"][0], linewidth=1.2, zorder=4)
    edge = axes.get_xaxis_transform()
    axes.scatter(
        x[~shown],
        np.full((~shown).sum(), 0.03),
        s=18,
        marker="x",
        color=style.ALARM,
        linewidth=1,
        transform=edge,
        zorder=4,
        clip_on=False,
    )


def _positions(axes, values):
    """Return the places of the values on the x axis, whose scale is set: log, linear, or one for each of a few."""
    if all(isinstance(v, Real) for v in values) and len(set(values)) > 6:
        x = np.array(values, np.float64)
        if style.spans_decades(x):
            axes.set_xscale("log")
            axes.set_xlim(x.min() / 1.3, x.max() * 1.3)
            style.plain_log_axis(axes.xaxis)
        else:
            axes.xaxis.get_major_locator().set_params(nbins=4)
        return x
    categories = sorted(set(values), key=lambda v: (isinstance(v, str), v))
    axes.set_xticks(range(len(categories)), [v if isinstance(v, str) else f"{v:g}" for v in categories])
    axes.set_xlim(-0.6, len(categories) - 0.4)
    # a fixed, even jitter: dots of one category lie side by side, and the figure is the same every time
    jitter = 0.36 * (np.modf(np.arange(len(values)) * 0.618034)[0] - 0.5)
    return np.array([categories.index(v) for v in values]) + jitter
