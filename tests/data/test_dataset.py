"""Datasets, decoding, class groups and tasks."""

import dataclasses
import threading

import numpy as np
import pytest

from soups.data import (
    Dataset,
    Task,
    array_source,
    as_dataset,
    decode,
    folder_source,
    pair_of,
    project_logits,
    resize,
    to_channels,
)

NAMES = ("cat", "dog", "owl")


def _dataset(rng, count=12, side=4, names=NAMES, **changes):
    images = rng.integers(0, 256, (count, side, side, 1), dtype=np.uint8)
    labels = np.arange(count, dtype=np.int32) % len(names)
    return Dataset(**{"images": images, "labels": labels, "class_names": names, **changes})


class Records:
    """Count the reads of every example."""

    def __init__(self, images, class_names=NAMES):
        self.images, self.class_names = images, class_names
        self.reads = [0] * len(images)
        self._lock = threading.Lock()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        with self._lock:
            self.reads[index] += 1
        return {"image": self.images[index], "label": index % 3}


def test_a_dataset_is_a_source(rng):
    dataset = _dataset(rng)
    assert len(dataset) == 12
    assert dataset[4]["label"] == 1
    np.testing.assert_array_equal(dataset[4]["image"], dataset.images[4])
    assert len(list(dataset)) == 12  # iteration by index ends


def test_take_keeps_order_names_and_groups(rng):
    dataset = _dataset(rng, class_groups=((0,), (1,), (2, 5)))
    part = dataset.take([7, 2])
    np.testing.assert_array_equal(part.images, dataset.images[[7, 2]])
    assert part.labels.tolist() == [1, 2]
    assert (part.class_names, part.class_groups) == (dataset.class_names, dataset.class_groups)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((12, 4, 4, 1), np.float32)}, r"images must be uint8 \[N, H, W, C\], not float32"),
        ({"images": np.zeros((12, 4, 4), np.uint8)}, r"images must be uint8 .*\[12, 4, 4\]"),
        ({"labels": np.zeros(12, np.float32)}, r"labels must be integers \[N\], not float32 \[12\]: give .*astype"),
        ({"labels": [0, 1, 2] * 4}, r"labels must be a NumPy array: soups\.data\.as_dataset takes"),
        ({"images": [], "labels": None}, r"images must be a NumPy array.*\n  labels must be"),
        ({"labels": np.full(12, 2**32)}, r"12 labels are not in 0\.\.2, .* labels\[0\] = 4294967296"),
        ({"labels": np.zeros((12, 3), np.int32)}, r"labels must be integers \[N\], not int32 \[12, 3\]"),
        ({"labels": np.zeros(11, np.int32)}, "12 images, but 11 labels"),
        ({"labels": np.array([0] * 9 + [3, -1, 1], np.int32)}, r"2 labels are not in 0..2, .* labels\[9\] = 3"),
        (
            {"images": np.zeros((0, 4, 4, 1), np.uint8), "labels": np.zeros(0, np.int32)},
            r"images of shape .* are empty",
        ),
        ({"class_names": ("cat",), "labels": np.zeros(12, np.int32)}, "at least 2 classes, not 1"),
        ({"class_groups": ((0,), (1,))}, "2 class groups for 3 classes"),
        ({"class_groups": ((0,), (1,), ())}, "at least one output"),
        ({"class_groups": ((0,), (1,), (-1,))}, "at least one output"),
    ],
)
def test_invalid_datasets(rng, changes, message):
    with pytest.raises(ValueError, match=message):
        _dataset(rng, **changes)


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.uint64, ">i4"])
def test_labels_may_be_of_any_integer_dtype(rng, kind):
    dataset = _dataset(rng, labels=np.arange(12).astype(kind) % 3)
    assert dataset.labels.dtype == np.int32 and dataset.labels.tolist() == [0, 1, 2] * 4
    assert dataset[4]["label"] == 1 and len(dataset.take([1, 2])) == 2


BYTES = np.arange(4 * 5 * 6, dtype=np.uint8).reshape(4, 5, 6, 1)


@pytest.mark.parametrize(
    "data",
    [
        {"image": BYTES, "label": np.array([0, 2, 1, 2])},
        {"label": [0, 2, 1, 2], "image": BYTES[..., 0]},
        (BYTES, np.array([0, 2, 1, 2], np.uint64)),
        [BYTES[..., 0], (0, 2, 1, 2)],
    ],
)
def test_data_in_memory_becomes_a_dataset(data):
    dataset = as_dataset(data)
    np.testing.assert_array_equal(dataset.images, BYTES)
    assert dataset.labels.dtype == np.int32 and dataset.labels.tolist() == [0, 2, 1, 2]
    assert dataset.class_names == ("0", "1", "2")
    assert as_dataset(data, NAMES).class_names == NAMES and as_dataset(dataset) is dataset
    pair = tuple(data.values()) if isinstance(data, dict) else data
    if not isinstance(data, dict):
        assert array_source(*pair).labels.tolist() == [0, 2, 1, 2]


