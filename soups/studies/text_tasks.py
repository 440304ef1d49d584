"""Hold many tasks of texts on one encoder: their tokens and heads, and what of the network all of them share."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from soups import models, tree
from soups.data import TextDataset, load_text_task, text_batches
from soups.files import data_path
from soups.models.architectures import Architecture
from soups.models.many_heads import ManyHeads, padded
from soups.models.prompts import LIMITS, PROMPTS, Prompt, PromptTokenizer, at_mask, word_head
from soups.models.text_tokenizer import TextTokenizer, text_tokenizer
from soups.names import check_name
from soups.pool import digest
from soups.studies.named import check_contents, encoder_at
from soups.studies.study import Workdir, with_defaults
from soups.studies.tasks import Tasks
from soups.train import Classification, Training, probe_on_features

SPLITS = ("train", "held_out", "test")
TRAINED = ("Transformer", "pre_logits")  # the parts of an encoder that are fine-tuned, beside the head
HEADS = ("auto", "prompts", "linear")
#: fields of a config, and what they are where it leaves them out
FIELDS = {
    "": "study name seeds? first_seed? data_dir tasks heads? prompts?",
    "model": "arch? start? pool_type? length?",
    "splits?": "shots? held_out? most_train? most_held_out? most_test?",
    "probe?": "strengths max_iterations?",
    "finetune": "learning_rate weight_decay? steps batch_size clip_norm? head_rate?",
    "evaluate?": "batch_size",
}
DEFAULTS = {
    "seeds": 1,
    "first_seed": 0,
    "heads": "auto",
    "prompts": {},
    "model": {"arch": None, "start": None, "pool_type": "mean", "length": 128},
    "splits": {"shots": None, "held_out": None} | {f"most_{split}": None for split in SPLITS},
    "probe": {"strengths": (1e-2, 1e-1, 1.0), "max_iterations": 200},
    "finetune": {"weight_decay": 0.0, "clip_norm": 1.0, "head_rate": 1.0},
    "evaluate": {"batch_size": 200},
}


@dataclasses.dataclass(frozen=True, eq=False)
class TokenSet:
    """Keep one split: inputs of an encoder by name, each [N, T], under the name that evaluators know, and labels."""

    images: Mapping[str, np.ndarray]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Any) -> "TokenSet":
        """Return some examples."""
        return TokenSet({name: array[rows] for name, array in self.images.items()}, self.labels[rows])


@dataclasses.dataclass(frozen=True, eq=False)
class TokenTask:
    """Bundle the splits of a task, and how many of its texts were cut; `words` are the tokens of a prompt's classes."""

    name: str
    class_names: tuple[str, ...]
    train: TokenSet
    held_out: TokenSet
    test: TokenSet
    cut: int
    words: Sequence[int] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTasks(Tasks):
    """Hold one seed's tasks of texts: `trunk` is what is trained of the encoder, `fixed` the rest of it."""

    trunk: tree.Tree

    def start(self, otherwise: Any = None) -> tree.Tree:
        """Return the encoder's own trunk, with a head that says nothing."""
        return {**self.trunk, "head": self.networks.zero_head}

    @property
    def of_base(self) -> str:
        """Return what the base with the heads is called that members start with."""
        asked = all(task.words is not None for task in self.tasks.values())
        return "zero-shot prompts" if asked else super().of_base

    def facts(self, task: TokenTask) -> dict[str, Any]:
        """Return what results tell of a task."""
        return super().facts(task) | {"over-long texts": task.cut}

    def own_data(self, task: str) -> tuple[Any, dict[str, Any]]:
        """Return what a member is trained on, and how long: so many steps, whatever the number of examples."""
        data, config = self.tasks[task].train, self.config["finetune"]
        size = min(config["batch_size"], len(data))
        return {"image": data.images, "label": data.labels}, {"batch_size": size, "steps": config["steps"]}

    def joint_data(self) -> tuple[Any, dict[str, Any]]:
        """Return batches with examples of all tasks, and steps in which as many of each are seen as by its member."""
        config, size = self.config["finetune"], self.config["joint"]["batch_size"]
        return self._joint_batches(size), {"steps": config["steps"] * config["batch_size"] // size}

    def _joint_batches(self, size) -> Iterator[dict[str, Any]]:
        length = (self.config["model"]["length"],)
        sets = [task.train for task in self.tasks.values()]
        parts = [text_batches(one.images, one.labels, size, seed=self.seed, lengths=length) for one in sets]
        for batches in zip(*parts, strict=True):
            yield jax.tree.map(lambda *own: np.stack(own, axis=1), *batches)

    def together(self, split: str) -> dict[str, Any]:
        """Return the examples of all tasks laid together; those of smaller tasks come again."""
        sets = [getattr(task, split) for task in self.tasks.values()]
        most = max(map(len, sets))
        repeated = [one.take(np.resize(np.arange(len(one)), most)) for one in sets]
        parts = [{"image": one.images, "label": one.labels} for one in repeated]
        return jax.tree.map(lambda *own: np.stack(own, axis=1), *parts)

    def inputs(self, images: Any) -> Any:
        """Return tokens as they are."""
        return images

    def task_heads(self, trunk: tree.Tree) -> dict[str, tree.Tree]:
        """Return the heads that members start with: see `head_for`."""
        return {name: self.head_for(task, trunk) for name, task in self.tasks.items()}

    def head_for(self, task: TokenTask, trunk: tree.Tree) -> tree.Tree:
        """Return the head of a task's words at the mask, or one that is fitted on the features of a trunk."""
        if task.words is not None:
            return padded(word_head(self.fixed, task.words), self.networks.num_classes)
        whole = {**self.fixed, **trunk}
        train, held_out = (self.evaluator(one).logits(whole) for one in (task.train, task.held_out))
        options = {"num_classes": len(task.class_names), "held_out": (held_out, task.held_out.labels)}
        head = probe_on_features(train, task.train.labels, **options, **self.config["probe"])
        return padded(head, self.networks.num_classes)


# --- From a config ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Encoder:
    """Hold an encoder with its weights and tokenizer, and whether it is asked by prompts."""

    arch: Architecture
    params: tree.Tree
    tokenize: TextTokenizer
    asked: bool


def _encoder(config) -> _Encoder:
    model, heads = config["model"], check_name(config["heads"], HEADS, "config.heads")
    fields = {"mlm": True} if heads == "prompts" else {"pool_type": model["pool_type"]}
    path, arch = encoder_at(model, **fields)
    asked = heads == "prompts" or (heads == "auto" and arch.features.mlm)
    params = models.import_weights(path, arch)
    tokenize = text_tokenizer(path, arch, length=model["length"])
    if not asked and arch.features.mlm:
        raise ValueError(f"config.heads 'linear' needs a network that gives features: take {arch.name} without -mlm")
    return _Encoder(at_mask(arch, tokenize) if asked else arch, params, tokenize, asked)


def text_scenes(kind: type[TextTasks], config: Mapping[str, Any], workdir: Workdir) -> list[TextTasks]:
    """Return the scenes of a study of many tasks of texts, one for each seed; all share their programs.

    Raises:
        ValueError: tasks that are fewer than two, or twice; weights, prompts or texts that do not fit.
    """
    config = with_defaults(config, DEFAULTS)
    names, encoder = list(config["tasks"]), _encoder(config)
    if len(set(names)) < max(2, len(names)):
        raise ValueError(f"config.tasks must name at least two folders, each once, not {names!r:.200}")
    seeds = range(config["first_seed"], config["first_seed"] + config["seeds"])
    made = {seed: {name: _task(config, encoder, name, seed) for name in names} for seed in seeds}
    classes = max(len(task.class_names) for task in made[config["first_seed"]].values())
    batch = {"tokens": np.zeros((1, 1), np.int32), "mask": np.ones((1, 1), bool)}
    networks = ManyHeads(make=encoder.arch.model, num_classes=classes, image_shape=batch)
    trunk = {name: encoder.params[name] for name in TRAINED if name in encoder.params}
    fixed = jax.device_put({name: part for name, part in encoder.params.items() if name not in (*TRAINED, "head")})
    pools = {name: workdir.pool(name) for name in ("bases", "pool", "joint", "merged")}
    shared = {"networks": networks, "trunk": trunk, "fixed": fixed, "earlier": None, **pools}
    shared |= {"network": models.Network.of(networks.single), "training": _training(config, networks, fixed)}
    scenes = [kind(config=config, workdir=workdir, seed=seed, tasks=made[seed], **shared) for seed in seeds]
    network = digest({"trunk": trunk, "fixed": fixed})
    for scene in scenes:
        check_contents(scene, {"data": digest(_arrays(scene.tasks)), "network": network})
    return scenes


def _training(config, networks, fixed):
    tune = config["finetune"]
    loss = Classification(models.train_apply_fn(networks.single), networks.num_classes, preprocess=None)
    rules = (("|".join(f"{name}/.*" for name in fixed), 0.0), ("head/.*", tune["head_rate"]), (".*", 1.0))
    return Training(loss=loss, clip_norm=tune["clip_norm"], learning_rate_rules=rules)


def _arrays(tasks):
    sets = {f"{name}_{split}": getattr(task, split) for name, task in tasks.items() for split in SPLITS}
    return {
        "x": {name: one.images for name, one in sets.items()},
        "y": {name: one.labels for name, one in sets.items()},
    }


def _task(config, encoder, name, seed) -> TokenTask:
    """Read a task, draw no more of its examples than the config says, and tokenize them."""
    splits, folder = config["splits"], data_path(config["data_dir"]) / name
    layout = "cola" if name.lower() == "cola" else None
    task = load_text_task(folder, seed=seed, layout=layout, shots=splits["shots"], held_out=splits["held_out"])
    ask = _asked(config, encoder, name) if encoder.asked else encoder.tokenize
    drawn = {split: _drawn(getattr(task, split), splits[f"most_{split}"], seed) for split in SPLITS}
    found = {split: ask.encode(data.texts, data.second) for split, data in drawn.items()}
    length = config["model"]["length"]
    sets = {
        split: TokenSet(_to_length(one.inputs, length, encoder.tokenize), drawn[split].labels)
        for split, one in found.items()
    }
    words = ask.word_ids(task.class_names) if encoder.asked else None
    return TokenTask(name, task.class_names, **sets, cut=sum(one.cut for one in found.values()), words=words)


def _asked(config, encoder, name) -> PromptTokenizer:
    own = {task.lower(): Prompt(one["template"], one["words"]) for task, one in config["prompts"].items()}
    known = PROMPTS | own
    if name.lower() not in known:
        raise ValueError(f"task {name!r} has no prompt: give config.prompts.{name} a template and words")
    return PromptTokenizer(encoder.tokenize, known[name.lower()], LIMITS.get(name.lower()))


def _drawn(data: TextDataset, most: int | None, seed: int) -> TextDataset:
    """Return the examples in an order drawn with the seed, no more than `most`."""
    order = np.random.default_rng(seed).permutation(len(data))
    return data.take(order[:most])


def _to_length(inputs, length, tokenize):
    """Pad all to one length, so that one program is for all tasks."""
    empty = {"tokens": tokenize.special["padding"]}
    missing = length - inputs["tokens"].shape[1]
    return {
        name: np.pad(array, ((0, 0), (0, missing)), constant_values=empty.get(name, 0))
        for name, array in inputs.items()
    }
