"""Recycle fine-tuned networks for domains that nobody trained on: read from top to bottom.

Members are fine-tuned on all domains of a set but one, and tested on that one: from a random head, from a linear probe
(Rame et al., "DiWA", 2022, arXiv 2205.09739), and with that probe's head from networks that were fine-tuned on other
sets before (Rame et al., "Model ratatouille", 2022, arXiv 2212.10445). The protocol is DomainBed's.
"""

import functools
import random
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

import soups
from soups import tree
from soups.evaluate import ensemble_logits
from soups.names import check_name
from soups.progress import say
from soups.recipes import METHODS
from soups.studies.choosing import OneMore, best_rows, best_settings, greedy_rows
from soups.studies.courses import Course
from soups.studies.kitchen import Kitchen
from soups.studies.rows import Row, claims_of
from soups.studies.study import Study, check_fields
from soups.studies.trials import Trial, over_domains, trials
from soups.train import search

FIELDS = {
    "": "study name seeds? first_seed? data_dir dataset auxiliary test_domains? image_size leave_one_out?",
    "model": "arch start? frozen_stages? views?",
    "probe?": "strengths max_iterations?",
    "runs": "members steps evaluate_every mode? ranges? batch_size? learning_rate_factor?",
    "auxiliary_runs": "members steps",
    "ratatouille?": "head_steps",
    "fusing?": "members range?",
    "methods?": " ".join(f"{name}?" for name in METHODS),
    "fisher?": "examples",
    "evaluate?": "batch_size",
}
#: test accuracies in percent, from the README of the repositories diwa and ModelRatatouille
PUBLISHED_ROWS = ("ERM", "MA", "SWAD", "uniform soup", "greedy soup", "inter-training", "fusing")
PUBLISHED_ROWS += ("model ratatouille, uniform", "model ratatouille, greedy")
PUBLISHED = {
    "PACS": (85.9, 87.5, 88.1, 88.7, 88.0, 89.0, 88.0, 89.5, 90.5),
    "VLCS": (78.1, 78.2, 79.1, 78.4, 78.5, 77.7, 78.5, 78.5, 78.7),
    "OfficeHome": (69.4, 70.6, 70.6, 72.1, 71.5, 69.9, 71.5, 73.1, 73.4),
    "TerraIncognita": (50.4, 50.3, 50.0, 51.4, 51.6, 46.7, 46.7, 51.8, 49.2),
    "DomainNet": (44.3, 46.0, 46.5, 47.4, 47.7, 44.5, 44.4, 47.5, 47.7),
}
#: of ERM by domain, chosen by training-domain validation, from Gulrajani and Lopez-Paz
PUBLISHED_ERM = {
    "PACS": {"A": 84.7, "C": 80.8, "P": 97.2, "S": 79.3},
    "VLCS": {"C": 97.7, "L": 64.3, "S": 73.4, "V": 74.6},
    "OfficeHome": {"A": 61.3, "C": 52.4, "P": 75.8, "R": 76.6},
    "TerraIncognita": {"L100": 49.8, "L38": 42.1, "L43": 56.9, "L46": 35.7},
    "DomainNet": {"clip": 58.1, "info": 18.8, "paint": 46.7, "quick": 12.2, "real": 59.6, "sketch": 49.8},
}
CHANGEABLE = ("methods", "fisher", "leave_one_out")  # what the members do not depend on
REFERENCE, RECYCLED = "ERM", "model ratatouille, {}"
#: rows of one run, by the family that it is chosen from and the kind of its weights
BEST = {REFERENCE: ("probed", "pool"), "MA": ("probed", "ma"), "SWAD": ("probed", "swad")}
BEST |= {"ERM from a random head": ("random_head", "pool"), "fusing": ("fused", "pool")}
BEST |= {"inter-training": ("recycled", "pool")}
SOUPS = {"probed": "{} soup", "random_head": "{} soup from a random head", "recycled": RECYCLED}


def _check(config):
    check_fields(config, FIELDS)
    if config["runs"]["members"] < 2:
        raise ValueError("config.runs.members must be at least 2: soups need two members")
    for name, settings in config.get("methods", {}).items():
        method = METHODS[name]
        if method.single or method.beside:
            raise ValueError(f"config.methods.{name}: this method takes more than members")
        for setting in settings:
            check_name(setting, method.defaults, f"setting of method {name}")


