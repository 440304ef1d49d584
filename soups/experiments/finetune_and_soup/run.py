"""Fine-tune a pool from one start, cook soups from it, and report: the main experiment, read from top to bottom."""

from collections.abc import Mapping
from typing import Any

import jax

from soups import models
from soups.data import digits_task
from soups.experiments.finetune_and_soup import cooking, members
from soups.experiments.finetune_and_soup.setting import Setting
from soups.progress import say
from soups.studies import curves
from soups.studies.measuring import best_of
from soups.studies.study import Study, Workdir, check_fields

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


def _scenes(config, workdir: Workdir) -> list[Setting]:
    return [_setting(config, seed, workdir) for seed in range(config["seeds"])]


def _setting(config, seed, workdir) -> Setting:
    task, pretraining = digits_task(**config["task"], seed=seed, data_dir=config["data_dir"])
    devices = jax.devices()
    sharded = config["finetune"]["mode"] == "sharded" or (config["finetune"]["mode"] == "auto" and len(devices) > 1)
    auto = (jax.sharding.AxisType.Auto,) * 2
    return Setting(
        config=config,
        seed=seed,
        workdir=workdir,
        task=task,
        pretraining=pretraining,
        model=models.ViT(num_classes=len(task.class_names), **config["model"]),
        mesh=jax.make_mesh((len(devices), 1), ("pool", "data"), axis_types=auto) if sharded else None,
        pool=workdir.pool("pool"),
        bases=workdir.pool("bases"),
        results=workdir.pool("soups"),
    )


def _cook(setting: Setting) -> Mapping[str, Any]:
    say(f"\nseed {setting.seed}")

    # --- Weights: start -> linear probe -> sweep of fine-tunes ---
    start = setting.timed("start weights", lambda: members.start_weights(setting))
    probe = setting.timed("linear probe", lambda: members.linear_probe(setting, start))
    every = setting.timed("sweep", lambda: members.fine_tuned(setting, probe))
    sam = setting.timed("SAM sweep", lambda: members.sharpness_aware(setting, probe))
    kitchen = setting.kitchen(every)
    if len(kitchen.names) < 2:
        raise ValueError(
            f"only {len(kitchen.names)} of {len(every)} members are finite: lower the learning rates of the sweep"
        )

    # --- Rows: each stage is kept as JSON, so a finished one is not repeated ---
    rows = setting.stage("members", lambda: cooking.single_rows(kitchen, start, probe))
    best, alphas = best_of(kitchen.scores), setting.config["wise_ft"]["alphas"]
    soup_rows, histories = setting.stage("soups", lambda: cooking.soup_rows(setting, kitchen))
    path_rows = setting.stage("WiSE-FT", lambda: kitchen.path_rows(probe, alphas, called="probe"))
    averages = setting.timed("trajectory", lambda: members.trajectory_averages(setting, probe, best))
    rows += soup_rows + path_rows
    rows += setting.stage("EMA and SWA", lambda: cooking.trajectory_rows(kitchen, averages))
    sam_kitchen = setting.kitchen(sam, reference=setting.pool[best])
    if sam_kitchen.names:
        rows += setting.stage("SAM soups", lambda: cooking.sam_rows(setting, sam_kitchen))
    ensemble_rows, histories["greedy ensemble"] = setting.stage("ensembles", kitchen.ensemble_rows)
    student = setting.timed("distillation", lambda: members.distilled(setting, kitchen, probe))
    rows += [*ensemble_rows, setting.stage("distilled", lambda: cooking.distilled_row(setting, kitchen, student))]

    # --- What the figures show ---
    shown = {"best member": setting.pool[best]}
    shown |= {title: kitchen.kept[setting.name(title)] for title in ("uniform soup", "greedy soup")}
    rows += setting.figure("curve", ["counts"], lambda counts: curves.number_of_models(kitchen, counts))
    fields = ["plane_points", "plane_examples"]
    plane = setting.figure("plane", fields, lambda *sizes: curves.loss_plane(kitchen, probe, *sizes))
    fields = ["pairs_members", "plane_examples", "barrier_ts"]
    pairs = setting.figure("pairs", fields, lambda *sizes: curves.pairs(kitchen, probe, *sizes))
    bins = setting.stage("reliability", lambda: curves.reliability_diagrams(kitchen, shown))
    return {
        "splits": kitchen.described_splits,
        "rows": rows,
        "members": kitchen.described_members,
        "pairs": pairs,
        "curves": [plane, *bins],
        "histories": histories,
    }


run = Study(
    check=lambda config: check_fields(config, FIELDS),
    scenes=_scenes,
    cook=_cook,
    packages=("jax", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "grain", "numpy"),
    folders=("pool", "soups"),
    changeable=("figures",),
)
