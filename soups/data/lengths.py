"""Cut batches of texts to few lengths, so that a program is compiled for each of these, and not for every length."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

#: how many tokens a batch may have
LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)


def round_up(length: int, lengths: Sequence[int] = LENGTHS) -> int:
    """Return the smallest of the lengths that is not below this one, or this one above all of them."""
    return min((one for one in lengths if one >= length), default=length)


def shortened(
    inputs: Mapping[str, np.ndarray], rows: Any = slice(None), lengths: Sequence[int] = LENGTHS
) -> dict[str, np.ndarray]:
    """Return some rows of what a tokenizer gave, as short as the longest of them and `lengths` allow.

    Only columns that are padding in all of these rows are cut off, which no network sees.
    """
    mask = inputs["mask"][rows]
    used = int(np.flatnonzero(mask.any(axis=0))[-1]) + 1 if mask.any() else 1
    width = min(round_up(used, lengths), mask.shape[1])
    return {name: array[rows][:, :width] for name, array in inputs.items()}


def by_length(
    inputs: Mapping[str, np.ndarray], batch_size: int, lengths: Sequence[int] = LENGTHS
) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Return pairs (rows, inputs of these rows): all examples, those of one of the `lengths` together.

    So few programs run, and short texts cost little: `outputs[rows] = apply(params, inputs)` for each of them. Groups
    have at most `batch_size` rows.
    """
    used = inputs["mask"].shape[1] - np.argmax(inputs["mask"][:, ::-1], axis=1)
    groups = np.array([round_up(int(one), lengths) for one in used])
    found = []
    for length in sorted(set(groups.tolist())):
        rows = np.flatnonzero(groups == length)
        found += [rows[at : at + batch_size] for at in range(0, len(rows), batch_size)]
    return [(rows, shortened(inputs, rows, lengths)) for rows in found]


def joined(outputs: Iterable[tuple[np.ndarray, Any]]) -> Any:
    """Return the outputs of all examples in their order, from pairs (rows, outputs of these rows)."""
    rows, parts = zip(*outputs, strict=True)
    order = np.argsort(np.concatenate(rows), kind="stable")
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[order], *parts)
