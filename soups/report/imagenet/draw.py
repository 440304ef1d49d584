"""Draw an ImageNet run: accuracy against the mean of the shifts, with what was published, and the path of WiSE-FT."""

import itertools
from collections.abc import Mapping

import numpy as np

from soups.report import labels, style
from soups.report.imagenet.published import differences
from soups.report.imagenet.results import TITLES, columns_of, rows_of, value

_STARS = ("soup", "interpolation")
# held-out and the mean as in other reports; of the sets each has a colour of its own
_COLORS = {"imagenet": "#0072b2", "imagenet_v2": "#6a51a3", "imagenet_sketch": "#7b8794", "imagenet_r": "#c44e00"}
_COLORS |= {"objectnet": "#00805e", "imagenet_a": "#1f2933"}


def scatter(results: Mapping):
    """Draw the mean of the shifts against ImageNet, members as points, soups as stars; None without shifts."""
    if "shift_mean" not in columns_of(results):
        return None
    main = [row for row in rows_of(results, "main") if row["kind"] != "members"]
    members = rows_of(results, "member")
    figure, ((axes,),) = style.panels(height=5.4)
    axes.set(xlabel="ImageNet accuracy", ylabel="mean accuracy on the shifts")
    style.percent_axis(axes.xaxis)
    style.percent_axis(axes.yaxis)
    _hollow(axes, [*_published(results, members, "o", 24), *_published(results, main, "*", 150)])
    dots = [_point(row) for row in members]
    axes.scatter(*zip(*dots, strict=True), s=22, color=style.QUIET, edgecolor="white", linewidth=0.7, zorder=3)
    path = [_point(row) for row in rows_of(results, "curve")]
    if path:
        axes.plot(*zip(*path, strict=True), color=style.KINDS["interpolation"][0], linewidth=1.4, alpha=0.7, zorder=2)
    together = {}  # rows at one point share a label
    for row in main:
        color, marker = style.KINDS[row["kind"]]
        star = row["kind"] in _STARS
        area = 170 if star else 60
        axes.scatter(
            *_point(row),
            s=area,
            marker="*" if star else marker,
            color=color,
            edgecolor="white",
            linewidth=0.8,
            zorder=5,
        )
        together.setdefault(_point(row), []).append(row)
    if path:
        base = next(iter(rows_of(results, "curve")[0]["ingredients"]))
        together.setdefault(path[0], []).append({"name": base, "kind": "members"})
    axes.margins(0.08)
    style.freeze_layout(figure)
    obstacles = [*dots, *_along(path)]
    texts = [" = ".join(row["name"].removeprefix("greedy soup, ") for row in rows) for rows in together.values()]
    colors = [style.KINDS[rows[0]["kind"]][0] for rows in together.values()]
    labels.place_labels(axes, list(together), texts, colors, obstacles=obstacles, size=8)
    return figure


def wise_ft(results: Mapping):
    """Draw the accuracy on every set along WiSE-FT; None without the path."""
    rows = rows_of(results, "curve")
    if len(rows) < 2:
        return None
    figure, ((axes,),) = style.panels(height=4.4)
    alphas = [list(row["ingredients"].values())[1] for row in rows]
    base, member = rows[0]["ingredients"]
    ends = []
    for column in columns_of(results):
        line = [100 * value(row, column) for row in rows]
        color = _COLORS.get(column) or style.series_color(column)
        wide = 2.6 if column in ("imagenet", "shift_mean") else 1.3
        axes.plot(alphas, line, color=color, marker="o", markersize=3, linewidth=wide)
        ends.append((alphas[-1], line[-1], TITLES[column], color))
    axes.set(xlabel=f"α (0: {base}, 1: {member})", ylabel="accuracy")
    style.percent_axis(axes.yaxis)
    figure.get_layout_engine().set(rect=(0, 0, 0.84, 1))
    style.freeze_layout(figure)
    labels.label_line_ends(axes, ends)
    return figure


def _point(row):
    return 100 * value(row, "imagenet"), 100 * value(row, "shift_mean")


def _along(path):
    """Return points all along a path, which labels then keep off."""
    corners = np.array(path).reshape(-1, 2)
    return [start + part * (end - start) for start, end in itertools.pairwise(corners) for part in np.arange(0, 1, 0.1)]


def _published(results, rows, marker, area):
    """List the published places of rows, with their marker and its area."""
    for row in rows:
        found = differences(results, row)
        if "imagenet" in found and "shift_mean" in found:
            yield 100 * found["imagenet"].published, 100 * found["shift_mean"].published, marker, area


def _hollow(axes, places):
    for marker, area in dict.fromkeys((marker, area) for *_, marker, area in places):
        points = np.array([(x, y) for x, y, *rest in places if rest == [marker, area]])
        axes.scatter(
            *points.T, s=2 * area, marker=marker, facecolor="none", edgecolor=style.QUIET, linewidth=0.9, zorder=2
        )
