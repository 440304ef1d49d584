"""Train networks independently, match their units, walk between them, and average several: Git Re-Basin."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

import soups
from soups import models
from soups.names import check_name
from soups.plugins import named
from soups.studies.matching import MATCHINGS, Independent, Trial
from soups.studies.named import check_unchanged, module_of, task_of
from soups.studies.rows import Row, mean_of
from soups.studies.study import Study, Workdir, check_fields

FIELDS = {
    "": "study name seeds data_dir task",
    "training": "batch_size clip_norm weight_decay",
    "paths": "pairs points",
    "matching": "examples",
    "straight_through": "steps batch_size learning_rate",
    "evaluate": "batch_size train_examples",
}
NETWORK = "kind widths members learning_rate epochs matchings soup_sizes"
KINDS = {"mlp": "soups.models:MLP", "cnn": "soups.models:ConvNet"}
ALIGNMENTS = {"uniform soup": None, "aligned to the first": "weight", "MergeMany": "merge_many"}


def _trials(config, workdir: Workdir) -> list[Trial]:
    """List the trials by network and seed: what is compiled for a network serves all seeds."""
    seeds, data_dir = range(config["seeds"]), config["data_dir"]
    tasks = {seed: task_of(config["task"], seed=seed, data_dir=data_dir)[0] for seed in seeds}
    networks = [_network(config, name, tasks[0]) for name in _ordered(config["networks"])]
    pools = {network.name: workdir.pool(f"pools/{network.name}") for network in networks}
    shared = {"config": config, "workdir": workdir}
    trials = [
        Trial(seed=seed, network=network, task=task, pool=pools[network.name], **shared)
        for network in networks
        for seed, task in tasks.items()
    ]
    for trial in trials:
        check_unchanged(trial, models.Network.of(trial.network.model), trial.task)
    return trials


def _network(config, name, task) -> Independent:
    settings = config["networks"][name]
    kind, widths = settings["kind"], tuple(settings["widths"])
    shape, classes, field = task.test.images.shape[1:], len(task.class_names), f"config.networks.{name}.kind"
    model = module_of(kind, field, {"widths": widths}, shape, classes, KINDS)
    title = f"{kind.rpartition(':')[2].upper()} {'-'.join(map(str, widths))}"
    clip_norm = config["training"]["clip_norm"]
    return Independent.of(model, shape, classes, clip_norm, name=name, title=title, settings=settings)


def _ordered(networks) -> list[str]:
    """List the names of the networks by kind and width; in the config they stand by the alphabet."""
    kinds = dict.fromkeys([*KINDS, *(one["kind"] for one in networks.values())])
    return sorted(networks, key=lambda name: (list(kinds).index(networks[name]["kind"]), networks[name]["widths"]))


def _cook(trial: Trial) -> dict[str, Any]:
    settings, points = trial.network.settings, trial.config["paths"]["points"]
    trial.stage("training", trial.train)
    pairs = [
        trial.stage(f"pair_{pair}_{matching}", lambda p=pair, m=matching: trial.pairs(p, m), {"points": points})
        for pair in range(trial.config["paths"]["pairs"])
        for matching in settings["matchings"]
    ]
    rows = [trial.stage(f"soups_of_{size}", lambda s=size: _soup_rows(trial, s)) for size in settings["soup_sizes"]]
    leaves = trial.pool.record(trial.member_names[0])["leaves"]
    described = {"kind": settings["kind"], "widths": list(settings["widths"]), "members": settings["members"]} | {
        "parameters": sum(int(np.prod(one["shape"])) for path, one in leaves.items() if "batch_stats" not in path),
        "batch_norm": any("batch_stats" in path for path in leaves),
    }
    splits = {name: getattr(trial.task, name) for name in ("train", "held_out", "test")}
    return {
        "splits": {name: {"role": name, "examples": len(data)} for name, data in splits.items()},
        "pairs": [one for found in pairs for one in found],
        "rows": [row for made in rows for row in made],
        "facts": {"Networks": {trial.network.name: described}},
    }


def _soup_rows(trial: Trial, size: int) -> list[Row]:
    """Return the rows of the first `size` members: baselines, and their soups, aligned and not, repaired and not."""
    members = trial.members[:size]
    singles = trial.stage("members", lambda: [trial.measure(params) for params in trial.members])[:size]
    best = max(range(size), key=lambda index: singles[index]["held_out"]["accuracy"])
    measured = {"mean member": mean_of(singles), "best member": singles[best], "ensemble": trial.ensemble(members)}
    kinds = {"mean member": "members", "best member": "member", "ensemble": "ensemble"}
    for title, method in ALIGNMENTS.items():
        key = jax.random.key(trial.seed)
        aligned = members if method is None else soups.align(members, trial.network.spec, key=key, method=method)
        soup = soups.uniform(aligned)
        measured |= {title: trial.measure(soup)}
        measured |= {f"{title}, repaired": trial.measure(trial.repaired(soup, aligned))}
    rest = {"seed": trial.seed, "group": "main", "of": {"network": trial.network.title, "models": size}}
    return [
        rest
        | {"name": name, "kind": kinds.get(name, "soup"), "metrics": found}
        | {"cost": {"inference": size if name == "ensemble" else 1}}
        for name, found in measured.items()
    ]


def check_config(config: Mapping[str, Any]) -> None:
    """Raise one ValueError for a config that cannot be run."""
    networks, problems = config.get("networks") or {}, []
    sections = {f"networks.{name}": one for name, one in networks.items()}
    flat = {name: value for name, value in config.items() if name != "networks"} | sections
    check_fields(flat, FIELDS | dict.fromkeys(sections, NETWORK))
    paths, task = config["paths"], config["task"]
    for name, one in networks.items():
        named(one["kind"], KINDS, f"config.networks.{name}.kind")
        for matching in one["matchings"]:
            check_name(matching, MATCHINGS, f"matching of networks.{name}")
        needed = max(2 * paths["pairs"], *one["soup_sizes"], 2)
        if one["members"] < needed:
            problems.append(f"networks.{name}: {one['members']} members, but the pairs and the soups need {needed}")
        if small := [size for size in one["soup_sizes"] if size < 2]:
            problems.append(f"networks.{name}: a soup has at least 2 members, not {small[0]}")
    titles = Counter(f"{one['kind']} {one['widths']}" for one in networks.values())
    problems += [f"networks: two are {one}, so no table could tell them apart" for one in titles if titles[one] > 1]
    if odd := [name for name in networks if not re.fullmatch(r"\w+", name)]:
        problems.append(
            f"networks: {odd[0]!r} becomes part of file names, so it may contain only letters, digits and _"
        )
    if not networks:
        problems.append("networks: at least one is needed")
    if paths["pairs"] < 1:
        problems.append(f"paths.pairs must be at least 1, not {paths['pairs']}")
    if paths["points"] < 3 or paths["points"] % 2 == 0:
        problems.append(f"paths.points must be odd, for λ = ½, and at least 3, not {paths['points']}")
    images = task.get("num_train", np.inf) if isinstance(task, Mapping) else np.inf
    for section, name in (("evaluate", "train_examples"), ("matching", "examples")):
        if not 1 <= (value := config[section][name]) <= images:
            problems.append(f"{section}.{name} must be 1 to task.num_train = {images}, not {value}")
    if problems:
        raise ValueError("\n  ".join(["the config cannot be run:", *problems]))


run = Study(
    check=check_config,
    scenes=_trials,
    cook=_cook,
    packages=("tensorflow-datasets", "scipy"),
    folders=("pools",),
    changeable=("paths",),
)
