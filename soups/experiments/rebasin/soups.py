"""Average several independent members, as they are and aligned, and measure what they must be compared with."""

from collections.abc import Sequence

import jax
import numpy as np

import soups
from soups import tree
from soups.evaluate import ensemble_logits, metrics
from soups.experiments.rebasin.trial import MEASURES, Row, Trial

ALIGNMENTS = {"uniform soup": None, "aligned to the first": "weight", "MergeMany": "merge_many"}


def soup_rows(trial: Trial, size: int) -> list[Row]:
    """Return the rows of the first `size` members: their soups, repaired and not, and the baselines."""
    members = trial.members[:size]
    rows = baseline_rows(trial, size)
    for title, method in ALIGNMENTS.items():
        together = members
        if method is not None:
            together = soups.align(members, trial.spec, key=jax.random.key(trial.seed), method=method)
        soup = soups.uniform(together)
        rows.append(_row(trial, size, title, trial.measure(soup)))
        rows.append(_row(trial, size, f"{title}, repaired", trial.measure(trial.repaired(soup, together))))
    return rows


def baseline_rows(trial: Trial, size: int) -> list[Row]:
    """Return the mean member, the best member by held-out accuracy, and the ensemble of the mean logits."""
    singles = trial.stage("members", lambda: [trial.measure(params) for params in trial.members])[:size]
    best = max(range(size), key=lambda index: singles[index]["held_out"]["accuracy"])
    return [
        _row(trial, size, "mean member", _mean(singles), kind="members"),
        _row(trial, size, "best member", singles[best], kind="member"),
        _row(trial, size, "ensemble", _ensemble(trial, trial.members[:size]), kind="ensemble", passes=size),
    ]


def _ensemble(trial: Trial, members: Sequence[tree.Tree]):
    measured = {}
    for split, evaluator in trial.evaluators.items():
        logits = ensemble_logits([evaluator.logits(params) for params in members])
        measured[split] = {name: metrics(logits, evaluator.labels)[name] for name in MEASURES}
    return measured


def _mean(measured):
    return {
        split: {name: float(np.mean([one[split][name] for one in measured])) for name in MEASURES}
        for split in measured[0]
    }


def _row(trial, size, name, measured, kind="soup", passes=1):
    of = {"network": trial.network.title, "models": size}
    row = {"seed": trial.seed, "name": name, "kind": kind, "group": "main", "of": of, "metrics": measured}
    return row | {"cost": {"inference": passes}}
