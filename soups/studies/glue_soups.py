"""Fine-tune an encoder, or T5, on tasks of texts from one start each, and cook soups: read from top to bottom.

As the model soups of BERT and T5 on GLUE (Wortsman et al., 2022, arXiv 2203.05482, appendix J): a random search over
learning rate, size of batches, epochs and seed, then the best member, the uniform and the greedy soup, on each task.
An encoder begins with a linear probe, T5 writes the words of classes and has no head.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from soups import models, tree
from soups.data import TextTask, by_length, joined, load_text_task, text_batches
from soups.files import data_path
from soups.models.architectures import Architecture
from soups.models.t5 import label_words
from soups.models.text_tokenizer import Encoded, TextTokenizer, text_tokenizer
from soups.pool import Pool, digest
from soups.progress import counted, say
from soups.studies import text_ways
from soups.studies.examples import Examples
from soups.studies.kitchen import Kitchen
from soups.studies.named import check_contents, encoder_at
from soups.studies.rows import Row, claims_of, described, splits_of
from soups.studies.search_space import choices
from soups.studies.study import Scene, Study, Workdir, check_fields, with_defaults
from soups.studies.trials import over_domains
from soups.train import fit, probe_on_features, ridge_on_features, search

FIELDS = {
    "": "study name seeds? first_seed? data_dir tasks",
    "model": "arch? start? pool_type? length? dropout? frozen?",
    "splits?": "held_out? shots?",
    "probe?": "strengths max_iterations?",
    "sweep": "members learning_rate weight_decay? batch_sizes epochs",
    "greedy?": "random_orders",
    "learned?": "learning_rate epochs batch_size",
    "wise_ft?": "alphas",
    "evaluate?": "batch_size",
}
DEFAULTS = {
    "seeds": 1,
    "first_seed": 0,
    "model": {"arch": None, "start": None, "pool_type": "mean", "length": 128, "dropout": 0.1, "frozen": None},
    "splits": {"held_out": None, "shots": None},
    "probe": {"strengths": (1e-2, 1e-1, 1.0), "max_iterations": 200},
    "greedy": {"random_orders": 0},
    "evaluate": {"batch_size": 200},
}
SPLITS = ("train", "held_out", "test")
HELD_OUT = "{}, held-out"
REFERENCE = "best member"
#: differences that the paper reports
CLAIMED = [("greedy soup", REFERENCE), ("uniform soup", REFERENCE), ("greedy soup", "ensemble")]
#: test scores in percent of BERT-base and of T5-base, table 5 of the paper
PUBLISHED = {
    "bert": {
        REFERENCE: {"MRPC": 88.3, "RTE": 61.0, "CoLA": 59.1, "SST-2": 92.5},
        "greedy soup": {"MRPC": 88.3, "RTE": 61.7, "CoLA": 59.1, "SST-2": 93.0},
    },
    "t5": {
        REFERENCE: {"MRPC": 91.8, "RTE": 78.3, "CoLA": 58.8, "SST-2": 94.6},
        "greedy soup": {"MRPC": 92.4, "RTE": 79.1, "CoLA": 60.2, "SST-2": 94.7},
    },
}


def _check(config):
    check_fields(config, FIELDS)
    if config["sweep"]["members"] < 2:
        raise ValueError("config.sweep.members must be at least 2: soups need two members")
    if not config["tasks"] or len(set(config["tasks"])) < len(config["tasks"]):
        raise ValueError(f"config.tasks must name folders, each once, not {config['tasks']!r:.200}")
    _drawn(config["sweep"], 0)  # refuses what cannot be drawn


def _drawn(sweep, seed) -> list[dict[str, Any]]:
    """Draw the hyper-parameters of all members."""
    sizes = tuple(sweep["batch_sizes"])
    if not sizes or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
        raise ValueError(f"config.sweep.batch_sizes must be whole numbers of at least 1, not {sizes!r:.200}")
    own = {"epochs": search.integers, "seed": search.integers}
    found = choices(sweep | {"seed": (0, 2**31 - 1)}, **own)
    return search.random(sweep["members"], seed, **found, batch_size=lambda generator: int(generator.choice(sizes)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextScene(Scene):
    """Hold what the tasks of one seed share: the network, its weights and its tokenizer."""

    arch: Architecture
    start: tree.Tree
    tokenize: TextTokenizer
    tasks: Mapping[str, TextTask]

    def cook(self) -> dict[str, Any]:
        """Return the part of the results that is of this seed."""
        say(f"\nseed {self.seed}")
        by_task = {name: self.stage(f"{name} rows", functools.partial(self.rows, name)) for name in self.tasks}
        published = PUBLISHED["t5" if self.writes else "bert"]
        rows = [_beside_published(row, published) for row in over_domains(by_task, HELD_OUT)]
        kitchen = self.kitchen(next(iter(self.tasks)))
        sizes = {name: (len(task.test), len(task.held_out)) for name, task in self.tasks.items()}
        return {
            "splits": splits_of(sizes, "tasks", HELD_OUT),
            "reference": REFERENCE,
            "rows": rows,
            "claims": claims_of(self.seed, rows, CLAIMED, "score"),
            "members": [m for name in self.tasks for m in described(self.pool(name), self.prefix, name)],
            "facts": {"Tasks": {name: self.facts(name) for name in self.tasks}},
            **kitchen.described_metrics,
        }

    def rows(self, name: str) -> list[Row]:
        """Make the members of a task and return the rows of all that is cooked of them."""
        say(name)
        probe = self.probe(name)
        self.fill(name, probe)
        kitchen, config = self.kitchen(name), self.config
        start = ("start weights", "start") if self.writes else ("linear probe", "probe")
        rows = [kitchen.row(*start, kitchen.measure(probe), {}), *kitchen.single_rows()[:3]]
        rows += kitchen.soup_rows(config["greedy"]["random_orders"], config.get("learned"))[0]
        if "wise_ft" in config:
            rows += kitchen.path_rows(probe, config["wise_ft"]["alphas"], called=start[1])[:2]
        return rows + kitchen.ensemble_rows()[0]

    # --- Weights of one task ------------------------------------------------------------------------------------------

    def pool(self, name: str) -> Pool:
        """Open the pool of a task's members."""
        return self.workdir.pool(f"{name}_pool")

    @property
    def writes(self) -> bool:
        """Say whether the network writes the words of classes."""
        return self.arch.family == "t5"

    @functools.cached_property
    def ways(self) -> dict[str, text_ways.Way]:
        """Return how each task is trained on and measured; metrics are those that all tasks have."""
        found = {name: self._way(name, task) for name, task in self.tasks.items()}
        common = set.intersection(*(set(way.metrics) for way in found.values()))
        return {
            name: dataclasses.replace(way, metrics={n: one for n, one in way.metrics.items() if n in common})
            for name, way in found.items()
        }

    def _way(self, name, task):
        options = {"dropout": self.config["model"]["dropout"], "frozen": self.config["model"]["frozen"] or None}
        if self.writes:
            names = text_ways.words_of(name, task.class_names, task.train.second is not None)
            words = label_words(self.tokenize, names)
            return text_ways.of_words(name, self.arch, tuple(map(tuple, words.tolist())), **options)
        if not task.class_names:
            return text_ways.of_numbers(name, self.arch, **options)
        return text_ways.of_classes(name, self.arch, len(task.class_names), **options)

    @functools.cached_property
    def features(self):
        """Return the compiled function from weights and inputs to features."""
        return jax.jit(self.arch.apply_fn(None))

    @functools.cached_property
    def encoded(self) -> dict[tuple[str, str], Encoded]:
        """Return the tokens of each split of each task, and how many of its texts were cut."""
        splits = {(name, split): getattr(task, split) for name, task in self.tasks.items() for split in SPLITS}
        if self.writes:
            return {key: self.tokenize.encode(text_ways.read_texts(key[0], data)) for key, data in splits.items()}
        return {key: self.tokenize.encode(data.texts, data.second) for key, data in splits.items()}

    def inputs(self, name: str, split: str) -> dict[str, np.ndarray]:
        """Return the tokens of a split."""
        return self.encoded[name, split].inputs

    def probe(self, name: str) -> tree.Tree:
        """Return the start weights with a head for a task, fitted to their features: all members begin with it.

        What writes words has no head, and begins with the start weights.
        """

        def make():
            if self.writes:
                return self.start

            def features(split):
                parts = by_length(self.inputs(name, split), self.config["evaluate"]["batch_size"])
                return joined((rows, np.asarray(self.features(self.start, part))) for rows, part in parts)

            task, config = self.tasks[name], self.config["probe"]
            if not task.class_names:
                held_out = features("held_out"), task.held_out.labels
                strengths = {"strengths": config["strengths"], "held_out": held_out}
                return {**self.start, "head": ridge_on_features(features("train"), task.train.labels, **strengths)}
            options = {"num_classes": len(task.class_names), "held_out": (features("held_out"), task.held_out.labels)}
            head = probe_on_features(features("train"), task.train.labels, **options, **config)
            return {**self.start, "head": head}

        pool = self.workdir.pool(f"{name}_bases")
        return self.timed(f"{name} probe", lambda: self.kept(pool, "probe", make))

    def fill(self, name: str, probe: tree.Tree) -> None:
        """Fill the pool of a task with its members."""
        task, pool, training = self.tasks[name], self.pool(name), self.ways[name].training
        base = self.workdir.pool(f"{name}_bases").digest(self.name("probe"))
        drawn = _drawn(self.config["sweep"], self.seed)

        def make():
            for index, one in counted(enumerate(drawn), name, len(drawn), "members"):
                if (member := self.name(f"member_{index:02d}")) in pool:
                    continue
                settings = {key: value for key, value in one.items() if key not in ("batch_size", "epochs")}
                size = min(one["batch_size"], len(task.train))
                batches = text_batches(self.inputs(name, "train"), task.train.labels, size, seed=one["seed"])
                steps = math.ceil(one["epochs"] * len(task.train) / size)
                made = fit(training, probe, batches, steps=steps, hyperparameters=settings)
                metadata = {"config": one, "seed": self.seed, "base": base}
                metadata["losses"] = [float(loss) for loss in made["losses"]]
                pool.add(member, jax.device_get(made["params"]), metadata)

        self.timed(f"{name} members", make)

    def kitchen(self, name: str) -> Kitchen:
        """Return what measures and cooks the members of a task."""
        pool, task, way = self.pool(name), self.tasks[name], self.ways[name]
        return Kitchen(
            members=pool.select([member for member in pool if member.startswith(self.prefix)]),
            apply_fn=way.apply_fn,
            loss=way.loss,
            held_out=Examples(self.inputs(name, "held_out"), task.held_out.labels),
            test=Examples(self.inputs(name, "test"), task.test.labels),
            shifts={},
            directory=self.workdir.path / "kitchens" / name,
            seed=self.seed,
            prefix=self.prefix,
            batch_size=self.config["evaluate"]["batch_size"],
            metrics=way.metrics,
            mesh=self.data_mesh,
        )

    # --- What results tell --------------------------------------------------------------------------------------------

    def facts(self, name: str) -> dict[str, Any]:
        """Return what the results tell of a task."""
        task, cut = self.tasks[name], sum(self.encoded[name, split].cut for split in SPLITS)
        found = {"classes": len(task.class_names) or "numbers", "train": len(task.train), "over-long texts": cut}
        return found | {f"{split} also in train": count for split, count in task.facts["shared"].items()}


