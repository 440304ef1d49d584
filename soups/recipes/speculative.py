"""Choose greedily with several candidates at once, as if they had been tried one after the other."""

from __future__ import annotations

import concurrent.futures
import math
import os
from collections.abc import Callable, Mapping, Sequence

from soups import arguments, tree
from soups.lazy import jax
from soups.recipes._candidates import Candidate, Candidates, Growing
from soups.recipes._scores import NotFiniteError, direction, pick_metric
from soups.recipes.declare import python_only
from soups.recipes.greedy import select
from soups.recipes.soup import Soup


@python_only("needs a function that evaluates weights: use soups.greedy_speculative in Python")
def greedy_speculative(
    members: arguments.Members,
    evaluate_many: Callable[[list[tree.Tree]], Sequence[float | Mapping[str, float]]],
    *,
    width: int,
    scores: Mapping[str, float] | Sequence[float] | None = None,
    order: Sequence[str | int] | None = None,
    metric: str | None = None,
    mode: str | None = None,
    accept: str = "gt",
    journal: str | os.PathLike | None = None,
    device: jax.Device | None = None,
) -> Soup:
    """Make the greedy soup with `width` candidates evaluated at once: the same soup as that of `greedy`, to the bit.

    The next `width` candidates, each added to the current soup, are evaluated together and gone through in order. An
    acceptance changes the soup, so those after it are stale and are evaluated again. Most candidates are rejected: if
    a of K are accepted, there are at most ceil(K / width) + a rounds. History, journal and ties are those of `greedy`,
    and either goes on from the other's journal.

    While a round is evaluated, threads make the candidates of the next, in the hope that none is accepted. So the host
    holds up to 2 · width members and candidates, and each member is read once for the pass.

    Args:
        evaluate_many: gives the held-out scores of a list of at most `width` weights, as `many` of a
            `soups.evaluate.Evaluator` does; a round may be shorter.
        members, scores, order, metric, mode, accept, journal, device: as for `greedy`.

    Raises:
        ValueError, OSError: as `greedy`.
        ValueError: a width below 1; an `evaluate_many` that does not return one score for each candidate.
    """
    width = arguments.check_within("width", width, "[1, inf)", whole=True)

    def scores_of(candidates):
        if not candidates:
            return []
        try:
            values = list(evaluate_many(candidates))
        except NotFiniteError:  # it does not say whose outputs they are
            return [math.nan] if len(candidates) == 1 else [scores_of([alone])[0] for alone in candidates]
        if len(values) != len(candidates):
            raise ValueError(f"evaluate_many gave {len(values)} scores for {len(candidates)} candidates")
        return [pick_metric(value, metric) for value in values]

    rules = {"mode": direction(metric, mode, evaluate_many, "evaluate_many"), "accept": accept, "metric": metric}
    threads = concurrent.futures.ThreadPoolExecutor(width)
    try:
        return select(
            members,
            lambda members: _AtOnce(members, scores_of, width, threads, device),
            rules,
            scores=scores,
            order=order,
            journal=journal,
        )
    finally:
        threads.shutdown(cancel_futures=True)


class _AtOnce(Candidates):
    """Make candidates in threads ahead of need, and score `width` of them at once."""

    def __init__(self, members, scores_of, width, threads, device):
        super().__init__(members, None, device)
        self._scores_of = scores_of
        self._width = width
        self._threads = threads
        self._soup: Growing | None = None  # what all below is about
        self._coming: dict[str, concurrent.futures.Future[Candidate]] = {}
        self._scored: dict[str, Candidate] = {}
        self._held: dict[str, tree.Tree] = {}  # members to be decided on: for a new soup they are not read again

    def scored(self, names: Sequence[str], soup: Growing) -> Candidate:
        """Return the candidate of `names[0]`, which the last round has scored unless the soup has changed since."""
        if soup is not self._soup:
            self._forget(names)
            self._soup = soup
        if names[0] not in self._scored:
            self._next_round(names)
        self._held.pop(names[0], None)
        return self._scored.pop(names[0])

    def _next_round(self, names):
        chosen = {}
        for position, name in enumerate(names):
            # the first of all alone: the others' structure is compared with its
            self._make(names[position : position + (1 if self._first is None else self._width)])
            candidate = self._coming.pop(name).result()
            if candidate.reason:
                self._scored[name] = candidate
            else:
                chosen[name] = candidate
            if len(chosen) == self._width:
                break
        self._make(names[position + 1 : position + 1 + self._width])
        scores = self._scores_of([candidate.params for candidate in chosen.values()])
        for (name, candidate), score in zip(chosen.items(), scores, strict=True):
            self._scored[name] = candidate._replace(score=score, params=None)

    def _make(self, names):
        for name in names:
            if name not in self._coming:
                self._coming[name] = self._threads.submit(self.unscored, name, self._soup)

    def _forget(self, names):
        """Drop what was made of another soup, and keep the members of `names`."""
        for future in self._coming.values():
            future.cancel()
        concurrent.futures.wait(self._coming.values())  # a member that is still being read would be read twice
        self._coming, self._scored = {}, {}
        self._held = {name: member for name, member in self._held.items() if name in names}

    def _read(self, name):
        if name not in self._held:
            self._held[name] = super()._read(name)
        return self._held[name]
