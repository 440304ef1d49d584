"""Split a dataset into parts that share no example, and check that parts do not."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import xxhash
from numpy.typing import ArrayLike

from soups.arguments import check_within
from soups.names import refuse


def split_indices(
    labels_or_count: int | ArrayLike, sizes: Mapping[str, int | float], seed: int, stratified: bool = True
) -> dict[str, np.ndarray]:
    """Draw disjoint parts of a dataset by name.

    `labels_or_count`: the labels [N], or only N (there is then nothing to stratify by). `sizes`: for each part a number
    of examples (int) or a fraction of N (float in (0, 1], rounded down). `stratified` gives each part the classes in
    their shares of the whole, to within one example where the sizes allow. Examples that no part asks for stay out.
    Each part is int64, ascending. The same seed gives the same parts on every platform and with every version of NumPy.

    Raises:
        ValueError: labels that are not [N]; sizes that are not positive, or that add up to more than N; a negative
            seed.
    """
    labels = None if isinstance(labels_or_count, (int, np.integer)) else np.asarray(labels_or_count)
    if labels is not None and labels.ndim != 1:
        raise ValueError(f"labels must be [N], one for each example, not {list(labels.shape)}")
    count = int(labels_or_count) if labels is None else len(labels)
    seed = check_within("seed", seed, "[0, inf)", whole=True)
    numbers = {name: _part_size(name, size, count) for name, size in sizes.items()}
    if sum(numbers.values()) > count:
        raise ValueError(f"the parts {numbers} need {sum(numbers.values())} examples, but there are only {count}")
    # raw words of the bit generator, as NumPy keeps only those the same between its versions
    order = np.argsort(np.random.Philox(key=seed).random_raw(count), kind="stable")
    if stratified and labels is not None:
        order = _interleave_classes(order, labels)
    ends = np.cumsum(list(numbers.values()))
    return {name: np.sort(order[end - size : end]) for (name, size), end in zip(numbers.items(), ends, strict=True)}


def check_disjoint(**datasets: Any) -> None:
    """Raise a ValueError if datasets share examples, the same image, to the byte, and label; it says which."""
    digests = {name: _digests(dataset) for name, dataset in datasets.items()}
    lines = []
    for first, second in itertools.combinations(datasets, 2):
        place = {digest: index for index, digest in reversed(list(enumerate(digests[first])))}
        shared = [(place[digest], index) for index, digest in enumerate(digests[second]) if digest in place]
        if shared:
            where = ", ".join(f"{first}[{i}] = {second}[{j}]" for i, j in shared[:5])
            lines.append(f"{first} and {second} share {len(shared)} (first: {where})")
    refuse("splits must not share examples, but these do", lines)


def _part_size(name, size, count):
    if isinstance(size, float) and 0 < size <= 1:
        size = int(size * count + 1e-6)  # 0.29 * 100 is 28.999999999999996
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
        raise ValueError(
            f"part {name!r} must have at least one example, as a count >= 1 or a fraction of {count} in (0, 1], "
            f"got {size!r}"
        )
    return int(size)


def _interleave_classes(order, labels):
    """Reorder so that each stretch of the order has the classes in their shares of the whole."""
    position = np.empty(len(order))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    return order[np.argsort(position[order], kind="stable")]


def _digests(dataset):
    return [
        (image.shape, int(label), xxhash.xxh3_128_digest(np.ascontiguousarray(image)))
        for image, label in zip(dataset.images, dataset.labels, strict=True)
    ]
