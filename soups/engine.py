"""Carry a recipe out: a recipe is what it measures on the members, and what it then does to each element.

Its parts are blocks of NumPy arrays, mapped files among them, or whole JAX arrays, traced or sharded: the same
functions take them all. `merge` takes trees or a pool; what merges files gives `blocks` and `measure_model` its leaves.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import xxhash
from ml_dtypes import bfloat16
from numpy.typing import DTypeLike

from soups import arguments, tree
from soups.arrays import as_bytes, doubled, total
from soups.lazy import is_jax, jax
from soups.names import check_name, pattern
from soups.workers import in_threads

SCOPES, UNITS = ("leaf", "model"), ("element", "row", "leaf")
_NUMBERS = "biufcV"  # kinds of dtypes; the last is that of bfloat16 and of floats of 8 bits
BLOCK = 2**16  #: elements of a block: a few blocks fit into the cache of a core


@dataclasses.dataclass(frozen=True)
class Part:
    """Hold the same elements of every member.

    Attributes:
        name: of the leaf.
        leaves: the members' arrays, in float32 or wider, then those of what lies beside them, such as Fisher diagonals.
        base: the base's array, or None.
        start: index of the first element in the flattened leaf.
    """

    name: str
    leaves: Sequence[Any]
    base: Any = None
    start: int = 0

    def vector(self, index: int) -> Any:
        """Return a task vector, member − base."""
        return self.leaves[index] - self.base

    @property
    def vectors(self) -> list[Any]:
        """Return the task vectors of all members, where nothing lies beside them."""
        return [self.vector(index) for index in range(len(self.leaves))]

    def doubled(self) -> Part:
        """Return the same elements in float64 or complex128; of NumPy's arrays."""
        base = None if self.base is None else doubled(self.base)
        return dataclasses.replace(self, leaves=list(map(doubled, self.leaves)), base=base)

    @property
    def xp(self) -> Any:
        """Return the namespace of the arrays, NumPy or jax.numpy."""
        return self.leaves.xp if isinstance(self.leaves, _Wide) else tree.namespace(self.leaves)


Parts = Callable[[], Iterable[Part]]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """State a merging method with its settings.

    Attributes:
        merge: from a part and what was measured to the merged array; element-wise as far as `unit` says.
        measure: maps the parts of one scope (iterable repeatedly) to any statistic; use sums over parts, so that
            neither the cut into parts nor a sharding matters.
        scope: "leaf" or "model": what is measured together.
        unit: what a part must hold whole: an "element", a "row" (last axis), or the "leaf".
        propagates: whether NaN or infinity in a member always shows in the result, so that it alone is looked at.

    Raises:
        ValueError: an unknown scope or unit.
    """

    merge: Callable[[Part, Any], Any]
    measure: Callable[[Parts], Any] = lambda parts: None
    scope: str = "leaf"
    unit: str = "element"
    propagates: bool = False

    def __post_init__(self):
        check_name(self.scope, SCOPES, "scope of a recipe")
        check_name(self.unit, UNITS, "unit of a recipe")


