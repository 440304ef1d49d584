"""Fine-tune a language model on several sets, merge the members into one, and let it choose among answers.

As He et al., "Localize-and-Stitch: Efficient model merging via sparse task arithmetic", 2024, arXiv 2408.13656, merge
three fine-tuned GPT2-XL: one that follows instructions, one that knows science, one that is truthful. MMLU, ARC and
TruthfulQA are asked and scored as lm-evaluation-harness does.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from soups import models, tree
from soups.data import Question, answer_rows, read_arc, read_instructions, read_mmlu, read_truthful_qa
from soups.data.questions import PREAMBLE
from soups.evaluate import ChoiceScorer, choice_metrics
from soups.files import data_path
from soups.models.architectures import Architecture, decoder_of
from soups.models.lora import LORA_RULES, lora_fn, lora_params, merge_lora
from soups.models.text_tokenizer import TextTokenizer, text_tokenizer
from soups.names import check_name
from soups.pool import Pool, digest
from soups.progress import counted, say
from soups.studies import multi_task
from soups.studies.named import check_contents
from soups.studies.rows import Row
from soups.studies.study import Study, Workdir, with_defaults
from soups.studies.task_methods import METHODS, Kit, why_not
from soups.studies.tasks import Tasks, trunk_bytes
from soups.train import NextToken, Training, fit

MODES = ("lora", "full")
SCORES = {"instructions": "acc", "science": "acc_norm", "truthfulness": "mc2"}
FIELDS = {
    "": "study name seeds? first_seed? data_dir tasks methods only? joint? keep?",
    "model": "start? length? max_length?",
    "finetune": "mode learning_rate weight_decay? epochs batch_size clip_norm? rank? alpha? matrices?",
    "evaluate?": "batch_size? most_train? most_held_out? most_test?",
}
DEFAULTS = {
    "seeds": 1,
    "first_seed": 0,
    "only": None,
    "joint": False,
    "keep": False,
    "model": {"start": None, "length": 256, "max_length": None},
    "finetune": {
        "weight_decay": 0.0,
        "clip_norm": 1.0,
        "rank": 8,
        "alpha": 16.0,
        "matrices": ".*/(query|value)/kernel",
    },
    "evaluate": {"batch_size": 8, "most_train": None, "most_held_out": None, "most_test": None},
}
METRICS = {
    "accuracy": {"title": "score", "better": "higher", "percent": True},
    **{name: {"title": name, "better": "higher", "percent": True} for name in ("acc", "acc_norm", "acc_bytes", "mc2")},
    **{f"{n}_stderr": {"title": f"{n}, error", "better": "lower", "percent": True} for n in ("acc", "acc_norm", "mc2")},
    "acc_bytes_stderr": {"title": "acc_bytes, error", "better": "lower", "percent": True},
}
#: methods that need nothing but weights, or a score, and give one network for all tasks
FITTING = tuple(
    name
    for name, method in METHODS.items()
    if not method.unlabelled and (not method.labelled or name == "greedy") and method.dense == 1 and not method.masked
)


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageTask:
    """Hold what one member learns, pairs of a text and its answer, and what it is asked; `score` is the metric."""

    name: str
    train: Sequence[tuple[str, str]]
    held_out: Sequence[Question]
    test: Sequence[Question]
    score: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModels(Tasks):
    """Hold one seed's sets, the network with its weights, and what it is asked."""

    arch: Architecture
    params: tree.Tree
    tokenize: TextTokenizer

    def facts(self, task: LanguageTask) -> dict[str, Any]:
        """Return what results tell of a task."""
        return {"train": len(task.train), "score": task.score}

    # --- Weights ------------------------------------------------------------------------------------------------------

    def fill(self) -> None:
        """Fill the pools with a member for each task, and one for all of them where the config says so."""
        made = {self.name(name): (self.pool, task.train) for name, task in self.tasks.items()}
        if self.config["joint"]:
            made[self.name("joint")] = self.joint, [pair for task in self.tasks.values() for pair in task.train]

        def make():
            for name, (pool, pairs) in counted(made.items(), "members", len(made), "members"):
                if name not in pool:
                    pool.add(name, *self.tuned(pairs))

        self.timed("members", make)

    def tuned(self, pairs: Sequence[tuple[str, str]]) -> tuple[tree.Tree, dict[str, Any]]:
        """Return the weights that learned the answers, and their metadata."""
        start, config = time.monotonic(), self.config["finetune"]
        length, special = self.config["model"]["length"], self.tokenize.special
        options = {"end": special["end"], "padding": special["padding"], "length": length}
        rows = answer_rows(self.tokenize.numbers, pairs, **options)
        params, training = self.params, self.training
        if config["mode"] == "lora":
            some = {name: rows[name][:1] for name in ("tokens", "mask")}
            key, matrices = jax.random.key(self.seed), {"rank": config["rank"], "only": config["matrices"]}
            params = lora_params(self.arch.model(None), params, some, key, **matrices)
        settings = {"learning_rate": config["learning_rate"], "weight_decay": config["weight_decay"], "seed": self.seed}
        size = min(config["batch_size"], len(pairs))
        made = fit(training, params, rows, batch_size=size, epochs=config["epochs"], hyperparameters=settings)
        weights = jax.device_get(made["params"])
        if config["mode"] == "lora":
            weights = merge_lora(weights, alpha=config["alpha"])
        record = {"config": settings | {"epochs": config["epochs"]}, "seed": self.seed}
        record |= {"losses": [float(loss) for loss in made["losses"]], "seconds": round(time.monotonic() - start, 2)}
        return weights, record

    def members(self) -> tuple[dict[str, tree.Tree], dict[str, tree.Tree]]:
        """Return the members' weights by task; they have no heads."""
        return {task: self.pool[self.name(task)] for task in self.tasks}, {}

    def kit(self, base: tree.Tree) -> Kit:
        """Put together what methods work on."""
        members, heads = self.members()
        nothing = {"networks": None, "few": {}, "unlabelled": {}, "held_out": []}
        score = lambda params: float(np.mean([*self.accuracies(params, {}, "held_out").values()]))  # noqa: E731
        return Kit(base=base, members=members, heads=heads, score=score, seed=self.seed, **nothing)

    def _keep(self, name, trunks, setting):
        if self.config["keep"]:
            super()._keep(name, trunks, setting)

    # --- Measuring ----------------------------------------------------------------------------------------------------

    def scorer(self, name: str, split: str) -> ChoiceScorer:
        """Return what scores the answers of a task's split; seeds that ask the same share it."""
        questions, config = getattr(self.tasks[name], split), self.config
        length = config["model"]["max_length"] or self.arch.features.context_length
        options = {"end": self.tokenize.special["end"], "max_length": length}
        options |= {"batch_size": config["evaluate"]["batch_size"]}
        return _scorer(_apply(self.arch), self.tokenize, tuple(questions), tuple(options.items()))

    @functools.cached_property
    def _last(self) -> dict[str, tuple[Any, dict[str, dict[str, float]]]]:
        return {}

    def measured(self, params: Mapping[str, Any], split: str) -> dict[str, dict[str, float]]:
        """Return all metrics of each task, of one network or of one for each task."""
        if split not in self._last or self._last[split][0] is not params:
            found = {}
            for name, task in self.tasks.items():
                questions, own = getattr(task, split), params.get(name, params)
                found[name] = choice_metrics(questions, self.scorer(name, split)(own))
            self._last[split] = params, found
        return self._last[split][1]

    def accuracies(self, trunks: Mapping[str, Any], heads: Mapping[str, Any], split: str) -> dict[str, float]:
        """Return the score of each task."""
        return {name: one[self.tasks[name].score] for name, one in self.measured(trunks, split).items()}

    def row(
        self, title: str, kind: str, trunks: Any, heads: Any, of_members: Any, cost: Any, family: str = "baselines"
    ) -> Row:
        """Measure weights: the scores as in other studies of many tasks, and all other metrics beside them."""
        row = super().row(title, kind, trunks, heads, of_members, cost, family)
        for name, found in self.measured(trunks, "test").items():
            row["metrics"][name] |= found
        return row


