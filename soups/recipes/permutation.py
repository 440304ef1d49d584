"""Declare which axes of the weights bear the same units, and permute the units of a network.

A spec is a plain mapping from the name of every leaf ("layer_0/kernel") to a tuple with one entry for each axis: the
name of the permutation of its units, None for an axis that stays, or `Blocks` for an axis that flattens more than them.
A permutation p of n units is an array [n] of integers: unit i of the permuted network is unit p[i] of the old one.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from soups import tree
from soups.lazy import jax
from soups.names import check_name, did_you_mean


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Name the permutation of an axis of size outer · units · inner, flattened in this order.

    `Blocks("heads", inner=head_dim)` is an axis of all heads' elements, `Blocks("channels", outer=height * width)` the
    inputs of a dense layer after the flattening of [H, W, C].
    """

    permutation: str
    outer: int = 1
    inner: int = 1


Axis = str | Blocks | None  #: the units of an axis; None for one that stays
Spec = Mapping[str, tuple[Axis, ...]]  #: for the name of each leaf the units of its axes
Permutations = Mapping[str, np.ndarray]  #: by name, integers [n]: unit i of the permuted network was unit p[i]


def spec_from_rules(params: tree.Tree, rules: Sequence[tuple[str, Sequence[Axis] | None]]) -> Spec:
    r"""Make a spec from ordered (regex, axes) pairs; the first regex that matches the whole name of a leaf counts.

    The names of permutations may refer to the groups of the regex: (r"(block_\d+)/up/kernel", (None, r"\1/hidden"))
    gives each block its own. Axes None leave all axes as they are: end with (".*", None) to fix the rest.

    Raises:
        ValueError: a leaf that no rule matches, a rule that matches no leaf, or as `check_spec`.
    """
    chosen = tree.match(params, [(pattern, index) for index, (pattern, _) in enumerate(rules)])
    spec = {}
    for (name, index), leaf in zip(tree.flatten(chosen).items(), jax.tree.leaves(params), strict=True):
        pattern, axes = rules[index]
        match = re.fullmatch(pattern, name)
        spec[name] = (None,) * leaf.ndim if axes is None else tuple(_expand(axis, match) for axis in axes)
    check_spec(spec, params)
    return spec


def check_spec(spec: Spec, params: tree.Tree) -> dict[str, int]:
    """Return the number of units of each permutation, if the spec fits the weights.

    Raises:
        ValueError: entries for leaves that do not exist, and leaves without an entry; an entry with more or fewer axes
            than its leaf; an axis that does not divide into its blocks; a permutation that is needed in several sizes,
            or stands on two axes of one array. All are listed.
    """
    leaves = tree.flatten(params)
    lines = [f"  + {name} is not a leaf{did_you_mean(name, leaves)}" for name in spec if name not in leaves]
    lines += [f"  - {name} has no entry" for name in leaves if name not in spec]
    sizes, places = {}, {}
    for name, leaf in leaves.items():
        if name not in spec:
            continue
        if problem := _axes_problem(spec[name], leaf):
            lines.append(f"  ~ {name}: {problem}")
            continue
        for number, blocks in used_axes(spec[name]):
            units, place = units_of(leaf, number, blocks), f"{name} axis {number}"
            first = places.setdefault(blocks.permutation, place)
            if sizes.setdefault(blocks.permutation, units) != units:
                expected = sizes[blocks.permutation]
                lines.append(
                    f"  ~ {place}: permutation {blocks.permutation!r} has {units} units, {expected} at {first}"
                )
    if lines:
        raise ValueError("the permutation spec does not fit the weights:\n" + "\n".join(lines))
    return sizes


def used_axes(axes: Sequence[Axis]) -> Iterator[tuple[int, Blocks]]:
    """Return (number, blocks) of each axis that is permuted."""
    for number, axis in enumerate(axes):
        if axis is not None:
            yield number, axis if isinstance(axis, Blocks) else Blocks(axis)


def units_of(leaf: Any, number: int, blocks: Blocks) -> int:
    """Count the units of one axis of `leaf`."""
    return leaf.shape[number] // (blocks.outer * blocks.inner)


def _expand(axis, match):
    if isinstance(axis, Blocks):
        return dataclasses.replace(axis, permutation=match.expand(axis.permutation))
    return match.expand(axis) if isinstance(axis, str) else axis


def _axes_problem(axes, leaf):
    if not isinstance(axes, tuple) or not all(axis is None or isinstance(axis, (str, Blocks)) for axis in axes):
        return f"{axes!r} must be a tuple of the name of a permutation, Blocks or None for each axis"
    if len(axes) != leaf.ndim:
        return f"{len(axes)} axes are named, but the shape is {tuple(leaf.shape)}"
    used = [blocks.permutation for _, blocks in used_axes(axes)]
    if twice := sorted({name for name in used if used.count(name) > 1}):
        return f"permutation {twice[0]!r} is on two axes, but may be on only one axis of an array"
    for number, blocks in used_axes(axes):
        if blocks.outer < 1 or blocks.inner < 1 or leaf.shape[number] % (blocks.outer * blocks.inner):
            return f"axis {number} of size {leaf.shape[number]} is not divisible by {blocks.outer} x {blocks.inner}"
    return ""


