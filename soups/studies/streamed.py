"""Fine-tune large networks on images that are decoded as they are read: a probe first, then several side by side."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from soups import state, tree
from soups.data import Dataset
from soups.data.batches import loader
from soups.data.random_transforms import augmentation as augmented
from soups.data.sources import View
from soups.data.transforms import center_crop, compose, resize_shorter, to_channels
from soups.evaluate import Evaluator, LogitCache, accuracy
from soups.files import replace_file
from soups.models.architectures import Architecture
from soups.pool import Pool, digest
from soups.processes import on_first_process
from soups.progress import say
from soups.studies.rows import Row, known_of, mean_of
from soups.studies.study import OneSeed
from soups.train import Training, sweep
from soups.train.lanes import lane_mesh, lane_shares
from soups.train.loop import num_steps
from soups.train.probe import extract_features, probe_on_features, with_head
from soups.train.sharding import param_shardings

FIRST = "member_00"  # the head alone was trained, or none at all: what all others start from


@dataclasses.dataclass(frozen=True, kw_only=True)
class Streamed(OneSeed):
    """Hold data, network and pools of one run; `train` is decoded as it is read.

    Attributes:
        mesh: with the axes "pool", of the members that are trained side by side, "data" and "model".
        training: what all members have in common.
        pool: has the members as they were at their last step.
        averages: for each average along their trajectories a pool with the same names.
    """

    arch: Architecture
    start: tree.Tree
    train: View
    held_out: Dataset
    mesh: Mesh
    training: Training
    pool: Pool
    averages: Mapping[str, Pool]

    @functools.cached_property
    def _flat_mesh(self):
        """Return all devices on one axis "data", for what is done with one network at a time."""
        return Mesh(self.mesh.devices.ravel(), ("data",), axis_types=(AxisType.Auto,))

    @functools.cached_property
    def _evaluator(self):
        apply_fn = self.arch.apply_fn(len(self.train.class_names))
        size = self.config["evaluate"]["batch_size"]
        return Evaluator(apply_fn, self.held_out, batch_size=size, mesh=self._flat_mesh)

    def _score(self, params):
        return {"held_out": accuracy(self._evaluator.logits(params), self.held_out.labels)}

    def first_member(self) -> tree.Tree:
        """Return the weights that all members start from, with a linear probe as their head unless none is to be."""
        if FIRST not in self.pool:
            params, info = self.start, "start weights as they came"
            if self.config["probe"]["strengths"]:
                params, info = self._probed(self.start), "linear probe on the start weights"
            metadata = {"arch": self.config["arch"], "config": {"info": info}, "start": self.config["start"]}
            self.pool.add(FIRST, params, metadata, metrics=self._score(params))
        first, record = self.pool[FIRST], self.pool.record(FIRST)
        for pool in self.averages.values():
            if FIRST not in pool:
                pool.add(FIRST, first, record["metadata"], metrics=record["metrics"])
        return first

    def _probed(self, params):
        say("linear probe")
        trunk, apply_fn, size = with_head(params, self.arch.head, None), self.arch.apply_fn(None), self.arch.image_size
        of_data = {"train": (self.train, self.train.stamp()), "held_out": (self.held_out, self.held_out.digest)}
        found = {
            name: extract_features(
                apply_fn,
                trunk,
                data,
                transform=compose(resize_shorter(size), center_crop(size), to_channels(3)),
                batch_size=self.config["evaluate"]["batch_size"],
                mesh=self._flat_mesh,
                cache=LogitCache(self.workdir.path / "features"),
                key=(name, digest(trunk), key),
            )
            for name, (data, key) in of_data.items()
        }
        head = probe_on_features(
            found["train"],
            self.train.labels,
            num_classes=len(self.train.class_names),
            held_out=(found["held_out"], self.held_out.labels),
            **self.config["probe"],
            mesh=self._flat_mesh,
            journal=self.workdir.path / "journals" / "linear_probe.jsonl",
            on_strength=lambda one: say(
                f"linear probe, C = {one['strength']:g}: held-out {100 * one['accuracy']:.2f} %"
            ),
        )
        return with_head(params, self.arch.head, head)

    def fill(self, first: tree.Tree, drawn: Sequence[Mapping[str, Any]]) -> list[str]:
        """Fine-tune the members, as many side by side as the mesh's axis "pool" is long, and give their names."""
        names = [f"member_{number:02d}" for number in range(1, len(drawn) + 1)]
        if not names:  # the probe alone was asked for
            return names
        config = self.config["finetune"]
        sweep(
            self.training,
            first,
            _Batches(self),
            [{**one, **self._numbers(one)} for one in drawn],
            self.pool,
            names=names,
            base=self.pool.digest(FIRST),
            metadata={"arch": self.config["arch"]},
            mesh=self.mesh,
            shardings=param_shardings(first, self.mesh) if config["shard"] else None,  # None: whole on every device
            save_every=config["save_every"],
            averages=self.averages,
            evaluate=self._score,
            on_member=lambda name, made: on_first_process(lambda: self._keep_losses(name, made["losses"])),
            what="fine-tuning",
        )
        return names

    def _numbers(self, hyperparameters):
        """Return the hyper-parameters that follow from the size of the data and the config."""
        config = self.config["finetune"]
        steps = num_steps(hyperparameters, len(self.train), config["batch_size"])
        sharpness = {"sam_radius": config["sam_radius"]} if config["sam_radius"] else {}
        return {"num_steps": steps, "warmup_steps": min(config["warmup_steps"], steps // 2)} | sharpness

    def _keep_losses(self, name, losses):
        lines = ({"step": step, "loss": float(loss) if np.isfinite(loss) else None} for step, loss in enumerate(losses))
        path = self.workdir.path / "losses" / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        replace_file(path, b"".join(map(state.sealed_line, lines)))

    # --- What results say of it ---------------------------------------------------------------------------------------

    def rows(self, names: Sequence[str]) -> list[Row]:
        """Return the rows of what all start from, and of the members of each pool with their best and their mean."""
        first = self._row(FIRST, "probe" if self.config["probe"]["strengths"] else "start", self.pool, FIRST)
        main, members = [first | {"name": "linear probe" if first["kind"] == "probe" else "start weights"}], []
        for kind, pool in {"": self.pool, **{f", {kind}": pool for kind, pool in self.averages.items()}}.items():
            rows = [self._row(name + kind, "member", pool, name) | {"group": "member"} for name in names]
            known = [row for row in rows if row["metrics"]["held_out"]["accuracy"] is not None]
            best = max(known, key=lambda row: row["metrics"]["held_out"]["accuracy"])
            mean = {"kind": "members", "metrics": mean_of([row["metrics"] for row in known]), "ingredients": {}}
            main += [best | {"name": f"best member{kind}", "group": "main"}]
            main += [best | mean | {"name": f"mean member{kind}", "group": "main"}]
            members += rows
        return main + members

    def _row(self, title, kind, pool, name):
        found = {"held_out": {"accuracy": pool.metrics(name).get("held_out")}}
        row = {"seed": self.seed, "name": title, "kind": kind, "group": "main"}
        return row | {"metrics": found, "ingredients": {name: 1.0}}

    def described(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return the members as results hold them."""
        records = {name: self.pool.record(name) for name in names}
        return [{"name": name, "status": one["status"], **known_of(one)} for name, one in records.items()]


class _Batches:
    """Load one of `count` parts of a member's batches; the members on this host share its workers.

    An object of its own: members are known by what their batches come from, not by the pools that a scene holds.
    """

    def __init__(self, scene):
        self._scene, self._members_here = scene, len(lane_shares(scene.mesh))

    def __call__(self, index, count, seed, augmentation):
        scene, config = self._scene, self._scene.config["finetune"]
        return loader(
            scene.train,
            config["batch_size"],
            seed=seed,
            transform=to_channels(3),
            random_transform=augmented(augmentation, scene.arch.image_size),
            process_index=index,
            process_count=count,
            num_threads=config["num_threads"],
            num_workers=-(-config["num_workers"] // self._members_here),
        )


def mesh_of(config: Mapping[str, Any]) -> Mesh:
    """Make the mesh of the section "finetune": `mesh` devices on "pool", "data" (-1: all that are left) and "model".

    Raises:
        ValueError: sizes that do not take all devices, or an axis "data" that the processes or the batch cannot share.
    """
    count, given = jax.device_count(), tuple(config["mesh"])
    if len(given) != 3:
        raise ValueError(
            f'finetune.mesh must be three sizes, those of the axes "pool", "data" and "model", not {given}'
        )
    pool, data, model = given
    data = count // max(1, pool * model) if data == -1 else data
    if min(pool, data, model) < 1 or pool * data * model != count:
        raise ValueError(f'finetune.mesh={given} ("pool", "data", "model") does not take all {count} devices')
    if config["batch_size"] % data or config["batch_size"] % max(1, config["accumulate"]):
        parts = f"{data} devices and accumulate={config['accumulate']}"
        raise ValueError(f"finetune.batch_size={config['batch_size']} must be a multiple of {parts}")
    return lane_mesh({"pool": pool, "data": data, "model": model})
