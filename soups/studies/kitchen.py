"""Measure weights, and cook from members every row that more than one study has."""

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xxhash

import soups
from soups import tree
from soups.data import batch_indices
from soups.evaluate import Evaluator, LogitCache, accuracy, ensemble_logits, greedy_ensemble, metrics
from soups.pool import Pool, digest
from soups.progress import counted, progress, say

Row = dict[str, Any]
Logits = dict[str, np.ndarray]
METRICS = ("accuracy", "nll", "brier", "ece", "ece_equal_width")


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


@dataclasses.dataclass(kw_only=True)
class Kitchen:
    """Hold the members of one seed, the splits that weights are measured on, and what was cooked and measured before.

    Nothing is computed twice, in this run or a later one: logits are kept under the digests of weights, data and
    network, soups under that of all they are made from. So other members, data or settings give other rows, never old
    ones, and a killed run goes on where it was.

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
    def kept(self) -> Pool:
        """Return the pool of the soups, each with its record."""
        pool = Pool(self.directory / "soups")
        pool.sweep_orphans()
        return pool

    @functools.cached_property
    def cache(self) -> LogitCache:
        """Return the logits on disk."""
        return LogitCache(self.directory / "logits")

    @functools.cached_property
    def evaluators(self) -> dict[str, Evaluator]:
        """Return one evaluator for each split."""
        return {name: self.evaluator(data) for name, data in self.splits.items()}

    def evaluator(self, data: Any) -> Evaluator:
        """Return an evaluator of this network on other data."""
        options = {"batch_size": self.batch_size, "mesh": self.mesh, "preprocess": self.preprocess}
        return Evaluator(self.apply_fn, data, **options)

    @functools.cached_property
    def data_digests(self) -> dict[str, str]:
        """Return the digest of inputs and labels of each split."""
        return {name: digest({"inputs": data.images[:], "labels": data.labels}) for name, data in self.splits.items()}

    @functools.cached_property
    def network_digest(self) -> str:
        """Return a digest of the network's program and constants."""
        outputs = jax.make_jaxpr(lambda params, inputs: self.apply_fn(params, self.preprocess(inputs)))
        traced = outputs(self.members[self._finite[0]], self.test.images[:1])
        text = re.sub(r" at 0x[0-9a-f]+", "", str(traced.jaxpr))  # where functions lie differs from run to run
        constants = {str(place): np.asarray(value) for place, value in enumerate(traced.consts)}
        return xxhash.xxh3_64_hexdigest((text + (digest(constants) if constants else "")).encode())

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
            split: self.cache.get(
                (key, split, self.data_digests[split], self.network_digest),
                lambda split=split: self.evaluators[split].logits(params()),
            )
            for split in splits or self.splits
        }

    def score(self, params: tree.Tree) -> float:
        """Return the held-out accuracy of weights."""
        return accuracy(self.logits(params, ["held_out"])["held_out"], self.held_out.labels)

    def judge(self, logits: Logits) -> Measured:
        """Return the metrics of logits on every split, their mean over the shifts, and what they have right."""
        labels = {split: data.labels for split, data in self.splits.items()}
        finite = {split: bool(np.isfinite(found).all()) for split, found in logits.items()}
        none = dict.fromkeys(METRICS)
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

    # --- Soups --------------------------------------------------------------------------------------------------------

    def soup(
        self,
        title: str,
        make: Callable[[], Any],
        ingredients: Iterable[str] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> tuple[tree.Tree, dict[str, Any]]:
        """Return the weights of a soup and its record: as kept under its title if made from the same, else made anew.

        `make` returns weights or a `soups.Soup`; `ingredients` (default: all members) are what it may use, and
        `settings` all else that decides the result.
        """
        used = {name: self.digests[name] for name in (self.names if ingredients is None else ingredients)}
        origin = {"title": title, "members": used, "settings": dict(settings or {}), "soups": soups.__version__}
        place = self.prefix + slug(title)
        if place in self.kept and self.kept.record(place)["metadata"].get("origin") != origin:
            self.kept.remove(place)
        if place not in self.kept:
            made = make()
            record = {"ingredients": dict.fromkeys(used, 1 / len(used))}
            if isinstance(made, soups.Soup):
                made, record = made.params, made.record()
            self.kept.add(place, made, {"origin": origin, **record})
        return self.kept[place], self.kept.record(place)["metadata"]

    def soup_row(self, title, params, ingredients, *, selection=0, training=0) -> Row:
        """Measure a soup."""
        return self.row(title, "soup", self.measure(params), ingredients, selection=selection, training=training)

    def uniform_row(self, title: str = "uniform soup", training: int = 0) -> Row:
        """Average all members."""
        params, record = self.soup(title, lambda: soups.uniform(self.usable()))
        return self.soup_row(title, params, record["ingredients"], training=training)

    def greedy_row(
        self, title: str = "greedy soup", order: Sequence[str] | None = None, training: int = 0
    ) -> tuple[Row, list]:
        """Add members one by one, by held-out accuracy or in a given order; give the row and the history."""
        make = functools.partial(self.greedy, title, self.names, order)
        params, record = self.soup(title, make, settings={"order": order, **self._selecting})
        selection = (len(self.names) if order else 2 * len(self.names) - 1) * len(self.held_out.labels)
        row = self.soup_row(title, params, record["ingredients"], selection=selection, training=training)
        return row, self._short_history(record["history"])

    def greedy(self, title: str, names: Sequence[str], order: Sequence[str] | None = None) -> soups.Soup:
        """Make the greedy soup of some members, going on from its journal after a crash."""
        used = {"members": {name: self.digests[name] for name in names}, **self._selecting}
        key = xxhash.xxh3_64_hexdigest(json.dumps(used | {"order": order}).encode())
        return soups.greedy(
            self.usable(names),
            self.score,
            scores=None if order else {name: self.scores[name] for name in names},
            order=order,
            journal=self.directory / "journals" / f"{self.prefix}{slug(title)}-{key}.jsonl",
        )

    def random_orders(self, count: int) -> dict[str, list[str]]:
        """Return random orders of the members, with the titles of their greedy soups."""
        return random_orders(self.names, count, self.seed)

    def learned_row(self, per: str = "model", *, learning_rate=0.05, epochs=5, batch_size=128) -> tuple[Row, list]:
        """Learn the mixing weights on the held-out split, one for each member or leaf; give the row and the losses."""
        title = {"model": "learned soup", "leaf": "learned soup, per leaf"}[per]
        data = self.held_out
        batch_size = min(batch_size, len(data.labels))
        steps = max(1, round(epochs * len(data.labels) / batch_size))
        order = batch_indices(len(data.labels), batch_size, steps, self.seed)
        loss = mixture_loss(self.apply_fn, self.preprocess)

        def make():
            batches = ({"image": data.images[rows], "label": data.labels[rows]} for rows in order)
            batches = counted(batches, f"learned soup, one weight for each {per}", steps, "steps")
            return soups.learned(self.usable(), loss, batches, per=per, learning_rate=learning_rate)

        settings = {"learning_rate": learning_rate, "epochs": epochs, "batch_size": batch_size, "seed": self.seed}
        params, record = self.soup(title, make, settings=settings | self._selecting)
        cost = 3 * len(record["history"]) * batch_size  # a backward pass costs two forward passes
        row = self.soup_row(title, params, record["ingredients"], selection=cost)
        return row | {"temperature": record["temperature"]}, record["history"]

    def merged_row(self, title: str, recipe: Any, base: tree.Tree | None = None) -> Row:
        """Merge all members by a method with its settings, `(method, settings)`, or by a function of the members."""

        def make():
            say(title)
            if callable(recipe):
                return recipe(self.usable())
            method, settings = recipe
            return method(self.usable(), **settings, **({} if base is None or method.base is None else {"base": base}))

        if callable(recipe):  # what a function does cannot be compared with what it did
            made = make()
            params = made.params if isinstance(made, soups.Soup) else made
            return self.soup_row(title, params, dict.fromkeys(self.names, 1 / len(self.names)))
        method, settings = recipe
        decided = {"method": method.name, "settings": settings, "base": None if base is None else digest(base)}
        params, record = self.soup(title, make, settings=decided)
        return self.soup_row(title, params, record["ingredients"])

    def path_rows(self, base: tree.Tree, alphas: Sequence[float], *, called: str = "base") -> list[Row]:
        """Walk from the base to the best member (WiSE-FT): rows of the best α, of that nearest ½, and of all."""
        best = best_of(self.scores)
        say(f"WiSE-FT from the {called} to {self.short(best)}")
        rows = []
        for alpha in alphas:
            params = soups.wise_ft(self.members[best], base=base, alpha=alpha)
            used = {best: alpha, called: 1.0 - alpha}
            found = self.measure(params)
            place = {"group": "curve", "of": {"alpha": alpha}}
            rows.append(self.row(f"WiSE-FT, α = {alpha:g}", "interpolation", found, used, **place))
        chosen, middle = chosen_on_path(rows)
        cost = {"inference": 1, "selection": len(alphas) * len(self.held_out.labels), "training": 0}
        return [chosen | {"cost": cost}, middle, *rows]

    def ensemble_rows(self) -> tuple[list[Row], list]:
        """Return the ensemble of all members and the greedy one, by arithmetic on their logits, and its history."""
        logits = {name: self.member_logits(name) for name in self.names}
        held_out = {name: found["held_out"] for name, found in logits.items()}
        greedy = greedy_ensemble(held_out, self.held_out.labels)
        chosen = {"ensemble": dict.fromkeys(self.names, 1.0 / len(self.names)), "greedy ensemble": greedy.ingredients}
        costs = {"ensemble": 0, "greedy ensemble": len(self.names) * len(self.held_out.labels)}
        rows = []
        for title, used in chosen.items():
            cost = {"inference": len(used), "selection": costs[title]}
            rows.append(self.row(title, "ensemble", self.judge(self.mixed(logits, used)), used, **cost))
        return rows, self._short_history(greedy.history)

    def mixed(self, logits: Mapping[str, Logits], weights: Mapping[str, float]) -> Logits:
        """Return an ensemble's logits on every split."""
        return {
            split: ensemble_logits([logits[name][split] for name in weights], list(weights.values()))
            for split in self.splits
        }

    def _short_history(self, history):
        return [step | {"member": self.short(step["member"])} for step in history]

    @property
    def _selecting(self):
        return {"held_out": self.data_digests["held_out"], "network": self.network_digest}


def best_of(scores: Mapping[str, float]) -> str:
    """Return the name with the highest score; of equal ones the last, with which the greedy soup begins as well."""
    return max(reversed(scores), key=scores.get)


def slug(title: str) -> str:
    """Return the name under which a soup of this title is kept."""
    return re.sub(r"[^\w.=-]+", "_", title).strip("_")


def random_orders(names: Sequence[str], count: int, seed: int) -> dict[str, list[str]]:
    """Return so many random orders of names, with the titles of their greedy soups."""
    generator = np.random.default_rng([seed, 1])
    orders = ([names[place] for place in generator.permutation(len(names))] for _ in range(count))
    return {f"greedy soup, random order {number}": order for number, order in enumerate(orders, 1)}


def mixture_loss(apply_fn: Callable, preprocess: Callable) -> Callable:
    """Return the loss of a learned soup: the mean cross-entropy of logits times a temperature."""

    def loss(params, batch, temperature):
        logits = temperature * apply_fn(params, preprocess(batch["image"]))
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    return loss


def chosen_on_path(rows: Sequence[Row]) -> list[Row]:
    """Return the row of the α with the highest held-out accuracy, and of that nearest ½; all have it in their "of"."""
    # the largest of equally good α: the nearest to the member that the held-out split has chosen already
    best = max(rows, key=lambda row: (row["metrics"]["held_out"]["accuracy"] or 0.0, row["of"]["alpha"]))
    middle = min(rows, key=lambda row: abs(row["of"]["alpha"] - 0.5))
    main = {"group": "main", "of": {}}
    return [best | main | {"name": "WiSE-FT, α by held-out"}, middle | main]


def _mean(values):
    if isinstance(values[0], Mapping):
        return {name: _mean([value[name] for value in values]) for name in values[0]}
    return None if None in values else float(np.mean(values))
