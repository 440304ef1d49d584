"""Place direct labels so that they cover neither each other nor the points, always the same way for the same figure."""

import functools
import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextPath
from scipy.optimize import isotonic_regression

_ANGLES = np.arange(24) * (2 * np.pi / 24)
_RADII = (5.0, 9.0, 14.0, 20.0, 28.0, 37.0, 47.0, 60.0, 75.0, 92.0, 112.0, 135.0, 160.0)  # points
_GAP = 1.5  # points around a label
_REACH = 3.0  # points from the middle of a marker to its edge


def place_labels(axes: Axes, points, texts, colors, *, obstacles=(), lines=(), size: float = 8.5) -> None:
    """Write one label beside each point, and a thin line to it where it had to move away.

    `points`, `obstacles`: pairs in data coordinates; obstacles are other markers, `lines` pairs of such points with a
    line between them, and labels keep off both. The layout of the figure must be final. Each label takes the cheapest
    of 312 places around its point, in several rounds, because a label can move when its neighbour has moved: coordinate
    descent on the overlaps plus the distance.
    """
    points = np.asarray(points, np.float64).reshape(-1, 2)
    if not len(points):
        return
    unit = axes.figure.dpi / 72
    anchors = axes.transData.transform(points) / unit
    others = np.asarray(obstacles, np.float64).reshape(-1, 2)
    others = axes.transData.transform(others) / unit if len(others) else others
    frame = np.asarray(axes.bbox.extents) / unit
    ends = (axes.transData.transform(line) / unit for line in lines)
    markers = np.concatenate([anchors, others, *(_points_between(*pair, frame) for pair in ends)])
    extents = np.array([text_size(text, size) for text in texts])
    choices = [_candidates(anchor, extent) for anchor, extent in zip(anchors, extents, strict=True)]
    boxes = _descend(anchors, choices, markers, frame)
    back = axes.transData.inverted()
    for anchor, box, text, color in zip(anchors, boxes, texts, colors, strict=True):
        near = np.clip(anchor, box[:2], box[2:])
        if np.hypot(*(near - anchor)) > 7:
            line = back.transform(np.array([anchor, near]) * unit)
            axes.plot(*line.T, color=color, linewidth=0.6, alpha=0.6, zorder=3.5, scalex=False, scaley=False)
        x, y = back.transform((box[:2] + box[2:]) / 2 * unit)
        halo = [] if color == "white" else [withStroke(linewidth=3, foreground="white")]  # white ones have a dark box
        look = {"color": color, "fontsize": size, "path_effects": halo}
        axes.text(x, y, text, ha="center", va="center_baseline", zorder=7, **look)


def label_line_ends(axes: Axes, ends, *, size: float = 8.5, gap: float = 12.0, line: float = 12.0) -> None:
    """Write (x, y, text, color) labels to the right of the axes, in the order of y, `line` points apart at least."""
    unit = axes.figure.dpi / 72
    ends = sorted((end for end in ends if np.isfinite(end[1])), key=lambda end: end[1])
    if not ends:
        return
    wanted = np.array([axes.transData.transform((x, y))[1] / unit for x, y, _, _ in ends])
    for (x, y, text, color), height in zip(ends, _spread_out(wanted, line), strict=True):
        start = axes.transData.transform((x, y)) / unit
        place = axes.transAxes.transform((1.0, 0.0))[0] / unit + gap
        arrow = {"arrowstyle": "-", "color": color, "linewidth": 0.6, "alpha": 0.6, "shrinkA": 0, "shrinkB": 3}
        look = {"va": "center", "color": color, "fontsize": size, "arrowprops": arrow, "annotation_clip": False}
        axes.annotate(text, (x, y), (place - start[0], height - start[1]), textcoords="offset points", **look)


def label_categories(axes: Axes, names) -> None:
    """Write names along the x axis at 0, 1, ...: upright where they would run together, small where they are many.

    Of more than can be read every second is written, or every third and so on.
    """
    room = axes.bbox.width / (axes.figure.dpi / 72) / max(len(names), 1)  # points
    wide = max(text_size(name, 8.5)[0] for name in names) + 6 > room
    every = math.ceil(5.5 / room) if wide else 1
    look = {"rotation": 90, "fontsize": min(8.5, 0.85 * room * every)} if wide else {}
    axes.set_xticks(range(0, len(names), every), names[::every], **look)
    axes.set_xlim(-0.6, len(names) - 0.4)


def text_size(text: str, size: float) -> np.ndarray:
    """Measure a text of one line in points: width and height of its box."""
    path = TextPath((0, 0), text or " ", size=size, prop=FontProperties(family="DejaVu Sans"))
    return np.array([path.get_extents().width, 1.15 * size])


def _spread_out(wanted, distance):
    """Move sorted places apart to `distance`, each as little as possible."""
    offsets = distance * np.arange(len(wanted))
    return isotonic_regression(wanted - offsets).x + offsets


def _candidates(anchor, extent):
    directions = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=-1)
    offsets = np.concatenate([directions * (radius + extent / 2) for radius in _RADII])
    centres = anchor + offsets
    return np.concatenate([centres - extent / 2, centres + extent / 2], axis=-1)


