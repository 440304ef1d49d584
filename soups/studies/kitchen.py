"""Cook from members every row that more than one study has."""

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
import xxhash

import soups
from soups import arguments, tree
from soups.data import batch_indices
from soups.evaluate import greedy_ensemble
from soups.plugins import blamed
from soups.pool import Pool, digest
from soups.progress import counted, say
from soups.studies.digests import program_digest
from soups.studies.examples import number_of, rows_of
from soups.studies.measuring import Logits, Measuring
from soups.studies.rows import Row


@dataclasses.dataclass(kw_only=True)
class Kitchen(Measuring):
    """Measure the members of one seed, and cook from them: see `Measuring` for what it is given.

    Soups are kept under the digests of all that they are made from, so a killed run goes on where it was.

    Attributes:
        device: where candidates of greedy soups are mixed; default: where the members are.
        about: what the records of soups say beside what they are made from.
        reestimate: from averaged weights to the same with BatchNorm statistics of their own; default: none is known.
        loss: `loss(outputs, targets)` of learned soups; default: the cross-entropy of logits times a temperature.
    """

    device: jax.Device | None = None
    reestimate: Callable[[tree.Tree], tree.Tree] | None = None
    loss: Callable | None = None
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def kept(self) -> Pool:
        """Return the pool of the soups, each with its record."""
        pool = Pool(self.directory / "soups")
        pool.sweep_orphans()
        return pool

    def check(self, params: tree.Tree) -> bool:
        """See, as `Measuring.check`, that the network can be measured, and that a loss fits it."""
        floats = super().check(params)
        if self.loss is not None:
            loss, some = mixture_loss(self.apply_fn, self.preprocess, self.loss), rows_of(self.held_out, slice(2))
            with blamed("loss", self.loss):
                arguments.check_loss(jax.eval_shape(loss, params, some, 1.0))
        return floats

    # --- Soups --------------------------------------------------------------------------------------------------------

    def soup(
        self, title: str, make: Callable[[], Any], settings: Mapping[str, Any] | None = None
    ) -> tuple[tree.Tree, dict[str, Any]]:
        """Return the weights of a soup and its record: as kept under its title if made from the same, else made anew.

        `make` returns weights or a `soups.Soup`; `settings` are all that decides the result beside the members.
        """
        used = {name: self.digests[name] for name in self.names}
        settings = dict(settings or {}) | self._statistics
        origin = {"title": title, "members": used, "settings": settings, "soups": soups.__version__}
        place = self.prefix + slug(title)
        if place in self.kept and self.kept.record(place)["metadata"].get("origin") != origin:
            self.kept.remove(place)
        if place not in self.kept:
            made = make()
            record = {"ingredients": dict.fromkeys(used, 1 / len(used))}
            if isinstance(made, soups.Soup):
                made, record = made.params, made.record()
            self.kept.add(place, self.settled(made), {"origin": origin, **self.about, **record})
        return self.kept[place], self.kept.record(place)["metadata"]

    def settled(self, averaged: tree.Tree) -> tree.Tree:
        """Return averaged weights with BatchNorm statistics of their own, or as they are: then that is said, once."""
        if self.reestimate is not None:
            with blamed("reestimate", self.reestimate):
                found = self.reestimate(averaged)
                _check_alike(averaged, found, "what it was given")
                return found
        if isinstance(averaged, Mapping) and "batch_stats" in averaged and not self._said:
            self._said.append(True)
            say(
                "soups get the mean of their members' BatchNorm statistics, which seldom fits them: "
                "soups.models.reestimate_batch_stats measures it, in soups.cook(reestimate=...)"
            )
        return averaged

    @functools.cached_property
    def _said(self):
        return []

    def soup_row(
        self, title: str, params: tree.Tree, ingredients: Any, *, selection: int = 0, training: int = 0
    ) -> Row:
        """Measure a soup."""
        return self.row(title, "soup", self.measure(params), ingredients, selection=selection, training=training)

    def start_rows(self, start: tree.Tree, probe: tree.Tree) -> list[Row]:
        """Measure what was there before the members: start weights, and the probe if it is another."""
        rows = [self.row("start weights", "start", self.measure(start), {})]
        return rows if probe is start else [*rows, self.row("linear probe", "probe", self.measure(probe), {})]

    def soup_rows(self, random_orders: int = 0, learned: Mapping[str, Any] | None = None) -> tuple[list[Row], dict]:
        """Make the uniform soup, the greedy one and those of random orders, and learned ones with some settings.

        Returns:
            Their rows, and their histories by name.
        """
        rows, histories = [self.uniform_row()], {}
        orders = {"greedy soup": None} | self.random_orders(random_orders)
        for title, order in counted(orders.items(), "greedy soups", len(orders), "soups"):
            row, history = self.greedy_row(title, order)
            rows.append(row)
            histories |= {} if order else {title: history}
        for per in ("model", "leaf") if learned is not None else ():
            row, losses = self.learned_row(per, **learned)
            rows.append(row)
            histories[row["name"]] = losses
        return rows, histories

    def shown(self, titles: Iterable[str] = ("uniform soup", "greedy soup")) -> dict[str, tree.Tree]:
        """Return the best member and soups that were made, by their titles, for figures."""
        best = {"best member": self.members[self.best()]}
        return best | {title: self.kept[self.prefix + slug(title)] for title in titles}

    def uniform_row(self, title: str = "uniform soup", training: int = 0) -> Row:
        """Average all members."""
        own = getattr(self.members, "uniform", None)  # where they cannot be streamed
        params, record = self.soup(title, lambda: own(self.names) if own else soups.uniform(self.usable()))
        return self.soup_row(title, params, record["ingredients"], training=training)

    def greedy_row(
        self, title: str = "greedy soup", order: Sequence[str] | None = None, training: int = 0
    ) -> tuple[Row, list]:
        """Add members one by one, by what selects or in a given order; give the row and the history."""
        make = functools.partial(self.greedy, title, self.names, order)
        params, record = self.soup(title, make, settings={"order": order, **self._selecting})
        selection = (len(self.names) if order else 2 * len(self.names) - 1) * number_of(self.held_out)
        row = self.soup_row(title, params, record["ingredients"], selection=selection, training=training)
        return row, self._short_history(record["history"])

    def greedy(self, title: str, names: Sequence[str], order: Sequence[str] | None = None) -> soups.Soup:
        """Make the greedy soup of some members, going on from its journal after a crash."""
        decided = {"members": {name: self.digests[name] for name in names}, **self._selecting, "order": order}
        return soups.greedy_speculative(
            self.usable(names),
            lambda candidates: self.scores_of([self.settled(one) for one in candidates]),
            width=self.width,
            scores=None if order else {name: self.scores[name] for name in names},
            order=order,
            mode=self.main.mode,
            device=self.device,
            journal=self._journal(title, decided),
        )

    def _journal(self, title, decided) -> pathlib.Path:
        key = xxhash.xxh3_64_hexdigest(json.dumps(decided).encode())
        return self.directory / "journals" / f"{self.prefix}{slug(title)}-{key}.jsonl"

    def random_orders(self, count: int) -> dict[str, list[str]]:
        """Return random orders of the members, with the titles of their greedy soups."""
        return random_orders(self.names, count, self.seed)

    def learned_row(
        self,
        per: str = "model",
        *,
        title: str | None = None,
        learning_rate: float = 0.05,
        epochs: float = 5,
        batch_size: int = 128,
    ) -> tuple[Row, list]:
        """Learn the mixing weights on the held-out split, one for each member or leaf; give the row and the losses."""
        title = title or {"model": "learned soup", "leaf": "learned soup, per leaf"}[per]
        data, count = self.held_out, number_of(self.held_out)
        batch_size = min(batch_size, count)
        steps = max(1, round(epochs * count / batch_size))
        order = batch_indices(count, batch_size, steps, self.seed)
        if isinstance(data.images, np.memmap):  # read in the order of the file
            order = map(np.sort, order)
        loss = mixture_loss(self.apply_fn, self.preprocess, self.loss)

        settings = {"learning_rate": learning_rate, "epochs": epochs, "batch_size": batch_size, "seed": self.seed}
        settings |= self._selecting
        if self.loss is not None:
            settings["loss"] = program_digest(loss, self.members[self.names[0]], rows_of(data, slice(1)), 1.0)

        def make():
            batches = (rows_of(data, rows) for rows in order)
            batches = counted(batches, f"learned soup, one weight for each {per}", steps, "steps")
            members = getattr(self.members, "at_once", self.usable)(self.names)
            dtype = getattr(self.members, "mixed_dtype", None)
            journal = self._journal(title, {"members": self.digests, **settings})
            options = {"per": per, "learning_rate": learning_rate, "dtype": dtype, "journal": journal}
            return soups.learned(members, loss, batches, **options)

        params, record = self.soup(title, make, settings=settings)
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
            settings = self._of_usable(method, settings)
            settings |= {} if base is None or method.base == "none" else {"base": base}
            return method(self.usable(), **settings)

        if callable(recipe):  # what a function does cannot be compared with what it did
            with blamed(f"recipe {title!r}", recipe):
                made = make()
                params = made.params if isinstance(made, soups.Soup) else made
                if not jax.tree.leaves(params):
                    raise ValueError(f"it must return weights or a soups.Soup, not a {type(made).__name__}")
                _check_alike(self.members[self.names[0]], params, "the members")
            params = params if self.reestimate is None else self.settled(params)
            return self.soup_row(title, params, dict.fromkeys(self.names, 1 / len(self.names)))
        method, settings = recipe
        decided = {"method": method.name, "settings": settings, "base": None if base is None else digest(base)}
        params, record = self.soup(title, make, settings=decided)
        return self.soup_row(title, params, record["ingredients"])

    def _of_usable(self, method, settings):
        """Return settings without those of members that are left out."""
        found, names = dict(settings), list(self.members)
        for key in settings.keys() & {*method.per_member}:
            values = dict(zip(names, arguments.per_member(settings[key], names, key), strict=True))
            found[key] = {name: values[name] for name in self.names}
        return found

    def path_rows(
        self, base: tree.Tree, alphas: Sequence[float], *, called: str = "base", member: str | None = None
    ) -> list[Row]:
        """Walk from the base to a member (WiSE-FT), the best one unless another is named.

        Returns:
            The rows of the best α, of that nearest ½, and of all.
        """
        best = member or self.best()
        say(f"WiSE-FT from the {called} to {self.short(best)}")
        rows = []
        for alpha in alphas:
            params = soups.wise_ft(self.members[best], base=base, alpha=alpha)
            params = self.settled(params) if 0 < alpha < 1 else params
            used = {best: alpha, called: 1.0 - alpha}
            found = self.measure(params)
            place = {"group": "curve", "of": {"alpha": alpha}}
            rows.append(self.row(f"WiSE-FT, α = {alpha:g}", "interpolation", found, used, **place))
        chosen, middle = self._chosen_on_path(rows)
        cost = {"inference": 1, "selection": len(alphas) * number_of(self.held_out), "training": 0}
        return [chosen | {"cost": cost}, middle, *rows]

    def ensemble_rows(self) -> tuple[list[Row], list]:
        """Return the ensemble of all members and the greedy one, by arithmetic on their logits, and its history."""
        held_out = {name: self.member_logits(name, ["held_out"])["held_out"] for name in self.names}
        greedy = greedy_ensemble(held_out, self.held_out.labels, metric=self.main)
        del held_out
        chosen = {"ensemble": dict.fromkeys(self.names, 1.0 / len(self.names)), "greedy ensemble": greedy.ingredients}
        costs = {"ensemble": 0, "greedy ensemble": len(self.names) * number_of(self.held_out)}
        rows = []
        for title, used in chosen.items():
            cost = {"inference": len(used), "selection": costs[title]}
            rows.append(self.row(title, "ensemble", self.judge(self.mixed(used)), used, **cost))
        return rows, self._short_history(greedy.history)

    def mixed(self, weights: Mapping[str, float]) -> Logits:
        """Return an ensemble's logits on every split; of one member at a time they are in memory."""
        total, shares = sum(weights.values()), {}
        for split in self.splits:
            for name, weight in weights.items():
                logits = self.member_logits(name, [split])[split]
                part = weight / total * logits.astype(np.float64)
                shares[split] = part if split not in shares else shares[split] + part
            shares[split] = shares[split].astype(logits.dtype)
        return shares

    def _short_history(self, history):
        return [step | {"member": self.short(step["member"])} for step in history]

    def _chosen_on_path(self, rows):
        """Return the row of the α that is best on held-out data, and of that nearest ½; all have it in their "of"."""
        # the largest of equally good α: the nearest to the member that the held-out split has chosen already
        best = max(rows, key=lambda r: (self.worth(r["metrics"]["held_out"][self.metric]), r["of"]["alpha"]))
        middle = min(rows, key=lambda row: abs(row["of"]["alpha"] - 0.5))
        main = {"group": "main", "of": {}}
        return [best | main | {"name": "WiSE-FT, α by held-out"}, middle | main]

    @property
    def _selecting(self):
        found = {"held_out": self.data_digests["held_out"], "network": self.network_digest, **self._statistics}
        if self.metrics is None:
            return found
        # a metric of the user's own has no digest, but what it finds tells it from another
        return found | {"metric": self.metric, "mode": self.main.mode, "scores": self.scores}

    @functools.cached_property
    def _statistics(self):
        # nor has a function that measures statistics
        return {} if self.reestimate is None else {"batch_stats": digest(self.settled(self.members[self.names[0]]))}


def _check_alike(wanted, made, called):
    tree.check_same_structure([tree.flatten(one) for one in (wanted, made)], [called, "its weights"], dtypes=False)


def slug(title: str) -> str:
    """Return the name under which a soup of this title is kept."""
    return re.sub(r"[^\w.=-]+", "_", title).strip("_")


def random_orders(names: Sequence[str], count: int, seed: int) -> dict[str, list[str]]:
    """Return so many random orders of names, with the titles of their greedy soups."""
    generator = np.random.default_rng([seed, 1])
    orders = ([names[place] for place in generator.permutation(len(names))] for _ in range(count))
    return {f"greedy soup, random order {number}": order for number, order in enumerate(orders, 1)}


def mixture_loss(apply_fn: Callable, preprocess: Callable, own: Callable | None) -> Callable:
    """Return the loss of a learned soup: the mean cross-entropy of logits times a temperature, or one of the user's."""

    def loss(params, batch, temperature):
        outputs = apply_fn(params, preprocess(batch["image"]))
        if own is not None:
            return own(outputs, batch["label"])
        logits = temperature * outputs
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    return loss
