"""Open ImageNet's sets as sources, with the classes of the training images and the held-out ones apart."""

import pathlib
from collections.abc import Sequence

import numpy as np

from soups.data.imagenet import layouts
from soups.data.imagenet.classes import check_classes, folder_classes, single_groups, training_classes
from soups.data.imagenet.held_out import BY_NAME, PUBLISHED, HeldOutSplit, split_files
from soups.data.imagenet.layouts import SETS, locate
from soups.data.imagenet.tfds_sets import open_tfds
from soups.data.sources import View, folder_source
from soups.files import PathLike


def imagenet_sources(
    data_dir: PathLike, sets: Sequence[str] = SETS, *, cache_dir: PathLike | None = None
) -> dict[str, View]:
    """Open sets by name, in the layouts that `soups.data.imagenet.layouts` lists.

    Class names are the WordNet ids of the training classes. A set with other classes has `class_groups`: ImageNet-R
    and -A one output for each of their (200) classes, ObjectNet one or several for each of its (113) objects that are
    in ImageNet; images of other objects are left out. Every source has `files`, "class/file" for each example, and
    lists its examples by class and file name. "held_out" is the part of the training images that `held_out_split`
    sets aside. `cache_dir` keeps the file names of sets that TFDS prepared.

    Raises:
        FileNotFoundError: sets are missing; all are listed, each with the folder that was expected or the command that
            makes it.
        ValueError: an unknown set; class folders that do not match, all of them listed; an index file that does not fit
            the images.
    """
    places, classes = locate(data_dir, sets), training_classes(data_dir)
    check_classes(data_dir, places, classes)
    return {name: _open(data_dir, name, path, classes, cache_dir) for name, path in places.items()}


def train_source(data_dir: PathLike, *, cache_dir: PathLike | None = None) -> View:
    """Open the training images without the held-out ones; errors are those of `imagenet_sources`."""
    view = imagenet_sources(data_dir, ["train"], cache_dir=cache_dir)["train"]
    return view.take(_split(data_dir, view).train)


def held_out_split(data_dir: PathLike, *, cache_dir: PathLike | None = None) -> HeldOutSplit:
    """Say which training images are held out: by the published index file in `data_dir`, otherwise by file name.

    The file is imagenet_98_idxs.npy of github.com/mlfoundations/model-soups; `split_files` has the rules, and
    `imagenet_sources` the errors.
    """
    return _split(data_dir, imagenet_sources(data_dir, ["train"], cache_dir=cache_dir)["train"])


def held_out_kind(data_dir: PathLike) -> str:
    """Say how the images are held out, "published" or "by file name", without a look at them."""
    return PUBLISHED if _index_file(data_dir) else BY_NAME


def _split(data_dir, view):
    return split_files(view.files, view.labels, _index_file(data_dir))


def _index_file(data_dir):
    path = pathlib.Path(data_dir, layouts.INDEX_FILE)
    return path if path.exists() else None


def _open(data_dir, name, path, classes, cache_dir):
    if path is None:
        view = _tfds_view(data_dir, name, classes, cache_dir)
    else:
        folders, class_names, groups = folder_classes(data_dir, name, path, classes)
        source = folder_source(path, folders, upright=False)  # as the published numbers are made
        view = View(source, np.arange(len(source)), source.labels, class_names, groups)
    return view.take(_split(data_dir, view).held_out) if name == "held_out" else view


def _tfds_view(data_dir, name, classes, cache_dir):
    view = open_tfds(name, data_dir, classes, cache_dir)
    if name not in ("imagenet_r", "imagenet_a"):
        return view
    # TFDS gives them the labels of all of ImageNet's classes
    found, labels = np.unique(view.labels, return_inverse=True)
    names = tuple(classes[place] for place in found)
    return View(view.source, view.indices, labels.astype(np.int32), names, single_groups(names, classes))
