"""Choose runs, soups and settings otherwise than by held-out images of the domains that are trained on.

DomainBed compares three ways of choosing: by held-out images of the training domains, by leaving one more of them out,
and on the domain that is tested itself, which no user could do and which bounds what choosing can gain.
"""

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import soups
from soups import tree
from soups.studies.courses import Course
from soups.studies.kitchen import Kitchen
from soups.studies.rows import Row

ON_TEST, LEFT_OUT = "{}, oracle", "{}, leave-one-out"
ORACLE = {"kind": "oracle"}
Families = Mapping[str, Mapping[int, str]]
Make = Callable[[Mapping[int, tree.Tree], Course], tree.Tree]


@dataclasses.dataclass(frozen=True)
class OneMore:
    """Hold for each other domain the members that were trained without it too, by family and run, and their courses."""

    courses: Mapping[str, Course]
    families: Mapping[str, Families]

    def accuracy(self, make: Make, family: str, kind: str = "pool") -> float:
        """Return the mean accuracy on the other domains of what is made of members that were made without each.

        `make` is given the members of a family by run, from the pools of a kind, and their course.
        """
        found = []
        for domain, course in self.courses.items():
            names = self.families[domain][family]
            members = {run: course.pools[kind][name] for run, name in names.items()}
            found.append(course.accuracy(make(members, course), domain))
        return statistics.fmean(found)

    def scores(self, family: str, kind: str = "pool") -> dict[int, float]:
        """Return the accuracy of each run."""
        runs = next(iter(self.families.values()))[family]
        return {run: self.accuracy(lambda members, _, run=run: members[run], family, kind) for run in runs}

    def greedy(self, family: str) -> list[int]:
        """Return the runs of the greedy soup, the best first."""

        def average_of(some):
            return self.accuracy(lambda members, _: soups.uniform([members[run] for run in some]), family)

        return _taken(self.scores(family), average_of)


def _taken(scores: Mapping[Any, float], average_of: Callable[[list], float]) -> list:
    """Return what a greedy soup takes, by the score of each and of the average of some."""
    first, *order = sorted(reversed(scores), key=lambda one: -scores[one])
    taken, best = [first], scores[first]
    for one in order:
        if (score := average_of([*taken, one])) >= best:
            taken, best = [*taken, one], score
    return taken


def best_rows(kitchen: Kitchen, title: str, runs: Mapping[int, str], scores: Mapping[int, float] | None) -> list[Row]:
    """Return rows of the runs that are best on the test domain, and by the scores of `OneMore` where there are any."""
    rows = [kitchen.named_row(kitchen.best(_on_test(kitchen)), ON_TEST.format(title)) | ORACLE]
    if scores is not None:
        rows.append(kitchen.named_row(runs[kitchen.best(scores)], LEFT_OUT.format(title)))
    return rows


def greedy_rows(kitchen: Kitchen, title: str, runs: Mapping[int, str], chosen: Iterable[int] | None) -> list[Row]:
    """Return rows of greedy soups: of members that are taken by the test domain, and of those that `OneMore` takes."""

    def average(names):
        return soups.uniform(kitchen.usable(names))

    told = _taken(_on_test(kitchen), lambda names: kitchen.evaluators["test"](average(names))["accuracy"])
    by_title = {ON_TEST: told} | ({} if chosen is None else {LEFT_OUT: [runs[run] for run in chosen]})
    rows = [
        kitchen.soup_row(how.format(title), average(names), dict.fromkeys(names, 1 / len(names)))
        for how, names in by_title.items()
    ]
    return [rows[0] | ORACLE, *rows[1:]]


def _on_test(kitchen):
    return {name: found.metrics["test"]["accuracy"] for name, found in kitchen.measured.items()}


def best_settings(
    tried: list[Row], settings: list[Mapping[str, Any]], title: str, score: Callable[[Mapping], float] | None
) -> list[Row]:
    """Return rows of a method with the settings that are best on held-out data, on the test domain, and by a score."""
    where = {split: [row["metrics"][split]["accuracy"] for row in tried] for split in ("held_out", "test")}
    rows = [tried[where["held_out"].index(max(where["held_out"]))] | {"name": title}]
    if len(tried) > 1:
        rows.append(tried[where["test"].index(max(where["test"]))] | {"name": ON_TEST.format(title)} | ORACLE)
        if score is not None:
            scores = [score(one) for one in settings]
            rows.append(tried[scores.index(max(scores))] | {"name": LEFT_OUT.format(title)})
    return rows