LABELS = np.array([0, 2, 1, 2])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (BYTES / np.float32(255), LABELS, r"not float32 .*: give numpy.rint\(255 \* images\).astype\(numpy.uint8\)"),
        (BYTES / 255, LABELS, r"not float64 \[4, 5, 6, 1\]: give numpy.rint"),
        (BYTES.astype(np.float32), LABELS, r"not float32 .*: give images.astype\(numpy.uint8\)"),
        (BYTES.astype(np.int64), LABELS, r"not int64 .*: give images.astype\(numpy.uint8\)"),
        (
            BYTES / 128 - 1.5,
            LABELS,
            r"not float64 .* from -1.5 to -0.57: give the original bytes, .* apply_fn normalise",
        ),
        (BYTES > 3, LABELS, r"images must be uint8 .*, not bool \[4, 5, 6, 1\]$"),
        (BYTES[0], LABELS, "there are 5 images, but 4 labels"),
        (BYTES, LABELS[:, None], r"labels must be integers \[N\], not int64 \[4, 1\]: give labels\[:, 0\]"),
        (BYTES, np.eye(3)[LABELS], r"not float64 \[4, 3\]: give labels.argmax\(1\)"),
        (BYTES, np.eye(3, dtype=np.int64)[LABELS], r"not int64 \[4, 3\]: give labels.argmax\(1\)"),
        (BYTES, LABELS.astype(np.float32), r"not float32 \[4\]: give labels.astype\(int\)"),
        (BYTES, LABELS + 0.5, r"not float64 \[4\]$"),
        (BYTES, LABELS > 1, r"not bool \[4\]$"),
        (BYTES, LABELS.astype(str), r"labels must be integers"),
        (BYTES, LABELS + 1, r"labels count from 0, but these are 1 to 3: give the class_names"),
        (BYTES, LABELS - 1, r"1 labels are not in 0..1, the first is labels\[0\] = -1"),
        (np.uint8(3), LABELS, r"not uint8 \[\]"),
        (BYTES, 2, r"not int64 \[\]"),
        (BYTES, LABELS[:3], "4 images, but 3 labels"),
        (BYTES[:0], LABELS[:0], r"images of shape .* are empty"),
    ],
)
@pytest.mark.parametrize("door", [array_source, lambda images, labels: as_dataset({"image": images, "label": labels})])
def test_data_that_would_train_nonsense_is_refused_with_what_would_be_right(images, labels, message, door):
    with pytest.raises(ValueError, match=message):
        door(images, labels)


@pytest.mark.parametrize("label", [3, -1, 2**32, -(2**32)])
def test_labels_beyond_the_names_are_refused_before_they_are_cast(label):
    with pytest.raises(ValueError, match=rf"1 labels are not in 0..2, the first is labels\[1\] = {label}"):
        as_dataset((BYTES, np.array([0, label, 1, 2])), NAMES)


def test_other_keys_and_kinds_are_named():
    with pytest.raises(
        ValueError, match=r"(?s)must be \"image\" and \"label\".*- image is missing.*'images'.*\+ images is"
    ):
        as_dataset({"images": BYTES, "label": LABELS})
    for data in (BYTES, (BYTES, LABELS, LABELS), None, "set"):
        with pytest.raises(
            ValueError, match=r"must be a pair \(inputs, labels\), .* have images and labels, not a \w+"
        ):
            as_dataset(data)


def test_inputs_and_targets_come_out_of_every_form():
    forms = {"image": BYTES, "label": LABELS}, (BYTES, LABELS), [BYTES, LABELS], array_source(BYTES, LABELS)
    for form in forms:
        inputs, targets = pair_of(form)
        np.testing.assert_array_equal(inputs, BYTES)
        np.testing.assert_array_equal(targets, LABELS)
    assert pair_of(forms[0] | {"index": 1}, others=True)[0] is BYTES
    with pytest.raises(ValueError, match=r"(?s)keys of the batch must be .*index is extra"):
        pair_of(forms[0] | {"index": 1}, "the batch")
    with pytest.raises(ValueError, match=r"the test set must be decoded, which soups.data.decode does, not a Records"):
        pair_of(Records(BYTES), "the test set")


@pytest.mark.parametrize("num_threads", [1, 4, None])
def test_decode_reads_every_example_once_and_in_order(rng, num_threads):
    records = Records(rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8))
    dataset = decode(records, to_channels(1), num_threads=num_threads)
    assert records.reads == [1] * 40
    np.testing.assert_array_equal(dataset.images, [to_channels(1)(image) for image in records.images])
    assert dataset.labels.tolist() == [index % 3 for index in range(40)]
    assert dataset.class_names == NAMES


def test_decode_picks_indices(rng):
    records = Records(rng.integers(0, 256, (9, 8, 8, 3), dtype=np.uint8))
    dataset = decode(records, indices=np.array([7, 0]))
    np.testing.assert_array_equal(dataset.images, records.images[[7, 0]])
    assert sum(records.reads) == 2


