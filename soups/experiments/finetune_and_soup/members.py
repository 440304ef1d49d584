"""Make the weights of one seed: start, linear probe, members, SAM members, averages, the distilled network."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from soups import models, tree
from soups.evaluate import ensemble_logits
from soups.experiments.finetune_and_soup.setting import Setting
from soups.experiments.search_space import choices
from soups.studies.kitchen import Kitchen
from soups.studies.measuring import best_of
from soups.train import search, sweep


def start_weights(setting: Setting) -> tree.Tree:
    """Return the network's own weights, pre-trained first where the config says so."""

    def make():
        data = setting.task.train if setting.pretraining is None else setting.pretraining
        params = setting.network.init(jax.random.key(setting.seed), data.images.shape[1:])
        if "pretrain" not in setting.config:
            return params
        config = dict(setting.config["pretrain"]) | {"seed": setting.seed}
        return _single(setting, "pre-training", params, _arrays(data), config)

    return setting.kept(setting.bases, "start", make)


def linear_probe(setting: Setting, start: tree.Tree) -> tree.Tree:
    """Return the start weights with a new head, trained on the task with the trunk frozen."""

    def make():
        config = setting.config["probe"]
        key = jax.random.key(setting.seed)
        head = setting.network.head or models.head_rule(start)
        params = models.replace_head(start, key, len(setting.task.class_names), head=head)
        rules, hyperparameters = ((head, 1.0), (".*", 0.0)), dict(config) | {"seed": setting.seed}
        data = _arrays(setting.task.train)
        return _single(setting, "linear probe", params, data, hyperparameters, learning_rate_rules=rules)

    return setting.kept(setting.bases, "probe", make)


def sweep_members(config: Mapping[str, Any], seed: int) -> list[dict[str, Any]]:
    """Draw the hyper-parameters of all members of a sweep."""
    return search.random(
        config["members"],
        seed,
        **choices(config, augment_operations=search.integers, augment_magnitude=search.uniform, epochs=search.integers),
        seed=search.integers(0, 2**31 - 1),
    )


def fine_tuned(setting: Setting, probe: tree.Tree) -> list[str]:
    """Fill the pool with the sweep's members and give their names."""
    members = sweep_members(setting.config["sweep"], setting.seed)
    return _fill(setting, "member", setting.training, probe, members, "sweep")


def sharpness_aware(setting: Setting, probe: tree.Tree) -> list[str]:
    """Fill the pool with members trained by SAM on the first hyper-parameters of the sweep, and give their names."""
    config = setting.config["sam"]
    members = sweep_members(setting.config["sweep"], setting.seed)[: config["members"]]
    members = [member | {"sam_radius": config["radius"]} for member in members]
    return _fill(setting, "sam", dataclasses.replace(setting.training, sam=True), probe, members, "SAM members")


def trajectory_averages(setting: Setting, probe: tree.Tree, member: str) -> dict[str, tree.Tree]:
    """Train a member once more and give the EMA and the SWA of its trajectory."""
    names = {kind: f"{kind}_of_{member}" for kind in ("ema", "swa")}
    if not all(setting.name(name) in setting.results for name in names.values()):
        config = setting.config["trajectory"]
        hyperparameters, what = setting.pool.record(member)["metadata"]["config"], f"averages of {member}"
        made = _result(setting, what, probe, _arrays(setting.task.train), hyperparameters, **config)
        for kind, name in names.items():
            setting.kept(setting.results, name, lambda kind=kind: tree.cast_like(made["averages"][kind], probe))
    return {kind: setting.results[setting.name(name)] for kind, name in names.items()}


def distilled(setting: Setting, kitchen: Kitchen, probe: tree.Tree) -> tree.Tree:
    """Return one network trained to predict as the ensemble of the members, with the best member's hyper-parameters.

    Hinton et al., "Distilling the knowledge in a neural network", 2015, arXiv 1503.02531.
    """

    def make():
        evaluator = kitchen.evaluator(setting.task.train)
        logits = [evaluator.logits(setting.pool[name]) for name in kitchen.names]
        targets = np.asarray(jax.nn.softmax(ensemble_logits(logits), axis=-1), np.float32)
        data = {"image": setting.task.train.images, "label": targets}
        hyperparameters = setting.pool.record(best_of(kitchen.scores))["metadata"]["config"]
        hyperparameters |= {"label_smoothing": 0.0, "mixup": 0.0}
        return _single(setting, "distillation", probe, data, hyperparameters)

    return setting.kept(setting.results, "distilled", make)


def _fill(setting, prefix, training, params, members, what) -> list[str]:
    names = [setting.name(f"{prefix}_{index:02d}") for index in range(len(members))]
    config = setting.config["finetune"]
    sweep(
        training,
        params,
        _arrays(setting.task.train),
        members,
        setting.pool,
        batch_size=config["batch_size"],
        names=names,
        base=setting.bases.digest(setting.name(setting.base)),
        metadata={"seed": setting.seed},
        mode=None if config["mode"] == "auto" else config["mode"],
        mesh=setting.mesh,
        members_per_program=config["members_per_program"],
        what=what,
    )
    return names


def _single(*args, **settings) -> tree.Tree:
    return _result(*args, **settings)["params"]


def _result(setting, what, params, data, hyperparameters, **settings) -> dict[str, Any]:
    config, made = setting.config["finetune"], {}
    settings |= {"mode": "sequential" if config["mode"] == "sequential" else "map", "batch_size": config["batch_size"]}
    keep = lambda name, result: made.update(result)  # noqa: E731
    sweep(setting.training, params, data, [hyperparameters], what=what, on_member=keep, **settings)
    return made


def _arrays(dataset) -> dict[str, np.ndarray]:
    return {"image": dataset.images, "label": dataset.labels}
