"""Run a network with several weights at once over one dataset, each on its own group of devices."""

import functools
import types
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from soups import tree
from soups.data import project_logits
from soups.evaluate.classification import metrics
from soups.evaluate.evaluator import Evaluator


class ParallelEvaluator:
    """Measure several weights of one network at once: `evaluator(candidates)` gives a list of the metrics of each.

    The devices are the rows of a mesh ("pool", "data"). Every candidate is copied to the devices of one row, and each
    batch of the dataset is sharded over the columns: one compiled program runs all rows in step, so that neither a
    second compilation nor a second pass over the images is needed. A round of fewer candidates than rows computes the
    last of them again. What is said of the dataset, the batches and several processes in `Evaluator` holds here; the
    devices of every process are then divided among all groups.

    Args:
        apply_fn, dataset, batch_size, preprocess: as for `Evaluator`.
        groups: how many candidates run at once; divides the number of devices of each process.
        devices: default all.

    Attributes:
        labels: the labels of the dataset, [N].
        mesh: the devices in their groups.
        forward_passes: how many examples went through the network until now, without padding and repetitions.

    Raises:
        ValueError: as `Evaluator`, or groups that do not divide the devices.
    """

    def __init__(
        self,
        apply_fn: Callable,
        dataset: Any,
        groups: int,
        *,
        batch_size: int = 1000,
        preprocess: Callable | None = None,
        devices: Sequence[jax.Device] | None = None,
    ):
        self.mesh = _grouped(groups, devices)
        self.labels = np.asarray(dataset.labels)
        self.forward_passes = 0
        self._class_groups = dataset.class_groups
        settings = {"batch_size": batch_size, "mesh": self.mesh, "preprocess": preprocess}
        needed = Evaluator(apply_fn, dataset, **settings)._outputs_needed
        # seen by this evaluator, a row of the mesh is some more outputs of one network; class groups come after it
        plain = types.SimpleNamespace(images=dataset.images, labels=self.labels, class_groups=None)
        self._evaluator = Evaluator(_side_by_side(apply_fn, self.mesh, needed), plain, **settings)

    def __call__(self, candidates: Sequence[tree.Tree]) -> list[dict[str, float]]:
        """Return the metrics of the network with each of the weights.

        Raises:
            ValueError: as `logits`, or logits that hold NaN or infinity.
        """
        return [metrics(logits, self.labels) for logits in self.logits(candidates)]

    def logits(self, candidates: Sequence[tree.Tree]) -> list[np.ndarray]:
        """Return the logits [N, classes of the dataset] in float32 of each of the weights, as `Evaluator` does.

        Raises:
            ValueError: weights of different structures, or an output of the network that does not fit the dataset.
        """
        if candidates:
            tree.check_same_structure(candidates)
        rows, found = self.mesh.shape["pool"], []
        for start in range(0, len(candidates), rows):
            found += self._round(candidates[start : start + rows])
        self.forward_passes += len(candidates) * len(self.labels)
        return found

    def _round(self, candidates):
        rows = self.mesh.shape["pool"]
        filled = [*candidates, *[candidates[-1]] * (rows - len(candidates))]
        logits = self._evaluator.logits(jax.tree.map(self._stacked, *filled))
        each = np.split(logits, rows, axis=1)[: len(candidates)]
        return [project_logits(np.ascontiguousarray(own), self._class_groups) for own in each]

    def _stacked(self, *leaves):
        """Put one leaf of each candidate on the devices of its row: [rows, ...], sharded over the rows."""
        parts = [
            jax.device_put(leaf[None], device)
            for leaf, row in zip(leaves, self.mesh.devices, strict=True)
            for device in row
            if device.process_index == jax.process_index()
        ]
        sharding = NamedSharding(self.mesh, PartitionSpec("pool"))
        return jax.make_array_from_single_device_arrays((len(leaves), *leaves[0].shape), sharding, parts)


def _grouped(groups, devices) -> Mesh:
    own = {}
    for device in jax.devices() if devices is None else devices:
        own.setdefault(device.process_index, []).append(device)
    if groups < 1 or any(len(some) % groups for some in own.values()):
        numbers = ", ".join(str(len(some)) for some in own.values())
        raise ValueError(f"{groups} groups do not divide the devices of each process ({numbers})")
    # a part of every process in every group, so that each of them gets all logits
    rows = [[device for some in own.values() for device in np.array_split(some, groups)[row]] for row in range(groups)]
    return Mesh(np.array(rows), ("pool", "data"), axis_types=(AxisType.Auto,) * 2)


@functools.lru_cache(maxsize=32)  # one function, so one compilation, for all evaluators of a network
def _side_by_side(apply_fn, mesh, needed):
    """Return a network of stacked weights and one batch: the logits of all rows side by side, [B, rows · classes]."""

    def of_one(params, images):
        logits = apply_fn(jax.tree.map(lambda leaf: leaf[0], params), images)
        if logits.ndim != 2 or len(logits) != len(images):
            raise ValueError(f"the network must give logits [{len(images)}, classes], not of shape {logits.shape}")
        if logits.shape[1] < needed:
            raise ValueError(f"the network gives {logits.shape[1]} classes, but the dataset needs at least {needed}")
        return logits

    specs = (PartitionSpec("pool"), PartitionSpec("data"))
    return jax.shard_map(of_one, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("data", "pool"), check_vma=False)
