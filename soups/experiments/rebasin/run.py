"""Train networks independently, match their units, walk between them, and average several: Git Re-Basin on digits."""

import os
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from soups.data import digits_task
from soups.experiments.rebasin.paths import MATCHINGS, matched_pairs
from soups.experiments.rebasin.soups import soup_rows
from soups.experiments.rebasin.trial import KINDS, Network, Trial, train_members
from soups.experiments.workdir import Workdir, check_fields, one_at_a_time
from soups.names import check_name
from soups.pool import Pool
from soups.processes import on_first_process

FIELDS = {
    "": ("study", "name", "seeds", "data_dir"),
    "task": ("target", "image_size", "num_train", "num_held_out", "num_test"),
    "training": ("batch_size", "clip_norm", "weight_decay"),
    "paths": ("pairs", "points"),
    "matching": ("examples",),
    "straight_through": ("steps", "batch_size", "learning_rate"),
    "evaluate": ("batch_size", "train_examples"),
}
NETWORK_FIELDS = ("kind", "widths", "members", "learning_rate", "epochs", "matchings", "soup_sizes")


@one_at_a_time
def run(config: Mapping[str, Any], directory: str | os.PathLike) -> list[str]:
    """Run the whole experiment in `directory`, or what of it is not finished there, and give the paths it wrote.

    The same command after a crash goes on where it was. docs/results.md describes results.json.

    Raises:
        ValueError: a config with other fields, unknown kinds or matchings, too few members for the pairs or the soups,
            fewer than three or an even number of points, more images than there are; a directory of another config;
            members that diverged.
        OSError: the directory cannot be written, another run works there, or the disk is full.
    """
    check_config(config)
    workdir = Workdir(directory, config)
    tasks = {seed: _task(config, seed) for seed in range(config["seeds"])}
    networks = [_network(config, name, len(tasks[0].class_names)) for name in _ordered(config["networks"])]
    pools = {network.name: Pool(workdir.path / "pools" / network.name) for network in networks}
    rows = {"pairs": [], "rows": []}
    for network in networks:  # the outer loop: what is compiled for a network serves all seeds
        pool = pools[network.name]
        pool.sweep_orphans()  # what a killed run left half-written
        for seed, task in tasks.items():
            trial = Trial(config=config, seed=seed, network=network, workdir=workdir, task=task, pool=pool)
            for kind, made in _one_trial(trial).items():
                rows[kind] += made
    results = _results(config, workdir, pools, tasks, rows)
    return on_first_process(lambda: workdir.finish(results, "pools"))


def _one_trial(trial: Trial) -> dict[str, list[dict]]:
    settings = trial.network.settings
    trial.stage("training", lambda: train_members(trial))
    pairs = [
        trial.stage(f"pair_{pair}_{matching}", lambda p=pair, m=matching: matched_pairs(trial, p, m))
        for pair in range(trial.config["paths"]["pairs"])
        for matching in settings["matchings"]
    ]
    made = [trial.stage(f"soups_of_{size}", lambda s=size: soup_rows(trial, s)) for size in settings["soup_sizes"]]
    return {"pairs": [one for found in pairs for one in found], "rows": [row for rows in made for row in rows]}


def _task(config, seed):
    return digits_task(**config["task"], shifts={}, natural_shift_size=1, seed=seed, data_dir=config["data_dir"])[0]


def _network(config, name, num_classes) -> Network:
    settings, training = config["networks"][name], config["training"]
    return Network(name=name, settings=settings, training_settings=training, num_classes=num_classes)


def _ordered(networks) -> list[str]:
    """List the names of the networks by kind and width; in the config they stand by the alphabet."""
    kinds = list(KINDS)
    return sorted(networks, key=lambda name: (kinds.index(networks[name]["kind"]), tuple(networks[name]["widths"])))


def _results(config, workdir, pools, tasks, rows) -> dict[str, Any]:
    packages = ("jax", "flax", "optax", "numpy", "scipy")
    task = tasks[0]
    return {
        **workdir.head(config, packages),
        "seeds": list(tasks),
        "splits": {
            role: {"role": role, "examples": len(getattr(task, role))} for role in ("train", "held_out", "test")
        },
        "facts": {"Networks": {name: _described(config["networks"][name], pool) for name, pool in pools.items()}},
        **rows,
        "timings": {str(seed): workdir.seconds(f"seed{seed}_") for seed in tasks},
    }


def _described(settings, pool):
    leaves = pool.record(next(iter(pool)))["leaves"]
    return {
        "kind": settings["kind"],
        "widths": list(settings["widths"]),
        "members": settings["members"],
        "parameters": sum(int(np.prod(leaf["shape"])) for path, leaf in leaves.items() if "batch_stats" not in path),
        "batch_norm": any("batch_stats" in path for path in leaves),
    }


# --- Checks ---


def check_config(config: Mapping[str, Any]) -> None:
    """Raise one ValueError for a config that cannot be run."""
    networks = config.get("networks") or {}
    sections = {f"networks.{name}": settings for name, settings in networks.items()}
    flat = {name: value for name, value in config.items() if name != "networks"} | sections
    check_fields(flat, FIELDS | dict.fromkeys(sections, NETWORK_FIELDS))
    problems = [f"  networks.{name}: {text}" for name, given in networks.items() for text in _problems(config, given)]
    named = Counter((given["kind"], tuple(given["widths"])) for given in networks.values())
    if twice := [f"{kind} {widths}" for (kind, widths), number in named.items() if number > 1]:
        problems.append(f"  networks: two are {twice[0]}, which the tables could not tell apart")
    if not networks:
        problems.append("  networks: at least one is needed")
    if odd := [name for name in networks if not re.fullmatch(r"\w+", name)]:
        problems.append(f"  networks: {odd[0]!r} is in the names of files, so it takes letters, digits and _ only")
    for name, value in (("seeds", config["seeds"]), ("paths.pairs", config["paths"]["pairs"])):
        if value < 1:
            problems.append(f"  {name} must be at least 1, not {value}")
    if (points := config["paths"]["points"]) < 3 or points % 2 == 0:
        problems.append(f"  paths.points must be odd, for λ = ½, and at least 3, not {points}")
    images = config["task"]["num_train"]
    for section, name in (("evaluate", "train_examples"), ("matching", "examples")):
        if not 1 <= (value := config[section][name]) <= images:
            problems.append(f"  {section}.{name} must be 1 to task.num_train = {images}, not {value}")
    if problems:
        raise ValueError("the config cannot be run:\n" + "\n".join(problems))


def _problems(config, settings):
    for kind, given, known in (("kind", [settings["kind"]], KINDS), ("matching", settings["matchings"], MATCHINGS)):
        for name in given:
            try:
                check_name(name, known, kind)
            except ValueError as error:
                yield str(error)
    needed = max(2 * config["paths"]["pairs"], *settings["soup_sizes"], 2)
    if settings["members"] < needed:
        yield f"{settings['members']} members, but the pairs and the soups need {needed}"
    if small := [size for size in settings["soup_sizes"] if size < 2]:
        yield f"a soup has at least 2 members, not {small[0]}"
