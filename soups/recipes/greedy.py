"""Choose ingredients one after the other by a held-out score."""

import math
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from soups import tree
from soups.names import check_name
from soups.recipes import _members
from soups.recipes._journal import Journal
from soups.recipes.averages import running_mean
from soups.recipes.soup import Soup, digests


def greedy(
    members: _members.Members,
    evaluate: Callable[[tree.Tree], float | Mapping[str, float]],
    *,
    scores: Mapping[str, float] | Sequence[float] | None = None,
    order: Sequence[str | int] | None = None,
    metric: str | None = None,
    mode: str = "max",
    accept: str = "gt",
    journal: str | os.PathLike | None = None,
) -> Soup:
    """Add members one by one, keeping each that improves the held-out score of the average: the greedy soup.

    Members are tried from the best single score down, in one pass, and each is read once for it. The soup is a running
    mean in float32; each candidate is evaluated as it would be returned, in the members' dtypes. A member with NaN or
    infinity is left out and so recorded; so is one whose score is NaN.

    Args:
        members: a sequence or mapping of trees, or a pool.
        evaluate: gives the held-out score of weights, as a float or a mapping of metrics.
        scores: held-out score of each member alone; evaluated where missing, unless `order` is given.
        order: names or indices in the order in which to try them; default: best score first, ties later-listed first.
        metric: which entry to use where `evaluate` gives a mapping.
        mode: "max" if more is better, "min" if less is.
        accept: "gt" for strictly better, as the published code; "ge" for not worse, as the paper's text and DiWA.
        journal: a file for all decisions; the same call goes on from it after a crash and evaluates nothing twice.

    Raises:
        ValueError: no (finite) members, other structures, unknown member, metric, mode or rule, or a journal of
            another selection.
        OSError: the journal cannot be written; its path is in the message.

    Wortsman et al., "Model soups", 2022, arXiv 2203.05482, recipe 1.
    """
    if mode not in ("max", "min") or accept not in ("gt", "ge"):
        raise ValueError(f"mode must be 'max' or 'min' and accept 'gt' or 'ge', not {mode!r} and {accept!r}")
    members = _members.as_mapping(members)
    names = list(members)
    settings = {"mode": mode, "accept": accept, "metric": metric}
    fixed_order = None if order is None else _resolve(order, names)
    given = None if scores is None else _by_name(scores, names)
    log = Journal(journal, {"recipe": "greedy", **settings, "members": names, "order": fixed_order, "scores": given})
    sign = 1.0 if mode == "max" else -1.0

    def score_of(params):
        return pick_metric(evaluate(params), metric)

    if fixed_order is None and given is None:
        given = {name: _individual(name, members, score_of, log) for name in names}
    order = fixed_order or _best_first(given, sign)
    soup = _stir(members, order, given if fixed_order is None else None, score_of, log, sign, accept)
    ingredients, params, score, history = soup
    return Soup(
        params=params,
        recipe={"name": "greedy", **settings},
        ingredients={name: 1.0 / len(ingredients) for name in ingredients},
        history=history,
        score=score,
        digests=digests(members, ingredients),
    )


def _stir(members, order, scores, score_of, log, sign, accept):
    """Go through `order` once; return ingredients, weights, their score and the history."""
    better = operator.gt if accept == "gt" else operator.ge
    mean, first, best, ingredients, history = None, None, math.nan, [], []
    for name in order:
        done = log.replay("candidate", name)
        if done is None or done["accepted"]:
            member = members[name]
            first = _same_structure(first, member, name)
            nonfinite = tree.nonfinite_names(member)
            candidate = None if nonfinite else _add(mean, member, len(ingredients))
        if done is None:
            if nonfinite:
                score, reason = math.nan, f"NaN or infinity in {', '.join(nonfinite)}"
            elif mean is None and scores is not None:
                score, reason = scores[name], None  # the published code trusts the given score of the first
            else:
                score, reason = score_of(tree.cast_like(candidate, member)), None
            accepted = not math.isnan(score) and (mean is None or better(sign * score, sign * best))
            done = {
                "kind": "candidate",
                "member": name,
                "score": score,
                "accepted": accepted,
                "reason": reason,
            }
            log.write(done)
        if done["accepted"]:
            mean, best = candidate, done["score"]
            ingredients.append(name)
        history.append({key: done[key] for key in ("member", "score", "accepted", "reason")})
        history[-1]["num_ingredients"] = len(ingredients)
    if mean is None:
        raise ValueError(
            "no member is finite and has a score: " + "; ".join(f"{h['member']}: {h['reason']}" for h in history)
        )
    return ingredients, tree.cast_like(mean, first), best, history


def _add(mean, member, count):
    return tree.widen(member) if mean is None else running_mean(mean, member, count)


def _same_structure(first, member, name):
    if first is None:
        return member
    tree.check_same_structure([first, member], ["of the first ingredient", name])
    return first


def _individual(name, members, score_of, log):
    done = log.replay("individual", name)
    if done is None:
        member = members[name]
        score = math.nan if tree.nonfinite_names(member) else score_of(member)
        done = log.write({"kind": "individual", "member": name, "score": score})
    return done["score"]


def _best_first(scores: Mapping[str, float], sign: float) -> list[str]:
    # ascending, stable, then reversed: among equal scores the later-listed member comes first, as in the published code
    ascending = sorted(scores, key=lambda name: -math.inf if math.isnan(scores[name]) else sign * scores[name])
    return ascending[::-1]


def _resolve(order, names) -> list[str]:
    resolved = [
        names[item] if isinstance(item, (int, np.integer)) else check_name(item, names, "member") for item in order
    ]
    if len(set(resolved)) < len(resolved):
        raise ValueError(f"order names a member twice: {', '.join(resolved)}")
    return resolved


def _by_name(scores, names) -> dict[str, float]:
    if not isinstance(scores, Mapping):
        if len(scores) != len(names):
            raise ValueError(f"{len(names)} members need {len(names)} scores, but {len(scores)} were given")
        return {name: float(score) for name, score in zip(names, scores, strict=True)}
    if missing := [name for name in names if name not in scores]:
        raise ValueError(f"no score is given for: {', '.join(missing)}")
    return {name: float(scores[name]) for name in names}


def pick_metric(value: Any, metric: str | None) -> float:
    """Give the number by which to choose, of what an `evaluate` returned: a number, or metrics by name."""
    if not isinstance(value, Mapping):
        if metric is not None:
            raise ValueError(f"metric={metric!r} was given, but evaluate returns a number and no mapping")
        return float(value)
    if metric is None:
        raise ValueError(f"evaluate returns several metrics, choose one with metric=: {', '.join(value)}")
    return float(value[check_name(metric, value, "metric")])
