"""Make the members: the weights with their first head, then one fine-tuning after the other."""

import shutil
from collections.abc import Mapping
from typing import Any

import jax

from soups import tree
from soups.data.batches import loader
from soups.data.transforms import center_crop, compose, resize_shorter, to_channels
from soups.experiments.imagenet_finetune.search import augmentation
from soups.experiments.imagenet_finetune.setting import Setting
from soups.experiments.progress import progress, say
from soups.finetune.loop import num_steps
from soups.finetune.probe import extract_features, probe_on_features
from soups.finetune.resumable import finetune_resumable
from soups.pool import digest

FIRST = "member_00"  # the head alone was trained, or none at all: what all others start from


def first_member(setting: Setting) -> tree.Tree:
    """Give the weights that all members start from, with a linear probe as their head unless there is to be none."""
    if FIRST not in setting.pool:
        strengths, params, info = setting.config["probe"]["strengths"], setting.start, "start weights as they came"
        if strengths:
            params, info = _probed(setting, setting.start, strengths), "linear probe on the start weights"
        metadata = {"arch": setting.arch.name, "hparams": {"info": info}, "start": setting.config["start"]}
        setting.pool.add(FIRST, params, metadata, metrics={"held_out": setting.held_out_accuracy(params)})
    return setting.pool[FIRST]


def fine_tuned(setting: Setting, first: tree.Tree, drawn: list[dict[str, Any]]) -> list[str]:
    """Fine-tune the members one after the other on all devices, and give their names."""
    names = [f"member_{number:02d}" for number in range(1, len(drawn) + 1)]
    for name, hyperparameters in zip(names, drawn, strict=True):
        if name not in setting.pool:
            _fine_tune(setting, name, first, hyperparameters)
        shutil.rmtree(_directory(setting, name), ignore_errors=True)
    return names


def with_head(params: tree.Tree, place: str, head: tree.Tree | None) -> tree.Tree:
    """Replace the head, which is at a place such as "params/head"; None takes it out."""
    outer, _, inner = place.partition("/")
    rest = {name: part for name, part in params.items() if name != outer}
    new = with_head(params[outer], inner, head) if inner else head
    return rest if new is None else rest | {outer: new}


def _probed(setting, params, strengths):
    say("linear probe")
    trunk = with_head(params, setting.arch.head, None)
    apply_fn, config = setting.arch.apply_fn(None), setting.config["probe"]
    size = setting.arch.image_size
    transform = compose(resize_shorter(size), center_crop(size), to_channels(3))
    of_data = {"train": (setting.train, setting.train.stamp()), "held_out": (setting.held_out, setting.held_out.digest)}
    found = {
        name: extract_features(
            apply_fn,
            trunk,
            data,
            transform=transform,
            batch_size=setting.config["evaluate"]["batch_size"],
            mesh=setting.mesh,
            cache=setting.features,
            key=(name, digest(trunk), key),
        )
        for name, (data, key) in of_data.items()
    }
    head = probe_on_features(
        found["train"],
        setting.train.labels,
        num_classes=setting.num_classes,
        strengths=strengths,
        held_out=(found["held_out"], setting.held_out.labels),
        max_iterations=config["max_iterations"],
        mesh=setting.mesh,
        on_strength=lambda row: say(f"linear probe, C = {row['strength']:g}: held-out {100 * row['accuracy']:.2f} %"),
    )
    return with_head(params, setting.arch.head, head)


def _fine_tune(setting, name, first, hyperparameters):
    config = setting.config["finetune"]
    steps = num_steps(hyperparameters, len(setting.train), config["batch_size"])
    numbers = {key: value for key, value in hyperparameters.items() if key != "augmentation"}
    numbers |= {"num_steps": steps, "warmup_steps": min(config["warmup_steps"], steps // 2)}
    with progress(f"{name} ({hyperparameters['augmentation']})", steps, "steps") as advance:
        shown = _every(max(1, steps // 100), advance)
        state = finetune_resumable(
            setting.training,
            first,
            lambda seed: _batches(setting, seed, hyperparameters["augmentation"]),
            numbers,
            _directory(setting, name),
            save_every=config["save_every"],
            mesh=setting.mesh,
            shardings=setting.shardings(first),
            on_step=shown,
        )
    _keep(setting, name, state["params"], hyperparameters)


def _batches(setting, seed, policy):
    config = setting.config["finetune"]
    return loader(
        setting.train,
        config["batch_size"],
        seed=seed,
        transform=to_channels(3),
        random_transform=augmentation(policy, setting.arch.image_size),
        num_threads=config["num_threads"],
        num_workers=config["num_workers"],
    )


def _keep(setting, name, params, hyperparameters: Mapping[str, Any]):
    metadata = {"arch": setting.arch.name, "hparams": dict(hyperparameters)}
    finite = tree.all_finite(params)
    metrics = {"held_out": setting.held_out_accuracy(params)} if finite else {}
    losses = setting.workdir.path / "losses"
    losses.mkdir(exist_ok=True)
    shutil.copy(_directory(setting, name) / "losses.jsonl", losses / f"{name}.jsonl")
    # whole arrays: where they were sharded is of no use to those who read the pool
    setting.pool.add(name, jax.device_get(params), metadata, metrics=metrics, base=setting.pool.digest(FIRST))
    shown = f"held-out {100 * metrics['held_out']:.2f} %" if finite else "diverged, and no soup will take it"
    say(f"{name}: {shown}")


def _directory(setting, name):
    return setting.workdir.path / "training" / name


def _every(steps, advance):
    """Give an `on_step` that reports once in so many steps."""
    waiting = 0

    def on_step(index, loss):
        nonlocal waiting
        waiting += 1
        if waiting == steps:
            advance(steps)
            waiting = 0

    return on_step
