"""Test where SWAD begins and ends, and what it averages."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soups.train import Swad, fit


def stretch(losses, **settings):
    swad, mean = Swad(**settings), {"w": np.zeros(1, np.float32)}
    for number, loss in enumerate(losses, 1):
        swad.add(10 * number, loss, mean)
    return swad.stretch


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        # it begins with the segment whose loss is the least of three, and ends with the run
        ([3, 2, 1, 2, 2, 2], (20, 60)),
        ([1, 2, 3], (0, 30)),
        # equal losses begin it too
        ([2, 1, 1, 1], (10, 40)),
        # nothing begins it: the last segment
        ([5, 4, 3, 2, 1], (40, 50)),
        ([5, 4], (10, 20)),
        # six in a row above 1.3 times the mean of 1, 1.2, 1.4, which is 1.56, end it before the first of them
        ([3, 1, 1.2, 1.4, 1.5, 1.7, 1.6, 1.7, 1.8, 1.9, 2, 0.1], (10, 50)),
        ([3, 1, 1.2, 1.4, 1.5, 1.7, 1.6, 1.7, 1.5, 1.9, 2, 2], (10, 120)),
    ],
)
def test_the_stretch_is_the_valley_of_the_validation_loss(losses, expected):
    assert stretch(losses) == expected


def test_settings_of_the_valley():
    losses = [2, 1, 3, 1.5, 1.6]
    assert stretch(losses, converge=1, tolerance=2, rate=1.4) == (0, 50)
    assert stretch([2, 1, 3, 4, 1], converge=2, tolerance=1, rate=1.2) == (10, 30)


def test_the_average_is_that_of_the_weights_after_each_step():
    weights = []

    def loss(params, batch, key):
        return jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)

    data = {"x": np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)}
    data["y"] = data["x"].sum(1)
    swad, losses = Swad(), iter([3, 1, 2, 4, 1.2])
    start, options = {"w": np.ones(3, np.float32), "n": np.int32(3)}, {"batch_size": 4, "optimizer": optax.sgd(0.1)}
    fit(
        loss,
        start,
        data,
        steps=9,
        save_every=2,
        swa_start=0.0,
        on_checkpoint=lambda step, made: swad.add(step, next(losses), made["averages"]["swa"]),
        **options,
    )
    fit(
        loss,
        start,
        data,
        steps=9,
        save_every=1,
        on_checkpoint=lambda step, made: weights.append(np.array(made["params"]["w"])),
        **options,
    )
    assert swad.stretch == (2, 9)
    made = swad.average()
    np.testing.assert_allclose(made["w"], np.mean(np.float64(weights)[2:], axis=0), rtol=1e-5)
    assert made["w"].dtype == np.float32 and made["n"] == 3


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: Swad(converge=0), "converge"),
        (lambda: Swad(tolerance=0.5), "tolerance"),
        (lambda: Swad(rate=0.9), "rate"),
        (lambda: Swad().average(), "before the first checkpoint"),
        (lambda: Swad().add(0, 1.0, {}), "step 0 came after 0"),
        (lambda: Swad().add(1, float("nan"), {}), "after step 1 must be a finite number, not nan"),
        (lambda: Swad().add(1, None, {}), "after step 1 must be a finite number, not None"),
        (lambda: Swad().add("1", 1.0, {}), "step must be a whole number, not '1'"),
    ],
)
def test_what_cannot_be_averaged_is_refused(act, message):
    with pytest.raises(ValueError, match=message):
        act()
