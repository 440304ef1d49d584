"""Draw what a search tried: the scores in their order, and over each setting, darker where they came later."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from soups.report import style

_LETTERS = 32  # below a panel
_PANELS = 11  # settings of which each has a panel; of more the first ones


def draw_search(
    settings: Mapping[str, Sequence[Any]], scores: Sequence[float], mode: str, logarithmic: Collection[str] = ()
) -> Figure:
    """Draw the scores of candidates in their order, with the best so far, and over the values of each setting.

    Args:
        settings: the values of each setting, numbers or choices, by its name; one of each candidate.
        scores: those that are not finite are left out, and counted.
        mode: "max" if more is better, "min" if less is.
        logarithmic: the names of settings whose axis is so.
    """
    shown = list(settings)[:_PANELS]
    rows = math.ceil((1 + len(shown)) / 3)
    columns = min(3, 1 + len(shown))
    figure, grid = style.panels(rows, columns, width=0.6 + 2.8 * columns, height=0.4 + 2.4 * rows, sharey=True)
    scores = np.asarray(scores, np.float64)
    finite, panels = np.isfinite(scores), list(grid.flat)
    best = int(np.nanargmax(np.where(finite, scores if mode == "max" else -scores, -np.inf)))
    _over_candidates(panels[0], scores, finite, best, np.fmax if mode == "max" else np.fmin)
    for axes, name in zip(panels[1:], shown, strict=False):
        _over_values(axes, name, settings[name], scores, finite, best)
        if name in logarithmic:
            axes.set_xscale("log")
            style.plain_log_axis(axes.xaxis)
    for axes in panels[1 + len(shown) :]:
        axes.remove()
    for row in grid:
        row[0].set_ylabel("score" if mode == "max" else "score; lower is better")
    style.footnote(figure, "Star", ["the best candidate", *(["darker dots came later"] if shown else [])])
    return figure


def _over_candidates(axes, scores, finite, best, better):
    numbers = np.arange(len(scores))
    axes.scatter(numbers[finite], scores[finite], s=14, color=style.QUIET, linewidth=0, zorder=2)
    so_far = better.accumulate(np.where(finite, scores, np.nan))
    axes.step(numbers, so_far, where="post", color=style.series_color("weight"), zorder=3)
    _mark(axes, best, scores[best])
    axes.set(
        xlabel="candidate; the line is the best so far", xlim=(-0.5 - 0.02 * len(scores), 1.02 * len(scores) - 0.5)
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if not finite.all():  # above the axes: no remark may lie on a candidate
        axes.set_title(
            f"{int((~finite).sum())} without a finite score", fontsize=7.5, color=style.QUIET, fontweight="normal"
        )


def _over_values(axes, name, values, scores, finite, best):
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        names = list(dict.fromkeys(map(str, values)))
        letters = max(3, _LETTERS // len(names))  # that have room below each
        axes.set_xticks(range(len(names)), labels=[style.clipped(one, letters) for one in names])
        axes.set_xlim(-0.5, len(names) - 0.5)
        values = [names.index(str(value)) for value in values]
    values, order = np.asarray(values, np.float64), np.arange(len(scores))
    axes.scatter(
        values[finite], scores[finite], s=16, c=order[finite], cmap=style.BLUES, vmin=-len(order) / 2, zorder=2
    )
    _mark(axes, values[best], scores[best])
    axes.set(xlabel=_short(name))


def _short(name):
    """Cut the name of a member's setting in its middle: members mostly begin alike, as in "weight of runs/3"."""
    setting, of, member = name.partition(" of ")
    room = _LETTERS - len(setting + of)
    return f"{setting}{of}…{member[1 - room :]}" if of and len(member) > room > 1 else style.clipped(name, _LETTERS)


def _mark(axes, x, y):
    axes.scatter([x], [y], s=60, marker="*", color=style.ALARM, linewidth=0, zorder=4)
