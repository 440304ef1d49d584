"""Put together what the stages share: members, decoded sets, the network, and how weights are measured."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from soups import tree
from soups.data import Dataset
from soups.evaluate import Evaluator, LogitCache, accuracy, correct
from soups.experiments.imagenet_soups.members import Members
from soups.pool import Pool, digest, prefetched
from soups.processes import on_first_process
from soups.studies.study import Scene
from soups.train.sharding import place

SHIFTS = ("imagenet_v2", "imagenet_sketch", "imagenet_r", "objectnet", "imagenet_a")

Row = dict[str, Any]


def accuracy_of(row: Row, split: str) -> float:
    """Return an accuracy of a row."""
    return row["metrics"][split]["accuracy"]


def stage_of(member: str) -> str:
    """Return the name of the stage that measures a member."""
    return f"member_{quote(member, safe='')}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting(Scene):
    """Hold members, decoded sets and caches of one run; `results` has the soups.

    `facts` and `notes` are what results tell of the data. `members_dtype` is that in which the host keeps members: with
    "bfloat16" all that is made of them, and their own rows, is of weights rounded to it.
    """

    members: Members
    members_dtype: str
    datasets: Mapping[str, Dataset]
    apply_fn: Callable
    results: Pool
    cache: LogitCache
    facts: Mapping[str, Any]
    notes: list[str]

    @property
    def prefix(self) -> str:
        """Return nothing: one seed alone has the workdir."""
        return ""

    @property
    def rounded(self) -> bool:
        """Say whether members are rounded to be kept."""
        return self.members_dtype != "float32"

    @functools.cached_property
    def trees(self) -> Mapping[str, tree.Tree]:
        """Return the members in float32, each read ahead of need and kept while memory allows."""
        left = self.unmeasured()  # they are asked for first
        order = left + [name for name in self.members.names if name not in left]
        dtype = self.members_dtype if self.rounded else None
        return prefetched(self.members.trees, order, ahead=max(2, self.width), dtype=dtype)

    def unmeasured(self) -> list[str]:
        """List the members that no earlier run has measured."""
        stages = self.workdir.path / "stages"
        return on_first_process(
            lambda: [name for name in self.members.names if not (stages / f"{stage_of(name)}.json").exists()]
        )

    @functools.cached_property
    def mesh(self) -> Mesh | None:
        """Return a mesh with all devices on the axis "data", or None for a single device."""
        devices = jax.devices()
        if len(devices) == 1:
            return None
        return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)

    @functools.cached_property
    def evaluators(self) -> dict[str, Evaluator]:
        """Return one evaluator for each set."""
        size = self.config["evaluate"]["batch_size"]
        return {
            name: Evaluator(self.apply_fn, dataset, batch_size=size, mesh=self.mesh)
            for name, dataset in self.datasets.items()
        }

    def accuracies(self, params: tree.Tree, *, keep_logits: bool = False) -> dict[str, float]:
        """Measure weights on every set; what was measured once, by whatever name, is not measured again."""
        key, placed = digest(params), functools.cache(lambda: self._place(params))

        def right(name):
            logits = self.logits(key, name, placed) if keep_logits else self.evaluators[name].logits(placed())
            return correct(logits, self.datasets[name].labels)

        return {
            name: float(self.cache.get((key, *self._of_set(name), "right"), lambda name=name: right(name)).mean())
            for name in self.datasets
        }

    @property
    def device(self) -> jax.Device | None:
        """Say where candidates are mixed: on the device if there is one alone, else on the host, for any of them."""
        return jax.devices()[0] if self.mesh is None else None

    @property
    def width(self) -> int:
        """Say how many candidates of a greedy soup are evaluated at once: one on each device (of every process)."""
        return jax.local_device_count()

    @functools.cached_property
    def _candidates(self):
        dataset, size = self.datasets["held_out"], self.config["evaluate"]["batch_size"]
        return Evaluator(self.apply_fn, dataset, width=self.width, batch_size=size)

    def held_out(self, candidates: Sequence[tree.Tree]) -> list[float]:
        """Measure the accuracy of candidates on the held-out set, all at once; the journals keep it."""
        labels = self.datasets["held_out"].labels
        return [accuracy(logits, labels) for logits in self._candidates.many_logits(candidates)]

    def logits(self, key: str, name: str, params: Callable[[], tree.Tree]) -> np.ndarray:
        """Return the logits of weights with this digest on a set; `params()` is called where they are not kept."""
        return self.cache.get((key, *self._of_set(name)), lambda: self.evaluators[name].logits(params()))

    def _of_set(self, name):
        dataset = self.datasets[name]
        return name, getattr(dataset, "digest", "") or str(len(dataset))

    def _place(self, params):
        if self.mesh is None:
            return jax.device_put(params)
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        return place(params, jax.tree.map(lambda _: everywhere, params))  # once for all sets

    def row(
        self,
        name: str,
        kind: str,
        accuracies: Mapping[str, float],
        ingredients: Mapping[str, float],
        *,
        group: str = "main",
        passes: int = 1,
        **more: Any,
    ) -> Row:
        """Return one row of the results; `passes` are forward passes for one prediction."""
        shifts = [accuracies[shift] for shift in SHIFTS if shift in accuracies]
        means = {"shift_mean": float(np.mean(shifts))} if shifts else {}
        return {
            "seed": self.seed,
            "name": name,
            "kind": kind,
            "group": group,
            "ingredients": dict(ingredients),
            "num_ingredients": len(ingredients),
            "metrics": {split: {"accuracy": found} for split, found in (dict(accuracies) | means).items()},
            "cost": {"inference": passes},
            **more,
        }
