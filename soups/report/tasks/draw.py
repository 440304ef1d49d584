"""Draw a multi-task experiment: scores of all methods, scores by task, size and overlap of masks."""

from collections.abc import Mapping

import numpy as np
from matplotlib.colors import Normalize

from soups.report import style
from soups.report.figures import Drawn
from soups.report.tasks.results import BASE, BASELINES, JOINT, MEMBERS, masks_of, row_of, tasks_rows
from soups.report.tasks.tables import ranked

# colour and marker of each family; colours that colour-blind readers tell apart
FAMILIES = {
    BASELINES: (style.INK, "X"),
    "averages": ("#0072b2", "o"),
    "task vectors": ("#00805e", "D"),
    "spectral": ("#a8487f", "^"),
    "with examples": ("#c44e00", "s"),
    "masks": ("#6a51a3", "P"),
    "trunk for each task": ("#946c00", "v"),
}
_LOCALIZED = {"Localize-and-Stitch": "learned", "Localize-and-Stitch, dataless": "dataless"}


def draw_tasks(results: Mapping) -> list[Drawn]:
    """Draw every figure whose data are there."""
    seeds = len(results["seeds"])
    spread = f" Bars: one standard deviation over {seeds} seeds." if seeds > 1 else ""
    mean = f" Mean over {seeds} seeds." if seeds > 1 else ""
    plans = [
        (
            "tasks",
            "Normalised score of every method",
            scores,
            "Mean over the tasks of the test accuracy divided by that of the task's own member. Full line: the "
            f"members, a network for each task; dashed: one network trained on all tasks; dotted: the base.{spread}",
        ),
        (
            "tasks_by_task",
            "Score on each task",
            by_task,
            f"Test accuracy as a percentage of that of the task's own member.{mean}",
        ),
        (
            "tasks_masks",
            "Masks of Localize-and-Stitch",
            masks,
            "Left: how much of the trunk is in the mask of each task. Right: the overlap of two masks, "
            f"|A ∩ B| / |A ∪ B|.{mean}",
        ),
    ]
    drawn = []
    with style.look():
        for name, title, draw, caption in plans:
            if (figure := draw(results)) is not None:
                drawn.append(Drawn(name, title, caption, style.png(figure)))
    return drawn


def scores(results: Mapping):
    """Draw the normalised score of every method, with lines at the baselines."""
    rows = tasks_rows(results)
    shown = [row for row in ranked(rows) if row["name"] != MEMBERS][::-1]
    figure, ((axes,),) = style.panels(width=7, height=1.2 + 0.185 * len(shown))
    for place, row in enumerate(shown):
        color, marker = FAMILIES.get(row["family"], FAMILIES["averages"])
        found = row["normalised"]
        bar = 0 if np.isnan(found.deviation) else 100 * found.deviation
        axes.errorbar(100 * found.mean, place, xerr=bar, color=color, elinewidth=1.2, zorder=3)
        axes.scatter(100 * found.mean, place, s=30, color=color, marker=marker, zorder=4, linewidth=0)
    lines = _reference_lines(axes, rows)
    axes.set_yticks(range(len(shown)), [row["name"] for row in shown], fontsize=8)
    axes.set_ylim(-0.7, len(shown) - 0.3)
    axes.set_xlabel("normalised score")
    style.percent_axis(axes.xaxis)
    axes.grid(axis="y", linewidth=0.4)
    _legend(figure, axes, {row["family"] for row in shown}, lines)
    return figure


def by_task(results: Mapping):
    """Draw the score of every method on every task as a heat map."""
    rows, tasks = ranked(tasks_rows(results)), list(results["tasks"])
    values = 100 * np.array([[row["score"][task].mean for task in tasks] for row in rows])
    norm = Normalize(max(float(np.nanmin(values)), 50), 100)
    figure, ((axes,),) = style.panels(width=7, height=1.1 + 0.19 * len(rows))
    axes.imshow(values, cmap=style.ORANGES.reversed(), norm=norm, aspect="auto")
    axes.set_xticks(range(len(tasks)), tasks, fontsize=8)
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    for (i, j), value in np.ndenumerate(values):
        color = "white" if norm(value) < 0.35 else style.INK
        axes.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=6.5, color=color)
    number = sum(row["family"] == BASELINES for row in rows)
    axes.axhline(number - 0.5, color="white", linewidth=3)
    return figure


def masks(results: Mapping):
    """Draw the size of the masks of Localize-and-Stitch for each task, and their overlap."""
    found = {_LOCALIZED[name]: mask for name, mask in masks_of(results).items() if name in _LOCALIZED}
    if not found:
        return None
    tasks = list(results["tasks"])
    figure, (panels,) = style.panels(1, 1 + len(found), width=4 + 3 * len(found), height=3.9)
    _sizes(panels[0], found, tasks)
    for axes, (name, mask) in zip(panels[1:], found.items(), strict=True):
        _overlap(figure, axes, name, np.array(mask["jaccard"]), tasks)
    return figure


def _reference_lines(axes, rows):
    lines = ((MEMBERS, "-"), (JOINT, (0, (4, 3))), (BASE, (0, (1, 2))))
    found = [(row_of(rows, name), name, dashes) for name, dashes in lines]
    return [
        axes.axvline(100 * row["normalised"].mean, color=style.INK, linewidth=1, linestyle=dashes, zorder=1, label=name)
        for row, name, dashes in found
        if row is not None
    ]


def _legend(figure, axes, families, lines):
    dots = [
        axes.scatter([], [], color=color, marker=marker, s=30, label=family)
        for family, (color, marker) in FAMILIES.items()
        if family in families
    ]
    figure.legend(handles=[*dots, *lines], loc="outside upper center", ncols=3, frameon=False, fontsize=8)


def _sizes(axes, found, tasks):
    height = 0.8 / len(found)
    for index, (name, mask) in enumerate(found.items()):
        places = np.arange(len(tasks)) + (index - (len(found) - 1) / 2) * height
        sizes = [mask["percent"][task] for task in tasks]
        bars = [0 if np.isnan(size.deviation) else size.deviation for size in sizes]
        color = ("#6a51a3", "#b9a9d9")[index % 2]
        bar_style = {"ecolor": style.QUIET, "error_kw": {"elinewidth": 1, "zorder": 4}}
        means = [size.mean for size in sizes]
        axes.barh(places, means, height, xerr=bars, color=color, label=name, zorder=3, **bar_style)
    axes.set_yticks(range(len(tasks)), tasks)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    style.percent_axis(axes.xaxis)
    axes.set_title("Share of the trunk in the mask", fontsize=9)
    axes.grid(axis="y", visible=False)
    axes.legend(frameon=False, fontsize=7.5, loc="upper left", bbox_to_anchor=(0, -0.08))


def _overlap(figure, axes, name, jaccard, tasks):
    hidden = np.ma.masked_where(np.eye(len(tasks), dtype=bool), jaccard)
    high = max(float(hidden.max()), 1e-6)
    norm = Normalize(0, high)
    axes.imshow(hidden, cmap=style.BLUES, norm=norm)
    axes.set_xticks(range(len(tasks)), tasks, rotation=90, fontsize=7.5)
    axes.set_yticks(range(len(tasks)), tasks, fontsize=7.5)
    axes.set_facecolor(style.FAINT)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_title(f"Overlap, {name}", fontsize=9)
    for (i, j), value in np.ndenumerate(jaccard):
        if i != j:
            color = "white" if norm(value) > 0.6 else style.INK
            axes.text(j, i, f"{value:.2f}".lstrip("0"), ha="center", va="center", fontsize=6.5, color=color)
