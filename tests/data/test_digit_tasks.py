"""Test the tasks that are made of digits: labels, images, splits, and what users do wrong."""

import numpy as np
import pytest

from soups.data import decode, tfds_source
from soups.data.digit_tasks import CORRUPTIONS, TASKS, tasks_from_digits
from soups.data.transforms import compose, resize, to_channels

SIZES = {"image_size": 14, "num_train": 60, "num_held_out": 40, "num_test": 50, "num_pretraining": 30}


@pytest.fixture(scope="module")
def made(digits_dir):
    """Return all tasks and the dataset to pre-train on."""
    return tasks_from_digits(list(TASKS), **SIZES, seed=3, data_dir=digits_dir)


@pytest.fixture(scope="module")
def digits_by_image(digits_dir):
    """Return the digits that each image of the sources may show, by its bytes."""
    known = {}
    for source in ("mnist_5k", "optdigits"):
        every = decode(tfds_source(source, "train", data_dir=digits_dir), compose(resize(14), to_channels(1)))
        for image, label in zip(every.images, every.labels, strict=True):
            known.setdefault(image.tobytes(), set()).add((source, int(label)))
    return known


LOOPS = {0: 1, 1: 0, 2: 0, 3: 0, 4: 1, 5: 0, 6: 1, 7: 0, 8: 2, 9: 1}


@pytest.mark.parametrize(
    ("task", "source", "of_digit"),
    [
        ("digit", "mnist_5k", lambda digit: digit),
        ("parity", "mnist_5k", lambda digit: digit % 2),
        ("loops", "mnist_5k", LOOPS.get),
        ("magnitude", "mnist_5k", lambda digit: 1 if digit >= 5 else 0),
        ("optdigits", "optdigits", lambda digit: digit),
    ],
)
def test_labels_follow_from_the_digit(made, digits_by_image, task, source, of_digit):
    for split in ("train", "held_out", "test"):
        dataset = getattr(made[0][task], split)
        assert len(dataset) == SIZES[f"num_{split}"]
        for image, label in zip(dataset.images, dataset.labels, strict=True):
            assert (source, label) in {(where, of_digit(digit)) for where, digit in digits_by_image[image.tobytes()]}


def test_source_of_an_image(made, digits_by_image):
    dataset = made[0]["source"].train
    assert np.bincount(dataset.labels).tolist() == [30, 30]
    for image, label in zip(dataset.images, dataset.labels, strict=True):
        assert {where for where, _ in digits_by_image[image.tobytes()]} == {("mnist_5k", "optdigits")[label]}


def test_rotation_turns_an_image_of_the_source(made):
    upright, turned = made[0]["digit"].test, made[0]["rotation"].test
    assert set(turned.labels) == {0, 1, 2, 3}
    for before, after, quarters in zip(upright.images, turned.images, turned.labels, strict=True):
        expected = before[:, :, 0].astype(int)
        for _ in range(quarters):
            expected = expected.T[::-1]  # a quarter turn to the left
        np.testing.assert_array_equal(after[:, :, 0], expected)


def test_corruption_leaves_only_the_first_class_alone(made):
    clean, corrupted = made[0]["digit"].test, made[0]["corruption"].test
    same = (clean.images == corrupted.images).all(axis=(1, 2, 3))
    assert made[0]["corruption"].class_names == CORRUPTIONS
    np.testing.assert_array_equal(same, corrupted.labels == 0)
    assert np.bincount(corrupted.labels).tolist() == [9, 9, 8, 8, 8, 8]
    for family, change in (("noise", 1), ("impulse_noise", 1), ("blur", -1), ("contrast", -1)):
        chosen = corrupted.labels == CORRUPTIONS.index(family)
        before, after = (
            np.abs(np.diff(x[chosen].astype(float), axis=1)).mean() for x in (clean.images, corrupted.images)
        )
        assert np.sign(after - before) == change, family


def test_no_image_to_pre_train_on_is_in_a_task(made):
    tasks, pretraining = made
    assert len(pretraining) == SIZES["num_pretraining"]
    used = {image.tobytes() for name in ("digit", "optdigits", "source") for s in ("train", "held_out", "test")
            for image in getattr(tasks[name], s).images}  # fmt: skip
    assert not used & {image.tobytes() for image in pretraining.images}


def test_seeds_change_all_but_the_test_images(made, digits_dir):
    other, _ = tasks_from_digits(list(TASKS), **SIZES, seed=4, data_dir=digits_dir)
    for name, task in made[0].items():
        np.testing.assert_array_equal(task.test.images, other[name].test.images)
        np.testing.assert_array_equal(task.test.labels, other[name].test.labels)
        assert not np.array_equal(task.train.images, other[name].train.images)


@pytest.mark.parametrize(
    ("names", "sizes", "message"),
    [
        (["digit"], {}, "at least two tasks are needed, not 1"),
        (["digit", "parity", "digit"], {}, "a task is named twice"),
        (["digit", "partiy"], {}, "unknown task 'partiy' .did you mean 'parity'"),
        (["digit", "parity"], {"num_train": 1800}, "1890 images are needed of optdigits, .* it has 1797"),
        (["digit", "parity"], {"num_pretraining": 7000}, "need 7000 examples, but there are only"),
    ],
    ids=["one task", "twice", "misspelt", "too many images", "too many to pre-train on"],
)
def test_what_users_do_wrong(digits_dir, names, sizes, message):
    with pytest.raises(ValueError, match=message):
        tasks_from_digits(names, **SIZES | sizes, seed=0, data_dir=digits_dir)
