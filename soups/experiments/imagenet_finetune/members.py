"""Make the members: the weights with their first head, then one fine-tuning after the other."""

import functools
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from soups import tree
from soups.data.batches import loader
from soups.data.transforms import center_crop, compose, resize_shorter, to_channels
from soups.experiments.imagenet_finetune.search import augmentation
from soups.experiments.imagenet_finetune.setting import Setting
from soups.experiments.progress import progress, say
from soups.finetune.loop import num_steps
from soups.finetune.probe import extract_features, probe_on_features
from soups.finetune.resumable import finetune_resumable, shared_step
from soups.finetune.trajectory import averages
from soups.pool import digest
from soups.processes import on_first_process

FIRST = "member_00"  # the head alone was trained, or none at all: what all others start from


def first_member(setting: Setting) -> tree.Tree:
    """Give the weights that all members start from, with a linear probe as their head unless there is to be none."""
    if FIRST not in setting.pool:
        strengths, params, info = setting.config["probe"]["strengths"], setting.start, "start weights as they came"
        if strengths:
            params, info = _probed(setting, setting.start, strengths), "linear probe on the start weights"
        metadata = {"arch": setting.arch.name, "hparams": {"info": info}, "start": setting.config["start"]}
        setting.pool.add(FIRST, params, metadata, metrics={"held_out": setting.held_out_accuracy(params)})
    first, record = setting.pool[FIRST], setting.pool.record(FIRST)
    for pool in setting.averages.values():
        if FIRST not in pool:
            pool.add(FIRST, first, record["metadata"], metrics=record["metrics"])
    return first


def fine_tuned(setting: Setting, first: tree.Tree, drawn: list[dict[str, Any]]) -> list[str]:
    """Fine-tune the members one after the other on all devices, and give their names."""
    names = [f"member_{number:02d}" for number in range(1, len(drawn) + 1)]
    radius = setting.config["finetune"]["sam_radius"]
    drawn = [one | {"sam_radius": radius} for one in drawn] if radius else drawn
    placed = {"mesh": setting.mesh, "shardings": setting.shardings(first)}
    placed["step"] = shared_step(setting.training, first, **placed)
    for name, hyperparameters in zip(names, drawn, strict=True):
        if name not in setting.pool:
            _fine_tune(setting, name, first, hyperparameters, placed)
        directory = _directory(setting, name)
        on_first_process(lambda directory=directory: shutil.rmtree(directory, ignore_errors=True))
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


def _fine_tune(setting, name, first, hyperparameters, placed):
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
            on_step=shown,
            **placed,
        )
    _keep(setting, name, state, hyperparameters)


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


def _keep(setting, name, state, hyperparameters: Mapping[str, Any]):
    """Keep the averages, then the member itself: where that is in its pool, all of them are."""
    metadata = {"arch": setting.arch.name, "hparams": dict(hyperparameters)}
    on_first_process(lambda: _keep_losses(setting, name))
    kept, shown = jax.jit(functools.partial(averages, decays=setting.training.ema_decays))(state), []
    for kind, pool in setting.averages.items():
        params = tree.cast_like(kept[kind], state["params"])
        shown.append(f"{kind} {_add(setting, pool, name, params, metadata | {'average': kind})}")
    say(", ".join([f"{name}: held-out {_add(setting, setting.pool, name, state['params'], metadata)}", *shown]))


def _add(setting, pool, name, params, metadata):
    """Add weights to a pool, if they are not there, and say how good they are."""
    if name not in pool:
        # whole arrays: where they were sharded is of no use to those who read the pool
        params = _on_host(setting, params)
        metrics = {"held_out": setting.held_out_accuracy(params)} if tree.all_finite(params) else {}
        pool.add(name, params, metadata, metrics=metrics, base=pool.digest(FIRST))
    found = pool.metrics(name)
    return f"{100 * found['held_out']:.2f} %" if found else "diverged, and no soup will take it"


def _on_host(setting, params):
    if setting.mesh is None:
        return jax.device_get(params)
    everywhere = NamedSharding(setting.mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: np.asarray(jax.device_put(leaf, everywhere)), params)


def _keep_losses(setting, name):
    losses = setting.workdir.path / "losses"
    losses.mkdir(exist_ok=True)
    shutil.copy(_directory(setting, name) / "losses.jsonl", losses / f"{name}.jsonl")


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
