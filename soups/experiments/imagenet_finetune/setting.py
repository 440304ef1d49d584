"""Put together what the stages share: data, network, meshes, pool."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh

from soups import tree
from soups.data import Dataset
from soups.data.sources import View
from soups.evaluate import Evaluator, LogitCache, accuracy
from soups.experiments.workdir import Workdir
from soups.finetune import Training
from soups.finetune.published import DECAY_ALL
from soups.finetune.sharding import param_shardings
from soups.models.architectures import Architecture
from soups.pool import Pool

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """Hold data, network and pool of one run; `train` is decoded as it is read."""

    config: Mapping[str, Any]
    workdir: Workdir
    arch: Architecture
    start: tree.Tree
    train: View
    held_out: Dataset
    pool: Pool
    features: LogitCache

    @property
    def num_classes(self) -> int:
        """Count the classes."""
        return len(self.train.class_names)

    @functools.cached_property
    def mesh(self) -> Mesh | None:
        """Give a mesh with all devices on the axis "data", or None for a single device."""
        devices = jax.devices()
        if len(devices) == 1:
            return None
        return jax.make_mesh((1, len(devices), 1), ("pool", "data", "model"), axis_types=(AxisType.Auto,) * 3)

    def shardings(self, params: tree.Tree) -> tree.Tree | None:
        """Give the shardings of weights and optimizer state; None keeps them whole on every device."""
        if self.mesh is None or not self.config["finetune"]["shard"]:
            return None
        return param_shardings(params, self.mesh)

    @functools.cached_property
    def training(self) -> Training:
        """Give what all members have in common: weights in float32, the network in `finetune.dtype`."""
        config = self.config["finetune"]
        fields = {"dtype": DTYPES[config["dtype"]]} | ({"remat": True} if config["remat"] else {})
        return Training(
            train_apply=self.arch.train_apply_fn(self.num_classes, **fields),
            num_classes=self.num_classes,
            clip_norm=config["clip_norm"],
            decay_rules=DECAY_ALL,
            accumulate=config["accumulate"],
        )

    @functools.cached_property
    def _evaluator(self):
        apply_fn, size = self.arch.apply_fn(self.num_classes), self.config["evaluate"]["batch_size"]
        return Evaluator(apply_fn, self.held_out, batch_size=size, mesh=self.mesh)

    def held_out_accuracy(self, params: tree.Tree) -> float:
        """Measure weights on the held-out images."""
        return accuracy(self._evaluator.logits(params), self.held_out.labels)
