"""Test that networks get their inputs normalised by channel where that is asked for, and refuse what they cannot."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from soups import models

MEAN, STD = (0.5, 0.25, 0.75), (0.5, 2.0, 0.1)
MODEL = models.ConvNet(3, widths=(4,))


@pytest.fixture
def case(rng):
    """Return weights with a head that is not zero, images, and the same normalised by hand in float64."""
    params = models.replace_head(models.init(MODEL, jax.random.key(0), (4, 4, 3)), jax.random.key(1), 3, zero=False)
    images = rng.random((2, 4, 4, 3)).astype(np.float32)
    normalised = np.stack([(images[..., i].astype(np.float64) - MEAN[i]) / STD[i] for i in range(3)], axis=-1)
    return params, images, normalised.astype(np.float32)


def test_evaluation_normalises_each_channel(case):
    params, images, normalised = case
    expected = models.apply_fn(MODEL)(params, normalised)
    np.testing.assert_allclose(models.apply_fn(MODEL, MEAN, STD)(params, images), expected, rtol=1e-5, atol=1e-5)
    assert not np.allclose(models.apply_fn(MODEL)(params, images), expected, atol=1e-2)


def test_training_normalises_each_channel(case):
    params, images, normalised = case
    key = jax.random.key(0)
    expected, state = models.train_apply_fn(MODEL)(params, normalised, key)
    found, found_state = models.train_apply_fn(MODEL, MEAN, STD)(params, images, key)
    for one, other in zip(jax.tree.leaves((found, found_state)), jax.tree.leaves((expected, state)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_narrow_inputs_are_normalised_in_float32(case):
    params, images, _ = case
    narrow = jax.numpy.asarray(images, jax.numpy.bfloat16)
    wide = np.asarray(narrow, np.float32)
    apply = models.apply_fn(MODEL, MEAN, STD)
    np.testing.assert_array_equal(apply(params, narrow), apply(params, wide))


@pytest.mark.parametrize("make", [models.apply_fn, models.train_apply_fn])
@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (MEAN, None, "both mean and std"),
        (None, STD, "both mean and std"),
        ((0.5,), STD, "a finite number for each channel"),
        (MEAN, (1.0, 0.0, 1.0), "in std above 0"),
    ],
)
def test_half_a_normalisation_is_an_error(make, mean, std, message):
    with pytest.raises(ValueError, match=message):
        make(MODEL, mean, std)


@pytest.mark.parametrize("normalisation", [(), (MEAN, STD)])
def test_bytes_are_an_error(case, normalisation):
    with pytest.raises(ValueError, match="inputs must be floats, but they are uint8"):
        models.apply_fn(MODEL, *normalisation)(case[0], np.zeros((1, 4, 4, 3), np.uint8))


def test_other_channels_are_an_error(case):
    with pytest.raises(ValueError, match="inputs have 1 channels, but mean and std have 3"):
        models.apply_fn(MODEL, MEAN, STD)(case[0], np.zeros((1, 4, 4, 1), np.float32))


class _Plain(nn.Module):
    """A network without modes."""

    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(3)(inputs.reshape(len(inputs), -1))


@pytest.mark.parametrize("model", [_Plain(), nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(3)])])
def test_a_module_need_not_take_train(model):
    images = np.ones((2, 4, 4, 3), np.float32)
    params = models.init(model, jax.random.key(0), (4, 4, 3))
    expected = model.apply({"params": params}, images)
    np.testing.assert_array_equal(models.apply_fn(model)(params, images), expected)
    logits, after = models.train_apply_fn(model)(params, images, jax.random.key(0))
    np.testing.assert_array_equal(logits, expected)
    assert after is not params and jax.tree.structure(after) == jax.tree.structure(params)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda model, params: models.apply_fn(model)(params, [[1.0]]),
            "inputs must be arrays, not a list: numpy.asarr",
        ),
        (lambda model, params: models.apply_fn(model)(params, None), "inputs must be arrays, not a NoneType"),
        (
            lambda model, params: models.apply_fn(model)(None, np.ones((1, 2, 2, 1))),
            "must be a mapping, not a NoneType",
        ),
        *[
            (lambda model, params, shape=shape: models.init(model, jax.random.key(0), shape), "whole numbers above 0")
            for shape in (224, "224", (0, 2, 1), (2.0, 2, 1), None)
        ],
    ],
)
def test_what_is_no_array_no_weights_or_no_shape_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(models.MLP(3, (4,)), {})
