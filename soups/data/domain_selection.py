"""Select among runs as DomainBed does, and put their accuracies into its tables.

A record is what DomainBed writes for a step of a run, a line of its results.jsonl: {"step", "env0_in_acc",
"env0_out_acc", "env1_in_acc", ..., "args": {"dataset", "algorithm", "test_envs", "hparams_seed", "trial_seed"}}, where
"in" is the part of an environment that is trained on, and reported of a test domain, and "out" the one held out.

Gulrajani and Lopez-Paz, 2020 (arXiv 2007.01434), and the repository at b93c22a.
"""

import collections
import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from soups.data.domainbed import SETS
from soups.files import PathLike
from soups.formats.text import numbered_lines, read_text

Record = Mapping[str, Any]
_ARGUMENTS = ("dataset", "algorithm", "test_envs", "hparams_seed", "trial_seed")


class Selected(NamedTuple):
    """Hold the accuracy that a run is selected by, and the one on the test domain that is reported then."""

    validation: float
    test: float


def training_domain_validation(records: Iterable[Record], test: int) -> Selected | None:
    """Return the step of a run that is best on the held-out parts of its training domains; of equal ones the first.

    `records` of other test domains, or of two, are left out; None where nothing is left.
    """

    def step(record):
        others = [record[f"env{place}_out_acc"] for place in range(_environments(record)) if place != test]
        return Selected(float(np.mean(others)), record[f"env{test}_in_acc"])

    return _best(map(step, _single(records, test)))


def oracle(records: Iterable[Record], test: int) -> Selected | None:
    """Return the last step of a run, by what is held out of the test domain: no step is chosen by it."""
    own = _single(records, test)
    if not own:
        return None
    last = max(reversed(own), key=lambda record: record["step"])  # of equal steps the later one
    return Selected(last[f"env{test}_out_acc"], last[f"env{test}_in_acc"])


def leave_one_domain_out(records: Iterable[Record], test: int) -> Selected | None:
    """Return the step that is best by cross-validation over training domains; of equal ones the first.

    What a domain v says of a step is the accuracy on it of the run that holds out both it and `test`; what is reported
    is that of the run that holds out `test` alone. Steps of which any run is missing are left out.
    """
    steps = collections.defaultdict(list)
    for record in records:
        if test in record["args"]["test_envs"]:
            steps[record["step"]].append(record)
    return _best(found for step in sorted(steps) if (found := _cross_validated(steps[step], test)))


SELECTIONS: dict[str, Callable[[Iterable[Record], int], Selected | None]] = {
    "training-domain validation set": training_domain_validation,
    "leave-one-domain-out cross-validation": leave_one_domain_out,
    "test-domain validation set (oracle)": oracle,
}


def selected_accuracy(
    records: Iterable[Record], test: int, select: Callable[[Iterable[Record], int], Selected | None]
) -> float | None:
    """Return the test accuracy of the best of several runs, which differ in "hparams_seed"; None where there is none.

    `records`: of one trial, set and algorithm. Of runs that are equally good it is the one with the largest seed.
    """
    runs = collections.defaultdict(list)
    for record in records:
        runs[record["args"]["hparams_seed"]].append(record)
    found = [run for seed in sorted(runs, reverse=True) if (run := select(runs[seed], test))]
    best = _best(found)
    return None if best is None else best.test


def cell(accuracies: Sequence[float]) -> str:
    """Return the mean and its standard error over trials in per cent, such as "20.0 +/- 4.7"; "X" where there are none.

    The standard error is that of DomainBed: the population's standard deviation over the root of the number.
    """
    if not len(accuracies):
        return "X"
    return f"{100 * np.mean(accuracies):.1f} +/- {100 * np.std(np.array(accuracies) / np.sqrt(len(accuracies))):.1f}"


