"""Fine-tune a pool from one start, cook soups from it, and report: the main experiment, read from top to bottom."""

from collections.abc import Mapping
from typing import Any

import jax

from soups.experiments.finetune_and_soup import cooking, members
from soups.experiments.finetune_and_soup.setting import Setting
from soups.experiments.named import contents, network_of, task_of
from soups.progress import say
from soups.studies import curves
from soups.studies.measuring import best_of
from soups.studies.study import Study, Workdir, check_fields

FIELDS = {
    "": ("study", "name", "seeds", "data_dir", "task", "model"),
    "finetune": ("batch_size", "clip_norm", "mode", "members_per_program"),
    "pretrain": ("learning_rate", "weight_decay", "epochs", "augment_operations", "augment_magnitude"),
    "probe": ("learning_rate", "weight_decay", "epochs"),
    "sweep": (
        "members",
        "learning_rate",
        "weight_decay",
        "label_smoothing",
        "mixup",
        "augment_operations",
        "augment_magnitude",
        "epochs",
    ),
    "sam": ("members", "radius"),
    "trajectory": ("ema_decay", "swa_start"),
    "greedy": ("random_orders",),
    "learned": ("learning_rate", "epochs", "batch_size"),
    "wise_ft": ("alphas",),
    "evaluate": ("batch_size",),
    "figures": ("counts", "plane_points", "plane_examples", "pairs_members", "barrier_ts"),
}
STEPS = ("pretrain", "probe", "sam", "trajectory", "learned", "wise_ft", "figures")  # not taken without their section
DEFAULTS = {
    "seeds": 1,
    "data_dir": None,
    "finetune": {"clip_norm": None, "mode": "auto", "members_per_program": 4},
    "greedy": {"random_orders": 0},
    "evaluate": {"batch_size": 500},
}
# what the trainer has a default for
_TRAINING = ("weight_decay", "label_smoothing", "mixup", "augment_operations", "augment_magnitude")
_OPTIONAL = (
    *STEPS,
    *DEFAULTS.keys() - {"finetune"},
    *(f"finetune.{name}" for name in DEFAULTS["finetune"]),
    *(f"{section}.{name}" for section in ("pretrain", "probe", "sweep") for name in _TRAINING),
)


def _check(config):
    check_fields(config, FIELDS, _OPTIONAL)
    if not isinstance(config["sweep"]["members"], int) or config["sweep"]["members"] < 2:
        raise ValueError(f"config.sweep.members must be a whole number, at least 2, not {config['sweep']['members']!r}")
    members.sweep_members(config["sweep"], 0)  # refuses what cannot be drawn


def _scenes(config, workdir: Workdir) -> list[Setting]:
    sections = {name: default | config.get(name, {}) for name, default in DEFAULTS.items() if isinstance(default, dict)}
    config = DEFAULTS | config | sections
    settings = [_setting(config, seed, workdir) for seed in range(config["seeds"])]
    for setting in settings:
        _check_contents(setting)
    return settings


def _setting(config, seed, workdir) -> Setting:
    task, pretraining = task_of(config["task"], seed=seed, data_dir=config["data_dir"])
    if "pretrain" in config and pretraining is None:
        raise ValueError("the task has no images to pre-train on: leave the section config.pretrain out")
    network = network_of(config["model"], task, probed="probe" in config)
    devices = jax.devices()
    sharded = config["finetune"]["mode"] == "sharded" or (config["finetune"]["mode"] == "auto" and len(devices) > 1)
    auto = (jax.sharding.AxisType.Auto,) * 2
    return Setting(
        config=config,
        seed=seed,
        workdir=workdir,
        task=task,
        pretraining=pretraining,
        network=network,
        mesh=jax.make_mesh((len(devices), 1), ("pool", "data"), axis_types=auto) if sharded else None,
        pool=workdir.pool("pool"),
        bases=workdir.pool("bases"),
        results=workdir.pool("soups"),
    )


