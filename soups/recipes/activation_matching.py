"""Align networks by what their units do: permute them so that their activations on the same inputs agree."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from soups import arrays
from soups.names import check_name
from soups.recipes.permutation import identity
from soups.recipes.rebasin import Matching, assign, score

STATISTIC_NAMES = ("correlation", "inner_product")


def activation_matching(
    activations_a: Mapping[str, Any] | Iterable[Mapping[str, Any]],
    activations_b: Mapping[str, Any] | Iterable[Mapping[str, Any]],
    *,
    statistic: str = "correlation",
) -> Matching:
    """Find the permutations of network B whose units behave most like those of network A on the same inputs.

    max over p of Σ_i S[i, p_i] for each permutation alone, where S is Pearson's correlation of units (a unit that is
    constant correlates 0 with all), or with "inner_product" E[a bᵀ], the least squares of the paper. Moments are pooled
    over batches in float64.

    Args:
        activations_a: from each permutation's name to activations [..., units], mostly after the nonlinearity; or
            batches of such mappings, each read once.
        activations_b: those of the other network, of the same inputs in the same order.

    Raises:
        ValueError: an unknown statistic, no batches, other numbers of batches, other names or shapes, NaN or
            infinity.

    Inner products: Ainsworth et al., "Git Re-Basin", 2022, arXiv 2209.04836, section 3.1; correlation: Li et al.,
    "Convergent learning", 2015, arXiv 1511.07543.
    """
    check_name(statistic, STATISTIC_NAMES, "statistic")
    moments = None
    for index, (a, b) in enumerate(itertools.zip_longest(_batches(activations_a), _batches(activations_b))):
        _check_activations(index, a, b)
        batch = {name: _moments(name, a[name], b[name]) for name in a}
        if moments is not None and _sizes(moments) != _sizes(batch):
            raise ValueError(f"batch {index} has activations of {_sizes(batch)}, the first batch of {_sizes(moments)}")
        moments = batch if moments is None else {name: _pool(moments[name], batch[name]) for name in batch}
    if moments is None:
        raise ValueError("no activations were given: at least one batch is needed")
    similarities = {name: _similarity(moment, statistic) for name, moment in moments.items()}
    found = {name: assign(similarity) for name, similarity in similarities.items()}
    unchanged = identity({name: len(order) for name, order in found.items()})
    history = [sum(score(s, orders[name]) for name, s in similarities.items()) for orders in (unchanged, found)]
    return Matching(found, history)


def _batches(activations):
    return [activations] if isinstance(activations, Mapping) else activations


def _check_activations(index, a, b):
    if a is None or b is None:
        raise ValueError(f"the networks have other numbers of batches: one ends after {index}")
    for name in [*a, *b]:
        for other in (a, b):
            check_name(name, other, "permutation in the activations of one network")
        if np.shape(a[name]) != np.shape(b[name]) or np.ndim(a[name]) < 2:
            raise ValueError(
                f"activations of {name!r} must be [..., units] and of one shape, but they are "
                f"{np.shape(a[name])} and {np.shape(b[name])}"
            )


def _moments(name, a, b):
    a, b = (np.asarray(x, np.float64).reshape(-1, np.shape(x)[-1]) for x in (a, b))
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError(f"activations of {name!r} hold NaN or infinity")
    means = a.mean(0), b.mean(0)
    a, b = a - means[0], b - means[1]
    return {"count": len(a), "means": means, "squares": ((a**2).sum(0), (b**2).sum(0)), "products": a.T @ b}


def _sizes(moments):
    return {name: len(moment["products"]) for name, moment in sorted(moments.items())}


def _pool(old, new):
    # sums about the mean of the union: sums of plain squares would cancel
    count = old["count"] + new["count"]
    shift_a, shift_b = (n - o for n, o in zip(new["means"], old["means"], strict=True))
    share = old["count"] * new["count"] / count
    return {
        "count": count,
        "means": tuple(o + s * (new["count"] / count) for o, s in zip(old["means"], (shift_a, shift_b), strict=True)),
        "squares": tuple(
            o + n + share * s**2 for o, n, s in zip(old["squares"], new["squares"], (shift_a, shift_b), strict=True)
        ),
        "products": old["products"] + new["products"] + share * np.outer(shift_a, shift_b),
    }


def _similarity(moments, statistic):
    if statistic == "inner_product":
        return moments["products"] / moments["count"] + np.outer(*moments["means"])
    product = np.sqrt(np.outer(*moments["squares"]))
    return arrays.ratio(np, moments["products"], product, product > 0)
