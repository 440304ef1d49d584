"""Make the data of the figures that more than one study has."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import soups
from soups import tree
from soups.evaluate import angles, barriers, correct, interpolation_advantage, plane_grid, ratio_error, reliability
from soups.progress import progress, watched
from soups.studies.examples import Examples
from soups.studies.kitchen import Kitchen
from soups.studies.rows import Row


def number_of_models(kitchen: Kitchen, counts: Sequence[int], *, ensembles: bool = True) -> list[Row]:
    """Return the rows of the first so many members, in the order in which the sweep made them, or without ensembles."""
    names, rows = kitchen.names, []
    counts = [count for count in counts if count < len(names)] + [len(names)]
    kinds = {"ensemble": "ensemble", "best on held-out": "member"}
    scores = kitchen.scores
    with progress("soups of the first members", sum(counts), "members") as advance:  # which is what it takes
        for count in counts:
            first = names[:count]
            made = {
                "uniform soup": kitchen.measure(kitchen.settled(soups.uniform(kitchen.usable(first)))),
                "greedy soup": kitchen.measure(
                    kitchen.settled(kitchen.greedy(f"greedy soup of {count}", first).params)
                ),
            }
            if ensembles:
                made["ensemble"] = kitchen.judge(kitchen.mixed(dict.fromkeys(first, 1.0 / count)))
            made["best on held-out"] = kitchen.measured[kitchen.best({name: scores[name] for name in first})]
            for title, found in made.items():
                place = {"group": "curve", "of": {"models": count}}
                rows.append(kitchen.row(title, kinds.get(title, "soup"), found, {}, **place))
            advance(count)
    return rows


def loss_plane(kitchen: Kitchen, start: tree.Tree, points_per_axis: int, examples: int) -> dict[str, Any]:
    """Return held-out error in the plane through the start, the best member, and the one farthest from it in angle."""
    names, scores = kitchen.names, kitchen.scores
    best = kitchen.best(scores)
    good = [name for name in names if scores[name] >= np.median(list(scores.values()))]
    degrees = angles([kitchen.members[name] for name in good], start)
    other = good[int(np.argmax(degrees[good.index(best)]))]
    title = f"loss plane through the start, {kitchen.short(best)} and {kitchen.short(other)}"
    ends = kitchen.members[best], kitchen.members[other]
    with watched(_error(kitchen, examples), title, points_per_axis**2, "points") as error:
        grid = plane_grid(error, start, *ends, points_per_axis=points_per_axis, margin=0.35)
    points = grid["points"]
    labels = {"base": "start", "a": kitchen.short(best), "b": kitchen.short(other), "mean": "average"}
    named = {"points": {label: points[key] for key, label in labels.items()}}
    grid["values"] = [[_finite(value) for value in line] for line in grid["values"]]
    return {"seed": kitchen.seed, "kind": "plane", **grid, **named}


def pairs(kitchen: Kitchen, base: tree.Tree, count: int, examples: int, ts: Sequence[float]) -> list[dict]:
    """Return barriers, angles and diversity of pairs of members spread over the ranking by held-out accuracy."""
    ranked = sorted(kitchen.names, key=kitchen.scores.get, reverse=True)
    places = np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int)
    chosen = [ranked[place] for place in places]
    members = [kitchen.members[name] for name in chosen]
    labels = [kitchen.short(name) for name in chosen]
    degrees = angles(members, base)
    right = [correct(kitchen.member_logits(name, ["test"])["test"], kitchen.test.labels) for name in chosen]
    combined = list(itertools.combinations(range(len(chosen)), 2))
    error, title = _error(kitchen, examples), f"barriers between {len(chosen)} members"
    found, evaluations = [], len(chosen) + len(combined) * (len(ts) + 3)  # three for each advantage
    with watched(lambda params: 1.0 - error(params), title, evaluations, "evaluations") as accuracy:
        barrier = barriers(accuracy, members, ts)
        for i, j in combined:
            values = {
                "angle": degrees[i, j],
                "barrier": barrier[i, j],
                "interpolation_advantage": interpolation_advantage(accuracy, members[i], members[j]),
                "ratio_error": ratio_error(right[i], right[j]),
            }
            values = {name: _finite(value) for name, value in values.items()}
            found.append({"seed": kitchen.seed, "a": labels[i], "b": labels[j], "values": values})
    return found


def reliability_diagrams(kitchen: Kitchen, shown: Mapping[str, tree.Tree]) -> list[dict[str, Any]]:
    """Return confidence against accuracy on the test split for some weights and for the ensemble of all members."""
    logits = {title: kitchen.logits(weights) for title, weights in shown.items()}
    labels = kitchen.test.labels
    logits["ensemble"] = kitchen.mixed(dict.fromkeys(kitchen.names, 1.0 / len(kitchen.names)))
    return [
        {"seed": kitchen.seed, "kind": "reliability", "name": title, "bins": reliability(values["test"], labels)}
        for title, values in logits.items()
    ]


def _finite(value):
    """Return a number for JSON, which has no NaN: None where outputs overflow."""
    return float(value) if np.isfinite(value) else None


def _error(kitchen, examples):
    data, some = kitchen.held_out, slice(min(examples, len(kitchen.held_out.labels)))
    evaluator = kitchen.evaluator(Examples(data.images[some], data.labels[some], data.class_groups))
    return lambda params: 1.0 - evaluator(kitchen.settled(params))["accuracy"]
