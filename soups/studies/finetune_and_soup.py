"""Fine-tune a pool from one start, cook soups from it, and report: the main study, read from top to bottom."""

import functools
from collections.abc import Mapping
from typing import Any

from soups.names import check_name
from soups.progress import say
from soups.studies import curves
from soups.studies.measuring import Row
from soups.studies.members import FineTuned
from soups.studies.named import check_unchanged, network_of, task_of
from soups.studies.search_space import choices
from soups.studies.study import Study, Workdir, check_fields, with_defaults
from soups.train import Classification, Training, search
from soups.train.programs import MODES

_AUGMENTED = "augment_operations? augment_magnitude?"
FIELDS = {  # a step is not taken without its section
    "": "study name seeds? first_seed? data_dir? task model",
    "finetune": "batch_size clip_norm? mode? members_per_program?",
    "pretrain?": f"learning_rate weight_decay? epochs {_AUGMENTED}",
    "probe?": "learning_rate weight_decay? epochs",
    "sweep": f"members learning_rate weight_decay? label_smoothing? mixup? epochs {_AUGMENTED}",
    "random_head?": "members",
    "sam?": "members radius",
    "trajectory?": "ema_decay swa_start",
    "greedy?": "random_orders",
    "learned?": "learning_rate epochs batch_size",
    "wise_ft?": "alphas",
    "evaluate?": "batch_size",
    "figures?": "counts plane_points plane_examples pairs_members barrier_ts",
}
DEFAULTS = {
    "seeds": 1,
    "first_seed": 0,
    "data_dir": None,
    "finetune": {"clip_norm": None, "mode": "auto", "members_per_program": 4},
    "random_head": {"members": 0},
    "greedy": {"random_orders": 0},
    "evaluate": {"batch_size": 500},
}


def sweep_members(config: Mapping[str, Any], seed: int) -> list[dict[str, Any]]:
    """Draw the hyper-parameters of all members of the section "sweep"."""
    own = {"augment_operations": search.integers, "augment_magnitude": search.uniform, "epochs": search.integers}
    return search.random(config["members"], seed, **choices(config, **own), seed=search.integers(0, 2**31 - 1))


def _check(config):
    check_fields(config, FIELDS)
    for section, least in {"sweep": 2, "random_head": 0}.items():
        members = config.get(section, {"members": least})["members"]
        if not isinstance(members, int) or members < least:
            raise ValueError(f"config.{section}.members must be a whole number, at least {least}, not {members!r}")
    check_name(config["finetune"].get("mode", "auto"), ("auto", "sequential", *MODES), "config.finetune.mode")
    sweep_members(config["sweep"], 0)  # refuses what cannot be drawn


def _scenes(config, workdir: Workdir) -> list[FineTuned]:
    config, scenes = with_defaults(config, DEFAULTS), []
    for seed in range(config["first_seed"], config["first_seed"] + config["seeds"]):
        task, earlier = task_of(config["task"], seed=seed, data_dir=config["data_dir"])
        if "pretrain" in config and earlier is None:
            raise ValueError("the task has no images to pre-train on: leave out the section config.pretrain")
        if not scenes:  # all seeds share their programs
            first = task
            network = network_of(config["model"], task, probed="probe" in config)
            loss = Classification(network.trained, len(task.class_names))
            training = Training(loss=loss, clip_norm=config["finetune"]["clip_norm"])
        elif (task.class_names, task.test.images.shape[1:]) != (first.class_names, first.test.images.shape[1:]):
            raise ValueError(f"the task of seed {seed} has other classes or sizes of images than that of the first")
        pools = {"pool": workdir.pool("pool"), "bases": workdir.pool("bases"), "results": workdir.pool("soups")}
        shared = {"config": config, "workdir": workdir, "network": network, "training": training, **pools}
        scenes.append(FineTuned(seed=seed, task=task, earlier=earlier, **shared))
        check_unchanged(scenes[-1], network, task, earlier)
    return scenes


