"""State the eight image sets of task arithmetic: where their images are, what their classes are called, and how asked.

Ilharco et al., "Editing models with task arithmetic", 2022, arXiv 2212.04089.
"""

import functools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from soups.data.dataset import Dataset, Source, decode
from soups.data.sources import folder_source
from soups.data.splits import split_indices
from soups.data.transforms import center_crop, compose, resize_shorter, to_channels
from soups.files import PathLike, data_path
from soups.formats.text import numbered_lines, read_text
from soups.names import check_name

#: what OpenAI calls the 43 signs of GTSRB, whose folders are 00000 to 00042, in its own spelling
SIGNS = (
    "red and white circle 20 kph speed limit",
    "red and white circle 30 kph speed limit",
    "red and white circle 50 kph speed limit",
    "red and white circle 60 kph speed limit",
    "red and white circle 70 kph speed limit",
    "red and white circle 80 kph speed limit",
    "end / de-restriction of 80 kph speed limit",
    "red and white circle 100 kph speed limit",
    "red and white circle 120 kph speed limit",
    "red and white circle red car and black car no passing",
    "red and white circle red truck and black car no passing",
    "red and white triangle road intersection warning",
    "white and yellow diamond priority road",
    "red and white upside down triangle yield right-of-way",
    "stop",
    "empty red and white circle",
    "red and white circle no truck entry",
    "red circle with white horizonal stripe no entry",
    "red and white triangle with exclamation mark warning",
    "red and white triangle with black left curve approaching warning",
    "red and white triangle with black right curve approaching warning",
    "red and white triangle with black double curve approaching warning",
    "red and white triangle rough / bumpy road warning",
    "red and white triangle car skidding / slipping warning",
    "red and white triangle with merging / narrow lanes warning",
    "red and white triangle with person digging / construction / road work warning",
    "red and white triangle with traffic light approaching warning",
    "red and white triangle with person walking warning",
    "red and white triangle with child and person walking warning",
    "red and white triangle with bicyle warning",
    "red and white triangle with snowflake / ice warning",
    "red and white triangle with deer warning",
    "white circle with gray strike bar no speed limit",
    "blue circle with white right turn arrow mandatory",
    "blue circle with white left turn arrow mandatory",
    "blue circle with white forward arrow mandatory",
    "blue circle with white forward or right turn arrow mandatory",
    "blue circle with white forward or left turn arrow mandatory",
    "blue circle with white keep right arrow mandatory",
    "blue circle with white keep left arrow mandatory",
    "blue circle with white arrows indicating a traffic circle",
    "white circle with gray strike bar indicating no passing for cars has ended",
    "white circle with gray strike bar indicating no passing for trucks has ended",
)
#: what it calls the folders of EuroSAT
LAND = {
    "AnnualCrop": "annual crop land",
    "Forest": "forest",
    "HerbaceousVegetation": "brushland or shrubland",
    "Highway": "highway or road",
    "Industrial": "industrial buildings or commercial buildings",
    "Pasture": "pasture land",
    "PermanentCrop": "permanent crop land",
    "Residential": "residential buildings or homes or apartments",
    "River": "river",
    "SeaLake": "lake or sea",
}


class ClipSet(NamedTuple):
    """State an image set: its prompts, the folders class/file that train and test, and the name of a folder's class.

    Where `lists` are given, files that name images, one a line, say which of a folder's images belong to each part.
    """

    templates: tuple[str, ...]
    train: str
    test: str
    name: Callable[[str], str]
    lists: tuple[str, str] | None = None


def _spaced(folder: str) -> str:
    return folder.replace("_", " ")


def _of_scene(folder: str) -> str:
    return _spaced(folder[2:])  # SUN397 begins its names with the letter that they begin with, as in "a_abbey"


def _of_land(folder: str) -> str:
    check_name(folder, LAND, "folder of EuroSAT")
    return LAND[folder]


def _of_sign(folder: str) -> str:
    if not folder.isdecimal() or int(folder) >= len(SIGNS):
        raise ValueError(f"folders of GTSRB are 00000 to {len(SIGNS) - 1:05d}, not {folder!r:.100}")
    return SIGNS[int(folder)]


def _forms(begin: str, *what: str) -> tuple[str, ...]:
    return tuple(f"{begin} {one}" for one in what)


