"""Choose ingredients one after the other by a held-out score."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from soups import arguments, tree
from soups.journal import Journal
from soups.lazy import jax
from soups.names import check_name
from soups.recipes._candidates import Candidates, Growing
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
    mode: str = "max",
    accept: str = "gt",
    journal: str | os.PathLike | None = None,
    device: jax.Device | None = None,
) -> Soup:
    """Add members one by one, keeping each that improves the held-out score of the average: the greedy soup.

    Members are tried from the best single score down, in one pass, and each is read once for it. The soup is a running
    mean in float32; each candidate is evaluated as it would be returned, in the members' dtypes. A member with NaN or
    infinity is left out and so recorded; so is one whose score is NaN.

        soup = soups.greedy(pool, lambda params: accuracy(params, held_out), journal="greedy.jsonl")
        soup.params, soup.ingredients, soup.score

    Args:
        members: a sequence or mapping of trees, or a pool.
        evaluate: gives the held-out score of weights, as a float or a mapping of metrics.
        scores: held-out score of each member alone; evaluated where missing, unless `order` is given.
        order: names or indices in the order in which to try them; default: best score first, ties later-listed first.
        metric: which entry to use where `evaluate` gives a mapping.
        mode: "max" if more is better, "min" if less is.
        accept: "gt" for strictly better, as the published code; "ge" for not worse, as the paper's text and DiWA.
        journal: a file for all decisions; the same call goes on from it after a crash and evaluates nothing twice.
        device: where members are put to be mixed and evaluated, such as `jax.devices()[0]`; those of mapped files go
            there without a copy on the host. Default: they stay where they are, so NumPy arrays are mixed by NumPy.

    Raises:
        ValueError: no (finite) members, mismatched structures, unknown member, metric, mode or rule, or a journal of
            another selection.
        OSError: the journal cannot be written; its path is in the message.

    Wortsman et al., "Model soups", 2022, arXiv 2203.05482, recipe 1.
    """

    def candidates_of(members):
        return Candidates(members, lambda params: pick_metric(evaluate(params), metric), device)

    rules = {"mode": mode, "accept": accept, "metric": metric}
    return select(members, candidates_of, rules, scores=scores, order=order, journal=journal)


def select(members: arguments.Members, candidates_of: Callable, rules: Mapping[str, Any], *, scores, order, journal):
    """Choose as `greedy` does by its `rules` (mode, accept, metric); `candidates_of(members)` gives `Candidates`."""
    mode = check_name(rules["mode"], ("max", "min"), "mode")
    accept = check_name(rules["accept"], ("gt", "ge"), "rule to accept by")
    given, members = members, arguments.as_mapping(members)
    names = list(members)
    fixed_order = None if order is None else _resolve(order, names)
    scores = None if scores is None else _scores_of(scores, given, members)
    log = Journal(journal, {"recipe": "greedy", **rules, "members": names, "order": fixed_order, "scores": scores})
    candidates = candidates_of(members)
    if fixed_order is None and scores is None:
        scores = _individual(names, candidates, log)
    sign, compare = 1.0 if mode == "max" else -1.0, operator.gt if accept == "gt" else operator.ge
    order = fixed_order or _best_first(scores, sign)
    ingredients, params, score, history = _stir(
        order, None if fixed_order else scores, candidates, log, lambda new, old: compare(sign * new, sign * old)
    )
    return Soup(
        params=params,
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
    return {name: float(score) for name, score in zip(members, values, strict=True)}


def _stir(order, scores, candidates, log, better):
    """Go through `order` once; return ingredients, weights, their score and the history."""
    soup, best, ingredients, history = Growing(), math.nan, [], []
    for position, name in enumerate(order):
        candidate, done = None, log.replay("candidate", name)
        if done is None:
            candidate = _candidate(order[position:], soup, scores, candidates)
            accepted = not math.isnan(candidate.score) and (not soup.count or better(candidate.score, best))
            done = {
                "kind": "candidate",
                "member": name,
                "score": candidate.score,
                "accepted": accepted,
                "reason": candidate.reason,
            }
            log.write(done)
        if done["accepted"]:
            soup, best = (candidate or candidates.unscored(name, soup)).soup, done["score"]
            ingredients.append(name)
        history.append({key: done[key] for key in ("member", "score", "accepted", "reason")})
        history[-1]["num_ingredients"] = len(ingredients)
    if not ingredients:
        raise ValueError(
            "no member is finite and has a score: " + "; ".join(f"{h['member']}: {h['reason']}" for h in history)
        )
    return ingredients, candidates.finished(soup), best, history


def _candidate(names, soup, scores, candidates):
    if soup.count:
        return candidates.scored(names, soup)
    if scores is None:
        return candidates.scored(names[:1], soup)  # it will be accepted: what comes after would be tried in vain
    candidate = candidates.unscored(names[0], soup)
    # the published code trusts the given score of the first
    return candidate if candidate.reason else candidate._replace(score=scores[names[0]])


def _individual(names, candidates, log) -> dict[str, float]:
    scores, nothing = {}, Growing()
    for position, name in enumerate(names):
        done = log.replay("individual", name)
        if done is None:
            score = candidates.scored(names[position:], nothing).score
            done = log.write({"kind": "individual", "member": name, "score": score})
        scores[name] = done["score"]
    return scores


def _best_first(scores: Mapping[str, float], sign: float) -> list[str]:
    # ascending, stable, then reversed: among equal scores the later-listed member comes first, as in the published code
    ascending = sorted(scores, key=lambda name: -math.inf if math.isnan(scores[name]) else sign * scores[name])
    return ascending[::-1]


def _resolve(order, names) -> list[str]:
    resolved = [names[arguments.place_of(item, names)] for item in order]
    if len(set(resolved)) < len(resolved):
        raise ValueError(f"order names a member twice: {', '.join(resolved)}")
    return resolved


def pick_metric(value: Any, metric: str | None) -> float:
    """Return the number to choose by, from what an `evaluate` returned: a number, or metrics by name."""
    if not isinstance(value, Mapping):
        if metric is not None:
            raise ValueError(f"metric={metric!r} was given, but evaluate returns a number and no mapping")
        return float(value)
    if metric is None:
        raise ValueError(f"evaluate returns several metrics, choose one with metric=: {', '.join(value)}")
    return float(value[check_name(metric, value, "metric")])