def _cook(scene: FineTuned) -> Mapping[str, Any]:
    say(f"\nseed {scene.seed}")
    config = scene.config

    # --- Weights: start -> linear probe -> sweep of fine-tunes ---
    start = scene.start(scene.task.train)
    probe = scene.probe(start) if "probe" in config else start
    drawn = sweep_members(config["sweep"], scene.seed)
    names, beside = scene.fill("member", probe, drawn, "sweep"), {}
    if some := drawn[: config["random_head"]["members"]]:
        unprobed = scene.fill("unprobed", scene.unprobed(start), some, "members from a random head", base="unprobed")
        beside["random head"] = unprobed, 1
    if "sam" in config:
        flat = [one | {"sam_radius": config["sam"]["radius"]} for one in drawn[: config["sam"]["members"]]]
        # every step of SAM has one more forward and backward pass
        beside["SAM"] = scene.fill("sam", probe, flat, "SAM members", sam=True), 2
    kitchen = scene.kitchen(names)
    if len(kitchen.names) < 2:
        raise ValueError(
            f"only {len(kitchen.names)} of {len(names)} members are finite: lower the learning rates of the sweep"
        )

    # --- Rows: each stage is kept as JSON, so a finished one is not repeated ---
    rows = scene.stage("members", lambda: kitchen.start_rows(start, probe) + kitchen.single_rows())
    best = kitchen.best()
    orders, learned = config["greedy"]["random_orders"], config.get("learned")
    made, histories = scene.stage("soups", lambda: kitchen.soup_rows(orders, learned))
    rows += made
    if "wise_ft" in config:
        alphas = config["wise_ft"]["alphas"]
        rows += scene.stage("WiSE-FT", lambda: kitchen.path_rows(probe, alphas, called=scene.base))
    if "trajectory" in config:
        rows += scene.trajectory_rows(kitchen, probe)
    for title, (others, passes) in beside.items():
        make = functools.partial(_beside_rows, scene, best, title, others, passes)
        rows += scene.stage(f"{title} soups", make, {"members": others})
    ensembles, histories["greedy ensemble"] = scene.stage("ensembles", kitchen.ensemble_rows)
    rows += [*ensembles, scene.distilled_row(kitchen, probe)]

    # --- What the figures show ---
    planes, pairs = [], []
    if "figures" in config:
        rows += scene.figure("curve", ["counts"], lambda counts: curves.number_of_models(kitchen, counts))
        fields = ["plane_points", "plane_examples"]
        planes = [scene.figure("plane", fields, lambda *sizes: curves.loss_plane(kitchen, probe, *sizes))]
        fields = ["pairs_members", "plane_examples", "barrier_ts"]
        pairs = scene.figure("pairs", fields, lambda *sizes: curves.pairs(kitchen, probe, *sizes))
    bins = scene.stage("reliability", lambda: curves.reliability_diagrams(kitchen, kitchen.shown()))
    described = {"splits": kitchen.described_splits, "members": kitchen.described_members}
    return described | {"rows": rows, "pairs": pairs, "curves": [*planes, *bins], "histories": histories}


def _beside_rows(scene: FineTuned, best: str, title: str, names: list[str], passes: int) -> list[Row]:
    """Cook from members that are made otherwise, whose steps are so many forward and backward passes."""
    kitchen = scene.kitchen(names, reference=scene.pool[best])
    if not kitchen.names:
        return []
    epochs = sum(scene.hyperparameters(name)["epochs"] for name in kitchen.names)
    training = int(3 * epochs * passes * len(scene.task.train))
    single = [row | {"cost": row["cost"] | {"training": training}} for row in kitchen.single_rows()[:2]]
    return [
        *(row | {"name": f"{title} {row['name']}"} for row in single),
        kitchen.uniform_row(f"{title} uniform soup", training),
        kitchen.greedy_row(f"{title} greedy soup", training=training)[0],
        *kitchen.member_rows.values(),
    ]


run = Study(
    check=_check,
    scenes=_scenes,
    cook=_cook,
    packages=("tensorflow-datasets", "grain"),
    folders=("pool", "soups"),
    changeable=("random_head", "figures"),
)
