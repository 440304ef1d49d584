"""Measure members and all else on every split, once, and make rows of it."""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xxhash

from soups import tree
from soups.evaluate import Evaluator, LogitCache, accuracy, metrics
from soups.evaluate.classification import NAMES
from soups.pool import Pool, digest
from soups.progress import progress, say

Row = dict[str, Any]
Logits = dict[str, np.ndarray]


def unit_range(inputs: jax.Array) -> jax.Array:
    """Turn uint8 into float32 in [0, 1]; all else stays."""
    return inputs.astype(jnp.float32) / 255.0 if inputs.dtype == jnp.uint8 else inputs


class Examples(NamedTuple):
    """Hold one split: inputs [N, ...] under the name that evaluators know, integer labels [N], and their classes."""

    images: np.ndarray
    labels: np.ndarray
    class_groups: tuple[tuple[int, ...], ...] | None = None


class Measured(NamedTuple):
    """Hold the metrics of weights by split, None where outputs are not finite, and which examples they have right."""

    metrics: dict[str, dict[str, float | None]]
    right: dict[str, np.ndarray]


def program_digest(function: Callable, *arguments: Any) -> str:
    """Return a digest of a function's program on such arguments, or on arrays of their shapes, and of its constants."""
    traced = jax.make_jaxpr(function)(*arguments)
    text = re.sub(r" at 0x[0-9a-f]+", "", str(traced.jaxpr))  # where functions lie differs from run to run
    constants = {str(place): np.asarray(value) for place, value in enumerate(traced.consts)}
    return xxhash.xxh3_64_hexdigest((text + (digest(constants) if constants else "")).encode())


