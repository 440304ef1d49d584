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
from soups.experiments.imagenet_finetune.setting import DTYPES, Setting, mesh_of, training_of
from soups.models.architectures import architecture
from soups.models.import_weights import import_weights
from soups.names import check_name
from soups.pool import load_checkpoint
from soups.processes import all_or_none
from soups.progress import progress, say
from soups.studies.study import check_fields, opened

FIELDS = {
    "": ("study", "name", "seed", "data_dir", "cache_dir", "arch", "start"),
    "probe": ("strengths", "max_iterations"),
    "finetune": (
        "batch_size",
        "accumulate",
        "dtype",
        "remat",
        "shard",
        "mesh",
        "clip_norm",
        "sam_radius",
        "ema_decays",
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
    """Run the whole experiment in `directory`, or what of it is not finished there, and give the paths of the pools.

    First that of the members, then one for each average along their trajectories. The same command after a crash goes
    on in the middle of the member that was trained, to the bit. Several JAX processes run it together, with one
    directory that all of them see.

    Raises:
        ValueError: a directory made with another config, unknown names in it, a mesh or a batch that does not fit the
            devices, start weights that do not fit the architecture or the classes of the data; all before any long
            work.
        FileNotFoundError: no data or start weights there; all data that is missing is listed.
        OSError: the directory cannot be written, another run works there, or the disk is full.
    """
    with opened(config, directory, _check) as workdir:
        setting = _opened(config, workdir)
        first = workdir.timed("first_member", lambda: members.first_member(setting))
        drawn = workdir.stage("search", lambda: draw_members(config["sweep"], config["seed"]))
        names = workdir.timed("fine_tuning", lambda: members.fine_tuned(setting, first, drawn))
        _print(setting, [members.FIRST, *names])
        pools = [setting.pool, *setting.averages.values()]
        for pool in pools:
            say(f"\nCook from {os.path.relpath(pool.path)} with\n  {_next_command(setting, pool)}")
        return [str(pool.path) for pool in pools]


def _check(config):
    check_fields(config, FIELDS)
    check_name(config["finetune"]["dtype"], DTYPES, "dtype")
    if missing := [name for name in ("data_dir", "start") if not config[name]]:
        raise ValueError(f"{' and '.join(missing)} must be given: where the images are, what to fine-tune")
    if not config["finetune"]["sam_radius"] >= 0:
        raise ValueError(f"finetune.sam_radius must be at least 0, not {config['finetune']['sam_radius']}")


def _opened(config, workdir) -> Setting:
    arch = architecture(config["arch"])
    mesh = mesh_of(config["finetune"])
    cache_dir = pathlib.Path(config["cache_dir"] or workdir.path.parent / "decoded")  # which other runs share
    train = all_or_none(lambda: train_source(config["data_dir"], cache_dir=cache_dir))
    training = training_of(config["finetune"], arch, len(train.class_names))
    start = all_or_none(lambda: _start(config, arch, len(train.class_names)))
    sets = evaluation_sets(
        config["data_dir"], cache_dir, image_size=arch.image_size, sets=["held_out"], progress=progress
    )
    return Setting(
        config=config,
        workdir=workdir,
        arch=arch,
        start=start,
        train=train,
        held_out=sets["held_out"],
        mesh=mesh,
        training=training,
        pool=workdir.pool("pool"),
        averages={f"ema_{decay}": workdir.pool(f"pool_ema_{decay}") for decay in training.ema_decays},
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
    keys = list(dict.fromkeys(key for record in records.values() for key in record["metadata"]["config"]))
    table = Table(title=Text(f"soups · {setting.config['name']}", style="bold"), box=SIMPLE_HEAD, pad_edge=False)
    for head in ("", "held-out %", *(f"{kind} %" for kind in setting.averages), *keys):
        table.add_column(head, no_wrap=True)
    for name, record in records.items():
        found = [_percent(pool.record(name)) for pool in (setting.pool, *setting.averages.values())]
        settings = (record["metadata"]["config"].get(key, "") for key in keys)
        shown = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in settings]
        table.add_row(name, *found, *map(Text, shown))
    if jax.process_index() == 0:
        Console(width=1000).print(table)  # as wide as it is: a terminal may break the lines, but nothing is cut off


def _percent(record):
    return f"{100 * record['metrics']['held_out']:.2f}" if "held_out" in record["metrics"] else record["status"]


def _next_command(setting, pool):
    config, workdir = setting.config, os.path.relpath(setting.workdir.path)
    flags = [f"data_dir={config['data_dir']}", f"arch={config['arch']}", f"pool={workdir}/{pool.path.name}"]
    flags += [f"wise_ft.base={members.FIRST}"]
    given = " ".join(f"--config.{flag}" for flag in flags)
    own = workdir + pool.path.name.replace("pool", "_soups", 1)
    return f"python scripts/run.py --config configs/imagenet/clip_vit_b32_soups.py --workdir {own} {given}"
