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


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("folder_to_objectnet_label.json", "[]", "is not a JSON object"),
        ("objectnet_to_imagenet_1k.json", '{"Mug": 2}', "the value of 'Mug' must be text"),
        ("pytorch_to_imagenet_2012_id.json", '{"1": "2"}', "the value of '1' must be a number"),
        ("pytorch_to_imagenet_2012_id.json", '{"one": 2}', "files do not fit together"),
        ("imagenet_to_label_2012_v2", "\xff", "files do not fit together"),
    ],
)
def test_content_of_another_kind(name, content, message, mappings):
    (mappings / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        object_groups(mappings, 12)
    (mappings / name).write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(ValueError, match=f"{name} is not text in UTF-8"):
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
