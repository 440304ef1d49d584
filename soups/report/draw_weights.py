"""Draw the geometry of the members: the loss plane, barriers and angles between them, and what averaging gains."""

import itertools
import math
from collections.abc import Mapping

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from soups.report import labels, style
from soups.report import results as files


def loss_plane(results: Mapping):
    """Draw held-out error in the plane through the start and two members; None without the curve."""
    plane = files.first_curve(results, "plane")
    if not plane:
        return None
    x, y = np.asarray(plane["x"], np.float64), np.asarray(plane["y"], np.float64)
    error = 100 * np.array([[math.nan if v is None else v for v in row] for row in plane["values"]])
    figure, axes, bar_axes = _equal_axes((y[-1] - y[0]) / (x[-1] - x[0]))
    levels, norm = _levels(error)
    shown = np.ma.masked_invalid(np.clip(error, levels[0], levels[-1]))
    filled = axes.contourf(x, y, shown, levels=levels, norm=norm, cmap="viridis_r")
    axes.contour(x, y, shown, levels=levels, colors="white", linewidths=0.4, alpha=0.5)
    bar = style.colorbar(figure, filled, None, "held-out error", cax=bar_axes)
    bar.set_ticks(levels, labels=[f"{level:.3g} %" for level in levels])
    bar.ax.minorticks_off()
    axes.grid(False)
    axes.set(xlabel="distance in weight space", ylabel="distance in weight space")
    _mark_points(axes, plane["points"])
    return figure


def barriers_angles(results: Mapping):
    """Draw pairwise barriers and angles between task vectors as two heat maps; None without both curves."""
    found = [
        (files.first_curve(results, "barriers"), "Barrier in accuracy points", style.ORANGES, 100, 0.0),
        (files.first_curve(results, "angles"), "Angle of task vectors in degrees", style.BLUES, 1, None),
    ]
    found = [entry for entry in found if entry[0]]
    if not found:
        return None
    figure, grid = style.panels(1, len(found), width=7 if len(found) > 1 else 4.6, height=4.15)
    for axes, (curve, title, colors, scale, low) in zip(grid.flat, found, strict=True):
        _heat_map(figure, axes, curve, title, colors, scale, low)
    return figure


def advantage(results: Mapping):
    """Draw what averaging two members gains against the angle between them, all seeds; None without the pairs."""
    curves = [found for seed in results["seeds"] if (found := files.curve(results, "diversity", seed))]
    pairs = [pair for found in curves for pair in found.get("pairs", ())]
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
    axes.set(xlabel="angle between the two task vectors, degrees", ylabel="interpolation advantage, points")
    style.note(axes, "averaging helps", x=0.01, y=0.98, ha="left", va="top")
    if (gain < 0).any():
        style.note(axes, "averaging hurts", x=0.01, y=0.06, ha="left")
    if (clipped := int((gain != inside).sum())) > 0:
        style.note(axes, f"{clipped} of {len(gain)} pairs lie farther out, drawn at the edge", y=0.06)
    if colored:
        style.colorbar(figure, dots, axes, "ratio error (higher: more diverse)")
    return figure


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
    corners = [place for name, place in points.items() if name != "average"]
    axes.plot(*zip(*corners, corners[0], strict=True), color="white", linewidth=1, linestyle=(0, (3, 3)), zorder=4)
    special = {"start": style.KINDS["start"], "average": style.KINDS["soup"]}
    for name, place in points.items():
        color, marker = special.get(name, style.KINDS["member"])
        area = 130 if marker == "*" else 70
        axes.scatter(*place, s=area, marker=marker, color=color, edgecolor="white", linewidth=1.2, zorder=5)
    sides = [labels.along(*zip(a, b, strict=True)) for a, b in itertools.combinations(corners, 2)]
    kept_off = list(itertools.chain(*sides))
    labels.place_labels(axes, list(points.values()), list(points), ["white"] * len(points), obstacles=kept_off, size=9)
    for text in axes.texts:
        text.set_bbox({"boxstyle": "round,pad=0.25", "facecolor": style.INK, "alpha": 0.75, "linewidth": 0})


def _heat_map(figure, axes, curve, title, colors, scale, low):
    values = scale * np.array([[math.nan if v is None else v for v in row] for row in curve["matrix"]], np.float64)
    off = values[~np.eye(len(values), dtype=bool) & np.isfinite(values)]
    off = off if len(off) else np.zeros(1)
    # one catastrophic pair must not make all others look alike
    high = max(style.robust_limits(off, whisker=4, margin=0)[1], 1e-6)
    low = float(off.min()) if low is None else low
    norm = Normalize(low, max(high, low + 1e-6))
    hidden = np.ma.masked_where(np.eye(len(values), dtype=bool) | ~np.isfinite(values), values)
    image = axes.imshow(hidden, cmap=colors, norm=norm)
    names = style.short_names(curve["names"])
    small = 5 if len(names) > 24 else 6 if len(names) > 12 else 7.5
    axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 6 else 0, fontsize=small)
    axes.set_yticks(range(len(names)), names, fontsize=small)
    axes.set_facecolor(style.FAINT)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=9)
    extend = "max" if off.max() > high * (1 + 1e-9) else "neither"
    style.colorbar(figure, image, axes, "", location="bottom", aspect=36, extend=extend)
    if len(names) <= 12:
        _annotate(axes, hidden, norm, digits=0 if low > 0 else 1)


def _annotate(axes, values, norm, digits):
    for (i, j), number in np.ndenumerate(values.filled(math.nan)):
        if math.isfinite(number):
            color = "white" if norm(number) > 0.6 else style.INK
            text = f"{number:.{digits if number < 9.95 else 0}f}"
            axes.text(j, i, text, ha="center", va="center", fontsize=6.5, color=color)
