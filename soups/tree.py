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
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from soups import arrays
from soups.arrays import is_complex, is_float, namespace, widen_leaves, widest  # noqa: F401 (of leaves, also here)
from soups.lazy import is_jax, jax, jnp
from soups.names import LEGEND, MOST, bounded, did_you_mean, differences, few, pattern, refuse, shown

Tree = Any  #: a pytree of arrays, in this library mostly nested dicts
Rules = str | Sequence[tuple[str, Any]]  #: ordered (regex, value) pairs, or one regex that selects

#: names of integer leaves that count steps or batches, as `is_counter` takes them
COUNTERS = re.compile(
    r"(.*[/.])?(num_batches_tracked|num_updates|n_averaged|(global_)?steps?|(step_)?count|counter|iterations?)"
)


def flatten(tree: Tree) -> dict[str, Any]:
    """Return the leaves of `tree` by name, the keys of a path joined with "/".

    Raises:
        ValueError: two leaves have one name, as "a/b" and "b" in "a"; a dict has keys of several kinds.
    """
    leaves = sorting(jax.tree_util.tree_leaves_with_path, tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if len(named) < len(leaves):
        paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
        twice = [name for name, number in collections.Counter(paths).items() if number > 1]
        raise ValueError(
            f'two leaves have the same name, because a key contains the "/" that joins keys: {few(map(shown, twice))}'
        )
    return named


def sorting(function: Callable, tree: Tree) -> Any:
    """Return what a function of JAX makes of a tree; a ValueError where a dict in it has keys that cannot be sorted."""
    try:
        return function(tree)
    except ValueError as error:
        if "sorting pytree" not in str(error):
            raise
        raise ValueError(
            "a dict has keys of several kinds, such as 0 and 'a', which have no order: make all of its keys text"
        ) from None


def names(tree: Tree) -> list[str]:
    """List the names of the leaves of `tree` in their order."""
    return list(flatten(tree))


def map_with_names(function: Callable, tree: Tree, *rest: Tree) -> Tree:
    """Apply `function(name, leaf, *other_leaves)` to every leaf."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(jax.tree_util.keystr(path, simple=True, separator="/"), *leaves), tree, *rest
    )


def mean(trees: Sequence[Tree]) -> Tree:
    """Average trees of one structure, leaf by leaf.

    (1/K) Σ_i θ_i in float32 or wider, exactly θ where all are equal; each leaf has the dtype of the first tree's.

    Raises:
        ValueError: no trees; trees whose structures differ; an integer leaf that is not the same in all of them.
        NonFiniteError: NaN or infinity in a tree, or in the result, which may overflow. Under `jit` nothing is checked.
            The same holds for all functions below.
    """
    return _combined(arrays.mean_of, list(trees))


def weighted_sum(trees: Sequence[Tree], weights: Sequence[ArrayLike]) -> Tree:
    """Sum trees of one structure, each times its weight.

    Σ_i w_i θ_i in float32 or wider; `weights`: K floats or an array [K]. They need not sum to 1.

    Raises:
        ValueError: as `mean`; weights that are not one for each tree.
    """
    trees = list(trees)
    if isinstance(weights, Mapping) or not isinstance(weights, Iterable) or getattr(weights, "ndim", 1) != 1:
        raise ValueError(f"weights must be a sequence of numbers, one for each tree, not {weights!r:.200}")
    weights = list(weights)
    if trees and len(weights) != len(trees):
        raise ValueError(f"{len(trees)} trees need {len(trees)} weights, but {len(weights)} were given")
    return _combined(lambda wide: arrays.mix(wide, weights), trees)


def lerp(a: Tree, b: Tree, t: ArrayLike, *, labels: Sequence[str] = ("a", "b")) -> Tree:
    """Interpolate linearly: a + t (b − a); exactly `a` where a = b, for every t. `labels`: of both in errors."""
    return _combined(lambda wide: wide[0] + arrays.scalar(t, wide[0]) * (wide[1] - wide[0]), [a, b], labels)


def slerp(a: Tree, b: Tree, t: ArrayLike) -> Tree:
    """Interpolate on the arc between two trees taken as one long vector each.

    [sin((1−t)Ω) a + sin(tΩ) b] / sin Ω with cos Ω = <a, b>/(|a||b|); linear where the vectors are (anti)parallel up to
    rounding, sin Ω at most 64 times the epsilon of float32, or of float64 where all leaves have it (Shoemake, 1985).
    """
    cos_angle = cosine(a, b)
    xp = namespace([cos_angle])
    pairs = [pair for pair in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True) if is_float(pair[0])]
    halves = [arrays.ratio(xp, 0.5, length, length > 0) for length in (norm(a), norm(b))]
    half = xp.sqrt(xp.maximum(_dot((_mixed_widely(pair, halves),) * 2 for pair in pairs), 1e-30))
    epsilon = max((float(np.finfo(widen_leaves(pair)[0].dtype).eps) for pair in pairs), default=0.0)
    weights = arrays.on_arc(xp, t, cos_angle, half, lambda sine, _: sine <= 64 * epsilon)
    return _combined(lambda wide: arrays.mix(wide, weights), [a, b], ["a", "b"])


def sub(a: Tree, b: Tree) -> Tree:
    """Subtract: a − b in float32 or wider, so that a task vector loses nothing; integer leaves become zeros."""

    def leaf(x, y):
        if not is_float(x):
            return namespace([x]).zeros_like(x)
        wide = widen_leaves((x, y))
        return wide[0] - wide[1]

    check_same_structure([a, b], ["a", "b"])
    check_copied([a, b])
    return _leaf_by_leaf(leaf, [a, b], ["a", "b"])


def add_scaled(a: Tree, b: Tree, scale: ArrayLike = 1.0, *, labels: Sequence[str] = ("a", "b")) -> Tree:
    """Add: a + scale · b, in the dtypes of `a`; integer leaves are those of `a`. `labels`: of both in errors.

    Raises:
        ValueError: names or shapes that differ. The dtypes may: `b` is mostly a float32 task vector.
    """
    check_same_structure([a, b], labels, dtypes=False)
    add = functools.partial(_combine, arithmetic=lambda wide: wide[0] + arrays.scalar(scale, wide[0]) * wide[1])
    return _leaf_by_leaf(lambda *leaves: add(leaves), [a, b], labels)


def dot(a: Tree, b: Tree) -> float | jax.Array:
    """Sum the products of all elements of the float leaves: <a, b>, a scalar; float64 for NumPy's arrays.

    The products of complex elements are those of their real and of their imaginary parts.
    """
    check_same_structure([a, b], dtypes=False)
    check_arrays([a, b], abstract=False)
    return _dot(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def _dot(pairs):
    products = [arrays.inner(*widen_leaves(pair)) for pair in pairs if is_float(pair[0])]
    if namespace(products) is jnp:
        products = [jnp.asarray(product, jnp.result_type(np.float32)) for product in products]
    return arrays.sum_in_order(products) if products else np.float64(0)


def _mixed_widely(pair, weights):
    wide = widen_leaves(pair)
    return arrays.mix(map(arrays.doubled, wide) if namespace([*wide, *weights]) is np else wide, weights)


def norm(a: Tree) -> float | jax.Array:
    """Take the Euclidean norm |a| = sqrt(<a, a>) over all float leaves."""
    squared = dot(a, a)
    return namespace([squared]).sqrt(squared)


def cosine(a: Tree, b: Tree) -> float | jax.Array:
    """Take the cosine <a, b> / (|a| |b|) of the angle between two trees; 0 where one of them is zero."""
    product = norm(a) * norm(b)
    xp = namespace([product])
    return arrays.ratio(xp, dot(a, b), product, product > 0)


class NonFiniteError(ValueError):
    """Say that a member holds NaN or infinity, or that a result overflows."""


def check_finite(trees: Mapping[str, Tree]) -> None:
    """Raise a NonFiniteError that names the trees, by their labels, and their leaves that hold NaN or infinity."""
    if not traced(trees):
        found = {label: nonfinite_names(leaves) for label, leaves in trees.items()}
        lines = [f"  {label}: {few(map(shown, bad))}" for label, bad in found.items() if bad]
        if lines:
            raise NonFiniteError("NaN or infinity in the weights; leave out what diverged:\n" + bounded(lines))


def check_usable(trees: Mapping[str, Tree], *, dtypes: bool = True) -> None:
    """Raise a ValueError unless trees are of one structure, and finite; they are named by their labels."""
    check_same_structure(list(trees.values()), list(trees), dtypes=dtypes)
    check_finite(trees)


def check_result(result: Tree, given: Mapping[str, Tree]) -> Tree:
    """Return a result, in which NaN and infinity of the trees that were `given`, by their labels, would show.

    A NonFiniteError if it holds some, because a tree does or because the result overflows.
    """
    if not traced(result) and (bad := nonfinite_names(result)):
        check_finite(given)
        leaves = flatten(result)
        more = f" (and {len(bad) - MOST} more)" if len(bad) > MOST else ""
        raise NonFiniteError("; ".join(not_finite(name, leaves[name]) for name in bad[:MOST]) + more)
    return result


def not_finite(name: str, array: Any) -> str:
    """Return the message about a leaf of a result that overflows, or holds NaN alone."""
    if bool(namespace([array]).isinf(array).any()):
        return overflow(name, array.dtype)
    return f"the merged {name} holds NaN, though no member does: its method makes it, or overflows {array.dtype} midway"


def overflow(name: str, dtype: DTypeLike) -> str:
    """Return the message about a leaf of a result that overflows."""
    return f"the merged {name} overflows {dtype}, though no member does: choose a wider dtype for the result"


def all_finite(tree: Tree) -> bool:
    """Say whether no float leaf holds a NaN or an infinity (concrete arrays only)."""
    return not nonfinite_names(tree)


def nonfinite_names(tree: Tree) -> list[str]:
    """List the names of the leaves that hold a NaN or an infinity (concrete arrays only)."""
    check_arrays([tree], abstract=False)
    floats = {name: leaf for name, leaf in flatten(tree).items() if is_float(leaf)}
    finite = jax.device_get(list(map(arrays.is_finite, floats.values())))
    return [name for name, holds in zip(floats, finite, strict=True) if not holds]


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
    lines = [f"no rule matches leaf {name!r}" for name in uncovered]
    hints = [did_you_mean(pattern, leaf_names) for pattern in idle[:MOST]] + [""] * len(idle[MOST:])
    lines += [f"rule {pattern!r} matches no leaf{hint}" for pattern, hint in zip(idle, hints, strict=True)]
    refuse("rules do not fit the tree (end them with ('.*', value) to cover the rest)", lines)
    return map_with_names(lambda name, _: chosen[name][1], tree)


def partition(tree: Tree, rules: Rules) -> tuple[Tree, Tree]:
    """Split `tree` into (selected, rest) of the same shape, with None in the places of the other part."""
    return split_by(match(tree, rules), tree)


def select(tree: Tree, rules: Rules) -> Tree:
    """Keep the leaves that the rules select; None in the places of the others."""
    return partition(tree, rules)[0]


def combine(*parts: Tree) -> Tree:
    """Put parts made by `partition` together: in each place the first that is not None."""

    def first(*leaves):
        return next((leaf for leaf in leaves if leaf is not None), None)

    return jax.tree.map(first, *parts, is_leaf=lambda x: x is None)


def split_floats(tree: Tree) -> tuple[Tree, Tree]:
    """Split `tree` into (floats, rest), with None in the places of the other part; `combine` undoes it."""
    check_arrays([tree])
    return split_by(jax.tree.map(is_float, tree), tree)


def split_by(mask: Tree, tree: Tree) -> tuple[Tree, Tree]:
    """Split `tree` into the leaves where `mask` has something true, and the rest, as `partition` does."""
    selected = jax.tree.map(lambda keep, leaf: leaf if keep else None, mask, tree)
    return selected, jax.tree.map(lambda keep, leaf: None if keep else leaf, mask, tree)


def check_same_structure(trees: Sequence[Tree], labels: Sequence[str] | None = None, *, dtypes: bool = True) -> None:
    """Raise one ValueError that lists every difference of the trees from the first.

    "-" is a leaf that is missing, "+" one that the first tree does not have, "~" one of another shape or dtype.
    `labels` name the trees in the message; `dtypes=False` compares names and shapes alone. Leaves that are no arrays
    are an error, too.
    """
    if not trees:
        raise ValueError("no members were given: at least one is needed")
    check_arrays(trees, labels)
    labels = labels or [f"member {index}" for index in range(len(trees))]
    first = flatten(trees[0])
    lines = []
    for label, tree in zip(labels[1:], trees[1:], strict=True):
        other = flatten(tree)
        missing, extra = ([name for name in a if name not in b] for a, b in ((first, other), (other, first)))
        lines += differences(missing, extra, label)
        for name, (a, b) in {name: (first[name], other[name]) for name in first if name in other}.items():
            if a.shape != b.shape:
                lines.append(f"  ~ {label}: {name} has shape {tuple(b.shape)} instead of {tuple(a.shape)}")
            elif dtypes and a.dtype != b.dtype:
                lines.append(f"  ~ {label}: {name} has dtype {b.dtype} instead of {a.dtype}")
        if not lines and jax.tree.structure(trees[0]) != jax.tree.structure(tree):
            lines.append(f"  ~ {label}: other containers ({jax.tree.structure(tree)})")
    if lines:
        raise ValueError(f"members differ in structure from {labels[0]} ({LEGEND}):\n{bounded(lines)}")


def check_arrays(trees: Sequence[Tree], labels: Sequence[str] | None = None, *, abstract: bool = True) -> None:
    """Raise one ValueError that names every leaf that is no array of numbers, and its type.

    `abstract`: whether a shape and a dtype are enough, as jax.ShapeDtypeStruct has them.
    """

    def fits(leaf):
        return arrays.is_array(leaf) and (abstract or hasattr(leaf, "__array__"))

    if all(fits(leaf) for leaf in sorting(jax.tree.leaves, trees)):
        return
    labels = labels or [f"member {index}" for index in range(len(trees))]
    found = [
        f"  {label}{f': {shown(name)}' if name else ''} is {_type_of(leaf)}"
        for label, tree in zip(labels, trees, strict=True)
        for name, leaf in flatten(tree).items()
        if not fits(leaf)
    ]
    raise ValueError(
        "leaves must be NumPy or JAX arrays of numbers; turn numbers into arrays with numpy.asarray, and split off "
        f"everything else with soups.tree.partition:\n{bounded(found)}"
    )


def check_copied(
    trees: Sequence[Tree], keep_first: str | None = None, digests: Sequence[Mapping[str, str]] = ()
) -> None:
    """Raise a ValueError that names the integer and boolean leaves that are not the same in all trees.

    Counters, and what matches the regex `keep_first`, are copied from the first tree whatever the others hold.
    `digests`: of the leaves of each tree by name, which are compared where they are known.

    Raises:
        ValueError: such leaves; leaves that are float, complex or integer in some trees but not in others; `keep_first`
            that matches no leaf.
    """
    flat = [flatten(tree) for tree in trees]
    kept = flatten(match(trees[0], keep_first)) if keep_first is not None else {}
    names = [name for name in flat[0] if not kept.get(name)]
    mixed = [name for name in names if len({_kind(leaves[name]) for leaves in flat}) > 1]
    if mixed:
        raise ValueError(
            f"leaves that are complex, real or integer in some members but not in others: {few(map(shown, mixed))}"
        )
    copied = [name for name in names if not is_float(flat[0][name]) and not is_counter(name)]
    if digests:
        different = [name for name in copied if len({known[name] for known in digests}) > 1]
    else:
        different = [name for name in copied if not _identical(name, [leaves[name] for leaves in flat])]
    if different:
        raise ValueError(
            "integer and boolean leaves are copied, not averaged, so they must be identical in all members, or be "
            f"taken from the first with keep_first=REGEX; these differ: {few(map(shown, different))}"
        )


def is_counter(name: str) -> bool:
    """Say whether an integer leaf of this name counts steps or batches, so that it is the first member's in a merge.

    It does if the last part of its name, after "/" or ".", is num_batches_tracked, num_updates, n_averaged, step,
    steps, global_step, count, step_count, counter, iteration or iterations.
    """
    return COUNTERS.fullmatch(name) is not None


def cast_like(tree: Tree, like: Tree) -> Tree:
    """Cast every leaf to the dtype of its counterpart in `like`."""
    check_arrays([tree, like], ["tree", "like"])
    return jax.tree.map(lambda leaf, other: leaf.astype(other.dtype), tree, like)


def widen(tree: Tree) -> Tree:
    """Cast float leaves narrower than float32 to float32, and leave the others as they are."""
    check_arrays([tree], abstract=False)
    return jax.tree.map(lambda leaf: widen_leaves((leaf,))[0] if is_float(leaf) else leaf, tree)


def count(tree: Tree) -> int:
    """Count the elements of all leaves."""
    check_arrays([tree])
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def _combined(arithmetic, trees, labels=None):
    labels = labels or [f"member {index}" for index in range(len(trees))]
    check_same_structure(trees, labels)
    check_copied(trees)
    return _leaf_by_leaf(lambda *leaves: _combine(leaves, arithmetic), trees, labels)


def _leaf_by_leaf(function, trees, labels):
    check_arrays(trees, labels, abstract=False)
    with np.errstate(all="ignore"):  # what is not finite is an error with a name
        return check_result(jax.tree.map(function, *trees), dict(zip(labels, trees, strict=True)))


def _combine(leaves, arithmetic):
    if not is_float(leaves[0]):
        return leaves[0]
    wide = widen_leaves(leaves)
    result = arithmetic(wide)
    if not is_jax(result) and not arrays.is_finite(result):  # it may overflow midway
        result = arithmetic(list(map(arrays.doubled, wide)))
    return result.astype(leaves[0].dtype)


def _type_of(leaf):
    kind = f"{type(leaf).__module__}.{type(leaf).__qualname__}".removeprefix("builtins.")
    kind = f"a{'n' * (kind[0] in 'aeiou')} {kind}"
    return f"{kind} of {leaf.dtype}" if hasattr(leaf, "dtype") else kind


def _kind(leaf):
    if not is_float(leaf):
        return "copied"
    return "complex" if is_complex(leaf) else "real"


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


def namespace_of(tree: Tree) -> Any:
    """Return numpy if all leaves of a tree are NumPy's, else jax.numpy."""
    return namespace(jax.tree.leaves(tree))


def traced(values: Any) -> bool:
    """Say whether numbers are not known yet, because a JAX transformation is under way."""
    return "jax" in sys.modules and any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))
