"""Make the members: the weights with their first head, then one group of fine-tunings after the other."""

from typing import Any

import numpy as np

from soups import state, tree
from soups.data.batches import loader
from soups.data.transforms import center_crop, compose, resize_shorter, to_channels
from soups.experiments.imagenet_finetune.search import augmentation as augmented
from soups.experiments.imagenet_finetune.setting import Setting
from soups.files import replace_file
from soups.pool import digest
from soups.processes import on_first_process
from soups.progress import say
from soups.train import sweep
from soups.train.lanes import lane_shares
from soups.train.loop import num_steps
from soups.train.probe import extract_features, probe_on_features, with_head

FIRST = "member_00"  # the head alone was trained, or none at all: what all others start from


def first_member(setting: Setting) -> tree.Tree:
    """Return the weights that all members start from, with a linear probe as their head unless there is to be none."""
    if FIRST not in setting.pool:
        strengths, params, info = setting.config["probe"]["strengths"], setting.start, "start weights as they came"
        if strengths:
            params, info = _probed(setting, setting.start, strengths), "linear probe on the start weights"
        metadata = {"arch": setting.arch.name, "config": {"info": info}, "start": setting.config["start"]}
        setting.pool.add(FIRST, params, metadata, metrics={"held_out": setting.held_out_accuracy(params)})
    first, record = setting.pool[FIRST], setting.pool.record(FIRST)
    for pool in setting.averages.values():
        if FIRST not in pool:
            pool.add(FIRST, first, record["metadata"], metrics=record["metrics"])
    return first


def fine_tuned(setting: Setting, first: tree.Tree, drawn: list[dict[str, Any]]) -> list[str]:
    """Fine-tune the members, as many side by side as the mesh's axis "pool" is long, and give their names."""
    names = [f"member_{number:02d}" for number in range(1, len(drawn) + 1)]
    if not names:  # the probe alone was asked for
        return names
    sweep(
        setting.training,
        first,
        _Batches(setting),
        [one | _numbers(setting, one) for one in drawn],
        setting.pool,
        names=names,
        base=setting.pool.digest(FIRST),
        metadata={"arch": setting.arch.name},
        mesh=setting.mesh,
        shardings=setting.shardings(first),
        save_every=setting.config["finetune"]["save_every"],
        averages=setting.averages,
        evaluate=lambda params: {"held_out": setting.held_out_accuracy(params)},
        on_member=lambda name, result: on_first_process(lambda: _keep_losses(setting, name, result["losses"])),
        what="fine-tuning",
    )
    return names


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
            mesh=setting.flat_mesh,
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
        mesh=setting.flat_mesh,
        journal=setting.workdir.path / "journals" / "linear_probe.jsonl",
        on_strength=lambda row: say(f"linear probe, C = {row['strength']:g}: held-out {100 * row['accuracy']:.2f} %"),
    )
    return with_head(params, setting.arch.head, head)


def _numbers(setting, hyperparameters):
    """Return the hyper-parameters that follow from the size of the data and the config."""
    config = setting.config["finetune"]
    steps = num_steps(hyperparameters, len(setting.train), config["batch_size"])
    sharpness = {"sam_radius": config["sam_radius"]} if config["sam_radius"] else {}
    return {"num_steps": steps, "warmup_steps": min(config["warmup_steps"], steps // 2)} | sharpness


class _Batches:
    """Load one of `count` parts of a member's batches; the members on this host share its workers."""

    def __init__(self, setting):
        self._setting, self._members_here = setting, len(lane_shares(setting.mesh))

    def __call__(self, index, count, seed, augmentation):
        setting, config = self._setting, self._setting.config["finetune"]
        return loader(
            setting.train,
            config["batch_size"],
            seed=seed,
            transform=to_channels(3),
            random_transform=augmented(augmentation, setting.arch.image_size),
            process_index=index,
            process_count=count,
            num_threads=config["num_threads"],
            num_workers=-(-config["num_workers"] // self._members_here),
        )


def _keep_losses(setting, name, losses):
    lines = ({"step": step, "loss": float(loss) if np.isfinite(loss) else None} for step, loss in enumerate(losses))
    path = setting.workdir.path / "losses" / f"{name}.jsonl"
    path.parent.mkdir(exist_ok=True)
    replace_file(path, b"".join(map(state.sealed_line, lines)))
