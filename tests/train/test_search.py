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
    with pytest.raises(ValueError, match=r"need equally many values: \{'a': 2, 'b': 3\}"):
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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: search.log_uniform(0, 1), "lower bound of log_uniform must be above 0, not 0"),
        (lambda: search.log_uniform(1e-3, np.inf), "upper bound of log_uniform must be a finite number, not inf"),
        (lambda: search.log_uniform(1e-2, 1e-3), "the lower bound of log_uniform, 0.01, is above the upper one, 0.001"),
        (lambda: search.uniform(2, 1), "the lower bound of uniform, 2, is above the upper one, 1"),
        (lambda: search.uniform(np.nan, 1), "lower bound of uniform must be a finite number, not nan"),
        (lambda: search.uniform(0, "1"), "upper bound of uniform must be a finite number, not '1'"),
        (lambda: search.integers(0, 1.5), "upper bound of integers must be a whole number, not 1.5"),
        (lambda: search.integers(2, 1), "the lower bound of integers, 2, is above the upper one, 1"),
        (lambda: search.zero_or(2, search.uniform(0, 1)), r"probability of zero_or must be in \[0, 1\], not 2"),
        (lambda: search.zero_or(0.5, 1.0), "zero_or takes a distribution, .* not 1.0"),
        (lambda: search.random("3", 0), "number must be a whole number, not '3'"),
        (lambda: search.random(-1, 0), "number must be at least 0, not -1"),
        (lambda: search.random(3, -1), "seed must be at least 0, not -1"),
        (lambda: search.random(3, 0, learning_rate=0.1), "learning_rate must be a distribution"),
        (lambda: search.grid(a=[1], b=2), r"choices of b must be a list of values, such as \[2\]"),
        (lambda: search.uniform(-1.7e308, 1.7e308), "the bounds of uniform, .* are too far apart"),
        (
            lambda: search.integers(0, 2**70),
            r"upper bound of integers must be in \[-9007199254740992, 9007199254740992",
        ),
        (lambda: search.random(1, 0, epochs=lambda: 1), r"epochs is called as epochs\(generator\), but takes \(\)"),
        (lambda: search.zipped(a=[1], b=2), r"choices of b must be a list of values, such as \[2\]"),
    ],
)
def test_what_is_no_sweep(call, message):
    with pytest.raises(ValueError, match=message):
        call()
