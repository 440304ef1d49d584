"""Test that the output's config says what was written: layers, what is listed for each of them, dtypes, vocabulary."""

import json

import numpy as np
import pytest

from soups import merging


@pytest.fixture
def cut(small, tmp_path):
    """Return a function that cuts layers of "a" and "b" with these stacks and configs, and returns config and notes."""

    def make(stacks, configs, slices, stack=None):
        for name, config in zip("ab", configs, strict=True):
            leaves = {f"{s}.{i}.weight": np.ones((2, 3), np.float32) for s, n in stacks.items() for i in range(n)}
            small.write_model(tmp_path / name, leaves, config)
        parts = [
            {"sources": [{"model": tmp_path / name, "layer_range": list(span)}]} | ({"stack": stack} if stack else {})
            for name, span in slices
        ]
        plan = small.plan({"merge_method": "passthrough", "slices": parts, "insist": True})
        return json.loads(merging.folder_files(plan)["config.json"]), merging.folder_notes(plan)

    return make


STACK = [("a", (0, 3)), ("b", (1, 4))]  # layers 0 1 2 of a, then 1 2 3 of b


@pytest.mark.parametrize(
    ("name", "of_a", "of_b", "expected"),
    [
        ("layer_types", list("abcd"), list("efgh"), list("abcfgh")),
        ("layers_block_type", list("mmam"), list("mmam"), list("mmamam")),
        ("no_rope_layers", [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1, 1, 0]),
        ("attn_layers", ["local", "lsh", "local", "lsh"], ["lsh"] * 4, ["local", "lsh", "local"] + ["lsh"] * 3),
        ("attention_window", [8, 16, 32, 64], [8, 16, 32, 64], [8, 16, 32, 16, 32, 64]),
        ("intermediate_size", [8, 16, 32, 64], [8, 16, 32, 64], [8, 16, 32, 16, 32, 64]),
        ("block_configs", [{"x": i} for i in range(4)], [{"y": i} for i in range(4)], None),
        ("hybrid_override_pattern", "M-M*", "*M-M", "M-MM-M"),
        ("mlp_only_layers", [0, 3], [1], [0, 3]),
        ("mlp_only_layers", [], [0, 3], [5]),
        ("moe_layers", [0, 1, 2, 3], [1, 3], [0, 1, 2, 3, 5]),
        ("hybrid_layer_ids", [2], [2], [2, 4]),
        ("full_attn_idxs", [1, 3], [1, 3], [1, 3, 5]),
    ],
)
def test_what_is_listed_by_layer_follows_the_layers(cut, name, of_a, of_b, expected):
    if expected is None:
        expected = of_a[:3] + of_b[1:]
    configs = [{"num_hidden_layers": 4, name: value} for value in (of_a, of_b)]
    config, notes = cut({"model.layers": 4}, configs, STACK)
    assert config == {"num_hidden_layers": 6, name: expected}
    assert notes == ([f"config.json: {name} follows the layers"] if expected != of_a else [])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("architectures", ["A", "B", "C", "D"]),
        ("eos_token_id", [1, 2, 3, 4]),
        ("image_mean", [0.5] * 4),
        ("depths", [2, 2, 6, 2]),
        ("out_indices", [0, 1, 2, 3]),
        ("suppress_tokens", [0, 1, 2, 3]),
        ("hidden_act", "gelu"),
        ("auto_map", {"AutoModel": "x"}),
    ],
)
def test_other_lists_stay(cut, name, value):
    config, notes = cut({"model.layers": 4}, [{"num_hidden_layers": 4, name: value}] * 2, STACK)
    assert config == {"num_hidden_layers": 6, name: value} and notes == []


def test_a_list_that_one_model_lacks_cannot_follow(cut):
    configs = {"num_hidden_layers": 4, "layer_types": list("abcd")}, {"num_hidden_layers": 4}
    config, notes = cut({"model.layers": 4}, configs, STACK)
    assert config["layer_types"] == list("abcd")
    assert "config.json: layer_types cannot follow the layers, for not all models have it: check it" in notes


