"""Draw reliability diagrams: how often predictions of a given confidence are right."""

import math
from collections.abc import Mapping

import numpy as np

from soups.report import results as files
from soups.report import style
from soups.report.figures import FIRST, figure


@figure("Reliability", seeds=FIRST)
def reliability(results: Mapping):
    """Test predictions in bins by confidence; the area of a dot is the number of examples. On the dashed line
    confidence and accuracy agree; above it the predictor is less sure than it could be, below it is too sure. ECE is
    the mean gap, weighted by the examples, of the bins drawn here.
    """
    found = files.by_seed(files.curves_of(results, "reliability"), results["seeds"])
    curves = {curve["name"]: curve["bins"] for curve in found if sum(b["count"] for b in curve["bins"]) > 0}
    if not curves:
        return None
    columns = 2 if len(curves) in (2, 4) else min(3, len(curves))
    rows = math.ceil(len(curves) / columns)
    width = 3.5 if columns == 1 else 7
    figure, grid = style.panels(rows, columns, width=width, height=0.4 + rows * 6.6 / columns, sharex=True, sharey=True)
    low = _lowest(curves.values())
    for axes, (name, bins) in zip(grid.flat, curves.items(), strict=False):
        _diagram(axes, name, bins, low)
    for axes in grid.flat[len(curves) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("accuracy")
    for axes in grid[-1]:
        axes.set_xlabel("confidence")
    return figure


def calibration_error(bins) -> float:
    """Return the expected calibration error of bins: Σ_b (n_b / n) |accuracy_b − confidence_b|."""
    confidence, accuracy, count = _arrays(bins)
    return float((count * np.abs(accuracy - confidence)).sum() / count.sum())


def _arrays(bins):
    bins = [b for b in bins if b["count"] > 0]
    return [np.array([b[key] for b in bins], np.float64) for key in ("confidence", "accuracy", "count")]


def _lowest(all_bins):
    """Return the common lower end of the axes: bins of less than 1 % of the examples may fall out below."""
    lows = []
    for confidence, accuracy, count in map(_arrays, all_bins):
        large = count >= 0.01 * count.sum()
        lows.append(min(confidence[large].min(), accuracy[large].min()))
    return min(math.floor(10 * min(lows)) / 10, 0.9)


def _diagram(axes, name, bins, low):
    confidence, accuracy, count = _arrays(bins)
    color = style.series_color(name)
    axes.plot([low, 1], [low, 1], color=style.QUIET, linewidth=1, linestyle=(0, (3, 2)), zorder=2)
    axes.vlines(confidence, confidence, accuracy, color=color, alpha=0.35, linewidth=3, zorder=3)
    axes.plot(confidence, accuracy, color=color, linewidth=1.2, zorder=4)
    areas = np.maximum(60 * count / max(count.max(), 1.0), 6.0)  # none so small that it is not seen
    axes.scatter(confidence, accuracy, s=areas, color=color, edgecolor="white", linewidth=0.5, zorder=5)
    pad = 0.03 * (1 - low)
    axes.set(xlim=(low - pad, 1 + pad), ylim=(low - pad, 1 + pad), aspect="equal")
    axes.set_title(f"{name} · ECE {100 * calibration_error(bins):.2f} %", fontsize=9)
    hidden = int(count[(confidence < low - pad) | (accuracy < low - pad)].sum())
    if hidden:
        style.note(axes, f"{hidden} of {int(count.sum())} examples below")
