import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soups.models.convnet import ConvNet
from soups.models.functional import init
from soups.models.gram import gram_fn, linear_inputs_gram
from soups.models.vit import ViT
from soups.recipes.regmean import regmean

D = 4


class Twice(nn.Module):
    """Call one layer twice, and one on two axes in another order."""

    remat: bool = False

    @nn.compact
    def __call__(self, x_BxTxD, scale=1.0):
        dense = (nn.remat(nn.Dense) if self.remat else nn.Dense)(D, name="shared")
        hidden = dense(jnp.tanh(dense(x_BxTxD * scale)))
        return nn.DenseGeneral((2, 2), axis=(-1, -2), name="mixed")(hidden)


BATCHES = [np.random.default_rng(seed).normal(size=(rows, 3, D)).astype(np.float32) for seed, rows in ((0, 2), (1, 5))]
PARAMS = Twice().init(jax.random.key(0), BATCHES[0])["params"]


def by_hand(scale=1.0):
    x = np.concatenate(BATCHES).astype(np.float64) * scale
    kernel, bias = (np.asarray(PARAMS["shared"][name], np.float64) for name in ("kernel", "bias"))
    second = np.tanh(x @ kernel + bias)
    rows = np.concatenate([x.reshape(-1, D), second.reshape(-1, D)])
    mixed = (second @ kernel + bias).swapaxes(1, 2).reshape(7, -1)
    return {"shared/kernel": rows.T @ rows / len(rows), "mixed/kernel": mixed.T @ mixed / len(mixed)}


@pytest.mark.parametrize("remat", [False, True])
def test_equals_rows_by_hand(remat):
    grams = linear_inputs_gram(Twice(remat), PARAMS, BATCHES)
    expected = by_hand()
    assert set(grams) == set(expected)
    for name, gram in grams.items():
        assert gram.dtype == np.float32
        np.testing.assert_allclose(gram, expected[name], rtol=1e-5, atol=1e-6)


def test_only_and_arguments_of_the_module():
    grams = linear_inputs_gram(Twice(), {"params": PARAMS}, BATCHES, only="params/mixed/.*", scale=2.0)
    assert list(grams) == ["params/mixed/kernel"]
    np.testing.assert_allclose(grams["params/mixed/kernel"], by_hand(2.0)["mixed/kernel"], rtol=1e-5, atol=1e-6)


def test_a_single_layer_is_its_own_module():
    x = BATCHES[0][:, 0]
    params = nn.Dense(2).init(jax.random.key(0), x)["params"]
    np.testing.assert_allclose(linear_inputs_gram(nn.Dense(2), params, [x])["kernel"], x.T @ x / len(x), rtol=1e-5)


def test_vision_transformer_from_images_to_regmean():
    model = ViT(num_classes=3, patch_size=4, width=8, depth=1, mlp_dim=16, num_heads=2)
    members = [init(model, jax.random.key(seed), (8, 8, 1)) for seed in range(2)]
    members = [jax.device_get(member) for member in members]
    grams_of = gram_fn(model)
    images = [np.random.default_rng(seed).normal(size=(6, 8, 8, 1)).astype(np.float32) for seed in range(2)]
    grams = [grams_of(member, [data]) for member, data in zip(members, images, strict=True)]
    block = "Transformer/encoderblock_0"
    attention = f"{block}/MultiHeadDotProductAttention_0"
    sizes = {f"{attention}/{name}/kernel": 8 for name in ("query", "key", "value", "out")}
    sizes |= {f"{block}/MlpBlock_0/Dense_0/kernel": 8, f"{block}/MlpBlock_0/Dense_1/kernel": 16}
    sizes |= {"embedding/kernel": 16, "head/kernel": 8}
    assert {name: len(gram) for name, gram in grams[0].items()} == sizes
    patch = images[0][:, :4, :4, 0].reshape(6, 16)  # the patches are rows, flattened as the kernel's first axes
    corners = [images[0][:, i : i + 4, j : j + 4, 0].reshape(6, 16) for i in (0, 4) for j in (0, 4)]
    np.testing.assert_array_equal(corners[0], patch)
    rows = np.concatenate(corners)
    np.testing.assert_allclose(grams[0]["embedding/kernel"], rows.T @ rows / 24, rtol=1e-4, atol=1e-5)
    merged = regmean(members, grams)
    assert jax.tree.map(np.shape, merged) == jax.tree.map(np.shape, members[0])


def test_network_with_statistics():
    model = ConvNet(num_classes=2, widths=(3,))
    params = init(model, jax.random.key(0), (4, 4, 1))
    grams = linear_inputs_gram(model, params, [np.ones((2, 4, 4, 1), np.float32)], train=False)
    assert {name: gram.shape for name, gram in grams.items()} == {"params/head/kernel": (3, 3)}


class Stacked(nn.Module):
    """Scan over layers, whose kernels are then stacked."""

    @nn.compact
    def __call__(self, x):
        class Layer(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return nn.Dense(D)(x), None

        return nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)()(x, None)[0]


def test_errors():
    with pytest.raises(ValueError, match="no batches were given"):
        linear_inputs_gram(Twice(), PARAMS, [])
    with pytest.raises(ValueError, match=r"no kernel of an nn.Dense or nn.DenseGeneral matches 'share/\.\*'"):
        linear_inputs_gram(Twice(), PARAMS, BATCHES, only="share/.*")
    stacked = Stacked().init(jax.random.key(0), BATCHES[0])["params"]
    with pytest.raises(ValueError, match=r"nn.scan or nn.vmap, .* cannot be measured.*: ScanLayer_0/Dense_0/kernel"):
        linear_inputs_gram(Stacked(), stacked, BATCHES)
