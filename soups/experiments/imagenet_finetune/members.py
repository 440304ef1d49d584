"""Make the members: the weights with their first head, then one group of fine-tunings after the other."""

import functools
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax

from soups import tree
from soups.data.batches import loader
from soups.data.transforms import center_crop, compose, resize_shorter, to_channels
from soups.experiments.imagenet_finetune.search import augmentation
from soups.experiments.imagenet_finetune.setting import Setting
from soups.pool import digest
from soups.processes import on_first_process
from soups.progress import progress, say
from soups.train.lanes import Lanes, groups_of, take_lane
from soups.train.loop import losses_path, num_steps, prepared, run
from soups.train.probe import extract_features, probe_on_features, with_head
from soups.train.trajectory import averages

FIRST = "member_00"  # the head alone was trained, or none at all: what all others start from


def first_member(setting: Setting) -> tree.Tree:
    """Return the weights that all members start from, with a linear probe as their head unless there is to be none."""
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
    """Fine-tune the members, as many side by side as the mesh's axis "pool" is long, and give their names."""
    radius = setting.config["finetune"]["sam_radius"]
    drawn = [one | {"sam_radius": radius} for one in drawn] if radius else drawn
    members = {f"member_{number:02d}": one for number, one in enumerate(drawn, 1)}
    steps = {name: _num_steps(setting, one) for name, one in members.items()}
    lanes = Lanes(setting.training, first, mesh=setting.mesh, shardings=setting.shardings(first))
    for group in groups_of(steps, setting.mesh.shape["pool"]):
        directory = setting.workdir.path / "training" / group[0]
        if any(name not in setting.pool for name in group):
            _fine_tune(setting, first, {name: members[name] for name in group}, directory, lanes)
        on_first_process(lambda directory=directory: shutil.rmtree(directory, ignore_errors=True))
    return list(members)


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


def _fine_tune(setting, first, group, directory, lanes):
    """Fine-tune a group of members and add them to the pools."""
    config = setting.config["finetune"]
    numbers = {name: _numbers(setting, one) for name, one in group.items()}
    total = max(one["num_steps"] for one in numbers.values())
    data, numbers = prepared(
        setting.training, first, lambda name, *part: _batches(setting, lanes, group[name], *part), numbers, None
    )
    what = ", ".join(f"{name} ({one['augmentation']})" for name, one in group.items())
    with progress(what, total, "steps") as advance:
        state, _ = run(
            lanes,
            first,
            numbers,
            data,
            directory=directory,
            save_every=config["save_every"],
            on_step=_every(max(1, total // 100), advance),
        )
    on_first_process(lambda: _keep_losses(setting, group, directory))
    kept = _kinds(state, decays=setting.training.ema_decays)
    for lane, (name, hyperparameters) in enumerate(group.items()):
        _keep(setting, name, hyperparameters, lambda kind, lane=lane: take_lane(kept[kind], lane))


def _numbers(setting, hyperparameters):
    steps, warmup = _num_steps(setting, hyperparameters), setting.config["finetune"]["warmup_steps"]
    numbers = {key: value for key, value in hyperparameters.items() if key != "augmentation"}
    return numbers | {"num_steps": steps, "warmup_steps": min(warmup, steps // 2)}


def _num_steps(setting, hyperparameters):
    return num_steps(hyperparameters, len(setting.train), setting.config["finetune"]["batch_size"])


def _batches(setting, lanes, hyperparameters, index, count):
    """Load one of `count` parts of a member's batches; the members on this host share its workers."""
    config, members_here = setting.config["finetune"], len(lanes.shares)
    return loader(
        setting.train,
        config["batch_size"],
        seed=hyperparameters["seed"],
        transform=to_channels(3),
        random_transform=augmentation(hyperparameters["augmentation"], setting.arch.image_size),
        process_index=index,
        process_count=count,
        num_threads=config["num_threads"],
        num_workers=-(-config["num_workers"] // members_here),
    )


@functools.partial(jax.jit, static_argnames="decays")
def _kinds(state, decays):
    """Return the weights of all lanes under "", and their averages under their names."""
    params = state["params"]
    return {"": params} | {kind: tree.cast_like(kept, params) for kind, kept in averages(state, decays).items()}


def _keep(setting, name, hyperparameters: Mapping[str, Any], take: Callable):
    """Keep a member's averages, then itself: where that is in its pool, all of them are."""
    metadata, shown = {"arch": setting.arch.name, "hparams": dict(hyperparameters)}, []
    for kind, pool in setting.averages.items():
        shown.append(f"{kind} {_add(setting, pool, name, take, metadata | {'average': kind})}")
    say(", ".join([f"{name}: held-out {_add(setting, setting.pool, name, take, metadata)}", *shown]))


def _add(setting, pool, name, take, metadata):
    """Add weights to a pool, if they are not there, and say how good they are."""
    if name not in pool:
        params = take(metadata.get("average", ""))
        metrics = {"held_out": setting.held_out_accuracy(params)} if tree.all_finite(params) else {}
        pool.add(name, params, metadata, metrics=metrics, base=pool.digest(FIRST))
    found = pool.metrics(name)
    return f"{100 * found['held_out']:.2f} %" if found else "diverged, and no soup will take it"


def _keep_losses(setting, names, directory):
    losses = setting.workdir.path / "losses"
    losses.mkdir(exist_ok=True)
    for name in names:
        shutil.copy(losses_path(directory, name), losses / f"{name}.jsonl")


def _every(steps, advance):
    """Return an `on_step` that reports once in so many steps, and at once where the run begins or goes on."""
    done = 0

    def on_step(index, losses):
        nonlocal done
        if not done or index + 1 >= done + steps:
            advance(index + 1 - done)
            done = index + 1

    return on_step
