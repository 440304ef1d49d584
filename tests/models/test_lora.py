"""Train low-rank changes of matrices: against the merged matrices, and the formula in NumPy."""

import jax
import numpy as np
import optax
import pytest

from soups import tree
from soups.models import LORA_RULES, Decoder, apply_fn, init, lora_fn, lora_params, merge_lora, train_apply_fn, vit
from soups.train import NextToken, fit

SIZES = {"width": 16, "depth": 1, "mlp_dim": 24, "num_heads": 4, "vocabulary_size": 20, "context_length": 8}
LLAMA = {"num_kv_heads": 2, "rope_theta": 1e4, "rms_norm": True, "gated": True, "use_bias": False, "activation": "silu"}
TOKENS = {"tokens": np.arange(12).reshape(2, 6).astype(np.int32), "mask": np.ones((2, 6), bool)}


def drawn(params, rng):
    """Return every "b", which begins as zeros, random numbers."""

    def draw(name, leaf):
        return rng.normal(size=leaf.shape).astype(np.float32) if name.endswith("/b") else leaf

    return {"base": params["base"], "lora": tree.map_with_names(draw, params["lora"])}


@pytest.fixture(scope="module")
def decoder():
    """Return a small Llama with its weights."""
    model = Decoder(None, **SIZES, **LLAMA)
    return model, init(model, jax.random.key(0), TOKENS)


def test_a_change_begins_as_none_and_is_that_of_the_merged_matrices(decoder, rng):
    model, base = decoder
    params = lora_params(model, base, TOKENS, jax.random.key(1), rank=3, only=".*")
    block = "Transformer/encoderblock_0/"
    shapes = {name.removeprefix(block): leaf.shape for name, leaf in tree.flatten(params["lora"]).items()}
    attention = "MultiHeadDotProductAttention_0"
    assert shapes[f"{attention}/key/a"] == (16, 3) and shapes[f"{attention}/key/b"] == (3, 2, 4)
    assert shapes[f"{attention}/out/a"] == (4, 4, 3) and shapes["MlpBlock_0/gate/b"] == (3, 24) and len(shapes) == 14
    plain, adapted = jax.jit(apply_fn(model)), jax.jit(lora_fn(apply_fn(model), alpha=6.0))
    np.testing.assert_allclose(adapted(params, TOKENS), plain(base, TOKENS), rtol=1e-5, atol=1e-6)
    moved = drawn(params, rng)
    merged = merge_lora(moved, alpha=6.0)
    tree.check_same_structure([base, merged])
    np.testing.assert_allclose(adapted(moved, TOKENS), plain(merged, TOKENS), rtol=1e-3, atol=1e-4)
    a, b = (np.asarray(tree.flatten(moved["lora"])[f"{block}{attention}/query/{part}"], np.float64) for part in "ab")
    kernel = tree.flatten(base)[f"{block}{attention}/query/kernel"]
    found = tree.flatten(merged)[f"{block}{attention}/query/kernel"]
    np.testing.assert_allclose(found, kernel + 2.0 * np.einsum("dr,rhe->dhe", a, b), rtol=1e-5)


def test_only_the_changes_are_trained(decoder):
    model, base = decoder
    params = lora_params(model, base, TOKENS, jax.random.key(1), rank=2)
    loss = NextToken(lora_fn(train_apply_fn(model)))
    data = TOKENS | {"learned": np.ones((2, 6), bool)}
    options = {"batch_size": 2, "epochs": 20, "optimizer": optax.adamw, "learning_rate_rules": LORA_RULES}
    made = fit(loss, params, data, hyperparameters={"learning_rate": 0.03, "weight_decay": 0.0}, **options)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(made["params"]["base"]), base)
    assert made["losses"][-1] < made["losses"][0] - 0.1
    assert all(leaf.any() for leaf in jax.tree.leaves(jax.device_get(made["params"]["lora"])))


def test_networks_of_images_have_changes_too(rng):
    model = vit("mu/4", num_classes=3)
    base = init(model, jax.random.key(0), (8, 8, 1))
    images = rng.uniform(size=(2, 8, 8, 1)).astype(np.float32)
    params = drawn(lora_params(model, base, images, jax.random.key(0), only=".*MlpBlock_0.*"), rng)
    found = jax.jit(lora_fn(apply_fn(model)))(params, images)
    np.testing.assert_allclose(found, jax.jit(apply_fn(model))(merge_lora(params), images), rtol=1e-3, atol=1e-4)


def test_what_cannot_be_changed_is_an_error(decoder):
    model, base = decoder
    with pytest.raises(
        ValueError, match=r"no linear layer matches only='head\.\*'; kernels of linear layers are Transf"
    ):
        lora_params(model, base, TOKENS, jax.random.key(0), only="head.*")
    with pytest.raises(ValueError, match="rank"):
        lora_params(model, base, TOKENS, jax.random.key(0), rank=0)
