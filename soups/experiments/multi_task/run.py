"""Merge members of different tasks into one trunk, against the members and multi-task learning: read top to bottom."""

import functools
import os
from collections.abc import Mapping
from typing import Any

import soups
from soups.experiments.finetune_and_soup import members
from soups.experiments.multi_task.data import tasks_from_digits
from soups.experiments.multi_task.members import Scene, fine_tuned, jointly_trained, members_of, probed
from soups.experiments.multi_task.methods import METHODS, why_not
from soups.experiments.multi_task.networks import Networks, split_head, unstacked
from soups.experiments.multi_task.search import baseline_row, kit_of, method_row, test_accuracies, trunk_bytes
from soups.experiments.workdir import Workdir, check_fields, one_at_a_time
from soups.names import check_name
from soups.pool import Pool
from soups.progress import say

MEMBERS, JOINT, BASE = "individual members", "multi-task learning", "base with the members' heads"
FIELDS = {
    "": ("study", "name", "seeds", "data_dir"),
    "tasks": ("names", "image_size", "num_train", "num_held_out", "num_test", "num_pretraining"),
    "model": ("patch_size", "width", "depth", "mlp_dim", "num_heads", "pool_type"),
    "pretrain": ("learning_rate", "weight_decay", "epochs", "augment_operations", "augment_magnitude"),
    "finetune": ("learning_rate", "weight_decay", "epochs", "batch_size", "clip_norm", "mode"),
    "joint": ("learning_rates", "batch_size"),
    "examples": ("few", "batch_size"),
    "evaluate": ("batch_size",),
}


@one_at_a_time
def run(config: Mapping[str, Any], directory: str | os.PathLike) -> list[str]:
    """Run the whole experiment in `directory`, or what of it is not finished there, and give the paths it wrote.

    Raises:
        ValueError: a directory made with another config; an unknown field, task, method or setting; fewer than two
            tasks; more images than there are.
        OSError: the directory cannot be written, another run works there, or the disk is full.
    """
    check_config(config)
    workdir = Workdir(directory, config)
    networks = Networks(fields=config["model"], num_classes=10, clip_norm=config["finetune"]["clip_norm"])
    scenes = [_scene(config, seed, workdir, networks) for seed in range(config["seeds"])]  # checks before long work
    outcomes = {scene.seed: _one_seed(scene) for scene in scenes}
    return workdir.finish(_results(config, workdir, scenes, outcomes), "pool", "merged")


def check_config(config: Mapping[str, Any]) -> None:
    """Raise a ValueError for a field, method or setting that does not exist or is missing."""
    check_fields({name: value for name, value in config.items() if name != "methods"}, FIELDS)
    if not config.get("methods"):
        raise ValueError("the config has no methods: list some under config.methods, each with values of its settings")
    for name, choices in config["methods"].items():
        method = METHODS[check_name(name, METHODS, "method")]
        for setting in choices:
            check_name(setting, method.settings, f"setting of method {name}")
        needed = [setting for setting in method.settings if setting in choices or setting not in method.with_default]
        if missing := [setting for setting in needed if not choices.get(setting)]:
            raise ValueError(f"method {name} needs at least one value of: {', '.join(missing)}")


def _scene(config, seed, workdir, networks) -> Scene:
    tasks, pretraining = tasks_from_digits(**config["tasks"], seed=seed, data_dir=config["data_dir"])
    pools = {name: Pool(workdir.path / name) for name in ("bases", "pool", "joint", "merged")}
    for pool in pools.values():
        pool.sweep_orphans()  # what a killed run left half-written
    return Scene(
        config=config,
        seed=seed,
        workdir=workdir,
        tasks=tasks,
        pretraining={"train": pretraining},
        networks=networks,
        **pools,
    )