@functools.cache
def _apply(arch):
    return arch.apply_fn(None)


@functools.lru_cache(maxsize=64)
def _scorer(apply, tokenize, questions, options):
    return ChoiceScorer(apply, tokenize.numbers, questions, **dict(options))


# --- Rows -------------------------------------------------------------------------------------------------------------


def _cook(scene: LanguageModels) -> dict[str, Any]:
    say(f"\nseed {scene.seed}")
    scene.fill()
    rows = scene.stage("baselines", lambda: _baselines(scene))
    single = next(row for row in rows if row["name"] == multi_task.MEMBERS)
    of_members = {task: single["metrics"][task]["accuracy"] for task in scene.tasks}
    kit = scene.kit(scene.params)
    for name, choices in scene.methods.items():
        if not why_not(METHODS[name], len(scene.tasks)):
            make = functools.partial(scene.merged_row, kit, name, choices, of_members)
            rows.append(scene.stage(f"method {name}", make, choices))
    return multi_task.described(scene, scene.params) | {"rows": rows, "metrics": METRICS}


def _baselines(scene):
    members, _ = scene.members()
    records = {task: scene.pool.record(scene.name(task))["metadata"] for task in scene.tasks}
    pairs = sum(len(task.train) for task in scene.tasks.values())
    one = {"seconds": 0.0, "bytes": trunk_bytes(scene.params), "labelled": pairs, "unlabelled": 0}
    seconds = sum(record["seconds"] for record in records.values())
    each = one | {"seconds": seconds, "bytes": one["bytes"] * len(members)}
    rows = [scene.row(multi_task.MEMBERS, "members", members, {}, {}, each)]
    of_members = {task: rows[0]["metrics"][task]["accuracy"] for task in scene.tasks}
    rows.insert(0, scene.row("base", "start", scene.params, {}, of_members, one | {"labelled": 0}))
    for task, member in members.items():
        cost = one | {"seconds": records[task]["seconds"], "labelled": len(scene.tasks[task].train)}
        rows.append(scene.row(f"member of {task}", "member", member, {}, of_members, cost))
    if scene.config["joint"]:
        name = scene.name("joint")
        cost = one | {"seconds": scene.joint.record(name)["metadata"]["seconds"]}
        rows.append(scene.row(multi_task.JOINT, "joint", scene.joint[name], {}, of_members, cost))
    return rows


