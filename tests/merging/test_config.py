"""Test that configs are understood: what makes a sum meaningless, what is only said, what is passed over."""

import copy
import json
import shutil

import pytest

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 3,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "_name_or_path": "here",
    "torch_dtype": "float32",
    "num_hidden_layers": 3,
    "pad_token_id": 0,
}
LABELS = {"id2label": {"0": "negative", "1": "positive"}, "label2id": {"negative": 0, "positive": 1}}


@pytest.fixture
def pair(small, tmp_path):
    """Return a function that plans a merge of "base" and "a" with these configs."""

    def make(one, other, insist=None, **more):
        for name, config in (("base", one), ("a", other)):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
            small.write_model(tmp_path / name, small.tensors(name == "a"), config)
        members = [{"model": tmp_path / name, "parameters": {"weight": 1}} for name in ("base", "a")]
        recipe = {"merge_method": "linear", "models": members, **more}
        return small.plan(recipe | ({} if insist is None else {"insist": insist}))

    return make


def changed(config, path, value):
    config = copy.deepcopy(config)
    *parts, last = path.split(".")
    inner = config
    for part in parts:
        inner = inner.setdefault(part, {})
    inner[last] = value
    return config


@pytest.mark.parametrize(
    ("start", "path", "values"),
    [
        (LLAMA, "model_type", ("llama", "mistral")),
        ({}, "architectures", (["LlamaForCausalLM"], ["MistralForCausalLM"])),
        ({}, "architectures", (["RobertaModel"], ["XLMRobertaModel"])),
        (LLAMA, "num_attention_heads", (2, 3)),
        (LLAMA, "num_key_value_heads", (1, 2)),
        (LLAMA, "head_dim", (3, 6)),
        ({}, "n_head", (12, 6)),
        ({}, "n_head_kv", (1, 2)),
        ({}, "multi_query_group_num", (1, 2)),
        ({}, "encoder_attention_heads", (4, 8)),
        ({}, "d_kv", (64, 32)),
        ({}, "vision_config.num_attention_heads", (4, 8)),
        ({}, "a.b.c.num_heads", (4, 8)),
        (LLAMA, "hidden_act", ("silu", "gelu")),
        ({}, "activation_function", ("gelu_new", "relu")),
        ({}, "hidden_activation", ("gelu_pytorch_tanh", "gelu")),
        ({}, "activation", ("gelu", "relu")),
        ({}, "feed_forward_proj", ("relu", "gated-gelu")),
        ({}, "nonlinearity", ("silu", "gelu")),
        ({}, "act_layer", ("silu", "gelu")),
        ({}, "nheads", (2, 4)),
        ({}, "num_attention_groups", (2, 4)),
        ({}, "text_config.hidden_act", ("quick_gelu", "gelu")),
        ({}, "ffn_config.ffn_act_fn.name", ("silu", "gelu")),
        ({}, "id2label", ({"0": "a", "1": "b"}, {"0": "b", "1": "a"})),
        ({}, "id2label", ({"0": "a", "1": "b"}, {"0": "a"})),
        ({}, "id2label", ({"0": "LABEL_0", "1": "LABEL_1"}, {"0": "a"})),
        ({}, "id2label", (["a", "b"], ["b", "a"])),
        ({}, "label2id", ({"a": 0, "b": 1}, {"a": 1, "b": 0})),
        ({}, "label_names", (["cat", "dog"], ["dog", "cat"])),
        ({}, "num_labels", (2, 3)),
        ({}, "problem_type", ("regression", "single_label_classification")),
    ],
)
def test_what_makes_a_sum_meaningless_is_refused_unless_insisted_on(pair, tmp_path, start, path, values):
    configs = [changed(start, path, value) for value in values]
    with pytest.raises(ValueError, match="so their sum means nothing") as error:
        pair(*configs)
    (line,) = [line for line in str(error.value).splitlines() if line.startswith("  ~ ")]
    assert line.startswith(f"  ~ {tmp_path / 'a'}: {path} ") and line.endswith(f"as {tmp_path / 'base'} has it")
    assert "--insist, or insist: true" in str(error.value)


def test_insisting_says_what_was_passed_over(pair):
    made = pair(LLAMA, changed(LLAMA, "num_attention_heads", 3), insist=True)
    assert any("because of insist" in note and "num_attention_heads is 3 instead of 2" in note for note in made.notes)


@pytest.mark.parametrize("insist", ["yes", 1])
def test_insist_is_true_or_false(pair, insist):
    with pytest.raises(ValueError, match="insist must be true or false"):
        pair(LLAMA, LLAMA, insist=insist)


def test_all_reasons_are_in_one_message(pair):
    other = LLAMA | {
        "model_type": "x",
        "hidden_act": "gelu",
        "head_dim": 6,
        "quantization_config": {"quant_method": "gptq"},
    }
    with pytest.raises(ValueError, match="so their sum") as error:
        pair(LLAMA, other)
    for word in ("model_type", "hidden_act", "head_dim", "quantization_config of gptq"):
        assert word in str(error.value)


def test_the_message_is_bounded_and_escaped(pair):
    one = {f"part{i}": {"num_heads": 1} for i in range(500)} | {"model_type": "\x1b[31mred"}
    two = {f"part{i}": {"num_heads": 2} for i in range(500)} | {"model_type": "x" * 10**5, "\x1b[0m": 1}
    with pytest.raises(ValueError, match="so their sum") as error:
        pair(one, two)
    assert len(str(error.value)) < 8000 and "\x1b" not in str(error.value)
    notes = pair(one, one | {"\x1b[0m": 1, "long": "x" * 10**5}).notes
    assert len(notes) == 1 and "\x1b" not in notes[0] and len(notes[0]) < 2000 and "nothing" in notes[0]


