"""Make the weights of one seed: what members start from, the members, and what else is trained beside them."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from soups import models, tree
from soups.data import Dataset, Task
from soups.evaluate import ensemble_logits
from soups.pool import Pool
from soups.studies.kitchen import Kitchen
from soups.studies.rows import Row
from soups.studies.study import Scene
from soups.train import Training, sweep


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained(Scene):
    """Hold what one seed's weights are made with: its network, and how that is trained.

    `bases` has what members start from, `pool` the members; `earlier` are images to pre-train on.
    """

    network: models.Network
    training: Training
    earlier: Dataset | None
    bases: Pool
    pool: Pool

    def start(self, otherwise: Dataset | None = None) -> tree.Tree:
        """Return the network's own weights, pre-trained first where the config says so, on other data if need be."""

        def make():
            data = otherwise if self.earlier is None else self.earlier
            params = self.network.init(jax.random.key(self.seed), data.images.shape[1:])
            if "pretrain" not in self.config:
                return params
            return self.trained("pre-training", params, data, dict(self.config["pretrain"]) | {"seed": self.seed})

        return self.timed("start weights", lambda: self.kept(self.bases, "start", make))

    def trained(self, *args: Any, **settings: Any) -> tree.Tree:
        """Return the weights of one training: see `result`."""
        return self.result(*args, **settings)["params"]

    def result(
        self, what: str, params: tree.Tree, data: Any, hyperparameters: Mapping[str, Any], **settings: Any
    ) -> dict[str, Any]:
        """Train one network, in the mode of the section "finetune", and give weights, averages and losses."""
        config, made = self.config["finetune"], {}
        mode = "sequential" if config["mode"] == "sequential" else "map"
        settings |= {"mode": mode, "batch_size": config["batch_size"]}
        keep = lambda name, result: made.update(result)  # noqa: E731
        sweep(self.training, params, arrays_of(data), [hyperparameters], what=what, on_member=keep, **settings)
        return made