def permute(params: tree.Tree, permutations: Permutations, spec: Spec) -> tree.Tree:
    """Permute the units of a network: leaf[..., p[i], ...] comes to [..., i, ...] on every axis that bears p.

    The weights may be traced or sharded, the permutations are NumPy arrays; one that is not given is the identity.

    Raises:
        ValueError: as `check_spec`; an unknown permutation, or one that does not hold each of its units exactly once.
    """
    permutations = check_permutations(permutations, check_spec(spec, params))
    return tree.map_with_names(lambda name, leaf: permute_leaf(leaf, spec[name], permutations), params)


def permute_leaf(leaf: Any, axes: Sequence[Axis], permutations: Permutations, *, but: str | None = None) -> Any:
    """Permute one leaf on all its axes, or on all but those that bear the permutation `but`."""
    for number, blocks in used_axes(axes):
        if blocks.permutation != but and blocks.permutation in permutations:
            order = permutations[blocks.permutation]
            grid = np.arange(leaf.shape[number]).reshape(blocks.outer, len(order), blocks.inner)
            leaf = leaf.take(grid[:, order].ravel(), axis=number)
    return leaf


def check_permutations(permutations: Permutations, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Return the permutations as NumPy arrays, if each is an order of as many units as `sizes` says."""
    checked = {}
    for name, order in permutations.items():
        check_name(name, sizes, "permutation")
        order = checked[name] = np.asarray(order)
        if order.shape != (sizes[name],) or not np.array_equal(np.sort(order), np.arange(sizes[name])):
            raise ValueError(
                f"permutation {name!r} must hold each of 0, …, {sizes[name] - 1} once, but it is "
                f"{np.array2string(order, threshold=10)}"
            )
    return checked


def invert(permutations: Permutations) -> dict[str, np.ndarray]:
    """Return the permutations that undo these: q[p[i]] = i."""
    return {name: np.argsort(order) for name, order in permutations.items()}


def compose(first: Permutations, then: Permutations) -> dict[str, np.ndarray]:
    """Return the permutations that do the same as `first` and then `then`: p[q[i]]."""
    both = {name: np.asarray(order)[then[name]] for name, order in first.items() if name in then}
    return {**first, **then, **both}


def identity(sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Return the permutations that change nothing; `sizes` as from `check_spec`."""
    return {name: np.arange(units) for name, units in sizes.items()}


def random_permutations(spec: Spec, params: tree.Tree, key: jax.Array) -> dict[str, np.ndarray]:
    """Draw all permutations of a spec uniformly at random."""
    generator = generator_from(key)
    return {name: generator.permutation(units) for name, units in sorted(check_spec(spec, params).items())}


def generator_from(key: jax.Array, *path: int) -> np.random.Generator:
    """Make a NumPy generator from a JAX key and integers: orders are drawn on the host, where matching happens."""
    return np.random.default_rng([*np.asarray(jax.random.key_data(key)).ravel().tolist(), *path])


def check_function_unchanged(
    apply_fn: Callable,
    params: tree.Tree,
    permutations: Permutations,
    spec: Spec,
    inputs: Any,
    tolerance: float = 1e-4,
) -> None:
    """Check that the permuted network computes the same, which tells whether the spec is right.

    max |f(π(θ)) − f(θ)| ≤ tolerance · max |f(θ)| over all `inputs`, with f(θ) = apply_fn(θ, inputs); try it with
    `random_permutations` and weights without symmetry: trained ones, or drawn ones with a head that is not zero.

    Raises:
        ValueError: outputs that differ, with the largest difference and the permutations that cause one when applied
            alone; outputs that are all zero or not finite, which prove nothing; or as `permute`.
    """
    apply = jax.jit(apply_fn)
    before = np.asarray(apply(params, inputs), np.float64)
    scale = np.abs(before).max()
    if not 0 < scale < np.inf:
        raise ValueError(
            f"the largest output is {scale}, so nothing can be compared: is the head all zeros, or are there NaN?"
        )

    def difference(chosen):
        after = np.asarray(apply(permute(params, chosen, spec), inputs), np.float64)
        return float(np.abs(after - before).max() / scale)

    worst = difference(permutations)
    if worst <= tolerance:
        return
    alone = {name: difference({name: order}) for name, order in permutations.items()}
    wrong = [f"{name} ({by:.3g})" for name, by in alone.items() if not by <= tolerance]
    raise ValueError(
        f"the permuted network computes something else: outputs differ by up to {worst:.3g} of the largest output "
        f"{scale:.3g} (tolerance {tolerance:g}). Permutations that change them alone: {', '.join(wrong) or 'none'}. "
        "Check the spec's entries for these."
    )
