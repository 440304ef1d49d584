"""Draw a diagnosis: who points where, how far each member lies, and what separates them."""

import math
import textwrap

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from soups.evaluate.diagnose import Diagnosis
from soups.report import style

_MOST_NUMBERS = 12  # members up to which the cells of a matrix bear numbers
_MOST_NAMES = 60
_REASON = 70  # letters of a reason in the footnote


def draw_diagnosis(diagnosis: Diagnosis) -> Figure:
    """Draw a diagnosis as a matplotlib figure, to be saved with `savefig`.

    Above, the angles between task vectors (between the weights themselves without a base) beside how far each member
    moved; below, if they were measured, the barriers beside the scores. Members to leave out come last, in red, behind
    a line; those of which nothing is known are only named below, with the reasons.
    """
    with style.look():
        order = _order(diagnosis)
        rows = (1 if np.isfinite(diagnosis.cosines).any() else 0) + (diagnosis.scores is not None)
        if not rows:
            return _only_words(diagnosis)
        size = min(1.5 + 0.24 * len(order), 4.8)
        figure, grid = style.panels(rows, 2, width=7, height=rows * size + 0.8, width_ratios=[1.3, 1])
        lines = iter(grid)
        if np.isfinite(diagnosis.cosines).any():
            angles, moved = next(lines)
            _draw_angles(figure, angles, diagnosis, order)
            _draw_norms(moved, diagnosis, order)
        if diagnosis.scores is not None:
            barriers, scores = next(lines)
            _draw_barriers(figure, barriers, diagnosis, order)
            _draw_scores(scores, diagnosis, order)
        color = style.INK if diagnosis.keep else style.ALARM
        figure.suptitle(_title(diagnosis), x=0.012, ha="left", fontsize=11, fontweight="bold", color=color)
        if diagnosis.leave_out:
            style.footnote(figure, "Leave out", _reasons(diagnosis, 8), width=112)
        figure.draw_without_rendering()  # lays it out while the look holds
        return figure


def _order(diagnosis):
    """Return the indices of the members of which something is known, those to leave out last."""
    known = np.isfinite(diagnosis.norms)
    if diagnosis.scores is not None:
        known = known | np.isfinite(diagnosis.scores)
    places = [int(index) for index in np.flatnonzero(known)]
    return sorted(places, key=lambda index: diagnosis.names[index] in diagnosis.leave_out)


def _draw_angles(figure, axes, diagnosis, order):
    degrees = np.degrees(np.arccos(np.clip(diagnosis.cosines, -1, 1)))[np.ix_(order, order)]
    shown = style.off_diagonal(degrees)
    # from 0 to 90 at least in every figure, the near ones dark: one family looks like one, two starts like two
    norm = Normalize(0, max([90.0, *shown.compressed()]))
    of = "task vectors" if diagnosis.reference == "base" else "weights"
    image = _matrix(axes, diagnosis, order, shown, norm, style.BLUES.reversed(), 0)
    axes.set_title(f"Angle between {of}")
    bar = _bar(figure, axes, image, "degrees")
    bar.set_ticks([tick for tick in (0, 30, 60, 90, 120, 150, 180) if tick <= norm.vmax + 1e-9])


def _draw_barriers(figure, axes, diagnosis, order):
    shown = style.off_diagonal(diagnosis.barriers[np.ix_(order, order)])
    finite = shown.compressed()[np.isfinite(shown.compressed())]
    # one catastrophic pair must not make all others look alike
    high = style.robust_limits(finite, whisker=4, margin=0)[1] if finite.size else 0.0
    norm = Normalize(0, max(high, 2 * diagnosis.tolerance, 1e-9))
    # as fine as the tolerance: what is far below it is 0
    digits = 2 if not diagnosis.tolerance else max(0, -math.floor(math.log10(diagnosis.tolerance)))
    image = _matrix(axes, diagnosis, order, shown, norm, style.ORANGES, digits)
    axes.set_title("Barrier between members")
    beyond = "max" if (shown.compressed() > norm.vmax).any() else "neither"
    label = f"loss of score; apart beyond {diagnosis.tolerance:.2g}; grey: not measured"
    _bar(figure, axes, image, label, extend=beyond)


def _bar(figure, axes, image, label, **options):
    """Add a colour bar close below the matrix, as wide as it is, and of one thickness in all figures."""
    inches = axes.figure.get_figheight() / axes.get_subplotspec().get_gridspec().nrows - 1.1
    place = axes.inset_axes([0, -0.17 / inches, 1, 0.09 / inches])
    bar = figure.colorbar(image, cax=place, orientation="horizontal", **options)
    bar.outline.set_visible(False)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return bar


