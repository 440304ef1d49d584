"""Fuse fine-tuned networks into a better start, and ask which of them to fuse: read from top to bottom.

Each set in turn is the target; the others are the sources, on which the pre-trained network was fine-tuned before. What
is fine-tuned on the target then starts from the pre-trained trunk, from the average of the sources' (Choshen et al.,
"Fusing finetuned models for better pretraining", 2022, arXiv 2204.03044), from one of them (inter-training: "Where to
start?", 2022, arXiv 2211.00107), from the trunk of multi-task learning on all sources, and from the shared one of ColD
fusion (Don-Yehiya et al., 2022, arXiv 2212.01378).
"""

import dataclasses
import functools
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jax

import soups
from soups import tree
from soups.data.domainbed import seed_hash
from soups.evaluate import accuracy
from soups.evaluate.ranking import rank_by_score, rank_by_similarity, rank_greedily
from soups.pool.claims import made_once
from soups.progress import say
from soups.studies.courses import Course, adam
from soups.studies.rows import Row, claims_of, mean_of, splits_of
from soups.studies.study import Study, check_fields
from soups.studies.trials import Trial, trials
from soups.train import extract_features, fit, probe_on_features

FIELDS = {
    "": "study name seeds? first_seed? data_dir dataset auxiliary image_size weight_decays",
    "model": "arch start? frozen_stages? views?",
    "probe?": "strengths max_iterations?",
    "runs": "members steps evaluate_every mode? ranges? batch_size? learning_rate_factor?",
    "auxiliary_runs": "steps",
    "ratatouille?": "head_steps",
    "cold": "rounds steps",
    "joint": "steps",
    "evaluate?": "batch_size",
}
REFERENCE = "pre-trained start"
Accuracies = Mapping[str, Mapping[str, float]]


def _check(config):
    check_fields(config, FIELDS)
    if len(config["auxiliary"]) < 2:
        raise ValueError("config.auxiliary must name at least 2 sets: with config.dataset each target has 2 to fuse")
    if not config["weight_decays"]:
        raise ValueError("config.weight_decays must name at least one, such as (0.0,)")


