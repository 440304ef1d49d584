"""With frozen statistics BatchNorm trains its scale and bias, and its statistics stay as they are, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from random_weights import random_weights

from soups import models, tree
from soups.train import Classification, fit

SHAPE = (32, 32, 3)
NETWORKS = {
    "ResNet-50, small": models.BottleneckResNet(3, blocks=(1, 1), width=2),
    "EfficientNet-Lite, small": models.EfficientNetLite(3, width_multiplier=0.1, depth_multiplier=0.1),
    "ResNet-20, small": models.ResNet(3, blocks=(1, 1), width_multiplier=0.25, norm="batch"),
}


@pytest.fixture
def images(rng):
    return rng.random((6, *SHAPE), np.float32)


@pytest.mark.parametrize("name", NETWORKS)
def test_scale_and_bias_get_the_gradient_of_evaluation(name, images):
    model, params = NETWORKS[name], random_weights(NETWORKS[name], SHAPE, scaled=True)
    evaluated, trained = models.apply_fn(model), models.train_apply_fn(model, frozen_statistics=True)

    def gradients(weights):
        def loss(weights, apply):
            return jnp.sum(jnp.sin(apply({**params, "params": weights}, images)))

        after = trained({**params, "params": weights}, images, jax.random.key(0))[1]
        applied = (evaluated, lambda params, images: trained(params, images, jax.random.key(0))[0])
        return *(jax.grad(loss)(weights, apply) for apply in applied), after["batch_stats"]

    expected, found, statistics = map(tree.flatten, jax.jit(gradients)(params["params"]))
    for leaf in expected:
        np.testing.assert_allclose(found[leaf], expected[leaf], rtol=1e-5, atol=1e-5)
    for part in ("scale", "bias"):
        assert any(np.any(found[leaf] != 0) for leaf in found if leaf.endswith(f"norm/{part}"))
    jax.tree.map(np.testing.assert_array_equal, tree.flatten(params["batch_stats"]), statistics)


class OneNorm(nn.Module):
    """A BatchNorm, and dropout if it is wanted."""

    rate: float = 0.0
    flag: bool = True

    @nn.compact
    def __call__(self, x, train=False):
        """Map [B, D] to [B, D]."""
        x = nn.BatchNorm(name="norm", use_running_average=not train)(x)
        return nn.Dropout(self.rate, deterministic=not train)(x)


def test_gradients_are_those_of_the_formula(rng):
    x, outer = (rng.normal(size=(5, 4)).astype(np.float32) for _ in range(2))
    mean, var, scale = rng.normal(size=4), rng.random(4) + 0.5, rng.normal(size=4)
    norm = {"scale": np.float32(scale), "bias": np.zeros(4, np.float32)}
    params = {"params": {"norm": norm}, "batch_stats": {"norm": {"mean": np.float32(mean), "var": np.float32(var)}}}
    trained = models.train_apply_fn(OneNorm(), frozen_statistics=True)

    def loss(params):
        return jnp.sum(trained(params, x, jax.random.key(0))[0] * outer)

    found = jax.grad(loss)(params)["params"]["norm"]
    normalised = (x.astype(np.float64) - mean) / np.sqrt(var + 1e-5)
    np.testing.assert_allclose(found["scale"], (outer * normalised).sum(0), rtol=1e-5)
    np.testing.assert_allclose(found["bias"], outer.astype(np.float64).sum(0), rtol=1e-5)


def test_the_rest_of_the_network_is_in_training_mode(rng):
    x = rng.normal(size=(50, 4)).astype(np.float32)
    model = OneNorm(rate=0.5)
    params = models.init(model, jax.random.key(0), (4,))
    logits, _ = models.train_apply_fn(model, frozen_statistics=True)(params, x, jax.random.key(0))
    dropped = np.asarray(logits) == 0
    assert 0 < dropped.sum() < dropped.size
    np.testing.assert_allclose(logits, np.where(dropped, 0, 2 * x / np.sqrt(1 + 1e-5)), rtol=1e-5)


@pytest.mark.parametrize("name", ["ResNet-50, small", "EfficientNet-Lite, small"])
def test_training_moves_the_affine_parameters_and_never_the_statistics(name, images):
    network = models.Network.of(
        NETWORKS[name], start=random_weights(NETWORKS[name], SHAPE, scaled=True), frozen_statistics=True
    )
    start = network.init(jax.random.key(0), SHAPE)
    steps = {"num_steps": 2, "learning_rate": 1e-2}
    data = {"image": (images * 255).astype(np.uint8), "label": np.arange(6) % 3}
    made = fit(Classification(network.trained, 3), start, data, hyperparameters=steps, batch_size=3)
    before, after = tree.flatten(start), tree.flatten(jax.device_get(made["params"]))
    moved = {leaf for leaf in before if not np.array_equal(before[leaf], after[leaf])}
    assert not [leaf for leaf in moved if leaf.startswith("batch_stats/")]
    assert {leaf.rpartition("/")[2] for leaf in moved} == {"kernel", "scale", "bias"}


class OwnStatistics(nn.Module):
    """A layer that moves a statistic of its own."""

    @nn.compact
    def __call__(self, x, train=False):
        """Map [B, D] to [B, 2]."""
        mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1])
        if train and not self.is_initializing():
            mean.value = x.mean(0)
        return nn.Dense(2)(x - mean.value[None])


class NnxNorm(nnx.Module):
    """A BatchNorm with dropout, or with a statistic of its own that moves."""

    def __init__(self, own=False):
        self.norm = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
        self.own = nnx.BatchStat(jnp.zeros(4)) if own else None

    def __call__(self, x):
        """Map [B, D] to [B, D]."""
        if self.own is not None:
            self.own.set_value(x.mean(0))
        return self.dropout(self.norm(x))


def test_nnx_networks_freeze_theirs_too(rng):
    x, model = rng.normal(size=(50, 4)).astype(np.float32), NnxNorm()
    _, params = models.from_nnx(model)
    trained = models.Network.of(model, frozen_statistics=True).trained
    logits, after = trained(params, x, jax.random.key(0))
    dropped = np.asarray(logits) == 0
    assert 0 < dropped.sum() < dropped.size
    np.testing.assert_allclose(logits, np.where(dropped, 0, 2 * x / np.sqrt(1 + 1e-5)), rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, params, after)
    _, moved = models.nnx_train_apply_fn(model)(params, x, jax.random.key(0))  # the model is as it was
    assert np.any(moved["batch_stats"]["norm"]["mean"] != 0)


def test_statistics_of_other_layers_are_refused(rng):
    x = rng.normal(size=(5, 4)).astype(np.float32)
    params = models.init(OwnStatistics(), jax.random.key(0), (4,))
    with pytest.raises(ValueError, match=r"only the statistics of Flax's BatchNorm can be frozen: .*mean"):
        models.train_apply_fn(OwnStatistics(), frozen_statistics=True)(params, x, jax.random.key(0))
    model = NnxNorm(own=True)
    _, params = models.from_nnx(model)
    with pytest.raises(ValueError, match="only the statistics of Flax's BatchNorm can be frozen: another layer"):
        models.nnx_train_apply_fn(model, frozen_statistics=True)(params, x, jax.random.key(0))
