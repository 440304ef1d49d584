"""Merge members of different tasks into one trunk, against the members and multi-task learning: read top to bottom."""

import functools
from collections.abc import Mapping
from typing import Any

import soups
from soups import models
from soups.models.many_heads import ManyHeads, bundled, split_head, unstacked
from soups.names import check_name
from soups.progress import say
from soups.studies.named import module_of, section_of, tasks_of
from soups.studies.rows import claims_of, splits_of
from soups.studies.study import Study, Workdir, check_fields
from soups.studies.task_methods import METHODS, why_not
from soups.studies.tasks import Tasks, trunk_bytes
from soups.train import Classification, Training

LOCALIZED = METHODS["localize_and_stitch"].title
BELOW = ("uniform", "task_arithmetic", "ties", "regmean", "adamerging_per_leaf", "localize_dataless")  # of the paper
MEMBERS, JOINT, BASE = "individual members", "multi-task learning", "base with the members' heads"
FIELDS = {
    "": "study name seeds data_dir tasks model methods",
    "pretrain": "learning_rate weight_decay epochs augment_operations augment_magnitude",
    "finetune": "learning_rate weight_decay epochs batch_size clip_norm mode",
    "joint": "learning_rates batch_size",
    "examples": "few batch_size",
    "evaluate": "batch_size",
}
LEAST_CLASSES = 10  # of a head, so that tasks of digits share programs whichever they are


def check_config(config: Mapping[str, Any], fields: Mapping[str, str] = FIELDS) -> None:
    """Raise a ValueError for a field, method or setting that does not exist or is missing."""
    if not config.get("methods"):
        raise ValueError("the config has no methods: list some under config.methods, each with values for its settings")
    check_fields(config, fields)
    for name, choices in config["methods"].items():
        method = METHODS[check_name(name, METHODS, "method")]
        for setting in choices:
            check_name(setting, method.settings, f"setting of method {name}")
        needed = [setting for setting in method.settings if setting in choices or setting not in method.with_default]
        if missing := [setting for setting in needed if not choices.get(setting)]:
            raise ValueError(f"method {name} needs at least one value of: {', '.join(missing)}")
    for name in config.get("only") or ():
        check_name(name, config["methods"], "method of config.only")


def _scenes(config, workdir: Workdir) -> list[Tasks]:
    made = [tasks_of(config["tasks"], seed=seed, data_dir=config["data_dir"]) for seed in range(config["seeds"])]
    tasks = made[0][0]
    for split in ("train", "held_out"):
        bundled([getattr(task, split) for task in tasks.values()])  # refuses what cannot be trained together
    first, (reference, settings) = next(iter(tasks.values())), section_of(config["model"], "vit")
    networks = ManyHeads(
        make=functools.partial(module_of, reference, "config.model", settings, first.test.images.shape[1:]),
        num_classes=max(LEAST_CLASSES, *(len(task.class_names) for task in tasks.values())),
        image_shape=first.test.images.shape[1:],
    )
    loss = Classification(models.train_apply_fn(networks.single), networks.num_classes)
    training = Training(loss=loss, clip_norm=config["finetune"]["clip_norm"])
    pools = {name: workdir.pool(name) for name in ("bases", "pool", "joint", "merged")}
    shared = {"config": config, "workdir": workdir, "networks": networks, "training": training, **pools}
    network = models.Network.of(networks.single)
    return [
        Tasks(seed=seed, tasks=tasks, earlier=earlier, network=network, **shared)
        for seed, (tasks, earlier) in enumerate(made)
    ]