@dataclasses.dataclass(frozen=True)
class Leaf:
    """State what one leaf of a result is made of.

    Attributes:
        name, shape, dtype: of the result.
        recipe: None for a leaf that is copied: all arrays must then be the same.
        read: returns the arrays of the members, of what lies beside them, and last of the base if it has one.
        labels: what messages call each of these arrays.
        has_base: whether the last array is the base's.
        passed: is told the XXH3 digests (128 bits, hexadecimal) of the arrays when all of their blocks have passed.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    recipe: Recipe | None
    read: Callable[[], list[Any]]
    labels: Sequence[str]
    has_base: bool = False
    passed: Callable[[list[str]], None] | None = None


def merge(
    recipe: Recipe,
    members: arguments.Members,
    base: tree.Tree | None = None,
    beside: Sequence[tree.Tree] = (),
    *,
    labels: Sequence[str] | None = None,
    keep_first: str | None = None,
    first: int = 0,
    check: Callable[[Mapping[str, Any]], None] = lambda headers: None,
) -> tree.Tree:
    """Merge trees in memory, or stream them from a pool with the memory of the result and a few blocks.

    A leaf of the result has the widest dtype of the members' leaves; one that holds no floats is the first member's.

    Args:
        recipe: of the method.
        members: a sequence or mapping of trees, or a pool.
        base: the weights that task vectors start from.
        beside: trees whose leaves follow the members' in each part, such as Fisher diagonals; each may lack leaves.
        labels: what errors call the members; "member NAME" without.
        keep_first: a regex for the names of leaves that come from the first member, whatever the others hold.
        first: the place of that member, which counters come from too; 1 where a base is the first of the members.
        check: is called with {name: leaf}, shapes and dtypes of a member's leaves, when all structures were compared.

    Raises:
        ValueError: no members; members whose structures differ; integer leaves that are not the same in all members.
        NonFiniteError: NaN or infinity in a member, or a result that overflows; members and leaves are named.
        PoolCorruptionError: a member of a pool is not what was written.
    """
    members = arguments.as_mapping(members, remark=False)
    labels = labels or [f"member {name}" for name in members]
    sources, like = _sources(members, base, labels, keep_first)
    check(tree.flatten(like))
    on_host = all(source.on_host for source in sources)
    beside = [tree.flatten(jax.device_get(extra) if on_host and not tree.traced(extra) else extra) for extra in beside]
    kept = pattern(keep_first, "keep_first") if keep_first else None
    leaves = {name: _leaf(name, len(members), recipe, sources, beside, kept, first) for name in tree.names(like)}
    given = {source.label: source.headers for source in sources if not source.compare}
    given |= {f"beside {source.label}": flat for source, flat in zip(sources, beside, strict=False)}
    if on_host:
        merged = _on_host(leaves, given)
    else:
        tree.check_finite(given)
        measured = measure_model(leaves.values())
        merged = tree.check_result({name: joined(leaf, measured) for name, leaf in leaves.items()}, {})
    return tree.map_with_names(lambda name, _: merged[name], like)


def _on_host(leaves, given):
    # the largest first: threads then end together
    order = sorted(leaves, key=lambda name: -math.prod(leaves[name].shape))
    try:
        measured = measure_model(leaves.values())
        return dict(zip(order, in_threads(lambda name: joined(leaves[name], measured), order), strict=True))
    except tree.NonFiniteError:
        tree.check_finite(given)  # names all of them
        raise


@dataclasses.dataclass(frozen=True)
class _Source:
    """Hold the headers of a tree's leaves by name, how one is read, and how its digest is compared if it has one."""

    label: str
    headers: Mapping[str, Any]
    read: Callable[[str], Any]
    compare: Callable[[str, str], None] | None = None

    @property
    def on_host(self):
        return bool(self.compare) or all(isinstance(leaf, np.ndarray | np.generic) for leaf in self.headers.values())


def _sources(members, base, labels, keep_first):
    """Return what the members, then the base, are read from, all compared, and a tree of their structure."""
    stored = [members.tensors(name) for name in members] if hasattr(members, "tensors") else []
    trees = [members.structure if stored else members[name] for name in members]
    others = [] if base is None else [base]
    tree.check_same_structure([*trees, *others], [*labels, *(["base"] if others else [])], dtypes=False)
    tree.check_copied(trees, keep_first, [found.digests for found in stored])
    if stored:
        headers = tree.flatten(trees[0])
        pairs = zip(labels, stored, strict=True)
        sources = [_Source(label, headers, found.map, found.check_leaf) for label, found in pairs]
    else:
        sources = [_given(label, params) for label, params in zip(labels, trees, strict=True)]
    return [*sources, *(_given("base", params) for params in others)], trees[0]


def _given(label, params):
    tree.check_arrays([params], [label], abstract=False)
    leaves = tree.flatten(params)
    return _Source(label, leaves, leaves.__getitem__)


def _leaf(name, number, recipe, sources, beside, kept, first):
    like = sources[first].headers[name]
    first_alone = bool(kept and kept.fullmatch(name)) or (not tree.is_float(like) and tree.is_counter(name))
    mixed = tree.is_float(like) and not first_alone
    extra = [flat[name] for flat in beside if name in flat] if mixed else []
    # what is copied has been compared, a pool's by digests: then its bytes are compared with them too
    copied = sources[:number] if sources[0].compare and not first_alone else sources[first : first + 1]
    used = sources if mixed else copied

    def read():
        arrays = [source.read(name) for source in used]
        return [*arrays[:number], *extra, *arrays[number:]]

    def passed(digests):
        for source, digest in zip(used, digests, strict=False):  # a pool's members come first
            if source.compare:
                source.compare(name, digest)

    labels = [source.label for source in used]
    labels = [*labels[:number], *(f"beside {label}" for label in labels[: len(extra)]), *labels[number:]]
    dtype = tree.widest([source.headers[name].dtype for source in used[:number]]) if mixed else like.dtype
    return Leaf(
        name=name,
        shape=like.shape,
        dtype=dtype,
        recipe=recipe if mixed else None,
        read=read,
        labels=[f"{label}: {name}" for label in labels],
        has_base=mixed and len(used) > number,
        passed=passed if used[0].compare else None,
    )


