"""Merge CLIPs that were fine-tuned on image sets of their own, each under the frozen head of its classes' names.

Ilharco et al., "Editing models with task arithmetic", 2022, arXiv 2212.04089, and what followed: TIES, AdaMerging and
Localize-and-Stitch report on these eight sets. A ninth set, of which no member knows, says what of CLIP is left.
"""

import dataclasses
import functools
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from soups import models, tree
from soups.data.clip_sets import CLIP_SETS, ClipTask, load_clip_set
from soups.evaluate import accuracy
from soups.models.architectures import architecture
from soups.models.clip_text import check_vocabulary, import_text_tower, text_features
from soups.models.clip_tokenizer import clip_tokenizer
from soups.models.many_heads import ManyHeads, head_logits, padded
from soups.models.zero_shot import zero_shot_head
from soups.names import check_name
from soups.pool import digest
from soups.progress import counted
from soups.studies import multi_task
from soups.studies.named import check_contents
from soups.studies.rows import Row
from soups.studies.study import Study, Workdir, with_defaults
from soups.studies.tasks import Tasks
from soups.train import Classification, Training

FIELDS = {
    "": "study name seeds? data_dir tasks ninth? arch start tokenizer members? methods",
    "splits": "most most_held_out most_test",
    "finetune?": "learning_rate weight_decay epochs batch_size clip_norm?",
    "joint?": "learning_rates batch_size",
    "examples": "few batch_size",
    "evaluate?": "batch_size",
}
DEFAULTS = {"seeds": 1, "ninth": None, "members": None, "evaluate": {"batch_size": 100}}
SPLITS = ("train", "held_out", "test")


