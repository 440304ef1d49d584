"""Make the data of one seed's figures."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

import soups
from soups import tree
from soups.evaluate import (
    Evaluator,
    angles,
    barriers,
    correct,
    interpolation_advantage,
    plane_grid,
    ratio_error,
    reliability,
)
from soups.experiments.finetune_and_soup.cooking import Row, best_of, greedy_soup, mixed_logits, short
from soups.experiments.finetune_and_soup.setting import Setting
from soups.progress import progress, watched


def number_of_models(setting: Setting, names: list[str], scores: Mapping[str, float]) -> list[Row]:
    """Return the rows of the first so many members, in the order in which the sweep made them."""
    counts = [count for count in setting.config["figures"]["counts"] if count < len(names)] + [len(names)]
    rows = []
    logits = {name: setting.logits(setting.pool[name]) for name in names}
    with progress("soups of the first members", len(counts), "sizes") as advance:
        for count in counts:
            first = names[:count]
            best = best_of({name: scores[name] for name in first})
            greedy = greedy_soup(setting, f"greedy soup of {count}", first, scores)
            made = {
                "uniform soup": setting.logits(soups.uniform(setting.pool.select(first))),
                "greedy soup": setting.logits(greedy.params),
                "ensemble": mixed_logits(setting, logits, dict.fromkeys(first, 1.0 / count)),
                "best on held-out": logits[best],
            }
            kinds = {"ensemble": "ensemble", "best on held-out": "member"}
            for title, values in made.items():
                place = {"group": "curve", "of": {"models": count}}
                rows.append(setting.row(title, kinds.get(title, "soup"), values, {}, **place))
            advance(1)
    return rows


def loss_plane(setting: Setting, start: tree.Tree, names: list[str], scores: Mapping[str, float]) -> dict[str, Any]:
    """Return held-out error in the plane through the start, the best member, and the one farthest from it in angle."""
    config = setting.config["figures"]
    best = best_of(scores)
    good = [name for name in names if scores[name] >= np.median(list(scores.values()))]
    degrees = angles([setting.pool[name] for name in good], start)
    other = good[int(np.argmax(degrees[good.index(best)]))]
    title = f"loss plane through the start, {short(setting, best)} and {short(setting, other)}"
    points = config["plane_points"]
    with watched(_error(setting, config["plane_examples"]), title, points**2, "points") as error:
        grid = plane_grid(error, start, setting.pool[best], setting.pool[other], points_per_axis=points, margin=0.35)
    points = grid["points"]
    labels = {"base": "start", "a": short(setting, best), "b": short(setting, other), "mean": "average"}
    named = {"points": {label: points[key] for key, label in labels.items()}}
    return {"seed": setting.seed, "kind": "plane", **grid, **named}


def pairs(setting: Setting, base: tree.Tree, names: list[str], scores: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return barriers, angles and diversity of pairs of members spread over the ranking by held-out accuracy."""
    config = setting.config["figures"]
    ranked = sorted(names, key=scores.get, reverse=True)
    places = np.linspace(0, len(ranked) - 1, min(config["pairs_members"], len(ranked))).round().astype(int)
    chosen = [ranked[place] for place in places]
    members = [setting.pool[name] for name in chosen]
    labels = [short(setting, name) for name in chosen]
    degrees = angles(members, base)
    right = [correct(setting.logits(member, ["test"])["test"], setting.task.test.labels) for member in members]
    combined = list(itertools.combinations(range(len(chosen)), 2))
    error, title = _error(setting, config["plane_examples"]), f"barriers between {len(chosen)} members"
    evaluations = len(chosen) + len(combined) * (len(config["barrier_ts"]) + 3)  # three for each advantage
    found = []
    with watched(lambda params: 1.0 - error(params), title, evaluations, "evaluations") as accuracy:
        barrier = barriers(accuracy, members, config["barrier_ts"])
        for i, j in combined:
            values = {
                "angle": float(degrees[i, j]),
                "barrier": float(barrier[i, j]),
                "interpolation_advantage": interpolation_advantage(accuracy, members[i], members[j]),
                "ratio_error": ratio_error(right[i], right[j]),
            }
            found.append({"seed": setting.seed, "a": labels[i], "b": labels[j], "values": values})
    return found


def reliability_diagrams(setting: Setting, params: Mapping[str, tree.Tree], names: list[str]) -> list[dict[str, Any]]:
    """Return confidence against accuracy on the test split for some weights and for the ensemble of all members."""
    logits = {title: setting.logits(weights) for title, weights in params.items()}
    members = {name: setting.logits(setting.pool[name]) for name in names}
    logits["ensemble"] = mixed_logits(setting, members, dict.fromkeys(names, 1.0 / len(names)))
    labels = setting.task.test.labels
    return [
        {"seed": setting.seed, "kind": "reliability", "name": title, "bins": reliability(values["test"], labels)}
        for title, values in logits.items()
    ]


def _error(setting, examples):
    held_out = setting.task.held_out.take(np.arange(min(examples, len(setting.task.held_out))))
    evaluator = Evaluator(
        setting.apply_fn, held_out, batch_size=setting.config["evaluate"]["batch_size"], mesh=setting.data_mesh
    )
    return lambda params: 1.0 - evaluator(params)["accuracy"]
