"""Make the weights of one seed: start, probed heads, a member for each task, and the jointly trained network."""

import dataclasses
import functools
import time
from collections.abc import Mapping

import jax
import numpy as np

from soups import models, tree
from soups.data import Dataset, Task
from soups.evaluate import Evaluator, accuracy
from soups.experiments.multi_task.networks import (
    Networks,
    bundled,
    head_logits,
    probed_head,
    split_head,
    stacked,
    unstacked,
)
from soups.pool import Pool
from soups.progress import progress, say
from soups.studies.study import Scene
from soups.train import Training, fit

Trunks = tree.Tree | Mapping[str, tree.Tree]  # one for all tasks, or one for each by its name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tasks(Scene):
    """Hold one seed's tasks, networks and pools.

    `bases` has the start weights, `pool` a member for each task, `joint` networks with the heads of all tasks: the
    probed start and the jointly trained ones, `merged` the merged trunks.
    """

    tasks: Mapping[str, Task]
    pretraining: Dataset
    networks: Networks
    bases: Pool
    pool: Pool
    joint: Pool
    merged: Pool

    @property
    def network(self) -> models.Network:
        """Return the network that is pre-trained."""
        return models.Network.of(self.networks.single)

    @property
    def training(self) -> Training:
        """Return what pre-training and all fine-tunings have in common."""
        return self.networks.training()

    @functools.cached_property
    def _evaluators(self) -> dict[tuple[str, str], Evaluator]:
        evaluators, by_images = {}, {}
        for name, task in self.tasks.items():
            for split in ("train", "held_out", "test"):
                dataset = getattr(task, split)
                key = id(dataset.images)  # tasks that only differ in labels share the passes
                if key not in by_images:
                    size = self.config["evaluate"]["batch_size"]
                    by_images[key] = Evaluator(self.networks.features, dataset, batch_size=size)
                evaluators[name, split] = by_images[key]
        return evaluators

    def features(self, trunks: Trunks, split: str) -> dict[str, np.ndarray]:
        """Return the features [N, D] of each task's images."""
        known, found = {}, {}
        for name in self.tasks:
            trunk, evaluator = trunk_of(trunks, name), self._evaluators[name, split]
            key = (id(trunk), id(evaluator))
            if key not in known:
                known[key] = evaluator.logits(trunk)
            found[name] = known[key]
        return found

    def accuracies(self, trunks: Trunks, heads: Mapping[str, tree.Tree], split: str) -> dict[str, float]:
        """Return the accuracy on each task."""
        return {
            name: accuracy(head_logits(features, heads[name]), getattr(self.tasks[name], split).labels)
            for name, features in self.features(trunks, split).items()
        }


def trunk_of(trunks: Trunks, task: str) -> tree.Tree:
    """Return the trunk for a task."""
    return trunks.get(task, trunks)


def probed(scene: Tasks, start: tree.Tree) -> tree.Tree:
    """Return the start's trunk with a head for each task, fitted on its features."""
    name = scene.name("probed")
    if name not in scene.joint:
        say("linear probes")
        trunk, _ = split_head(start)
        heads = {
            task: probed_head(features, scene.tasks[task].train.labels, scene.networks.num_classes)
            for task, features in scene.features(trunk, "train").items()
        }
        scene.joint.add(name, {**trunk, "head": stacked(heads)}, {"seed": scene.seed})
    return scene.joint[name]


def fine_tuned(scene: Tasks, probed: tree.Tree) -> None:
    """Fill the pool with a member for each task, fine-tuned from the start's trunk and the task's probed head."""
    trunk, head = split_head(probed)
    heads, config = unstacked(head, scene.tasks), scene.config["finetune"]
    training = scene.training
    with progress("members", len(scene.tasks), "tasks") as advance:
        for task, data in scene.tasks.items():
            if scene.name(task) not in scene.pool:
                arrays = {"image": data.train.images, "label": data.train.labels}
                trained = _trained(scene, {**trunk, "head": heads[task]}, arrays, config, training)
                scene.pool.add(scene.name(task), *trained)
            advance(1)


def jointly_trained(scene: Tasks, probed: tree.Tree) -> list[str]:
    """Train one trunk with all heads on all tasks, once for each learning rate, and give the names of the results."""
    config = scene.config["joint"]
    rates = {scene.name(f"joint_{index}"): rate for index, rate in enumerate(config["learning_rates"])}
    training, data = scene.networks.joint_training(), bundled([task.train for task in scene.tasks.values()])
    with progress("multi-task learning", len(rates), "learning rates") as advance:
        for name, rate in rates.items():
            if name not in scene.joint:
                settings = scene.config["finetune"] | {"learning_rate": rate, "batch_size": config["batch_size"]}
                scene.joint.add(name, *_trained(scene, probed, data, settings, training))
            advance(1)
    return list(rates)


def members_of(scene: Tasks) -> tuple[dict[str, tree.Tree], dict[str, tree.Tree]]:
    """Return the members' trunks and heads by task."""
    pairs = {task: split_head(scene.pool[scene.name(task)]) for task in scene.tasks}
    return {task: trunk for task, (trunk, _) in pairs.items()}, {task: head for task, (_, head) in pairs.items()}


def _trained(scene, params, data, config, training):
    """Return the weights after fine-tuning, and their metadata."""
    start = time.monotonic()
    settings = {name: config[name] for name in ("learning_rate", "weight_decay", "epochs")} | {"seed": scene.seed}
    made = fit(training, params, data, batch_size=config["batch_size"], hyperparameters=settings)
    params = jax.device_get(made["params"])
    return params, {"config": settings, "seed": scene.seed, "seconds": round(time.monotonic() - start, 2)}
