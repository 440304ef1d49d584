"""Splits: disjoint, stratified, the same everywhere; overlaps are found."""

import numpy as np
import pytest

from soups.data import array_source, check_disjoint, split_indices


@pytest.mark.parametrize("stratified", [True, False])
def test_parts_are_disjoint_sorted_and_of_the_sizes_asked_for(rng, stratified):
    labels = rng.integers(0, 7, 1000)
    parts = split_indices(labels, {"train": 0.5, "held_out": 123, "test": 0.3}, seed=4, stratified=stratified)
    assert {name: len(part) for name, part in parts.items()} == {"train": 500, "held_out": 123, "test": 300}
    together = np.concatenate(list(parts.values()))
    assert len(set(together.tolist())) == 923
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts.values())
    assert together.min() >= 0 and together.max() < 1000


def test_stratified_parts_have_the_classes_in_their_shares():
    labels = np.repeat([0, 1, 2, 3], [400, 300, 200, 7])
    np.random.default_rng(1).shuffle(labels)
    parts = split_indices(labels, {"a": 100, "b": 300, "c": 411}, seed=2)
    for part in parts.values():
        share = len(part) / len(labels)
        counts = np.bincount(labels[part], minlength=4)
        assert np.abs(counts - share * np.bincount(labels)).max() <= 1.01
    unstratified = split_indices(labels, {"a": 100}, seed=2, stratified=False)["a"]
    assert np.abs(np.bincount(labels[unstratified], minlength=4) - 100 / 907 * np.bincount(labels)).max() > 1.01


def test_the_seed_decides_and_nothing_else():
    labels = np.arange(60) % 3
    first = split_indices(labels, {"a": 20, "b": 20}, seed=0)
    again = split_indices(labels, {"a": 20, "b": 20}, seed=0)
    other = split_indices(labels, {"a": 20, "b": 20}, seed=1)
    assert all((first[name] == again[name]).all() for name in first)
    assert any((first[name] != other[name]).any() for name in first)


def test_golden_split():
    # written down once: another platform or version of NumPy must give the same
    assert split_indices(12, {"a": 4, "b": 3}, seed=7)["a"].tolist() == [1, 4, 6, 8]
    assert split_indices(np.arange(12) % 2, {"a": 4}, seed=7)["a"].tolist() == [1, 3, 4, 8]


def test_fractions_are_rounded_down_but_not_by_floating_point():
    assert len(split_indices(100, {"a": 0.29}, seed=0)["a"]) == 29  # 0.29 * 100 < 29
    parts = split_indices(3, {"a": 0.5, "b": 0.5}, seed=0)
    assert [len(part) for part in parts.values()] == [1, 1]
    assert split_indices(5, {"all": 1.0}, seed=0)["all"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("size", [0, -1, 1.5, 0.0, 0.01, True])
def test_impossible_sizes(size):
    with pytest.raises(ValueError, match="part 'a' must have at least one example"):
        split_indices(10, {"a": size}, seed=0)


def test_too_many_examples_and_negative_seeds():
    with pytest.raises(ValueError, match=r"\{'a': 8, 'b': 5\} need 13 examples, but there are only 10"):
        split_indices(10, {"a": 8, "b": 0.5}, seed=0)
    with pytest.raises(ValueError, match=r"labels must be \[N\], one for each example, not \[3, 2\]"):
        split_indices(np.eye(2)[[0, 1, 0]], {"a": 1}, seed=0)
    with pytest.raises(ValueError, match="seed must be at least 0, not -1"):
        split_indices(10, {"a": 8}, seed=-1)


def test_overlaps_are_counted_and_located(rng):
    images = rng.integers(0, 256, (30, 4, 4, 1), dtype=np.uint8)
    labels = np.arange(30) % 2
    source = array_source(images, labels)
    train, held_out, test = source.take(np.arange(10)), source.take(np.arange(10, 20)), source.take(np.arange(18, 28))
    check_disjoint(train=train, held_out=held_out)
    with pytest.raises(ValueError) as error:
        check_disjoint(train=train, held_out=held_out, test=test, again=train.take([3]))
    message = str(error.value)
    assert "held_out and test share 2 (first: held_out[8] = test[0], held_out[9] = test[1])" in message
    assert "train and again share 1 (first: train[3] = again[0])" in message
    assert "train and held_out" not in message


def test_the_same_image_with_another_label_is_another_example(rng):
    images = rng.integers(0, 256, (4, 4, 4, 1), dtype=np.uint8)
    check_disjoint(a=array_source(images, [0, 1, 0, 1]), b=array_source(images, [1, 0, 1, 0]))
    transposed = images.transpose(0, 2, 1, 3)  # not contiguous
    check_disjoint(a=array_source(images, [0, 1, 0, 1]), b=array_source(transposed, [0, 1, 0, 1]))
