"""Test that slices cut the stack of layers that is meant, of models with several of them."""

import numpy as np
import pytest

from soups.formats import write_safetensors
from soups.merging.job import Slice, Source
from soups.merging.stacks import count_layers, cut_stack, depth, layer_of

SEVERAL = {
    "T5": ("encoder.block", "decoder.block"),
    "Whisper": ("model.encoder.layers", "model.decoder.layers"),
    "CLIP": ("text_model.encoder.layers", "vision_model.encoder.layers"),
    "LLaVA": ("language_model.model.layers", "vision_tower.vision_model.encoder.layers"),
    "Gemma 3": ("model.language_model.layers", "model.vision_tower.vision_model.encoder.layers"),
    "OpenAI's CLIP": ("transformer.resblocks", "visual.transformer.resblocks"),
    "Qwen2-VL": ("model.layers", "visual.blocks"),
}


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.3.mlp.weight", ("model.layers", 3)),
        ("h.11.attn.bias", ("h", 11)),
        ("encoder.block.2.layer.0.SelfAttention.q.weight", ("encoder.block", 2)),
        ("Transformer/encoderblock_4/bias", ("Transformer/encoderblock", 4)),
        ("feature_extractor.conv_layers.0.conv.weight", None),
        ("layer1.0.conv.weight", None),
        ("lm_head.weight", None),
    ],
)
def test_layers_are_found_by_name(name, layer):
    assert layer_of(name) == layer


def names(stacks, layers=3):
    return [f"{stack}.{i}.weight" for stack in stacks for i in range(layers)]


@pytest.mark.parametrize("model", SEVERAL)
def test_a_model_of_several_stacks_is_cut_only_where_the_recipe_says(model):
    stacks = SEVERAL[model]
    sources = (Source("m", {}, (0, 2)),)
    with pytest.raises(ValueError, match="m has several stacks of layers") as error:
        cut_stack(Slice(sources), names(stacks))
    for stack in stacks:
        assert f"{stack} (3 layers)" in str(error.value)
        assert cut_stack(Slice(sources, stack=stack), names(stacks)) == stack
        if (root := stack.rpartition(".")[0]) not in ("", "model"):
            assert cut_stack(Slice(sources, stack=root), names(stacks)) == stack
    with pytest.raises(ValueError, match="no stack of layers 'audio'; it has"):
        cut_stack(Slice(sources, stack="audio"), names(stacks))


def test_a_model_without_layers_cannot_be_cut():
    with pytest.raises(ValueError, match="m has no layers to cut"):
        cut_stack(Slice((Source("m", {}, (0, 2)),)), ["lm_head.weight"])


def test_depth_is_that_in_the_own_stack():
    counts = count_layers(names(["encoder.block"], 3) + names(["decoder.block"], 5))
    assert counts == {"encoder.block": 3, "decoder.block": 5}
    assert [depth(f"{stack}.2.w", counts) for stack in counts] == [1.0, 0.5] and depth("head", counts) == 0


def leaves(seed, layers):
    rng = np.random.default_rng(seed)
    named = [f"{stack}.{i}.weight" for stack, number in layers.items() for i in range(number)]
    rest = ["shared.weight", "encoder.embed.weight", "encoder.norm.weight", "decoder.norm.weight", "lm_head.weight"]
    return {name: rng.normal(size=(2, 3)).astype(np.float32) for name in named + rest}


@pytest.fixture
def stacked(small, tmp_path):
    """Return the arrays of two models of two stacks and a function that merges slices of them."""
    made = {name: leaves(seed, {"encoder.block": 2, "decoder.block": 3}) for seed, name in enumerate("ab")}
    for name, arrays in made.items():
        write_safetensors(tmp_path / f"{name}.safetensors", arrays)

    def merge(*slices):
        parts = [
            {"sources": [{"model": tmp_path / f"{model}.safetensors", "layer_range": span}], "stack": stack}
            for model, span, stack in slices
        ]
        return small.merge({"merge_method": "passthrough", "slices": parts}, tmp_path / "out")

    return made, merge


def test_slices_of_one_stack_leave_the_other_whole(stacked):
    made, merge = stacked
    merged = merge(("a", [0, 2], "decoder.block"), ("b", [1, 3], "decoder"))
    expected = {f"decoder.block.{i}.weight": made["a"][f"decoder.block.{i}.weight"] for i in range(2)}
    expected |= {f"decoder.block.{i + 1}.weight": made["b"][f"decoder.block.{i}.weight"] for i in (1, 2)}
    # the encoder comes from the first slice with its norm; embeddings too; what follows the layers from the last
    of_a = [n for n in made["a"] if n.startswith("encoder.")]
    expected |= {name: made["a"][name] for name in of_a}
    expected |= {name: made["b"][name] for name in ("decoder.norm.weight", "lm_head.weight")}
    expected["shared.weight"] = made["a"]["shared.weight"]
    assert set(merged) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(merged[name], array, err_msg=name)


def test_two_stacks_are_cut_each_by_its_slices(stacked):
    made, merge = stacked
    merged = merge(
        ("a", [1, 2], "encoder"), ("b", [0, 2], "encoder"), ("a", [2, 3], "decoder"), ("b", [0, 1], "decoder")
    )
    origin = {
        **{"encoder.block.0.weight": ("a", 1), "encoder.block.1.weight": ("b", 0), "encoder.block.2.weight": ("b", 1)},
        **{"decoder.block.0.weight": ("a", 2), "decoder.block.1.weight": ("b", 0)},
    }
    for name, (model, layer) in origin.items():
        source = f"{name.split('.block')[0]}.block.{layer}.weight"
        np.testing.assert_array_equal(merged.pop(name), made[model][source], err_msg=name)
    outside = {
        "encoder.embed.weight": "a",
        "encoder.norm.weight": "b",
        "decoder.norm.weight": "b",
        "shared.weight": "a",
        "lm_head.weight": "b",
    }
    for name, array in merged.items():
        np.testing.assert_array_equal(array, made[outside[name]][name], err_msg=name)
    assert set(merged) == set(outside)


def test_a_range_of_any_size_is_an_error_at_once(stacked):
    with pytest.raises(ValueError, match=r"a\.safetensors has 3 layers, not 1000000000000"):
        stacked[1](("a", [0, 10**12], "decoder"))


@pytest.mark.parametrize("stack", [3, ["a"]])
def test_a_stack_is_a_name(stacked, stack):
    with pytest.raises(ValueError, match="stack must be the name of a stack of layers"):
        stacked[1](("a", [0, 1], stack))