def _check(config: Mapping[str, Any]) -> None:
    multi_task.check_config(config, FIELDS)
    for name in (*config["tasks"], *([config["ninth"]] if config.get("ninth") else [])):
        check_name(name, CLIP_SETS, "set in config.tasks or config.ninth")
    if len(set(config["tasks"])) < max(2, len(config["tasks"])) or config.get("ninth") in config["tasks"]:
        raise ValueError("config.tasks must name at least two sets, each once, and config.ninth none of them")
    if (config.get("members") is None) is ("finetune" not in config):
        raise ValueError("config must have either members, files of fine-tuned encoders, or a section finetune")
    if config.get("members") is not None and "{task}" not in config["members"]:
        raise ValueError(f"config.members must be a path with {{task}} in it, not {config['members']!r:.200}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipTasks(Tasks):
    """Hold one seed's sets, their zero-shot heads, and the image tower; `ninth` is a set that no member knows."""

    trunk: tree.Tree
    zero_shot: Mapping[str, tree.Tree]
    ninth: ClipTask | None

    def start(self, otherwise: Any = None) -> tree.Tree:
        """Return the image tower with a head that says nothing."""
        return {**self.trunk, "head": self.networks.zero_head}

    def task_heads(self, trunk: tree.Tree) -> dict[str, tree.Tree]:
        """Return the heads of the names of the classes."""
        return {name: self.zero_shot[name] for name in self.tasks}

    @property
    def of_base(self) -> str:
        """Return what the base is called under these heads."""
        return "zero-shot CLIP"

    def fine_tuned(self, probed: tree.Tree) -> None:
        """Fill the pool with the members that are given, or fine-tune them."""
        if (given := self.config["members"]) is None:
            return super().fine_tuned(probed)
        for name in counted(self.tasks, "members", len(self.tasks), "tasks"):
            if self.name(name) not in self.pool:
                path = given.replace("{task}", name)
                trunk = _trunk(models.import_weights(pathlib.Path(path).expanduser(), self.config["arch"]))
                self.pool.add(self.name(name), {**trunk, "head": self.zero_shot[name]}, {"file": path, "seconds": 0.0})
        return None

    @property
    def other_splits(self) -> dict[str, Any]:
        """Return the ninth set as results hold it."""
        name, ninth = self.config["ninth"], self.ninth
        return (
            {} if ninth is None else {name: {"role": "shift", "examples": len(ninth.test), "title": f"{name}, unseen"}}
        )

    def row(self, title: str, kind: str, trunks: Any, *args: Any, **options: Any) -> Row:
        """Measure as ever, and on the ninth set: the mean over the trunks, where there is one for each task."""
        found = super().row(title, kind, trunks, *args, **options)
        if self.ninth is None:
            return found
        data, head = self.ninth.test, self.zero_shot[self.config["ninth"]]
        different = list({id(one): one for one in (trunks.get(name, trunks) for name in self.tasks)}.values())
        right = [accuracy(head_logits(self.evaluator(data).logits(one), head), data.labels) for one in different]
        return found | {"metrics": found["metrics"] | {self.config["ninth"]: {"accuracy": statistics.fmean(right)}}}


def _trunk(params):
    return {name: part for name, part in params.items() if name != "head"}


def _heads(config, arch, tasks: Mapping[str, ClipTask], classes: int) -> dict[str, tree.Tree]:
    """Return the zero-shot head of each set, padded to the same number of classes."""
    tokenizer = clip_tokenizer(pathlib.Path(config["tokenizer"]).expanduser())
    text = jax.device_put(import_text_tower(pathlib.Path(config["start"]).expanduser(), arch))
    check_vocabulary(tokenizer, config["tokenizer"], text, config["start"])
    encode = functools.partial(jax.jit(functools.partial(text_features, arch=arch)), text)
    made = {name: zero_shot_head(encode, tokenizer, one.class_names, one.templates) for name, one in tasks.items()}
    return {name: padded(head, classes) for name, head in made.items()}


def _scenes(config, workdir: Workdir) -> list[ClipTasks]:
    config = with_defaults(config, DEFAULTS)
    arch = architecture(config["arch"])
    if arch.text is None:
        raise ValueError(f"config.arch {arch.name!r} has no text tower: only those of CLIP have one")
    read = functools.partial(load_clip_set, config["data_dir"], image_size=arch.image_size, **config["splits"])
    names: Sequence[str] = [*config["tasks"], *([config["ninth"]] if config["ninth"] else [])]
    loaded = [{name: read(name, seed=seed) for name in names} for seed in range(config["seeds"])]
    classes = max(len(task.class_names) for task in loaded[0].values())
    shape = (arch.image_size, arch.image_size, 3)
    networks = ManyHeads(make=arch.model, num_classes=classes, image_shape=shape, mean=arch.mean, std=arch.std)
    trunk = _trunk(models.import_weights(pathlib.Path(config["start"]).expanduser(), arch))
    heads = _heads(config, arch, loaded[0], classes)
    loss = Classification(arch.train_apply_fn(classes), classes)
    clip = config["finetune"].get("clip_norm") if "finetune" in config else None
    training = Training(loss=loss, clip_norm=clip, learning_rate_rules=(("head/.*", 0.0), (".*", 1.0)))
    pools = {name: workdir.pool(name) for name in ("bases", "pool", "joint", "merged")}
    shared = {"config": config, "workdir": workdir, "networks": networks, "training": training, "trunk": trunk, **pools}
    shared |= {"network": models.Network.of(networks.single), "zero_shot": heads, "earlier": None}
    made = []
    for seed, found in enumerate(loaded):
        ninth = found.pop(config["ninth"], None)
        scene = ClipTasks(seed=seed, tasks=found, ninth=ninth, **shared)
        sets = {f"{name}_{split}": getattr(task, split) for name, task in found.items() for split in SPLITS}
        data = {name: {"images": one.images, "labels": one.labels} for name, one in sets.items()}
        check_contents(scene, {"data": digest(data), "network": digest({"trunk": trunk, "heads": heads})})
        made.append(scene)
    return made


run = Study(
    check=_check,
    scenes=_scenes,
    cook=multi_task.cook,
    folders=("pool", "merged"),
    changeable=("methods",),
)
