"""Hold the trials of a study of recycling: the sets, the network and the start weights that its courses share."""

import dataclasses
import functools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from soups import tree
from soups.data.domains import (
    DomainSet,
    check_no_leak,
    load_domains,
)
from soups.data.random_transforms import domainbed_augmentation
from soups.models.pretrained import efficientnet_lite0_file
from soups.names import check_name
from soups.studies.courses import AVERAGES, Course, Trunk, adam
from soups.studies.named import architecture_of, start_weights
from soups.studies.rows import Row, described, mean_of, splits_of
from soups.studies.study import Scene, Workdir, with_defaults
from soups.train import Lanes, Training
from soups.train.lanes import lane_mesh
from soups.train.loop import Alone
from soups.train.probe import with_head

MODES = ("auto", "sequential", "sharded")
DEFAULTS = {
    "seeds": 1,
    "first_seed": 0,
    "test_domains": (),
    "leave_one_out": False,
    "model": {"start": None, "frozen_stages": 0, "views": 4},
    "probe": {"strengths": (1e-4, 1e-3, 1e-2, 1e-1, 1.0), "max_iterations": 200},
    "runs": {"mode": "auto", "ranges": "mild", "batch_size": None, "learning_rate_factor": 1.0},
    "ratatouille": {"head_steps": 0},
    "fusing": {"members": 0, "range": 4.0},
    "methods": {},
    "fisher": {"examples": 0},
    "evaluate": {"batch_size": 500},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial(Scene):
    """Hold what all courses of a trial share: the sets and the network."""

    data: DomainSet
    auxiliary: Mapping[str, DomainSet]
    trunk: Trunk
    start: tree.Tree
    placements: Mapping[str, Alone | Lanes]

    @property
    def sets(self) -> dict[str, DomainSet]:
        """Return all sets by name."""
        return {self.data.name: self.data, **self.auxiliary}

    @property
    def test_domains(self) -> list[str]:
        """Return the domains that are left out in turn: those of the config, or all."""
        chosen = self.config["test_domains"] or [domain.environment for domain in self.data]
        return [self.data[domain].environment for domain in chosen]

    def course(self, data: DomainSet, *left_out: str) -> Course:
        """Return the course of a set, without the domains that are left out."""
        shared = {name: getattr(self, name) for name in ("config", "workdir", "seed", "trunk", "placements", "start")}
        place = "" if data is self.data else f"auxiliary_{data.name}_"  # whose heads have other shapes
        pools = {kind: self.workdir.pool(place + kind) for kind in ("bases", "pool", *AVERAGES)}
        augment = domainbed_augmentation(self.config["image_size"])
        return Course(data=data, left_out=left_out, pools=pools, augment=augment, **shared)

    def auxiliary_members(self) -> dict[str, list[tree.Tree]]:
        """Return networks that the first trial fine-tunes on all domains of each auxiliary set, by sets."""
        config = self.config["auxiliary_runs"]
        first = dataclasses.replace(self, seed=self.config["first_seed"])
        found = {}
        for name, data in self.auxiliary.items():
            course = first.course(data)
            starts = dict.fromkeys(range(config["members"]), course.probe)
            names = course.fill("auxiliary", starts, steps=config["steps"], last=True)
            found[name] = [course.pools["pool"][member] for member in names.values()]
        return found

    def described(self, course: Course) -> list[dict[str, Any]]:
        """Return the members of a course as results hold them."""
        return described(course.pools["pool"], course.prefix, course.called)

    @property
    def described_splits(self) -> dict[str, Any]:
        """Return the splits as results hold them: each domain, tested by what was made without it, and their means."""
        held_out = {domain: self.course(self.data, domain).held_out.labels for domain in self.test_domains}
        sizes = {domain: (len(self.data[domain]), len(labels)) for domain, labels in held_out.items()}
        return splits_of(sizes, "domains", "without {}")

    @property
    def facts(self) -> dict[str, Any]:
        """Return what the results tell of the sets."""
        return {
            "Sets of domains": {
                name: {"classes": len(one.class_names), **{domain.name: len(domain) for domain in one}}
                for name, one in self.sets.items()
            }
        }

    @property
    def notes(self) -> list[str]:
        """Return what a reader must know of the protocol."""
        config, found = self.config["model"], []
        if config["frozen_stages"]:
            found.append(
                f"The stem and the first {config['frozen_stages']} stages stay as they were pre-trained; what they "
                f"give of {config['views']} augmented views of each image is computed once."
            )
        return found


def trials(config: Mapping[str, Any], workdir: Workdir) -> list[Trial]:
    """Return the trials of a config, with their data and start weights; all share their programs.

    Raises:
        ValueError: sets that are missing or odd, weights that do not fit the network, stages that cannot be frozen.
    """
    config = with_defaults(config, DEFAULTS)
    arch, size = architecture_of(config["model"]["arch"]), config["image_size"]
    load = functools.partial(load_domains, config["data_dir"], image_size=size)
    data, auxiliary = load(config["dataset"]), {name: load(name) for name in config["auxiliary"]}
    for one in (data, *auxiliary.values()):
        check_no_leak(one, {name: other for name, other in auxiliary.items() if other is not one})
    trunk = Trunk(arch, config["model"]["frozen_stages"])
    trunk.check()
    options = {"loss": trunk.loss, "optimizer": adam}
    head = ((f"{arch.head}/.*", 1.0), (".*", 0.0))
    trainings = {
        "all": Training(learning_rate_rules=trunk.frozen, swa_start=0.0, **options),
        "head": Training(learning_rate_rules=head, **options),
    }
    start = _start(config, arch)
    place = functools.partial(
        _placed,
        config["runs"]["mode"],
        trunk.with_head(start, dict.fromkeys(("kernel", "bias"), np.zeros(1, np.float32))),
    )
    placements = {name: place(training) for name, training in trainings.items()}
    shared = {"data": data, "auxiliary": auxiliary, "trunk": trunk, "placements": placements, "start": start}
    seeds = range(config["first_seed"], config["first_seed"] + config["seeds"])
    made = [Trial(config=config, workdir=workdir, seed=seed, **shared) for seed in seeds]
    _ = made[0].test_domains  # refuses one that does not exist
    return made


def _placed(mode, params, training):
    """Return where members are trained: one after the other, or one on each device.

    On CPUs one member on all cores is as fast as one on each, and no core works for a lane without a member.
    """
    check_name(mode, MODES, "config.runs.mode")
    count = len(jax.devices())
    if mode == "sequential" or (mode == "auto" and (count == 1 or jax.default_backend() == "cpu")):
        return Alone(training)
    return Lanes(training, params, mesh=lane_mesh({"pool": count, "data": 1}))


def _start(config, arch):
    path = config["model"]["start"]
    if path is None:
        if arch.name != "efficientnet-lite0":
            raise ValueError(f"config.model.start must say where the weights of {arch.name} are")
        path = efficientnet_lite0_file()
    return with_head(start_weights(path, arch), arch.head, None)


def over_domains(by_domain: Mapping[str, Sequence[Row]], selecting: str = "without {}") -> list[Row]:
    """Return rows that are measured on each domain by what was made without it, and their means over the domains.

    `selecting`: what the splits are called that select, with the domain put in.
    """
    found = []
    for rows in zip(*by_domain.values(), strict=True):
        parts = dict(zip(by_domain, rows, strict=True))
        metrics = {"test": mean_of([row["metrics"]["test"] for row in rows])}
        metrics["held_out"] = mean_of([row["metrics"]["held_out"] for row in rows])
        metrics |= {domain: row["metrics"]["test"] for domain, row in parts.items()}
        metrics |= {selecting.format(domain): row["metrics"]["held_out"] for domain, row in parts.items()}
        wins = {domain: row["wins"]["test"] for domain, row in parts.items() if "test" in row.get("wins", {})}
        count = round(statistics.fmean(row["num_ingredients"] for row in rows))
        kept = {name: rows[0][name] for name in ("seed", "name", "kind", "group", "of") if name in rows[0]}
        cost = mean_of([row["cost"] for row in rows])
        found.append({**kept, "metrics": metrics, "wins": wins, "num_ingredients": count, "cost": cost})
    return found
