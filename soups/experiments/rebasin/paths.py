"""Match two members by each method, and walk the straight path between them."""

import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import soups
from soups import tree
from soups.data import batch_indices
from soups.experiments.rebasin.trial import MEASURES, Row, Trial, unit_range
from soups.recipes.activation_matching import activation_matching
from soups.recipes.permutation import check_spec, identity, permute
from soups.recipes.rebasin import Matching, straight_through_matching, weight_matching

SPLITS = ("train", "test")


def matched_pairs(trial: Trial, pair: int, matching: str) -> list[Row]:
    """Match the second member of a pair to the first, check that it computes what it did, and walk between the two.

    A pair for each state of the statistics: as averaged, and for BatchNorm re-estimated.
    """
    a, b = (trial.members[2 * pair + index] for index in (0, 1))
    start = time.monotonic()
    found = MATCHINGS[matching](trial, a, b)
    seconds = time.monotonic() - start
    moved = permute(b, found.permutations, trial.spec)
    paths = {"as averaged": walk(trial, a, moved, repaired=False)}
    if trial.has_batch_norm:
        paths["re-estimated"] = walk(trial, a, moved, repaired=True)
    values = {"seconds": round(seconds, 3), "moved units": _moved_units(found)}
    values |= {"change of a logit": _change(trial, b, found, moved)}
    of = {"network": trial.network.title, "units": trial.network.settings["widths"][0], "matching": matching}
    both = {"seed": trial.seed, "a": trial.member_names[2 * pair], "b": trial.member_names[2 * pair + 1]}
    return [
        both
        | {"of": of | {"statistics": state}, "values": _values(path) | values}
        | {"lambdas": path["lambdas"], "path": {split: path[split] for split in SPLITS}}
        for state, path in paths.items()
    ]


def _values(path):
    """Return the barriers and what is measured in the middle, under names for people."""
    middle, short = len(path["lambdas"]) // 2, {"nll": "NLL", "accuracy": "accuracy"}
    found = {f"{s} barrier ({short[m]})": path["barrier"][s][m] for m in ("nll", "accuracy") for s in ("test", "train")}
    return found | {f"{split} accuracy at ½": path[split]["accuracy"][middle] for split in ("test", "train")}


def walk(trial: Trial, a: tree.Tree, b: tree.Tree, *, repaired: bool) -> dict[str, Any]:
    """Measure the weights (1 − λ) a + λ b for each λ, and the barriers."""
    lambdas = np.linspace(0, 1, trial.config["paths"]["points"])
    points = []
    for weight in lambdas.tolist():
        params = soups.interpolate(a, b, t=weight)
        if repaired:
            params = trial.repaired(params, [a, b], [1 - weight, weight])
        points.append(trial.measure(params, SPLITS))
    lines = {split: {name: [point[split][name] for point in points] for name in MEASURES} for split in SPLITS}
    found = {split: barriers(lines[split], lambdas) for split in SPLITS}
    return {**lines, "lambdas": lambdas.tolist(), "barrier": found}


def barriers(lines: dict[str, list[float]], lambdas: Sequence[float]) -> dict[str, float]:
    """Return how far a path lies on the bad side of the straight line between its ends, at the worst place.

    max_λ ± [S(λ) − (1 − λ) S(0) − λ S(1)], + for the NLL and − for the accuracy; at least 0, the value at the ends.

    Entezari et al., "The role of permutation invariance in linear mode connectivity", 2021, arXiv 2110.06296.
    """
    lambdas, signs = np.asarray(lambdas), {"accuracy": -1, "nll": 1}
    found = {}
    for name, values in lines.items():
        line = (1 - lambdas) * values[0] + lambdas * values[-1]
        found[name] = float(np.max(signs[name] * (np.asarray(values) - line), initial=0.0))
    return found


# --- Matchings ---


def _naive(trial, a, b):
    return Matching(identity(check_spec(trial.spec, a)), [])


def _weight(trial, a, b):
    return weight_matching(a, b, trial.spec, key=jax.random.key(trial.seed))


def _activation(trial, a, b):
    return activation_matching(*(_activations(trial, params) for params in (a, b)))


def _activations(trial, params):
    inputs, size = trial.inputs, trial.config["evaluate"]["batch_size"]
    for start in range(0, len(inputs), size):
        yield jax.device_get(trial.network.activations(params, inputs[start : start + size]))


def _straight_through(trial, a, b):
    settings, data = trial.config["straight_through"], trial.task.train
    order = batch_indices(len(data), settings["batch_size"], settings["steps"], trial.seed)
    batches = ((unit_range(data.images[rows]), data.labels[rows]) for rows in order)
    return straight_through_matching(
        a,
        b,
        trial.spec,
        trial.network.midpoint_loss,
        batches,
        key=jax.random.key(trial.seed),
        learning_rate=settings["learning_rate"],
    )


MATCHINGS = {
    "naive": _naive,
    "weight": _weight,
    "activation": _activation,
    "straight_through": _straight_through,
}


# --- Is the function unchanged? ---


def _moved_units(found):
    orders = found.permutations.values()
    return float(np.mean(np.concatenate([order != np.arange(len(order)) for order in orders])))


def _change(trial, params, found, moved):
    """Return the largest difference that the permutation made on the test images, in units of the largest logit."""
    inputs = unit_range(trial.task.test.images[:100])
    # stops the run, and says which permutation is to blame
    soups.check_function_unchanged(trial.network.apply_fn, params, found.permutations, trial.spec, inputs, 1e-3)
    before, after = (trial.evaluators["test"].logits(weights) for weights in (params, moved))
    return float(np.abs(after - before).max() / np.abs(before).max())
