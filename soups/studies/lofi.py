"""Fine-tune by workers that do not communicate, and average their weights once: read from top to bottom.

Wortsman et al., "lo-fi: distributed fine-tuning without communication", 2022, arXiv 2210.11948: n workers start from
one network, each fine-tunes it on minibatches of its own, and the weights are averaged at the end. The baseline sees
the same examples in as many steps, and all-reduces the gradients of each. In between lie local SGD, which averages the
weights every k steps, and DiLoCo, whose outer optimizer takes the moves of the average as gradients.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import optax

from soups import arguments, tree
from soups.data.domainbed import seed_hash
from soups.pool.claims import claims
from soups.progress import progress, say
from soups.studies.courses import Course, Trunk
from soups.studies.examples import Examples
from soups.studies.kitchen import Kitchen
from soups.studies.rows import Row
from soups.studies.study import Study, check_fields, with_defaults
from soups.studies.trials import Trial, trials
from soups.train import Exchange, Training
from soups.train.loop import Alone, prepared
from soups.train.loop import run as train
from soups.train.step import matched
from soups.train.workers import InTurn

FIELDS = {
    "": "study name seeds? first_seed? data_dir dataset test_domains image_size",
    "model": "arch start? frozen_stages? views?",
    "probe?": "strengths max_iterations?",
    "workers": "count steps batch_size learning_rate weight_decay? warmup_fraction?",
    "all_reduce?": "factors",
    "exchange?": "every",
    "outer?": "learning_rate momentum",
    "claims?": "margin",
    "evaluate?": "batch_size",
}
DEFAULTS = {
    "auxiliary": (),
    "workers": {"weight_decay": 0.0, "warmup_fraction": 0.1},
    "all_reduce": {"factors": (1.0,)},
    "exchange": {"every": ()},
    "outer": {"learning_rate": 0.7, "momentum": 0.9},
    "claims": {"margin": 0.01},
}
CHANGEABLE = ("all_reduce", "exchange", "claims")  # what the other runs do not depend on
REFERENCE, LOFI, ALONE, ENSEMBLE = "all-reduce", "lo-fi", "one worker", "ensemble"


def _check(config):
    check_fields(config, FIELDS)
    config = with_defaults(config, DEFAULTS)
    arguments.check_within("config.workers.count", config["workers"]["count"], "[2, inf)", whole=True)
    for every in config["exchange"]["every"]:
        arguments.check_within("config.exchange.every", every, "[1, inf)", whole=True)
    if not config["test_domains"]:
        raise ValueError("config.test_domains must name at least one domain, which no worker sees")
    if 1.0 not in config["all_reduce"]["factors"]:
        raise ValueError("config.all_reduce.factors must have 1.0, the rate of the workers: it is the baseline")


def _scenes(config, workdir) -> list[Trial]:
    return trials(with_defaults(config, DEFAULTS), workdir)


def _cook(trial: Trial) -> dict[str, Any]:
    say(f"\ntrial {trial.seed}")
    crew = Crew(trial.course(trial.data, *trial.test_domains))
    names = crew.fill()
    kitchen = crew.kitchen(names)
    settings = {name: trial.config[name] for name in CHANGEABLE[:2]}
    rows = trial.stage("rows", lambda: _rows(crew, kitchen, names), settings)
    found = {"splits": kitchen.described_splits, "reference": REFERENCE, "rows": rows}
    found |= {"claims": _claims(crew, rows), "members": trial.described(crew.course)}
    return found | {"facts": trial.facts, "notes": [*trial.notes, _NOTE]}


def _members(trial: Trial) -> None:
    Crew(trial.course(trial.data, *trial.test_domains)).fill()


_NOTE = (
    "Half of the held-out images of the domains that are trained on choose the strength of the probe that all begin "
    "with, and nothing else; the other half is the test in distribution."
)


@dataclasses.dataclass(frozen=True)
class Crew:
    """Hold the workers of one trial, and the runs that they are compared with."""

    course: Course

    @property
    def config(self) -> Mapping[str, Any]:
        """Return the section of the config about the workers."""
        return self.course.config["workers"]

    @property
    def count(self) -> int:
        """Return the number of workers."""
        return self.config["count"]

    @functools.cached_property
    def jobs(self) -> dict[str, Callable[[], tree.Tree]]:
        """Return what is trained, by title."""
        workers = [f"worker {index}" for index in range(self.count)]
        jobs = {name: functools.partial(self._alone, self._batches(index)) for index, name in enumerate(workers)}
        for factor in self.course.config["all_reduce"]["factors"]:
            title = REFERENCE if factor == 1.0 else f"{REFERENCE}, rate × {factor:g}"
            jobs[title] = functools.partial(self._all_reduce, factor)
        for every in self.course.config["exchange"]["every"]:
            jobs[f"local SGD, every {every} steps"] = functools.partial(self._exchanging, Exchange(every))
            jobs[f"DiLoCo, every {every} steps"] = functools.partial(self._exchanging, Exchange(every, self._outer))
        return jobs

    def fill(self) -> dict[str, str]:
        """Train what is not in the pool, beside other processes that may do so, and return the names by title."""
        names, pool = {title: self.course.name(title) for title in self.jobs}, self.course.pools["pool"]
        titles, done = {name: title for title, name in names.items()}, sum(name in pool for name in names.values())
        with progress(f"{self.course.called}: lo-fi", len(names), "runs", done=done) as advance:
            for name in (name for mine in claims(pool, list(titles)) for name in mine):
                pool.add(name, self.jobs[titles[name]](), {"config": dict(self.config), "seed": self.course.seed})
                there = sum(name in pool for name in names.values())
                advance(there - done)
                done = there
            advance(len(names) - done)
        return names

    # --- Training -----------------------------------------------------------------------------------------------------

    @functools.cached_property
    def probe(self) -> tree.Tree:
        """Return what all begin with."""
        return self.course.probe()

    def _batches(self, index) -> Callable[[], Iterator[Any]]:
        seed = seed_hash(self.course.prefix, index)
        return lambda: self.course.batches(seed, self.config["batch_size"])

    def _alone(self, batches, factor=1.0):
        placement = Alone(training_of(self.course.trunk))
        return placement.take(self._train(placement, {"": batches}, factor), 0)["params"]

    def _all_reduce(self, factor):
        """Train on the union of the minibatches that the workers see, whose gradient is the mean of theirs."""
        parts = [self._batches(index) for index in range(self.count)]
        return self._alone(lambda: map(_joined, zip(*(part() for part in parts), strict=False)), factor)

    def _exchanging(self, exchange):
        placement = InTurn(training_of(self.course.trunk), self.count, exchange)
        state = self._train(placement, {str(index): self._batches(index) for index in range(self.count)})
        return placement.take(state, 0)["params"]

    @functools.cached_property
    def _outer(self):
        return optax.sgd(**self.course.config["outer"], nesterov=True)

    def _train(self, placement, batches, factor=1.0):
        own = {name: self.config[name] for name in ("weight_decay", "warmup_fraction")}
        own |= {"num_steps": self.config["steps"], "learning_rate": factor * self.config["learning_rate"]}
        _, members = prepared(placement.training, self.probe, iter(()), dict.fromkeys(batches, own), None)
        return train(placement, self.probe, members, lambda name, *_: batches[name]())[0]

    # --- Measuring ----------------------------------------------------------------------------------------------------

    def kitchen(self, names: Mapping[str, str]) -> Kitchen:
        """Return what measures: on images of the domains that are trained on, and on each of the others."""
        course = self.course
        ends = np.cumsum([len(course.data[domain]) for domain in course.left_out])[:-1]
        parts = zip(*(np.split(one, ends) for one in (course.test.images, course.test.labels)), strict=True)
        halves = [Examples(*(one[place::2] for one in course.held_out[:2])) for place in (0, 1)]
        workers = [names[title] for title in self.jobs if title.startswith("worker ")]
        shifts = {domain: Examples(*part) for domain, part in zip(course.left_out, parts, strict=True)}
        kitchen = course.kitchen(workers, reference=course.pools["pool"][names[REFERENCE]])
        return dataclasses.replace(kitchen, held_out=halves[0], test=halves[1], shifts=shifts)

    def sent(self, exchanges: int) -> int:
        """Return the bytes that a worker sends in so many exchanges: what is trained of the network, each time."""
        trained, _ = tree.split_by(matched(training_of(self.course.trunk), self.probe)[0], self.probe)
        return exchanges * sum(leaf.nbytes for leaf in jax.tree.leaves(trained))


def _rows(crew: Crew, kitchen: Kitchen, names: Mapping[str, str]) -> list[Row]:
    """Return the rows of all runs, and of the average and the ensemble of the workers."""
    steps, used = crew.config["steps"], dict.fromkeys(kitchen.names, 1 / len(kitchen.names))

    def sending(row, exchanges):
        return row | {"cost": row["cost"] | {"sent": crew.sent(exchanges)}}

    mean = kitchen.single_rows()[1] | {"name": ALONE}
    rows = [kitchen.row("linear probe", "probe", kitchen.measure(crew.probe), {}), mean]
    rows = [sending(row, 0) for row in rows]
    for title in (title for title in crew.jobs if not title.startswith("worker ")):
        row = kitchen.row(title, "member", kitchen.measure(crew.course.pools["pool"][names[title]]), {})
        every = next((e for e in crew.course.config["exchange"]["every"] if title.endswith(f" {e} steps")), None)
        rows.append(sending(row, steps if every is None else Exchange(every).count(steps)))
    rows.append(sending(kitchen.uniform_row(LOFI), 1))
    ensemble = kitchen.row(ENSEMBLE, "ensemble", kitchen.judge(kitchen.mixed(used)), used, inference=len(used))
    return [*rows, sending(ensemble, 1)]


def _claims(crew: Crew, rows: list[Row]) -> list[dict[str, Any]]:
    """Return what the abstract claims, and more, with the differences of this trial."""
    accuracy = {row["name"]: {s: one["accuracy"] for s, one in row["metrics"].items()} for row in rows}
    margin, where = crew.course.config["claims"]["margin"], {"test": "in distribution", "shift_mean": "under shift"}

    def difference(better, than, split, extra=0.0):
        return accuracy[better][split] - accuracy[than][split] + extra

    points = f"{100 * margin:g} point{'' if margin == 0.01 else 's'}"
    title = f"{LOFI} at most {points} below {REFERENCE}, in distribution"
    found = {title: difference(LOFI, REFERENCE, "test", margin)}
    pairs = [(LOFI, REFERENCE), (LOFI, ALONE), (ENSEMBLE, LOFI), (REFERENCE, ALONE)]
    pairs += [(title, REFERENCE) for title in accuracy if title.startswith(("local SGD", "DiLoCo"))]
    for better, than in pairs:
        for split, called in where.items():
            found[f"{better} > {than}, {called}"] = difference(better, than, split)
    return [{"seed": crew.course.seed, "title": title, "value": value} for title, value in found.items()]


@functools.cache
def training_of(trunk: Trunk) -> Training:
    """Return the training of a network, one for all trials, so that they share their programs."""
    return Training(loss=trunk.loss, learning_rate_rules=trunk.frozen)


def _joined(batches: Iterable[Any]) -> Any:
    return jax.tree.map(lambda *parts: np.concatenate(parts), *batches)


run = Study(
    check=_check,
    scenes=_scenes,
    cook=_cook,
    members=_members,
    folders=("pool", "soups"),
    changeable=CHANGEABLE,
)
