"""ObjectNet's mapping files: an error for every way in which they can be wrong."""

import json

import pytest

from soups.data.imagenet.objectnet import object_groups


@pytest.fixture
def mappings(own):
    return own / "objectnet-1.0/mappings"


def test_groups_follow_the_folders(mappings):
    groups = object_groups(mappings, 12)
    assert list(groups.items()) == [("a_mug", (2,)), ("alarm_clock", (3, 7)), ("zebra_toy", (10,))]


def test_missing_and_broken_files(mappings):
    (mappings / "objectnet_to_imagenet_1k.json").write_text("{")
    with pytest.raises(ValueError, match=r"objectnet_to_imagenet_1k\.json is not valid JSON"):
        object_groups(mappings, 12)
    for name in ("objectnet_to_imagenet_1k.json", "imagenet_to_label_2012_v2"):
        (mappings / name).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"are missing: objectnet_to_imagenet_1k.json, imagenet_to_label_2012_v2"
    ):
        object_groups(mappings, 12)


def test_names_that_do_not_fit_are_all_listed(mappings):
    objects = {"Mug": "name 2; cup", "Clock": "name 3", "Zebra toy": "name 10"}
    (mappings / "objectnet_to_imagenet_1k.json").write_text(json.dumps(objects))
    with pytest.raises(ValueError) as error:
        object_groups(mappings, 10)
    assert str(error.value).splitlines()[1:] == [
        "  object 'Mug': 'cup' is not one of the 10 classes",
        "  object 'Clock' has no folder",
        "  object 'Zebra toy': 'name 10' is not one of the 10 classes",
    ]
