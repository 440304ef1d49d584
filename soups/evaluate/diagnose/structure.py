"""Look at what members are made of: names, shapes, dtypes, and what must not be averaged."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soups import tree
from soups.evaluate.diagnose.report import Book, listed

# what heads are called in Flax, torch and Hugging Face models
HEAD = r"(.*/)?(head|heads|classifier|lm_head|fc)(/.*)?"
_STATISTICS = {"mean", "var", "running_mean", "running_var"}
_MOST_LINES = 3

Trees = dict[str, tree.Tree]


def read(book: Book, members: Mapping[str, Any], labels: Mapping[str, Any]) -> Trees:
    """Return the members that can be read and are trees of arrays of numbers."""
    trees, unreadable, no_arrays = {}, {}, {}
    for label, name in labels.items():
        try:
            member = members[name]
        except (OSError, ValueError) as error:
            unreadable[label] = "it cannot be read: " + " ".join(str(error).split())
            continue
        leaves = tree.flatten(member)
        if wrong := [leaf or "the member itself" for leaf, value in leaves.items() if not _is_array(value)]:
            no_arrays[label] = f"not arrays of numbers: {listed(wrong)}"
        elif not leaves:
            no_arrays[label] = "it has no leaves"
        else:
            trees[label] = member
    if unreadable:
        book.out("unreadable", _all(unreadable), unreadable, "restore it from a copy, or remove it from the pool")
    if no_arrays:
        book.out("no arrays", _all(no_arrays), no_arrays, "give nested dicts of NumPy or JAX arrays")
    return trees


def same_structure(book: Book, trees: Trees, head: str) -> Trees:
    """Return the largest group of members with the same names, shapes and dtypes; the first in a tie."""
    groups = grouped(trees, lambda a, b: _signature(a) == _signature(b))
    if not groups:
        return {}
    main = max(groups, key=len)
    for group in groups:
        if group is not main:
            _describe_group(book, trees, main, group, head)
    return {name: trees[name] for name in main}


def finite(book: Book, trees: Trees) -> Trees:
    """Return the members without NaN and infinity."""
    bad = {name: leaves for name, member in trees.items() if (leaves := tree.nonfinite_names(member))}
    if bad:
        reasons = {name: f"it holds NaN or infinity in {listed(leaves)}" for name, leaves in bad.items()}
        book.out("non-finite", _all(reasons), reasons, "one such member makes the whole average NaN")
    return {name: member for name, member in trees.items() if name not in bad}


def same_integers(book: Book, trees: Trees) -> Trees:
    """Return the largest group of members whose integer and boolean leaves are the same."""
    groups = grouped(trees, lambda a, b: not _different_copied(a, b))
    if len(groups) < 2:
        return trees
    main = max(groups, key=len)
    others = [name for group in groups if group is not main for name in group]
    leaves = {leaf: None for name in others for leaf in _different_copied(trees[main[0]], trees[name])}
    what = f"integer or boolean leaves differ: {listed(leaves)}"
    advice = "such leaves are copied, never averaged: make them the same in all members (a counter), or drop them"
    reasons = {name: f"its {listed(_different_copied(trees[main[0]], trees[name]))} differ" for name in others}
    book.out("integers", what, reasons, advice)
    return {name: trees[name] for name in main}


def remark_leaves(book: Book, trees: Trees, measured: bool) -> None:
    """Say what users should know of running statistics and of half precision."""
    leaves = tree.flatten(next(iter(trees.values())))
    if found := [name for name in statistics_of(leaves) if tree.is_float(leaves[name])]:
        advice = "an average of statistics is not the soup's: run soups.models.reestimate_batch_stats after averaging"
        if measured:
            advice += "; here every average is scored with averaged statistics, which may make barriers look too high"
        count = f"{len(found)} leaves hold running statistics or other state: {listed(found, _MOST_LINES)}"
        book.add("warning", "statistics", count, (), advice)
    if half := [name for name, leaf in leaves.items() if tree.is_float(leaf) and jnp.finfo(leaf.dtype).bits < 32]:
        dtypes = listed(sorted({str(leaves[name].dtype) for name in half}))
        what = f"{len(half)} of {len(leaves)} leaves are {dtypes}"
        book.add("note", "precision", what, (), "soups adds them up in float32 and rounds once, at the end")


def weights_of(trees: Trees) -> list[str]:
    """List the float leaves but for state, which says nothing of where members lie."""
    leaves = tree.flatten(next(iter(trees.values())))
    state = set(statistics_of(leaves))
    return [name for name, leaf in leaves.items() if tree.is_float(leaf) and name not in state]


def usable_base(
    book: Book, base: tree.Tree | None, trees: Trees, weights: list[str]
) -> tuple[tree.Tree | None, list[str]]:
    """Return the base, or None if it is of no use, and the weights of which it tells how far they moved."""
    leaves = tree.flatten(next(iter(trees.values())))
    if base is None:
        what = "no base was given, so task vectors and who pulls against the others cannot be known"
        book.add("note", "no base", what, (), "give base=, the weights that all members were fine-tuned from")
        return None, weights
    start = tree.flatten(base)
    shared = [name for name in weights if name in start and getattr(start[name], "shape", None) == leaves[name].shape]
    bad = [name for name in shared if tree.nonfinite_names({"": start[name]})]
    if bad or not shared:
        why = f"holds NaN or infinity in {listed(bad)}" if bad else "shares no leaf with the members"
        book.add("warning", "base", f"the base {why}", (), "it was not used; give the weights fine-tuning started from")
        return None, weights
    if missing := [name for name in weights if name not in shared]:
        what = f"the base does not have, or has in another shape: {listed(missing)}"
        book.add("warning", "base", what, (), "norms and angles are without them; recipes that take a base need them")
    return base, shared


def statistics_of(names: Iterable[str]) -> list[str]:
    """List the leaves of collections beside "params", and those named as running means and variances."""
    parts = {name: name.split("/") for name in names}
    beside = any(len(p) > 1 and p[0] == "params" for p in parts.values())
    return [
        name
        for name, p in parts.items()
        if (beside and p[0] != "params") or p[-1] in _STATISTICS or "batch_stats" in p[:-1]
    ]


def grouped(trees: Trees, same: Callable[[tree.Tree, tree.Tree], bool]) -> list[list[str]]:
    """Group names whose trees are the same as that of the group's first, in the order of the names."""
    groups = []
    for name, member in trees.items():
        home = next((group for group in groups if same(trees[group[0]], member)), None)
        if home is None:
            groups.append([name])
        else:
            home.append(name)
    return groups


