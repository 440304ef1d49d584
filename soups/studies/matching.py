"""Train members that share no start, match their units, walk between them, and mend the statistics of their soups.

A member is a network of its own: its weights are drawn and its examples are ordered by a number that no other has.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax

import soups
from soups import models, tree
from soups.data import Task, batch_indices
from soups.evaluate import Evaluator, ensemble_logits, metrics, path_barrier
from soups.lazy import extra
from soups.models.permutation_specs import unit_activations
from soups.pool import Pool
from soups.progress import progress
from soups.recipes.permutation import Spec, check_spec, identity, permute
from soups.recipes.rebasin import Matching, activation_matching, straight_through_matching, weight_matching
from soups.studies.rows import Row
from soups.studies.study import Scene
from soups.train import Classification, Training, fit

with extra("train"):
    from flax import linen as nn

MEASURES = {"accuracy": "max", "nll": "min"}
PATHS = ("train", "test")  # splits that paths are measured on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Independent:
    """Hold one network, by its own name and for people, and what is compiled for it, which all seeds share."""

    name: str
    title: str
    settings: dict[str, Any]
    model: nn.Module
    spec: Spec
    training: Training

    @classmethod
    def of(
        cls, model: nn.Module, shape: Sequence[int], classes: int, clip_norm: float | None, **named: Any
    ) -> "Independent":
        """Return a module for images of a shape as such a network.

        Raises:
            ValueError: it has no permutation spec.
        """
        params = jax.eval_shape(lambda key: models.init(model, key, shape), jax.random.key(0))
        training = Training(loss=Classification(models.train_apply_fn(model), classes), clip_norm=clip_norm)
        return cls(model=model, spec=models.permutation_spec(model, params), training=training, **named)

    @functools.cached_property
    def apply_fn(self) -> Callable:
        """Return the network in evaluation mode."""
        return models.apply_fn(self.model)

    @functools.cached_property
    def stats(self) -> Callable:
        """Return the function that measures BatchNorm statistics."""
        return models.stats_fn(self.model)

    @functools.cached_property
    def activations(self) -> Callable:
        """Return the function that gives the activations of each permutation's units."""
        return jax.jit(unit_activations(self.model))

    def midpoint_loss(self, params: tree.Tree, batch) -> jax.Array:
        """Return the mean loss on a batch in training mode: statistics of averaged weights are those of the batch."""
        inputs, labels = batch
        logits, _ = self.training.loss.train_apply(params, inputs, jax.random.key(0))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial(Scene):
    """Hold one network and one seed: its task and its pool of members."""

    network: Independent
    task: Task
    pool: Pool

    def name(self, name: str) -> str:
        """Return the name of a stage of this network and seed."""
        return f"{self.prefix}{self.network.name}_{name}"

    # --- Members ------------------------------------------------------------------------------------------------------

    @property
    def member_names(self) -> list[str]:
        """Return the names of the members in the pool."""
        return [f"{self.prefix}{index:02d}" for index in range(self.network.settings["members"])]

    def train(self) -> None:
        """Fill the pool with the members that are not there yet.

        Raises:
            ValueError: members that diverged.
        """
        names, settings = self.member_names, self.network.settings
        missing = [index for index, name in enumerate(names) if name not in self.pool]
        with progress(f"{self.network.name}, seed {self.seed}", len(missing), "members") as advance:
            for index in missing:
                number = int(np.random.default_rng([self.seed, index]).integers(2**31))
                drawn = {name: settings[name] for name in ("learning_rate", "epochs")} | {"seed": number}
                drawn |= {"weight_decay": self.config["training"]["weight_decay"]}
                self.pool.add(names[index], self._trained(drawn), {"config": drawn, "seed": self.seed})
                advance(1)
        if diverged := [name for name in names if name not in self.pool.usable]:
            raise ValueError(
                f"these members diverged: {', '.join(diverged)}; lower networks.{self.network.name}.learning_rate and "
                "begin in another workdir"
            )

    def _trained(self, hyperparameters):
        data, size = self.task.train, self.config["training"]["batch_size"]
        params = models.init(self.network.model, jax.random.key(hyperparameters["seed"]), data.images.shape[1:])
        arrays = {"image": data.images, "label": data.labels}
        made = fit(self.network.training, params, arrays, batch_size=size, hyperparameters=hyperparameters)
        return jax.device_get(made["params"])

    @functools.cached_property
    def members(self) -> list[tree.Tree]:
        """Return the weights of all members, from the pool."""
        return [self.pool[name] for name in self.member_names]

    # --- Measuring ----------------------------------------------------------------------------------------------------

    @functools.cached_property
    def evaluators(self) -> dict[str, Evaluator]:
        """Return one evaluator for each split; of the training images, for a part of them."""
        config, train = self.config["evaluate"], self.task.train
        some = train.take(_spread(train, config["train_examples"]))
        splits = {"train": some, "held_out": self.task.held_out, "test": self.task.test}
        size = config["batch_size"]
        return {name: Evaluator(self.network.apply_fn, data, batch_size=size) for name, data in splits.items()}

    def measure(self, params: tree.Tree, splits=("train", "held_out", "test")) -> dict[str, dict[str, float]]:
        """Return accuracy and NLL of weights on splits."""
        values = {split: self.evaluators[split](params) for split in splits}
        return {split: {name: found[name] for name in MEASURES} for split, found in values.items()}

    def ensemble(self, members: Sequence[tree.Tree]) -> dict[str, dict[str, float]]:
        """Measure the mean logits of members."""
        measured = {}
        for split, evaluator in self.evaluators.items():
            found = metrics(ensemble_logits([evaluator.logits(params) for params in members]), evaluator.labels)
            measured[split] = {name: found[name] for name in MEASURES}
        return measured

    @functools.cached_property
    def inputs(self) -> np.ndarray:
        """Return the training images that statistics are measured on, as the network takes them."""
        return _unit_range(self.task.train.images[_spread(self.task.train, self.config["matching"]["examples"])])

    @property
    def has_batch_norm(self) -> bool:
        """Say whether soups of this network need BatchNorm statistics of their own."""
        return "batch_stats" in self.members[0]

    def repaired(self, soup: tree.Tree, members: Sequence[tree.Tree], weights=None) -> tree.Tree:
        """Return a soup the statistics that it should have: BatchNorm's own, or those between its members' (REPAIR)."""
        if self.has_batch_norm:
            return models.reestimate_batch_stats(self.network.stats, soup, [self.inputs])
        return models.repair(self.network.model, soup, members, [self.inputs], weights=weights)

    # --- Pairs --------------------------------------------------------------------------------------------------------

    def pairs(self, number: int, matching: str) -> list[Row]:
        """Match the second member of a pair to the first, check that it computes what it did, and walk between the two.

        A pair for each state of the statistics: as averaged, and for BatchNorm re-estimated.
        """
        names = self.member_names[2 * number : 2 * number + 2]
        a, b = self.members[2 * number : 2 * number + 2]
        start = time.monotonic()
        found = MATCHINGS[matching](self, a, b)
        values = {"seconds": round(time.monotonic() - start, 3), "moved units": _moved_units(found)}
        moved = permute(b, found.permutations, self.network.spec)
        values |= {"change of a logit": self._change(b, found, moved)}
        of = {"network": self.network.title, "units": self.network.settings["widths"][0], "matching": matching}
        both = {"seed": self.seed, "a": names[0], "b": names[1]}
        states = {"as averaged": False} | ({"re-estimated": True} if self.has_batch_norm else {})
        return [
            both | {"of": of | {"statistics": state}} | self._walk(a, moved, repaired, values)
            for state, repaired in states.items()
        ]

    def _walk(self, a, b, repaired, values):
        """Measure the weights (1 − λ) a + λ b for each λ, the barriers, and the middle, under names for people."""
        lambdas = np.linspace(0, 1, self.config["paths"]["points"])
        points = []
        for weight in lambdas.tolist():
            params = soups.interpolate(a, b, t=weight)
            if repaired:
                params = self.repaired(params, [a, b], [1 - weight, weight])
            points.append(self.measure(params, PATHS))
        path = {split: {name: [point[split][name] for point in points] for name in MEASURES} for split in PATHS}
        found, titles = {}, {"nll": "NLL", "accuracy": "accuracy"}
        for name, title in titles.items():
            for split in ("test", "train"):
                barrier = path_barrier(path[split][name], lambdas, mode=MEASURES[name])
                found[f"{split} barrier ({title})"] = barrier
        found |= {f"{split} accuracy at ½": path[split]["accuracy"][len(lambdas) // 2] for split in ("test", "train")}
        return {"values": found | values, "lambdas": lambdas.tolist(), "path": path}

    def _change(self, params, found, moved):
        """Return the largest difference that the permutation made on test images, in units of the largest logit."""
        inputs = _unit_range(self.task.test.images[:100])
        # stops the run, and says which permutation is to blame
        soups.check_function_unchanged(
            self.network.apply_fn, params, found.permutations, self.network.spec, inputs, 1e-3
        )
        before, after = (self.evaluators["test"].logits(weights) for weights in (params, moved))
        return float(np.abs(after - before).max() / np.abs(before).max())


def _spread(data, count):
    return np.linspace(0, len(data) - 1, count).astype(int)


def _unit_range(images):
    return images.astype(np.float32) / np.float32(255)


def _moved_units(found):
    orders = found.permutations.values()
    return float(np.mean(np.concatenate([order != np.arange(len(order)) for order in orders])))


# --- Matchings --------------------------------------------------------------------------------------------------------


def _naive(trial, a, b):
    return Matching(identity(check_spec(trial.network.spec, a)), [])


def _weight(trial, a, b):
    return weight_matching(a, b, trial.network.spec, key=jax.random.key(trial.seed))


def _activation(trial, a, b):
    return activation_matching(_activations(trial, a), _activations(trial, b))


def _activations(trial, params):
    inputs, size = trial.inputs, trial.config["evaluate"]["batch_size"]
    for start in range(0, len(inputs), size):
        yield jax.device_get(trial.network.activations(params, inputs[start : start + size]))


def _straight_through(trial, a, b):
    settings, data = trial.config["straight_through"], trial.task.train
    order = batch_indices(len(data), settings["batch_size"], settings["steps"], trial.seed)
    batches = ((_unit_range(data.images[rows]), data.labels[rows]) for rows in order)
    key, rate = jax.random.key(trial.seed), settings["learning_rate"]
    return straight_through_matching(
        a, b, trial.network.spec, trial.network.midpoint_loss, batches, key=key, learning_rate=rate
    )


MATCHINGS = {
    "naive": _naive,
    "weight": _weight,
    "activation": _activation,
    "straight_through": _straight_through,
}
