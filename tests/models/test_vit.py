"""Compare the ViT with big_vision's names and with an independent forward pass in NumPy float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soups import models, tree
from soups.models.vit import patches

TINY = {"patch_size": 7, "width": 8, "depth": 1, "mlp_dim": 12, "num_heads": 2, "num_classes": 3}

# the names of big_vision's one-layer ViT, written out from its source
COMMON = {
    "embedding/kernel": (7, 7, 1, 8),
    "embedding/bias": (8,),
    "pos_embedding": (1, 4, 8),
    "Transformer/encoderblock_0/LayerNorm_0/scale": (8,),
    "Transformer/encoderblock_0/LayerNorm_0/bias": (8,),
    "Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel": (8, 2, 4),
    "Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/bias": (2, 4),
    "Transformer/encoderblock_0/MultiHeadDotProductAttention_0/key/kernel": (8, 2, 4),
    "Transformer/encoderblock_0/MultiHeadDotProductAttention_0/key/bias": (2, 4),
    "Transformer/encoderblock_0/MultiHeadDotProductAttention_0/value/kernel": (8, 2, 4),
    "Transformer/encoderblock_0/MultiHeadDotProductAttention_0/value/bias": (2, 4),
    "Transformer/encoderblock_0/MultiHeadDotProductAttention_0/out/kernel": (2, 4, 8),
    "Transformer/encoderblock_0/MultiHeadDotProductAttention_0/out/bias": (8,),
    "Transformer/encoderblock_0/LayerNorm_1/scale": (8,),
    "Transformer/encoderblock_0/LayerNorm_1/bias": (8,),
    "Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel": (8, 12),
    "Transformer/encoderblock_0/MlpBlock_0/Dense_0/bias": (12,),
    "Transformer/encoderblock_0/MlpBlock_0/Dense_1/kernel": (12, 8),
    "Transformer/encoderblock_0/MlpBlock_0/Dense_1/bias": (8,),
    "Transformer/encoder_norm/scale": (8,),
    "Transformer/encoder_norm/bias": (8,),
    "head/kernel": (8, 3),
    "head/bias": (3,),
}
EXTRA = {
    "gap": {},
    "tok": {"cls": (1, 1, 8)},
    "map": {
        "MAPHead_0/probe": (1, 1, 8),
        "MAPHead_0/MultiHeadDotProductAttention_0/query/kernel": (8, 2, 4),
        "MAPHead_0/MultiHeadDotProductAttention_0/query/bias": (2, 4),
        "MAPHead_0/MultiHeadDotProductAttention_0/key/kernel": (8, 2, 4),
        "MAPHead_0/MultiHeadDotProductAttention_0/key/bias": (2, 4),
        "MAPHead_0/MultiHeadDotProductAttention_0/value/kernel": (8, 2, 4),
        "MAPHead_0/MultiHeadDotProductAttention_0/value/bias": (2, 4),
        "MAPHead_0/MultiHeadDotProductAttention_0/out/kernel": (2, 4, 8),
        "MAPHead_0/MultiHeadDotProductAttention_0/out/bias": (8,),
        "MAPHead_0/LayerNorm_0/scale": (8,),
        "MAPHead_0/LayerNorm_0/bias": (8,),
        "MAPHead_0/MlpBlock_0/Dense_0/kernel": (8, 12),
        "MAPHead_0/MlpBlock_0/Dense_0/bias": (12,),
        "MAPHead_0/MlpBlock_0/Dense_1/kernel": (12, 8),
        "MAPHead_0/MlpBlock_0/Dense_1/bias": (8,),
    },
}


def abstract(model, image_shape=(14, 14, 1)):
    """Return the shapes and dtypes of the weights, without computing any."""
    return jax.eval_shape(lambda: models.init(model, jax.random.key(0), image_shape))


def weights(model, rng, image_shape=(14, 14, 1)):
    """Return random weights for every leaf, so that zero heads and unit scales hide nothing."""
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0.1, 0.5, leaf.shape), jnp.float32), abstract(model, image_shape)
    )


@pytest.mark.parametrize("pool_type", ["gap", "tok", "map"])
def test_names_and_shapes_are_those_of_big_vision(pool_type):
    params = abstract(models.ViT(**TINY, pool_type=pool_type))
    shapes = {name: leaf.shape for name, leaf in tree.flatten(params).items()}
    assert shapes == COMMON | EXTRA[pool_type]
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_representation_layer_is_named_pre_logits():
    params = abstract(models.ViT(**TINY, representation_size=5))
    shapes = {name: leaf.shape for name, leaf in tree.flatten(params).items()}
    more = {"pre_logits/kernel": (8, 5), "pre_logits/bias": (5,), "head/kernel": (5, 3)}
    assert shapes == COMMON | more


def test_patch_embedding_equals_a_strided_convolution(rng):
    images = jnp.asarray(rng.normal(size=(2, 12, 8, 3)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(4, 4, 3, 5)), jnp.float32)
    expected = jax.lax.conv_general_dilated(
        images, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
    )
    actual = jnp.einsum("btijc,ijcd->btd", patches(images, 4), kernel, precision="highest")
    np.testing.assert_allclose(actual, expected.reshape(2, 6, 5), rtol=1e-5, atol=1e-5)


GELUS = {
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "gelu": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))),
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
}


def numpy_vit(params, images, patch, pool_type, gelu="gelu_tanh", epsilon=1e-6, normalize=False):
    """Compute the logits in float64 with explicit loops over images, heads and tokens."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def norm(x, layer):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * layer["scale"] + layer["bias"]

    def mlp(x, block):
        h = x @ block["Dense_0"]["kernel"] + block["Dense_0"]["bias"]
        return GELUS[gelu](h) @ block["Dense_1"]["kernel"] + block["Dense_1"]["bias"]

    def attention(queries, x, layer):
        total = np.zeros((len(queries), x.shape[-1])) + layer["out"]["bias"]
        for head in range(layer["query"]["bias"].shape[0]):
            q, k, v = (
                z @ layer[name]["kernel"][:, head] + layer[name]["bias"][head]
                for z, name in ((queries, "query"), (x, "key"), (x, "value"))
            )
            scores = np.exp(q @ k.T / np.sqrt(q.shape[-1]))
            total += scores / scores.sum(-1, keepdims=True) @ v @ layer["out"]["kernel"][head]
        return total

    def one(image):
        cut = [
            image[i : i + patch, j : j + patch].ravel()
            for i in range(0, image.shape[0], patch)
            for j in range(0, image.shape[1], patch)
        ]
        x = np.stack(cut) @ p["embedding"]["kernel"].reshape(-1, p["pos_embedding"].shape[-1])
        x = x + p["embedding"].get("bias", 0) + p["pos_embedding"][0]
        if pool_type == "tok":
            x = np.concatenate([p["cls"][0], x])
        if "pre_norm" in p:
            x = norm(x, p["pre_norm"])
        blocks = [name for name in p["Transformer"] if name.startswith("encoderblock_")]
        for index in range(len(blocks)):
            block = p["Transformer"][f"encoderblock_{index}"]
            y = norm(x, block["LayerNorm_0"])
            x = x + attention(y, y, block["MultiHeadDotProductAttention_0"])
            x = x + mlp(norm(x, block["LayerNorm_1"]), block["MlpBlock_0"])
        x = norm(x, p["Transformer"]["encoder_norm"])
        if pool_type == "map":
            head = p["MAPHead_0"]
            y = attention(head["probe"][0], x, head["MultiHeadDotProductAttention_0"])
            x = (y + mlp(norm(y, head["LayerNorm_0"]), head["MlpBlock_0"]))[0]
        else:
            x = x[0] if pool_type == "tok" else x.mean(0)
        if "pre_logits" in p:
            x = np.tanh(x @ p["pre_logits"]["kernel"] + p["pre_logits"]["bias"])
        if "projection" in p:
            x = x @ p["projection"]["kernel"]
        x = x / np.sqrt((x**2).sum()) if normalize else x
        return x @ p["head"]["kernel"] + p["head"]["bias"] if "head" in p else x

    return np.stack([one(image) for image in np.asarray(images, np.float64)])