# --- From a config ----------------------------------------------------------------------------------------------------


def _check(config):
    multi_task.check_config(config, FIELDS)
    check_name(config["finetune"]["mode"], MODES, "config.finetune.mode")
    for name in config["methods"]:
        check_name(name, FITTING, "method for language models, which merge weights alone,")
    for name in config["tasks"]:
        check_name(name, SCORES, "task of language models")
    if len(config["tasks"]) < 2:
        raise ValueError("config.tasks must have at least two of: " + ", ".join(SCORES))


def _scenes(config, workdir: Workdir) -> list[LanguageModels]:
    config = with_defaults(config, DEFAULTS)
    path = config["model"]["start"] or models.smollm2_file()
    arch = decoder_of(path)
    params, tokenize = models.import_weights(path, arch), text_tokenizer(path, arch, length=4)
    pools: dict[str, Pool] = {name: workdir.pool(name) for name in ("bases", "pool", "joint", "merged")}
    shared = {"arch": arch, "params": params, "tokenize": tokenize, "training": _training(config, arch), **pools}
    shared |= {"networks": None, "network": None, "earlier": None}
    made, network = [], digest(params)
    for seed in range(config["first_seed"], config["first_seed"] + config["seeds"]):
        tasks = {name: _READERS[name](config, name, seed) for name in config["tasks"]}
        scene = LanguageModels(config=config, workdir=workdir, seed=seed, tasks=tasks, **shared)
        check_contents(scene, {"data": digest(_contents(scene)), "network": network})
        made.append(scene)
    return made


