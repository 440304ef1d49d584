"""Do algebra on pytrees of weights whose leaves have names.

Every function is pure and takes trees of NumPy or JAX arrays: NumPy leaves stay on the host, JAX leaves may be traced
or sharded. Arithmetic is in float32 or wider and is cast once, at the end, so 256 + 1 does not stay 256 in bfloat16.
Complex leaves stay complex; their inner products and norms are those of their real and imaginary parts. Integer and
boolean leaves are never averaged: they must be identical in all trees and are copied, but for counters (see
`is_counter`), which are the first tree's.
"""

from __future__ import annotations

import collections
import functools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from soups.lazy import is_jax, jax, jnp
from soups.names import MOST, bounded, did_you_mean, differences, pattern, shown

Tree = Any  # a pytree of arrays, in this library mostly nested dicts
Rules = str | Sequence[tuple[str, Any]]  # ordered (regex, value) pairs, or one regex that selects

COUNTERS = re.compile(r"(.*[/.])?(num_batches_tracked|num_updates|(global_)?steps?|(step_)?count|counter|iterations?)")
HOST_BLOCK = 2**16  # elements that an inner product on the host has in float64 at a time


def flatten(tree: Tree) -> dict[str, Any]:
    """Return the leaves of `tree` by name, the keys of a path joined with "/".

    Raises:
        ValueError: two leaves have one name, as "a/b" and "b" in "a".
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if len(named) < len(leaves):
        paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
        twice = [name for name, number in collections.Counter(paths).items() if number > 1]
        raise ValueError(f'two leaves have one name, where a key holds the "/" that joins keys: {_listed(twice)}')
    return named


def names(tree: Tree) -> list[str]:
    """List the names of the leaves of `tree` in their order."""
    return list(flatten(tree))


def map_with_names(function: Callable, tree: Tree, *rest: Tree) -> Tree:
    """Apply `function(name, leaf, *other_leaves)` to every leaf."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(jax.tree_util.keystr(path, simple=True, separator="/"), *leaves),
        tree,
        *rest,
    )


# --- Arithmetic ---


def mean(trees: Sequence[Tree]) -> Tree:
    """Average trees of one structure, leaf by leaf.

    (1/K) Σ_i θ_i in float32 or wider, exactly θ where all are equal; each leaf has the dtype of the first tree's.

    Raises:
        ValueError: no trees, different structures, or an integer leaf that is not the same in all.
    """
    trees = _checked(trees)
    return jax.tree.map(lambda *leaves: _combine(leaves, mean_of), *trees)


def weighted_sum(trees: Sequence[Tree], weights) -> Tree:
    """Sum trees of one structure, each times its weight.

    Σ_i w_i θ_i in float32 or wider; `weights`: K floats or an array [K]. They need not sum to 1.

    Raises:
        ValueError: as `mean`, or not one weight for each tree.
    """
    trees = _checked(trees)
    if len(weights) != len(trees):
        raise ValueError(f"{len(trees)} trees need {len(trees)} weights, but {len(weights)} were given")

    return jax.tree.map(lambda *leaves: _combine(leaves, lambda wide: mix(wide, weights)), *trees)


def lerp(a: Tree, b: Tree, t) -> Tree:
    """Interpolate linearly: a + t (b − a); exactly `a` where a = b, for every t."""
    a, b = _checked([a, b])
    return jax.tree.map(lambda *leaves: _combine(leaves, lambda w: w[0] + scalar(t, w[0]) * (w[1] - w[0])), a, b)


def slerp(a: Tree, b: Tree, t, *, cos_angle=None) -> Tree:
    """Interpolate on the arc between two trees taken as one long vector each.

    [sin((1−t)Ω) a + sin(tΩ) b] / sin Ω with cos Ω = <a, b>/(|a||b|); linear where the vectors are (anti)parallel, sin Ω
    below 1e-6 in float64 and 1e-3 in float32. `cos_angle`: the cosine of the whole trees, when `a` and `b` are parts of
    them (Shoemake, 1985).
    """
    cos_angle = cosine(a, b) if cos_angle is None else cos_angle
    xp = jnp if is_jax(cos_angle) or is_jax(t) else np
    cos_angle = xp.clip(cos_angle, -1.0, 1.0)
    squared_sine = 1 - cos_angle * cos_angle
    parallel = squared_sine <= (1e-12 if squared_sine.dtype == np.float64 else 1e-6)
    omega = xp.arccos(xp.where(parallel, 0.0, cos_angle))  # its slope at 1 would make gradients NaN
    sine = xp.where(parallel, 1.0, xp.sqrt(xp.where(parallel, 1.0, squared_sine)))
    weight_a = xp.where(parallel, 1 - t, xp.sin((1 - t) * omega) / sine)
    weight_b = xp.where(parallel, t, xp.sin(t * omega) / sine)
    return weighted_sum([a, b], [weight_a, weight_b])


