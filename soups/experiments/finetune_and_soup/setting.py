"""Put together what the stages of one seed share: task, network, pools, and how weights are measured."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from soups import models, tree
from soups.data import Dataset, Task
from soups.evaluate import Evaluator, LogitCache, correct, metrics
from soups.experiments.workdir import Workdir
from soups.pool import Pool, digest
from soups.train import Classification, Training

Logits = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """Hold one seed's task, network, pools and caches.

    `pool` has the members, `bases` the start weights and the linear probe, `results` the soups; `reference` says for
    each split which examples the best member has right, once it is known.
    """

    config: Mapping[str, Any]
    seed: int
    workdir: Workdir
    task: Task
    pretraining: dict[str, Dataset]
    model: Any
    mesh: jax.sharding.Mesh | None
    pool: Pool
    bases: Pool
    results: Pool
    cache: LogitCache
    reference: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def name(self, name: str) -> str:
        """Return the name under which something of this seed is kept."""
        return f"seed{self.seed}_{name}"

    @functools.cached_property
    def apply_fn(self):
        """Return the network in evaluation mode."""
        return models.apply_fn(self.model)

    @functools.cached_property
    def training(self) -> Training:
        """Return what all fine-tunings of this seed have in common."""
        return Training(
            loss=Classification(models.train_apply_fn(self.model), len(self.task.class_names)),
            clip_norm=self.config["finetune"]["clip_norm"],
        )

    @functools.cached_property
    def splits(self) -> dict[str, Dataset]:
        """Return every dataset that weights are measured on."""
        return {"held_out": self.task.held_out, "test": self.task.test, **self.task.shifts}

    @functools.cached_property
    def evaluators(self) -> dict[str, Evaluator]:
        """Return one evaluator for each split, and one for the training images, which the distillation needs."""
        splits = self.splits | {"train": self.task.train}
        return {name: self._evaluator(dataset) for name, dataset in splits.items()}

    def _evaluator(self, dataset):
        return Evaluator(self.apply_fn, dataset, batch_size=self.config["evaluate"]["batch_size"], mesh=self.data_mesh)

    @functools.cached_property
    def data_mesh(self) -> jax.sharding.Mesh | None:
        """Return a mesh with all devices on the axis "data", or None for a single device."""
        devices = jax.devices()
        if len(devices) == 1:
            return None
        return jax.make_mesh((len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def logits(self, params: tree.Tree, splits: list[str] | None = None) -> Logits:
        """Return the logits of weights on splits (default: all that are reported); no network runs twice for them."""
        key = digest(params)
        return {
            split: self.cache.get((key, split), lambda s=split: self.evaluators[s].logits(params))
            for split in splits or list(self.splits)
        }

    def held_out(self, params: tree.Tree) -> dict[str, float]:
        """Measure weights on the held-out split."""
        return metrics(self.logits(params, ["held_out"])["held_out"], self.task.held_out.labels)

    def measured(self, logits: Logits) -> dict[str, Any]:
        """Return the metrics of logits on every split, and their mean over the shifts."""
        values = {split: metrics(logits[split], self.splits[split].labels) for split in self.splits}
        means = {name: float(np.mean([values[split][name] for split in self.task.shifts])) for name in values["test"]}
        return values | {"shift_mean": means}

    def right(self, logits: Logits) -> dict[str, np.ndarray]:
        """Say for each split which examples are classified rightly."""
        return {split: correct(logits[split], self.splits[split].labels) for split in self.splits}

    def row(
        self,
        name: str,
        kind: str,
        logits: Logits,
        ingredients: Mapping[str, float],
        *,
        group: str = "main",
        inference: int = 1,
        selection: int = 0,
        training: int = 0,
        **more: Any,
    ) -> dict[str, Any]:
        """Return one row of the results; costs are in forward passes, see docs/results.md."""
        right, labels = self.right(logits), self.task.test.labels
        classes = {name: float(right["test"][labels == index].mean()) for index, name in self._classes}
        wins = {
            split: [int((right[split] & ~theirs).sum()), int((theirs & ~right[split]).sum())]
            for split, theirs in self.reference.items()
        }
        return {
            "seed": self.seed,
            "name": name,
            "kind": kind,
            "group": group,
            "ingredients": dict(ingredients),
            "num_ingredients": len(ingredients),
            "metrics": self.measured(logits),
            "cost": {"inference": inference, "selection": selection, "training": training},
            "classes": {"test": classes},
            "wins": wins,
            **more,
        }

    @property
    def _classes(self):
        """List the classes that the test split has, with their names."""
        there = set(self.task.test.labels.tolist())
        return [(index, name) for index, name in enumerate(self.task.class_names) if index in there]
