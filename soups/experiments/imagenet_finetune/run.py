"""Fine-tune a pool on ImageNet by a random search from one linear probe, read from top to bottom."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from soups import tree
from soups.data.imagenet import evaluation_sets, train_source
from soups.evaluate import LogitCache
from soups.experiments.imagenet_finetune import members
from soups.experiments.imagenet_finetune.search import draw_members
from soups.experiments.imagenet_finetune.setting import DTYPES, Setting
from soups.experiments.progress import progress, say
from soups.experiments.workdir import Workdir, check_fields
from soups.models.architectures import architecture
from soups.models.import_weights import import_weights
from soups.names import check_name
from soups.pool import Pool, load_checkpoint

FIELDS = {
    "": ("experiment", "name", "seed", "data_dir", "cache_dir", "arch", "start"),
    "probe": ("strengths", "max_iterations"),
    "finetune": (
        "batch_size",
        "accumulate",
        "dtype",
        "remat",
        "shard",
        "clip_norm",
        "warmup_steps",
        "save_every",
        "num_threads",
        "num_workers",
    ),
    "sweep": (
        "members",
        "learning_rate",
        "weight_decay",
        "label_smoothing",
        "mixup",
        "epochs",
        "minimal",
        "magnitude",
        "operations",
    ),
    "evaluate": ("batch_size",),
}


def run(config: Mapping[str, Any], directory: str | os.PathLike) -> list[str]:
    """Run the whole experiment in `directory`, or what of it is not finished there, and give the path of the pool.

    The same command after a crash goes on in the middle of the member that was trained, to the bit.

    Raises:
        ValueError: a directory made with another config, unknown names in it, start weights that do not fit the
            architecture or the classes of the data; all before any long work.
        FileNotFoundError: no data or start weights there; all data that is missing is listed.
        OSError: the directory cannot be written, or the disk is full.
    """
    _check(config)
    workdir = Workdir(directory, config)
    setting = _opened(config, workdir)
    first = workdir.timed("first_member", lambda: members.first_member(setting))
    drawn = workdir.stage("search", lambda: draw_members(config["sweep"], config["seed"]))
    names = workdir.timed("fine_tuning", lambda: members.fine_tuned(setting, first, drawn))
    _print(setting, [members.FIRST, *names])
    say(f"\nThe pool is {os.path.relpath(setting.pool.path)}. Cook from it with\n  {_next_command(setting)}")
    return [str(setting.pool.path)]


def _check(config):
    check_fields(config, FIELDS)
    check_name(config["finetune"]["dtype"], DTYPES, "dtype")
    if missing := [name for name in ("data_dir", "start") if not config[name]]:
        raise ValueError(f"{' and '.join(missing)} must be given: where the images are, what to fine-tune")


def _opened(config, workdir) -> Setting:
    arch = architecture(config["arch"])
    cache_dir = pathlib.Path(config["cache_dir"] or workdir.path.parent / "decoded")  # which other runs share
    train = train_source(config["data_dir"], cache_dir=cache_dir)
    start = _start(config, arch, len(train.class_names))
    sets = evaluation_sets(
        config["data_dir"], cache_dir, image_size=arch.image_size, sets=["held_out"], progress=progress
    )
    pool = Pool(workdir.path / "pool")
    pool.sweep_orphans()  # what a killed run left half-written
    return Setting(
        config=config,
        workdir=workdir,
        arch=arch,
        start=start,
        train=train,
        held_out=sets["held_out"],
        pool=pool,
        features=LogitCache(workdir.path / "features"),
    )


def _start(config, arch, num_classes):
    """Read start weights: a published file, or a checkpoint of scripts/zero_shot.py; a probe replaces their head."""
    path = pathlib.Path(config["start"]).expanduser()
    is_orbax = (path / "_CHECKPOINT_METADATA").exists()
    params = load_checkpoint(path) if is_orbax else import_weights(path, arch.name)
    if config["probe"]["strengths"]:
        kernel = np.zeros((arch.feature_dim, num_classes), np.float32)
        params = members.with_head(params, arch.head, {"kernel": kernel, "bias": kernel[0]})
    tree.check_same_structure([arch.abstract(num_classes), params], [f"{arch.name}, {num_classes} classes", str(path)])
    return params


def _print(setting, names):
    records = {name: setting.pool.record(name) for name in names}
    keys = list(dict.fromkeys(key for record in records.values() for key in record["metadata"]["hparams"]))
    table = Table(title=Text(f"soups · {setting.config['name']}", style="bold"), box=SIMPLE_HEAD, pad_edge=False)
    for head in ("", "held-out %", *keys):
        table.add_column(head, no_wrap=True)
    for name, record in records.items():
        found = record["metrics"].get("held_out")
        settings = (record["metadata"]["hparams"].get(key, "") for key in keys)
        shown = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in settings]
        table.add_row(name, record["status"] if found is None else f"{100 * found:.2f}", *map(Text, shown))
    console = Console()
    console.width = max(console.width, 160)
    if jax.process_index() == 0:
        console.print(table)


def _next_command(setting):
    config, workdir = setting.config, os.path.relpath(setting.workdir.path)
    flags = [f"data_dir={config['data_dir']}", f"arch={config['arch']}", f"pool={workdir}/pool"]
    flags += [f"wise_ft.base={members.FIRST}"]
    given = " ".join(f"--config.{flag}" for flag in flags)
    return f"python scripts/run.py --config configs/imagenet/clip_vit_b32_soups.py --workdir {workdir}_soups {given}"
