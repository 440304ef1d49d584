"""Put together what the stages of one network and one seed share: data, network, members, and how weights are measured.

A member is a network of its own: its weights are drawn and its examples are ordered by a number that no other has.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn

from soups import models, tree
from soups.data import Task
from soups.evaluate import Evaluator
from soups.models.functional import as_variables
from soups.pool import Pool
from soups.progress import progress
from soups.recipes.permutation import Spec
from soups.studies.study import Scene
from soups.train import Classification, Training, fit

KINDS = {"mlp": models.MLP, "cnn": models.ConvNet}
MEASURES = ("accuracy", "nll")

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """Hold one architecture and what is compiled for it, which all seeds share.

    `settings`: its section of the config; `training_settings`: the section "training".
    """

    name: str
    settings: Mapping[str, Any]
    training_settings: Mapping[str, Any]
    num_classes: int

    @property
    def title(self) -> str:
        """Return the name for people: MLP 256-256-256."""
        return f"{self.settings['kind'].upper()} {'-'.join(map(str, self.settings['widths']))}"

    @functools.cached_property
    def model(self) -> nn.Module:
        """Return the Linen module."""
        return KINDS[self.settings["kind"]](num_classes=self.num_classes, widths=tuple(self.settings["widths"]))

    @functools.cached_property
    def apply_fn(self):
        """Return the network in evaluation mode."""
        return models.apply_fn(self.model)

    @functools.cached_property
    def training(self) -> Training:
        """Return what the training of all members has in common."""
        loss = Classification(models.train_apply_fn(self.model), self.num_classes)
        return Training(loss=loss, clip_norm=self.training_settings["clip_norm"])

    @functools.cached_property
    def stats(self):
        """Return the function that measures BatchNorm statistics."""
        return models.stats_fn(self.model)

    @functools.cached_property
    def activations(self):
        """Return `activations(params, inputs) -> {permutation: [..., units]}`, after the nonlinearity."""

        def activations(params, inputs):
            _, state = self.model.apply(
                as_variables(params),
                inputs,
                train=False,
                capture_intermediates=lambda module, _: len(module.path) == 1 and module.name != "head",
                mutable=["intermediates"],
            )
            # the modules bear the names of the permutations; relu of what is past a relu changes nothing
            return {name: nn.relu(found["__call__"][0]) for name, found in state["intermediates"].items()}

        return jax.jit(activations)

    def midpoint_loss(self, params: tree.Tree, batch) -> jax.Array:
        """Return the mean loss on a batch in training mode: statistics of averaged weights are those of the batch."""
        inputs, labels = batch
        logits, _ = self.training.loss.train_apply(params, inputs, jax.random.key(0))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial(Scene):
    """Hold one network and one seed: its task, its pool of members, its evaluators."""

    network: Network
    task: Task
    pool: Pool

    @property
    def member_names(self) -> list[str]:
        """Return the names of the members in the pool."""
        return [f"seed{self.seed}_{index:02d}" for index in range(self.network.settings["members"])]

    def name(self, name: str) -> str:
        """Return the name of a stage of this network and seed."""
        return f"{self.prefix}{self.network.name}_{name}"

    @functools.cached_property
    def members(self) -> list[tree.Tree]:
        """Return the weights of all members, from the pool."""
        return [self.pool[name] for name in self.member_names]

    @functools.cached_property
    def spec(self) -> Spec:
        """Return the permutation spec of the network."""
        return models.permutation_spec(self.network.model, self.members[0])

    @functools.cached_property
    def has_batch_norm(self) -> bool:
        """Say whether soups of this network need BatchNorm statistics of their own."""
        return "batch_stats" in self.members[0]

    @functools.cached_property
    def evaluators(self) -> dict[str, Evaluator]:
        """Return one evaluator for each split; of the training images, for a part of them."""
        train = self.task.train
        some = train.take(np.linspace(0, len(train) - 1, self.config["evaluate"]["train_examples"]).astype(int))
        splits = {"train": some, "held_out": self.task.held_out, "test": self.task.test}
        size = self.config["evaluate"]["batch_size"]
        return {name: Evaluator(self.network.apply_fn, data, batch_size=size) for name, data in splits.items()}

    @functools.cached_property
    def inputs(self) -> np.ndarray:
        """Return the training images that statistics are measured on, as the network takes them."""
        rows = np.linspace(0, len(self.task.train) - 1, self.config["matching"]["examples"]).astype(int)
        return unit_range(self.task.train.images[rows])

    def measure(self, params: tree.Tree, splits=("train", "held_out", "test")) -> dict[str, dict[str, float]]:
        """Return accuracy and NLL of weights on splits."""
        values = {split: self.evaluators[split](params) for split in splits}
        return {split: {name: found[name] for name in MEASURES} for split, found in values.items()}

    def repaired(self, soup: tree.Tree, members, weights=None) -> tree.Tree:
        """Return a soup the statistics that it should have: BatchNorm's own, or those between its members' (REPAIR)."""
        if self.has_batch_norm:
            return models.reestimate_batch_stats(self.network.stats, soup, [self.inputs])
        return models.repair(self.network.model, soup, members, [self.inputs], weights=weights)


def unit_range(images: np.ndarray) -> np.ndarray:
    """Scale uint8 images as the training step does."""
    return images.astype(np.float32) / np.float32(255)


def train_members(trial: Trial) -> None:
    """Fill the pool with the members that are not there yet.

    Raises:
        ValueError: members that diverged.
    """
    network, names = trial.network, trial.member_names
    missing = [index for index, name in enumerate(names) if name not in trial.pool]
    with progress(f"{network.name}, seed {trial.seed}", len(missing), "members") as advance:
        for index in missing:
            number = int(np.random.default_rng([trial.seed, index]).integers(2**31))
            hyperparameters = {name: network.settings[name] for name in ("learning_rate", "epochs")}
            hyperparameters |= {"weight_decay": network.training_settings["weight_decay"], "seed": number}
            params = _trained(network, trial.task.train, hyperparameters)
            trial.pool.add(names[index], params, {"config": hyperparameters, "seed": trial.seed})
            advance(1)
    if diverged := [name for name in names if name not in trial.pool.usable]:
        raise ValueError(
            f"these members diverged: {', '.join(diverged)}; lower networks.{network.name}.learning_rate and begin in "
            "another --workdir"
        )


def _trained(network, data, hyperparameters):
    params = models.init(network.model, jax.random.key(hyperparameters["seed"]), data.images.shape[1:])
    arrays, size = {"image": data.images, "label": data.labels}, network.training_settings["batch_size"]
    made = fit(network.training, params, arrays, batch_size=size, hyperparameters=hyperparameters)
    return jax.device_get(made["params"])