@pytest.mark.parametrize(
    ("config", "spans", "said"),
    [
        ({"sliding_window_pattern": 2}, [(0, 2), (0, 2)], False),
        ({"sliding_window_pattern": 2}, [(0, 3), (1, 4)], False),
        ({"sliding_window_pattern": 3}, [(0, 3), (1, 4)], True),
        ({"sliding_window_pattern": 3, "layer_types": list("abcd")}, [(0, 3), (1, 4)], False),
        ({"full_attention_interval": 4}, [(0, 2), (3, 4)], True),
        ({"decoder_sparse_step": 1}, [(0, 2), (3, 4)], False),
        ({"interleave_moe_layer_step": 2}, [(0, 2), (3, 4)], True),
        ({"global_attn_every_n_layers": 3}, [(1, 4)], True),
        ({"first_k_dense_replace": 1}, [(0, 3), (1, 4)], False),
        ({"first_k_dense_replace": 1}, [(0, 3), (0, 3)], True),
        ({"attention_types": [[["global", "local"], 2]]}, [(0, 2), (0, 2)], True),
        ({"num_kv_shared_layers": 2, "layer_types": list("abcd")}, [(0, 2), (3, 4)], True),
        ({"num_kv_shared_layers": 2}, [(0, 2), (3, 4)], True),
        ({"block_types": ["recurrent", "attention"]}, [(0, 2), (1, 4)], True),
        ({"block_types": ["recurrent", "attention"]}, [(0, 3), (1, 4)], False),
        ({"linear_attn_config": {"full_attn_layers": [2, 4]}}, [(0, 2), (1, 4)], True),
        ({"linear_attn_config": {"full_attn_layers": []}}, [(0, 2), (1, 4)], False),
        ({"vision_config": {"moe_layers": [2, 4]}}, [(0, 2), (1, 4)], False),
        ({"audio_encoder": {"moe_layers": [2, 4]}}, [(0, 2), (1, 4)], False),
        ({"num_kv_shared_layers": 0}, [(0, 2), (3, 4)], False),
        ({"max_window_layers": 2, "use_sliding_window": False}, [(0, 3), (1, 4)], False),
        ({"max_window_layers": 2, "use_sliding_window": True}, [(0, 3), (1, 4)], True),
    ],
)
def test_rules_by_number_that_moved_layers_break_are_said(cut, config, spans, said):
    name, value = next(iter(config.items()))
    found, notes = cut(
        {"h": 4},
        [{"n_layer": 4} | config] * 2,
        [("a", span) for span in spans][:1] + [("b", span) for span in spans[1:]],
    )
    assert found[name] == value and found["n_layer"] == sum(end - first for first, end in spans)
    expected = f"config.json: {name} {value} goes by the numbers of layers, which changed: check it"
    assert (expected in notes) == said


TEXT, VISION = {"num_hidden_layers": 4, "layer_types": list("abcd")}, {"num_hidden_layers": 4, "x": list("efgh")}
BOTH = {"text_config": TEXT, "vision_config": VISION}
TEXT_CUT = {"num_hidden_layers": 6, "layer_types": list("abcbcd")}
VISION_CUT = {"num_hidden_layers": 6, "x": list("efgfgh")}
T5, WHISPER = {"num_layers": 4, "is_encoder_decoder": True}, {"encoder_layers": 4, "decoder_layers": 4}