def _one_seed(scene: Scene) -> list[dict[str, Any]]:
    say(f"\nseed {scene.seed}")

    # --- Weights: start -> probed heads -> a member for each task; all tasks together ---
    start = _timed(scene, "start weights", lambda: members.start_weights(scene))
    probe = _timed(scene, "linear probes", lambda: probed(scene, start))
    _timed(scene, "members", lambda: fine_tuned(scene, probe))
    joint = _timed(scene, "multi-task learning", lambda: jointly_trained(scene, probe))

    # --- Rows: each stage is kept as JSON, so a finished one is not repeated ---
    rows = _stage(scene, "baselines", lambda: _baselines(scene, probe, joint))
    of_members = next(test_accuracies(row, scene.tasks) for row in rows if row["name"] == MEMBERS)
    kit = kit_of(scene, split_head(probe)[0])
    for name, choices in scene.config["methods"].items():
        if not why_not(METHODS[name], len(scene.tasks)):
            make = functools.partial(method_row, scene, kit, name, choices, of_members)
            rows.append(_stage(scene, f"method {name}", make))
    return rows


def _baselines(scene, probe, joint):
    base, head = split_head(probe)
    trunks, heads = members_of(scene)
    seconds = sum(scene.pool.record(scene.name(task))["metadata"]["seconds"] for task in scene.tasks)
    size, labels = trunk_bytes(base), len(scene.tasks) * scene.config["tasks"]["num_train"]
    one = {"seconds": 0.0, "bytes": size, "labelled": labels, "unlabelled": 0}
    all_together = one | {"seconds": seconds, "bytes": size * len(scene.tasks)}
    single = baseline_row(scene, MEMBERS, "members", trunks, heads, {}, **all_together)
    of_members, probes = test_accuracies(single, scene.tasks), unstacked(head, scene.tasks)
    return [
        baseline_row(scene, BASE, "start", base, heads, of_members, **one),
        baseline_row(scene, "linear probes of the base", "probe", base, probes, of_members, **one),
        single,
        _joint_row(scene, joint, of_members, one),
    ]


def _joint_row(scene, names, of_members, cost):
    """Return the row of the learning rate that is best on held-out data."""

    def network(name):
        trunk, head = split_head(scene.joint[name])
        return trunk, unstacked(head, scene.tasks)

    best = max(names, key=lambda name: sum(scene.accuracies(*network(name), "held_out").values()))
    record = scene.joint.record(best)["metadata"]
    cost = cost | {"seconds": record["seconds"], "search_points": len(names)}
    row = baseline_row(scene, JOINT, "joint", *network(best), of_members, **cost)
    return row | {"settings": {"learning_rate": record["config"]["learning_rate"]}}


def _stage(scene, name, compute):
    return scene.workdir.stage(scene.name(name.replace(" ", "_")), compute)


def _timed(scene, name, make):
    return scene.workdir.timed(scene.name(name.replace(" ", "_")), make)


def _results(config, workdir, scenes, outcomes) -> dict[str, Any]:
    tasks, rows = scenes[0].tasks, [row for rows in outcomes.values() for row in rows]
    left_out = {METHODS[name].title: why_not(METHODS[name], len(tasks)) for name in config["methods"]}
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy", "scikit-learn")
    trunk, _ = split_head(scenes[0].bases[scenes[0].name("start")])
    return {
        **workdir.head(config, packages),
        "seeds": [scene.seed for scene in scenes],
        "splits": {
            "test": {"role": "test", "mean_of": list(tasks), "title": "mean of tasks"},
            "held_out": {"role": "held_out", "mean_of": [f"{name}, held-out" for name in tasks]},
            **{name: {"role": "test", "examples": len(task.test)} for name, task in tasks.items()},
            **{f"{n}, held-out": {"role": "held_out", "examples": len(task.held_out)} for n, task in tasks.items()},
        },
        "reference": MEMBERS,
        "facts": {
            "Tasks": {n: {"classes": list(task.class_names), "train": len(task.train)} for n, task in tasks.items()},
            "Trunk": {"parameters": soups.tree.count(trunk), "bytes": trunk_bytes(trunk)},
        },
        "notes": [f"Left out: {title} {reason}." for title, reason in left_out.items() if reason],
        "rows": [{key: value for key, value in row.items() if key != "masks"} for row in rows],
        "curves": [_masks(row) for row in rows if "masks" in row],
        "timings": {str(scene.seed): workdir.seconds(scene.name("")) for scene in scenes},
    }


def _masks(row):
    return {"seed": row["seed"], "kind": "masks", "name": row["name"], **row["masks"]}