def _matrix(axes, diagnosis, order, values, norm, colors, digits):
    image = style.cells(axes, values, colors, norm, aspect="auto")
    _name_rows(axes, diagnosis, order)
    axes.set_xticks([])
    count = len(order) - _number_out(diagnosis, order)
    if 0 < count < len(order):
        axes.axhline(count - 0.5, color="white", linewidth=3)
        axes.axvline(count - 0.5, color="white", linewidth=3)
    if len(order) <= _MOST_NUMBERS:
        style.annotate(axes, values, image, lambda number: f"{number:.{digits}f}" if math.isfinite(number) else "∞")
    return image


def _draw_norms(axes, diagnosis, order):
    relative = diagnosis.relative_norms[order]
    plain = not np.isfinite(relative).any()
    values = diagnosis.norms[order] if plain else relative
    finite = values[np.isfinite(values)]
    decades = style.spans_decades(finite)
    start = 0.8 * finite.min() if decades else 0.0
    _dots(axes, diagnosis, order, values)
    axes.hlines(range(len(order)), start, values, color=_inks(diagnosis, order), linewidth=1.2, alpha=0.45)
    if decades:
        axes.set_xscale("log")
    axes.set_xlim(start, (1.2 if decades else 1.08) * max(finite.max(), 1e-12))
    if decades:
        style.plain_log_axis(axes.xaxis)
    kept = [value for value, index in zip(values, order, strict=True) if not _is_out(diagnosis, index)]
    if kept:
        axes.axvline(float(np.median(kept)), color=style.QUIET, linewidth=1, linestyle=(0, (4, 3)), zorder=1.5)
    based = diagnosis.reference == "base"
    axes.set_title("Distance from the base" if based else "Distance to the others")
    unit = "of the base's norm" if based else "of the mean's norm"
    axes.set_xlabel("dashed: median" if plain else f"{unit}; dashed: median", fontsize=8)


def _draw_scores(axes, diagnosis, order):
    _dots(axes, diagnosis, order, diagnosis.scores[order])
    of, kept = ("those kept", "keep") if "keep" in diagnosis.soup_scores else ("all", "all")
    soup = diagnosis.soup_scores.get(kept, math.nan)
    if math.isfinite(soup):
        color = style.KINDS["soup"][0]
        axes.axvline(soup, color=color, linewidth=1.5, zorder=1.5)
        axes.set_xlabel(f"blue line: uniform soup of {of}, {soup:.4g}", fontsize=8, color=color)
    axes.set_title("Score")
    axes.margins(x=0.12)


def _dots(axes, diagnosis, order, values):
    area = 26 if len(order) <= 30 else 12
    rows = np.arange(len(order))
    axes.scatter(values, rows, color=_inks(diagnosis, order), s=area, zorder=3, linewidth=0)
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.set_yticks(rows, [""] * len(order))
    axes.grid(axis="y", visible=len(order) <= _MOST_NAMES)
    count = len(order) - _number_out(diagnosis, order)
    if 0 < count < len(order):
        axes.axhline(count - 0.5, color=style.ALARM, linewidth=0.6, alpha=0.5)


def _name_rows(axes, diagnosis, order):
    if len(order) > _MOST_NAMES:
        axes.set_yticks([])
        axes.set_ylabel(f"{len(order)} members, those to leave out below")
        return
    names = style.short_names([diagnosis.names[index] for index in order])
    axes.set_yticks(range(len(order)), [style.clipped(n, 24) for n in names], fontsize=8 if len(order) <= 20 else 5)
    for label, index in zip(axes.get_yticklabels(), order, strict=True):
        if _is_out(diagnosis, index):
            label.set_color(style.ALARM)


def _only_words(diagnosis):
    lines = ["No weights could be compared.", *_reasons(diagnosis, 16)]
    figure = Figure(figsize=(7, 0.9 + 0.16 * len(lines)), dpi=style.DPI)
    top = 1 - 0.2 / figure.get_figheight()
    figure.text(0.03, top, _title(diagnosis), fontsize=11, fontweight="bold", color=style.ALARM, va="top")
    below = top - 0.45 / figure.get_figheight()
    figure.text(0.03, below, "\n".join(lines), fontsize=8.5, va="top")
    return figure


def _title(diagnosis):
    return textwrap.fill(f"{diagnosis.verdict.capitalize()}: {diagnosis.summary}", 70)


def _reasons(diagnosis, most):
    items = [f"{name} ({style.clipped(reason, _REASON)})" for name, reason in diagnosis.leave_out.items()]
    return items if len(items) <= most else [*items[:most], f"and {len(items) - most} more"]


def _is_out(diagnosis, index):
    return diagnosis.names[index] in diagnosis.leave_out


def _inks(diagnosis, order):
    return [style.ALARM if _is_out(diagnosis, index) else style.INK for index in order]


def _number_out(diagnosis, order):
    return sum(_is_out(diagnosis, index) for index in order)
