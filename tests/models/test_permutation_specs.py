"""Check that the specs of the built-in networks leave their functions unchanged, and that a wrong one shows."""

import jax
import numpy as np
import pytest
from flax import linen as nn
from random_weights import random_weights

from soups import models
from soups.models.mlp import MLP
from soups.models.permutation_specs import permutation_spec
from soups.models.resnet import ResNet
from soups.recipes.permutation import check_function_unchanged, check_spec, permute, random_permutations
from soups.recipes.rebasin import weight_matching

SHAPE = (4, 4, 2)
VIT = {"num_classes": 3, "patch_size": 2, "width": 6, "depth": 2, "mlp_dim": 7, "num_heads": 3}
CLIP = {
    "pool_type": "tok",
    "pre_norm": True,
    "embedding_bias": False,
    "projection_size": 4,
    "normalize": True,
    "activation": "quick_gelu",
}
BLOCKS = ("MlpBlock_0", "MultiHeadDotProductAttention_0")
HEADS = {
    f"{place}/{block}": units
    for place in ("Transformer/encoderblock_0", "Transformer/encoderblock_1")
    for block, units in zip(BLOCKS, (7, 3), strict=True)
}
MAP_HEADS = {"MAPHead_0/MlpBlock_0": 7, "MAPHead_0/MultiHeadDotProductAttention_0": 3}
RESNET = {"stage_0_0": 4, "stage_0_1": 4, "stage_1_0": 8, "stage_1_1": 8}

CASES = {  # network, whether the residual stream is permuted, and the sizes of its permutations
    "mlp": (MLP(3, widths=(5, 6)), True, {"layer_0": 5, "layer_1": 6}),
    "convnet": (
        models.ConvNet(3, widths=(4, 5), depth=2),
        True,
        {"stage_0_0": 4, "stage_0_1": 4, "stage_1_0": 5, "stage_1_1": 5},
    ),
    "resnet with LayerNorm": (
        ResNet(3, blocks=(2, 2), width_multiplier=0.25),
        True,
        {**RESNET, "stage_0": 4, "stage_1": 8},
    ),
    "resnet with BatchNorm": (ResNet(3, blocks=(2, 2), width_multiplier=0.25, norm="batch"), False, RESNET),
    "vit with map": (
        models.ViT(**VIT, pool_type="map", representation_size=5),
        True,
        {**HEADS, **MAP_HEADS, "stream": 6, "pre_logits": 5},
    ),
    "vit with token": (models.ViT(**VIT, pool_type="tok"), True, {**HEADS, "stream": 6}),
    "vit without stream": (models.ViT(**VIT), False, HEADS),
    "vit without head": (models.ViT(**{**VIT, "num_classes": None}, pool_type="map"), True, {**HEADS, **MAP_HEADS}),
    "vit that gives a representation": (
        models.ViT(**{**VIT, "num_classes": None}, representation_size=5),
        True,
        {**HEADS, "stream": 6},
    ),
    "clip": (models.ViT(**VIT, **CLIP), True, {**HEADS, "stream": 6, "projection": 4}),
    "clip without head": (models.ViT(**{**VIT, "num_classes": None}, **CLIP), True, {**HEADS, "stream": 6}),
}


@pytest.fixture(params=CASES)
def case(request):
    model, residual, sizes = CASES[request.param]
    params = random_weights(model, SHAPE)
    return model, params, permutation_spec(model, params, residual=residual), sizes


def test_function_is_unchanged(case):
    model, params, spec, _ = case
    permutations = random_permutations(spec, params, jax.random.key(1))
    inputs = np.random.default_rng(1).normal(size=(3, *SHAPE)).astype(np.float32)
    assert all(np.any(order != np.arange(len(order))) for order in permutations.values())
    check_function_unchanged(models.apply_fn(model), params, permutations, spec, inputs, tolerance=1e-5)


def test_permutations_are_those_that_are_documented(case):
    _, params, spec, sizes = case
    assert check_spec(spec, params) == sizes


def test_permuted_copy_is_recovered(case):
    _, params, spec, _ = case
    copy = permute(params, random_permutations(spec, params, jax.random.key(1)), spec)
    found = weight_matching(params, copy, spec, key=jax.random.key(2)).permutations
    jax.tree.map(np.testing.assert_array_equal, permute(copy, found, spec), params)


def test_wrong_spec_is_found_out():
    model, _, _ = CASES["mlp"]
    model = model.clone(widths=(5, 5))
    params = random_weights(model, SHAPE)
    spec = {**permutation_spec(model, params), "layer_1/bias": ("layer_0",)}
    inputs = np.random.default_rng(1).normal(size=(3, *SHAPE)).astype(np.float32)
    permutations = random_permutations(spec, params, jax.random.key(1))
    with pytest.raises(ValueError, match=r"alone: layer_0 \(.*\), layer_1 \("):
        check_function_unchanged(models.apply_fn(model), params, permutations, spec, inputs)


def test_unknown_networks_and_weights_of_others_are_errors():
    with pytest.raises(
        ValueError, match="no permutation spec for Dense, only for MLP, ConvNet, ResNet, ViT: write one"
    ):
        permutation_spec(nn.Dense(3), {})
    with pytest.raises(ValueError, match=r"rule 'layer_2/kernel' matches no leaf"):
        permutation_spec(MLP(3, widths=(5, 6, 7)), random_weights(MLP(3, widths=(5, 6)), SHAPE))