@pytest.mark.parametrize(
    ("stacks", "stack", "config", "changes"),
    [
        ("T5", "encoder", T5, {"num_layers": 6, "num_decoder_layers": 4}),
        ("T5", "decoder", T5, {"num_decoder_layers": 6}),
        ("T5", "decoder", T5 | {"num_decoder_layers": 4}, {"num_decoder_layers": 6}),
        ("Whisper", "model.decoder", WHISPER | {"num_hidden_layers": 4}, {"decoder_layers": 6}),
        (
            *("Whisper", "model.encoder", WHISPER | {"num_hidden_layers": 4}),
            {"encoder_layers": 6, "num_hidden_layers": 6},
        ),
        ("CLIP", "text_model", BOTH, {"text_config": TEXT_CUT}),
        ("CLIP", "vision_model", BOTH, {"vision_config": VISION_CUT}),
        (
            *("CLIP", "text_model", {"text_config": TEXT, "text_config_dict": {"num_hidden_layers": 4}}),
            {"text_config": TEXT_CUT, "text_config_dict": {"num_hidden_layers": 6}},
        ),
        ("LLaVA", "language_model", BOTH, {"text_config": TEXT_CUT}),
        ("Gemma 3", "model.language_model", BOTH, {"text_config": TEXT_CUT}),
        ("Gemma 3", "model.vision_tower", BOTH, {"vision_config": VISION_CUT}),
        ("Qwen2-VL", "model.layers", {**TEXT, "vision_config": {"depth": 4}}, TEXT_CUT),
        ("Qwen2-VL", "visual", {**TEXT, "vision_config": {"depth": 4}}, {"vision_config": {"depth": 6}}),
        ("Qwen2-VL", "model.layers", {"text_config": TEXT}, {"text_config": TEXT_CUT}),
        ("pair", "decoder", {"encoder": TEXT, "decoder": TEXT}, {"decoder": TEXT_CUT}),
    ],
)
def test_the_part_of_the_stack_that_is_cut_is_patched_and_no_other(cut, stacks, stack, config, changes):
    names = {
        "T5": ("encoder.block", "decoder.block"),
        "Whisper": ("model.encoder.layers", "model.decoder.layers"),
        "CLIP": ("text_model.encoder.layers", "vision_model.encoder.layers"),
        "LLaVA": ("language_model.model.layers", "vision_tower.vision_model.encoder.layers"),
        "Gemma 3": ("model.language_model.layers", "model.vision_tower.vision_model.encoder.layers"),
        "Qwen2-VL": ("model.layers", "visual.blocks"),
        "pair": ("encoder.encoder.layer", "decoder.bert.encoder.layer"),
    }[stacks]
    found, _ = cut(dict.fromkeys(names, 4), [config] * 2, STACK, stack)
    assert found == config | changes


def test_a_config_without_a_number_of_layers_is_said(cut):
    config, notes = cut({"model.layers": 4}, [{}, {}], STACK)
    assert config == {} and notes == ["config.json says nothing of the number of layers of model.layers: it has 6 now"]


# --- Dtypes ---


def test_the_dtype_is_that_of_most_numbers_in_every_part(small, tmp_path):
    config = {"torch_dtype": "float16", "text_config": {"dtype": None, "x": 1}, "vision_config": {"x": 1}}
    leaves = {"wide": np.zeros((9, 9), np.float32), "narrow": np.zeros(3, np.float16)}
    small.write_model(tmp_path / "a", leaves, config)
    recipe = {"merge_method": "passthrough", "models": [{"model": tmp_path / "a"}]}

    def written(**fields):
        return json.loads(merging.folder_files(small.plan(recipe | fields))["config.json"])

    assert written() == {
        "torch_dtype": "float32",
        "text_config": {"dtype": "float32", "x": 1},
        "vision_config": {"x": 1},
    }
    assert written(out_dtype="bfloat16")["text_config"]["dtype"] == "bfloat16"


def test_a_config_beside_no_floats_stays(small, tmp_path):
    small.write_model(tmp_path / "a", {"steps": np.arange(3)}, {"torch_dtype": "float16"})
    plan = small.plan({"merge_method": "passthrough", "models": [{"model": tmp_path / "a"}]})
    assert json.loads(merging.folder_files(plan)["config.json"]) == {"torch_dtype": "float16"}