def _training(config, arch):
    tune, apply = config["finetune"], arch.train_apply_fn(None)
    if tune["mode"] == "full":
        return Training(loss=NextToken(apply), clip_norm=tune["clip_norm"])
    loss = NextToken(lora_fn(apply, alpha=tune["alpha"]))
    return Training(loss=loss, clip_norm=tune["clip_norm"], learning_rate_rules=LORA_RULES)


def _contents(scene):
    """Return all texts as arrays of bytes, by which they are known again."""
    texts = {}
    for name, task in scene.tasks.items():
        texts[f"{name}_train"] = repr(list(task.train))
        texts |= {f"{name}_{split}": repr(list(getattr(task, split))) for split in ("held_out", "test")}
    return {name: np.frombuffer(text.encode(), np.uint8) for name, text in texts.items()}


def _instructions(config, name, seed) -> LanguageTask:
    """Read instructions to learn, and MMLU to be asked."""
    own, folder = config["tasks"][name], _folder(config)
    shots, subjects = own.get("shots", 0), tuple(own.get("subjects") or ())
    pairs = read_instructions(folder / own["train"])
    asked = [read_mmlu(folder / own["test"], split, shots=shots, subjects=subjects) for split in ("val", "test")]
    return _task(config, name, pairs, *asked, seed)


def _science(config, name, seed) -> LanguageTask:
    """Read ARC: a part of what is for training selects, and the questions of "test" report."""
    own, folder = config["tasks"][name], _folder(config)
    train = [question for file in own["train"] for question in read_arc(folder / file)]
    test = [question for file in own["test"] for question in read_arc(folder / file)]
    train, held_out = _split(train, own.get("held_out", 0.1), seed)
    return _task(config, name, _pairs(train), held_out, test, seed)


def _truthfulness(config, name, seed) -> LanguageTask:
    """Read TruthfulQA: half of its questions report, and of the others some select."""
    own, folder = config["tasks"][name], _folder(config)
    both = [read_truthful_qa(folder / own["test"], targets) for targets in ("mc1", "mc2")]
    train, test = _split(list(zip(*both, strict=True)), 0.5, seed)
    train, held_out = _split(train, own.get("held_out", 0.2), seed)
    pairs = _pairs([one for one, _ in train], PREAMBLE)
    return _task(config, name, pairs, [many for _, many in held_out], [many for _, many in test], seed)


_READERS: dict[str, Callable[..., LanguageTask]] = {
    "instructions": _instructions,
    "science": _science,
    "truthfulness": _truthfulness,
}


def _folder(config):
    return data_path(config["data_dir"])


def _pairs(questions, preamble=""):
    return [(one.context.removeprefix(preamble), f" {one.choices[one.right[0]]}") for one in questions]


def _split(items, share, seed):
    """Return the rest and a share of the items, both in an order drawn with the seed."""
    order = np.random.default_rng(seed).permutation(len(items))
    cut = len(items) - round(share * len(items))
    return [items[at] for at in order[:cut]], [items[at] for at in order[cut:]]


def _task(config, name, pairs, held_out, test, seed):
    limits, drawn = config["evaluate"], []
    for split, items in {"train": pairs, "held_out": held_out, "test": test}.items():
        order = np.random.default_rng(seed).permutation(len(items))[: limits[f"most_{split}"]]
        drawn.append([items[at] for at in order])
        if not drawn[-1]:
            raise ValueError(f"task {name!r} has nothing for {split}")
    return LanguageTask(name, *drawn, config["tasks"][name].get("score", SCORES[name]))


run = Study(check=_check, scenes=_scenes, cook=_cook, folders=("pool",), changeable=("methods", "only"))
