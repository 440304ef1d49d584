"""Merge members of different tasks into one trunk, against the members and multi-task learning: read top to bottom."""

import functools
from collections.abc import Mapping
from typing import Any

import soups
from soups.experiments.finetune_and_soup import members
from soups.experiments.multi_task.data import tasks_from_digits
from soups.experiments.multi_task.members import Tasks, fine_tuned, jointly_trained, members_of, probed
from soups.experiments.multi_task.methods import METHODS, why_not
from soups.experiments.multi_task.networks import Networks, split_head, unstacked
from soups.experiments.multi_task.search import baseline_row, kit_of, method_row, test_accuracies, trunk_bytes
from soups.names import check_name
from soups.progress import say
from soups.studies.study import Study, Workdir, check_fields

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


def _scenes(config, workdir: Workdir) -> list[Tasks]:
    networks = Networks(fields=config["model"], num_classes=10, clip_norm=config["finetune"]["clip_norm"])
    return [_scene(config, seed, workdir, networks) for seed in range(config["seeds"])]


def _scene(config, seed, workdir, networks):
    tasks, pretraining = tasks_from_digits(**config["tasks"], seed=seed, data_dir=config["data_dir"])
    return Tasks(
        config=config,
        seed=seed,
        workdir=workdir,
        tasks=tasks,
        pretraining=pretraining,
        networks=networks,
        **{name: workdir.pool(name) for name in ("bases", "pool", "joint", "merged")},
    )


def _cook(scene: Tasks) -> dict[str, Any]:
    say(f"\nseed {scene.seed}")

    # --- Weights: start -> probed heads -> a member for each task; all tasks together ---
    start = scene.timed("start weights", lambda: members.start_weights(scene))
    probe = scene.timed("linear probes", lambda: probed(scene, start))
    scene.timed("members", lambda: fine_tuned(scene, probe))
    joint = scene.timed("multi-task learning", lambda: jointly_trained(scene, probe))

    # --- Rows: each stage is kept as JSON, so a finished one is not repeated ---
    rows = scene.stage("baselines", lambda: _baselines(scene, probe, joint))
    of_members = next(test_accuracies(row, scene.tasks) for row in rows if row["name"] == MEMBERS)
    kit = kit_of(scene, split_head(probe)[0])
    for name, choices in scene.config["methods"].items():
        if not why_not(METHODS[name], len(scene.tasks)):
            make = functools.partial(method_row, scene, kit, name, choices, of_members)
            rows.append(scene.stage(f"method {name}", make))
    masked = [row for row in rows if "masks" in row]
    masks = [{"seed": scene.seed, "kind": "masks", "name": row["name"], **row.pop("masks")} for row in masked]
    return _described(scene, split_head(start)[0]) | {"rows": rows, "curves": masks}


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


def _described(scene, trunk) -> dict[str, Any]:
    tasks, left_out = scene.tasks, {}
    for method in (METHODS[name] for name in scene.config["methods"]):
        left_out[method.title] = why_not(method, len(tasks))
    return {
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
    }


run = Study(
    check=check_config,
    scenes=_scenes,
    cook=_cook,
    packages=("jax", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy", "scikit-learn"),
    folders=("pool", "merged"),
)
