"""Make the weights of many tasks, measure them, and choose each method's settings on held-out data."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

import soups
from soups import tree
from soups.data import Dataset
from soups.evaluate import Evaluator, accuracy
from soups.models.many_heads import ManyHeads, bundled, head_logits, probed_head, split_head, stacked, unstacked
from soups.pool import Pool
from soups.progress import progress, say
from soups.studies.members import Trained
from soups.studies.rows import Row
from soups.studies.task_methods import METHODS, Kit, Merged, Trunks
from soups.train import Classification, Training, fit, search


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tasks(Trained):
    """Hold one seed's tasks, networks and pools.

    `pool` has a member for each task, `joint` networks with the heads of all tasks: the probed start and the jointly
    trained ones, `merged` the merged trunks; `fixed` is what of the network is not trained, and in no pool.
    """

    tasks: Mapping[str, Any]
    networks: ManyHeads
    joint: Pool
    merged: Pool
    fixed: tree.Tree = dataclasses.field(default_factory=dict)

    @property
    def methods(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the methods of the config, or those that its "only" chooses, each with the values of its settings."""
        found, chosen = self.config["methods"], self.config.get("only")
        return {name: found[name] for name in chosen} if chosen else found

    @property
    def other_splits(self) -> dict[str, Any]:
        """Return what rows are measured on beside the tasks, as results hold it."""
        return {}

    @property
    def of_base(self) -> str:
        """Return what the base with the heads is called that members start with."""
        return "linear probes of the base"

    def facts(self, task: Any) -> dict[str, Any]:
        """Return what results tell of a task."""
        return {"classes": list(task.class_names), "train": len(task.train)}

    # --- Data ---------------------------------------------------------------------------------------------------------

    def own_data(self, task: str) -> tuple[Any, dict[str, Any]]:
        """Return what a member is trained on, and how long, as `soups.train.fit` takes it."""
        data, config = self.tasks[task].train, self.config["finetune"]
        options = {"batch_size": config["batch_size"], "epochs": config["epochs"]}
        return {"image": data.images, "label": data.labels}, options

    def joint_data(self) -> tuple[Any, dict[str, Any]]:
        """Return the same of all tasks together.

        Raises:
            ValueError: tasks with other numbers of examples.
        """
        options = {"batch_size": self.config["joint"]["batch_size"], "epochs": self.config["finetune"]["epochs"]}
        return self.together("train"), options

    def together(self, split: str) -> dict[str, Any]:
        """Return the examples of all tasks laid together: see `bundled`."""
        return bundled([getattr(task, split) for task in self.tasks.values()])

    def inputs(self, images: Any) -> Any:
        """Return what the network takes for the images of a dataset."""
        return images.astype(np.float32) / np.float32(255)

    # --- Weights ------------------------------------------------------------------------------------------------------

    def probed(self, start: tree.Tree) -> tree.Tree:
        """Return the start's trunk with a head for each task: see `task_heads`."""
        trunk, _ = split_head(start)

        def make():
            say("heads")
            return {**trunk, "head": stacked(self.task_heads(trunk))}

        return self.timed("linear probes", lambda: self.kept(self.joint, "probed", make))

    def task_heads(self, trunk: tree.Tree) -> dict[str, tree.Tree]:
        """Return the heads that members start with, fitted on the features of a trunk."""
        features, count = self.features(trunk, "train"), self.networks.num_classes
        return {name: probed_head(features[name], task.train.labels, count) for name, task in self.tasks.items()}

    def fine_tuned(self, probed: tree.Tree) -> None:
        """Fill the pool with a member for each task, fine-tuned from the start's trunk and the task's probed head."""
        trunk, head = split_head(probed)
        heads = unstacked(head, self.tasks)
        made = {
            self.name(name): functools.partial(self.fitted, {**trunk, "head": heads[name]}, *self.own_data(name))
            for name in self.tasks
        }
        self.timed("members", lambda: _filled(self.pool, made, "members", "tasks"))

    def jointly_trained(self, probed: tree.Tree) -> list[str]:
        """Train one trunk with all heads on all tasks, once for each learning rate, and give the names of the results.

        Raises:
            ValueError: tasks with other numbers of examples.
        """
        networks = self.networks
        loss = Classification(
            lambda params, inputs, _: networks.joint_logits(params, inputs),
            networks.num_classes,
            preprocess=self.training.loss.preprocess,
        )
        options = {"training": dataclasses.replace(self.training, loss=loss)}
        made = {}
        for index, rate in enumerate(self.config["joint"]["learning_rates"]):
            options = options | {"learning_rate": rate}
            made[self.name(f"joint_{index}")] = functools.partial(self.fitted, probed, *self.joint_data(), **options)
        what = "multi-task learning"
        self.timed(what, lambda: _filled(self.joint, made, what, "learning rates"))
        return list(made)

    def fitted(
        self,
        params: tree.Tree,
        data: Any,
        how_long: Mapping[str, Any],
        *,
        training: Training | None = None,
        learning_rate: float | None = None,
    ) -> tuple[tree.Tree, dict[str, Any]]:
        """Return the weights after fine-tuning, and their metadata."""
        start, config = time.monotonic(), self.config["finetune"]
        rate = config["learning_rate"] if learning_rate is None else learning_rate
        settings = {"learning_rate": rate, "weight_decay": config["weight_decay"], "seed": self.seed}
        made = fit(training or self.training, {**self.fixed, **params}, data, hyperparameters=settings, **how_long)
        weights = jax.device_get({name: made["params"][name] for name in params})
        settings |= {name: value for name, value in how_long.items() if name != "batch_size"}
        return weights, {"config": settings, "seed": self.seed, "seconds": round(time.monotonic() - start, 2)}

    def members(self) -> tuple[dict[str, tree.Tree], dict[str, tree.Tree]]:
        """Return the members' trunks and heads by task."""
        pairs = {task: split_head(self.pool[self.name(task)]) for task in self.tasks}
        return {task: trunk for task, (trunk, _) in pairs.items()}, {task: head for task, (_, head) in pairs.items()}

    # --- Measuring ----------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _evaluators(self) -> dict[int, Evaluator]:
        return {}

    def evaluator(self, data: Any) -> Evaluator:
        """Return what gives the features of a dataset's inputs; tasks that only differ in labels share the passes."""
        key = id(data.images)
        if key not in self._evaluators:
            pair = data if isinstance(data, Dataset) else (data.images, data.labels)
            size = self.config["evaluate"]["batch_size"]
            self._evaluators[key] = Evaluator(self.networks.features, pair, batch_size=size)
        return self._evaluators[key]

    def features(self, trunks: Trunks, split: str) -> dict[str, np.ndarray]:
        """Return the features [N, D] of each task's inputs."""
        known, found = {}, {}
        for name, task in self.tasks.items():
            trunk, evaluator = trunks.get(name, trunks), self.evaluator(getattr(task, split))
            key = (id(trunk), id(evaluator))
            if key not in known:
                known[key] = evaluator.logits({**self.fixed, **trunk})
            found[name] = known[key]
        return found

    def accuracies(self, trunks: Trunks, heads: Mapping[str, tree.Tree], split: str) -> dict[str, float]:
        """Return the accuracy on each task."""
        return {
            name: accuracy(head_logits(features, heads[name]), getattr(self.tasks[name], split).labels)
            for name, features in self.features(trunks, split).items()
        }

    def row(
        self,
        title: str,
        kind: str,
        trunks: Trunks,
        heads: Mapping[str, tree.Tree],
        of_members: Mapping[str, float],
        cost: Mapping[str, float],
        family: str = "baselines",
    ) -> Row:
        """Measure trunks with heads; `of_members`: the members' own test accuracies, unless these are theirs."""
        held_out, test = (self.accuracies(trunks, heads, split) for split in ("held_out", "test"))
        mean = {"accuracy": statistics.fmean(test.values()), "normalised": normalised_score(test, of_members or test)}
        metrics = {"test": mean, "held_out": {"accuracy": statistics.fmean(held_out.values())}}
        metrics |= {task: {"accuracy": found} for task, found in test.items()}
        metrics |= {f"{task}, held-out": {"accuracy": found} for task, found in held_out.items()}
        row = {"seed": self.seed, "name": title, "kind": kind, "group": "main", "family": family}
        return row | {"metrics": metrics, "cost": dict(cost)}

    # --- Merging ------------------------------------------------------------------------------------------------------

    def kit(self, base: tree.Tree) -> Kit:
        """Put together what methods work on."""
        members, heads = self.members()
        few, size = self.config["examples"]["few"], self.config["examples"]["batch_size"]
        inputs = {name: self.inputs(task.train.images) for name, task in self.tasks.items()}
        held_out = self.together("held_out")
        return Kit(
            networks=self.networks,
            base=base,
            members=members,
            heads=heads,
            few={n: _rows({"image": x, "label": self.tasks[n].train.labels}, 0, few) for n, x in inputs.items()},
            unlabelled={name: _batches(every, size) for name, every in inputs.items()},
            held_out=_batches(held_out | {"image": self.inputs(held_out["image"])}, size),
            score=lambda trunk: statistics.fmean(self.accuracies(trunk, heads, "held_out").values()),
            seed=self.seed,
            fixed=self.fixed,
        )

    def merged_row(self, kit: Kit, name: str, choices: Mapping[str, Any], of_members: Mapping[str, float]) -> Row:
        """Merge with every combination of settings, and give the row of the best on held-out data; keep its trunks.

        Seconds are those of what is prepared and of the chosen merge; of the whole search they stand apart.
        """
        method, started = METHODS[name], time.monotonic()
        prepared, preparing = _timed(lambda: method.prepare(kit))
        best, points = None, search.grid(**choices)
        for setting in points:
            merged, seconds = _timed(lambda setting=setting: method.merge(kit, prepared, **setting))
            merged = jax.device_get(merged if isinstance(merged, Merged) else Merged(merged))
            score = statistics.fmean(self.accuracies(merged.trunks, kit.heads, "held_out").values())
            if best is None or score > best[0]:
                best = score, merged, setting, seconds
        _, merged, setting, seconds = best
        self._keep(name, merged.trunks, setting)
        masks = len(kit.members) if method.masked else 0
        cost = {
            "seconds": preparing + seconds,
            "search_seconds": time.monotonic() - started,
            "search_points": len(points),
            "bytes": method.dense * trunk_bytes(kit.base) + masks * -(-tree.count(kit.base) // 8),
            "labelled": self._examples(method.labelled),
            "unlabelled": self._examples(method.unlabelled),
        }
        kind = "masked" if method.family == "trunk for each task" else "soup"
        row = self.row(method.title, kind, merged.trunks, kit.heads, of_members, cost, method.family)
        score = 100 * row["metrics"]["test"]["normalised"]
        say(f"{method.title}: {score:.1f} % of the members, {cost['search_seconds']:.1f} s")
        row |= {"method": name, "settings": setting}
        return row | ({"masks": self._mask_record(kit, merged.masks)} if merged.masks else {})

    def _mask_record(self, kit, masks):
        """Measure masks: sizes, overlaps, and the accuracy of each member where only what is in its mask is added."""
        alone = {task: soups.stitch([kit.members[task]], [mask], base=kit.base) for task, mask in masks.items()}
        return soups.mask_overlap(masks) | {"alone": self.accuracies(alone, kit.heads, "test")}

    def _keep(self, name, trunks, setting):
        """Keep the merged trunks with what is needed to make them again."""
        digests = {task: self.pool.digest(self.name(task)) for task in self.tasks}
        record = {"recipe": name, "settings": dict(setting), "digests": digests, "soups": soups.__version__}
        each = {task: trunks.get(task, trunks) for task in self.tasks}
        one = len({id(trunk) for trunk in each.values()}) == 1
        for label, trunk in ({name: trunks} if one else {f"{name}_{task}": each[task] for task in each}).items():
            place = self.name(label)
            if place in self.merged and self.merged.record(place)["metadata"] != record:
                self.merged.remove(place)
            if place not in self.merged:
                self.merged.add(place, trunk, record)

    def _examples(self, which):
        if which == "few":
            return len(self.tasks) * self.config["examples"]["few"]
        return sum(len(getattr(task, which)) for task in self.tasks.values()) if which else 0


def normalised_score(accuracies: Mapping[str, float], of_members: Mapping[str, float]) -> float:
    """Return the mean over the tasks of the accuracy divided by that of the task's own member."""
    return statistics.fmean(accuracies[task] / of_members[task] for task in of_members)


def trunk_bytes(trunk: tree.Tree) -> int:
    """Count the bytes of a trunk."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(trunk))


def _filled(pool, made, what, unit):
    with progress(what, len(made), unit) as advance:
        for name, make in made.items():
            if name not in pool:
                pool.add(name, *make())
            advance(1)


def _timed(make):
    start = time.monotonic()
    made = jax.block_until_ready(make())
    return made, time.monotonic() - start


def _rows(examples, begin, end):
    return jax.tree.map(lambda leaf: leaf[begin:end], examples)


def _batches(examples, size):
    count = len(jax.tree.leaves(examples)[0])
    return [_rows(examples, start, start + size) for start in range(0, count - size + 1, size)]