def read_records(folder: PathLike) -> list[Record]:
    """Return the records of all runs in a folder, the lines of each FOLDER/RUN/results.jsonl, by the names of the runs.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no run in it; a line that is no record, such as one that was not written to its end.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of runs")
    files = [folder / name / "results.jsonl" for name in sorted(os.listdir(folder))]
    records = [record for file in files if file.is_file() for record in _lines(file)]
    if not records:
        raise ValueError(f"{folder}: no records: a run is a folder in it with a file results.jsonl")
    return records


def tables(records: Sequence[Record]) -> str:
    """Return DomainBed's tables of records: for each way to select one for each set, and one of the sets' averages.

    Lines are those that its collect_results prints, but for blanks at their ends; algorithms come after ERM in the
    order of their names.
    """
    text = [f"Total records: {len(records)}"]
    algorithms = sorted({record["args"]["algorithm"] for record in records}, key=lambda name: (name != "ERM", name))
    datasets = sorted({record["args"]["dataset"] for record in records})
    groups = collections.defaultdict(list)
    for record in records:
        arguments = record["args"]
        for test in arguments["test_envs"]:
            groups[arguments["dataset"], arguments["algorithm"], test, arguments["trial_seed"]].append(record)
    for method, select in SELECTIONS.items():
        found = {key: selected_accuracy(group, key[2], select) for key, group in groups.items()}
        found = {key: value for key, value in sorted(found.items()) if value is not None}
        for dataset in datasets:
            names = _names(dataset, records)
            tests = range(len(names))
            rows = [[_trials(found, dataset, algorithm, test) for test in tests] for algorithm in algorithms]
            text += _table(f"Dataset: {dataset}, model selection method: {method}", algorithms, names, rows, 20)
        rows = [[_trial_means(found, dataset, algorithm) for dataset in datasets] for algorithm in algorithms]
        text += _table(f"Averages, model selection method: {method}", algorithms, datasets, rows, 25)
    return "\n".join(text) + "\n"


def _best(found: Iterable[Selected]) -> Selected | None:
    """Return the first of the best; one that is not a number is never better."""
    return max(found, key=lambda one: -math.inf if math.isnan(one.validation) else one.validation, default=None)


def _single(records, test):
    return [record for record in records if list(record["args"]["test_envs"]) == [test]]


def _environments(record):
    return sum(bool(re.fullmatch(r"env\d+_out_acc", name)) for name in record)


def _cross_validated(records, test) -> Selected | None:
    own = _single(records, test)
    pairs = {}
    for record in records:
        if len(record["args"]["test_envs"]) == 2:
            (other,) = {*record["args"]["test_envs"]} - {test}
            pairs[other] = record[f"env{other}_in_acc"]
    others = [place for place in range(_environments(records[0])) if place != test]
    if len(own) != 1 or any(place not in pairs for place in others):
        return None
    return Selected(float(np.mean([pairs[place] for place in others])), own[0][f"env{test}_in_acc"])


def _trials(found, *group) -> list[float]:
    return [value for key, value in found.items() if key[:3] == group]


def _trial_means(found, dataset, algorithm) -> list[float]:
    """Return for each trial the mean over test domains."""
    trials = collections.defaultdict(list)
    for (one, of, _, trial), value in found.items():
        if (one, of) == (dataset, algorithm):
            trials[trial].append(value)
    return [float(np.mean(trials[trial])) for trial in sorted(trials)]


def _names(dataset, records) -> Sequence[str]:
    if dataset in SETS:
        return SETS[dataset].environments
    return [str(place) for place in range(max(_environments(r) for r in records if r["args"]["dataset"] == dataset))]


def _table(title, labels, columns, rows, width) -> list[str]:
    lines = [["Algorithm", *columns, "Avg"]]
    for label, row in zip(labels, rows, strict=True):
        average = "X" if not all(row) else f"{sum(100 * np.mean(values) for values in row) / len(row):.1f}"
        lines.append([label, *map(cell, row), average])
    return ["", f"-------- {title}", *("  ".join(one.ljust(width)[:width] for one in line).rstrip() for line in lines)]


def _lines(file) -> Iterable[Record]:
    for number, line in numbered_lines(read_text(file)):
        try:
            record = json.loads(line)
            whole = "step" in record and all(name in record["args"] for name in _ARGUMENTS) and _environments(record)
        except (ValueError, TypeError, KeyError):
            whole = False
        if not whole:
            raise ValueError(f"{file}: line {number} is not the record of a run: {line[:100]!r}")
        yield record
