"""Put together what the stages share: data, network, mesh, pools."""

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
    """Hold data, network and pools of one run; `train` is decoded as it is read.

    Attributes:
        mesh: with the axes "data" and "model", or None for a single device.
        training: what all members have in common: weights in float32, the network in `finetune.dtype`.
        pool: has the members as they were at their last step.
        averages: for each average along their trajectories a pool with the same names.
    """

    config: Mapping[str, Any]
    workdir: Workdir
    arch: Architecture
    start: tree.Tree
    train: View
    held_out: Dataset
    mesh: Mesh | None
    training: Training
    pool: Pool
    averages: Mapping[str, Pool]
    features: LogitCache

    @property
    def num_classes(self) -> int:
        """Count the classes."""
        return len(self.train.class_names)

    def shardings(self, params: tree.Tree) -> tree.Tree | None:
        """Give the shardings of weights and optimizer state; None keeps them whole on every device."""
        if self.mesh is None or not self.config["finetune"]["shard"]:
            return None
        return param_shardings(params, self.mesh)

    @functools.cached_property
    def _evaluator(self):
        apply_fn, size = self.arch.apply_fn(self.num_classes), self.config["evaluate"]["batch_size"]
        return Evaluator(apply_fn, self.held_out, batch_size=size, mesh=self.mesh)

    def held_out_accuracy(self, params: tree.Tree) -> float:
        """Measure weights on the held-out images."""
        return accuracy(self._evaluator.logits(params), self.held_out.labels)


def mesh_of(config: Mapping[str, Any]) -> Mesh | None:
    """Make the mesh of the section "finetune": `mesh` devices on "data" (-1: all that are left) and on "model".

    Raises:
        ValueError: sizes that do not take all devices, or an axis "data" that the processes or the batch cannot share.
    """
    count, (data, model) = jax.device_count(), config["mesh"]
    data = count // max(1, model) if data == -1 else data
    if min(data, model) < 1 or data * model != count:
        raise ValueError(f'finetune.mesh={tuple(config["mesh"])} ("data", "model") does not take all {count} devices')
    if data % jax.process_count():
        raise ValueError(f'{jax.process_count()} processes cannot share the axis "data" of {data} in finetune.mesh')
    if config["batch_size"] % data or config["batch_size"] % max(1, config["accumulate"]):
        parts = f"{data} devices and accumulate={config['accumulate']}"
        raise ValueError(f"finetune.batch_size={config['batch_size']} must be a multiple of {parts}")
    if count == 1:
        return None
    return jax.make_mesh((data, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices())


def training_of(config: Mapping[str, Any], arch: Architecture, num_classes: int) -> Training:
    """Give the training of the section "finetune".

    Raises:
        ValueError: what `Training` says of its fields.
    """
    fields = {"dtype": DTYPES[config["dtype"]]} | ({"remat": True} if config["remat"] else {})
    return Training(
        train_apply=arch.train_apply_fn(num_classes, **fields),
        num_classes=num_classes,
        clip_norm=config["clip_norm"],
        decay_rules=DECAY_ALL,
        sam=config["sam_radius"] > 0,
        ema_decays=tuple(config["ema_decays"]),
        accumulate=config["accumulate"],
    )