def _cook(trial: Trial) -> dict[str, Any]:
    say(f"\ntrial {trial.seed}")
    auxiliary = trial.auxiliary_members()
    by_domain, members = {}, []
    settings = {name: trial.config[name] for name in CHANGEABLE}
    for domain in trial.test_domains:
        course = trial.course(trial.data, domain)
        make = functools.partial(_rows, trial, course, auxiliary)
        by_domain[domain] = trial.stage(f"{domain} rows", make, settings)
        members += trial.described(course)
    return {
        "splits": trial.described_splits,
        "reference": REFERENCE,
        "rows": beside_published(trial.data.name, rows := over_domains(by_domain)),
        "claims": _claims(trial, rows),
        "members": members,
        "facts": trial.facts,
        "notes": trial.notes + _told(trial.data.name),
    }


def _members(trial: Trial) -> None:
    """Make all members, those of each domain and of each pair of them where that is asked."""
    auxiliary = trial.auxiliary_members()
    for domain in trial.test_domains:
        _families(trial.course(trial.data, domain), auxiliary)
        if trial.config["leave_one_out"]:
            _one_more(trial, domain, auxiliary)


def beside_published(name: str, rows: list[Row]) -> list[Row]:
    """Return rows with what was published for a set of this name: the mean where all of its domains are tested."""
    found = dict(zip(PUBLISHED_ROWS, ({"test": value} for value in PUBLISHED.get(name, ())), strict=False))
    domains = PUBLISHED_ERM.get(name, {})
    found |= {REFERENCE: found[REFERENCE] | domains} if found else {}

    def beside(row):
        there = row["metrics"].keys() if domains.keys() <= row["metrics"].keys() else row["metrics"].keys() - {"test"}
        known = {split: value for split, value in found.get(row["name"], {}).items() if split in there}
        numbers = {split: {"value": value / 100, "exact": False} for split, value in known.items()}
        return row | ({"published": numbers} if numbers else {})

    return [beside(row) for row in rows]


def _told(name: str) -> list[str]:
    """Return what must be said of published numbers, if there are any."""
    if name not in PUBLISHED:
        return []
    return ["What was published is of ResNet-50 with 224 pixels and 5,000 steps, soups of 20 members or more."]


# --- One domain that is left out --------------------------------------------------------------------------------------


def _rows(trial: Trial, course: Course, auxiliary: Mapping[str, Sequence[tree.Tree]]) -> list[Row]:
    """Make the members that are tested on one domain, and return the rows of all that is cooked of them."""
    probe, made = course.probe(), _families(course, auxiliary)
    more = _one_more(trial, course.left_out[0], auxiliary) if trial.config["leave_one_out"] else None
    first = course.kitchen(made["probed"].values())
    reference = first.members[first.best()]
    kitchens = {name: course.kitchen(runs.values(), reference=reference) for name, runs in made.items()}

    kitchen = kitchens["probed"] = first
    rows = [kitchen.row("linear probe", "probe", kitchen.measure(probe), {}), *kitchen.single_rows()[:2]]
    rows[1] |= {"name": REFERENCE}
    for title, (family, kind) in BEST.items():
        if family in made:
            runs = made[family]
            some = kitchens[family] if kind == "pool" else course.kitchen(runs.values(), kind, reference)
            found = [] if title == REFERENCE else [some.named_row(some.best(), title)]
            found += best_rows(some, title, runs, more and more.scores(family, kind))
            averaged = {} if kind == "pool" else {"kind": "trajectory"}
            rows += [row | (averaged if row["kind"] == "member" else {}) for row in found]
    for family, titles in SOUPS.items():
        if family in made:
            kitchen, title = kitchens[family], titles.format("greedy")
            rows += [kitchen.uniform_row(titles.format("uniform")), kitchen.greedy_row(title)[0]]
            rows += greedy_rows(kitchen, title, made[family], more and more.greedy(family))
    for family, title in {"probed": "ensemble", "recycled": "ensemble of recycled members"}.items():
        rows += _ensembles(kitchens[family], title) if family in made else []
    last = "recycled" if "recycled" in made else "probed"
    if last == "recycled":
        rows += _of_single_sets(course, made[last], list(auxiliary), reference)
    return rows + _merges(kitchens[last], course, probe, last, more)


def _families(course: Course, auxiliary: Mapping[str, Sequence[tree.Tree]]) -> dict[str, dict[int, str]]:
    """Make members from each kind of start, and return their names by run."""
    probe, runs = course.probe(), range(course.config["runs"]["members"])
    plain = course.fill("probed", dict.fromkeys(runs, lambda: probe), averages=True)
    made = {"probed": plain, "random_head": course.fill("random_head", dict.fromkeys(runs, course.unprobed))}
    made |= {"recycled": _recycled(course, probe, auxiliary, plain), "fused": _fused(course, probe, auxiliary)}
    return {name: runs for name, runs in made.items() if runs}


