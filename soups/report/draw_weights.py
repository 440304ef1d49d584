"""Draw the geometry of the members: the loss plane, barriers and angles, what averaging two gains, and masks."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from scipy.interpolate import RectBivariateSpline

from soups.report import labels, style
from soups.report import results as files
from soups.report.figures import ALL, FIRST, SPREAD, figure
from soups.report.tables import spread

_DRAWN = 160  # points along an axis of the plane, at least


@figure("The plane through the start and two members", seeds=FIRST)
def loss_plane(results: Mapping):
    """Held-out error in the plane in weight space through the start of fine-tuning and two members; both axes are
    Euclidean distances. It was measured at the small dots and is a smooth curve through them in between. Errors above
    the 95th percentile share the darkest colour. Averaging works where no ridge separates the members.
    """
    if not (planes := files.curves_of(results, "plane")):
        return None
    plane = planes[0]
    x, y = np.asarray(plane["x"], np.float64), np.asarray(plane["y"], np.float64)
    error = 100 * np.array([[math.nan if v is None else v for v in row] for row in plane["values"]], np.float64)
    if not np.isfinite(error).any():
        return None
    figure, axes, bar_axes = _equal_axes(np.clip((y[-1] - y[0]) / (x[-1] - x[0]), 0.2, 5))
    levels, norm = _levels(error)
    filled = axes.contourf(*_smooth(x, y, error, levels), levels=levels, norm=norm, cmap="viridis_r")
    bar = style.colorbar(figure, filled, None, "held-out error", cax=bar_axes)
    bar.set_ticks(levels, labels=[f"{level:.3g} %" for level in levels])
    bar.ax.minorticks_off()
    axes.scatter(*np.meshgrid(x, y), s=1.5, color="white", alpha=0.45, linewidth=0, zorder=3)
    axes.grid(False)
    axes.set(xlabel="distance in weight space", ylabel="distance in weight space")
    _mark_points(axes, plane["points"])
    return figure


@figure("Barriers and angles between members", seeds=FIRST)
def barriers_angles(results: Mapping):
    """Barrier: accuracy points lost at the worst place of the straight path between two members (0: they are connected,
    and their average is safe). Angle: between their task vectors, member − start; members that differ more have more to
    give to an average. An arrow on a colour bar says that some pairs lie above it.
    """
    pairs = files.by_seed([pair for pair in results["pairs"] if not pair.get("of")], results["seeds"])
    names = list(dict.fromkeys(name for pair in pairs for name in (pair["a"], pair["b"])))
    found = [
        ("barrier", "Barrier", "accuracy points lost at most on the path", style.ORANGES, 100, 0.0),
        ("angle", "Angle of task vectors", "degrees", style.BLUES, 1, None),
    ]
    found = [entry for entry in found if any(entry[0] in pair["values"] for pair in pairs)]
    if not found:
        return None
    figure, grid = style.panels(1, len(found), width=7 if len(found) > 1 else 4.6, height=4.15)
    for axes, (value, title, unit, colors, scale, low) in zip(grid.flat, found, strict=True):
        _heat_map(figure, axes, names, scale * _matrix(pairs, names, value), title, unit, colors, low)
    grid[0, 0].set_ylabel("member")
    return figure


@figure("What averaging two members gains", seeds=ALL)
def advantage(results: Mapping):
    """Each dot is a pair: the accuracy of the average of two members less the mean of their accuracies, against the
    angle between them. The ratio error is how often exactly one of the two is wrong for each time both are: higher
    means more diverse.
    """
    pairs = [pair["values"] for pair in results["pairs"]]
    pairs = [p for p in pairs if None not in (p.get("angle"), p.get("interpolation_advantage"))]
    if not pairs:
        return None
    figure, ((axes,),) = style.panels(height=3.9)
    angle = np.array([pair["angle"] for pair in pairs])
    gain = 100 * np.array([pair["interpolation_advantage"] for pair in pairs])
    ratio = [pair.get("ratio_error") for pair in pairs]
    colored = None not in ratio
    look = {"c": ratio, "cmap": "cividis_r"} if colored else {"color": style.KINDS["soup"][0]}
    low, high = style.robust_limits(gain, keep=[0.0], whisker=4)
    edge = 0.025 * (high - low)
    inside = np.clip(gain, low + edge, high - edge)
    dots = axes.scatter(angle, inside, s=24, alpha=0.85, linewidth=0, zorder=3, **look)
    axes.axhline(0, color=style.INK, linewidth=1, zorder=2)
    axes.set_ylim(low, high)
    axes.set(xlabel="angle between the two task vectors, degrees")
    axes.set_ylabel("interpolation advantage, points\n(above 0 averaging helps)")
    if (clipped := int((gain != inside).sum())) > 0:
        style.footnote(figure, "Drawn at the edge", [f"{clipped} of {len(gain)} pairs, which lie farther out"])
    if colored:
        style.colorbar(figure, dots, axes, "ratio error (higher: more diverse)")
    return figure


@figure("Masks of Localize-and-Stitch", seeds=SPREAD)
def masks(results: Mapping):
    """Left: how much of the trunk is in the mask of each task. Right: the overlap of two masks, |A ∩ B| / |A ∪ B|."""
    curves = [c for c in files.curves_of(results, "masks") if c["name"].startswith("Localize-and-Stitch")]
    found = files.grouped(curves, lambda curve: curve["name"])
    if not found:
        return None
    tasks = list(next(iter(found.values()))[0]["percent"])
    figure, (panels,) = style.panels(1, 1 + len(found), width=4 + 3 * len(found), height=3.9)
    _sizes(panels[0], found, tasks)
    for axes, (name, curves) in zip(panels[1:], found.items(), strict=True):
        overlap = [[[c["jaccard"].get(a, {}).get(b, math.nan) for b in tasks] for a in tasks] for c in curves]
        _overlap(axes, name, np.mean(np.array(overlap, np.float64), axis=0), tasks)
    return figure


def _smooth(x, y, error, levels):
    """Return finer axes, and the error on them within the levels: splines through what was measured."""
    within = np.clip(np.where(np.isfinite(error), error, levels[-1]), levels[0], levels[-1])
    spline = RectBivariateSpline(y, x, within, kx=min(3, len(y) - 1), ky=min(3, len(x) - 1))
    fine = [np.linspace(axis[0], axis[-1], -(-_DRAWN // (len(axis) - 1)) * (len(axis) - 1) + 1) for axis in (x, y)]
    return *fine, np.clip(spline(fine[1], fine[0]), levels[0], levels[-1])


def _levels(error):
    """Return ten levels from the lowest error to the 95th percentile: geometric where that spans a factor of 3."""
    finite = error[np.isfinite(error)]
    positive = finite[finite > 0]
    low = float(positive.min()) if len(positive) else 0.1
    high = max(float(np.percentile(finite, 95)), 1.05 * low)
    if high / low > 3:
        return np.geomspace(low, high, 11), LogNorm(low, high)
    return np.linspace(low, high, 11), Normalize(low, high)


def _equal_axes(ratio):
    """Make a figure with axes of one scale in both directions and a colour bar exactly as high, sizes in inches."""
    width = min(5.1, 6.2 / ratio)
    height = ratio * width
    size = (7, height + 0.75)
    figure = Figure(figsize=size, dpi=style.DPI)
    scale = np.array([*size, *size])
    left = 0.7 + (5.1 - width) / 2
    axes = figure.add_axes(np.array([left, 0.6, width, height]) / scale)
    return figure, axes, figure.add_axes(np.array([left + width + 0.14, 0.6, 0.16, height]) / scale)


def _mark_points(axes, points):
    special = {"start": style.KINDS["start"], "average": style.KINDS["soup"]}
    for name, place in points.items():
        color, marker = special.get(name, style.KINDS["member"])
        area = 130 if marker == "*" else 70
        axes.scatter(*place, s=area, marker=marker, color=color, edgecolor="white", linewidth=1.2, zorder=5)
    labels.place_labels(axes, list(points.values()), list(points), ["white"] * len(points), size=9)
    for text in axes.texts:
        text.set_bbox({"boxstyle": "round,pad=0.25", "facecolor": style.INK, "alpha": 0.75, "linewidth": 0})


def _matrix(pairs, names: Sequence[str], value: str) -> np.ndarray:
    """Return a value of all pairs as a symmetric matrix; NaN on the diagonal and where it was not measured."""
    matrix, places = np.full((len(names), len(names)), math.nan), {name: place for place, name in enumerate(names)}
    for pair in pairs:
        i, j, found = places[pair["a"]], places[pair["b"]], pair["values"].get(value)
        matrix[i, j] = matrix[j, i] = math.nan if found is None else found
    return matrix


def _heat_map(figure, axes, names, values, title, unit, colors, low):
    hidden = style.off_diagonal(values)
    off = hidden.compressed() if hidden.count() else np.zeros(1)
    # one catastrophic pair must not make all others look alike
    high = max(style.robust_limits(off, whisker=4, margin=0)[1], 1e-6)
    low = float(off.min()) if low is None else low
    norm = Normalize(low, max(high, low + 1e-6))
    image = style.cells(axes, hidden, colors, norm)
    names = style.short_names(names)
    small = 5 if len(names) > 24 else 6 if len(names) > 12 else 7.5
    axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 6 else 0, fontsize=small)
    axes.set_yticks(range(len(names)), names, fontsize=small)
    axes.set_title(title, fontsize=9)
    extend = "max" if off.max() > high * (1 + 1e-9) else "neither"
    style.colorbar(figure, image, axes, unit, location="bottom", aspect=36, extend=extend)
    if len(names) <= 12:
        digits = 0 if low > 0 else 1
        style.annotate(axes, hidden, image, lambda number: f"{number:.{digits if number < 9.95 else 0}f}")


def _sizes(axes, found, tasks):
    height = 0.8 / len(found)
    for index, (name, curves) in enumerate(found.items()):
        places = np.arange(len(tasks)) + (index - (len(found) - 1) / 2) * height
        sizes = [spread([curve["percent"].get(task) for curve in curves]) for task in tasks]
        bars = [0 if math.isnan(size.half) else size.half for size in sizes]
        look = {"color": ("#6a51a3", "#b9a9d9")[index % 2], "ecolor": style.QUIET, "zorder": 3}
        axes.barh(places, [size.mean for size in sizes], height, xerr=bars, label=name, **look)
    axes.set_yticks(range(len(tasks)), tasks)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    style.percent_axis(axes.xaxis)
    axes.set_title("Share of the trunk in the mask", fontsize=9)
    axes.grid(axis="y", visible=False)
    axes.legend(frameon=False, fontsize=7.5, loc="upper left", bbox_to_anchor=(0, -0.08))


def _overlap(axes, name, jaccard, tasks):
    hidden = style.off_diagonal(jaccard)
    norm = Normalize(0, max(float(hidden.max()) if hidden.count() else 0.0, 1e-6))
    image = style.cells(axes, hidden, style.BLUES, norm)
    axes.set_xticks(range(len(tasks)), tasks, rotation=90, fontsize=7.5)
    axes.set_yticks(range(len(tasks)), tasks, fontsize=7.5)
    axes.set_title("Overlap" + (", dataless" if name.endswith("dataless") else ""), fontsize=9)
    style.annotate(axes, hidden, image, lambda number: f"{number:.2f}".removeprefix("0"))