@pytest.mark.parametrize("pool_type", ["gap", "tok", "map"])
@pytest.mark.parametrize("representation_size", [None, 6])
def test_forward_pass_equals_numpy(rng, pool_type, representation_size):
    fields = {**TINY, "depth": 2, "pool_type": pool_type, "representation_size": representation_size}
    model = models.ViT(**fields)
    params = weights(model, rng, (14, 21, 2))
    images = rng.normal(size=(3, 14, 21, 2)).astype(np.float32)
    actual = models.apply_fn(model)(params, images)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, numpy_vit(params, images, 7, pool_type), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("pool_type", "gelu"), [("tok", "quick_gelu"), ("map", "gelu")])
def test_forward_pass_with_the_fields_of_clip_equals_numpy(rng, pool_type, gelu):
    fields = {"pre_norm": True, "embedding_bias": False, "projection_size": 5, "normalize": True}
    fields |= {"activation": gelu, "norm_epsilon": 0.3, "pool_type": pool_type}
    model = models.ViT(**TINY, **fields)
    params = weights(model, rng)
    more = {"pre_norm/scale": (8,), "pre_norm/bias": (8,), "projection/kernel": (8, 5), "head/kernel": (5, 3)}
    expected = {name: shape for name, shape in COMMON.items() if name != "embedding/bias"} | EXTRA[pool_type] | more
    assert {name: leaf.shape for name, leaf in tree.flatten(params).items()} == expected
    images = rng.normal(size=(3, 14, 14, 1)).astype(np.float32)
    logits = models.apply_fn(model)(params, images)
    np.testing.assert_allclose(
        logits, numpy_vit(params, images, 7, pool_type, gelu, 0.3, normalize=True), rtol=1e-4, atol=1e-4
    )


