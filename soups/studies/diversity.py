"""Ask what makes members diverse, what diversity gains, and whether members of one parent lie in one basin.

Members for one left-out domain differ by their minibatches alone, by their hyper-parameters, or by the auxiliary set
that their trunks were fine-tuned on before. Of each pair it is measured how differently they fail, what the average of
the two gains, and whether the straight path between them has a barrier (hypotheses 1 and 2 of Rame et al., "Model
ratatouille", 2022, arXiv 2212.10445), in the domains that they are trained on and in the one that is left out.
"""

import functools
import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

import soups
from soups import tree
from soups.evaluate import correct, q_diversity, ratio_error
from soups.progress import progress, say
from soups.studies.courses import Course
from soups.studies.kitchen import Kitchen
from soups.studies.rows import Row, mean_of
from soups.studies.study import Study, check_fields
from soups.studies.trials import Trial, over_domains, trials

FIELDS = {
    "": "study name seeds? first_seed? data_dir dataset auxiliary test_domains? image_size",
    "model": "arch start? frozen_stages? views?",
    "probe?": "strengths max_iterations?",
    "runs": "members steps evaluate_every mode? ranges? batch_size? learning_rate_factor?",
    "auxiliary_runs": "members steps",
    "ratatouille?": "head_steps",
    "pairs": "barrier_ts",
    "evaluate?": "batch_size",
}
PRETRAINED = "pre-trained"
DIFFER = ("seed", "hyper-parameters", "auxiliary start")
MEASURES = ("ratio_error", "q_diversity")


def _check(config):
    check_fields(config, FIELDS)
    if config["runs"]["members"] < 2 or not config["auxiliary"]:
        raise ValueError(
            "config.runs.members must be at least 2, and config.auxiliary must name a set: pairs need both"
        )


def _cook(trial: Trial) -> dict[str, Any]:
    say(f"\ntrial {trial.seed}")
    auxiliary = trial.auxiliary_members()
    rows, pairs, members = {}, [], []
    for domain in trial.test_domains:
        course = trial.course(trial.data, domain)
        groups = _groups(course, auxiliary)
        kitchen = course.kitchen(itertools.chain(*groups.values()))
        rows[domain] = trial.stage(f"{domain} rows", functools.partial(_rows, kitchen, groups))
        settings = trial.config["pairs"]
        pairs += trial.stage(f"{domain} pairs", lambda: _pairs(kitchen, groups, domain, settings), settings)  # noqa: B023
        members += trial.described(course)
    found = {"rows": over_domains(rows), "pairs": pairs, "claims": _claims(trial.seed, pairs), "members": members}
    return {"splits": trial.described_splits, "facts": trial.facts, "notes": trial.notes} | found


def _members(trial: Trial) -> None:
    """Make all members."""
    auxiliary = trial.auxiliary_members()
    for domain in trial.test_domains:
        _groups(trial.course(trial.data, domain), auxiliary)


def _groups(course: Course, auxiliary: Mapping[str, Sequence[tree.Tree]]) -> dict[str, list[str]]:
    """Return members by what they start from; "seed" are those from the pre-trained trunk that are trained alike."""
    probe, count = course.probe(), course.config["runs"]["members"]
    starts = dict.fromkeys(range(count), lambda: probe)
    groups = {"seed": course.fill("alike", starts, alike=True), PRETRAINED: course.fill("probed", starts)}
    for name, several in auxiliary.items():
        starts = {i: functools.partial(course.with_head_of, probe, several[i % len(several)]) for i in range(count)}
        head_steps = course.config["ratatouille"]["head_steps"]
        groups[name] = course.fill(f"from_{name}", starts, head_steps=head_steps)
    return {name: list(group.values()) for name, group in groups.items()}


# --- Averages of members from two starts ------------------------------------------------------------------------------