def sub(a: Tree, b: Tree) -> Tree:
    """Subtract: a − b in float32 or wider, so that a task vector loses nothing; integer leaves become zeros."""
    a, b = _checked([a, b])

    def leaf(*leaves):
        if not is_float(leaves[0]):
            return namespace(leaves).zeros_like(leaves[0])
        wide = widen_leaves(leaves)
        return wide[0] - wide[1]

    return jax.tree.map(leaf, a, b)


def add_scaled(a: Tree, b: Tree, scale=1.0) -> Tree:
    """Add: a + scale · b, in the dtypes of `a`; integer leaves are those of `a`.

    Raises:
        ValueError: other names or shapes. The dtypes may differ: `b` is mostly a float32 task vector.
    """
    check_same_structure([a, b], dtypes=False)

    def leaf(x, y):
        if not is_float(x):
            return x
        wide = widen_leaves((x, y))
        return (wide[0] + scalar(scale, wide[0]) * wide[1]).astype(x.dtype)

    return jax.tree.map(leaf, a, b)


def dot(a: Tree, b: Tree):
    """Sum the products of all elements of the float leaves: <a, b>, a scalar; float64 for NumPy's arrays.

    The products of complex elements are those of their real and of their imaginary parts.
    """
    check_same_structure([a, b], dtypes=False)
    products = [
        inner(*widen_leaves((x, y))) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True) if is_float(x)
    ]
    if namespace(products) is jnp:
        products = [jnp.asarray(product, jnp.result_type(np.float32)) for product in products]
    return sum_in_order(products) if products else np.float64(0)


def norm(a: Tree):
    """Take the Euclidean norm |a| = sqrt(<a, a>) over all float leaves."""
    squared = dot(a, a)
    return namespace([squared]).sqrt(squared)


def cosine(a: Tree, b: Tree):
    """Take the cosine <a, b> / (|a| |b|) of the angle between two trees; 0 where one of them is zero."""
    product = norm(a) * norm(b)
    xp = namespace([product])
    return xp.where(product > 0, dot(a, b) / xp.where(product > 0, product, 1), xp.zeros_like(product))


def all_finite(tree: Tree) -> bool:
    """Say whether no float leaf holds a NaN or an infinity (concrete arrays only)."""
    return not nonfinite_names(tree)


def nonfinite_names(tree: Tree) -> list[str]:
    """List the names of the leaves that hold a NaN or an infinity (concrete arrays only)."""
    check_arrays([tree])
    return [name for name, leaf in flatten(tree).items() if is_float(leaf) and not _leaf_finite(leaf)]


# --- Selecting by name ---


def match(tree: Tree, rules: Rules) -> Tree:
    """Map every leaf to the value of the first rule whose regex matches its whole name.

    `rules`: [(regex, value), ...] in order, or one regex, short for [(regex, True), (".*", False)].

    Raises:
        ValueError: a leaf that no rule matches, or a rule that matches no leaf; all of them are listed.
    """
    if isinstance(rules, str):
        rules = [(rules, True), (".*", False)]
    leaf_names = names(tree)
    compiled = [(pattern(regex, "a rule for names"), value) for regex, value in rules]
    chosen = {name: next(((p, v) for p, v in compiled if p.fullmatch(name)), None) for name in leaf_names}
    uncovered = [name for name, hit in chosen.items() if hit is None]
    idle = [p.pattern for p, _ in compiled if p.pattern != ".*" and not any(map(p.fullmatch, leaf_names))]
    if uncovered or idle:
        lines = [f"  no rule matches leaf {name!r}" for name in uncovered]
        lines += [f"  rule {pattern!r} matches no leaf{did_you_mean(pattern, leaf_names)}" for pattern in idle]
        raise ValueError(
            "rules do not fit the tree (end them with ('.*', value) to cover the rest):\n" + "\n".join(lines)
        )
    return map_with_names(lambda name, _: chosen[name][1], tree)


