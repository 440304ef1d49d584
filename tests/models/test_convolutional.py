"""Show what residual networks of bottlenecks and EfficientNet-Lite have in common in training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import random_weights

from soups import models

SHAPE = (33, 40, 3)
NETWORKS = {  # and the padding of the stem
    "bottlenecks": (models.BottleneckResNet(3, blocks=(1, 2), width=2, momentum=0.9), ((3, 3), (3, 3))),
    "lite": (models.EfficientNetLite(3, width_multiplier=0.1, depth_multiplier=0.5, momentum=0.9), "SAME"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_training_updates_statistics_alike_with_and_without_remat(name, rng):
    model, padding = NETWORKS[name]
    params = random_weights(model, SHAPE, scaled=True)
    images = rng.normal(size=(4, *SHAPE)).astype(np.float32)

    def updated(remat):
        train = models.train_apply_fn(model.clone(remat=remat))
        return jax.jit(lambda params: train(params, images, jax.random.key(0)))(params)

    (logits, plain), (same_logits, same) = updated(False), updated(True)
    kernel = jnp.asarray(params["params"]["stem"]["conv"]["kernel"])
    names = ("NHWC", "HWIO", "NHWC")
    stem = jax.lax.conv_general_dilated(jnp.asarray(images), kernel, (2, 2), padding, dimension_numbers=names)
    expected = 0.9 * params["batch_stats"]["stem"]["norm"]["mean"] + 0.1 * np.asarray(stem, np.float64).mean((0, 1, 2))
    np.testing.assert_allclose(plain["batch_stats"]["stem"]["norm"]["mean"], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(logits, same_logits, rtol=1e-4, atol=1e-4)
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(same), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_keeps_float32_weights_and_logits(name):
    model = NETWORKS[name][0].clone(dtype=jnp.bfloat16)
    shapes = jax.eval_shape(model.init_with_output, jax.random.key(0), np.zeros((2, *SHAPE), np.float32))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", NETWORKS)
def test_dropout_takes_features_before_the_head_in_training_alone(name):
    model = NETWORKS[name][0].clone(dropout=0.5)
    images = jax.ShapeDtypeStruct((1, *SHAPE), jnp.float32)
    params = jax.eval_shape(lambda: models.init(model, jax.random.key(0), SHAPE))
    programs = [models.apply_fn(model), lambda p, x: models.train_apply_fn(model)(p, x, jax.random.key(0))]
    drawn = ["random_bits" in str(jax.make_jaxpr(program)(params, images)) for program in programs]
    assert drawn == [False, True]
