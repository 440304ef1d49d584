"""Test that the parts of a network, one after the other, are the network, with the same names."""

import jax
import numpy as np
import pytest

from soups import tree
from soups.models import BottleneckResNet, EfficientNetLite, functional


@pytest.mark.parametrize(
    "network",
    [EfficientNetLite(3, width_multiplier=0.25, depth_multiplier=0.3), BottleneckResNet(3, (1, 1, 1), width=4)],
    ids=["efficientnet-lite", "resnet"],
)
def test_parts_one_after_the_other_are_the_network(network):
    images = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
    params = functional.init(network, jax.random.key(0), images.shape[1:])
    first, rest = network.clone(end=2), network.clone(begin=2)
    maps = jax.jit(functional.apply_fn(first))(params, images)
    whole, parts = (jax.jit(functional.apply_fn(n))(params, x) for n, x in ((network, images), (rest, maps)))
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-5)
    names = [set(tree.names(jax.eval_shape(n.init, jax.random.key(0), x))) for n, x in ((first, images), (rest, maps))]
    assert names[0] | names[1] == set(tree.names(params)) and not names[0] & names[1]
