"""Ask which of several fine-tuned encoders is the best start for another task: read from top to bottom.

Choshen et al., "Where to start? Analyzing the potential value of intermediate models", 2022, arXiv 2211.00107: the same
few starts are the best ones whatever the target is, and a linear probe on one task finds them. "Fusing finetuned models
for better pretraining", 2022, arXiv 2204.03044: their average is a better start than one of them. One encoder is
fine-tuned on each task; each is then the start for each other task, of which few examples are given.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy

import soups
from soups import tree
from soups.evaluate import accuracy
from soups.evaluate.ranking import gains, rank_by_score, split_half
from soups.models.many_heads import head_logits
from soups.names import check_name
from soups.progress import counted, say
from soups.studies import text_tasks
from soups.studies.fusing import REFERENCE, over_targets
from soups.studies.rows import claims_of, mean_of, splits_of
from soups.studies.study import Study, check_fields
from soups.studies.text_tasks import TextTasks, TokenTask

FIELDS = text_tasks.FIELDS | {"": text_tasks.FIELDS[""] + " probe_task", "target": "examples steps learning_rate"}
MEAN, BEST = "inter-training, mean", "inter-training, best on held-out"
OTHERS, PROBED = "inter-training, best on the other targets", "inter-training, best by the probe"
FUSED, HALF = "fusing all", "fusing half, best on the other targets"
Found = Mapping[str, Any]


def _check(config):
    check_fields(config, FIELDS)
    check_name(config["probe_task"], config["tasks"], "config.probe_task")
    if len(config["tasks"]) < 3:
        raise ValueError("config.tasks must name at least three: a target, and two that may be its start")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bases(TextTasks):
    """Hold one seed's tasks, each of which is a source, and with few examples a target."""

    @functools.cached_property
    def targets(self) -> dict[str, TokenTask]:
        """Return the tasks with so many training examples as targets have."""
        most = self.config["target"]["examples"]
        return {n: dataclasses.replace(task, train=task.train.take(slice(0, most))) for n, task in self.tasks.items()}

    def cook(self) -> dict[str, Any]:
        """Return the part of the results that is of this seed."""
        say(f"\nseed {self.seed}")
        self.fine_tuned(self.probed(self.start()))
        made = {name: self.stage(f"target {name}", functools.partial(self.on_target, name)) for name in self.tasks}
        scores = filled({name: _accuracies(one["single"]) for name, one in made.items()})
        found = {name: self._chosen(name, made, scores) for name in self.tasks}
        rows = over_targets(self.seed, found)
        return {
            "splits": splits_of({n: (len(t.test), len(t.held_out)) for n, t in self.tasks.items()}, "targets"),
            "reference": REFERENCE,
            "rows": rows,
            "claims": self._claims(rows, made, scores),
            "facts": {"Tasks": {name: self.facts(task) for name, task in self.targets.items()}},
            "notes": [f"Sources were trained on up to {max(map(len, self._trained()))} examples each."],
        }

    def _trained(self):
        return [task.train for task in self.tasks.values()]

    # --- One target ---------------------------------------------------------------------------------------------------

    def on_target(self, target: str) -> Found:
        """Return what each start reaches on a target, and what a linear probe reaches on the features of each."""
        say(f"target {target}")
        trunks, _ = self.members()
        sources = [name for name in trunks if name != target]
        found = {REFERENCE: self.tuned(target, self.trunk), FUSED: self.tuned(target, self.fused(sources))}
        single = {name: self.tuned(target, trunks[name]) for name in counted(sources, target, len(sources), "starts")}
        return {"found": found, "single": single, "probes": {n: self.probe(target, one) for n, one in trunks.items()}}

    def fused(self, names: Iterable[str]) -> tree.Tree:
        """Return the average of members' trunks."""
        trunks, _ = self.members()
        return soups.uniform([trunks[name] for name in names])

    def tuned(self, target: str, trunk: tree.Tree) -> dict[str, dict[str, float]]:
        """Return the accuracies of what is fine-tuned on a target from a trunk, with a head that fits its features."""
        task, config = self.targets[target], self.config["target"]
        begun = {**trunk, "head": self.head_for(task, trunk)}
        data = {"image": task.train.images, "label": task.train.labels}
        how_long = {"steps": config["steps"], "batch_size": min(self.config["finetune"]["batch_size"], len(task.train))}
        params, _ = self.fitted(begun, data, how_long, learning_rate=config["learning_rate"])
        return {split: {"accuracy": self._accuracy(params, getattr(task, split))} for split in ("test", "held_out")}

    def probe(self, target: str, trunk: tree.Tree) -> float:
        """Return the held-out accuracy of a head alone on the features of a trunk."""
        task = self.targets[target]
        return self._accuracy({**trunk, "head": self.head_for(task, trunk)}, task.held_out)

    def _accuracy(self, params, data):
        trunk = {name: part for name, part in params.items() if name != "head"}
        features = self.evaluator(data).logits({**self.fixed, **trunk})
        return accuracy(head_logits(features, params["head"]), data.labels)

    # --- Choices ------------------------------------------------------------------------------------------------------

    def _chosen(self, target: str, made: Mapping[str, Found], scores: Mapping[str, Mapping[str, float]]) -> Found:
        """Return the accuracies of all starts of a target, and of those that other targets and the probe choose."""
        single = made[target]["single"]
        on_others = {name: float(np.mean([scores[t][name] for t in scores if t != target])) for name in single}
        ranking, probes = rank_by_score(on_others), made[self.config["probe_task"]]["probes"]
        half = ranking[: max(1, len(ranking) // 2)]
        of_half = self.stage(f"target {target}, half", lambda: self.tuned(target, self.fused(half)), sorted(half))
        held_out = {name: one["held_out"]["accuracy"] for name, one in single.items()}
        found = {
            **made[target]["found"],
            MEAN: mean_of(list(single.values())),
            BEST: single[rank_by_score(held_out)[0]],
            OTHERS: single[ranking[0]],
            PROBED: single[rank_by_score({name: probes[name] for name in single})[0]],
            HALF: of_half,
        }
        return found | {f"from {name}": one for name, one in single.items()}

    def _claims(self, rows, made, scores):
        pairs = [(OTHERS, REFERENCE), (OTHERS, MEAN), (PROBED, MEAN), (PROBED, REFERENCE), (MEAN, REFERENCE)]
        pairs += [(FUSED, REFERENCE), (FUSED, MEAN), (FUSED, OTHERS), (HALF, FUSED)]
        base = [made[target]["found"][REFERENCE]["test"]["accuracy"] for target in scores]
        matrix = gains(np.array([list(scores[target].values()) for target in scores]).T, base)
        probes = made[self.config["probe_task"]]["probes"]
        correlations = {
            "the best starts of half the targets are those of the others": _or_none(lambda: split_half(matrix)),
            "a linear probe on one task ranks the starts": _or_none(lambda: spearman(list(probes.values()), matrix)),
        }
        return claims_of(self.seed, rows, pairs) + [
            {"seed": self.seed, "title": title, "value": one, "unit": "rank correlation"}
            for title, one in correlations.items()
            if one is not None
        ]


def _accuracies(single: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, float]:
    return {name: one["test"]["accuracy"] for name, one in single.items()}


def filled(scores: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return scores of starts by target, in which a target lacks its own, with what the means of both say of that.

    The model is additive, score = start + target, fitted by least squares to what is there.
    """
    names = list(scores)
    places = [
        (row, column) for column, target in enumerate(names) for row, n in enumerate(names) if n in scores[target]
    ]
    design = np.zeros((len(places), 2 * len(names)))
    for number, (row, column) in enumerate(places):
        design[number, row] = design[number, len(names) + column] = 1.0
    values = np.array([scores[names[column]][names[row]] for row, column in places])
    fitted = np.linalg.lstsq(design, values, rcond=None)[0]
    return {
        target: {n: scores[target].get(n, float(fitted[row] + fitted[len(names) + at])) for row, n in enumerate(names)}
        for at, target in enumerate(names)
    }


def spearman(probes: Sequence[float], matrix: np.ndarray) -> float:
    """Return the rank correlation of the probes of starts with their mean gains [M, T]; a ValueError without order."""
    ranks = [scipy.stats.rankdata(values) for values in (probes, matrix.mean(axis=1))]
    if any(np.ptp(own) == 0 for own in ranks):
        raise ValueError("all starts are equal: there is no order")
    return float(np.corrcoef(*ranks)[0, 1])


def _or_none(compute):
    try:
        return compute()
    except ValueError:
        return None


run = Study(
    check=_check,
    scenes=functools.partial(text_tasks.text_scenes, Bases),
    cook=Bases.cook,
    folders=("pool",),
)
