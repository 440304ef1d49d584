"""Compare residual networks of bottlenecks with NumPy in float64."""

import jax
import numpy as np
import pytest
from random_weights import random_weights

from soups import models
from soups.models.bottleneck_resnet import BottleneckResNet

SMALL = {"blocks": (1, 2), "width": 2}
SHAPE = (16, 12, 3)


@pytest.fixture(scope="module")
def params():
    return random_weights(BottleneckResNet(3, **SMALL), SHAPE)


def windows(x, size, stride, fill):
    """Return the windows of size x size at every stride, padded by size // 2 on both sides alike."""
    side = size // 2
    x = np.pad(x, ((0, 0), (side, side), (side, side), (0, 0)), constant_values=fill)
    rows, columns = ((n - size) // stride + 1 for n in x.shape[1:3])
    return {
        (i, j): x[:, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride]
        for i in range(size)
        for j in range(size)
    }


def conv_norm(p, stats, x, stride):
    kernel, norm = p["conv"]["kernel"], p["norm"]
    y = sum(cut @ kernel[place] for place, cut in windows(x, kernel.shape[0], stride, 0).items())
    return (y - stats["norm"]["mean"]) / np.sqrt(stats["norm"]["var"] + 1e-5) * norm["scale"] + norm["bias"]


def numpy_features(params, images):
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    p, stats = wide["params"], wide["batch_stats"]
    x = np.maximum(conv_norm(p["stem"], stats["stem"], images, 2), 0)
    x = np.maximum.reduce(list(windows(x, 3, 2, -np.inf).values()))
    for name, stride in (("stage_0_0", 1), ("stage_1_0", 2), ("stage_1_1", 1)):
        block, s = p[name], stats[name]
        y = np.maximum(conv_norm(block["first"], s["first"], x, 1), 0)
        y = np.maximum(conv_norm(block["second"], s["second"], y, stride), 0)
        y = conv_norm(block["third"], s["third"], y, 1)
        if "shortcut" in block:
            x = conv_norm(block["shortcut"], s["shortcut"], x, stride)
        x = np.maximum(x + y, 0)
    return x.mean((1, 2))


def test_logits_and_features_equal_float64(params, rng):
    images = rng.normal(size=(2, *SHAPE)).astype(np.float32)
    expected = numpy_features(params, images.astype(np.float64))
    head = params["params"]["head"]
    logits = models.apply_fn(BottleneckResNet(3, **SMALL))(params, images)
    np.testing.assert_allclose(logits, expected @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-4)
    trunk = {**params, "params": {name: x for name, x in params["params"].items() if name != "head"}}
    features = models.apply_fn(BottleneckResNet(None, **SMALL))(trunk, images)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4)


def test_shortcuts_are_where_the_shape_changes(params):
    assert [name for name, block in sorted(params["params"].items()) if "shortcut" in block] == [
        "stage_0_0",
        "stage_1_0",
    ]