def _cook(trial: Trial) -> dict[str, Any]:
    say(f"\ntrial {trial.seed}")
    courses = {name: trial.course(data) for name, data in trial.sets.items()}
    found: dict[str, dict[str, Accuracies]] = {}
    for decay in trial.config["weight_decays"]:
        fused = _Fusing(trial, courses, decay)
        for target in courses:
            made = trial.stage(f"{target}, decay {decay:g}", functools.partial(fused.on_target, target))
            found.setdefault(target, {}).update(made)
    rows = over_targets(trial.seed, found)
    return {
        "splits": splits_of({n: (len(one.held_out.labels) // 2,) * 2 for n, one in courses.items()}, "targets"),
        "reference": REFERENCE,
        "rows": rows,
        "claims": _claims(trial, rows),
        "facts": trial.facts,
        "notes": trial.notes,
    }


def _members(trial: Trial) -> None:
    """Make all members, the last first, for another process makes the first ones."""
    courses = {name: trial.course(data) for name, data in trial.sets.items()}
    for decay in reversed(trial.config["weight_decays"]):
        fused = _Fusing(trial, courses, decay)
        for name in reversed(courses):
            fused.source(name)
        for target in reversed(courses):
            fused.on_target(target)


# --- One target -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Fusing:
    """Hold the courses of all sets, and how the trunks are trained that are fused."""

    trial: Trial
    courses: Mapping[str, Course]
    decay: float

    def on_target(self, target: str) -> dict[str, Accuracies]:
        """Return for each start, and each choice of sources, the accuracy after fine-tuning on the target."""
        course, sources = self.courses[target], [name for name in self.courses if name != target]
        trunks = {name: self.source(name) for name in sources}
        tuned = functools.partial(self.tuned, course)
        sizes = range(1, len(sources) + 1)
        subsets = [frozenset(some) for size in sizes for some in itertools.combinations(sources, size)]
        values = {some: tuned("+".join(sorted(some)), self.fused(trunks, some)) for some in subsets}
        found = {REFERENCE: tuned("pre-trained", course.start)}
        single = {name: values[frozenset([name])] for name in sources}
        held_out = {name: one["held_out"]["accuracy"] for name, one in single.items()}
        found["inter-training, mean"] = mean_of(list(single.values()))
        found["inter-training, best on held-out"] = single[rank_by_score(held_out)[0]]
        found["fusing all"] = values[frozenset(sources)]
        found["multi-task learning"] = tuned("joint", self.joint(sources))
        found |= {f"ColD fusion, round {n}": tuned(f"cold{n}", one) for n, one in self.cold(sources).items()}
        average = soups.uniform([self.member(course, name) for name in ("pre-trained", *sources)])
        found["model ratatouille"] = self.measured(course, average)
        found |= self._chosen(course, trunks, values, held_out)
        suffix = "" if len(self.trial.config["weight_decays"]) == 1 else f", decay {self.decay:g}"
        return {name if name == REFERENCE else name + suffix: one for name, one in found.items()} | {
            f"from {name}{suffix}": one for name, one in single.items()
        }

    def fused(self, trunks: Mapping[str, tree.Tree], some: Collection[str]) -> tree.Tree:
        """Return the average of some trunks, without a head."""
        return soups.uniform([self.trial.trunk.without_head(trunks[name]) for name in sorted(some)])

    def source(self, name: str) -> tree.Tree:
        """Return the network that was fine-tuned on all domains of a set."""
        return self._trained(self.courses[name], "source", self.courses[name].probe, "auxiliary_runs")

    def tuned(self, course: Course, name: str, trunk: tree.Tree) -> dict[str, dict[str, float]]:
        """Return the accuracy of what is fine-tuned on a course from a trunk, with the head of the probe."""
        start = functools.partial(self._started, course, trunk)
        return self.measured(course, self._trained(course, f"from_{name}", start, "runs"))

    def member(self, course: Course, name: str) -> tree.Tree:
        """Return what was fine-tuned on a course from a trunk of this name."""
        return course.pools["pool"][course.name(f"{self._place('from_' + name)}_00")]

    def _started(self, course, trunk):
        return course.with_head_of(course.probe(), trunk)

    def _trained(self, course, family, start, section) -> tree.Tree:
        steps = self.trial.config[section]["steps"]
        head_steps = self.trial.config["ratatouille"]["head_steps"] if section == "runs" else 0
        options = {"steps": steps, "head_steps": head_steps, "last": True, "alike": True, "weight_decay": self.decay}
        name = course.fill(self._place(family), {0: start}, **options)[0]
        return course.pools["pool"][name]

    def _place(self, family):
        return f"{family}_decay{self.decay:g}"

    def measured(self, course: Course, params: tree.Tree) -> dict[str, dict[str, float]]:
        """Return the accuracy on the two halves of what is held out of each domain: one selects, one reports."""
        logits, labels = course.held_out_logits(params), course.held_out.labels
        halves = {"held_out": slice(0, None, 2), "test": slice(1, None, 2)}
        return {name: {"accuracy": accuracy(logits[rows], labels[rows])} for name, rows in halves.items()}

    # --- Other starts -------------------------------------------------------------------------------------------------

    def cold(self, sources: Sequence[str]) -> dict[int, tree.Tree]:
        """Return the shared trunk after each round, in which each source goes on from it with its own head."""
        config, trunk = self.trial.config["cold"], self.trial.trunk
        shared, found = self.trial.start, {}
        heads = {name: self.courses[name].probe() for name in sources}
        place = "-".join(sources)
        for number in range(1, config["rounds"] + 1):
            for name in sources:
                start = functools.partial(self.courses[name].with_head_of, heads[name], shared)
                heads[name] = self._trained(self.courses[name], f"cold_{place}_{number}", start, "cold")
            shared = soups.uniform([trunk.without_head(heads[name]) for name in sources])
            found[number] = shared
        return found

    def joint(self, sources: Sequence[str]) -> tree.Tree:
        """Return a trunk that is fine-tuned on all sources at once, each with a head of its own."""
        trial = self.trial
        name = trial.name(f"joint_{'-'.join(sources)}_decay{self.decay:g}")
        make = functools.partial(self._joint, sources)
        return made_once(trial.workdir.pool("joint"), name, make, {"seed": trial.seed})

    def _joint(self, sources) -> tree.Tree:
        trial, steps, trunk = self.trial, self.trial.config["joint"]["steps"], self.trial.trunk
        say(f"multi-task learning on {', '.join(sources)}")
        probes = {source: self.courses[source].probe() for source in sources}
        start = {"trunk": trial.start, "heads": {source: trunk.head(probe) for source, probe in probes.items()}}

        def loss(params, batch, key):
            parts = [
                trunk.loss(trunk.with_head(params["trunk"], params["heads"][source]), one, key)
                for source, one in batch.items()
            ]
            return sum(parts) / len(parts)

        def batches() -> Iterator[dict[str, Any]]:
            own = self.courses[sources[0]].drawn(1)[0]
            seed = seed_hash(trial.seed, *sources)
            for parts in zip(*(self.courses[source].batches(seed, own["batch_size"]) for source in sources)):  # noqa: B905
                yield dict(zip(sources, parts, strict=True))

        own = self.courses[sources[0]].drawn(1)[0]
        rules = None if trunk.frozen is None else tuple((f"trunk/{rule}", rate) for rule, rate in trunk.frozen[:-1])
        rules = None if rules is None else (*rules, (".*", 1.0))
        settings = {"rate": own["learning_rate"], "weight_decay": self.decay, "seed": trial.seed}
        options = {"optimizer": adam, "learning_rate_rules": rules, "hyperparameters": settings, "steps": steps}
        made = fit(loss, start, batches(), **options)
        return jax.device_get(made["params"]["trunk"])

    # --- Which to fuse ------------------------------------------------------------------------------------------------

    def _chosen(self, course, trunks, values, held_out) -> dict[str, Accuracies]:
        """Return what is fine-tuned from the half of the sources that each ranking puts first, and the best of all."""
        scores = {some: one["held_out"]["accuracy"] for some, one in values.items()}
        rankings = {
            "linear probe": rank_by_score({name: self._probed(course, trunk) for name, trunk in trunks.items()}),
            "similarity": rank_by_similarity(self._bare(trunks), self._bare({"": course.start})[""]),
            "held-out gain": rank_by_score(held_out),
        }
        rankings["greedy search"] = rank_greedily(list(trunks), lambda some: scores[frozenset(some)])
        count = max(1, len(trunks) // 2)
        found = {f"fusing half, by {name}": values[frozenset(ranking[:count])] for name, ranking in rankings.items()}
        best = max((some for some in values if len(some) == count), key=lambda some: values[some]["test"]["accuracy"])
        return found | {"fusing the best half, in hindsight": values[best]}

    def _bare(self, trunks):
        return {name: self.trial.trunk.without_head(trunk) for name, trunk in trunks.items()}

    def _probed(self, course, trunk) -> float:
        """Return the held-out accuracy of a linear probe on the features of a trunk."""
        train = course.train_inputs()
        features = functools.partial(extract_features, self.trial.trunk.features, trunk, preprocess=lambda x: x)
        rows = slice(0, None, 2)
        held_out = features(course.held_out)[rows], course.held_out.labels[rows]
        count = len(course.data.class_names)
        head = probe_on_features(features(train), train.labels, num_classes=count, strengths=(1e-2,))
        return accuracy(held_out[0] @ head["kernel"] + head["bias"], held_out[1])


# --- All targets ------------------------------------------------------------------------------------------------------


def over_targets(seed: int, found: Mapping[str, Mapping[str, Accuracies]]) -> list[Row]:
    """Return a row for each start with its mean over the targets, and those of each single source and target."""
    titles = [title for title in next(iter(found.values())) if all(title in one for one in found.values())]
    rows = []
    for title in titles:
        parts = {target: one[title] for target, one in found.items()}
        metrics = {split: mean_of([one[split] for one in parts.values()]) for split in ("test", "held_out")}
        metrics |= {target: one["test"] for target, one in parts.items()}
        metrics |= {f"{target}, held-out": one["held_out"] for target, one in parts.items()}
        rows.append({"seed": seed, "name": title, "kind": _kind(title), "group": "main", "metrics": metrics})
    for target, starts in found.items():
        for title, one in starts.items():
            if title not in titles or title == REFERENCE:
                start = "pre-trained" if title == REFERENCE else title.removeprefix("from ")
                place = {"start": start, "target": target}
                metrics = {"test": one["test"], "held_out": one["held_out"]}
                rows.append(
                    {"seed": seed, "name": title, "kind": "member", "group": "curve", "of": place, "metrics": metrics}
                )
    return rows


def _kind(title):
    """Return what a row is of, as results call it."""
    kinds = {REFERENCE: "start", "inter-training": "member", "multi-task": "joint"}
    return next((kind for begin, kind in kinds.items() if title.startswith(begin)), "soup")


def _claims(trial, rows) -> list[dict[str, Any]]:
    decays, pairs = trial.config["weight_decays"], []
    for suffix in [""] if len(decays) == 1 else [f", decay {decay:g}" for decay in decays]:
        single, fused = f"inter-training, mean{suffix}", f"fusing all{suffix}"
        pairs += [(fused, REFERENCE), (single, REFERENCE), (fused, single), (fused, f"multi-task learning{suffix}")]
        pairs += [(f"model ratatouille{suffix}", fused), (f"fusing half, by held-out gain{suffix}", fused)]
    return claims_of(trial.seed, rows, pairs)


run = Study(check=_check, scenes=trials, cook=_cook, members=_members, folders=("pool",))