def measure_model(leaves: Iterable[Leaf], at_least: DTypeLike = np.float32) -> Any:
    """Return what a recipe of scope "model" measures over all leaves that are merged; None for other recipes."""
    leaves = [leaf for leaf in leaves if leaf.recipe is not None and math.prod(leaf.shape)]
    if not leaves or leaves[0].recipe.scope != "model":
        return None
    seen = {leaf.name: set() for leaf in leaves}

    def all_parts():
        for leaf in leaves:
            yield from _looked_at(leaf, leaf.read(), seen[leaf.name], at_least)

    with np.errstate(all="ignore"):  # what is not finite is an error with a name
        return leaves[0].recipe.measure(all_parts)


def blocks(leaf: Leaf, measured: Any = None, at_least: DTypeLike = np.float32) -> Iterator[tuple[int, Any]]:
    """Return (first element, merged elements) block after block: flat NumPy arrays, or one whole JAX array.

    `measured`: by `measure_model`. `at_least`: the least dtype of the arithmetic. A ValueError for arrays that are
    copied and differ; a NonFiniteError names NaN or infinity in an array on the host, and a block that overflows.
    """
    arrays = leaf.read()
    if any(is_jax(array) for array in arrays):
        hashes = None
    else:
        arrays = [np.ascontiguousarray(array).reshape(array.shape) for array in arrays]
        hashes = [xxhash.xxh3_128() for _ in arrays] if leaf.passed else []
    try:
        merged = leaf.recipe is not None and math.prod(leaf.shape)  # there is nothing to measure without elements
        yield from (_merged if merged else _copied)(leaf, arrays, hashes or (), measured, at_least)
    except Exception:
        if hashes:  # damaged numbers may have been what a recipe did not like: then that is what must be said
            leaf.passed([xxhash.xxh3_128_hexdigest(as_bytes(array)) for array in arrays])
        raise
    if hashes:
        leaf.passed([digest.hexdigest() for digest in hashes])


def joined(leaf: Leaf, measured: Any = None) -> Any:
    """Return the whole merged leaf, as `blocks` makes it."""
    whole = None
    for start, block in blocks(leaf, measured):
        if is_jax(block):
            return block
        whole = np.empty(leaf.shape, leaf.dtype) if whole is None else whole
        whole.reshape(-1)[start : start + block.size] = block
    return whole


