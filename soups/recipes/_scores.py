"""Read the scores that an `evaluate` returns: which number counts, which way is better, and what is no score."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from soups import arguments
from soups.names import check_name, did_you_mean

_MORE = (
    "accuracy top_1 top_5 per_class_accuracy token_accuracy exact_match r2 pearson spearman matthews f1 micro_f1 "
    "macro_f1 map auc score reward"
)
_LESS = "loss nll token_nll cross_entropy perplexity brier ece ece_equal_width mse mae rmse error"
MODES = {**dict.fromkeys(_MORE.split(), "max"), **dict.fromkeys(_LESS.split(), "min")}


class NotFiniteError(ValueError):
    """Say that a network's outputs hold NaN or infinity: searches take it for a score that is NaN, and go on."""


def direction(metric: str | None, mode: str | None, evaluate: Any = None, called: str = "evaluate") -> str:
    """Return "max" or "min": `mode` if it is given, else what `evaluate.modes` or `MODES` says of the metric.

    More is better where `evaluate` gives a number alone, and so no metric is named. A ValueError for what is no
    function of weights, under the name by which it is `called`.
    """
    if evaluate is not None:
        arguments.check_takes(called, evaluate, "params")
    if mode is None and metric is not None:
        owner = getattr(evaluate, "__self__", evaluate)  # of a method, such as `Evaluator.many`
        if not isinstance(metric, str):
            raise ValueError(f"metric must be the name of a metric, not {metric!r:.200}")
        known = {**MODES, **getattr(owner, "modes", {})}
        mode = known.get(metric, known.get(metric.rpartition("/")[2]))
        if mode is None:
            if own := getattr(owner, "modes", None):
                check_name(metric, own, "metric")
            hint = did_you_mean(metric, known)
            raise ValueError(f"say whether a higher or a lower {metric!r} is better{hint}: mode='max' or mode='min'")
    if mode not in (None, "max", "min"):
        raise ValueError(f"mode must be 'max' or 'min', not {mode!r}")
    return mode or "max"


def score_of(evaluate: Callable[[Any], Any], params: Any, metric: str | None) -> float:
    """Return the score of weights, NaN where the network's outputs are not finite."""
    try:
        value = evaluate(params)
    except NotFiniteError:
        return math.nan
    return pick_metric(value, metric)


def pick_metric(value: Any, metric: str | None) -> float:
    """Return the number by which to choose, of what an `evaluate` returned: a number, or metrics by name."""
    if isinstance(value, Mapping):
        if metric is None:
            raise ValueError(f"evaluate returns several metrics: choose one with metric=: {', '.join(value)}")
        value = value[check_name(metric, value, "metric")]
    elif metric is not None:
        raise ValueError(f"metric={metric!r} was given, but evaluate returns a single number, not a mapping of metrics")
    return number(value, "a score must be a number, but evaluate gives")


def number(value: Any, wrong: str) -> float:
    """Return a number as a float; `wrong` begins the error about something else."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{wrong} {value!r:.200}") from error
