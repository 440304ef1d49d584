"""ImageNet's sets as sources: layouts, classes, groups, what is missing and what does not match."""

import pickle
import shutil

import numpy as np
import pytest

from soups.data import decode, project_logits, resize
from soups.data.imagenet import SETS, held_out_split, imagenet_sources, train_source
from soups.data.sources import class_folders


def _identities(tiny, source):
    return [tiny.identify(source[index]["image"]) for index in range(len(source))]


# --- What is opened -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "number"), [("imagenet", 1), ("imagenet_v2", 2), ("imagenet_sketch", 3)])
def test_sets_of_all_classes(tiny, name, number):
    source = imagenet_sources(tiny.path, [name])[name]
    assert source.class_names == tiny.classes
    assert source.class_groups is None
    assert _identities(tiny, source) == [(number, place, 0) for place in range(12)]
    assert source.labels.tolist() == list(range(12)) == [source[index]["label"] for index in range(12)]


def test_integer_folders_are_sorted_as_integers(tiny):
    source = imagenet_sources(tiny.path, ["imagenet_v2"])["imagenet_v2"]
    assert source.files == [f"{place}/0.jpeg" for place in range(12)]


@pytest.mark.parametrize(("name", "number", "places"), [("imagenet_r", 4, (1, 4, 10)), ("imagenet_a", 5, (4, 11))])
def test_sets_of_some_classes(tiny, name, number, places):
    source = imagenet_sources(tiny.path, [name])[name]
    assert source.class_names == tuple(tiny.classes[place] for place in places)
    assert source.class_groups == tuple((place,) for place in places)
    assert _identities(tiny, source) == [(number, place, 0) for place in places]
    assert source.labels.tolist() == list(range(len(places)))


def test_objects_are_groups_of_outputs(tiny, rng):
    source = imagenet_sources(tiny.path, ["objectnet"])["objectnet"]
    assert source.class_names == ("a_mug", "alarm_clock", "zebra_toy")  # "unknown_thing" is left out
    assert source.class_groups == ((2,), (3, 7), (10,))
    assert _identities(tiny, source) == [(6, 2, 0), (6, 3, 0), (6, 10, 0)]
    dataset = decode(source, resize(4))
    assert dataset.class_groups == source.class_groups
    logits = rng.normal(size=(5, 12))
    expected = [[row[2], max(row[3], row[7]), row[10]] for row in logits]
    np.testing.assert_array_equal(project_logits(logits, dataset.class_groups), expected)


def test_training_and_held_out_images_are_all_and_apart(tiny):
    train, held_out = train_source(tiny.path), imagenet_sources(tiny.path, ["held_out"])["held_out"]
    assert train.class_names == held_out.class_names == tiny.classes
    found = _identities(tiny, train), _identities(tiny, held_out)
    assert sorted(found[0] + found[1]) == [(0, place, number) for place in range(12) for number in range(4)]
    assert [place for _, place, _ in found[1]] == held_out.labels.tolist() == list(range(12))
    split = held_out_split(tiny.path)
    assert split.kind == "by file name"
    everything = [f"{name}/{name}_{number}.JPEG" for name in tiny.classes for number in range(4)]
    assert held_out.files == [everything[index] for index in split.held_out]
    assert train.files == [everything[index] for index in split.train]


def test_the_index_file_decides(own, tiny):
    values = np.zeros(48)
    values[[4 * place + place % 4 for place in range(12)]] = 1
    np.save(own / "imagenet_98_idxs.npy", values)
    assert held_out_split(own).kind == "published"
    held_out = imagenet_sources(own, ["held_out"])["held_out"]
    assert _identities(tiny, held_out) == [(0, place, place % 4) for place in range(12)]
    assert len(train_source(own)) == 36


def test_every_set_is_opened_in_the_order_asked_for(tiny):
    assert tuple(imagenet_sources(tiny.path)) == SETS
    assert list(imagenet_sources(tiny.path, ["objectnet", "imagenet"])) == ["objectnet", "imagenet"]


def test_a_folder_of_sorted_validation_images_goes_first(own, tiny):
    shutil.copytree(own / "imagenet/val", own / "imagenet/val_in_folder")
    tiny.save(own / "imagenet/val_in_folder" / tiny.classes[0] / "ILSVRC2012_val_00000000.JPEG", tiny.color(1, 0, 4))
    assert tiny.identify(imagenet_sources(own, ["imagenet"])["imagenet"][0]["image"]) == (1, 0, 4)


def test_sources_travel_to_other_processes(tiny):
    source = imagenet_sources(tiny.path, ["objectnet"])["objectnet"]
    copy = pickle.loads(pickle.dumps(source))
    assert (copy.class_groups, copy.files, len(copy)) == (source.class_groups, source.files, 3)
    np.testing.assert_array_equal(copy[1]["image"], source[1]["image"])


