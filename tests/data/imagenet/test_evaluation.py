"""All sets decoded: what evaluation gets, and what a report has to say about it."""

import contextlib
import dataclasses

import numpy as np
import PIL.Image
import pytest

from soups.data.imagenet import PUBLISHED_SIZES, SETS, count_notes, evaluation_sets


@pytest.fixture(scope="module")
def datasets(tiny, tmp_path_factory):
    return evaluation_sets(tiny.path, tmp_path_factory.mktemp("cache"), image_size=8)


def test_all_sets_are_decoded(datasets, tiny):
    assert tuple(datasets) == SETS
    for dataset in datasets.values():
        assert dataset.images.shape == (len(dataset), 8, 8, 3)
    assert [tiny.identify(image)[:2] for image in datasets["imagenet_v2"].images] == [(2, place) for place in range(12)]
    assert datasets["imagenet_r"].class_groups == ((1,), (4,), (10,))
    assert datasets["objectnet"].class_groups == ((2,), (3, 7), (10,))
    assert datasets["objectnet"].labels.tolist() == [0, 1, 2]
    assert datasets["imagenet"].class_names == tiny.classes
    digests = {dataset.digest for dataset in datasets.values()}
    assert len(digests) == 7


def test_part_of_a_set_is_a_plain_dataset(datasets):
    part = datasets["objectnet"].take([2, 0])
    np.testing.assert_array_equal(part.images, datasets["objectnet"].images[[2, 0]])
    assert (part.labels.tolist(), part.class_groups) == ([2, 0], datasets["objectnet"].class_groups)
    assert not hasattr(part, "digest")


def test_notes_on_counts_and_on_the_split(datasets):
    notes = count_notes(datasets)
    assert len(notes) == 8
    assert notes[0] == "held_out has 12 images, the published set has 26,000"
    assert notes[1].startswith("held_out: chosen by file name, because imagenet_98_idxs.npy is missing")
    assert "imagenet_sketch has 12 images, the published set has 50,889" in notes
    # sizes of the published sets and other names give none
    sizes = {name: range(size) for name, size in PUBLISHED_SIZES.items()}
    assert count_notes({**sizes, "mine": range(3)}) == []


def test_the_published_split_needs_no_note(own, tmp_path):
    np.save(own / "imagenet_98_idxs.npy", np.tile([1, 0, 0, 0], 12))
    dataset = evaluation_sets(own, tmp_path / "cache", image_size=8, sets=["held_out"])["held_out"]
    assert dataset.notes == ()


def test_progress_and_the_cache(tiny, tmp_path):
    reports = []

    @contextlib.contextmanager
    def progress(what, total, unit):
        reports.append([what, total, unit])
        yield reports[-1].append

    first = evaluation_sets(tiny.path, tmp_path, image_size=8, sets=["imagenet", "imagenet_a"], progress=progress)
    assert reports == [["decode imagenet", 12, "images", 12], ["decode imagenet_a", 2, "images", 2]]
    again = evaluation_sets(tiny.path, tmp_path, image_size=8, sets=["imagenet"], progress=progress)
    assert len(reports) == 2
    assert again["imagenet"].digest == first["imagenet"].digest
    evaluation_sets(tiny.path, tmp_path, image_size=6, sets=["imagenet"], progress=progress)
    assert len(reports) == 3


def test_corrupt_images_of_all_sets_are_listed_or_counted(own, tiny, tmp_path):
    broken = [own / "imagenet/val" / tiny.classes[4] / "ILSVRC2012_val_00000004.JPEG", own / "sketch" / tiny.classes[2]]
    broken[1] = broken[1] / "sketch_0.JPEG"
    for path in broken:
        path.write_bytes(path.read_bytes()[:-40])
    sets = ["imagenet", "imagenet_v2", "imagenet_sketch"]
    with pytest.raises(ValueError, match="1 images cannot be read") as error:
        evaluation_sets(own, tmp_path / "cache", image_size=8, sets=sets)
    lines = str(error.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "imagenet",
        f"  {broken[0]}",
        "imagenet_sketch",
        f"  {broken[1]}",
    ]
    counted = evaluation_sets(own, tmp_path / "cache", image_size=8, sets=sets, on_corrupt="count")
    assert [len(dataset) for dataset in counted.values()] == [11, 12, 11]
    assert counted["imagenet"].labels.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]
    assert counted["imagenet"].notes[0].startswith(f"1 images cannot be read and are left out: {broken[0]}: cannot be")
    assert f"imagenet: {counted['imagenet'].notes[0]}" in count_notes(counted)
    # a cache without them is no answer to someone who did not ask for that
    with pytest.raises(ValueError, match=f"imagenet: 1 images cannot be read .*\n  {broken[0]}"):
        evaluation_sets(own, tmp_path / "cache", image_size=8, sets=sets)


def test_the_red_border_of_objectnet_is_cut_on_demand(own, tiny, tmp_path):
    path = own / "objectnet-1.0/images/a_mug/0.png"
    with_border = np.full((12, 12, 3), (255, 0, 0), np.uint8)
    with_border[2:-2, 2:-2] = 90
    PIL.Image.fromarray(with_border).save(path)
    options = {"image_size": 8, "sets": ["objectnet", "imagenet"]}
    plain = evaluation_sets(own, tmp_path / "cache", **options)
    cut = evaluation_sets(own, tmp_path / "cache", **options, crop_objectnet_border=True)
    np.testing.assert_array_equal(cut["objectnet"].images[0], 90)
    assert plain["objectnet"].images[0, 0, 0].tolist() != [90, 90, 90]
    assert cut["imagenet"].digest == plain["imagenet"].digest
    assert (plain["objectnet"].notes, cut["imagenet"].notes) == ((), ())
    assert "a border of 2 pixels is cut off" in cut["objectnet"].notes[0]


def test_choices_are_checked_first(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"unknown way with corrupt images 'skip'; there are: count, raise"):
        evaluation_sets(tiny.path, tmp_path / "cache", image_size=8, on_corrupt="skip")
    assert not (tmp_path / "cache").exists()


def test_an_evaluation_set_is_a_dataset(datasets):
    replaced = dataclasses.replace(datasets["imagenet"], notes=("x",))
    assert count_notes({"imagenet": replaced})[1] == "imagenet: x"
    with pytest.raises(ValueError, match="not a valid dataset"):
        dataclasses.replace(datasets["imagenet"], labels=datasets["imagenet"].labels + 1)