def _rows(kitchen: Kitchen, groups: Mapping[str, Sequence[str]]) -> list[Row]:
    """Return members' rows, the averages of each group, and those of as many members with a share of another start."""
    rows = kitchen.single_rows()[:2]
    for name, group in groups.items():
        params = soups.uniform(kitchen.usable(group))
        rows.append(kitchen.soup_row(f"uniform soup, {_called(name)}", params, dict.fromkeys(group, 1 / len(group))))
    first, count = groups[PRETRAINED], len(groups[PRETRAINED])
    for name in [name for name in groups if name not in ("seed", PRETRAINED)]:
        for number in range(count + 1):
            used = [*first[: count - number], *groups[name][count - number :]]
            place = {"group": "curve", "of": {"share": number / count}}
            average = kitchen.measure(soups.uniform(kitchen.usable(used)))
            rows.append(kitchen.row(f"uniform soup with {name}", "soup", average, {}, **place))
            mean = {"metrics": mean_of([kitchen.measured[member].metrics for member in used]), "wins": {}}
            rows.append(rows[-1] | {"name": f"mean member with {name}", "kind": "members"} | mean)
    return rows


def _called(name):
    return {"seed": "other seeds", PRETRAINED: "other hyper-parameters"}.get(name, f"from {name}")


# --- Pairs ------------------------------------------------------------------------------------------------------------


def _pairs(kitchen: Kitchen, groups, domain: str, config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Measure pairs of members: all of a group, and those of one run from two starts."""
    within = {"seed": groups["seed"], "hyper-parameters": groups[PRETRAINED]}
    pairs = [(differ, a, b) for differ, group in within.items() for a, b in itertools.combinations(group, 2)]
    starts = [group for name, group in groups.items() if name != "seed"]
    for one, other in itertools.combinations(starts, 2):
        pairs += [("auxiliary start", *pair) for pair in zip(one, other, strict=True)]
    found, title = [], f"{domain}: pairs of members"
    with progress(title, len(pairs), "pairs") as advance:
        for differ, a, b in pairs:
            place = {"seed": kitchen.seed, "a": kitchen.short(a), "b": kitchen.short(b)}
            values = _measured(kitchen, a, b, config["barrier_ts"])
            found.append({**place, "of": {"domain": domain, "differ": differ}, "values": values})
            advance(1)
    return found


def _measured(kitchen: Kitchen, a: str, b: str, ts: Sequence[float]) -> dict[str, float]:
    ends = [kitchen.member_logits(name) for name in (a, b)]
    path = {t: kitchen.measure(tree.lerp(kitchen.members[a], kitchen.members[b], t)).metrics for t in {*ts, 0.5}}
    right = [correct(logits["test"], kitchen.test.labels) for logits in ends]
    found = {"ratio_error": ratio_error(*right), "q_diversity": q_diversity(*right)}
    for split, suffix in (("test", ""), ("held_out", "_in_domain")):
        here, there = (kitchen.measured[name].metrics[split]["accuracy"] for name in (a, b))
        between = {t: metrics[split]["accuracy"] for t, metrics in path.items()}
        found[f"gain{suffix}"] = between[0.5] - (here + there) / 2
        found[f"barrier{suffix}"] = max(0.0, *((1 - t) * here + t * there - found for t, found in between.items()))
    return found


def _claims(seed: int, pairs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what the papers say of pairs, and the numbers of this trial."""

    def mean(differ, value):
        return statistics.fmean(pair["values"][value] for pair in pairs if pair["of"]["differ"] == differ)

    found, unit = {}, {}
    for more, less in itertools.combinations(reversed(DIFFER), 2):
        title = f"q-diversity: another {more} > another {less}"
        found[title], unit[title] = mean(more, "q_diversity") - mean(less, "q_diversity"), "q-diversity"
    for measure in MEASURES:
        columns = np.array([[pair["values"][name] for name in (measure, "gain")] for pair in pairs]).T
        title = f"the more diverse a pair ({measure.replace('_', '-')}), the more its average gains"
        if np.ptp(columns, axis=1).all():
            found[title], unit[title] = float(scipy.stats.spearmanr(*columns).statistic), "correlation"
    for differ in DIFFER:
        found[f"the average gains out of domain, another {differ}"] = mean(differ, "gain")
        for suffix, where in (("", "out of domain"), ("_in_domain", "in domain")):
            title = f"barrier of 1 point or less {where}, another {differ}"
            found[title] = 0.01 - mean(differ, f"barrier{suffix}")
    return [
        {"seed": seed, "title": title, "value": value} | ({"unit": unit[title]} if title in unit else {})
        for title, value in found.items()
    ]


run = Study(
    check=_check,
    scenes=trials,
    cook=_cook,
    members=_members,
    folders=("pool",),
    changeable=("pairs",),
)
