"""Return all figures one look: colours that colour-blind readers tell apart, quiet axes, direct labels."""

import io
import math
import textwrap

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

INK = "#1f2933"
QUIET = "#7b8794"
FAINT = "#e4e7eb"
ALARM = "#b3261e"
DPI = 200  # twice the 100 px per inch at which a figure 7 inches wide is shown

# Okabe and Ito's colours, darker where text in them would be too pale; markers tell the kinds apart without colour
KINDS = {
    "start": ("#7b8794", "X"),
    "probe": ("#946c00", "v"),
    "member": ("#1f2933", "*"),
    "members": ("#7b8794", "d"),
    "soup": ("#0072b2", "o"),
    "interpolation": ("#00805e", "D"),
    "trajectory": ("#a8487f", "^"),
    "ensemble": ("#c44e00", "s"),
    "distilled": ("#6a51a3", "P"),
    "joint": ("#1f2933", "X"),
    "masked": ("#946c00", "v"),
    "oracle": ("#7b8794", "p"),
}
# families of merging methods, where a study has more of them than kinds
FAMILIES = {
    "baselines": (INK, "X"),
    "averages": ("#0072b2", "o"),
    "task vectors": ("#00805e", "D"),
    "spectral": ("#a8487f", "^"),
    "with examples": ("#c44e00", "s"),
    "masks": ("#6a51a3", "P"),
    "trunk for each task": ("#946c00", "v"),
}
SERIES = {
    "uniform soup": "#3a9bd9",
    "greedy soup": "#00558c",
    "learned soup": "#00805e",
    "ensemble": "#c44e00",
    "greedy ensemble": "#e08a00",
    "best on held-out": "#1f2933",
    "best member": "#1f2933",
    "mean member": "#7b8794",
    "aligned to the first": "#00805e",
    "MergeMany": "#6a51a3",
    "naive": "#7b8794",
    "weight": "#0072b2",
    "activation": "#00805e",
    "straight_through": "#c44e00",
    "held_out": "#946c00",
    "test": "#0072b2",
    "shift_mean": "#a8487f",
    "imagenet": "#0072b2",
}
OTHERS = ("#6a51a3", "#00805e", "#c44e00", "#7b8794", "#3a9bd9", "#e08a00", "#1f2933")

GREYS = LinearSegmentedColormap.from_list("soups_greys", ["#d5dbe1", "#8a96a3", "#3e4c59"])
BLUES = LinearSegmentedColormap.from_list("soups_blues", ["#f4f8fb", "#a9cfe8", "#3a8fc7", "#08436f"])
ORANGES = LinearSegmentedColormap.from_list("soups_oranges", ["#fdf7f1", "#f7c894", "#db7a26", "#7d3200"])
DIVERGING = LinearSegmentedColormap.from_list(
    "soups_diverging", ["#8a3b00", "#db7a26", "#fbe3cb", "#ffffff", "#d3e6f3", "#3a8fc7", "#08436f"]
)

_RC = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a name with a dollar sign is a name, not a formula
    "axes.edgecolor": "#9aa5b1",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": "#52606d",
    "ytick.color": "#52606d",
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "svg.hashsalt": "soups",  # the same results give the same bytes
}


def look():
    """Make the context in which figures are made and saved; a user's own matplotlib settings do not reach into it."""
    return matplotlib.style.context(["default", _RC])


def panels(rows: int = 1, columns: int = 1, *, width: float = 7, height: float = 4.2, **options):
    """Make a figure and its axes [rows, columns] without pyplot's global state; width and height in inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08, wspace=0.04, hspace=0.06)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def freeze_layout(figure: Figure) -> None:
    """Fix the places of the axes, so that what is placed in pixels afterwards stays where it is."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def rendered(figure: Figure, kind: str) -> bytes:
    """Return the bytes of a figure's file of a kind, "png" or "svg", the same each time."""
    buffer, unsaid = io.BytesIO(), {"png": ("Software",), "svg": ("Date", "Creator")}[kind]
    figure.savefig(buffer, format=kind, dpi=DPI, metadata=dict.fromkeys(unsaid))
    return buffer.getvalue()


