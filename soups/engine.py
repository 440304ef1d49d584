"""Merge part by part: a recipe is what it measures on the members, and what it then does to each element.

The parts are blocks of NumPy arrays, mapped files among them, or whole JAX arrays, traced or sharded: the same
functions take them all.
"""

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from ml_dtypes import bfloat16

from soups import arguments, tree

BLOCK = 2**16  # elements: a few blocks fit into the cache of a core
THREADS = max(2, min(8, os.cpu_count() or 2))


@dataclasses.dataclass(frozen=True)
class Part:
    """Hold the same elements of every member.

    Attributes:
        name: of the leaf.
        leaves: the members' arrays, in float32 or wider.
        base: the base's array, or None.
        start: index of the first element in the flattened leaf.
    """

    name: str
    leaves: list[Any]
    base: Any = None
    start: int = 0

    def vector(self, index: int):
        """Give a task vector, member − base."""
        return self.leaves[index] - self.base

    @property
    def xp(self):
        """Give the namespace of the arrays, NumPy or jax.numpy."""
        return tree.namespace(self.leaves)


Parts = Callable[[], Iterable[Part]]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """State a merging method with its settings.

    Attributes:
        merge: from a part and what was measured to the merged array; element-wise as far as `unit` says.
        measure: from the parts of one scope, which may be gone through many times, to anything; sums over parts, so
            that neither the cut into parts nor a sharding matters.
        scope: "leaf" or "model": what is measured together.
        unit: what a part must hold whole: an "element", a "row" (last axis), or the "leaf".
    """

    merge: Callable[[Part, Any], Any]
    measure: Callable[[Parts], Any] = lambda parts: None
    scope: str = "leaf"
    unit: str = "element"


def apply(recipe: Recipe, members: arguments.Members, base: tree.Tree | None = None) -> tree.Tree:
    """Merge trees in memory, or mapped from a pool; leaves have the dtypes of the first member's.

    Raises:
        ValueError: no members, other structures, NaN or infinity, integer leaves that differ.
    """
    members = arguments.as_mapping(members)
    # a pool's leaves are mapped: they come into memory block after block
    trees = [members[name] for name in members]
    others = {} if base is None else {"base": base}
    tree.check_same_structure([*trees, *others.values()], [*members, *others], dtypes=False)
    tree.check_copied(trees)
    # a pool knows which of its members are finite, and its view of the usable ones has no others
    unknown = [] if hasattr(members, "merge_leaves") else trees
    arguments.check_all_finite([*members, *others] if unknown else others, [*unknown, *others.values()])
    flat, flat_base = [tree.flatten(member) for member in trees], tree.flatten(base)
    floats = [name for name, leaf in flat[0].items() if tree.is_float(leaf)]

    def parts_of(name):
        return lambda: parts(name, [member[name] for member in flat], flat_base.get(name), recipe.unit)

    def all_parts():
        return (part for name in floats for part in parts_of(name)())

    with np.errstate(over="ignore", invalid="ignore"):  # reported below, with names
        measured = recipe.measure(all_parts) if recipe.scope == "model" else None

        def merged(name):
            here = measured if recipe.scope == "model" else recipe.measure(parts_of(name))
            leaf = flat[0][name]
            return join(((part, recipe.merge(part, here)) for part in parts_of(name)()), leaf.shape, leaf.dtype)

        on_host = all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves([trees, base]))
        leaves = dict(zip(floats, _in_threads(merged, floats) if on_host else map(merged, floats), strict=True))
    result = tree.map_with_names(lambda name, leaf: leaves.get(name, leaf), trees[0])
    return arguments.check_finite(result, members, trees)


def parts(name: str, leaves: Sequence[Any], base: Any | None, unit: str = "element") -> Iterator[Part]:
    """Cut the arrays of one leaf into parts: blocks of NumPy arrays, or all of JAX's; in float32 or wider."""
    arrays = leaves if base is None else [*leaves, base]
    if tree.namespace(arrays) is not np or unit == "leaf" or arrays[0].size <= BLOCK:
        yield _part(name, arrays, len(leaves), 0)
        return
    columns = arrays[0].shape[-1] if unit == "row" else 1
    shape = (-1, columns) if unit == "row" else (-1,)
    flat = [array.reshape(shape) for array in arrays]
    step = max(1, BLOCK // columns)
    for start in range(0, len(flat[0]), step):
        yield _part(name, [array[start : start + step] for array in flat], len(leaves), start * columns)


def join(merged: Iterable[tuple[Part, Any]], shape: tuple[int, ...], dtype) -> Any:
    """Put merged parts together to a leaf."""
    whole = None
    for part, array in merged:
        if array.shape == shape:
            return array.astype(dtype)
        whole = np.empty(shape, dtype) if whole is None else whole
        whole.reshape(-1)[part.start : part.start + array.size] = array.reshape(-1)
    return whole


def sum_over(parts: Parts, function: Callable[[Part], Any]) -> Any:
    """Add up `function(part)`, a tree of numbers or arrays, over all parts; in float64 what NumPy gives."""
    totals = None
    for part in parts():
        value = function(part)
        if part.xp is np:
            value = jax.tree.map(lambda x: np.asarray(x, np.promote_types(np.asarray(x).dtype, np.float64)), value)
        totals = value if totals is None else jax.tree.map(lambda a, b: a + b, totals, value)
    return totals


def total(xp, array) -> Any:
    """Sum the elements of a part's array; NumPy's einsum takes a third of the time of its sum."""
    return np.einsum("i->", np.reshape(array, -1)) if xp is np else xp.sum(array)


def remembered(function: Callable[[Part], Any]) -> Callable[[Part], Any]:
    """Give a function of the same arrays, each of which the host works out once; it keeps masks as bits."""
    known: dict[tuple[str, int], np.ndarray] = {}

    def again(part):
        if part.xp is not np:
            return function(part)
        place, like = (part.name, part.start), part.leaves[0]
        if place in known:
            array = known[place]
            bits = array.dtype == np.uint8
            return np.unpackbits(array, count=like.size).view(bool).reshape(like.shape) if bits else array
        found = function(part)
        known[place] = np.packbits(found) if found.dtype == bool else found
        return found

    return again


def per_member(values, number: int, what: str) -> list[Any]:
    """Give one value for each member: a sequence as it is, a single value repeated.

    Raises:
        ValueError: not one for each member.
    """
    values = list(values) if isinstance(values, Sequence) or getattr(values, "ndim", 0) else [values] * number
    if len(values) != number:
        raise ValueError(f"{number} members need {number} {what}, but {len(values)} were given")
    return values


def narrow(array: np.ndarray, dtype) -> np.ndarray:
    """Cast to the dtype of the output, to the nearest, ties to even."""
    return array if array.dtype == dtype else array.astype(dtype)


def _part(name, arrays, number, start):
    wide = tree.widen_leaves([_from_bfloat16(array) for array in arrays])
    return Part(name, wide[:number], wide[number] if len(wide) > number else None, start)


def _from_bfloat16(array):
    # the upper half of a float32: faster than the cast
    if not isinstance(array, np.ndarray) or array.dtype != bfloat16:
        return array
    wide = array.view(np.uint16).astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def _in_threads(function, items):
    # NumPy lets go of the interpreter during its work
    with concurrent.futures.ThreadPoolExecutor(THREADS) as threads:
        futures = [threads.submit(_without_warnings, function, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def _without_warnings(function, item):
    with np.errstate(over="ignore", invalid="ignore"):  # a setting of the thread
        return function(item)
