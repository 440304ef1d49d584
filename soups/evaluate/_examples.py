"""Take the data that an evaluator measures on, and say what is wrong with it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soups.arrays import refusal
from soups.data import pair_of, unscaled

_BLOCK = 1024  # examples that are looked at at a time


class Examples:
    """Hold inputs and targets of N examples, pytrees of arrays [N, ...], and class groups.

    Args:
        dataset: as for `Evaluator`.
        classes: whether the targets must be classes.
        preprocessed: whether the caller says how the images are made floats.
        as_usual: whether bytes become floats in [0, 1], and floats stay as they are.
    """

    def __init__(self, dataset: Any, *, classes: bool, preprocessed: bool, as_usual: bool):
        self.groups = getattr(dataset, "class_groups", None)
        self.inputs, targets = pair_of(dataset, "the dataset")
        self.targets = jax.tree.map(np.asanyarray, targets)
        if hasattr(dataset, "images") and not preprocessed and self.inputs.dtype != np.uint8:
            raise ValueError(f"images of dtype {self.inputs.dtype} need a preprocess: the default is for uint8")
        if as_usual and any(map(unscaled, jax.tree.leaves(self.inputs))):
            raise ValueError(
                "images are floats up to 255, but only bytes (uint8) are brought to [0, 1]: give them as uint8, "
                "divide them by 255, or give a preprocess, such as lambda x: x if the network takes them as they are"
            )
        if as_usual and (row := _not_finite(self.inputs)) is not None:
            raise ValueError(
                f"inputs hold NaN or infinity, first in example {row}: leave such examples out, or give a preprocess, "
                "such as lambda x: x if the network takes them as they are"
            )
        if refused := [why for leaf in jax.tree.leaves(self.inputs) if (why := refusal(leaf))]:
            raise ValueError(f"the dataset cannot be evaluated: one of its inputs {refused[0]}")
        if classes:
            self._check_labels()
        leaves = [*jax.tree.leaves(self.inputs), *jax.tree.leaves(self.targets)]
        problems = _length_problems(leaves, hasattr(dataset, "images") and len(leaves) == 2)
        if classes and not problems:
            problems += _label_problems(self.targets, self.groups)
        if problems:
            raise ValueError("the dataset cannot be evaluated: " + "; ".join(problems))
        self._count = len(leaves[-1])
        if classes:
            used = self.targets if self.groups is None else np.concatenate(self.groups)
            self._needed = max(int(used.max()) + 1, 2)

    def __len__(self) -> int:
        return self._count

    def check_classes(self, number: int) -> None:
        """Raise a ValueError for a network of fewer classes than the labels or the class groups need."""
        if number < self._needed:
            what = "labels" if self.groups is None else "class groups"
            raise ValueError(f"the network gives {number} classes, but the {what} need at least {self._needed}")

    def _check_labels(self):
        labels = self.targets
        if not isinstance(labels, np.ndarray) or labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            what = f"{labels.dtype} of shape {labels.shape}" if isinstance(labels, np.ndarray) else "several arrays"
            raise ValueError(f"labels must be integers [N], not {what}; give metrics= for targets that are not classes")


def _not_finite(inputs) -> int | None:
    """Return the first example of which an input is NaN or infinite; only arrays of floats are read for that."""
    rows = []
    for leaf in jax.tree.leaves(inputs):
        here = isinstance(leaf, np.ndarray) or (isinstance(leaf, jax.Array) and leaf.is_fully_addressable)
        if not here or not leaf.ndim or not jnp.issubdtype(leaf.dtype, jnp.inexact):
            continue
        for start in range(0, len(leaf), _BLOCK):
            block = leaf[start : start + _BLOCK]
            if (bad := ~np.isfinite(np.asarray(block)).reshape(len(block), -1).all(axis=1)).any():
                rows.append(start + int(bad.argmax()))
                break
    return min(rows, default=None)


def _length_problems(leaves, images) -> list[str]:
    # inputs are computed with; of targets a metric of one's own may take what it likes
    if refused := [why for leaf in leaves if (why := refusal(leaf, numbers=False))]:
        return [f"one of its arrays {refused[0]}"]
    if bare := [leaf for leaf in leaves if not hasattr(leaf, "__len__") or not getattr(leaf, "ndim", 1)]:
        return [f"it must hold arrays [N, ...], but {bare[0]!r:.80} is not one: numpy.asarray makes arrays of lists"]
    counts = [len(leaf) for leaf in leaves]
    if len(set(counts)) > 1:
        if images:
            return [f"{counts[0]} images have {counts[1]} labels"]
        return [f"its arrays have {', '.join(map(str, counts))} examples"]
    return [] if counts and counts[0] else ["it has no examples"]


def _label_problems(labels, groups) -> list[str]:
    problems = []
    if labels.min() < 0:
        problems.append(f"its labels go down to {labels.min()}, but classes count from 0")
    return problems if groups is None else problems + list(_group_problems(labels, groups))


def _group_problems(labels, groups):
    if len(groups) < 2:
        yield f"class_groups has {len(groups)} classes: at least two are needed"
    elif labels.max() >= len(groups):
        yield f"its labels go up to {labels.max()}, but class_groups has {len(groups)} classes"
    for number, group in enumerate(groups):
        if not group or min(group) < 0:
            yield f"group {number} of class_groups must list outputs of the network, not {group}"