@dataclasses.dataclass(kw_only=True)
class Measuring:
    """Hold the members of one seed, the splits that weights are measured on, and what was measured before.

    No network runs twice, in this run or a later one: logits are kept under the digests of weights, data and network.
    So other members, data or settings give other rows, never old ones.

    Attributes:
        members: weights by name, as a mapping or a pool; those with NaN or infinity take part in nothing.
        apply_fn: `apply_fn(params, inputs) -> logits [B, C]`.
        held_out: what selects.
        test: what reports.
        shifts: test sets from other distributions, by name.
        directory: where logits, soups and journals are kept.
        seed: of batches and of random orders.
        prefix: what the names of this seed's members and soups begin with where they are kept, but not in rows.
        preprocess: `preprocess(inputs) -> inputs`, compiled with the network.
        reference: the weights that rows count their wins against; default: the best member.
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

    # --- What is there ------------------------------------------------------------------------------------------------

    @functools.cached_property
    def splits(self) -> dict[str, Any]:
        """Return every set that weights are measured on, by name."""
        return {"held_out": self.held_out, "test": self.test, **self.shifts}

    @property
    def names(self) -> list[str]:
        """List the members whose numbers and outputs are all finite."""
        return list(self.measured)

    @functools.cached_property
    def _finite(self):
        if isinstance(self.members, Pool):
            finite = self.members.usable.names
        else:
            finite = [name for name, member in self.members.items() if not tree.nonfinite_names(member)]
        if left_out := [name for name in self.members if name not in set(finite)]:
            say(f"diverged, and left out of every selection: {', '.join(left_out)}")
        return finite

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """Return the content digest of each member whose numbers are all finite."""
        of = self.members.digest if isinstance(self.members, Pool) else lambda name: digest(self.members[name])
        return {name: of(name) for name in self._finite}

    @functools.cached_property
    def cache(self) -> LogitCache:
        """Return the logits on disk."""
        return LogitCache(self.directory / "logits")

    @functools.cached_property
    def evaluators(self) -> dict[str, Evaluator]:
        """Return one evaluator for each split."""
        return {name: self.evaluator(data) for name, data in self.splits.items()}

    def evaluator(self, data: Any, **options: Any) -> Evaluator:
        """Return an evaluator of this network on other data, with other options."""
        usual = {"batch_size": self.batch_size, "mesh": self.mesh, "preprocess": self.preprocess}
        return Evaluator(self.apply_fn, data, **usual | options)

    @functools.cached_property
    def data_digests(self) -> dict[str, str]:
        """Return the digest of inputs and labels of each split."""
        return {name: digest({"inputs": data.images[:], "labels": data.labels}) for name, data in self.splits.items()}

    @functools.cached_property
    def network_digest(self) -> str:
        """Return a digest of the network's program and constants."""

        def outputs(params, inputs):
            return self.apply_fn(params, self.preprocess(inputs))

        return program_digest(outputs, self.members[self._finite[0]], self.test.images[:1])

    def usable(self, names: Sequence[str] | None = None) -> Mapping[str, tree.Tree]:
        """Return some usable members (default: all): a view of a pool, so that they are streamed, or a mapping."""
        names = self.names if names is None else list(names)
        if isinstance(self.members, Pool):
            return self.members.select(names)
        return {name: self.members[name] for name in names}

    def short(self, name: str) -> str:
        """Return a member's name as rows call it."""
        return name.removeprefix(self.prefix)

    # --- What results say of it ---------------------------------------------------------------------------------------

    @property
    def described_splits(self) -> dict[str, dict[str, Any]]:
        """Return the splits as results hold them."""
        roles = {"held_out": "held_out", "test": "test"}
        found = {
            name: {"role": roles.get(name, "shift"), "examples": len(data.labels)} for name, data in self.splits.items()
        }
        return found | ({"shift_mean": {"role": "shift", "mean_of": list(self.shifts)}} if self.shifts else {})

    @property
    def described_members(self) -> list[dict[str, Any]]:
        """Return all members as results hold them, with what a pool knows of their training."""
        return [self._described(name) for name in self.members]

    def _described(self, name):
        status = "ok" if name in self.measured else "outputs not finite" if name in self._finite else "non-finite"
        found = {"name": self.short(name), "status": status}
        if not isinstance(self.members, Pool):
            return found | {"digest": digest(self.members[name])}
        record = self.members.record(name)
        known = {part: record["metadata"][part] for part in ("config", "losses") if part in record["metadata"]}
        return found | {"digest": record["digest"], **known}

    # --- Measuring ----------------------------------------------------------------------------------------------------

    def logits(self, params: tree.Tree, splits: Sequence[str] | None = None) -> Logits:
        """Return the logits of weights on splits (default: all); no network runs twice for them."""
        return self._logits(digest(params), lambda: params, splits)

    def member_logits(self, name: str, splits: Sequence[str] | None = None) -> Logits:
        """Return the logits of a member, which is read only if it was not measured yet."""
        return self._logits(self.digests[name], functools.cache(lambda: self.members[name]), splits)

    def _logits(self, key, params, splits):
        return {
            split: self.cache.get((key, self._key(split)), lambda split=split: self.evaluators[split].logits(params()))
            for split in splits or self.splits
        }

    def scores_of(self, candidates: Sequence[tree.Tree]) -> list[float]:
        """Return the held-out accuracies of several weights, measured side by side where there are several devices."""
        return [accuracy(logits, self.held_out.labels) for logits in self._side_by_side.many_logits(candidates)]

    @functools.cached_property
    def _side_by_side(self):
        if self.width == 1:
            return self.evaluator(self.held_out, cache=self.cache, key=self._key("held_out"))
        # another program, whose rounding must not get into the rows
        apart = {"mesh": None, "width": self.width, "key": f"{self._key('held_out')}-side by side"}
        return self.evaluator(self.held_out, cache=self.cache, **apart)

    @property
    def width(self) -> int:
        """Say how many candidates of a greedy soup are measured at once: one on each device of the mesh."""
        return 1 if self.mesh is None else jax.local_device_count()

    def _key(self, split):
        return f"{split}-{self.data_digests[split]}-{self.network_digest}"

    def judge(self, logits: Logits) -> Measured:
        """Return the metrics of logits on every split, their mean over the shifts, and what they have right."""
        labels = {split: data.labels for split, data in self.splits.items()}
        finite = {split: bool(np.isfinite(found).all()) for split, found in logits.items()}
        none = dict.fromkeys(NAMES)
        values = {split: metrics(logits[split], labels[split]) if finite[split] else none for split in labels}
        if self.shifts:
            values["shift_mean"] = _mean([values[split] for split in self.shifts])
        return Measured(values, {split: logits[split].argmax(axis=1) == labels[split] for split in labels})

    def measure(self, params: tree.Tree) -> Measured:
        """Measure weights on every split."""
        return self.judge(self.logits(params))

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
        right, theirs = found.right, self._reference.right
        wins = {
            split: [int((right[split] & ~theirs[split]).sum()), int((theirs[split] & ~right[split]).sum())]
            for split in self.splits
        }
        return {
            "seed": self.seed,
            "name": name,
            "kind": kind,
            "group": group,
            "ingredients": {self.short(member): weight for member, weight in ingredients.items()},
            "num_ingredients": len(ingredients),
            "metrics": found.metrics,
            "cost": {"inference": inference, "selection": selection, "training": training},
            "classes": {"test": {title: float(right["test"][rows].mean()) for title, rows in self._classes.items()}},
            "wins": wins,
            **more,
        }

    @functools.cached_property
    def _reference(self):
        return self.measure(self.reference) if self.reference is not None else self.measured[best_of(self.scores)]

    @functools.cached_property
    def _classes(self):
        """Say for each class that the test split has where its examples are, by its name if it has one."""
        labels, titles = self.test.labels, getattr(self.test, "class_names", None)
        return {titles[index] if titles else str(index): labels == index for index in np.unique(labels).tolist()}

    # --- Members ------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def measured(self) -> dict[str, Measured]:
        """Measure each member on every split, and tell a pool; those whose outputs are not finite are left out."""
        found = {}
        with progress("measuring", len(self._finite), "members") as advance:
            for name in self._finite:
                one = self.judge(self.member_logits(name))
                advance(1)
                if any(values["accuracy"] is None for values in one.metrics.values()):
                    say(f"left out of every selection, because its outputs hold NaN or infinity: {name}")
                    continue
                found[name] = one
                if isinstance(self.members, Pool):
                    kept = [split for split in ("held_out", "test", "shift_mean") if split in one.metrics]
                    self.members.update_metrics(name, {split: one.metrics[split]["accuracy"] for split in kept})
        return found

    @property
    def scores(self) -> dict[str, float]:
        """Return the held-out accuracy of each member."""
        return {name: found.metrics["held_out"]["accuracy"] for name, found in self.measured.items()}

    @functools.cached_property
    def member_rows(self) -> dict[str, Row]:
        """Return the row of each member."""
        return {n: self.row(self.short(n), "member", one, {}, group="member") for n, one in self.measured.items()}

    def single_rows(self) -> list[Row]:
        """Return the best and worst member by held-out accuracy, the mean over the members, and each of them."""
        rows, best = self.member_rows, best_of(self.scores)
        worst = min(self.scores, key=self.scores.get)
        cost = rows[best]["cost"] | {"selection": len(rows) * len(self.held_out.labels)}
        first = next(iter(rows.values()))
        mean = first | {"name": "mean member", "kind": "members", "group": "main", "num_ingredients": 1}
        mean |= {part: _mean([row[part] for row in rows.values()]) for part in ("metrics", "classes")} | {"wins": {}}
        return [
            self._named(best, "best member") | {"cost": cost},
            mean,
            self._named(worst, "worst member"),
            *rows.values(),
        ]

    def _named(self, member, title):
        named = {"ingredients": {self.short(member): 1.0}, "num_ingredients": 1}
        return self.member_rows[member] | {"name": title, "kind": "member", "group": "main"} | named


def best_of(scores: Mapping[str, float]) -> str:
    """Return the name with the highest score; of equal ones the last, with which the greedy soup begins as well."""
    return max(reversed(scores), key=scores.get)


def _mean(values):
    if isinstance(values[0], Mapping):
        return {name: _mean([value[name] for value in values]) for name in values[0]}
    return None if None in values else float(np.mean(values))
