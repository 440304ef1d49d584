"""Fine-tune a pool from one start, cook soups from it, and report: the main experiment, read from top to bottom."""

import os
from collections.abc import Mapping
from typing import Any

import jax

from soups import models
from soups.data import digits_task
from soups.experiments.finetune_and_soup import cooking, members
from soups.experiments.finetune_and_soup.setting import Setting
from soups.experiments.workdir import Workdir, check_fields, one_at_a_time
from soups.pool import Pool
from soups.processes import on_first_process
from soups.progress import say
from soups.studies import curves
from soups.studies.kitchen import best_of

FIELDS = {
    "": ("study", "name", "seeds", "data_dir"),
    "task": ("target", "image_size", "num_train", "num_held_out", "num_test", "natural_shift_size", "shifts"),
    "model": ("patch_size", "width", "depth", "mlp_dim", "num_heads", "pool_type"),
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


@one_at_a_time
def run(config: Mapping[str, Any], directory: str | os.PathLike) -> list[str]:
    """Run the whole experiment in `directory`, or what of it is not finished there, and give the paths it wrote.

    The same command after a crash goes on where it was and gives the same rows to the bit. Several JAX processes run it
    together, with one directory that all of them see.

    Raises:
        ValueError: a directory made with another config, or a config that does not fit the task.
        OSError: the directory cannot be written, another run works there, or the disk is full.
    """
    check_fields(config, FIELDS)
    workdir = Workdir(directory, config, changeable=("figures",))
    settings = [_setting(config, seed, workdir) for seed in range(config["seeds"])]  # all checks before any long work
    outcomes = {setting.seed: _one_seed(setting) for setting in settings}
    results = _results(config, workdir, settings, outcomes)
    return on_first_process(lambda: workdir.finish(results, "pool", "soups"))


def _setting(config, seed, workdir) -> Setting:
    task, pretraining = digits_task(**config["task"], seed=seed, data_dir=config["data_dir"])
    devices = jax.devices()
    sharded = config["finetune"]["mode"] == "sharded" or (config["finetune"]["mode"] == "auto" and len(devices) > 1)
    auto = (jax.sharding.AxisType.Auto,) * 2
    pool, bases, results = (Pool(workdir.path / name) for name in ("pool", "bases", "soups"))
    for one in (pool, bases, results):
        one.sweep_orphans()  # what a killed run left half-written
    return Setting(
        config=config,
        seed=seed,
        workdir=workdir,
        task=task,
        pretraining=pretraining,
        model=models.ViT(num_classes=len(task.class_names), **config["model"]),
        mesh=jax.make_mesh((len(devices), 1), ("pool", "data"), axis_types=auto) if sharded else None,
        pool=pool,
        bases=bases,
        results=results,
    )


def _one_seed(setting: Setting) -> dict[str, Any]:
    say(f"\nseed {setting.seed}")
    config = setting.config

    # --- Weights: start -> linear probe -> sweep of fine-tunes ---
    start = _timed(setting, "start weights", lambda: members.start_weights(setting))
    probe = _timed(setting, "linear probe", lambda: members.linear_probe(setting, start))
    every = _timed(setting, "sweep", lambda: members.fine_tuned(setting, probe))
    sam = _timed(setting, "SAM sweep", lambda: members.sharpness_aware(setting, probe))
    names = _usable(setting, every)
    if len(names) < 2:
        raise ValueError(f"only {len(names)} of {len(every)} members are finite: lower the learning rates of the sweep")
    sam = _usable(setting, sam)

    # --- Rows: each stage is kept as JSON, so a finished one is not repeated ---
    kitchen = setting.kitchen(names)
    rows = _stage(setting, "members", lambda: cooking.single_rows(kitchen, start, probe))
    soup_rows, histories = _stage(setting, "soups", lambda: cooking.soup_rows(setting, kitchen))
    alphas = config["wise_ft"]["alphas"]
    path_rows = _stage(setting, "WiSE-FT", lambda: kitchen.path_rows(probe, alphas, called="probe"))
    best = best_of(kitchen.scores)
    averages = _timed(setting, "trajectory", lambda: members.trajectory_averages(setting, probe, best))
    rows += soup_rows + path_rows
    rows += _stage(setting, "EMA and SWA", lambda: cooking.trajectory_rows(kitchen, averages))
    if sam:
        rows += _stage(
            setting, "SAM soups", lambda: cooking.sam_rows(setting, setting.kitchen(sam, setting.pool[best]))
        )
    ensemble_rows, histories["greedy ensemble"] = _stage(setting, "ensembles", kitchen.ensemble_rows)
    student = _timed(setting, "distillation", lambda: members.distilled(setting, kitchen, probe))
    rows += [*ensemble_rows, _stage(setting, "distilled", lambda: cooking.distilled_row(setting, kitchen, student))]

    # --- Figures' data ---
    shown = {"best member": setting.pool[best]}
    shown |= {title: kitchen.kept[setting.name(title.replace(" ", "_"))] for title in ("uniform soup", "greedy soup")}
    rows += _figure(setting, "curve", ["counts"], lambda counts: curves.number_of_models(kitchen, counts))
    size = ["plane_points", "plane_examples"]
    plane = _figure(setting, "plane", size, lambda *size: curves.loss_plane(kitchen, probe, *size))
    size = ["pairs_members", "plane_examples", "barrier_ts"]
    pairs = _figure(setting, "pairs", size, lambda *size: curves.pairs(kitchen, probe, *size))
    bins = _stage(setting, "reliability", lambda: curves.reliability_diagrams(kitchen, shown))
    found = {"rows": rows, "curves": [plane, *bins], "pairs": pairs}
    return found | {"histories": histories, "members": setting.kitchen(every).described_members}


def _usable(setting, names) -> list[str]:
    usable = [name for name in names if name in setting.pool.usable]
    if left_out := [name for name in names if name not in usable]:
        say(f"diverged, kept in the pool but left out of every selection: {', '.join(left_out)}")
    return usable


def _stage(setting, name, compute):
    return setting.workdir.stage(setting.name(name.replace(" ", "_")), compute)


def _figure(setting, name, fields, compute):
    """Return a stage that is made again where these fields of the section "figures", which it is given, change."""
    settings = {field: setting.config["figures"][field] for field in fields}
    return setting.workdir.stage(setting.name(name), lambda: compute(*settings.values()), settings)


def _timed(setting, name, make):
    return setting.workdir.timed(setting.name(name.replace(" ", "_")), make)


def _results(config, workdir, settings, outcomes) -> dict[str, Any]:
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "grain", "numpy")
    return {
        **workdir.head(config, packages),
        "seeds": [setting.seed for setting in settings],
        "splits": settings[0].kitchen(settings[0].pool.names).described_splits,
        **{part: [x for one in outcomes.values() for x in one[part]] for part in ("rows", "curves", "pairs")},
        **{part: {str(seed): one[part] for seed, one in outcomes.items()} for part in ("members", "histories")},
        "timings": {str(s.seed): workdir.seconds(s.name("")) for s in settings},
    }