def partition(tree: Tree, rules: Rules) -> tuple[Tree, Tree]:
    """Split `tree` into (selected, rest) of the same shape, with None in the places of the other part."""
    mask = match(tree, rules)
    selected = jax.tree.map(lambda keep, leaf: leaf if keep else None, mask, tree)
    rest = jax.tree.map(lambda keep, leaf: None if keep else leaf, mask, tree)
    return selected, rest


def select(tree: Tree, rules: Rules) -> Tree:
    """Keep the leaves that the rules select; None in the places of the others."""
    return partition(tree, rules)[0]


def combine(*parts: Tree) -> Tree:
    """Put parts made by `partition` together: in each place the first that is not None."""
    return jax.tree.map(
        lambda *leaves: next((leaf for leaf in leaves if leaf is not None), None),
        *parts,
        is_leaf=lambda x: x is None,
    )


def split_floats(tree: Tree) -> tuple[Tree, Tree]:
    """Return (floats, rest), with None in the places of the other part; `combine` undoes it."""
    check_arrays([tree])
    floats = jax.tree.map(lambda leaf: leaf if is_float(leaf) else None, tree)
    return floats, jax.tree.map(lambda leaf: None if is_float(leaf) else leaf, tree)


# --- Structure ---


def check_same_structure(trees: Sequence[Tree], labels: Sequence[str] | None = None, *, dtypes: bool = True) -> None:
    """Raise one ValueError that lists every difference of the trees from the first.

    "-" is a leaf that is missing, "+" one that the first tree does not have, "~" one of another shape or dtype.
    `labels` name the trees in the message; `dtypes=False` compares names and shapes alone. Leaves that are no arrays
    are an error, too.
    """
    if not trees:
        raise ValueError("no members were given: at least one is needed")
    check_arrays(trees, labels)
    labels = labels or [str(index) for index in range(len(trees))]
    first = flatten(trees[0])
    lines = []
    for label, tree in zip(labels[1:], trees[1:], strict=True):
        other = flatten(tree)
        missing, extra = ([name for name in a if name not in b] for a, b in ((first, other), (other, first)))
        lines += differences(missing, extra, label)
        for name in first:
            if name in other and (difference := _difference(first[name], other[name], dtypes)):
                lines.append(f"  ~ {label}: {name} {difference}")
        if not lines and jax.tree.structure(trees[0]) != jax.tree.structure(tree):
            lines.append(f"  ~ {label}: other containers ({jax.tree.structure(tree)})")
    if lines:
        raise ValueError(f"members differ in structure from member {labels[0]}:\n" + bounded(lines))


def check_arrays(trees: Sequence[Tree], labels: Sequence[str] | None = None) -> None:
    """Raise one ValueError that names every leaf that is no array of numbers, and its type."""
    if all(_is_array(leaf) for leaf in jax.tree.leaves(trees)):
        return
    labels = labels or [str(index) for index in range(len(trees))]
    found = [
        f"  {label}: {shown(name)} is a {_type_of(leaf)}"
        for label, tree in zip(labels, trees, strict=True)
        for name, leaf in flatten(tree).items()
        if not _is_array(leaf)
    ]
    raise ValueError(
        "leaves must be NumPy or JAX arrays of numbers; make arrays of numbers with numpy.asarray, and split off what "
        f"is none with soups.tree.partition:\n{bounded(found)}"
    )


def check_copied(
    trees: Sequence[Tree], keep_first: str | None = None, digests: Sequence[Mapping[str, str]] = ()
) -> None:
    """Raise a ValueError that names the integer and boolean leaves that are not the same in all trees.

    Counters, and what matches the regex `keep_first`, are copied from the first tree whatever the others hold.
    `digests`: of the leaves of each tree by name, which are compared where they are known.

    Raises:
        ValueError: as above; leaves that are float, complex or integers in some trees only; `keep_first` that matches
            no leaf.
    """
    flat = [flatten(tree) for tree in trees]
    kept = flatten(match(trees[0], keep_first)) if keep_first is not None else {}
    names = [name for name in flat[0] if not kept.get(name)]
    mixed = [name for name in names if len({_kind(leaves[name]) for leaves in flat}) > 1]
    if mixed:
        raise ValueError(f"leaves that are complex, real or integers in some members only: {_listed(mixed)}")
    copied = [name for name in names if not is_float(flat[0][name]) and not is_counter(name)]
    if digests:
        different = [name for name in copied if len({known[name] for known in digests}) > 1]
    else:
        different = [name for name in copied if not _identical(name, [leaves[name] for leaves in flat])]
    if different:
        raise ValueError(
            "integer and boolean leaves are copied, not averaged, so they must be identical in all members, or be "
            f"taken from the first with keep_first=REGEX; these differ: {_listed(different)}"
        )