@dataclasses.dataclass(frozen=True, kw_only=True)
class FineTuned(Trained):
    """Hold one seed's task too; `results` has the soups."""

    task: Task
    results: Pool

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh | None:
        """Return what the members of a sweep are spread over: all devices, where there are several or it is asked."""
        count, mode = len(jax.devices()), self.config["finetune"]["mode"]
        if mode != "sharded" and (mode != "auto" or count == 1):
            return None
        return jax.make_mesh((count, 1), ("pool", "data"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    @property
    def base(self) -> str:
        """Return the name of what members start from: the linear probe, or the start weights where none is made."""
        return "probe" if "probe" in self.config else "start"

    def probe(self, start: tree.Tree) -> tree.Tree:
        """Return the start weights with a new head, trained on the task with the trunk frozen."""

        def make():
            hyperparameters = dict(self.config["probe"]) | {"seed": self.seed}
            rules, params = ((self._head(start), 1.0), (".*", 0.0)), self._unprobed(start)
            return self.trained("linear probe", params, self.task.train, hyperparameters, learning_rate_rules=rules)

        return self.timed("linear probe", lambda: self.kept(self.bases, "probe", make))

    def unprobed(self, start: tree.Tree) -> tree.Tree:
        """Return the start weights with the new head that the probe begins with, at random."""
        return self.kept(self.bases, "unprobed", lambda: self._unprobed(start))

    def _unprobed(self, start):
        key, classes = jax.random.key(self.seed), len(self.task.class_names)
        return models.replace_head(start, key, classes, head=self._head(start))

    def _head(self, start):
        return self.network.head or models.head_rule(start)

    def fill(
        self,
        prefix: str,
        start: tree.Tree,
        members: Sequence[Mapping[str, Any]],
        what: str,
        *,
        base: str | None = None,
        **changes: Any,
    ) -> list[str]:
        """Fill the pool with members of these hyper-parameters and give their names.

        `base`: the name of what they start from, by default the usual one; `changes`: of the training.
        """
        names, config = [self.name(f"{prefix}_{index:02d}") for index in range(len(members))], self.config["finetune"]
        make = functools.partial(
            sweep,
            dataclasses.replace(self.training, **changes),
            start,
            arrays_of(self.task.train),
            members,
            self.pool,
            batch_size=config["batch_size"],
            names=names,
            base=self.bases.digest(self.name(base or self.base)),
            metadata={"seed": self.seed},
            mode=None if config["mode"] == "auto" else config["mode"],
            mesh=self.mesh,
            members_per_program=config["members_per_program"] if config["mode"] == "vmap" else None,
            what=what,
        )
        self.timed(what, make)
        return names

    def hyperparameters(self, member: str) -> dict[str, Any]:
        """Return those of a member."""
        return self.pool.record(member)["metadata"]["config"]

    def trajectory_rows(self, kitchen: Kitchen, start: tree.Tree) -> list[Row]:
        """Train the best member once more, and measure the averages that the section "trajectory" states."""
        best, config = kitchen.best(), self.config["trajectory"]
        names = {kind: f"{kind}_of_{best}" for kind in ("ema", "swa")}

        def make():
            if all(self.name(name) in self.results for name in names.values()):
                return
            settings = self.hyperparameters(best)
            made = self.result(f"averages of {best}", start, self.task.train, settings, **config)["averages"]
            for kind, name in names.items():
                self.kept(self.results, name, lambda kind=kind: kitchen.settled(tree.cast_like(made[kind], start)))

        def row(kind, name):
            found = kitchen.measure(self.results[self.name(name)])
            return kitchen.row(f"{kind.upper()} of best member", "trajectory", found, {best: 1.0})

        self.timed("trajectory", make)
        return self.stage("EMA and SWA", lambda: [row(kind, name) for kind, name in names.items()])

    def distilled_row(self, kitchen: Kitchen, start: tree.Tree) -> Row:
        """Measure a network trained to predict as the ensemble of the members, with the best one's hyper-parameters.

        Hinton et al., "Distilling the knowledge in a neural network", 2015, arXiv 1503.02531.
        """
        data, names, settings = self.task.train, kitchen.names, self.hyperparameters(kitchen.best())

        def make():
            evaluator = kitchen.evaluator(data)
            logits = [evaluator.logits(self.pool[name]) for name in names]
            targets = np.asarray(jax.nn.softmax(ensemble_logits(logits), axis=-1), np.float32)
            taught = {"image": data.images, "label": targets}
            return self.trained("distillation", start, taught, settings | {"label_smoothing": 0.0, "mixup": 0.0})

        def row():
            training = int((len(names) + 3 * settings["epochs"]) * len(data))  # the teachers once, then both ways
            equal = dict.fromkeys(names, 1.0 / len(names))
            return kitchen.row("distilled ensemble", "distilled", kitchen.measure(student), equal, training=training)

        student = self.timed("distillation", lambda: self.kept(self.results, "distilled", make))
        return self.stage("distilled", row)

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
            reestimate=self._reestimate if "batch_stats" in self.pool.structure else None,
        )

    @functools.cached_property
    def _reestimate(self):
        return reestimation(self.network, self.task.train, self.config["evaluate"]["batch_size"])


def reestimation(network: models.Network, data: Dataset, batch_size: int, most: int = 2000) -> Callable:
    """Return the function that measures the BatchNorm statistics of weights anew, on images spread over the data."""
    rows = np.linspace(0, len(data) - 1, min(most, len(data))).astype(int)
    images = data.images[rows].astype(np.float32) / np.float32(255)
    batches = np.array_split(images, -(-len(images) // batch_size))  # even ones
    stats = models.running_stats_fn(lambda params, inputs: network.trained(params, inputs, jax.random.key(0))[1])

    def measured(params):
        old, fresh = params["batch_stats"], models.reestimate_batch_stats(stats, params, batches)
        # those that training leaves as they are cannot be measured
        mended = jax.tree.map(lambda new, old: new if np.isfinite(new).all() else old, fresh["batch_stats"], old)
        return {**params, "batch_stats": mended}

    return measured


def arrays_of(data: Dataset | Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Return a dataset as what is trained on."""
    return {"image": data.images, "label": data.labels} if isinstance(data, Dataset) else data
