"""Test that a sweep is data."""

import collections
import functools

import numpy as np
import pytest

from soups.train import search


def test_grid_and_zipped():
    assert search.grid(a=[1, 2], b="xy") == [
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y"},
        {"a": 2, "b": "x"},
        {"a": 2, "b": "y"},
    ]
    assert search.zipped(a=[1, 2], b="xy") == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    with pytest.raises(ValueError, match=r"differ in number: \{'a': 2, 'b': 3\}"):
        search.zipped(a=[1, 2], b="xyz")


def test_a_random_member_depends_on_its_index_and_the_seed_alone():
    drawn = functools.partial(
        search.random, learning_rate=search.log_uniform(1e-4, 1e-1), epochs=search.integers(4, 16)
    )
    assert drawn(20, 0)[:5] == drawn(5, 0)
    assert drawn(5, 1) != drawn(5, 0)
    assert len({member["learning_rate"] for member in drawn(20, 0)}) == 20


def test_distributions():
    members = search.random(
        1000,
        0,
        learning_rate=search.log_uniform(1e-4, 1e-2),
        smoothing=search.uniform(0.5, 1.0),
        epochs=search.integers(4, 7),
        mixup=search.zero_or(0.25, search.uniform(0.5, 1.0)),
    )
    drawn = {name: np.array([member[name] for member in members]) for name in members[0]}
    logarithms = np.log10(drawn["learning_rate"])
    assert logarithms.min() >= -4 and logarithms.max() <= -2
    assert abs(logarithms.mean() + 3) < 5 * (2 / np.sqrt(12)) / np.sqrt(1000)
    assert 0.5 <= drawn["smoothing"].min() < drawn["smoothing"].max() < 1.0
    counts = collections.Counter(drawn["epochs"].tolist())
    assert set(counts) == {4, 5, 6, 7}
    assert min(counts.values()) > 250 - 5 * np.sqrt(250)
    assert abs((drawn["mixup"] == 0).mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 1000)