def parts(
    name: str, leaves: Sequence[Any], base: Any | None, unit: str = "element", at_least: DTypeLike = np.float32
) -> Iterator[Part]:
    """Return the parts of one leaf: blocks of NumPy arrays, or all of JAX's; in float32, `at_least` or wider."""
    arrays = leaves if base is None else [*leaves, base]
    xp, first = tree.namespace(arrays), arrays[0]
    wide = tree.widest([np.float32, at_least, *(array.dtype for array in arrays if tree.is_float(array))])
    if xp is not np or unit == "leaf" or first.size <= BLOCK:
        yield _part(name, arrays, len(leaves), 0, wide, xp)
        return
    columns = first.shape[-1] if unit == "row" else 1
    flat = [array.reshape((-1, columns) if unit == "row" else -1) for array in arrays]
    step = max(1, BLOCK // columns)
    for start in range(0, len(flat[0]), step):
        yield _part(name, flat, len(leaves), start * columns, wide, xp, slice(start, start + step))


def _merged(leaf, arrays, hashes, measured, at_least):
    recipe, seen = leaf.recipe, set()

    def all_parts():
        return _looked_at(leaf, arrays, seen, at_least)

    measured = measured if recipe.scope == "model" else recipe.measure(all_parts)
    for part in all_parts():
        if part.xp is not np:
            yield 0, _made(leaf, part, measured).astype(leaf.dtype)
            return
        # a whole leaf may have arrays of other sizes beside it
        here = slice(None) if recipe.unit == "leaf" else slice(part.start, part.start + part.leaves[0].size)
        for digest, array in zip(hashes, arrays, strict=False):
            digest.update(as_bytes(array.reshape(-1)[here]))
        block = _finite(leaf, part, measured)
        narrow = block if block.dtype == leaf.dtype else block.astype(leaf.dtype)
        _check_narrow(leaf, block, narrow)
        yield part.start, narrow


def _made(leaf, part, measured):
    merged, like = leaf.recipe.merge(part, measured), part.leaves[0]
    if getattr(getattr(merged, "dtype", None), "kind", "O") not in _NUMBERS:
        kind = f"an array of {merged.dtype}" if hasattr(merged, "dtype") else f"a {type(merged).__name__}"
        raise ValueError(f"the method makes {kind} of {leaf.name}, not an array of numbers")
    if merged.shape != like.shape:
        raise ValueError(f"the method makes an array of shape {merged.shape} of {leaf.name}, not one of {like.shape}")
    if tree.is_complex(merged) and not tree.is_complex(like):
        raise ValueError(f"the method makes complex numbers of {leaf.name}, which holds real ones")
    return merged


def _copied(leaf, arrays, hashes, measured, at_least):
    for label, array in zip(leaf.labels, arrays, strict=True):
        if leaf.recipe is None and array is not arrays[0] and not np.array_equal(array, arrays[0]):
            raise ValueError(
                f"{label} differs from {leaf.labels[0]}: leaves that are not floats are copied, so they must be the "
                "same in all members, or be kept from the first (keep_first)"
            )
    for digest, array in zip(hashes, arrays, strict=False):
        digest.update(as_bytes(array))
    yield 0, (arrays[0] if is_jax(arrays[0]) else arrays[0].reshape(-1)).astype(leaf.dtype, copy=False)


def _looked_at(leaf, arrays, seen, at_least):
    """Return the parts, looked at when they are first gone through: no statistic is made of a NaN."""
    number = len(arrays) - leaf.has_base
    base = arrays[number] if leaf.has_base else None
    for part in parts(leaf.name, arrays[:number], base, leaf.recipe.unit, at_least):
        if part.xp is np and not leaf.recipe.propagates and part.start not in seen:
            _check_part(leaf, part)
            seen.add(part.start)
        yield part


def _check_part(leaf, part):
    # a NaN makes the sum NaN; comparisons, as in TIES, would pass over it
    arrays = [*part.leaves, *([part.base] if leaf.has_base else [])]
    if not np.isfinite(sum(total(np, array) for array in arrays)):
        for label, array in zip(leaf.labels, arrays, strict=True):
            if not np.isfinite(array).all():
                raise tree.NonFiniteError(f"{label} holds NaN or infinity; leave it out")


def _finite(leaf, part, measured):
    """Return the merged elements, in wider floats where they would overflow midway."""
    block = np.asarray(_made(leaf, part, measured)).reshape(-1)
    if np.isfinite(total(np, block)) or np.isfinite(block).all():
        return block
    _check_part(leaf, part)
    wide = np.asarray(_made(leaf, part.doubled(), measured)).reshape(-1)
    if not np.isfinite(wide).all():
        raise tree.NonFiniteError(tree.not_finite(leaf.name, block))
    return wide


def _check_narrow(leaf, block, narrow):
    if narrow.dtype.itemsize < block.dtype.itemsize and block.size:
        large = tree.is_complex(block) or max(block.max(), -block.min()) > float(ml_dtypes.finfo(narrow.dtype).max)
        if large and not np.isfinite(narrow).all():
            raise tree.NonFiniteError(tree.overflow(leaf.name, narrow.dtype))


class _Wide(Sequence):
    """Cut and widen an array when it is asked for: a pass over one member costs that member alone."""

    def __init__(self, arrays, dtype, xp, cut):
        self._arrays, self._dtype, self.xp, self._cut, self._made = arrays, dtype, xp, cut, {}

    def __len__(self):
        return len(self._arrays)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        if place not in self._made:
            array = self._arrays[place]
            self._made[place] = _widened(array if self._cut is None else array[self._cut], self._dtype)
        return self._made[place]


def _part(name, arrays, number, start, dtype, xp, cut=None):
    base = _Wide(arrays[number:], dtype, xp, cut)
    return Part(name, _Wide(arrays[:number], dtype, xp, cut), base[0] if len(base) else None, start)


def _widened(array, dtype):
    if array.dtype == dtype or not tree.is_float(array):
        return array
    if not isinstance(array, np.ndarray) or array.dtype != bfloat16 or dtype != np.float32:
        return array.astype(dtype)
    wide = array.view(np.uint16).astype(np.uint32)  # the upper half of a float32: faster than the cast
    wide <<= 16
    return wide.view(np.float32)


def sum_over(parts: Parts, function: Callable[[Part], Any]) -> Any:
    """Add up `function(part)`, nested lists or dicts of numbers or arrays, over all parts; on the host in float64."""
    totals = None
    for part in parts():
        value = _map(lambda x: doubled(np.asarray(x)), function(part)) if part.xp is np else function(part)
        totals = value if totals is None else _map(lambda a, b: a + b, totals, value)
    return totals


def _map(function, *nests):
    first = nests[0]
    if isinstance(first, dict):
        return {key: _map(function, *(nest[key] for nest in nests)) for key in first}
    if isinstance(first, list | tuple):
        return [_map(function, *values) for values in zip(*nests, strict=True)]
    return function(*nests)


def remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of the same arrays of a part, each worked out once on the host; it keeps masks as bits.

    Further arguments must follow from the part.
    """
    known: dict[tuple[str, int], np.ndarray] = {}

    def again(part, *more):
        if part.xp is not np:
            return function(part, *more)
        place, like = (part.name, part.start), part.leaves[0]
        if place in known:
            array = known[place]
            bits = array.dtype == np.uint8
            return np.unpackbits(array, count=like.size).view(bool).reshape(like.shape) if bits else array
        found = function(part, *more)
        known[place] = np.packbits(found) if found.dtype == bool else found
        return found

    return again