def test_without_classes_it_gives_the_features_before_the_head(rng):
    model = models.ViT(**TINY)
    params, images = weights(model, rng), rng.normal(size=(2, 14, 14, 1)).astype(np.float32)
    trunk = {name: leaf for name, leaf in params.items() if name != "head"}
    bare = models.ViT(**{**TINY, "num_classes": None})
    assert tree.names(abstract(bare)) == tree.names(trunk)
    features = models.apply_fn(bare)(trunk, images)
    np.testing.assert_allclose(features, numpy_vit(trunk, images, 7, "gap"), rtol=1e-4, atol=1e-4)


def test_rematerialised_blocks_have_the_same_weights_logits_and_gradients(rng):
    models_of = {remat: models.ViT(**TINY, remat=remat) for remat in (False, True)}
    params, images = weights(models_of[False], rng), rng.normal(size=(2, 14, 14, 1)).astype(np.float32)

    def loss(params, remat):
        logits, _ = models.train_apply_fn(models_of[remat])(params, images, jax.random.key(0))
        return jnp.sum(logits**2)

    def program(remat):
        return str(jax.make_jaxpr(lambda params: jax.grad(loss)(params, remat))(params))

    assert "remat" in program(True) and "remat" not in program(False)
    plain, again = (jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, remat) for remat in (False, True))
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        # the same sums, of up to 98 numbers (images times pixels of a patch), in another order: 98 · 2⁻²⁴ = 6e-6 of
        # their sizes, which are up to 10
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pool_type", ["gap", "tok", "map"])
def test_bfloat16_computes_close_to_float32_and_keeps_float32_weights(rng, pool_type):
    narrow = models.ViT(**TINY, pool_type=pool_type, dtype=jnp.bfloat16)
    params = weights(narrow, rng)
    images = rng.normal(size=(4, 14, 14, 1)).astype(np.float32)
    expected = models.apply_fn(models.ViT(**TINY, pool_type=pool_type))(params, images)
    actual = models.apply_fn(narrow)(params, images)
    assert actual.dtype == jnp.float32 and params["embedding"]["kernel"].dtype == jnp.float32
    assert not np.array_equal(actual, expected)
    np.testing.assert_allclose(actual, expected, atol=0.1)


