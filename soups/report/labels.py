"""Place direct labels so that they cover neither each other nor the points, always the same way for the same figure."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from scipy.optimize import isotonic_regression

_ANGLES = np.arange(24) * (2 * np.pi / 24)
_RADII = (5.0, 9.0, 14.0, 20.0, 28.0, 37.0, 47.0, 60.0, 75.0, 92.0, 112.0, 135.0, 160.0)  # points
_GAP = 1.5  # points around a label


def place_labels(axes: Axes, points, texts, colors, *, obstacles=(), size: float = 8.5) -> None:
    """Write one label beside each point, and a thin line to it where it had to move away.

    `points`, `obstacles`: pairs in data coordinates; obstacles are other markers that labels keep off. The layout of
    the figure must be final. Each label takes the cheapest of 312 places around its point, in several rounds, because
    a label can move when its neighbour has moved: coordinate descent on the overlaps plus the distance.
    """
    points = np.asarray(points, np.float64).reshape(-1, 2)
    if not len(points):
        return
    unit = axes.figure.dpi / 72
    anchors = axes.transData.transform(points) / unit
    others = np.asarray(obstacles, np.float64).reshape(-1, 2)
    markers = np.concatenate([anchors, axes.transData.transform(others) / unit if len(others) else others])
    frame = np.asarray(axes.bbox.extents) / unit
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
        axes.text(x, y, text, color=color, fontsize=size, ha="center", va="center_baseline", zorder=7)


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


def along(x, y, parts: int = 12) -> list:
    """Return points along a line, close enough together for labels to keep off it."""
    place = np.linspace(0, len(x) - 1, parts * (len(x) - 1) + 1)
    return list(zip(np.interp(place, range(len(x)), x), np.interp(place, range(len(y)), y), strict=True))


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
    best_total, best = np.inf, []
    for order in (np.argsort(anchors[:, 1]), np.argsort(-anchors[:, 1]), np.argsort(anchors[:, 0])):
        picked: dict[int, int] = {}
        for _ in range(rounds):
            before = dict(picked)
            for index in map(int, order):
                picked[index] = int(np.argmin(_cost(index, picked, anchors, choices, fixed)))
            if picked == before:
                break
        total = sum(_cost(index, picked, anchors, choices, fixed)[picked[index]] for index in picked)
        if total < best_total:
            best_total, best = total, [choices[index][picked[index]] for index in range(len(choices))]
    return best


def _cost(index, picked, anchors, choices, fixed):
    """Return the cost of each candidate of one label, the places of the others being as picked."""
    cost = fixed[index].copy()
    for other in (j for j in picked if j != index):
        box = choices[other][picked[other]]
        overlap = _overlap(choices[index], box)
        cost += 60 * (overlap > 0) + overlap + 60 * _leaders_hit(anchors[index], choices[index], anchors[other], box)
    return cost


def _fixed_cost(anchor, boxes, markers, labelled, frame):
    near = np.clip(anchor, boxes[:, :2], boxes[:, 2:])
    own = np.hypot(*(near - anchor).T)
    cost = 0.35 * own
    half = 3.0
    for index, marker in enumerate(markers):
        covered = _overlap(boxes, np.concatenate([marker - half, marker + half]))
        cost += (25 if index < labelled else 8) * (covered > 0) + 0.5 * covered
        if not np.array_equal(marker, anchor):
            # a label nearer to another marker than to its own would be read as that one's
            other = np.hypot(*(np.clip(marker, boxes[:, :2], boxes[:, 2:]) - marker).T)
            cost += 1.5 * np.clip(own + 2 - other, 0, 4)
            cost += 6 * _segment_passes(anchor, near, marker)
    outside = np.maximum(frame[:2] + 2 - boxes[:, :2], 0) + np.maximum(boxes[:, 2:] - frame[2:] + 2, 0)
    return cost + 50 * outside.sum(axis=-1)


def _overlap(boxes, box):
    low = np.maximum(boxes[:, :2], box[:2] - _GAP)
    high = np.minimum(boxes[:, 2:], box[2:] + _GAP)
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


def _segment_passes(start, ends, point, reach=3.5):
    """Say for each end whether the line from the start passes a point closely."""
    line = ends - start
    length = np.maximum((line**2).sum(axis=-1), 1e-9)
    place = np.clip((line @ (point - start)) / length, 0, 1)
    return np.hypot(*(start + place[:, None] * line - point).T) < reach


def _segments_cross(a, b, c, d):
    def side(p, q, r):
        return (q[..., 0] - p[..., 0]) * (r[..., 1] - p[..., 1]) - (q[..., 1] - p[..., 1]) * (r[..., 0] - p[..., 0])

    a, c, d = np.broadcast_to(a, b.shape), np.broadcast_to(c, b.shape), np.broadcast_to(d, b.shape)
    return (side(a, b, c) * side(a, b, d) < 0) & (side(c, d, a) * side(c, d, b) < 0)
