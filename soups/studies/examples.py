"""Take examples of a split, whatever they are, and know them again."""

from typing import Any, NamedTuple

import jax
import numpy as np

from soups.pool import digest


class Examples(NamedTuple):
    """Hold one split: inputs and targets [N, ...] under the names that evaluators know, and groups of classes."""

    images: Any
    labels: Any
    class_groups: tuple[tuple[int, ...], ...] | None = None


def digest_of(data: Any) -> str:
    """Return the digest of inputs and targets of a split."""
    known = getattr(data, "digest", None)  # sets that were decoded once know theirs
    if isinstance(known, str):
        return known
    return digest({"inputs": jax.tree.map(lambda leaf: leaf[:], data.images), "labels": data.labels})


def number_of(data: Any) -> int:
    """Count the examples of a split."""
    return len(jax.tree.leaves(data.labels)[0])


def rows_of(data: Any, rows: Any) -> dict[str, Any]:
    """Return some examples of a split, as {"image": inputs, "label": targets}."""
    return {
        name: jax.tree.map(lambda leaf: np.asarray(leaf[rows]), part)
        for name, part in (("image", data.images), ("label", data.labels))
    }