def _is_array(leaf):
    if not isinstance(leaf, (np.ndarray, np.generic, jax.Array)):
        return False
    return jnp.issubdtype(leaf.dtype, np.number) or jnp.issubdtype(leaf.dtype, np.bool_)


def _signature(member):
    leaves, structure = jax.tree.flatten(member)
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]


def _describe_group(book, trees, main, group, head):
    expected, other = trees[main[0]], trees[group[0]]
    lines = _differences(expected, other)
    text = "; ".join(lines[:_MOST_LINES]) + (f"; and {len(lines) - _MOST_LINES} more" if lines[_MOST_LINES:] else "")
    kind, what, advice = _kind_of_difference(expected, other, head)
    first = lines[0] + (f" and {len(lines) - 1} more" if lines[1:] else "")
    book.out(kind, f"{what} than {listed(main, 3)}: {text}", dict.fromkeys(group, f"{what}: {first}"), advice)


def _kind_of_difference(expected, other, head):
    a, b = tree.flatten(expected), tree.flatten(other)
    odd = [name for name in a | b if name not in a or name not in b or a[name].shape != b[name].shape]
    if not odd and jax.tree.structure(expected) == jax.tree.structure(other):
        return "dtypes", "other dtypes", "cast with soups.tree.cast_like(member, another)"
    if odd and all(re.fullmatch(head, name) for name in odd):
        advice = "the trunks can still be averaged: split the head off with soups.tree.partition and diagnose the rest"
        return "head", "another head", advice
    if sorted(leaf.shape for leaf in a.values()) == sorted(leaf.shape for leaf in b.values()):
        return "structure", "other names", "it has as many leaves of the same shapes: give them the others' names"
    return "structure", "another structure", "only members of one architecture can be averaged"


def _differences(expected, other):
    try:
        tree.check_same_structure([expected, other], ["", ""])
    except ValueError as error:
        return [re.sub(r"^  ([-+~] (: )?)?", "", line) for line in str(error).splitlines()[1:]]
    return ["other containers"]  # such as a name that is a key of one tree and a path in the other


def _different_copied(a, b):
    first, second = tree.flatten(a), tree.flatten(b)
    copied = [name for name, leaf in first.items() if not tree.is_float(leaf)]
    return [name for name in copied if not np.array_equal(np.asarray(first[name]), np.asarray(second[name]))]


def _all(reasons):
    """Say of several members what is the same for all, or how many there are."""
    different = list(dict.fromkeys(reasons.values()))
    return different[0] if len(different) == 1 else "; ".join(f"{name}: {why}" for name, why in reasons.items())