def test_vmap_over_members_equals_one_by_one(rng):
    model = models.ViT(**TINY)
    members = [weights(model, rng) for _ in range(3)]
    images = rng.normal(size=(2, 14, 14, 1)).astype(np.float32)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    together = jax.vmap(models.apply_fn(model), in_axes=(0, None))(stacked, images)
    one_by_one = jnp.stack([models.apply_fn(model)(member, images) for member in members])
    # sums of up to 49 numbers, the pixels of a patch, in another order: 49 · 2⁻²⁴ = 3e-6 of their sizes, near 1
    np.testing.assert_allclose(together, one_by_one, rtol=1e-5, atol=1e-5)


def test_dropout_is_active_in_training_alone_and_follows_the_key(rng):
    model = models.ViT(**TINY, dropout=0.5)
    params, images = weights(model, rng), rng.normal(size=(2, 14, 14, 1)).astype(np.float32)
    train = models.train_apply_fn(model)
    first, same = train(params, images, jax.random.key(1)), train(params, images, jax.random.key(2))
    again, unchanged = train(params, images, jax.random.key(1))
    np.testing.assert_array_equal(first[0], again)
    assert not np.allclose(first[0], same[0])
    assert jax.tree.structure(unchanged) == jax.tree.structure(params)
    without = models.apply_fn(models.ViT(**TINY))(params, images)
    np.testing.assert_array_equal(models.apply_fn(model)(params, images), without)


def test_start_weights_are_plain_concrete_and_give_zero_logits():
    model = models.ViT(**TINY, pool_type="map")
    params = models.init(model, jax.random.key(0), (14, 14, 1))
    assert type(params) is dict and tree.all_finite(params)
    assert np.std(params["embedding"]["kernel"]) > 0
    np.testing.assert_array_equal(models.apply_fn(model)(params, jnp.ones((2, 14, 14, 1))), np.zeros((2, 3)))


def test_published_sizes_have_their_published_number_of_parameters():
    def count(name, **fields):
        model = models.vit(name, num_classes=1000, **fields)
        return tree.count(abstract(model, (224, 224, 3)))

    # 86.6M and 22.1M (Steiner et al., 2021) are with a class token, and a position for it that is part of it here
    assert count("B/16", pool_type="tok") == 86_567_656 - 768
    assert count("S/16", pool_type="tok") == 22_050_664 - 384
    assert models.vit("L/14", num_classes=2, dropout=0.1).patch_size == 14


@pytest.mark.parametrize(
    ("change", "shape", "message"),
    [
        ({}, (2, 15, 14, 1), "images of 15x14 do not divide into patches of 7"),
        ({}, (14, 14, 1), r"must be \[B, H, W, C\]"),
        ({"num_heads": 3}, (2, 14, 14, 1), "width 8 does not divide into 3 heads"),
        ({"pool_type": "mean"}, (2, 14, 14, 1), "unknown pool_type 'mean'; there are: gap, map, tok"),
        ({"activation": "gelu_new"}, (2, 14, 14, 1), "unknown activation 'gelu_new'"),
    ],
)
def test_impossible_sizes_are_errors(change, shape, message):
    model = models.ViT(**{**TINY, **change})
    with pytest.raises(ValueError, match=message):
        model.init(jax.random.key(0), jnp.zeros(shape))


@pytest.mark.parametrize("name", ["B", "B/", "B/x", "", "Base/16", "/16"])
def test_unknown_names_are_errors(name):
    with pytest.raises(ValueError, match="no ViT is named"):
        models.vit(name, num_classes=10)


def test_unknown_name_suggests_a_known_one():
    with pytest.raises(ValueError, match="did you mean 'Ti/16'"):
        models.vit("tiny/16", num_classes=10)
