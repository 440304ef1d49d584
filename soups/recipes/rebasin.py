"""Align independently trained networks by permuting their hidden units, so that their weights can be averaged.

Ainsworth, Hayase and Srinivasa, "Git Re-Basin: Merging models modulo permutation symmetries", 2022, arXiv 2209.04836.
Which axes bear which permutation is declared by a spec (`soups.recipes.permutation`). All matching is on the host.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from soups import arguments, arrays, tree
from soups.lazy import jax
from soups.names import check_name
from soups.recipes.declare import check_real, python_only
from soups.recipes.permutation import (
    Permutations,
    Spec,
    check_permutations,
    check_spec,
    compose,
    generator_from,
    identity,
    invert,
    permute,
    permute_leaf,
    units_of,
    used_axes,
)

#: names of leaves that do not count: statistics are permuted too, but the published objective is of weights
STATISTICS = r"batch_stats/.*"


@dataclasses.dataclass(frozen=True)
class Matching:
    """Hold the permutations that bring one network to another, and what was optimised on the way.

    `permutations`: from each permutation's name to an array [units], for `permute`. `history`: the objective before and
    after each sweep (weight matching), before and after (activation matching), or the loss of each batch (straight
    through). `converged`: False if weight matching still made progress in its last sweep.
    """

    permutations: dict[str, np.ndarray]
    history: list[float]
    converged: bool = True


def weight_matching(
    reference: tree.Tree,
    params: tree.Tree,
    spec: Spec,
    *,
    key: jax.Array,
    max_sweeps: int = 100,
    start: Permutations | None = None,
    ignore: str = STATISTICS,
) -> Matching:
    """Find the permutations of `params` that bring its weights nearest to those of `reference`: algorithm 1.

    max over π of <θ_A, π(θ_B)>, which is min |θ_A − π(θ_B)|², by coordinate descent: for one permutation after the
    other, in random order, the linear assignment problem max_P <P, Σ W_A W_Bᵀ> is solved exactly, where the sum is over
    all leaves and axes that bear P, as rows [units, rest], with the other permutations applied to W_B. It ends with a
    sweep that finds nothing better. Float64 on the host; the same under the same key.

    Args:
        params: weights of the structure of `reference`; dtypes may differ.
        key: a JAX key for the order of the visits.
        max_sweeps: how often each permutation is visited at most.
        start: permutations to start from instead of the identity.
        ignore: a regex of leaves that are permuted but do not vote; those without a float dtype never do.

    Raises:
        ValueError: weights whose structures differ; NaN or infinity; a spec or a `start` that does not fit the weights;
            `max_sweeps` below 1.

    Ainsworth et al., "Git Re-Basin", 2022, arXiv 2209.04836, algorithm 1.
    """
    sizes = _check(["reference", "params"], [reference, params], spec, max_sweeps)
    found = {**identity(sizes), **check_permutations(start or {}, sizes)}
    votes = _votes(reference, params, spec, ignore)
    return _descend(votes, spec, found, generator_from(key), max_sweeps)


def _descend(votes, spec, start, generator, max_sweeps):
    uses = _uses(votes, spec)
    found, history, progress = dict(start), [_objective(votes, spec, start)], True
    for _ in range(max_sweeps):
        order = [list(uses)[index] for index in generator.permutation(len(uses))]
        progress = any([_improve(name, uses[name], votes, spec, found) for name in order])
        if not progress:
            break
        history.append(_objective(votes, spec, found))
    return Matching(found, history, converged=not progress)


def _improve(name, places, votes, spec, found):
    """Solve for one permutation with the others fixed; say whether the objective grew."""
    similarity = _similarity(name, places, votes, spec, found)
    best = assign(similarity)
    old, new = score(similarity, found[name]), score(similarity, best)
    # the published bound is absolute; relative, rounding in large sums cannot pass for progress
    if new <= old + 1e-12 * max(1.0, abs(old)):
        return False
    found[name] = best
    return True


def _similarity(name, places, votes, spec, found):
    """Sum W_A W_Bᵀ over the places of one permutation: [units, units]."""
    total = np.float64(0)
    for leaf, number, blocks in places:
        a, b = votes[leaf]
        b = permute_leaf(b, spec[leaf], found, but=name)
        total = total + _rows(a, number, blocks) @ _rows(b, number, blocks).T
    return total


def _rows(leaf, number, blocks):
    units = units_of(leaf, number, blocks)
    moved = np.moveaxis(np.asarray(leaf, np.float64), number, 0)
    return moved.reshape(blocks.outer, units, -1).swapaxes(0, 1).reshape(units, -1)


def assign(similarity: np.ndarray) -> np.ndarray:
    """Solve the linear assignment problem: the order p of the columns with the largest Σ_i S[i, p_i]."""
    import scipy.optimize  # a tenth of a second

    return scipy.optimize.linear_sum_assignment(similarity, maximize=True)[1]


def score(similarity: np.ndarray, order: np.ndarray) -> float:
    """Return Σ_i S[i, p_i]."""
    return float(similarity[np.arange(len(order)), order].sum())


def _objective(votes, spec, found):
    pairs = ((a, permute_leaf(b, spec[name], found)) for name, (a, b) in votes.items())
    return sum((float(np.vdot(a.astype(np.float64), b.astype(np.float64))) for a, b in pairs), start=0.0)


def _votes(reference, params, spec, ignore):
    """Return the pairs of host arrays that the objective is about: float leaves with a permutation, not ignored."""
    others = tree.flatten(params)
    return {
        name: (np.asarray(leaf), np.asarray(others[name]))
        for name, leaf in tree.flatten(reference).items()
        if tree.is_float(leaf) and any(True for _ in used_axes(spec[name])) and not re.fullmatch(ignore, name)
    }


def _uses(votes, spec):
    uses = {}
    for leaf in votes:
        for number, blocks in used_axes(spec[leaf]):
            uses.setdefault(blocks.permutation, []).append((leaf, number, blocks))
    return dict(sorted(uses.items()))


def straight_through_matching(
    reference: tree.Tree,
    params: tree.Tree,
    spec: Spec,
    loss: Callable[[tree.Tree, Any], jax.Array],
    batches: Iterable[Any],
    *,
    key: jax.Array,
    learning_rate: float = 0.01,
    momentum: float = 0.9,
    max_sweeps: int = 100,
    ignore: str = STATISTICS,
) -> Matching:
    """Find permutations of `params` that make the loss at the midpoint to `reference` small, by gradient descent.

    Free weights φ, which start at θ_A, are projected to the nearest permutation, π = argmax <φ, π(θ_B)>, by weight
    matching from the last π; L(½(θ_A + π(θ_B))) is differentiated as if π(θ_B) were φ, so ∂L/∂φ = ½ ∂L/∂θ; then comes
    one step of SGD with momentum on φ. The π of the smallest batch loss is returned.

    Args:
        params, key, max_sweeps, ignore: as `weight_matching`.
        loss: the mean loss of weights on a batch; traced under `jit`.
        batches: the data, in order, one step each; repeat them for more epochs.
        learning_rate: of φ; the published code has 0.01 for 250 epochs with batches of 1000.

    Raises:
        ValueError: as `weight_matching`; no batches, or one array in their place; a momentum outside [0, 1); a negative
            learning rate; a loss that takes other arguments, or does not return a finite number.

    Ainsworth et al., "Git Re-Basin", 2022, arXiv 2209.04836, section 3.3; the estimator: Bengio et al., 2013,
    arXiv 1308.3432.
    """
    arguments.check_within("momentum", momentum, "[0, 1)")
    learning_rate = arguments.check_within("learning_rate", learning_rate, "[0, inf)")
    arguments.check_takes("loss", loss, "params, batch")
    arguments.check_batches(batches)
    sizes = _check(["reference", "params"], [reference, params], spec, max_sweeps)
    reference, params = jax.device_get((reference, tree.cast_like(params, reference)))
    midpoint_loss = jax.value_and_grad(lambda params, batch: arguments.check_loss(loss(params, batch)), allow_int=True)
    generator, gradient = generator_from(key), jax.jit(midpoint_loss)
    free, velocity = tree.widen(reference), jax.tree.map(np.zeros_like, tree.widen(reference))
    found, best, history = identity(sizes), identity(sizes), []
    for batch in batches:
        found = _descend(_votes(free, params, spec, ignore), spec, found, generator, max_sweeps).permutations
        value, grads = jax.device_get(gradient(tree.mean([reference, permute(params, found, spec)]), batch))
        if not np.isfinite(value):
            raise ValueError(f"the midpoint's loss is {float(value)} at step {len(history)}: check the batch")
        best = found if not history or value < min(history) else best
        history.append(float(value))
        velocity = jax.tree.map(lambda v, g: _accumulate(v, g, momentum), velocity, grads)
        free = jax.tree.map(lambda x, v: x - v.dtype.type(learning_rate) * v if tree.is_float(x) else x, free, velocity)
    if not history:
        raise ValueError("no batches were given: straight-through matching needs data")
    return Matching(best, history)


def _accumulate(velocity, gradient, momentum):
    if not tree.is_float(velocity):
        return velocity
    dtype = velocity.dtype.type
    return dtype(momentum) * velocity + dtype(0.5) * gradient.astype(velocity.dtype)


@python_only("comes before a merge: --align SPEC with any method")
def align(
    members: arguments.Members,
    spec: Spec,
    *,
    key: jax.Array,
    to: int | str = 0,
    method: str = "weight",
    max_sweeps: int = 100,
    ignore: str = STATISTICS,
) -> list[tree.Tree] | dict[str, tree.Tree]:
    """Permute all members so that their weights can be averaged: `uniform(align(members, spec, key=key))`.

    With method "weight" each is brought to the member `to` by weight matching. With "merge_many" each in turn, in
    random order, is brought to the mean of the others as they are now, until none moves; then all are permuted alike,
    so that the member `to` is as it was. Each computes what it did before, and keeps its dtypes.

    Args:
        members: a sequence or mapping of trees, or a pool; a sequence gives a list, the others a dict.
        spec, key, max_sweeps, ignore: as `weight_matching`; "merge_many" has as many rounds at most.
        to: the member that stays, by its place or its name.
        method: "weight" or "merge_many".

    Raises:
        ValueError: an unknown member or method; members whose structures differ; a spec that does not fit them.

    Ainsworth et al., "Git Re-Basin", 2022, arXiv 2209.04836, algorithms 1 and 3.
    """
    check_name(method, ("weight", "merge_many"), "method")
    by_name = arguments.as_mapping(members)
    names = list(by_name)
    to = arguments.place_of(to, names)
    trees = [by_name[name] for name in names]
    sizes = _check([f"member {name}" for name in names], trees, spec, max_sweeps)
    if method == "weight":
        found = [identity(sizes) for _ in trees]
        for index in set(range(len(trees))) - {to}:
            votes = _votes(trees[to], trees[index], spec, ignore)
            matching = _descend(votes, spec, found[index], generator_from(key, index), max_sweeps)
            found[index] = matching.permutations
    else:
        found = _to_mean_of_others(trees, spec, sizes, generator_from(key), max_sweeps, ignore)
        found = [compose(orders, invert(found[to])) for orders in found]
    aligned = [permute(params, orders, spec) for params, orders in zip(trees, found, strict=True)]
    return dict(zip(names, aligned, strict=True)) if isinstance(members, Mapping) else aligned


def _to_mean_of_others(trees, spec, sizes, generator, max_rounds, ignore):
    found = [identity(sizes) for _ in trees]
    moved = [tree.widen(params) for params in trees]
    for _ in range(max_rounds if len(trees) > 1 else 0):
        changed = False
        for index in generator.permutation(len(trees)):
            others = tree.mean(moved[:index] + moved[index + 1 :])
            votes = _votes(others, trees[index], spec, ignore)
            matching = _descend(votes, spec, found[index], generator, max_rounds)
            changed |= len(matching.history) > 1
            found[index] = matching.permutations
            moved[index] = tree.widen(permute(trees[index], found[index], spec))
        if not changed:
            break
    return found


def _check(labels, trees, spec, max_sweeps):
    arguments.check_within("max_sweeps", max_sweeps, "[1, inf)", whole=True)
    tree.check_usable(dict(zip(labels, trees, strict=True)), dtypes=False)
    for params in trees:
        check_real("re-basin", tree.flatten(params))
    return check_spec(spec, trees[0])


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
        ValueError: an unknown statistic; no batches; more batches of one network than of the other; activations whose
            names or shapes differ between the networks or the batches; NaN or infinity.

    Inner products: Ainsworth et al., "Git Re-Basin", 2022, arXiv 2209.04836, section 3.1; correlation: Li et al.,
    "Convergent learning", 2015, arXiv 1511.07543.
    """
    check_name(statistic, ("correlation", "inner_product"), "statistic")
    moments = None
    for index, (a, b) in enumerate(itertools.zip_longest(_batches(activations_a), _batches(activations_b))):
        _check_activations(index, a, b)
        batch = {name: _moments(name, a[name], b[name]) for name in a}
        if moments is not None and _sizes(moments) != _sizes(batch):
            raise ValueError(f"batch {index} has activations of {_sizes(batch)}, the first batch of {_sizes(moments)}")
        moments = batch if moments is None else {name: _pool(moments[name], batch[name]) for name in batch}
    if moments is None:
        raise ValueError("no activations were given: at least one batch is needed")
    similarities = {name: _statistic(moment, statistic) for name, moment in moments.items()}
    found = {name: assign(similarity) for name, similarity in similarities.items()}
    unchanged = identity({name: len(order) for name, order in found.items()})
    history = [sum(score(s, orders[name]) for name, s in similarities.items()) for orders in (unchanged, found)]
    return Matching(found, history)


def _batches(activations):
    return [activations] if isinstance(activations, Mapping) else activations


def _check_activations(index, a, b):
    if a is None or b is None:
        raise ValueError(f"the networks need equally many batches, but one of them has only {index}")
    for name in [*a, *b]:
        for other in (a, b):
            check_name(name, other, "permutation in the activations of one network")
        if np.shape(a[name]) != np.shape(b[name]) or np.ndim(a[name]) < 2:
            raise ValueError(
                f"activations of {name!r} must be [..., units], of the same shape in both networks, but they are "
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


def _statistic(moments, statistic):
    if statistic == "inner_product":
        return moments["products"] / moments["count"] + np.outer(*moments["means"])
    product = np.sqrt(np.outer(*moments["squares"]))
    return arrays.ratio(np, moments["products"], product, product > 0)