def is_counter(name: str) -> bool:
    """Say whether an integer leaf of this name counts steps or batches, so that it is the first member's in a merge.

    It does if the last part of its name, after "/" or ".", is num_batches_tracked, num_updates, step, steps,
    global_step, count, step_count, counter, iteration or iterations.
    """
    return COUNTERS.fullmatch(name) is not None


def cast_like(tree: Tree, like: Tree) -> Tree:
    """Cast every leaf to the dtype of its counterpart in `like`."""
    check_arrays([tree, like], ["tree", "like"])
    return jax.tree.map(lambda leaf, other: leaf.astype(other.dtype), tree, like)


def widen(tree: Tree) -> Tree:
    """Cast float leaves narrower than float32 to float32, and leave the others as they are."""
    check_arrays([tree])
    return jax.tree.map(lambda leaf: widen_leaves((leaf,))[0] if is_float(leaf) else leaf, tree)


def count(tree: Tree) -> int:
    """Count the elements of all leaves."""
    check_arrays([tree])
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


# --- Leaves ---


def _checked(trees):
    trees = list(trees)
    check_same_structure(trees)
    check_copied(trees)
    return trees


def _combine(leaves, arithmetic):
    if not is_float(leaves[0]):
        return leaves[0]
    return arithmetic(widen_leaves(leaves)).astype(leaves[0].dtype)


def mix(leaves, weights):
    """Sum arrays, each times its weight."""
    return _sum_in_halves(list(zip(weights, leaves, strict=True)), lambda pair: scalar(pair[0], pair[1]) * pair[1])


def mean_of(leaves):
    """Average arrays of one float dtype; exactly the first where all are equal."""
    number = scalar(len(leaves), leaves[0])
    total = _sum_in_halves(leaves)
    if len(leaves) & (len(leaves) - 1) == 0:  # equal ones were only doubled
        return total / number
    # less what the rounding of the same sum makes of as many copies of the first
    return leaves[0] + (total - _times_in_halves(leaves[0], len(leaves), {1: leaves[0]})) / number


def sum_in_order(leaves):
    """Add arrays one after the other: streamed and in-memory sums are then the same to the bit."""
    return functools.reduce(lambda total, leaf: total + leaf, leaves)


def _sum_in_halves(items, term=lambda item: item):
    # the error grows with the logarithm of their number
    if len(items) == 1:
        return term(items[0])
    half = (len(items) + 1) // 2
    left, right = _sum_in_halves(items[:half], term), _sum_in_halves(items[half:], term)
    if half > 1 and isinstance(left, np.ndarray):
        left += right  # nobody else's: faster than a new array
        return left
    return left + right


def _times_in_halves(leaf, number, known):
    if number not in known:
        half = (number + 1) // 2
        known[number] = _times_in_halves(leaf, half, known) + _times_in_halves(leaf, number - half, known)
    return known[number]


def _is_array(leaf):
    try:
        dtype = np.dtype(leaf.dtype)
        return (
            leaf.shape is not None
            and not isinstance(leaf, np.ma.MaskedArray)
            and (dtype.kind == "b" or jnp.issubdtype(dtype, np.number))
        )
    except (AttributeError, TypeError):  # Python's own, or another library's; NumPy knows no PRNG keys
        return False


def _type_of(leaf):
    kind = f"{type(leaf).__module__}.{type(leaf).__qualname__}".removeprefix("builtins.")
    return f"{kind} of {leaf.dtype}" if hasattr(leaf, "dtype") else kind


def _kind(leaf):
    if not is_float(leaf):
        return "copied"
    return "complex" if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else "real"


def _listed(names):
    more = [f"and {len(names) - MOST} more"] if len(names) > MOST else []
    return ", ".join([*map(shown, names[:MOST]), *more])