_CAR = _forms("a photo of", "a {}.", "the {}.", "my {}.")
_CAR += ("i love my {}!", *_forms("a photo of my", "dirty {}.", "clean {}.", "new {}.", "old {}."))
_THINGS = ("texture", "pattern", "thing", "object")
_VIEWS = ("satellite imagery", "aerial imagery", "satellite photo", "aerial photo", "satellite view", "aerial view")
_NUMBER = ('a photo of the number: "{}".',)
#: the sets, with the prompts that are published for them
CLIP_SETS = {
    "Cars": ClipSet(_CAR, "stanford_cars_folder_based/train", "stanford_cars_folder_based/test", _spaced),
    "DTD": ClipSet(
        tuple(f"a photo of {article} {{}} {thing}." for article in ("a", "the") for thing in _THINGS),
        "dtd/train",
        "dtd/val",
        _spaced,
    ),
    "EuroSAT": ClipSet(
        _forms("a centered satellite photo of", "{}.", "a {}.", "the {}."),
        "EuroSAT_splits/train",
        "EuroSAT_splits/test",
        _of_land,
    ),
    "GTSRB": ClipSet(
        tuple(f'a {how} photo of a "{{}}" traffic sign.' for how in ("zoomed in", "centered", "close up")),
        "gtsrb/train",
        "gtsrb/test",
        _of_sign,
    ),
    "MNIST": ClipSet(_NUMBER, "mnist/train", "mnist/test", _spaced),
    "RESISC45": ClipSet(
        tuple(f"{view} of {article}{{}}." for article in ("", "a ", "the ") for view in _VIEWS),
        "resisc45/NWPU-RESISC45",
        "resisc45/NWPU-RESISC45",
        _spaced,
        ("resisc45/resisc45-train.txt", "resisc45/resisc45-test.txt"),
    ),
    "SUN397": ClipSet(_forms("a photo of", "a {}.", "the {}."), "sun397/train", "sun397/val", _of_scene),
    "SVHN": ClipSet(_NUMBER, "svhn/train", "svhn/test", _spaced),
}


class ClipTask(NamedTuple):
    """Hold a set's parts, the names of its classes as prompts say them, and its prompts."""

    class_names: tuple[str, ...]
    train: Dataset
    held_out: Dataset
    test: Dataset
    templates: tuple[str, ...]


def load_clip_set(
    data_dir: PathLike,
    name: str,
    *,
    image_size: int,
    most: int,
    most_held_out: int,
    most_test: int,
    seed: int = 0,
) -> ClipTask:
    """Read one of `CLIP_SETS` from a folder with all of them, as uint8 images of CLIP's centre crop.

    Args:
        most, most_held_out: so many images of the training part train, and so many others select, drawn with the seed.
        most_test: so many of the test part report, drawn with seed 0.

    Raises:
        FileNotFoundError: no such folder, or no list of its images.
        ValueError: an unknown set; folders that are no classes of it, or differ between its parts; too few images.
    """
    check_name(name, CLIP_SETS, "set")
    chosen, folder = CLIP_SETS[name], data_path(data_dir)
    read = compose(to_channels(3), resize_shorter(image_size), center_crop(image_size))
    sources = [folder_source(folder / part) for part in (chosen.train, chosen.test)]
    if sources[0].class_names != sources[1].class_names:
        raise ValueError(f"{name}: {folder / chosen.train} and {folder / chosen.test} have different class folders")
    rows = [_listed(source, folder, chosen, part) for part, source in enumerate(sources)]
    labels = [np.asarray(source.labels)[own] for source, own in zip(sources, rows, strict=True)]
    sizes = {"held_out": most_held_out, "train": max(1, min(most, len(rows[0]) - most_held_out))}
    parts = split_indices(labels[0], sizes, seed)
    test = split_indices(labels[1], {"test": min(most_test, len(rows[1]))}, 0)
    load = functools.partial(decode, transform=read)
    found = {split: load(sources[0], indices=rows[0][own]) for split, own in parts.items()}
    found |= {split: load(sources[1], indices=rows[1][own]) for split, own in test.items()}
    return ClipTask(tuple(map(chosen.name, sources[0].class_names)), **found, templates=chosen.templates)


def _listed(source: Source, folder: pathlib.Path, chosen: ClipSet, part: int) -> np.ndarray:
    """Return the indices of the images of a part."""
    if chosen.lists is None:
        return np.arange(len(source))
    path = folder / chosen.lists[part]
    names = {line.strip() for _, line in numbered_lines(read_text(path))}
    found = [index for index, file in enumerate(source.files) if file.rpartition("/")[2] in names]
    if not found:
        raise ValueError(f"{path} names none of the images")
    return np.array(found)
