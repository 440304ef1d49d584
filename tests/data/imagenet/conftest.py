"""Lay out a tiny ImageNet as the sets are released: the colour of each image says which one it is."""

import json
import pathlib
import shutil
import types

import numpy as np
import PIL.Image
import pytest

CLASSES = tuple(f"n{1000 + 7 * place:08d}" for place in range(12))  # above ten, so that "10" sorts before "2"
SUBSETS = {"imagenet-r": (1, 4, 10), "imagenet-a": (4, 11)}
OBJECTS = {"Zebra toy": (10,), "Alarm clock": (3, 7), "Mug": (2,)}  # "Mug" lies in the folder "a_mug"
FOLDERS = {"zebra_toy": "Zebra toy", "alarm_clock": "Alarm clock", "a_mug": "Mug", "unknown_thing": "Unknown thing"}


def color(set_number: int, place: int, number: int) -> tuple[int, int, int]:
    """Return the colour of an image: far enough apart that JPEG keeps them distinct."""
    return (20 * place + 10, 30 * set_number + 10, 40 * number + 10)


def save(path: pathlib.Path, rgb, size=(12, 10)) -> None:
    """Write an image of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", size, rgb).save(path, quality=95)


def identify(image: np.ndarray) -> tuple[int, int, int]:
    """Return (set number, place of the class, number) of a decoded image."""
    red, green, blue = (image.reshape(-1, 3).mean(0) - 10) / (20, 30, 40)
    return round(green), round(red), round(blue)


def write_mappings(folder: pathlib.Path) -> None:
    """Write ObjectNet's four files: line i of the labels is class (i + 5) mod 12, called "name P"."""
    folder.mkdir(parents=True)
    labels = [f"name {(line + 5) % 12}" for line in range(12)]
    (folder / "imagenet_to_label_2012_v2").write_text("\n".join(labels) + "\n")
    ids = {str((line + 5) % 12): line for line in range(12)}
    names = {label: "; ".join(f"name {place}" for place in places) for label, places in OBJECTS.items()}
    for file, content in {
        "pytorch_to_imagenet_2012_id.json": ids,
        "folder_to_objectnet_label.json": FOLDERS,
        "objectnet_to_imagenet_1k.json": names,
    }.items():
        (folder / file).write_text(json.dumps(content))


def write_imagenet(data_dir: pathlib.Path) -> None:
    """Write all sets: 4 training images of each class, one of all others."""
    for place, wordnet_id in enumerate(CLASSES):
        for number in range(4):
            save(data_dir / "imagenet/train" / wordnet_id / f"{wordnet_id}_{number}.JPEG", color(0, place, number))
        save(data_dir / "imagenet/val" / wordnet_id / f"ILSVRC2012_val_{place:08d}.JPEG", color(1, place, 0))
        save(data_dir / "imagenetv2-matched-frequency-format-val" / str(place) / "0.jpeg", color(2, place, 0))
        save(data_dir / "sketch" / wordnet_id / "sketch_0.JPEG", color(3, place, 0))
    for set_number, (folder, places) in enumerate(SUBSETS.items(), start=4):
        for place in places:
            save(data_dir / folder / CLASSES[place] / "0.jpg", color(set_number, place, 0))
        (data_dir / folder / "README.txt").write_text("released with the images")
    for folder, label in FOLDERS.items():
        place = OBJECTS.get(label, (0,))[0]
        save(data_dir / "objectnet-1.0/images" / folder / "0.png", color(6, place, 0))
    write_mappings(data_dir / "objectnet-1.0/mappings")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Return a tiny ImageNet: `path`, which tests leave as it is, and what its images are made of."""
    path = tmp_path_factory.mktemp("imagenet")
    write_imagenet(path)
    return types.SimpleNamespace(path=path, classes=CLASSES, color=color, save=save, identify=identify)


@pytest.fixture
def own(tiny, tmp_path):
    """Return a copy of it that the test may change."""
    shutil.copytree(tiny.path, tmp_path / "data")
    return tmp_path / "data"
