"""Derive the classes of ImageNet from the data's own folders, and fit the other sets' classes to them."""

import pathlib
import re

from soups.data.dataset import ClassGroups, differing
from soups.data.imagenet import layouts, tfds_sets
from soups.data.imagenet.objectnet import object_groups
from soups.data.sources import class_folders
from soups.names import few, refuse

_WORDNET_ID = re.compile(r"n\d{8}")


def training_classes(data_dir) -> tuple[str, ...]:
    """Return the WordNet ids of the classes, sorted: the order of a classifier's outputs.

    They are the folders of the training images, else of the validation images, else of the sketches, else the labels
    of a set that TFDS prepared. A FileNotFoundError if none is there, a ValueError for folders of other names.
    """
    listed = ("train", "imagenet", "imagenet_sketch")
    for path in (layouts.folder(data_dir, name) for name in listed):
        if path is not None:
            return _wordnet_ids(path)
    for name in layouts.LAYOUTS:
        if layouts.is_present(data_dir, name) and layouts.folder(data_dir, name) is None:
            return tuple(sorted(tfds_sets.label_names(name, data_dir)))
    raise FileNotFoundError(
        f"{data_dir}: the list of classes comes from the folders of one of "
        + ", ".join(path for name in listed for path in layouts.LAYOUTS[name].folders)
        + ", or from a set that TFDS prepared: none of these is there"
    )


def check_classes(data_dir, places: dict[str, pathlib.Path | None], classes: tuple[str, ...]) -> None:
    """Compare the class folders of all sets with the classes, before any image is read.

    A ValueError lists of each set what it lacks (-) and has besides (+).
    """
    problems = (_problem(data_dir, name, path, classes) for name, path in places.items())
    what = f"class folders do not match the {len(classes)} classes {classes[0]} … {classes[-1]}"
    refuse(f"{data_dir}: {what}", filter(None, problems))


def folder_classes(
    data_dir, name: str, path: pathlib.Path, classes: tuple[str, ...]
) -> tuple[list[str], tuple[str, ...], ClassGroups | None]:
    """Return a set's folders in the order of its classes, the classes' names, and groups where they are others."""
    if name == "objectnet":
        groups = object_groups(pathlib.Path(data_dir, layouts.MAPPINGS), len(classes))
        return list(groups), tuple(groups), tuple(groups.values())
    if name == "imagenet_v2":
        return [str(place) for place in range(len(classes))], classes, None
    if name in ("imagenet_r", "imagenet_a"):
        names = tuple(class_folders(path))
        return list(names), names, single_groups(names, classes)
    return list(classes), classes, None


def single_groups(names: tuple[str, ...], classes: tuple[str, ...]) -> ClassGroups:
    """Return each name the group of the one output that bears it."""
    places = {name: place for place, name in enumerate(classes)}
    return tuple((places[name],) for name in names)


def _problem(data_dir, name, path, classes):
    if path is None:
        return _difference(f"{name} (TFDS)", tfds_sets.label_names(name, data_dir), classes)
    found = class_folders(path)
    if name in ("imagenet_r", "imagenet_a"):
        return _difference(name, {*classes, *found}, classes)
    wanted, *_ = folder_classes(data_dir, name, path, classes)
    return _difference(name, found if name != "objectnet" else {*found} & {*wanted}, wanted)


def _difference(name, found, expected):
    return f"{name}: {how}" if (how := differing(found, expected)) else None


def _wordnet_ids(path):
    names = class_folders(path)
    others = [name for name in names if not _WORDNET_ID.fullmatch(name)]
    if others or not names:
        raise ValueError(
            f"{path}: the class folders must be named by WordNet ids such as n01440764, but there are "
            f"{few(others, 10) or 'none'}"
        )
    return tuple(names)
