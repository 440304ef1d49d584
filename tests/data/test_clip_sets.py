"""Read the image sets of task arithmetic: prompts and names as published, parts, and folders that are not theirs."""

import numpy as np
import pytest
from PIL import Image

from soups.data.clip_sets import CLIP_SETS, SIGNS, load_clip_set

SIZES = {"image_size": 8, "most": 6, "most_held_out": 2, "most_test": 5}


def draw(folder, classes, count=4, first=0):
    """Write images of another gray for each class."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(first, first + count):
            pixels = np.full((10, 14, 3), 40 * number + index, np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{name}_{index}.png")


def test_prompts_are_as_many_as_are_published():
    counts = {"Cars": 8, "DTD": 8, "EuroSAT": 3, "GTSRB": 3, "MNIST": 1, "RESISC45": 18, "SUN397": 2, "SVHN": 1}
    assert {name: len(set(one.templates)) for name, one in CLIP_SETS.items()} == counts
    assert all(template.count("{}") == 1 for one in CLIP_SETS.values() for template in one.templates)
    assert CLIP_SETS["Cars"].templates[3:5] == ("i love my {}!", "a photo of my dirty {}.")
    assert CLIP_SETS["DTD"].templates[5] == "a photo of the {} pattern."
    assert CLIP_SETS["RESISC45"].templates[7] == "aerial imagery of a {}."
    assert CLIP_SETS["GTSRB"].templates[2] == 'a close up photo of a "{}" traffic sign.'


@pytest.mark.parametrize(
    ("name", "folder", "expected"),
    [
        ("Cars", "AM_General_Hummer", "AM General Hummer"),
        ("EuroSAT", "SeaLake", "lake or sea"),
        ("GTSRB", "00014", "stop"),
        ("GTSRB", "00042", "white circle with gray strike bar indicating no passing for trucks has ended"),
        ("SUN397", "a_airplane_cabin", "airplane cabin"),
        ("RESISC45", "sea_ice", "sea ice"),
        ("SVHN", "7", "7"),
    ],
)
def test_classes_are_called_as_published(name, folder, expected):
    assert CLIP_SETS[name].name(folder) == expected
    assert len(set(SIGNS)) == 43


def test_parts_are_disjoint_and_test_images_are_those_of_the_published_part(tmp_path):
    draw(tmp_path / "dtd" / "train", ("banded", "dotted"), count=6)
    draw(tmp_path / "dtd" / "val", ("banded", "dotted"), first=10)
    task = load_clip_set(tmp_path, "DTD", **SIZES, seed=1)
    assert task.class_names == ("banded", "dotted") and task.templates == CLIP_SETS["DTD"].templates
    assert [len(task.train), len(task.held_out), len(task.test)] == [6, 2, 5]
    assert task.train.images.shape == (6, 8, 8, 3)
    seen = [set(map(int, part.images[:, 0, 0, 0])) for part in (task.train, task.held_out, task.test)]
    assert not seen[0] & seen[1] and min(value % 40 for value in seen[2]) >= 10


def test_lists_say_which_images_belong_to_a_part(tmp_path):
    draw(tmp_path / "resisc45" / "NWPU-RESISC45", ("airplane", "sea_ice"), count=6)
    for part, numbers in {"train": range(4), "test": range(4, 6)}.items():
        lines = [f"{name}_{number}.png" for name in ("airplane", "sea_ice") for number in numbers]
        (tmp_path / "resisc45" / f"resisc45-{part}.txt").write_text("\n".join(lines))
    task = load_clip_set(tmp_path, "RESISC45", **SIZES)
    assert task.class_names == ("airplane", "sea ice") and len(task.train) == 6 and len(task.test) == 4
    assert {int(value) % 40 for value in task.test.images[:, 0, 0, 0]} == {4, 5}
    (tmp_path / "resisc45" / "resisc45-test.txt").write_text("another.png")
    with pytest.raises(ValueError, match=r"resisc45-test\.txt names none of the images"):
        load_clip_set(tmp_path, "RESISC45", **SIZES)


def test_sets_and_folders_that_are_not_theirs_are_errors(tmp_path):
    with pytest.raises(ValueError, match=r"unknown set 'MINST' \(did you mean 'MNIST'\?\)"):
        load_clip_set(tmp_path, "MINST", **SIZES)
    draw(tmp_path / "EuroSAT_splits" / "train", ("Forest", "Sea"))
    draw(tmp_path / "EuroSAT_splits" / "test", ("Forest", "Sea"))
    with pytest.raises(ValueError, match="unknown folder of EuroSAT 'Sea'"):
        load_clip_set(tmp_path, "EuroSAT", **SIZES)
    draw(tmp_path / "EuroSAT_splits" / "test", ("River",))
    with pytest.raises(ValueError, match=r"EuroSAT: .* have different class folders"):
        load_clip_set(tmp_path, "EuroSAT", **SIZES)
    with pytest.raises(ValueError, match="folders of GTSRB are 00000 to 00042, not 'stop'"):
        CLIP_SETS["GTSRB"].name("stop")
