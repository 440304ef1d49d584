"""Test how the hyper-parameters of a sweep are drawn, and that ends without a sense are named."""

import numpy as np
import pytest

from soups.studies.search_space import choices
from soups.train import search


def test_draws_lie_between_the_ends_and_what_is_not_there_is_not_drawn():
    config = {"learning_rate": (1e-3, 1e-1), "mixup": (0.25, 0.5), "epochs": [2, 4], "members": 3}
    members = search.random(200, 0, **choices(config, epochs=search.integers, augment_operations=search.integers))
    drawn = {name: np.array([member[name] for member in members]) for name in members[0]}
    assert drawn.keys() == {"learning_rate", "mixup", "epochs"}
    assert set(drawn["epochs"]) == {2, 3, 4}
    assert 1e-3 <= drawn["learning_rate"].min() < 3e-3 and 3e-2 < drawn["learning_rate"].max() <= 1e-1
    assert 0.4 < np.mean(drawn["learning_rate"] < 1e-2) < 0.6  # its logarithm is uniform
    some = drawn["mixup"][drawn["mixup"] > 0]
    assert 70 < len(some) < 130 and some.min() >= 0.25 and some.max() <= 0.5


@pytest.mark.parametrize("ends", [0.1, (0.1,), (0.2, 0.1), ("a", "b"), (0.1, float("nan")), (True, False), None])
@pytest.mark.parametrize("name", ["learning_rate", "mixup", "epochs"])
def test_ends_without_a_sense_are_named(name, ends):
    with pytest.raises(ValueError, match=rf"config\.sweep\.{name} must be two (positive )?numbers, the lower"):
        choices({name: ends}, epochs=search.integers)


@pytest.mark.parametrize(
    ("name", "ends"), [("epochs", (0, 2)), ("label_smoothing", (0.0, 2.0)), ("mixup", (-0.2, 0.2)), ("epochs", (-1, 1))]
)
def test_ends_that_training_refuses_are_named_before_it(name, ends):
    with pytest.raises(ValueError, match=rf"config\.sweep\.{name} must be"):
        choices({name: ends}, epochs=search.integers)


def test_a_logarithm_needs_positive_numbers():
    choices({"mixup": (0.0, 0.0)})
    with pytest.raises(ValueError, match=r"config\.sweep\.weight_decay must be two positive numbers"):
        choices({"weight_decay": (0.0, 0.1)})