def test_decode_of_a_dataset_keeps_its_class_groups(rng):
    dataset = _dataset(rng, class_groups=((0,), (1,), (2, 5)))
    assert decode(dataset, resize(2)).class_groups == dataset.class_groups


def test_decode_errors(rng):
    with pytest.raises(ValueError, match="nothing to decode"):
        decode(_dataset(rng), indices=[])
    ragged = [np.zeros((4, 4, 3), np.uint8), np.zeros((1, 1, 1), np.uint8)]  # the second would broadcast
    with pytest.raises(ValueError, match=r"different shapes, \[4, 4, 3\] and \[1, 1, 1\]"):
        decode(Records(ragged))
    with pytest.raises(ValueError, match="image 0 must be uint8"):
        decode(Records(np.zeros((2, 4, 4, 3), np.float32)))


def test_project_logits_takes_the_maximum_of_each_group(rng):
    logits = rng.standard_normal((5, 7)).astype(np.float32)
    groups = ((3,), (0, 6, 2), (5, 1))
    expected = [[max(row[output] for output in group) for group in groups] for row in logits]
    projected = project_logits(logits, groups)
    assert projected.dtype == np.float32
    np.testing.assert_array_equal(projected, np.array(expected, np.float32))
    np.testing.assert_array_equal(project_logits(logits[0], groups), projected[0])
    singletons = tuple((output,) for output in (1, 4, 6))  # ImageNet-R: a part of the columns
    np.testing.assert_array_equal(project_logits(logits, singletons), logits[:, [1, 4, 6]])
    assert project_logits(logits, None) is logits
    with pytest.raises(ValueError, match="output 7, but there are only 7 logits"):
        project_logits(logits, ((0,), (7,)))


def _task(rng, **changes):
    parts = {"train": _dataset(rng), "held_out": _dataset(rng), "test": _dataset(rng), "shifts": {}}
    return Task(**{"name": "pets", "class_names": NAMES, **parts, **changes})


def test_a_task_takes_shifts_with_other_classes(rng):
    shift = _dataset(rng, names=("pet", "bird"), class_groups=((0, 1), (2,)))
    task = _task(rng, shifts={"same": _dataset(rng), "coarse": shift})
    assert list(task.shifts) == ["same", "coarse"]


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_a_shift_shares_nothing_with_what_trains_or_selects(rng, split):
    task = _task(rng)
    _task(rng, test=task.test, shifts={"same": task.test})
    with pytest.raises(
        ValueError, match=rf"{split} and shift 'seen' share 2 \(first: {split}\[1\] = shift 'seen'\[0\]"
    ):
        _task(rng, **{split: getattr(task, split)}, shifts={"seen": getattr(task, split).take([1, 0])})


def test_a_task_takes_a_source_to_train_on(rng):
    records = Records(rng.integers(0, 256, (9, 8, 8, 3), dtype=np.uint8))
    assert _task(rng, train=records).train is records
    assert sum(records.reads) == 0


def test_a_task_lists_everything_that_does_not_fit(rng):
    with pytest.raises(ValueError) as error:
        _task(
            rng,
            held_out=_dataset(rng, names=("cat", "dog", "eel")),
            test=_dataset(rng, names=("dog", "cat", "owl")),
            train=_dataset(rng, side=5),
            shifts={
                "fewer": _dataset(rng, names=("cat", "dog")),
                "groups": _dataset(rng, names=("pet", "bird"), class_groups=((0, 1), (3,))),
            },
        )
    message = str(error.value)
    assert "held_out has other classes than the task: - owl; + eel" in message
    assert "test has other classes than the task: the same ones in another order" in message
    assert "train has images of shape [5, 5, 1], test has [4, 4, 1]" in message
    assert "shift 'fewer' has other classes than the task: - owl; give class_groups, which say" in message
    assert "shift 'groups' has a class group with output 3, but the task has only 3 classes" in message


def test_a_task_needs_two_classes(rng):
    with pytest.raises(ValueError, match="at least 2 classes, not 1"):
        _task(rng, class_names=("cat",))


@pytest.mark.parametrize("name", ["train", "held_out"])
def test_a_task_refuses_overlapping_splits(rng, name):
    test = _dataset(rng)
    fresh = _dataset(rng)
    images = np.concatenate([fresh.images[:11], test.images[5:6]])
    leaking = dataclasses.replace(fresh, images=images)
    with pytest.raises(ValueError, match=rf"{name} and test share 1 \(first: {name}\[11\] = test\[5\]\)"):
        _task(rng, test=test, **{name: leaking})


def test_a_class_name_stands_there_once(tmp_path):
    images, labels = np.zeros((3, 2, 2, 1), np.uint8), np.arange(3, dtype=np.int32)
    names = ("a", "b", "a")
    for folder in names:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "1.png").touch()
    for make in (
        lambda: array_source(images, labels, names),
        lambda: Dataset(images, labels, names),
        lambda: folder_source(tmp_path, names),
    ):
        with pytest.raises(ValueError, match="class_names holds 'a' more than once"):
            make()
