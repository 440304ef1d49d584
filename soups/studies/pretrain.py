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
from soups.data.glyphs import font_licences
from soups.formats import write_safetensors
from soups.formats.mapping import hash_files
from soups.names import check_name
from soups.pool import Pool
from soups.progress import say
from soups.studies.kitchen import Kitchen
from soups.studies.members import arrays_of
from soups.studies.named import check_unchanged, network_of, section_of, task_of
from soups.studies.study import Scene, Study, Workdir, check_fields, with_defaults
from soups.train import Classification, Training, sweep

FIELDS = {
    "": "study name seed? data_dir? task model",
    "pretrain": "batch_size clip_norm? learning_rate weight_decay? label_smoothing? mixup? epochs "
    "augment_operations? augment_magnitude?",
    "export?": "dtype? about? command?",
    "evaluate?": "batch_size",
}
DEFAULTS = {
    "seed": 0,
    "data_dir": None,
    "pretrain": {"clip_norm": None},
    "export": {"dtype": "float32", "about": "", "command": ""},
    "evaluate": {"batch_size": 500},
}
FILE = "weights.safetensors"
TITLE = "trained network"
DTYPES = ("float32", "float16", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained(Scene):
    """Hold the task, the network before it is trained, and the pool that keeps it then."""

    task: Task
    network: models.Network
    pool: Pool

    @property
    def prefix(self) -> str:
        """Return nothing: one seed alone has the workdir."""
        return ""

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
        """Write the weights with all that one must know to use them, and return what the file is."""
        model, fields = section_of(self.config["model"], "vit")
        training = {"seed": self.seed} | self.config["pretrain"]
        task, data = section_of(self.config["task"], "digits")
        licences = font_licences(data["fonts"]) if "fonts" in data else {}
        accuracy = {split: round(found["accuracy"], 4) for split, found in metrics.items()}
        metadata = {
            "about": self.config["export"]["about"],
            "command": self.config["export"]["command"],
            "soups": soups.__version__,
            "task": task,
            "class_names": json.dumps(self.task.class_names, ensure_ascii=False),
            "image_shape": json.dumps(self.task.test.images.shape[1:]),
            "model": model,
            "network": json.dumps(fields),
            "pretrain": json.dumps(training),
            "accuracy": json.dumps(accuracy),
            "licences_of_fonts": json.dumps(licences),
        }
        dtype = np.dtype(self.config["export"]["dtype"])
        leaves = {name: np.asarray(leaf).astype(dtype) for name, leaf in tree.flatten(params).items()}
        path = write_safetensors(self.workdir.path / FILE, leaves, metadata)
        return {"dtype": dtype.name, "bytes": path.stat().st_size, "xxh3_128": hash_files(path)}


def _check(config):
    check_fields(config, FIELDS)
    check_name(config.get("export", {}).get("dtype", "float32"), DTYPES, "config.export.dtype")


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
    narrow = np.dtype(scene.config["export"]["dtype"])
    rounded = jax.tree.map(lambda leaf: np.asarray(leaf).astype(narrow).astype(leaf.dtype), scene.pool["network"])
    exported = kitchen.row(f"exported, {narrow.name}", "member", kitchen.measure(rounded), {"network": 1.0})
    begun = kitchen.row("start weights", "start", kitchen.measure(start), {})
    rows = [begun, kitchen.named_row("network", TITLE), exported, *kitchen.member_rows.values()]
    file = scene.export(rounded, exported["metrics"])
    say(f"{FILE}: " + ", ".join(f"{name} {value}" for name, value in file.items()))
    described = {"splits": kitchen.described_splits, "members": kitchen.described_members}
    return described | {"rows": rows, "reference": TITLE, "facts": {"Exported": {FILE: file}}}


run = Study(check=_check, scenes=_scenes, cook=_cook, folders=("pool", FILE))