def cook(scene: Tasks) -> dict[str, Any]:
    """Return the part of the results that is of this seed."""
    say(f"\nseed {scene.seed}")

    # --- Weights: start -> probed heads -> a member for each task; all tasks together ---
    start = scene.start()
    probe = scene.probed(start)
    scene.fine_tuned(probe)
    joint = scene.jointly_trained(probe) if "joint" in scene.config else []

    # --- Rows: each stage is kept as JSON, so a finished one is not repeated ---
    rows = scene.stage("baselines", lambda: _baselines(scene, probe, joint))
    of_members = next(_test_accuracies(row, scene) for row in rows if row["name"] == MEMBERS)
    kit = scene.kit(split_head(probe)[0])
    for name, choices in scene.methods.items():
        if not why_not(METHODS[name], len(scene.tasks)):
            make = functools.partial(scene.merged_row, kit, name, choices, of_members)
            rows.append(scene.stage(f"method {name}", make, choices))
    masked = [row for row in rows if "masks" in row]
    masks = [{"seed": scene.seed, "kind": "masks", "name": row["name"], **row.pop("masks")} for row in masked]
    found = {"rows": rows, "curves": masks, "claims": _claims(scene.seed, rows)}
    return described(scene, split_head(start)[0]) | found


def _claims(seed, rows):
    """Return how far one row is above another, where the papers say that it is, and merging above joint training."""
    test = {row["name"]: row["metrics"]["test"]["accuracy"] for row in rows}
    merged = {row["name"]: row["metrics"]["held_out"]["accuracy"] for row in rows if row["kind"] == "soup"}
    pairs = [(LOCALIZED, METHODS[name].title) for name in BELOW]
    pairs += [(METHODS["localize_dataless"].title, METHODS["uniform"].title), (LOCALIZED, JOINT)]
    found = claims_of(seed, rows, pairs)
    if merged and JOINT in test:
        title = "the merge that is best on held-out data > multi-task learning"
        found.append({"seed": seed, "title": title, "value": test[max(merged, key=merged.get)] - test[JOINT]})
    return found


def _baselines(scene, probe, joint):
    base, head = split_head(probe)
    trunks, heads = scene.members()
    seconds = sum(scene.pool.record(scene.name(task))["metadata"]["seconds"] for task in scene.tasks)
    labels = sum(len(task.train) for task in scene.tasks.values())
    one = {"seconds": 0.0, "bytes": trunk_bytes(base), "labelled": labels, "unlabelled": 0}
    each = one | {"seconds": seconds, "bytes": one["bytes"] * len(scene.tasks)}
    single = scene.row(MEMBERS, "members", trunks, heads, {}, each)
    of_members, probes = _test_accuracies(single, scene), unstacked(head, scene.tasks)
    rows = [
        scene.row(BASE, "start", base, heads, of_members, one),
        scene.row(scene.of_base, "probe", base, probes, of_members, one),
        single,
    ]
    return rows + ([_joint_row(scene, joint, of_members, one)] if joint else [])


def _joint_row(scene, names, of_members, cost):
    """Return the row of the learning rate that is best on held-out data."""

    def network(name):
        trunk, head = split_head(scene.joint[name])
        return trunk, unstacked(head, scene.tasks)

    best = max(names, key=lambda name: sum(scene.accuracies(*network(name), "held_out").values()))
    record = scene.joint.record(best)["metadata"]
    cost = cost | {"seconds": record["seconds"], "search_points": len(names)}
    row = scene.row(JOINT, "joint", *network(best), of_members, cost)
    return row | {"settings": {"learning_rate": record["config"]["learning_rate"]}}


def _test_accuracies(row, scene):
    return {task: row["metrics"][task]["accuracy"] for task in scene.tasks}


def described(scene: Tasks, trunk: Any) -> dict[str, Any]:
    """Return what results tell of the splits, the tasks and the weights that are merged."""
    tasks = scene.tasks
    methods = [METHODS[name] for name in scene.methods]
    sizes = {name: (len(task.test), len(task.held_out)) for name, task in tasks.items()}
    left_out = {method.title: why_not(method, len(tasks)) for method in methods}
    return {
        "splits": splits_of(sizes, "tasks", beside=scene.other_splits),
        "reference": MEMBERS,
        "facts": {
            "Tasks": {name: scene.facts(task) for name, task in tasks.items()},
            "Trunk": {"parameters": soups.tree.count(trunk), "bytes": trunk_bytes(trunk)},
        },
        "notes": [f"Left out: {title} {reason}." for title, reason in left_out.items() if reason],
    }


run = Study(
    check=check_config,
    scenes=_scenes,
    cook=cook,
    packages=("tensorflow-datasets", "scikit-learn"),
    folders=("pool", "merged"),
    changeable=("methods",),
)
