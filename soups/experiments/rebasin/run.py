"""Train networks independently, match their units, walk between them, and average several: Git Re-Basin on digits."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from soups.data import digits_task
from soups.experiments.rebasin.paths import MATCHINGS, matched_pairs
from soups.experiments.rebasin.soups import soup_rows
from soups.experiments.rebasin.trial import KINDS, Network, Trial, train_members
from soups.names import check_name
from soups.studies.study import Study, Workdir, check_fields

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


def _trials(config, workdir: Workdir) -> list[Trial]:
    """List the trials by network and seed: what is compiled for a network serves all seeds."""
    tasks = {seed: _task(config, seed) for seed in range(config["seeds"])}
    networks = [_network(config, name, len(tasks[0].class_names)) for name in _ordered(config["networks"])]
    pools = {network.name: workdir.pool(f"pools/{network.name}") for network in networks}
    shared = {"config": config, "workdir": workdir}
    return [
        Trial(seed=seed, network=network, task=task, pool=pools[network.name], **shared)
        for network in networks
        for seed, task in tasks.items()
    ]


def _cook(trial: Trial) -> dict[str, Any]:
    settings, name = trial.network.settings, trial.network.name
    trial.stage("training", lambda: train_members(trial))
    pairs = [
        trial.stage(f"pair_{pair}_{matching}", lambda p=pair, m=matching: matched_pairs(trial, p, m))
        for pair in range(trial.config["paths"]["pairs"])
        for matching in settings["matchings"]
    ]
    made = [trial.stage(f"soups_of_{size}", lambda s=size: soup_rows(trial, s)) for size in settings["soup_sizes"]]
    return {
        "splits": {
            role: {"role": role, "examples": len(getattr(trial.task, role))} for role in ("train", "held_out", "test")
        },
        "pairs": [one for found in pairs for one in found],
        "rows": [row for rows in made for row in rows],
        "facts": {"Networks": {name: _described(settings, trial.pool)}},
    }


def _task(config, seed):
    return digits_task(**config["task"], shifts={}, natural_shift_size=1, seed=seed, data_dir=config["data_dir"])[0]


def _network(config, name, num_classes) -> Network:
    settings, training = config["networks"][name], config["training"]
    return Network(name=name, settings=settings, training_settings=training, num_classes=num_classes)


def _ordered(networks) -> list[str]:
    """List the names of the networks by kind and width; in the config they stand by the alphabet."""
    kinds = list(KINDS)
    return sorted(networks, key=lambda name: (kinds.index(networks[name]["kind"]), tuple(networks[name]["widths"])))


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


run = Study(
    check=check_config,
    scenes=_trials,
    cook=_cook,
    packages=("jax", "flax", "optax", "numpy", "scipy"),
    folders=("pools",),
)
