"""Train one network on a task from scratch, measure it, and export its weights: a start for other studies."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

import soups
from soups import models, tree
from soups.data import Task
from soups.formats import write_safetensors
from soups.formats.mapping import hash_files
from soups.names import check_name
from soups.pool import Pool, digest
from soups.progress import say
from soups.studies.kitchen import Kitchen
from soups.studies.members import arrays_of
from soups.studies.named import check_unchanged, network_of, section_of, task_of
from soups.studies.study import OneSeed, Study, Workdir, check_fields, with_defaults
from soups.train import Classification, Training, sweep

FIELDS = {
    "": "study name seed? data_dir? task model",
    "pretrain": "batch_size clip_norm? learning_rate weight_decay? label_smoothing? mixup? epochs "
    "augment_operations? augment_magnitude?",
    "export?": "dtype? about?",
    "evaluate?": "batch_size",
}
DEFAULTS = {
    "seed": 0,
    "data_dir": None,
    "pretrain": {"clip_norm": None},
    "export": {"dtype": "float32", "about": ""},
    "evaluate": {"batch_size": 500},
}
FILE = "weights.safetensors"
TITLE = "trained network"
DTYPES = ("float32", "float16", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained(OneSeed):
    """Hold the task, the network before it is trained, and the pool that keeps it then."""

    task: Task
    network: models.Network
    pool: Pool

    def start(self) -> tree.Tree:
        """Return the weights before training."""
        return self.network.init(jax.random.key(self.seed), self.task.test.images.shape[1:])

    def train(self, start: tree.Tree) -> None:
        """Train the network, and keep it, if it is not there."""
        settings = dict(self.config["pretrain"])
        batch_size, clip_norm = settings.pop("batch_size"), settings.pop("clip_norm")
        loss = Classification(self.network.trained, len(self.task.class_names))
        training = Training(loss=loss, clip_norm=clip_norm)
        options = {"batch_size": batch_size, "names": ["network"], "what": "pre-training"}
        sweep(training, start, arrays_of(self.task.train), [settings | {"seed": self.seed}], self.pool, **options)

    def export(self, params: tree.Tree, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Write the weights with all that one must know to use them, and return what the file is.

        The digest of the tensors is that of `soups.pool.digest`: what the file says beside them may change, such as the
        version of soups.
        """
        model, fields = section_of(self.config["model"], "vit")
        training = {"seed": self.seed} | self.config["pretrain"]
        task, data = section_of(self.config["task"], "digits")
        accuracy = {split: round(found["accuracy"], 4) for split, found in metrics.items()}
        metadata = {
            "about": self.config["export"]["about"],
            "soups": soups.__version__,
            "task": task,
            # a text may be a path of this machine
            "task_settings": json.dumps({name: value for name, value in data.items() if not isinstance(value, str)}),
            "class_names": json.dumps(self.task.class_names, ensure_ascii=False),
            "image_shape": json.dumps(self.task.test.images.shape[1:]),
            "model": model,
            "network": json.dumps(fields),
            "pretrain": json.dumps(training),
            "accuracy": json.dumps(accuracy),
        } | {name: json.dumps(fact, ensure_ascii=False) for name, fact in self.task.facts.items()}
        narrow = narrowed(params, self.config["export"]["dtype"])
        path = write_safetensors(self.workdir.path / FILE, tree.flatten(narrow), metadata)
        kind = {"dtype": self.config["export"]["dtype"], "bytes": path.stat().st_size}
        return kind | {"xxh3_128": hash_files(path), "tensors_xxh3_128": digest(narrow)}


def narrowed(params: tree.Tree, dtype: str) -> tree.Tree:
    """Return weights as NumPy arrays of another dtype; a ValueError for one that has nothing as large as they are."""

    def cast(name, leaf):
        with np.errstate(over="ignore"):
            narrow = np.asarray(leaf).astype(np.dtype(dtype))
        if np.isinf(narrow).any():
            raise ValueError(
                f"{name} has weights of {float(np.abs(leaf).max()):,.6g}, which is too large for {dtype}: give another "
                "config.export.dtype, or a lower config.pretrain.learning_rate"
            )
        return narrow

    return tree.map_with_names(cast, params)


def _check(config):
    check_fields(config, FIELDS)
    check_name(config.get("export", {}).get("dtype", "float32"), DTYPES, "config.export.dtype")
    seed = config.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 32:
        raise ValueError(f"config.seed must be a whole number from 0 to {(1 << 32) - 1}, not {seed!r:.200}")


def _scenes(config, workdir: Workdir) -> list[Pretrained]:
    config = with_defaults(config, DEFAULTS)
    task, _ = task_of(config["task"], seed=config["seed"], data_dir=config["data_dir"])
    network = network_of(config["model"], task, probed=False)
    shared = {"config": config, "workdir": workdir, "seed": config["seed"]}
    scene = Pretrained(task=task, network=network, pool=workdir.pool("pool"), **shared)
    check_unchanged(scene, network, task)
    return [scene]


def _cook(scene: Pretrained) -> dict[str, Any]:
    start, task = scene.start(), scene.task
    scene.timed("training", lambda: scene.train(start))
    kitchen = Kitchen(
        members=scene.pool.select(["network"]),
        apply_fn=scene.network.apply,
        held_out=task.held_out,
        test=task.test,
        shifts=task.shifts,
        directory=scene.workdir.path,
        seed=scene.seed,
        batch_size=scene.config["evaluate"]["batch_size"],
        mesh=scene.data_mesh,
    )
    if not kitchen.names:
        raise ValueError("the network diverged: lower config.pretrain.learning_rate")

    # --- What is exported is measured as it is written ---
    trained, dtype = scene.pool["network"], scene.config["export"]["dtype"]
    rounded = jax.tree.map(lambda leaf, kept: leaf.astype(kept.dtype), narrowed(trained, dtype), trained)
    exported = kitchen.row(f"exported, {dtype}", "member", kitchen.measure(rounded), {"network": 1.0})
    begun = kitchen.row("start weights", "start", kitchen.measure(start), {})
    rows = [begun, kitchen.named_row("network", TITLE), exported, *kitchen.member_rows.values()]
    file = scene.export(rounded, exported["metrics"])
    say(f"{FILE}: " + ", ".join(f"{name} {value}" for name, value in file.items()))
    described = {"splits": kitchen.described_splits, "members": kitchen.described_members}
    return described | {"rows": rows, "reference": TITLE, "facts": {"Exported": {FILE: file}}}


run = Study(check=_check, scenes=_scenes, cook=_cook, folders=("pool", FILE))
