"""Take examples of a split, whatever they are."""

from typing import Any, NamedTuple

import jax
import numpy as np


class Examples(NamedTuple):
    """Hold one split: inputs and targets [N, ...] under the names that evaluators know, and groups of classes."""

    images: Any
    labels: Any
    class_groups: tuple[tuple[int, ...], ...] | None = None


def number_of(data: Any) -> int:
    """Count the examples of a split."""
    return len(jax.tree.leaves(data.labels)[0])


def rows_of(data: Any, rows: Any) -> dict[str, Any]:
    """Return some examples of a split, as {"image": inputs, "label": targets}."""
    return {
        name: jax.tree.map(lambda leaf: np.asarray(leaf[rows]), part)
        for name, part in (("image", data.images), ("label", data.labels))
    }


def zeros_of(outputs: Any, count: int) -> Any:
    """Return zeros, in memory and for so many examples, in the place of a network's outputs whose shapes are given."""

    def zeros(leaf):
        floats = jax.dtypes.issubdtype(leaf.dtype, np.floating)
        return np.zeros((count, *leaf.shape[1:]), np.float32 if floats else leaf.dtype)

    return jax.tree.map(zeros, outputs)
