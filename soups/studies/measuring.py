"""Measure members and all else on every split, once, and make rows of it."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soups import arguments, tree
from soups.evaluate import METRICS, Evaluator, LogitCache, Metric
from soups.evaluate.classification import NAMES
from soups.evaluate.evaluator import unit_range
from soups.evaluate.measures import CLASS_METRICS, chosen_metrics
from soups.lazy import report
from soups.plugins import blamed
from soups.pool import Pool, digest
from soups.progress import progress, say
from soups.studies.digests import digest_of, program_digest
from soups.studies.examples import number_of, rows_of, zeros_of
from soups.studies.rows import Measured, Row, known_of, mean_of
from soups.train.sharding import place

Logits = dict[str, np.ndarray]


@dataclasses.dataclass(kw_only=True)
class Measuring:
    """Hold the members of one seed, the splits that weights are measured on, and what was measured before.

    No network runs twice, in this run or a later one: what it gave is kept under the digests of weights, data and
    network. So other members, data or settings give other rows, never old ones.

    Attributes:
        members: weights by name, as a mapping or a pool; those with NaN or infinity take part in nothing. A mapping of
            finite members may know their digests: see `soups.studies.given.Given`.
        apply_fn: `apply_fn(params, inputs) -> logits [B, C]`, or other outputs [B, ...] for other metrics.
        held_out: what selects.
        test: what reports.
        shifts: test sets from other distributions, by name.
        directory: where logits, soups and journals are kept.
        seed: of batches and of random orders.
        prefix: what the names of this seed's members and soups begin with where they are kept, but not in rows.
        preprocess: `preprocess(inputs) -> inputs`, compiled with the network.
        reference: the weights that rows count their wins against; default: the best member.
        test_name: of the split that reports.
        titles: of splits, for people.
        keep: whose logits are kept on disk, "all", "members" or "none": those of large sets fill a disk.
        per_class: whether rows have the accuracy of each class.
        metrics: as for `soups.evaluate.Evaluator`; the first one selects, and is the main one of the results.
        part: what is left of the outputs for the metrics, the `keep` of an evaluator; of it there are no ensembles.
    """

    members: Mapping[str, tree.Tree]
    apply_fn: Callable
    held_out: Any
    test: Any
    shifts: Mapping[str, Any]
    directory: pathlib.Path
    seed: int = 0
    prefix: str = ""
    batch_size: int = 500
    mesh: jax.sharding.Mesh | None = None
    preprocess: Callable = unit_range
    reference: tree.Tree | None = None
    test_name: str = "test"
    titles: Mapping[str, str] = dataclasses.field(default_factory=dict)
    keep: str = "all"
    per_class: bool = True
    metrics: Sequence[str] | Mapping[str, Callable | Metric] | None = None
    part: Callable | None = None

    # --- What is there ------------------------------------------------------------------------------------------------

    @functools.cached_property
    def splits(self) -> dict[str, Any]:
        """Return every set that weights are measured on, by name."""
        return {"held_out": self.held_out, self.test_name: self.test, **self.shifts}

    @property
    def names(self) -> list[str]:
        """List the members whose numbers and outputs are all finite."""
        return list(self.measured)

    @property
    def digests(self) -> dict[str, str]:
        """Return the content digest of each member whose numbers are all finite."""
        return self._inspected[1]

    def _digest_of(self, name):
        """Return the digest of a member, or None if it is not finite; what is known is not read."""
        if isinstance(self.members, Pool):
            return self.members.digest(name) if name in self._usable else None
        if hasattr(self.members, "digest"):
            return self.members.digest(name)
        member = self.members[name]
        return None if tree.nonfinite_names(member) else digest(member)

    @functools.cached_property
    def _usable(self):
        return set(self.members.usable.names)

    @functools.cached_property
    def cache(self) -> LogitCache:
        """Return the logits on disk."""
        return LogitCache(self.directory / "logits")

    @functools.cached_property
    def evaluators(self) -> dict[str, Evaluator]:
        """Return one evaluator for each split."""
        found = {}
        for name, data in self.splits.items():
            with _about(name):
                found[name] = self.evaluator(data)
        return found

    @functools.cached_property
    def _chosen(self):
        return chosen_metrics(NAMES if self.metrics is None else self.metrics)

    @functools.cached_property
    def metric(self) -> str:
        """Return the name of the metric that selects."""
        return next(iter(self._chosen))

    @property
    def main(self) -> Metric:
        """Return the metric that selects."""
        return self._chosen[self.metric]

    @property
    def classes(self) -> bool:
        """Say whether outputs are logits of classes, and targets integers."""
        return any(metric in CLASS_METRICS for metric in self._chosen.values())

    @property
    def counted(self) -> bool:
        """Say whether rows count the examples that they have right: the main metric is the accuracy."""
        return self.main == METRICS["accuracy"]

    def check(self, params: tree.Tree) -> bool:
        """See, without running it, that the network on weights of this structure can be measured on each split.

        Returns:
            Whether outputs are floats, of which an ensemble is the mean, and all of them are there.

        Raises:
            ValueError: inputs and targets that do not fit; a network that fails, or gives no logits; metrics that do
                not fit its outputs.
        """
        if not callable(self.apply_fn):
            found = type(self.apply_fn).__name__
            raise ValueError(f"apply_fn must be a function (params, inputs) -> logits, not a {found}")
        classes, floats = self.classes, self.part is None
        for name in self.evaluators:
            one, targets = rows_of(self.splits[name], slice(1)).values()
            with blamed(f"apply_fn on an input of {name}", self.apply_fn):
                logits = jax.eval_shape(lambda params, one: self.apply_fn(params, self.preprocess(one)), params, one)
            found = list(logits.shape) if hasattr(logits, "shape") else f"a {type(logits).__name__}"
            if classes and (not hasattr(logits, "shape") or len(logits.shape) != 2):
                raise ValueError(f"apply_fn must give logits [B, C], not {found}")
            if not hasattr(logits, "shape") or logits.shape[:1] != (1,):
                raise ValueError(f"apply_fn must give one array [B, ...], not {found}")
            floats &= jnp.issubdtype(logits.dtype, jnp.floating)
            if self.part is not None:
                with blamed(f"keep on outputs and targets of {name}", self.part):
                    logits = jax.eval_shape(self.part, logits, targets)
            if self.metrics is not None:
                self._try_metrics(name, logits)
        return floats

    def _try_metrics(self, split, one):
        """See that metrics can be called, and that those of the library take such outputs with the targets of a split.

        What a user's own takes, such as probabilities, is not known before there are outputs.
        """
        outputs = zeros_of(one, number_of(self.splits[split]))
        for name, metric in self._chosen.items():
            if metric in METRICS.values():
                self._value(name, split, outputs)
            else:
                arguments.check_takes(f"metrics[{name!r}]", metric.function, "outputs, targets")

    def evaluator(self, data: Any, **options: Any) -> Evaluator:
        """Return an evaluator of this network on other data, with other options."""
        usual = {"batch_size": self.batch_size, "mesh": self.mesh, "preprocess": self.preprocess}
        usual |= {"metrics": self.metrics, "keep": self.part}
        return Evaluator(self.apply_fn, data, **usual | options)

    @functools.cached_property
    def data_digests(self) -> dict[str, str]:
        """Return the digest of inputs and labels of each split."""
        return {name: digest_of(data) for name, data in self.splits.items()}

    @functools.cached_property
    def network_digest(self) -> str:
        """Return a digest of the network's program and constants."""

        def outputs(params, inputs, *targets):
            found = self.apply_fn(params, self.preprocess(inputs))
            return self.part(found, *targets) if targets else found

        given = list(rows_of(self.test, slice(1)).values())[: 1 if self.part is None else 2]
        return program_digest(outputs, self.members[next(iter(self.members))], *given)

    def usable(self, names: Sequence[str] | None = None) -> Mapping[str, tree.Tree]:
        """Return some usable members (default: all): a view of a pool, so that they are streamed, or a mapping."""
        names = self.names if names is None else list(names)
        if isinstance(self.members, Pool):
            return self.members.select(names)
        return _Chosen(self.members, names)

    def short(self, name: str) -> str:
        """Return a member's name as rows call it."""
        return name.removeprefix(self.prefix)

    # --- What results say of it ---------------------------------------------------------------------------------------

    @property
    def described_splits(self) -> dict[str, dict[str, Any]]:
        """Return the splits as results hold them."""
        roles = {"held_out": "held_out", self.test_name: "test"}
        found = {
            name: {"role": roles.get(name, "shift"), "examples": number_of(data)} for name, data in self.splits.items()
        }
        found |= {"shift_mean": {"role": "shift", "mean_of": list(self.shifts)}} if self.shifts else {}
        return {n: one | ({"title": self.titles[n]} if n in self.titles else {}) for n, one in found.items()}

    @property
    def described_metrics(self) -> dict[str, Any]:
        """Return the main metric, and how those are shown that only the caller knows, as results hold them."""
        better = {"max": "higher", "min": "lower"}
        own = {name: one for name, one in self._chosen.items() if one != METRICS.get(name)}
        known = {name: {"title": name.replace("_", " "), "better": better[one.mode]} for name, one in own.items()}
        return {"metric": self.metric} | ({"metrics": known} if known else {})

    @property
    def described_members(self) -> list[dict[str, Any]]:
        """Return all members as results hold them, with what a pool knows of their training."""
        return [self._described(name) for name in self.members]

    def _described(self, name):
        status = "ok" if name in self.measured else "outputs not finite" if name in self.digests else "non-finite"
        found = {"name": self.short(name), "status": status}
        if not isinstance(self.members, Pool):
            return found | {"digest": self.digests.get(name) or digest(self.members[name])}
        return found | known_of(self.members.record(name))

    # --- Measuring ----------------------------------------------------------------------------------------------------

    def logits(self, params: tree.Tree, splits: Sequence[str] | None = None) -> Logits:
        """Return the logits of weights on splits (default: all); where they are kept no network runs twice for them."""
        return self._logits(digest(params), lambda: params, splits, self.keep == "all")

    def member_logits(self, name: str, splits: Sequence[str] | None = None) -> Logits:
        """Return the logits of a member, which is read only if they are not kept."""
        return self._logits(self.digests[name], lambda: self.members[name], splits, self.keep != "none")

    def _logits(self, key, params, splits, kept):
        placed = functools.cache(lambda: self._placed(params()))  # once for all splits

        def of(split):
            with _about(split):
                return self.evaluators[split].logits(placed())

        return {
            split: self.cache.get((key, self._key(split)), lambda split=split: of(split)) if kept else of(split)
            for split in splits or self.splits
        }

    def _placed(self, params):
        if self.mesh is None:
            return jax.device_put(params)
        everywhere = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec())
        return place(params, jax.tree.map(lambda _: everywhere, params))

    def scores_of(self, candidates: Sequence[tree.Tree]) -> list[float]:
        """Return the held-out scores of several weights, measured side by side where there are several devices."""
        found = self._side_by_side.many_logits(candidates)
        return [self._value(self.metric, "held_out", outputs) for outputs in found]

    @functools.cached_property
    def _side_by_side(self):
        # several at once are another program, whose rounding must not get into the rows
        apart = {"mesh": None, "width": self.width} if self.width > 1 else {}
        if self.keep == "all":
            apart |= {"cache": self.cache, "key": self._key("held_out") + ("-side by side" if apart else "")}
        return self.evaluator(self.held_out, **apart)

    @property
    def width(self) -> int:
        """Say how many candidates of a greedy soup are measured at once: one on each device of the mesh."""
        return 1 if self.mesh is None else jax.local_device_count()

    def _key(self, split):
        return f"{split}-{self.data_digests[split]}-{self.network_digest}"

    def judge(self, logits: Logits) -> Measured:
        """Return the metrics of logits on every split, their mean over the shifts, and what they have right."""
        return self._judged({split: self._judged_on(split, logits[split]) for split in self.splits})

    def _judged_on(self, split, outputs):
        """Return the metrics of outputs, NaN where they are not finite, and which examples they have right."""
        if self.metrics is None and np.isfinite(outputs).all():
            values = list(self.evaluators[split].measured(outputs).values())
        else:
            values = [self._value(name, split, outputs) for name in self._chosen]
        right = outputs.argmax(axis=1) == self.splits[split].labels if self.counted else np.zeros(0, bool)
        return np.array(values), right

    def _value(self, name, split, outputs):
        """Return a metric of outputs, NaN where they are not finite; an error says which metric on which split."""
        function = self._chosen[name].function
        with blamed(f"metric {name!r} on {split}", function):
            bad = tree.nonfinite_names(outputs)
            return np.nan if bad else float(function(outputs, self.evaluators[split].labels))

    def _judged(self, found):
        beyond = report.results.BEYOND
        values = {
            split: {n: float(v) if abs(v) < beyond else None for n, v in zip(self._chosen, one, strict=True)}
            for split, (one, _) in found.items()
        }
        if self.shifts:
            values["shift_mean"] = mean_of([values[split] for split in self.shifts])
        return Measured(values, {split: right for split, (_, right) in found.items()})

    def measure(self, params: tree.Tree) -> Measured:
        """Measure weights on every split."""
        return self._measure(digest(params), lambda: params, self.keep == "all")

    def _measure(self, key, params, kept):
        if self.keep == "all":
            return self.judge(self._logits(key, params, None, kept))
        params = functools.cache(lambda read=params: self._placed(read()))

        def judged(split):
            made = self._judged_on(split, self._logits(key, params, [split], kept)[split])
            return dict(zip(("values", "right"), made, strict=True))

        found = {
            split: self.cache.get((key, self._key(split), "judged"), lambda split=split: judged(split))
            for split in self.splits
        }
        return self._judged({split: (one["values"], one["right"]) for split, one in found.items()})

    def row(
        self,
        name: str,
        kind: str,
        found: Measured,
        ingredients: Mapping[str, float],
        *,
        group: str = "main",
        inference: int = 1,
        selection: int = 0,
        training: int = 0,
        **more: Any,
    ) -> Row:
        """Return one row of the results; costs are in forward passes, see docs/results.md."""
        counted = {"wins": self._wins(found.right)} if self.counted else {}
        if self.counted and self.per_class:
            counted = {"classes": {self.test_name: self._by_class(found.right[self.test_name])}} | counted
        return {
            "seed": self.seed,
            "name": name,
            "kind": kind,
            "group": group,
            "ingredients": {self.short(member): weight for member, weight in ingredients.items()},
            "num_ingredients": len(ingredients),
            "metrics": found.metrics,
            "cost": {"inference": inference, "selection": selection, "training": training},
            **counted,
            **more,
        }

    def _wins(self, right):
        theirs = self._reference.right
        return {
            split: [int((right[split] & ~theirs[split]).sum()), int((theirs[split] & ~right[split]).sum())]
            for split in self.splits
        }

    def _by_class(self, right):
        return {title: float(right[rows].mean()) for title, rows in self._classes.items()}

    @functools.cached_property
    def _reference(self):
        return self.measure(self.reference) if self.reference is not None else self.measured[self.best()]

    @functools.cached_property
    def _classes(self):
        """Say for each class that the test split has where its examples are, by its name if it has one."""
        labels, titles = self.test.labels, getattr(self.test, "class_names", None)
        return {titles[index] if titles else str(index): labels == index for index in np.unique(labels).tolist()}

    # --- Members ------------------------------------------------------------------------------------------------------

    @property
    def measured(self) -> dict[str, Measured]:
        """Measure each member on every split, and tell a pool; those whose outputs are not finite are left out."""
        return self._inspected[0]

    @functools.cached_property
    def _inspected(self):
        found, digests = {}, {}
        with progress("measuring", len(self.members), "members") as advance:
            for name in self.members:
                if (key := self._digest_of(name)) is not None:
                    digests[name] = key
                    found[name] = self._measure(key, lambda name=name: self.members[name], self.keep != "none")
                advance(1)
        if diverged := [name for name in self.members if name not in digests]:
            say(f"diverged, and left out of every selection: {', '.join(diverged)}")
        for name in [n for n, one in found.items() if any(v[self.metric] is None for v in one.metrics.values())]:
            say(f"left out of every selection, because outputs or {self.metric} are not finite, or too large: {name}")
            del found[name]
        for name, one in found.items() if isinstance(self.members, Pool) else ():
            kept = [split for split in ("held_out", self.test_name, "shift_mean") if split in one.metrics]
            called = {split: split if self.counted else f"{split} {self.metric}" for split in kept}
            self.members.update_metrics(name, {called[split]: one.metrics[split][self.metric] for split in kept})
        return found, digests

    @property
    def scores(self) -> dict[str, float]:
        """Return what selects, the main metric on the held-out split, of each member."""
        return {name: found.metrics["held_out"][self.metric] for name, found in self.measured.items()}

    def best(self, scores: Mapping[str, float] | None = None) -> str:
        """Return the name with the best score, of members on held-out data unless others are given.

        Of equal ones it is the last, with which the greedy soup begins as well.
        """
        scores = self.scores if scores is None else scores
        return max(reversed(scores), key=lambda name: self.worth(scores[name]))

    def worth(self, score: float | None) -> float:
        """Return a number that is the larger the better a score is; None is the worst."""
        return -np.inf if score is None else score if self.main.mode == "max" else -score

    @functools.cached_property
    def member_rows(self) -> dict[str, Row]:
        """Return the row of each member."""
        return {n: self.row(self.short(n), "member", one, {}, group="member") for n, one in self.measured.items()}

    def single_rows(self) -> list[Row]:
        """Return the best and worst member on held-out data, the mean over the members, and each of them."""
        rows, best = self.member_rows, self.best()
        worst = min(self.scores, key=lambda name: self.worth(self.scores[name]))
        cost = rows[best]["cost"] | {"selection": len(rows) * number_of(self.held_out)}
        first = next(iter(rows.values()))
        mean = first | {"name": "mean member", "kind": "members", "group": "main", "num_ingredients": 1}
        mean |= {
            part: mean_of([row[part] for row in rows.values()]) for part in ("metrics", "classes") if part in first
        }
        mean |= {"wins": {}} if "wins" in first else {}
        return [
            self.named_row(best, "best member") | {"cost": cost},
            mean,
            self.named_row(worst, "worst member"),
            *rows.values(),
        ]

    def named_row(self, member: str, title: str) -> Row:
        """Return the row of a member under another name, as one of the main ones."""
        named = {"ingredients": {self.short(member): 1.0}, "num_ingredients": 1}
        return self.member_rows[member] | {"name": title, "kind": "member", "group": "main"} | named


class _Chosen(Mapping):
    """View some members, each read when it is asked for, with the digests that are known."""

    def __init__(self, members, names):
        self._members, self._names = members, list(names)
        if hasattr(members, "digest"):
            self.digest = members.digest

    def __getitem__(self, name: str) -> tree.Tree:
        if name not in self._names:
            raise KeyError(name)
        return self._members[name]

    def __iter__(self):
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@contextlib.contextmanager
def _about(split):
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{split}: {error}") from error