def _descend(anchors, choices, markers, frame, rounds=8):
    """Pick one box for each label: insert them in several orders, improve each start label by label, keep the best."""
    count = len(anchors)  # the first markers are those that have labels
    fixed = [_fixed_cost(anchor, boxes, markers, count, frame) for anchor, boxes in zip(anchors, choices, strict=True)]

    @functools.cache  # most labels stay where they are from round to round
    def between(index, other, place):
        box = choices[other][place]
        overlap = _overlap(choices[index], box)
        leaders = _leaders_hit(anchors[index], choices[index], anchors[other], box)
        return 60 * (overlap > 0) + overlap + 60 * leaders

    def cost(index, picked):
        """Return the cost of each candidate of one label, the places of the others being as picked."""
        return sum((between(index, *other) for other in picked.items() if other[0] != index), fixed[index])

    best_total, best = np.inf, []
    for order in (np.argsort(anchors[:, 1]), np.argsort(-anchors[:, 1]), np.argsort(anchors[:, 0])):
        picked: dict[int, int] = {}
        for _ in range(rounds):
            before = dict(picked)
            for index in map(int, order):
                picked[index] = int(np.argmin(cost(index, picked)))
            if picked == before:
                break
        total = sum(cost(index, picked)[picked[index]] for index in picked)
        if total < best_total:
            best_total, best = total, [choices[index][picked[index]] for index in range(len(choices))]
    return best


def _points_between(start, end, frame):
    """Return points on the part of a line that is within the frame, as far apart as markers reach."""
    step = end - start
    with np.errstate(divide="ignore", invalid="ignore"):
        enters, leaves = np.sort((frame.reshape(2, 2) - start) / step, axis=0)
    first, last = max(0.0, np.fmax(*enters)), min(1.0, np.fmin(*leaves))
    if not (first <= last and np.isfinite(step).all()):  # it is outside, or an end of it is nowhere
        return np.empty((0, 2))
    count = 1 + math.ceil((last - first) * np.hypot(*step) / (2 * _REACH))
    return start + np.linspace(first, last, count)[:, None] * step


def _fixed_cost(anchor, boxes, markers, labelled, frame):
    """Return what each place of a label costs whatever the others do, [candidates]; of [markers, candidates]."""
    near = np.clip(anchor, boxes[:, :2], boxes[:, 2:])
    own = np.hypot(*(near - anchor).T)
    places = markers[:, None]
    covered = _overlap(boxes, np.concatenate([places - _REACH, places + _REACH], axis=-1))
    weight = np.where(np.arange(len(markers)) < labelled, 25, 8)[:, None]
    cost = weight * (covered > 0) + 0.5 * covered
    # a label nearer to another marker than to its own would be read as that one's
    away = np.clip(places, boxes[:, :2], boxes[:, 2:]) - places
    misread = 1.5 * np.clip(own + 2 - np.hypot(away[..., 0], away[..., 1]), 0, 4)
    misread += 6 * _segments_pass(anchor, near, places)
    cost += np.where((markers != anchor).any(axis=-1)[:, None], misread, 0)
    outside = np.maximum(frame[:2] + 2 - boxes[:, :2], 0) + np.maximum(boxes[:, 2:] - frame[2:] + 2, 0)
    return 0.35 * own + cost.sum(axis=0) + 50 * outside.sum(axis=-1)


def _overlap(boxes, box):
    low = np.maximum(boxes[:, :2], box[..., :2] - _GAP)
    high = np.minimum(boxes[:, 2:], box[..., 2:] + _GAP)
    return np.prod(np.maximum(high - low, 0), axis=-1)


def _leaders_hit(anchor, boxes, other_anchor, other_box):
    """Count where the line from the anchor to each box meets the other label or its line, or the other line the box."""
    near = np.clip(anchor, boxes[:, :2], boxes[:, 2:])
    other_near = np.clip(other_anchor, other_box[:2], other_box[2:])
    steps = np.linspace(0, 1, 17)[:, None]
    mine = anchor + steps[:, None] * (near - anchor)  # [17, candidates, 2]
    theirs = other_anchor + steps * (other_near - other_anchor)  # [17, 2]
    through = ((mine > other_box[:2]) & (mine < other_box[2:])).all(axis=-1).any(axis=0)
    under = ((theirs[:, None] > boxes[:, :2]) & (theirs[:, None] < boxes[:, 2:])).all(axis=-1).any(axis=0)
    return through.astype(float) + under + _segments_cross(anchor, near, other_anchor, other_near)


def _segments_pass(start, ends, points, reach=3.5):
    """Say for each point and end whether the line from the start to the end passes closely, [points, ends]."""
    line = ends - start
    length = np.maximum((line**2).sum(axis=-1), 1e-9)
    place = np.clip(((points - start) * line).sum(axis=-1) / length, 0, 1)
    away = start + place[..., None] * line - points
    return np.hypot(away[..., 0], away[..., 1]) < reach


def _segments_cross(a, b, c, d):
    def side(p, q, r):
        return (q[..., 0] - p[..., 0]) * (r[..., 1] - p[..., 1]) - (q[..., 1] - p[..., 1]) * (r[..., 0] - p[..., 0])

    a, c, d = np.broadcast_to(a, b.shape), np.broadcast_to(c, b.shape), np.broadcast_to(d, b.shape)
    return (side(a, b, c) * side(a, b, d) < 0) & (side(c, d, a) * side(c, d, b) < 0)
