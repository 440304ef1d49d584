"""Hold out 2 % of ImageNet's training images: those of the published soups, or a choice by file name."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np
import xxhash

PER_CLASS = 26  # of about 1,280
SHARE = 0.02
PUBLISHED, BY_NAME = "published", "by file name"

_TRAINING_IMAGES = 1_281_167
_CHECK_PLACE, _CHECK_FILE = 1000, "n01675722_4108.JPEG"  # the published code checks this one image


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOutSplit:
    """Say which training images are held out.

    Attributes:
        kind: "published" (by the index file of the published soups) or "by file name".
        held_out: int64, places among the training files (sorted by class, then by name), ascending.
        train: int64, all others.
    """

    kind: str
    held_out: np.ndarray
    train: np.ndarray


def split_files(files: Sequence[str], labels: np.ndarray, index_file=None) -> HeldOutSplit:
    """Split the training images, "class/file" sorted by class and name, with their labels [N].

    With the published `index_file`: an array with a 1 for each image that is held out, and 0 for the others, in the
    order of `files` (github.com/mlfoundations/model-soups, imagenet_98_idxs.npy). Otherwise in each class the 26 files
    whose names have the smallest xxh3 are held out; 2 % of each class, at least one, where 26 would be over 5 % of one.

    An index file that cannot be read, is about other images, or holds out all or none of a class is a ValueError; with
    ImageNet's number of images also one that is not the published choice.
    """
    if index_file is None:
        chosen, kind = _chosen_by_name(files, labels), BY_NAME
    else:
        chosen, kind = _chosen_by_index(pathlib.Path(index_file), files, labels), PUBLISHED
    return HeldOutSplit(kind, np.flatnonzero(chosen), np.flatnonzero(~chosen))


def _chosen_by_name(files, labels):
    counts = np.bincount(labels)
    quotas = np.maximum(1, np.rint(SHARE * counts)).astype(int)
    if counts.min() * 0.05 >= PER_CLASS:
        quotas[:] = PER_CLASS
    # without the folder, which not every copy of the data has
    hashes = np.array([xxhash.xxh3_64_intdigest(os.path.basename(file).encode()) for file in files], np.uint64)
    order = np.lexsort((hashes, labels))
    starts = np.cumsum(counts) - counts
    rank_in_class = np.arange(len(files)) - np.repeat(starts, counts)
    chosen = np.zeros(len(files), bool)
    chosen[order] = rank_in_class < np.repeat(quotas, counts)
    return chosen


def _chosen_by_index(index_file, files, labels):
    try:
        with open(index_file, "rb") as file:
            values = np.lib.format.read_array(file, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # of broken files NumPy raises errors of many kinds
        raise ValueError(f"{index_file}: it is not an array in NumPy's format, or it is broken ({error})") from error
    if values.shape != (len(files),):
        raise ValueError(
            f"{index_file}: it has {values.size} entries for {len(files)} training images: the published file "
            f"needs all {_TRAINING_IMAGES:,} images of ImageNet; without it the split is by file name"
        )
    if not np.isin(values, (0, 1)).all():
        raise ValueError(f"{index_file}: each value must be 0 or 1, but there are {np.setdiff1d(values, (0, 1))[:5]}")
    chosen = values.astype(bool)
    counts, held = np.bincount(labels), np.bincount(labels[chosen], minlength=labels.max() + 1)
    if (wrong := np.flatnonzero((held == 0) | (held == counts))).size:
        raise ValueError(
            f"{index_file}: it must hold out a part of each class, but of class {wrong[0]} it holds out "
            f"{held[wrong[0]]} of {counts[wrong[0]]} images ({wrong.size} such classes)"
        )
    if len(files) != _TRAINING_IMAGES:
        return chosen
    if (wrong := np.flatnonzero(held != PER_CLASS)).size:
        raise ValueError(
            f"{index_file}: the published split holds out {PER_CLASS} images of each class, not {held[wrong[0]]} of "
            f"class {wrong[0]} ({wrong.size} such classes)"
        )
    if not (file := files[np.flatnonzero(chosen)[_CHECK_PLACE]]).endswith(_CHECK_FILE):
        raise ValueError(
            f"{index_file}: held-out image {_CHECK_PLACE} is {file}, in the published split it is {_CHECK_FILE}: the "
            "training files are not those of ImageNet, or have other names"
        )
    return chosen