def test_stamps_change_with_the_files(own, tiny):
    source = imagenet_sources(own, ["imagenet"])["imagenet"]
    before = source.stamp()
    assert source.take(np.arange(11)).stamp() != before
    assert imagenet_sources(own, ["imagenet"])["imagenet"].stamp() == before
    (own / "imagenet/val" / source.files[3]).write_bytes(b"shorter")
    assert source.stamp() != before


# --- What is wrong ----------------------------------------------------------------------------------------------------


def test_missing_sets_are_all_listed(own):
    for folder in ("imagenet/val", "objectnet-1.0", "imagenetv2-matched-frequency-format-val"):
        shutil.rmtree(own / folder)
    with pytest.raises(FileNotFoundError) as error:
        imagenet_sources(own)
    head, *lines = str(error.value).splitlines()
    assert head == f"ImageNet sets are missing in {own}:"
    assert [line.split(":")[0] for line in lines] == ["  imagenet", "  imagenet_v2", "  objectnet"]
    assert "imagenet/val_in_folder/ or imagenet/val/" in lines[0]
    assert f"`tfds build imagenet2012 --file_format=array_record --data_dir={own}`" in lines[0]
    assert f"`tfds build imagenet_v2/matched-frequency --file_format=array_record --data_dir={own}`" in lines[1]
    assert "objectnet-1.0/images/, with objectnet-1.0/mappings/ beside it" in lines[2]


def test_a_url_is_refused():
    with pytest.raises(ValueError, match="'gs://bucket/data' is a URL: give a local path"):
        imagenet_sources("gs://bucket/data")


def test_missing_training_images(own):
    shutil.rmtree(own / "imagenet")
    for function in (train_source, held_out_split):
        with pytest.raises(FileNotFoundError, match=r"  train: expected in imagenet/train/, or .*imagenet2012 "):
            function(own)
    assert imagenet_sources(own, ["imagenet_v2"])["imagenet_v2"].class_names  # the sketches tell the classes
    shutil.rmtree(own / "sketch")
    with pytest.raises(FileNotFoundError, match=r"list of classes.*imagenet/train, .*imagenet/val, sketch, or from"):
        imagenet_sources(own, ["imagenet_v2"])


def test_sets_are_checked_by_name(tiny):
    with pytest.raises(ValueError, match=r"unknown ImageNet set 'imagenet_v3' .did you mean 'imagenet_v2'"):
        imagenet_sources(tiny.path, ["imagenet", "imagenet_v3"])
    with pytest.raises(ValueError, match="no ImageNet sets were asked for"):
        imagenet_sources(tiny.path, [])


def test_class_folders_that_do_not_match_are_all_listed(own, tiny):
    shutil.rmtree(own / "imagenet/val" / tiny.classes[2])
    tiny.save(own / "sketch" / "n00000005" / "0.jpg", (0, 0, 0))
    shutil.move(own / "imagenetv2-matched-frequency-format-val/11", own / "imagenetv2-matched-frequency-format-val/12")
    tiny.save(own / "imagenet-a" / "n00000006" / "0.jpg", (0, 0, 0))
    shutil.rmtree(own / "objectnet-1.0/images/a_mug")
    with pytest.raises(ValueError, match="class folders do not match the 12 classes n00001000 … n00001077") as error:
        imagenet_sources(own)
    assert str(error.value).splitlines()[1:] == [
        f"  imagenet: - {tiny.classes[2]}",
        "  imagenet_v2: - 11; + 12",
        "  imagenet_sketch: + n00000005",
        "  objectnet: - a_mug",
        "  imagenet_a: + n00000006",
    ]


def test_folders_that_are_no_wordnet_ids(own):
    (own / "imagenet/train/tench").mkdir()
    with pytest.raises(ValueError, match=r"imagenet/train: .* WordNet ids such as n01440764, but there are tench"):
        imagenet_sources(own, ["imagenet"])
    for folder in class_folders(own / "imagenet/train"):
        shutil.rmtree(own / "imagenet/train" / folder)
    with pytest.raises(ValueError, match=r"WordNet ids such as n01440764, but there are none"):
        imagenet_sources(own, ["imagenet"])


def test_a_class_without_images(own, tiny):
    (own / "sketch" / tiny.classes[5] / "sketch_0.JPEG").unlink()
    with pytest.raises(
        ValueError, match=rf"sketch: no images directly in the class folders {tiny.classes[5]} \(1 of 12\)"
    ):
        imagenet_sources(own)
