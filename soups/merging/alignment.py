"""Align independently trained networks before they are merged: `align:` in a recipe permutes their hidden units."""

import collections
import functools
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from soups.formats import Checkpoint
from soups.formats.view import View
from soups.lazy import jax
from soups.names import bounded, check_name, pattern, shown
from soups.recipes.permutation import Blocks, Spec, permute_leaf, spec_from_rules, used_axes
from soups.recipes.rebasin import weight_matching

_STATISTICS = r"batch_stats/.*|.*running_(?:mean|var)"  # permuted with the others, but no weights that could be matched
Rules = tuple[tuple[str, tuple | None], ...]


def parse_rules(given: Any, where: str) -> Rules | None:
    """Understand `align:`, a list of [regex, axes] as `spec_from_rules` takes them.

    `axes` has an entry for each axis: the name of a permutation, null, or a mapping {permutation, outer, inner} for an
    axis that flattens more than its units; null instead of a list leaves a tensor as it is.

    Raises:
        ValueError: `given` has any other form; the message says where.
    """
    if given is None:
        return None
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise ValueError(f"{where}: align must be a list of [regex, axes], not {given!r}")
    return tuple(_rule(rule, f"{where}: align[{index}]") for index, rule in enumerate(given))


def _rule(rule, where):
    if not isinstance(rule, Sequence) or isinstance(rule, str) or len(rule) != 2:
        raise ValueError(f"{where} must be [regex, axes], not {rule!r}")
    regex, axes = rule
    pattern(regex, f"{where}: the first entry")
    if axes is not None and (not isinstance(axes, Sequence) or isinstance(axes, str)):
        raise ValueError(f"{where}: the axes must be null or a list with an entry for each axis, not {axes!r}")
    return regex, None if axes is None else tuple(_axis(axis, where) for axis in axes)


def _axis(axis, where):
    if isinstance(axis, Mapping):
        for key in axis:
            check_name(key, ("permutation", "outer", "inner"), f"field of an axis of {where}")
        if not isinstance(axis.get("permutation"), str) or not all(
            type(axis.get(size, 1)) is int for size in ("outer", "inner")
        ):
            raise ValueError(
                f"{where}: an axis needs the name of its permutation; its outer and inner must be whole numbers"
            )
        return Blocks(axis["permutation"], axis.get("outer", 1), axis.get("inner", 1))
    if axis is not None and not isinstance(axis, str):
        raise ValueError(f"{where}: an axis must be the name of a permutation, null or a mapping, not {axis!r}")
    return axis


def aligned(models: Mapping[str, Checkpoint], reference: str, rules: Rules, seed: int) -> dict[str, Checkpoint | View]:
    """Show each model with its units permuted to match the reference's, by weight matching when it is first read.

    The spec is compared with the headers at once.

    Raises:
        ValueError: rules that do not fit the tensors, as in `spec_from_rules`; a permutation that stands on one tensor
            alone.

    Ainsworth et al., "Git Re-Basin", 2022, arXiv 2209.04836.
    """
    headers = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in sorted(models[reference].leaves.items())
    }
    spec = spec_from_rules(headers, rules)
    _check_shared(spec)
    return {
        model: checkpoint if model == reference else _view(checkpoint, models[reference], spec, seed)
        for model, checkpoint in models.items()
    }


def _check_shared(spec):
    bearers = collections.defaultdict(list)
    for name, axes in spec.items():
        for _, blocks in used_axes(axes):
            bearers[blocks.permutation].append(name)
    alone = {permutation: names[0] for permutation, names in bearers.items() if len(names) == 1}
    if lines := [f"  ~ permutation {shown(one)!r} touches only {shown(name)}" for one, name in alone.items()]:
        raise ValueError(
            "align: to permute units in one tensor alone changes what the network computes: give their axes in other "
            f"tensors the same name:\n{bounded(lines)}"
        )


def _view(checkpoint, reference, spec: Spec, seed):
    lock = threading.Lock()

    @functools.cache
    def permutations():
        arrays = [{name: np.asarray(model.read(name)) for name in spec} for model in (reference, checkpoint)]
        return weight_matching(*arrays, spec, key=jax.random.key(seed), ignore=_STATISTICS).permutations

    def make(name):
        with lock:  # threads read tensors side by side, and one matching serves them all
            found = permutations()
        return permute_leaf(np.asarray(checkpoint.read(name)), spec[name], found)

    changed = {name: leaf for name, leaf in checkpoint.leaves.items() if name in spec and any(used_axes(spec[name]))}
    return View(checkpoint, changed, make, checkpoint.sizes)