def _one_more(trial: Trial, domain: str, auxiliary: Mapping[str, Sequence[tree.Tree]]) -> OneMore:
    """Make the same members without one more domain, for each of the others."""
    others = [one.environment for one in trial.data if one.environment != domain]
    courses = {other: trial.course(trial.data, *sorted((domain, other))) for other in others}
    return OneMore(courses, {other: _families(course, auxiliary) for other, course in courses.items()})


def _recycled(course, probe, auxiliary, plain) -> dict[int, str]:
    """Return members, by their runs, that start from the pre-trained trunk, which are there, or an auxiliary one."""
    starts, kinds = {}, list(auxiliary)
    for index in plain:
        if turn := index % (len(kinds) + 1):
            several = auxiliary[kinds[turn - 1]]
            starts[index] = functools.partial(course.with_head_of, probe, several[index % len(several)])
    made = course.fill("recycled", starts, head_steps=course.config["ratatouille"]["head_steps"])
    return {index: made.get(index, name) for index, name in plain.items()} if kinds else {}


def _of_single_sets(course, recycled, sets, reference) -> list[Row]:
    """Return the uniform soup of the members whose trunks are pre-trained or of one auxiliary set, for each of them."""
    rows = []
    for turn, name in enumerate(sets if len(sets) > 1 else [], 1):
        some = [member for index, member in recycled.items() if index % (len(sets) + 1) in (0, turn)]
        kitchen = course.kitchen(some, reference=reference)
        rows.append(kitchen.uniform_row(RECYCLED.format(f"only {name}")))
    return rows


def _fused(course, probe, auxiliary) -> dict[int, str]:
    """Return members that start from averages of all trunks, with weights drawn for each."""
    config, others = course.config["fusing"], [member for several in auxiliary.values() for member in several]

    def start(index):
        generator, count = random.Random(index), len(others) + 1
        shares = np.exp([config["range"] * generator.random() for _ in range(count)])
        trunks = [probe, *(course.with_head_of(probe, member) for member in others)]
        return soups.weighted(trunks, weights=shares / shares.sum())

    starts = {index: lambda index=index: start(index) for index in range(config["members"])} if others else {}
    return course.fill("fused", starts, head_steps=course.config["ratatouille"]["head_steps"])


def _ensembles(kitchen: Kitchen, title: str) -> list[Row]:
    rows, used = [], dict.fromkeys(kitchen.names, 1 / len(kitchen.names))
    for space in ("logits", "probabilities"):
        logits = {
            split: ensemble_logits([kitchen.member_logits(name, [split])[split] for name in used], space=space)
            for split in kitchen.splits
        }
        found = kitchen.judge(logits)
        rows.append(kitchen.row(f"{title}, {space}", "ensemble", found, used, inference=len(used)))
    return rows


def _merges(kitchen: Kitchen, course: Course, probe: tree.Tree, family: str, more: OneMore | None) -> list[Row]:
    """Return rows of each other method, with those of its settings that are best."""
    rows = []
    for name, choices in course.config["methods"].items():
        method, grid = METHODS[name], list(search.grid(**choices)) or [{}]
        tried = [kitchen.merged_row(f"{name} {settings}", (method, settings), probe) for settings in grid]

        def score(settings, method=method):
            def make(members, course):
                base = {} if method.base == "none" else {"base": course.probe()}
                return method(list(members.values()), **base, **settings)

            return more.accuracy(make, family)

        rows += best_settings(tried, grid, method.name, more and score)
    if count := course.config["fisher"]["examples"]:
        some = jax.numpy.asarray(kitchen.held_out.images[:count])

        def fisher(members):
            options = {"estimator": "sampled", "key": jax.random.key(course.seed)}
            made = [soups.fisher_information(course.trunk.logits, one, some, **options) for one in members.values()]
            return soups.fisher(members, made)

        rows.append(kitchen.merged_row("fisher", fisher))
    return rows


def _claims(trial, rows) -> list[dict[str, Any]]:
    """Return what the papers say is better, and by how much it was in this trial."""
    pairs = [
        ("uniform soup", REFERENCE),
        ("greedy soup", REFERENCE),
        ("uniform soup", "uniform soup from a random head"),
    ]
    uniform, greedy = RECYCLED.format("uniform"), RECYCLED.format("greedy")
    single = [RECYCLED.format(f"only {name}") for name in trial.auxiliary]
    pairs += [(uniform, "uniform soup"), (greedy, "greedy soup"), *((name, REFERENCE) for name in (uniform, *single))]
    pairs += [("inter-training", REFERENCE), ("fusing", REFERENCE), (uniform, "ensemble, logits")]
    return claims_of(trial.seed, rows, pairs)


run = Study(
    check=_check,
    scenes=trials,
    cook=_cook,
    members=_members,
    folders=("pool", "soups"),
    changeable=CHANGEABLE,
)
