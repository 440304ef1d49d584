"""Test the named architectures: their published sizes, and what their images become."""

import dataclasses
import inspect

import jax
import numpy as np
import pytest

from soups import models, tree
from soups.models.architectures import ARCHITECTURES, architecture


def text_weights(arch):
    tokens = jax.ShapeDtypeStruct((1, 77), np.int32)
    return jax.eval_shape(arch.text.init, jax.random.key(0), tokens)["params"]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # the published counts, less the class token's position, which is a part of the class token here
        ("clip-vit-b32", 88_362_216 - 768),
        ("vit-b16", 86_567_656 - 768),
        ("resnet50", 25_557_032 + 53_120),  # with the means and variances of its BatchNorm
        ("efficientnet-lite0", 4_652_008 + 42_016),
        ("efficientnet-lite4", 13_006_568 + 112_368),
    ],
)
def test_classifiers_of_1000_classes_have_the_published_number_of_weights(name, count):
    assert tree.count(architecture(name).abstract(1000)) == count


def test_both_towers_together_have_the_published_number_of_weights():
    arch = architecture("clip-vit-b32")
    # 151,277,313 with the temperature and the class token's position
    assert tree.count(arch.abstract(None)) + tree.count(text_weights(arch)) == 151_277_313 - 1 - 768


@pytest.mark.parametrize("name", ["clip-vit-mini", "vit-ti16"])
def test_without_classes_there_is_no_head(name):
    arch = architecture(name)
    bare, whole = (tree.flatten(arch.abstract(classes)) for classes in (None, 7))
    head = {name: leaf.shape for name, leaf in whole.items() if name not in bare}
    assert head == {"head/kernel": (arch.feature_dim, 7), "head/bias": (7,)}


def test_every_architecture_can_be_made():
    for name in ARCHITECTURES:
        arch = architecture(name)
        assert arch.name == name and (arch.image_size is None or len(arch.mean) == len(arch.std) == 3)
        assert "remat" in inspect.signature(type(arch.model(5, dtype=jax.numpy.bfloat16, remat=True))).parameters
        if "vit" in name:
            assert arch.image_size % arch.features.patch_size == 0 and arch.features.width % 64 == 0
            assert arch.features.num_heads == arch.features.width // 64


@pytest.mark.parametrize(
    ("name", "activation", "epsilon", "mean"),
    [
        ("clip-vit-l14-336", "quick_gelu", 1e-5, 0.48145466),
        ("open-clip-vit-b16", "gelu", 1e-5, 0.48145466),
        ("open-clip-vit-l14-half", "gelu", 1e-5, 0.5),
        ("vit-s16", "gelu_tanh", 1e-6, 0.5),
        ("timm-vit-s16", "gelu", 1e-6, 0.5),
        ("hf-vit-s16", "gelu", 1e-12, 0.5),
    ],
)
def test_families_differ_in_activation_epsilon_and_mean(name, activation, epsilon, mean):
    arch = architecture(name)
    assert (arch.features.activation, arch.features.norm_epsilon, arch.mean[0]) == (activation, epsilon, mean)


def test_images_are_normalised_and_features_of_clip_have_length_one(small, rng):
    arch = small("clip-vit-mini")
    params = models.init(arch.model(3), jax.random.key(0), (12, 12, 3))
    params = models.replace_head(params, jax.random.key(1), 3, zero=False)
    images = rng.random((2, 12, 12, 3)).astype(np.float32)
    mean, std = (np.asarray(x, np.float32) for x in (arch.mean, arch.std))
    seen = (images - mean[None, None, None]) / std[None, None, None]
    expected = models.apply_fn(arch.model(3))(params, seen)
    np.testing.assert_allclose(arch.apply_fn(3)(params, images), expected, rtol=1e-4, atol=1e-5)
    logits, _ = arch.train_apply_fn(3, remat=True)(params, images, jax.random.key(0))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    features = arch.apply_fn(None)({k: x for k, x in params.items() if k != "head"}, images)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)


def test_an_architecture_of_ones_own_is_taken_as_it_is():
    own = dataclasses.replace(architecture("vit-ti16"), name="my own", image_size=32)
    assert architecture(own) is own


def test_unknown_names_are_errors():
    with pytest.raises(ValueError, match=r"unknown architecture 'clip-vit-b-32'.*did you mean 'clip-vit-b32'"):
        architecture("clip-vit-b-32")
