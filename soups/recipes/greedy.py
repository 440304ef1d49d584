"""Choose ingredients one after the other by a held-out score."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

from soups import arguments, tree
from soups.journal import Journal
from soups.lazy import jax
from soups.names import check_name
from soups.recipes._candidates import Candidates, Growing
from soups.recipes._scores import direction, number, score_of
from soups.recipes.declare import python_only
from soups.recipes.soup import Soup, digests


@python_only("needs a function that evaluates weights: use soups.greedy in Python")
def greedy(
    members: arguments.Members,
    evaluate: Callable[[tree.Tree], float | Mapping[str, float]],
    *,
    scores: Mapping[str, float] | Sequence[float] | None = None,
    order: Sequence[str | int] | None = None,
    metric: str | None = None,
    mode: str | None = None,
    accept: str = "gt",
    journal: str | os.PathLike | None = None,
    device: jax.Device | None = None,
) -> Soup:
    """Add members one by one, keeping each that improves the held-out score of the average: the greedy soup.

    Members are tried from the best single score down, in one pass, and each is read once for it. The soup is a running
    mean in float32; each candidate is evaluated as it would be returned, in the members' dtypes. A member with NaN or
    infinity is left out and so recorded; so is one whose score is NaN or infinite, or for whose outputs an evaluator
    raises `soups.evaluate.NotFiniteError`.

        soup = soups.greedy(pool, lambda params: accuracy(params, held_out), journal="greedy.jsonl")
        soup.params, soup.ingredients, soup.score

    Args:
        evaluate: gives the held-out score of weights, as a float or a mapping of metrics.
        scores: held-out score of each member alone; evaluated where missing, unless `order` is given.
        order: names or indices in the order in which to try them; default: best score first, ties later-listed first.
        metric: which entry to use where `evaluate` gives a mapping.
        mode: "max" if more is better, "min" if less is; default: that of the metric, where it is a known one such as
            "accuracy" or "nll" or `evaluate.modes` has it, and "max" where `evaluate` gives a float.
        accept: "gt" for strictly better, as the published code; "ge" for not worse, as the paper's text and DiWA.
        journal: a file for all decisions; the same call goes on from it after a crash and evaluates nothing twice. It
            knows the members by digests of their weights, so those of a mapping are read once more for it.
        device: where members are put to be mixed and evaluated, such as `jax.devices()[0]`; those of mapped files go
            there without a copy on the host. Default: they stay where they are, so NumPy arrays are mixed by NumPy.

    Raises:
        ValueError: no member that is finite and has a finite score; members whose structures differ; an unknown member,
            metric, mode or rule; a metric of which it is not known whether more is better; an empty order; a journal of
            another selection.

    Wortsman et al., "Model soups", 2022, arXiv 2203.05482, recipe 1.
    """

    def candidates_of(members):
        return Candidates(members, lambda params: score_of(evaluate, params, metric), device)

    rules = {"mode": direction(metric, mode, evaluate), "accept": accept, "metric": metric}
    return select(members, candidates_of, rules, scores=scores, order=order, journal=journal)


def select(members: arguments.Members, candidates_of: Callable, rules: Mapping[str, Any], *, scores, order, journal):
    """Choose as `greedy` does by its `rules` (mode, accept, metric); `candidates_of(members)` gives `Candidates`."""
    compare = {"gt": operator.gt, "ge": operator.ge}
    compare = compare[check_name(rules["accept"], compare, "rule to accept by")]
    sign = 1.0 if rules["mode"] == "max" else -1.0
    given, members = members, arguments.as_mapping(members)
    names = list(members)
    fixed_order = None if order is None else _resolve(order, names)
    scores = None if scores is None else _scores_of(scores, given, members)
    log = Journal(journal, {"recipe": "greedy", **rules, "order": fixed_order, "scores": scores}, members=members)
    candidates, reasons = candidates_of(members), {}
    if fixed_order is None and scores is None:
        scores, reasons = _individual(names, candidates, log)
    # ascending, stable, then reversed: among equal scores the later-listed comes first, as in the published code
    finite = [] if fixed_order else [name for name in scores if math.isfinite(scores[name])]
    order = fixed_order or sorted(finite, key=lambda name: sign * scores[name])[::-1]
    ingredients, params, score, history = _stir(
        order, None if fixed_order else scores, candidates, log, lambda new, old: compare(sign * new, sign * old)
    )
    left_out = [] if fixed_order else [name for name in names if not math.isfinite(scores[name])]
    history += [_step(_decision(name, scores[name], False, reasons.get(name)), ingredients) for name in left_out]
    if not ingredients:
        raise ValueError(
            "no member is finite and has a score: " + "; ".join(f"{h['member']}: {h['reason']}" for h in history)
        )
    return Soup(
        params=params(),
        recipe={"name": "greedy", **rules},
        ingredients={name: 1.0 / len(ingredients) for name in ingredients},
        history=history,
        score=score,
        digests=digests(members, ingredients),
    )


def _scores_of(scores, given, members):
    if isinstance(scores, Mapping) and isinstance(given, Mapping):  # some of a pool's may be left out
        scores = {name: score for name, score in scores.items() if name in members or name not in given}
    values = arguments.per_member(scores, members, "scores")
    return {name: number(score, "scores must be numbers, not") for name, score in zip(members, values, strict=True)}


def _stir(order, scores, candidates, log, better):
    """Go through `order` once; return ingredients, what makes their weights, their score and the history."""
    soup, best, ingredients, history = Growing(), math.nan, [], []
    for position, name in enumerate(order):
        candidate, done = None, log.replay("candidate", name)
        if done is None:
            candidate = _candidate(order[position:], soup, scores, candidates)
            accepted = math.isfinite(candidate.score) and (not soup.count or better(candidate.score, best))
            done = log.write(_decision(name, candidate.score, accepted, candidate.reason))
        if done["accepted"]:
            soup, best = (candidate or candidates.unscored(name, soup)).soup, done["score"]
            ingredients.append(name)
        history.append(_step(done, ingredients))
    return ingredients, lambda: candidates.finished(soup), best, history


def _decision(name, score, accepted, reason):
    if reason is None and not math.isfinite(score):
        reason = f"its score is {score}"
    return {"kind": "candidate", "member": name, "score": score, "accepted": accepted, "reason": reason}


def _step(decision, ingredients):
    step = {key: decision[key] for key in ("member", "score", "accepted", "reason")}
    return {**step, "num_ingredients": len(ingredients)}


def _candidate(names, soup, scores, candidates):
    if soup.count:
        return candidates.scored(names, soup)
    if scores is None:
        return candidates.scored(names[:1], soup)  # it will be accepted: what comes after would be tried in vain
    candidate = candidates.unscored(names[0], soup)
    # the published code trusts the given score of the first
    return candidate if candidate.reason else candidate._replace(score=scores[names[0]])


def _individual(names, candidates, log):
    """Return the score of each member alone, and why those have none that cannot be evaluated."""
    found, nothing = {}, Growing()
    for position, name in enumerate(names):
        done = log.replay("individual", name)
        if done is None:
            candidate = candidates.scored(names[position:], nothing)
            score, reason = candidate.score, candidate.reason
            done = log.write({"kind": "individual", "member": name, "score": score, "reason": reason})
        found[name] = done
    return {name: done["score"] for name, done in found.items()}, {name: done["reason"] for name, done in found.items()}


def _resolve(order, names) -> list[str]:
    if isinstance(order, str | bytes | Set | Mapping) or not isinstance(order, Iterable):
        raise ValueError(f"order must be a sequence of members, not {order!r:.200}")
    resolved = [names[arguments.place_of(item, names)] for item in order]
    if not resolved:
        raise ValueError("order is empty: list the members to try, or give None for the best score first")
    if len(set(resolved)) < len(resolved):
        raise ValueError(f"order names a member twice: {', '.join(resolved)}")
    return resolved
