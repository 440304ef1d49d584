"""The task of the default experiment."""

import pathlib
import runpy

import numpy as np
import pytest

from soups.data import Dataset, check_disjoint, corrupt, digits_task, printed_digits
from soups.studies.named import task_of

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "digits.py"
SIZES = {
    "image_size": 12,
    "num_train": 300,
    "num_held_out": 100,
    "num_test": 200,
    "shifts": {"rotation": [3, 5], "noise": [2]},
    "natural_shift_size": 150,
}


def _contents(dataset):
    return {(image.tobytes(), int(label)) for image, label in zip(dataset.images, dataset.labels, strict=True)}


def _same(a, b):
    return np.array_equal(a.images, b.images) and np.array_equal(a.labels, b.labels)


@pytest.fixture(scope="module")
def plain(digits_dir):
    """Return the task that the sizes alone say, and what is pre-trained on."""
    return digits_task(data_dir=digits_dir, **SIZES)


@pytest.mark.parametrize(
    ("target", "other", "rest"), [("mnist_5k", "optdigits", 1647), ("optdigits", "mnist_5k", 4850)]
)
def test_sizes_names_and_shapes(digits_dir, target, other, rest):
    task, pretrain = digits_task(target=target, data_dir=digits_dir, **SIZES)
    assert (task.name, task.class_names) == (target, tuple("0123456789"))
    assert (len(task.train), len(task.held_out), len(task.test)) == (300, 100, 200)
    assert {name: len(shift) for name, shift in task.shifts.items()} == {
        "rotation/3": 200,
        "rotation/5": 200,
        "noise/2": 200,
        other: 150,
    }
    assert {name: len(part) for name, part in pretrain.items()} == {"train": rest, "test": 150}
    sets = [task.train, task.held_out, task.test, *task.shifts.values(), *pretrain.values()]
    assert all(isinstance(part, Dataset) and part.images.shape[1:] == (12, 12, 1) for part in sets)
    check_disjoint(
        train=task.train, held_out=task.held_out, test=task.test, **{f"pre_{k}": v for k, v in pretrain.items()}
    )
    counts = np.bincount(task.test.labels, minlength=10)
    assert counts.min() >= 18 and counts.max() <= 22  # stratified


def test_shifts_come_from_the_test_set_and_the_other_source(plain):
    task, pretrain = plain
    np.testing.assert_array_equal(task.shifts["rotation/3"].labels, task.test.labels)
    assert _same(task.shifts["noise/2"], corrupt(task.test, "noise", 2, seed=0))
    assert task.shifts["optdigits"] is pretrain["test"]
    assert not _contents(pretrain["train"]) & _contents(task.shifts["optdigits"])


def test_printed_digits_are_a_shift_that_is_asked_for(digits_dir):
    task, _ = digits_task(data_dir=digits_dir, printed=True, **SIZES)
    assert list(task.shifts)[-2:] == ["optdigits", "printed"]
    assert _same(task.shifts["printed"], printed_digits(12))


def test_the_seed_changes_train_and_held_out_alone(digits_dir, plain):
    (first, pretrain), (second, other_pretrain) = plain, digits_task(data_dir=digits_dir, seed=1, **SIZES)
    assert _same(first.test, second.test)
    assert all(_same(first.shifts[name], second.shifts[name]) for name in first.shifts)
    assert all(_same(pretrain[name], other_pretrain[name]) for name in pretrain)
    assert _contents(first.train) != _contents(second.train)
    assert _contents(first.held_out) != _contents(second.held_out)
    again, _ = digits_task(data_dir=digits_dir, seed=1, **SIZES)
    assert _same(again.train, second.train)


def test_without_a_fixed_test_the_seed_changes_everything(digits_dir):
    tasks = [digits_task(data_dir=digits_dir, seed=seed, fixed_test=False, **SIZES) for seed in (0, 1, 1)]
    (first, pretrain), (second, other_pretrain), (again, _) = tasks
    for name in ("train", "held_out", "test"):
        assert _contents(getattr(first, name)) != _contents(getattr(second, name)), name
        assert _same(getattr(second, name), getattr(again, name)), name
    assert all(not _same(first.shifts[name], second.shifts[name]) for name in first.shifts)
    assert all(_same(second.shifts[name], again.shifts[name]) for name in second.shifts)
    assert _contents(pretrain["train"]) != _contents(other_pretrain["train"])
    check_disjoint(train=second.train, held_out=second.held_out, test=second.test)
    check_disjoint(pretraining=other_pretrain["train"], natural=second.shifts["optdigits"])


def test_some_of_the_test_images_are_shifted(digits_dir, plain):
    (task, _), (whole, _) = digits_task(data_dir=digits_dir, num_shifted=50, **SIZES), plain
    assert {name: len(shift) for name, shift in task.shifts.items() if "/" in name} == dict.fromkeys(
        ("rotation/3", "rotation/5", "noise/2"), 50
    )
    assert np.bincount(task.shifts["noise/2"].labels, minlength=10).min() >= 4  # of all classes
    assert _same(task.test, whole.test)
    every, _ = digits_task(data_dir=digits_dir, num_shifted=200, **SIZES)
    assert all(_same(every.shifts[name], whole.shifts[name]) for name in whole.shifts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "mnist5k"}, "unknown source of digits 'mnist5k' .did you mean 'mnist_5k'"),
        ({"shifts": {"nois": [1]}}, "unknown family of corruptions 'nois' .did you mean 'noise'"),
        ({"shifts": {"noise": [0]}}, "severity of 'noise' must be 1, 2, 3, 4 or 5, not 0"),
    ],
)
def test_misspelt_names_are_found_before_any_work(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        digits_task(data_dir=tmp_path, **SIZES | changes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_train": 4800}, "need 4900 examples, but there are only 4800"),
        ({"num_shifted": 201}, "need 201 examples, but there are only 200"),
        ({"num_test": 6000}, "need 6000 examples, but there are only 5000"),
        ({"natural_shift_size": 1797}, "natural shift takes all 1797 images"),
        ({"num_held_out": 0}, "part 'held_out' must have at least one example"),
    ],
)
def test_sizes_that_the_sources_do_not_have(digits_dir, changes, message):
    with pytest.raises(ValueError, match=message):
        digits_task(data_dir=digits_dir, **SIZES | changes)


def test_every_seed_of_the_default_job_has_images_of_its_own(digits_dir):
    config = runpy.run_path(str(CONFIG))["get_config"]().task.to_dict()
    tasks = [task_of(config, seed=seed, data_dir=digits_dir)[0] for seed in (0, 1)]
    for name in ("train", "held_out", "test"):
        assert _contents(getattr(tasks[0], name)) != _contents(getattr(tasks[1], name)), name
    same = {name for name in tasks[0].shifts if _same(*(task.shifts[name] for task in tasks))}
    assert same == {"printed"}