def _check_contents(setting: Setting) -> None:
    """Refuse to go on with what was made of other data, or by another network, of the same name."""
    here = contents(setting.task, setting.pretraining, setting.network)
    there = setting.stage("contents", lambda: here)
    words = {"data": "other data", "network": "another network"}
    if changed := [words[name] for name in here if here[name] != there[name]]:
        raise ValueError(
            f"the workdir {setting.workdir.path} was made with {' and '.join(changed)} of the same name: use another "
            "--workdir, or remove this one"
        )


def _cook(setting: Setting) -> Mapping[str, Any]:
    say(f"\nseed {setting.seed}")
    asked, called = setting.config.__contains__, setting.base

    # --- Weights: start -> linear probe -> sweep of fine-tunes ---
    start = setting.timed("start weights", lambda: members.start_weights(setting))
    probe = setting.timed("linear probe", lambda: members.linear_probe(setting, start)) if asked("probe") else start
    every = setting.timed("sweep", lambda: members.fine_tuned(setting, probe))
    sam = setting.timed("SAM sweep", lambda: members.sharpness_aware(setting, probe)) if asked("sam") else []
    kitchen = setting.kitchen(every)
    if len(kitchen.names) < 2:
        raise ValueError(
            f"only {len(kitchen.names)} of {len(every)} members are finite: lower the learning rates of the sweep"
        )

    # --- Rows: each stage is kept as JSON, so a finished one is not repeated ---
    rows = setting.stage("members", lambda: cooking.single_rows(kitchen, start, probe))
    best = best_of(kitchen.scores)
    soup_rows, histories = setting.stage("soups", lambda: cooking.soup_rows(setting, kitchen))
    rows += soup_rows
    if asked("wise_ft"):
        alphas = setting.config["wise_ft"]["alphas"]
        rows += setting.stage("WiSE-FT", lambda: kitchen.path_rows(probe, alphas, called=called))
    if asked("trajectory"):
        averages = setting.timed("trajectory", lambda: members.trajectory_averages(setting, probe, best))
        rows += setting.stage("EMA and SWA", lambda: cooking.trajectory_rows(kitchen, averages))
    sam_kitchen = setting.kitchen(sam, reference=setting.pool[best])
    if sam_kitchen.names:
        rows += setting.stage("SAM soups", lambda: cooking.sam_rows(setting, sam_kitchen))
    ensemble_rows, histories["greedy ensemble"] = setting.stage("ensembles", kitchen.ensemble_rows)
    student = setting.timed("distillation", lambda: members.distilled(setting, kitchen, probe))
    rows += [*ensemble_rows, setting.stage("distilled", lambda: cooking.distilled_row(setting, kitchen, student))]

    # --- What the figures show ---
    planes, pairs = [], []
    shown = {"best member": setting.pool[best]}
    shown |= {title: kitchen.kept[setting.name(title)] for title in ("uniform soup", "greedy soup")}
    if asked("figures"):
        rows += setting.figure("curve", ["counts"], lambda counts: curves.number_of_models(kitchen, counts))
        fields = ["plane_points", "plane_examples"]
        planes = [setting.figure("plane", fields, lambda *sizes: curves.loss_plane(kitchen, probe, *sizes))]
        fields = ["pairs_members", "plane_examples", "barrier_ts"]
        pairs = setting.figure("pairs", fields, lambda *sizes: curves.pairs(kitchen, probe, *sizes))
    bins = setting.stage("reliability", lambda: curves.reliability_diagrams(kitchen, shown))
    return {
        "splits": kitchen.described_splits,
        "rows": rows,
        "members": kitchen.described_members,
        "pairs": pairs,
        "curves": [*planes, *bins],
        "histories": histories,
    }


run = Study(
    check=_check,
    scenes=_scenes,
    cook=_cook,
    packages=("jax", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "grain", "numpy"),
    folders=("pool", "soups"),
    changeable=("figures",),
)
