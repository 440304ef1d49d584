"""Compare the multilayer perceptron and the residual networks with NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import random_weights

from soups import models, tree
from soups.models.mlp import MLP
from soups.models.resnet import ResNet

SHAPE = (4, 4, 2)


def wide(params):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)


# --- MLP ---


def test_mlp_equals_float64(rng):
    model = MLP(3, widths=(5, 6))
    params = random_weights(model, SHAPE)
    images = rng.normal(size=(4, *SHAPE)).astype(np.float32)
    p, x = wide(params), images.astype(np.float64).reshape(4, -1)
    for layer in ("layer_0", "layer_1"):
        x = np.maximum(x @ p[layer]["kernel"] + p[layer]["bias"], 0)
    logits = models.apply_fn(model)(params, images)
    np.testing.assert_allclose(logits, x @ p["head"]["kernel"] + p["head"]["bias"], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(models.apply_fn(model)(params, images.reshape(4, -1)), logits)


def test_mlp_starts_with_a_zero_head_and_plain_names():
    params = models.init(MLP(3, widths=(5, 6)), jax.random.key(0), SHAPE)
    assert {name: leaf.shape for name, leaf in tree.flatten(params).items()} == {
        "layer_0/kernel": (32, 5),
        "layer_0/bias": (5,),
        "layer_1/kernel": (5, 6),
        "layer_1/bias": (6,),
        "head/kernel": (6, 3),
        "head/bias": (3,),
    }
    assert not np.any(params["head"]["kernel"])


def test_mlp_computes_in_bfloat16_and_gives_float32():
    model = MLP(3, widths=(5,), dtype=jnp.bfloat16)
    shapes = jax.eval_shape(model.init_with_output, jax.random.key(0), np.zeros((2, *SHAPE), np.float32))
    assert shapes[0].dtype == np.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes[1])} == {np.dtype(np.float32)}


# --- ResNet ---


def convolve(x, kernel, stride):
    """Convolve with 3x3 and zero padding so that the output has 1/stride of the size, in NumPy."""
    size = x.shape[1]
    total = (size // stride - 1) * stride + 3 - size
    low = total // 2
    padded = np.pad(x, ((0, 0), (low, total - low), (low, total - low), (0, 0)))
    span = size - stride + 1
    return sum(
        padded[:, i : i + span : stride, j : j + span : stride] @ kernel[i, j] for i in range(3) for j in range(3)
    )


def conv_norm(p, stats, x, stride):
    y = convolve(x, p["conv"]["kernel"], stride)
    if stats is None:
        mean, var = y.mean(-1, keepdims=True), y.var(-1, keepdims=True)
        epsilon = 1e-6
    else:
        mean, var, epsilon = stats["norm"]["mean"], stats["norm"]["var"], 1e-5
    return (y - mean) / np.sqrt(var + epsilon) * p["norm"]["scale"] + p["norm"]["bias"]


def resnet(p, stats, x):
    """Compute the logits of the network of two stages of one block."""
    of = lambda *path: None if stats is None else _at(stats, path)  # noqa: E731
    x = np.maximum(conv_norm(p["stem"], of("stem"), x, 1), 0)
    for block, stride in (("stage_0_0", 1), ("stage_1_0", 2)):
        y = np.maximum(conv_norm(p[block]["first"], of(block, "first"), x, stride), 0)
        y = conv_norm(p[block]["second"], of(block, "second"), y, 1)
        if stride == 2:
            x = conv_norm(p[block]["shortcut"], of(block, "shortcut"), x, 2)
        x = np.maximum(x + y, 0)
    return x.mean((1, 2)) @ p["head"]["kernel"] + p["head"]["bias"]


def _at(node, path):
    for key in path:
        node = node[key]
    return node


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_resnet_equals_float64(norm, rng):
    model = ResNet(3, blocks=(1, 1), width_multiplier=0.25, norm=norm)
    params = random_weights(model, SHAPE)
    images = rng.normal(size=(3, *SHAPE)).astype(np.float32)
    p = wide(params)
    expected = resnet(p.get("params", p), p.get("batch_stats"), images.astype(np.float64))
    np.testing.assert_allclose(models.apply_fn(model)(params, images), expected, rtol=1e-4, atol=1e-4)


def test_resnet_20_has_its_layers():
    shapes = jax.eval_shape(lambda key: models.init(ResNet(10), key, (32, 32, 3)), jax.random.key(0))
    kernels = {name: leaf.shape for name, leaf in tree.flatten(shapes).items() if name.endswith("kernel")}
    assert len(kernels) == 20 + 2  # with the head; and two shortcuts
    assert kernels["stem/conv/kernel"] == (3, 3, 3, 16)
    assert kernels["stage_1_0/first/conv/kernel"] == (3, 3, 16, 32)
    assert kernels["stage_1_0/shortcut/conv/kernel"] == (3, 3, 16, 32)
    assert kernels["stage_2_2/second/conv/kernel"] == (3, 3, 64, 64)
    assert kernels["head/kernel"] == (64, 10)


def test_width_multiplier_multiplies_every_width():
    wide_net = ResNet(10, blocks=(1, 1), width_multiplier=4)
    shapes = jax.eval_shape(lambda key: models.init(wide_net, key, (8, 8, 3)), jax.random.key(0))
    assert shapes["stem"]["conv"]["kernel"].shape == (3, 3, 3, 64)
    assert shapes["stage_1_0"]["second"]["conv"]["kernel"].shape == (3, 3, 128, 128)


def test_batch_statistics_can_be_estimated_again(rng):
    model = ResNet(3, blocks=(1,), width_multiplier=0.25, norm="batch")
    params = random_weights(model, SHAPE)
    images = rng.normal(size=(6, *SHAPE)).astype(np.float32)
    repaired = models.reestimate_batch_stats(models.stats_fn(model), params, [images])
    stem = convolve(images.astype(np.float64), wide(params)["params"]["stem"]["conv"]["kernel"], 1)
    statistics = repaired["batch_stats"]["stem"]["norm"]
    np.testing.assert_allclose(statistics["mean"], stem.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(statistics["var"], stem.var((0, 1, 2)), rtol=1e-4)


def test_fields_that_do_not_fit_are_errors():
    for fields, message in (
        ({"norm": "group"}, "unknown norm 'group'; there are: batch, layer"),
        ({"width_multiplier": 0.01}, "width_multiplier 0.01 leaves none of 16 channels"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(ResNet(3, **fields).init, jax.random.key(0), np.zeros((1, *SHAPE), np.float32))
