"""Combine members by their outputs: every ensemble is arithmetic on cached logits."""

import dataclasses
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy  # its parts are imported when they are used
from numpy.typing import ArrayLike

from soups.evaluate.measures import METRICS, Metric
from soups.names import check_name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Hold a greedy ensemble and how it came about.

    Attributes:
        logits: the mean logits of the ingredients [N, C].
        ingredients: weight of each member that went in, by name; for `ensemble_logits` on other datasets.
        history: for each member in the order of trial: "member", "score", "accepted", "reason", "num_ingredients".
        score: the metric of the ensemble on the labels that chose it.
    """

    logits: np.ndarray
    ingredients: dict[str, float]
    history: list[dict[str, Any]]
    score: float


def ensemble_logits(logits: ArrayLike, weights: ArrayLike | None = None, space: str = "logits") -> np.ndarray:
    """Average the outputs of members.

    Σ_i w_i z_i in the space of logits, or log Σ_i w_i softmax(z_i) in that of probabilities, whose softmax is the mean
    probability. The weights are divided by their sum. Accumulated in float64, one member at a time.

    Args:
        logits: K arrays [N, C], in a sequence or by name.
        weights: K weights ≥ 0 in the same order, or by name, members not named counting nothing; default: all equal.
        space: "logits" or "probabilities".

    Returns:
        Logits [N, C] in the dtype of the first member's.

    Raises:
        ValueError: no members; logits whose shapes differ; NaN or infinity; weights that are not one for each member;
            an unknown space.
    """
    if space not in ("logits", "probabilities"):
        raise ValueError(f"space must be 'logits' or 'probabilities', not {space!r}")
    members = dict(logits) if isinstance(logits, Mapping) else dict(enumerate(logits))
    _check_members(members)
    weights = _normalised(weights, list(members))
    first = next(iter(members.values()))
    if space == "logits":
        return sum(w * np.asarray(members[name], np.float64) for name, w in weights.items()).astype(first.dtype)
    total = np.full(first.shape, -np.inf)
    for name, weight in weights.items():
        # in logarithms throughout: a probability too small for float64 is still a finite logit
        total = np.logaddexp(
            total, np.log(weight) + scipy.special.log_softmax(np.asarray(members[name], np.float64), axis=1)
        )
    return total.astype(first.dtype)


def greedy_ensemble(
    logits_by_member: Mapping[str, np.ndarray],
    labels: ArrayLike,
    *,
    metric: str | Metric = "accuracy",
    accept: str = "gt",
) -> Ensemble:
    """Choose members one by one, keeping each that improves the mean logits: the greedy soup in the space of logits.

    Members are tried in one pass from the best single score down, the later-listed first among equals, as in the
    published greedy soup. A member whose logits hold NaN or infinity is left out, and so recorded.

    Args:
        logits_by_member: held-out logits [N, C], or other outputs [N, ...], by member name.
        labels: [N] integers, or whatever the metric compares outputs with.
        metric: one of `soups.evaluate.METRICS`, whose direction is known: "accuracy", "nll", ..., or a `Metric`.
        accept: "gt" for strictly better, "ge" for not worse.

    Raises:
        ValueError: no members, or none that is finite; logits whose shapes differ; labels that do not fit them; an
            unknown metric or rule.

    Wortsman et al., "Model soups", 2022, arXiv 2203.05482, table 3.
    """
    score_of, mode = metric if isinstance(metric, Metric) else METRICS[check_name(metric, METRICS, "metric")]
    sign = 1.0 if mode == "max" else -1.0
    if accept not in ("gt", "ge"):
        raise ValueError(f"accept must be 'gt' or 'ge', not {accept!r}")
    finite = {name: logits for name, logits in logits_by_member.items() if np.isfinite(logits).all()}
    if not finite:
        raise ValueError(f"none of the {len(logits_by_member)} members has finite logits")
    _check_members(finite, axes=None)
    scores = {name: float(score_of(logits, labels)) for name, logits in finite.items()}
    # ascending, stable, then reversed: among equal scores the later-listed member comes first
    order = sorted(scores, key=lambda name: sign * scores[name])[::-1]
    better = operator.gt if accept == "gt" else operator.ge

    total, best, ingredients, history = np.zeros(finite[order[0]].shape, np.float64), None, [], []
    for name in order:
        candidate = total + np.asarray(finite[name], np.float64)
        score = float(score_of(candidate / (len(ingredients) + 1), labels))
        accepted = best is None or better(sign * score, sign * best)
        if accepted:
            total, best = candidate, score
            ingredients.append(name)
        history.append(_decision(name, score, accepted, len(ingredients)))
    history += [
        _decision(name, None, False, len(ingredients), "NaN or infinity in the logits")
        for name in logits_by_member
        if name not in finite
    ]
    return Ensemble(
        logits=(total / len(ingredients)).astype(finite[order[0]].dtype),
        ingredients={name: 1.0 / len(ingredients) for name in ingredients},
        history=history,
        score=best,
    )


def _decision(member, score, accepted, num_ingredients, reason=None):
    return {
        "member": member,
        "score": score,
        "accepted": accepted,
        "reason": reason,
        "num_ingredients": num_ingredients,
    }


def _check_members(members, axes=2):
    if not members:
        raise ValueError("an ensemble needs the logits of at least one member")
    first = next(iter(members.values())).shape
    lines = [f"  {name}: {logits.shape}" for name, logits in members.items() if logits.shape != first]
    if axes not in (None, len(first)) or lines:
        raise ValueError(f"members need logits of one shape [N, C]; the first has {first}\n" + "\n".join(lines))
    if broken := [str(name) for name, logits in members.items() if not np.isfinite(logits).all()]:
        raise ValueError(f"NaN or infinity in the logits of: {', '.join(broken)}")


def _normalised(weights, names) -> dict[Any, float]:
    """Return the weights that are not 0, divided by their sum, by member."""
    if weights is None:
        return dict.fromkeys(names, 1.0 / len(names))
    if isinstance(weights, Mapping):
        if unknown := [str(name) for name in weights if name not in names]:
            raise ValueError(f"weights for members that have no logits: {', '.join(unknown)}")
        weights = [weights.get(name, 0.0) for name in names]
    values = np.asarray(weights, np.float64)
    if values.shape != (len(names),):
        raise ValueError(f"{len(names)} members need {len(names)} weights, not an array of shape {values.shape}")
    if not (np.isfinite(values).all() and (values >= 0).all() and values.sum() > 0):
        raise ValueError(f"weights must be at least 0, finite, and not all 0: {values.tolist()}")
    shares = (values / values.sum()).tolist()
    return {name: share for name, share in zip(names, shares, strict=True) if share}
