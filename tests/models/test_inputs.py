"""Whatever takes a network takes the inputs that `apply_fn` takes, and normalises them as it does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import FrozenDict

from soups import models

SHAPE, MEAN, STD = (4, 4, 2), (0.4, 0.6), (0.2, 0.3)
CONVNET = models.ConvNet(num_classes=3, widths=(3,))


class Biased(nn.Module):
    """Apply a convolution with a bias, which can be repaired."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Map [B, H, W, C] to [B, 2]."""
        return nn.Dense(2, name="head")(nn.Conv(4, (3, 3), name="conv")(x).mean((1, 2)))


class NnxBiased(nnx.Module):
    """Apply a layer to all of an image."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(32, 3, rngs=rngs)

    def __call__(self, x):
        """Map [B, H, W, C] to [B, 3]."""
        return self.dense(x.reshape(len(x), -1))


def repaired(params, x, **normal):
    other = jax.tree.map(lambda leaf: leaf + 0.1, params)
    return models.repair(Biased(), params, [params, other], [x], **normal)


def from_nnx(x, **normal):
    apply, weights = models.from_nnx(NnxBiased(nnx.Rngs(0)), **normal)
    return apply(weights, x)


BIASED = models.init(Biased(), jax.random.key(0), SHAPE)
NORMED = models.replace_head(models.init(CONVNET, jax.random.key(0), SHAPE), jax.random.key(1), 3, zero=False)
HELPERS = {
    "apply_fn": lambda x, **normal: models.apply_fn(CONVNET, **normal)(NORMED, x),
    "train_apply_fn": lambda x, **normal: models.train_apply_fn(CONVNET, **normal)(NORMED, x, jax.random.key(0)),
    "stats_fn": lambda x, **normal: models.stats_fn(CONVNET, **normal)(NORMED, x),
    "gram_fn": lambda x, **normal: models.gram_fn(CONVNET, train=False, **normal)(NORMED, [x]),
    "linear_inputs_gram": lambda x, **normal: models.linear_inputs_gram(Biased(), BIASED, [x], **normal),
    "activation_statistics": lambda x, **normal: models.activation_statistics(Biased(), BIASED, [x], **normal),
    "activation_statistics with BatchNorm": lambda x, **normal: models.activation_statistics(
        CONVNET, NORMED, [x], **normal
    ),
    "repair": lambda x, **normal: repaired(BIASED, x, **normal),
    "repair with BatchNorm": lambda x, **normal: models.repair(CONVNET, NORMED, [NORMED], [x], **normal),
    "from_nnx": from_nnx,
}


@pytest.fixture(params=HELPERS)
def helper(request):
    return HELPERS[request.param]


def test_inputs_are_normalised_as_in_apply_fn(helper, rng):
    images = rng.uniform(size=(6, *SHAPE)).astype(np.float32)
    by_hand = ((images - np.float32(MEAN)[None, None, None]) / np.float32(STD)[None, None, None]).astype(np.float32)
    expected, found = helper(by_hand), helper(images, mean=MEAN, std=STD)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)
    plain = helper(images)
    differ = jax.tree.map(lambda a, b: not np.allclose(a, b, rtol=1e-2), plain, expected)
    assert any(jax.tree.leaves(differ))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_raw_bytes_are_refused(helper, dtype):
    with jax.enable_x64(dtype is np.int64):
        images = np.full((2, *SHAPE), 200, dtype)
        for normal in ({}, {"mean": MEAN, "std": STD}):
            with pytest.raises(ValueError, match=f"inputs must be floats, but they are {np.dtype(dtype).name}: scale"):
                helper(images, **normal)


def test_what_does_not_normalise_is_explained(helper, rng):
    images = rng.uniform(size=(2, *SHAPE)).astype(np.float32)
    with pytest.raises(ValueError, match="give both or neither"):
        helper(images, mean=MEAN)
    with pytest.raises(ValueError, match="inputs have 2 channels, but mean and std have 3"):
        helper(images, mean=(0.5,) * 3, std=(0.5,) * 3)
    for std in ((0.0, 1.0), (np.nan, 1.0), 0.5, "ab", ((0.1, 0.2),)):
        with pytest.raises(ValueError, match="in std above 0"):
            helper(images, mean=MEAN, std=std)


def test_a_batch_of_nothing_is_refused(helper):
    with pytest.raises(ValueError, match=r"an array \[0, 4, 4, 2\] holds no inputs"):
        helper(np.zeros((0, *SHAPE), np.float32))


@pytest.mark.parametrize("model", [3, NnxBiased(nnx.Rngs(0))])
@pytest.mark.parametrize(
    "take",
    [
        models.apply_fn,
        models.train_apply_fn,
        models.gram_fn,
        lambda model: models.init(model, jax.random.key(0), SHAPE),
        lambda model: models.repair(model, BIASED, [BIASED], [np.zeros((2, *SHAPE), np.float32)]),
    ],
)
def test_what_is_no_linen_module(take, model):
    with pytest.raises(ValueError, match=r"must be a Linen module, not a (int|NnxBiased; of an NNX one from_nnx)"):
        take(model)


@pytest.mark.parametrize("take", [models.from_nnx, models.nnx_train_apply_fn])
def test_what_is_no_nnx_module(take):
    with pytest.raises(ValueError, match="must be an NNX module, not a Biased"):
        take(Biased())


def test_statistics_keep_the_containers_of_the_weights(rng):
    images = rng.uniform(size=(6, *SHAPE)).astype(np.float32)
    plain, frozen = (
        models.reestimate_batch_stats(models.stats_fn(CONVNET), params, [images])["batch_stats"]
        for params in (NORMED, FrozenDict(NORMED))
    )
    assert isinstance(frozen, FrozenDict)
    jax.tree.map(np.testing.assert_array_equal, frozen.unfreeze(), plain)


@pytest.mark.parametrize("weights", [[0.0, 0.0], [np.nan, 1.0]])
def test_a_repaired_soup_has_weights_with_a_sum(weights):
    with pytest.raises(ValueError, match="weights must be finite, not negative and not all zero"):
        models.repair(Biased(), BIASED, [BIASED, BIASED], [np.ones((2, *SHAPE), np.float32)], weights=weights)


class Embedded(nn.Module):
    """Embed tokens where a mask is true."""

    @nn.compact
    def __call__(self, inputs, train: bool = False):
        """Map tokens [B, T] to [B, 2]."""
        hidden = nn.Embed(5, 3)(inputs["tokens"]) * inputs["mask"][..., None].astype(jnp.float32)
        return nn.Dense(2, name="head")(hidden.mean(1))


def test_tokens_and_masks_are_inputs_as_well(rng):
    inputs = {"tokens": rng.integers(0, 5, (4, 6)).astype(np.int32), "mask": rng.uniform(size=(4, 6)) < 0.5}
    params = Embedded().init(jax.random.key(0), inputs)["params"]
    table = np.asarray(params["Embed_0"]["embedding"], np.float64)
    rows = (table[inputs["tokens"]] * inputs["mask"][..., None]).mean(1)
    head = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["head"])
    logits = models.apply_fn(Embedded())(params, inputs)
    np.testing.assert_allclose(logits, rows @ head["kernel"] + head["bias"], rtol=1e-5, atol=1e-6)
    gram = models.linear_inputs_gram(Embedded(), params, [inputs])["head/kernel"]
    np.testing.assert_allclose(gram, rows.T @ rows / 4, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="inputs of int32 cannot be normalised"):
        models.apply_fn(Embedded(), MEAN, STD)(params, jnp.zeros((2, 2), jnp.int32))
