"""Put together what the stages of one seed share: task, network and pools."""

import dataclasses
import functools
from collections.abc import Sequence

import jax

from soups import models, tree
from soups.data import Dataset, Task
from soups.pool import Pool
from soups.studies.kitchen import Kitchen
from soups.studies.study import Scene
from soups.train import Classification, Training


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting(Scene):
    """Hold one seed's task, network and pools.

    `pool` has the members, `bases` the start weights and the linear probe, `results` the soups.
    """

    task: Task
    pretraining: Dataset | None
    network: models.Network
    mesh: jax.sharding.Mesh | None
    pool: Pool
    bases: Pool
    results: Pool

    @property
    def base(self) -> str:
        """Return the name of what members start from: the linear probe, or the start weights where none is made."""
        return "probe" if "probe" in self.config else "start"

    @functools.cached_property
    def training(self) -> Training:
        """Return what all fine-tunings of this seed have in common."""
        return Training(
            loss=Classification(self.network.trained, len(self.task.class_names)),
            clip_norm=self.config["finetune"]["clip_norm"],
        )

    def kitchen(self, names: Sequence[str], reference: tree.Tree | None = None) -> Kitchen:
        """Return what measures and cooks some members of this seed, and compares them with other weights."""
        return Kitchen(
            members=self.pool.select(names),
            apply_fn=self.network.apply,
            held_out=self.task.held_out,
            test=self.task.test,
            shifts=self.task.shifts,
            directory=self.workdir.path,
            seed=self.seed,
            prefix=self.prefix,
            batch_size=self.config["evaluate"]["batch_size"],
            mesh=self.data_mesh,
            reference=reference,
        )

    @functools.cached_property
    def data_mesh(self) -> jax.sharding.Mesh | None:
        """Return a mesh with all devices on the axis "data", or None for a single device."""
        devices = jax.devices()
        if len(devices) == 1:
            return None
        return jax.make_mesh((len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