def of_kind(kind: str, family: str = "") -> tuple[str, str]:
    """Return colour and marker of a row by its family, else by its kind."""
    return FAMILIES.get(family) or KINDS.get(kind) or KINDS["soup"]


def ink_on(color) -> str:
    """Return the colour of a text on a coloured cell, white or ink, whichever has the higher contrast."""
    channels = np.asarray(color[:3])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return "white" if linear @ [0.2126, 0.7152, 0.0722] < 0.22 else INK  # relative luminance as in WCAG 2


def series_color(name: str) -> str:
    """Return a named line its colour, the same in every figure and every run."""
    return SERIES.get(name) or OTHERS[sum(name.encode()) % len(OTHERS)]


def percent_axis(axis) -> None:
    """Label the ticks of an axis of percentages."""
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g} %"))


def metric_axes(metric, *axes) -> None:
    """Label the ticks of axes of a metric, as percentages where it is shown so."""
    for axis in axes if metric.percent else ():
        percent_axis(axis)


def plain_log_axis(axis) -> None:
    """Label a log axis with plain numbers at 1, 2 and 5 of each decade, or at decades where there are many."""
    low, high = axis.get_view_interval()
    steps = (1.0,) if high / low > 300 else (1.0, 3.0) if high / low > 30 else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(base=10, subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0e}".replace("e-0", "e-") if x < 1e-3 else f"{x:g}"))
    axis.set_minor_locator(NullLocator())


def spans_decades(values) -> bool:
    """Say whether positive values spread so widely that a log axis shows them better."""
    values = np.asarray(values, np.float64)
    return bool(len(values) and values.min() > 0 and values.max() / values.min() >= 10)


def scale_norm(values) -> Normalize:
    """Map values to colours, by their logarithm where they span decades."""
    low, high = float(np.min(values)), float(np.max(values))
    return LogNorm(low, high) if spans_decades(values) else Normalize(low, high if high > low else low + 1)


def robust_limits(
    values, *, keep=(), whisker: float = 2.0, margin: float = 0.08, least: float = 0.0
) -> tuple[float, float]:
    """Return axis limits that diverged outliers do not stretch.

    They hold all of `keep`, and of `values` those within `whisker` interquartile ranges of the quartiles, or within
    `least`, if that is more; on both sides `margin` of the range is added.
    """
    values = np.asarray([v for v in values if math.isfinite(v)], np.float64)
    keep = np.asarray([v for v in keep if math.isfinite(v)], np.float64)
    if len(values):
        lowest, low, high, highest = np.percentile(values, [10, 25, 75, 90])
        # where half of them are equal, as differences from one of them may be, the quartiles say nothing of the spread
        reach = max(whisker * max(high - low if high - low > 1e-9 else (highest - lowest) / 2, 1e-9), least)
        keep = np.concatenate([keep, values[(values >= low - reach) & (values <= high + reach)]])
    if not len(keep):
        return 0.0, 1.0
    low, high = float(keep.min()), float(keep.max())
    if high == low:
        return low - 0.5, high + 0.5
    return low - margin * (high - low), high + margin * (high - low)


def footnote(figure: Figure, start: str, items, *, width: int = 120) -> None:
    """Write remarks at the foot of a figure, in lines of `width` characters, and keep the axes off them."""
    # no-break spaces inside an item: lines break between items only
    text = textwrap.fill(f"{start}: " + "; ".join(item.replace(" ", "\u00a0") for item in items), width)
    inches = 0.12 + 0.14 * (text.count("\n") + 1)
    share = inches / figure.get_figheight()
    figure.get_layout_engine().set(rect=(0, share, 1, 1 - share))
    figure.text(0.012, 0.06 / figure.get_figheight(), text, va="bottom", color="#52606d", fontsize=7.5)


