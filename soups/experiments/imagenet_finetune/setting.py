"""Put together what the stages share: data, network, mesh, pools."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from soups import tree
from soups.data import Dataset
from soups.data.sources import View
from soups.evaluate import Evaluator, LogitCache, accuracy
from soups.models.architectures import Architecture
from soups.pool import Pool
from soups.studies.study import Workdir
from soups.train import Classification, Training
from soups.train.lanes import lane_shares
from soups.train.published import DECAY_ALL
from soups.train.sharding import param_shardings

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """Hold data, network and pools of one run; `train` is decoded as it is read.

    Attributes:
        mesh: with the axes "pool", of the members that are trained side by side, "data" and "model".
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
    mesh: Mesh
    training: Training
    pool: Pool
    averages: Mapping[str, Pool]
    features: LogitCache

    @property
    def num_classes(self) -> int:
        """Count the classes."""
        return len(self.train.class_names)

    def shardings(self, params: tree.Tree) -> tree.Tree | None:
        """Return the shardings of a member's weights and optimizer state; None keeps them whole on every device."""
        return param_shardings(params, self.mesh) if self.config["finetune"]["shard"] else None

    @functools.cached_property
    def flat_mesh(self) -> Mesh:
        """Return all devices on one axis "data", for what is done with one network at a time."""
        return Mesh(self.mesh.devices.ravel(), ("data",), axis_types=(AxisType.Auto,))

    @functools.cached_property
    def _evaluator(self):
        apply_fn, size = self.arch.apply_fn(self.num_classes), self.config["evaluate"]["batch_size"]
        return Evaluator(apply_fn, self.held_out, batch_size=size, mesh=self.flat_mesh)

    def held_out_accuracy(self, params: tree.Tree) -> float:
        """Measure weights on the held-out images."""
        return accuracy(self._evaluator.logits(params), self.held_out.labels)


def mesh_of(config: Mapping[str, Any]) -> Mesh:
    """Make the mesh of the section "finetune": `mesh` devices on "pool", "data" (-1: all that are left) and "model".

    Of several places on "pool" each lies within one host where the sizes allow it.

    Raises:
        ValueError: sizes that do not take all devices, or an axis "data" that the processes or the batch cannot share.
    """
    count, given = jax.device_count(), tuple(config["mesh"])
    if len(given) != 3:
        raise ValueError(f'finetune.mesh has three sizes, of the axes "pool", "data" and "model", not {given}')
    pool, data, model = given
    data = count // max(1, pool * model) if data == -1 else data
    if min(pool, data, model) < 1 or pool * data * model != count:
        raise ValueError(f'finetune.mesh={given} ("pool", "data", "model") does not take all {count} devices')
    if config["batch_size"] % data or config["batch_size"] % max(1, config["accumulate"]):
        parts = f"{data} devices and accumulate={config['accumulate']}"
        raise ValueError(f"finetune.batch_size={config['batch_size']} must be a multiple of {parts}")
    mesh = _mesh((pool, data, model))
    lane_shares(mesh)
    return mesh


def _mesh(sizes):
    axes, types = ("pool", "data", "model"), (AxisType.Auto,) * 3
    if sizes[0] == 1:  # in the order of devices that exchanges within a member go fastest
        return jax.make_mesh(sizes, axes, axis_types=types, devices=jax.devices())
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices).reshape(sizes), axes, axis_types=types)


def training_of(config: Mapping[str, Any], arch: Architecture, num_classes: int) -> Training:
    """Return the training of the section "finetune".

    Raises:
        ValueError: what `Training` says of its fields.
    """
    fields = {"dtype": DTYPES[config["dtype"]]} | ({"remat": True} if config["remat"] else {})
    return Training(
        loss=Classification(arch.train_apply_fn(num_classes, **fields), num_classes),
        clip_norm=config["clip_norm"],
        decay_rules=DECAY_ALL,
        sam=config["sam_radius"] > 0,
        ema_decays=tuple(config["ema_decays"]),
        accumulate=config["accumulate"],
    )