def _identical(name, leaves):
    first = leaves[0]
    if all(leaf is first for leaf in leaves):
        return True
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        raise ValueError(
            f"integer leaf {name} cannot be compared under a JAX transformation: "
            "split such leaves off with soups.tree.partition first"
        )
    return all(np.array_equal(np.asarray(first), np.asarray(leaf)) for leaf in leaves[1:])


def _leaf_finite(leaf) -> bool:
    return bool(namespace([leaf]).isfinite(widen_leaves((leaf,))[0]).all())


def is_float(leaf) -> bool:
    """Say whether a leaf holds floats, which are mixed, or integers and booleans, which are copied."""
    return _is_inexact(leaf.dtype)


@functools.cache
def _is_inexact(dtype):
    if not isinstance(dtype, np.dtype) or dtype.kind != "V":
        return getattr(dtype, "kind", "") in "fc" and isinstance(dtype, np.dtype)
    try:
        return bool(ml_dtypes.finfo(dtype))
    except ValueError:
        return False


def is_complex(leaf) -> bool:
    """Say whether a leaf holds complex numbers."""
    return np.dtype(leaf.dtype).kind == "c"


def namespace(leaves):
    """Return numpy if all arrays are NumPy's, else jax.numpy."""
    return np if all(isinstance(leaf, (np.ndarray, np.generic, float)) for leaf in leaves) else jax.numpy


def namespace_of(tree: Tree):
    """Return numpy if all leaves of a tree are NumPy's, else jax.numpy."""
    return namespace(jax.tree.leaves(tree))


def traced(values: Any) -> bool:
    """Say whether numbers are not known yet, because a JAX transformation is under way."""
    return "jax" in sys.modules and any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def widest(dtypes) -> np.dtype:
    """Return the narrowest dtype that holds all of some float dtypes: float32 for bfloat16 and float16."""
    return functools.reduce(_promoted, map(np.dtype, dtypes))


@functools.cache
def _promoted(a, b):
    if a == b:
        return a
    return np.promote_types(*(x if x.kind in "fc" and x.itemsize > 2 else np.dtype(np.float32) for x in (a, b)))


def widen_leaves(leaves):
    """Cast float arrays to the widest of their dtypes and float32."""
    wide = functools.reduce(np.promote_types, [np.dtype(np.float32), *(_at_least_float32(x.dtype) for x in leaves)])
    return [leaf if leaf.dtype == wide else leaf.astype(wide) for leaf in leaves]


@functools.cache
def _at_least_float32(dtype):
    return np.dtype(np.float32) if ml_dtypes.finfo(dtype).bits < 32 else np.dtype(dtype)


def scalar(value, leaf):
    """Return a number, traced or not, in the dtype of a leaf, so that strict promotion is content."""
    if is_jax(value):
        return value.astype(leaf.dtype)
    return leaf.dtype.type(value)


def inner(x, y):
    """Sum the products of two arrays' elements; in float64 on the host, at full precision on devices."""
    if isinstance(x, np.ndarray | np.generic) and isinstance(y, np.ndarray | np.generic):
        return _inner_on_host(x, y)
    # over all axes at once: vdot would ravel, which on sharded arrays means communication
    product = jnp.tensordot(jnp.conj(x), y, x.ndim, precision=jax.lax.Precision.HIGHEST)
    return product.real


def _inner_on_host(x, y):
    first, second = (np.ascontiguousarray(array).reshape(-1) for array in (x, y))
    total = np.float64(0)
    for start in range(0, first.size, HOST_BLOCK):
        wide = wide_pairs(first[start : start + HOST_BLOCK])
        total += wide @ (wide if x is y else wide_pairs(second[start : start + HOST_BLOCK]))
    return total


def wide_pairs(vector):
    """Return the elements of a NumPy vector in float64, of complex ones the real and imaginary parts."""
    wide = vector.astype(np.promote_types(vector.dtype, np.float64), copy=False)
    return wide.view(np.float64) if wide.dtype == np.complex128 else wide


def _difference(a, b, dtypes):
    if a.shape != b.shape:
        return f"has shape {tuple(b.shape)} instead of {tuple(a.shape)}"
    if dtypes and a.dtype != b.dtype:
        return f"has dtype {b.dtype} instead of {a.dtype}"
    return ""