def _beside_published(row: Row, published) -> Row:
    known = {task: value for task, value in published.get(row["name"], {}).items() if task in row["metrics"]}
    numbers = {task: {"value": value / 100, "exact": False} for task, value in known.items()}
    return row | ({"published": numbers} if numbers else {})


def _scenes(config, workdir: Workdir) -> list[TextScene]:
    config = with_defaults(config, DEFAULTS)
    model, splits, folder = config["model"], config["splits"], data_path(config["data_dir"])
    path, arch = encoder_at(model, pool_type=model["pool_type"])
    if getattr(arch.features, "mlm", False):
        raise ValueError(f"config.model.arch {arch.name!r} is not an encoder that classifies texts")
    start = models.import_weights(path, arch)
    shared = {"arch": arch, "start": {name: part for name, part in start.items() if name != "head"}}
    shared["tokenize"] = text_tokenizer(path, arch, length=model["length"])
    made = []
    for seed in range(config["first_seed"], config["first_seed"] + config["seeds"]):
        tasks = {
            name: load_text_task(folder / name, seed=seed, layout="cola" if name.lower() == "cola" else None, **splits)
            for name in config["tasks"]
        }
        if numbers := [name for name, task in tasks.items() if not task.class_names and arch.family == "t5"]:
            raise ValueError(
                f"{arch.name} writes the words of classes, but the labels of {', '.join(numbers)} are numbers"
            )
        scene = TextScene(config=config, workdir=workdir, seed=seed, tasks=tasks, **shared)
        data = {"_".join(key): one.inputs for key, one in scene.encoded.items()}
        labels = {f"{name}_{split}": getattr(task, split).labels for name, task in tasks.items() for split in SPLITS}
        check_contents(scene, {"data": digest({"x": data, "y": labels}), "network": digest(scene.start)})
        made.append(scene)
    return made


run = Study(check=_check, scenes=_scenes, cook=TextScene.cook, folders=())