def note(axes: Axes, text: str) -> None:
    """Write a quiet remark into a corner of the axes."""
    # under the points: a remark must never hide what was measured
    axes.text(
        0.99, 0.02, text, transform=axes.transAxes, ha="right", va="bottom", color=QUIET, fontsize=7.5, zorder=1.5
    )


def inside(axes: Axes, x, y) -> bool:
    """Say whether a point lies within the limits of the axes."""
    return axes.get_xlim()[0] <= x <= axes.get_xlim()[1] and axes.get_ylim()[0] <= y <= axes.get_ylim()[1]


def colorbar(figure: Figure, mappable, axes, label: str, *, values=None, cax=None, **options):
    """Add a slim colour bar beside `axes` (or in `cax`); `values` that span decades get plain log ticks."""
    place = {"cax": cax} if cax else {"ax": axes, "pad": 0.02, "aspect": 32, **options}
    bar = figure.colorbar(mappable, **place)
    bar.outline.set_visible(False)
    bar.set_label(label, fontsize=8.5)
    bar.ax.tick_params(labelsize=8)
    if values is not None and spans_decades(values):
        plain_log_axis(bar.long_axis)
    return bar


def cells(axes: Axes, values, colors, norm: Normalize, **options):
    """Draw a matrix as coloured cells without a frame, and return the image; what is masked is faint."""
    axes.set_facecolor(FAINT)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    return axes.imshow(values, cmap=colors, norm=norm, **options)


def annotate(axes: Axes, values, image, words, size: float = 6.5, bold=None) -> None:
    """Write `words(number)` into the cells of a matrix that are not masked, in white or ink, some of them `bold`."""
    for i, j in zip(*np.nonzero(~np.ma.getmaskarray(values)), strict=True):
        color, weight = ink_on(image.to_rgba(values[i, j])), "bold" if bold is not None and bold[i, j] else "normal"
        axes.text(j, i, words(values[i, j]), ha="center", va="center", fontsize=size, color=color, fontweight=weight)


def gains(axes: Axes, values, sure, rows, columns, words, *, aside: int | None = None) -> None:
    """Draw differences [rows, columns] as cells, blue where better and orange where worse; NaN: not measured.

    `words(number)` is written into each, bold where `sure`; a line parts the columns from `aside` on from the others.
    """
    hidden = np.ma.masked_invalid(values)
    low, high = robust_limits(hidden.compressed(), whisker=1.5, margin=0)
    reach = max(-low, high, 1e-6)
    image = cells(axes, hidden, DIVERGING, Normalize(-reach, reach), aspect="auto")
    axes.set_xticks(range(len(columns)), columns, fontsize=7.5, rotation=40, ha="left", rotation_mode="anchor")
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(rows)), map(clipped, rows), fontsize=8)
    annotate(axes, hidden, image, words, 7 if len(columns) <= 10 else 6, bold=sure)
    if aside is not None:
        axes.axvline(aside - 0.5, color="white", linewidth=5)


def off_diagonal(values) -> np.ma.MaskedArray:
    """Mask the diagonal of a matrix, and what was not measured."""
    return np.ma.masked_where(np.eye(len(values), dtype=bool) | np.isnan(values), values)


def short_names(names) -> list[str]:
    """Cut the prefix that all names share up to a separator: member_003, member_011 become 003, 011."""
    names = list(names)
    prefix = names[0] if len(names) > 1 else ""
    while prefix and not all(name.startswith(prefix) for name in names):
        prefix = prefix[:-1]
    cut = max(prefix.rfind(separator) for separator in "_-/ ") + 1
    return [name[cut:] or name for name in names]


def clipped(text: str, most: int = 48) -> str:
    """Cut a name that would leave no room for the axes."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def words(name: str) -> str:
    """Write a key of the results for people: learning_rate becomes learning rate."""
    return {"held_out": "held-out"}.get(name, str(name).replace("_", " "))