# --- What is only said ---


@pytest.mark.parametrize(
    ("path", "values", "said"),
    [
        ("rope_theta", (1e4, 1e6), "rope_theta 1000000.0 instead of 10000.0"),
        ("rope_scaling", ({"rope_type": "llama3", "factor": 8}, {"rope_type": "yarn", "factor": 8}), "rope_type"),
        ("rms_norm_eps", (1e-5, 1e-6), "rms_norm_eps 1e-06 instead of 1e-05"),
        ("layer_norm_eps", (1e-5, 1e-12), "layer_norm_eps"),
        ("max_position_embeddings", (512, 1024), "max_position_embeddings 1024 instead of 512"),
        ("sliding_window", (None, 4096), "sliding_window 4096 instead of nothing"),
        ("tie_word_embeddings", (True, False), "tie_word_embeddings false instead of true"),
        ("attention_dropout", (0.0, 0.1), "attention_dropout 0.1 instead of 0.0"),
        ("pad_token_id", (0, 1), "pad_token_id 1 instead of 0"),
        ("text_config.rope_theta", (1e4, 1e6), "text_config.rope_theta"),
        ("architectures", (["BertModel"], ["BertForMaskedLM"]), "architectures"),
        ("architectures", (["GPT2Model"], ["FlaxGPT2LMHeadModel"]), "architectures"),
        ("id2label", ({"0": "NEGATIVE"}, {"0": "negative"}), "id2label"),
        ("id2label", ({"0": "LABEL_0"}, {"0": "negative"}), "id2label"),
        ("id2label", (None, {"0": "negative"}), "id2label"),
        ("num_key_value_heads", (None, 2), "num_key_value_heads 2 instead of nothing"),
        ("hidden_activation", (None, "gelu_pytorch_tanh"), "hidden_activation"),
    ],
)
def test_other_settings_are_said(pair, tmp_path, path, values, said):
    (note,) = pair(*(changed({}, path, value) for value in values)).notes
    assert note.startswith(f"the config of {tmp_path / 'a'} has ") and said in note
    assert note.endswith(f"; the output has that of {tmp_path / 'base'}")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"_name_or_path": "x", "transformers_version": "4.1", "use_cache": True}, {"use_cache": False}),
        ({"hidden_act": "silu"}, {"hidden_act": "swish"}),
        ({"hidden_act": "SiLU"}, {"hidden_act": "silu"}),
        ({"hidden_act": "gelu_new"}, {"hidden_act": "gelu_pytorch_tanh"}),
        (
            {"rope_theta": 1e4, "torch_dtype": "float32"},
            {"rope_parameters": {"rope_theta": 10000, "rope_type": "default"}},
        ),
        ({"rope_scaling": {"type": "yarn", "factor": 2}}, {"rope_parameters": {"rope_type": "yarn", "factor": 2}}),
        ({"sliding_window": None, "tie_word_embeddings": False, "pruned_heads": {}}, {}),
        ({"vocab_size": 10, "num_hidden_layers": 3}, {"vocab_size": 11, "num_hidden_layers": 4}),
    ],
)
def test_what_says_nothing_is_passed_over(pair, one, other):
    assert pair(one, other).notes == ()


def test_a_model_without_config_is_named(pair, small, tmp_path):
    pair(LLAMA, LLAMA)
    (tmp_path / "a" / "config.json").unlink()
    members = [{"model": tmp_path / name, "parameters": {"weight": 1}} for name in ("base", "a")]
    (note,) = small.plan({"merge_method": "linear", "models": members}).notes
    assert note == f"no config.json to compare with that of {tmp_path / 'base'}: {tmp_path / 'a'}"


def test_a_single_file_has_the_config_of_its_folder(pair, small, tmp_path):
    pair(LLAMA, LLAMA)
    for name, heads in (("base", 2), ("a", 3)):
        (tmp_path / name / "config.json").write_text(json.dumps({"num_attention_heads": heads}))
    paths = [tmp_path / "base", tmp_path / "a" / "model.safetensors"]
    members = [{"model": path, "parameters": {"weight": 1}} for path in paths]
    with pytest.raises(ValueError, match="num_attention_heads is 3 instead of 2"):
        small.plan({"merge_method": "linear", "models": members})


@pytest.mark.parametrize(
    "content",
    [
        *["{", "[]", "3", '{"a": 1, "a": 2}', "[" * 10**5, '{"a":' * 10**4 + "1" + "}" * 10**4, "\0"],
        *["", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"],
    ],
)
def test_a_damaged_config_is_an_error_that_names_it(pair, small, tmp_path, content):
    pair(LLAMA, LLAMA)
    (tmp_path / "a" / "config.json").write_text(content)
    members = [{"model": tmp_path / name, "parameters": {"weight": 1}} for name in ("base", "a")]
    with pytest.raises(ValueError, match=r"a/config\.json"):
        small.plan({"merge_method": "linear", "models": members})


@pytest.mark.parametrize("value", [None, True, 3, -1.5, "x", [], [3], [[]], {}, {"0": []}, {"x": {"y": 1}}])
def test_values_of_any_kind_are_compared(pair, value):
    names = ["id2label", "label2id", "architectures", "hidden_act", "model_type", "num_attention_heads", "text_config"]
    for name in [*names, "quantization_config", "rope_parameters", "vocab_size", "num_hidden_layers"]:
        for one, other in ((value, LLAMA.get(name, {"0": "a"})), ({"0": {}}, value), (value, value)):
            pair({name: one}, {name: other}, insist=True)
