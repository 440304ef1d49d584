"""Make the weights of one seed: start, linear probe, members, SAM members, averages, the distilled network."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from soups import models, tree
from soups.evaluate import ensemble_logits
from soups.experiments.finetune_and_soup.setting import Setting
from soups.experiments.search_space import common_choices
from soups.progress import progress, say
from soups.train import run_sweep, search


def start_weights(setting: Setting) -> tree.Tree:
    """Return the pre-trained network, training it first if it is not there yet."""

    def make():
        config, data = setting.config["pretrain"], setting.pretraining["train"]
        say(f"pre-training on {len(data)} images")
        image_shape = data.images.shape[1:]
        params = models.init(setting.model, jax.random.key(setting.seed), image_shape)
        return _single(setting, setting.training, params, _arrays(data), dict(config) | {"seed": setting.seed})

    return _kept(setting, "start", make)


def linear_probe(setting: Setting, start: tree.Tree) -> tree.Tree:
    """Return the start weights with a new head, trained on the task with the trunk frozen."""

    def make():
        say("linear probe")
        config = setting.config["probe"]
        key = jax.random.key(setting.seed)
        params = models.replace_head(start, key, len(setting.task.class_names))
        head = models.head_rule(params)
        training = dataclasses.replace(setting.training, learning_rate_rules=((head, 1.0), (".*", 0.0)))
        return _single(setting, training, params, _arrays(setting.task.train), dict(config) | {"seed": setting.seed})

    return _kept(setting, "probe", make)


def sweep_members(config: Mapping[str, Any], seed: int) -> list[dict[str, Any]]:
    """Draw the hyper-parameters of all members of a sweep."""
    return search.random(
        config["members"],
        seed,
        **common_choices(config),
        augment_operations=search.integers(*config["augment_operations"]),
        augment_magnitude=search.uniform(*config["augment_magnitude"]),
        epochs=search.integers(*config["epochs"]),
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
        say(f"averages along the trajectory of {member}")
        config = setting.config["trajectory"]
        training = dataclasses.replace(setting.training, ema_decay=config["ema_decay"], swa_start=config["swa_start"])
        hyperparameters = setting.pool.record(member)["metadata"]["config"]
        averages = _result(setting, training, probe, _arrays(setting.task.train), hyperparameters)["averages"]
        for kind, name in names.items():
            _kept(setting, name, lambda kind=kind: tree.cast_like(averages[kind], probe), setting.results)
    return {kind: setting.results[setting.name(name)] for kind, name in names.items()}


def distilled(setting: Setting, probe: tree.Tree, members: list[str], best: str) -> tree.Tree:
    """Return one network trained to predict as the ensemble of the members, with the best member's hyper-parameters.

    Hinton et al., "Distilling the knowledge in a neural network", 2015, arXiv 1503.02531.
    """

    def make():
        say("distilling the ensemble into one network")
        logits = [setting.logits(setting.pool[name], ["train"])["train"] for name in members]
        targets = np.asarray(jax.nn.softmax(ensemble_logits(logits), axis=-1), np.float32)
        data = {"image": setting.task.train.images, "label": targets}
        hyperparameters = setting.pool.record(best)["metadata"]["config"] | {"label_smoothing": 0.0, "mixup": 0.0}
        return _single(setting, setting.training, probe, data, hyperparameters)

    return _kept(setting, "distilled", make, setting.results)


def _fill(setting, prefix, training, params, members, what) -> list[str]:
    names = [setting.name(f"{prefix}_{index:02d}") for index in range(len(members))]
    done = [index for index, name in enumerate(names) if name in setting.pool]
    if len(done) == len(names):
        return names
    config = setting.config["finetune"]
    results = run_sweep(
        training,
        params,
        _arrays(setting.task.train),
        members,
        batch_size=config["batch_size"],
        mode=_mode(setting),
        mesh=setting.mesh,
        members_per_program=config["members_per_program"],
        skip=done,
    )
    with progress(what, len(members), "members", done=len(done)) as advance:
        for index, result in results:
            metadata = {"config": members[index], "seed": setting.seed, "losses": _thinned(result["losses"])}
            setting.pool.add(names[index], result["params"], metadata, base=setting.bases.digest(setting.name("probe")))
            advance(1)
    return names


def _single(setting, training, params, data, hyperparameters) -> tree.Tree:
    return _result(setting, training, params, data, hyperparameters)["params"]


def _result(setting, training, params, data, hyperparameters) -> dict[str, Any]:
    batch_size = setting.config["finetune"]["batch_size"]
    mode = "sequential" if setting.config["finetune"]["mode"] == "sequential" else "map"
    ((_, result),) = run_sweep(training, params, data, [hyperparameters], batch_size=batch_size, mode=mode)
    return result


def _kept(setting, name, make, pool=None) -> tree.Tree:
    pool = setting.bases if pool is None else pool
    if setting.name(name) not in pool:
        pool.add(setting.name(name), make(), {"seed": setting.seed})
    return pool[setting.name(name)]


def _mode(setting) -> str:
    return "sharded" if setting.mesh is not None else setting.config["finetune"]["mode"]


def _arrays(dataset) -> dict[str, np.ndarray]:
    return {"image": dataset.images, "label": dataset.labels}


def _thinned(losses, most=50) -> list[float | None]:
    """Average losses over so many equal parts of the training; null where they are not finite."""
    parts = np.array_split(np.asarray(losses, np.float64), min(most, len(losses)))
    return [float(mean) if np.isfinite(mean := part.mean()) else None for part in parts]
