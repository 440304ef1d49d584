"""Give encoders of texts their inputs and files; what all networks of texts share is in test_text_networks.py."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recorded_texts import (
    BERT,
    BERT_MLM,
    DEBERTA,
    DEBERTA_RELEASED,
    MINILM,
    NAMES,
    RECORDED,
    ROBERTA,
    ROBERTA_MLM,
    changed,
    tensors_of,
)

from soups.models.architectures import encoder_of
from soups.models.disentangled import relative_places
from soups.models.import_weights import check_weights, import_weights


@pytest.mark.parametrize("folder", [BERT, MINILM, ROBERTA, DEBERTA])
def test_a_text_alone_gives_the_same_as_beside_longer_ones(case, folder):
    _, params, apply, inputs, _ = case(folder)
    count = inputs["mask"][1].sum()
    alone = apply(params, {name: array[1:2, :count] for name, array in inputs.items()})
    np.testing.assert_allclose(alone, apply(params, inputs)[1:2], atol=1e-5)


def test_segments_are_zero_where_they_are_not_given(case):
    _, params, apply, inputs, _ = case(BERT)
    plain = {name: inputs[name] for name in ("tokens", "mask")}
    zeros = apply(params, {**plain, "segments": np.zeros_like(inputs["tokens"])})
    np.testing.assert_array_equal(apply(params, plain), zeros)
    assert not np.allclose(zeros, apply(params, inputs), atol=1e-3)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.zeros((1, 3), np.int32), 'takes {"tokens": integers .*, not a .*Tracer'),
        ({"tokens": np.zeros((1, 3), np.int32)}, "mask is missing"),
        ({"tokens": np.zeros((1, 3), np.int32), "mask": np.ones((1, 3), bool), "types": 0}, "types is extra"),
        ({"tokens": np.zeros((1, 11), np.int32), "mask": np.ones((1, 11), bool)}, r"T from 1 to 10, not \[1, 11\]"),
        ({"tokens": np.zeros((1, 3)), "mask": np.ones((1, 3), bool)}, r"tokens must be integers \[1, 3\].*float"),
        ({"tokens": np.zeros((1, 3), np.int32), "mask": np.ones((1, 3), np.int32)}, "mask must be booleans"),
        ({"tokens": np.zeros((1, 3), np.int32), "mask": np.ones((1, 2), bool)}, r"mask must be .*bool \[1, 2\]"),
    ],
)
def test_other_inputs_are_errors(small, inputs, message):
    arch = small("bert-base-uncased")
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(arch.apply_fn(3), arch.abstract(3), jax.tree.map(jnp.asarray, inputs))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pool_type": "max"}, "unknown pool_type 'max'"),
        ({"activation": "relu"}, "unknown activation 'relu'"),
        ({"num_heads": 3}, "width 8 does not divide into 3 heads"),
        ({"mlm": True}, "leave out mlm, or the classes"),
    ],
)
def test_other_fields_are_errors(small, fields, message):
    model = small("bert-base-uncased").model(3, **fields)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            model.init, jax.random.key(0), {"tokens": jnp.zeros((1, 3), int), "mask": jnp.ones((1, 3), bool)}
        )


def test_tokens_beyond_the_vocabulary_are_not_numbers(case):
    _, params, apply, inputs, _ = case(BERT)
    tokens = np.where(inputs["tokens"] == inputs["tokens"][0, 1], 24, inputs["tokens"])
    assert np.isnan(apply(params, {**inputs, "tokens": tokens})[0]).all()


def test_relative_positions_are_those_of_deberta():
    places = relative_places(512, 256, 512)
    by_distance = dict(zip(range(-511, 512), [*places[0, ::-1], *places[1:, 0]], strict=True))
    assert all(by_distance[d] == d + 256 for d in range(-128, 129))
    for distance in (129, 200, 300, 511):  # m = 128
        steps = math.ceil(127 * math.log(distance / 128) / math.log(511 / 128))
        assert (by_distance[distance], by_distance[-distance]) == (256 + 128 + steps, 256 - 128 - steps)
    # as of make_log_bucket_position of transformers 5.24
    assert np.array_equal([by_distance[d] for d in (130, 150, 256, 400, 510)], [386, 399, 448, 489, 511])


# --- Files ---


def test_heads_of_pre_training_are_left_out_and_a_new_one_is_zero(small):
    head = import_weights(RECORDED / BERT_MLM, without_pooler(small("bert-base-uncased")), num_classes=4)["head"]
    assert {name: leaf.shape for name, leaf in head.items()} == {"kernel": (8, 4), "bias": (4,)}
    assert not any(leaf.any() for leaf in head.values())


def without_pooler(arch):
    return dataclasses.replace(arch, features=arch.features.clone(representation_size=None))


def test_norms_by_the_names_of_tensorflow_are_read(small, write):
    arch, tensors = small("bert-base-uncased"), tensors_of(BERT)
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): leaf for name, leaf in tensors.items()}
    old = {name.replace("LayerNorm.bias", "LayerNorm.beta"): leaf for name, leaf in old.items()}
    assert old.keys() != tensors.keys()
    jax.tree.map(np.testing.assert_array_equal, import_weights(write(old), arch), import_weights(RECORDED / BERT, arch))


@pytest.mark.parametrize(
    ("folder", "name", "message"),
    [
        (BERT, "roberta-base", "Hugging Face's BERT names, but roberta-base needs Hugging Face's RoBERTa names or"),
        (ROBERTA, "bert-base-cased", "Hugging Face's RoBERTa names, but bert-base-cased needs Hugging Face's BERT"),
        (ROBERTA, "roberta-base", "'classifier.dense.weight' is extra"),
        (BERT_MLM, "bert-base-uncased", "bert.pooler.dense.weight is missing"),
        (BERT, "bert-base-uncased-mlm", "cls.predictions.bias is missing"),
        (DEBERTA, "bert-base-cased", "Hugging Face's DeBERTa names, but bert-base-cased needs Hugging Face's BERT"),
        (DEBERTA, "deberta-v3-base-mlm", "cls.predictions.bias is missing"),
        (DEBERTA_RELEASED, "deberta-v3-small", "pooler.dense.weight is missing"),
    ],
)
def test_files_of_another_network_are_errors(small, folder, name, message):
    with pytest.raises(ValueError, match=message):
        check_weights(RECORDED / folder, small(name))


def test_heads_of_other_classes_are_errors(small):
    with pytest.raises(ValueError, match="its head is of 3 classes, not 5"):
        check_weights(RECORDED / BERT, small("bert-base-uncased"), num_classes=5)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_attention_heads", 4, "config.json says num_attention_heads 4, but bert-base-uncased has 2"),
        ("hidden_act", "gelu_new", "says activation gelu_tanh, but bert-base-uncased has gelu"),
        ("model_type", "roberta", "says model_type roberta"),
        ("position_embedding_type", "relative_key", "says position_embedding_type relative_key"),
    ],
)
def test_configs_of_another_computation_are_errors(small, tmp_path, field, value, message):
    folder = changed(tmp_path, BERT, **{field: value})
    with pytest.raises(ValueError, match=message):
        check_weights(folder, small("bert-base-uncased"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("position_buckets", 8, "says position_buckets 8, but deberta-v3-base has 6"),
        ("pos_att_type", ["c2p"], "says pos_att_type .*c2p.*, but deberta-v3-base has .*p2c"),
        ("share_att_key", False, "says share_att_key False"),
        ("max_relative_positions", 20, "says max_relative_positions 20, but deberta-v3-base has 10"),
        ("pooler_hidden_act", "tanh", "says pooler_hidden_act tanh"),
        ("conv_kernel_size", 3, "says conv_kernel_size 3"),
    ],
)
def test_configs_of_another_deberta_are_errors(small, tmp_path, field, value, message):
    with pytest.raises(ValueError, match=message):
        check_weights(changed(tmp_path, DEBERTA, **{field: value}), small("deberta-v3-base"))
    check_weights(changed(tmp_path / "same", DEBERTA, pos_att_type=["p2c", "c2p"]), small("deberta-v3-base"))


@pytest.mark.parametrize(
    ("folder", "options"),
    [
        (BERT, {"pooler": True}),
        (MINILM, {"pool_type": "mean"}),
        (ROBERTA, {"pooler": True}),
        (ROBERTA_MLM, {"mlm": True}),
        (DEBERTA, {"pooler": True}),
    ],
)
def test_an_encoder_has_the_sizes_that_its_folder_says(small, folder, options):
    found, expected = encoder_of(RECORDED / folder, **options), small(NAMES[folder])
    assert (found.family, found.feature_dim, found.features) == (expected.family, 8, expected.features)
    check_weights(RECORDED / folder, found)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model_type": "electra"},
            "unknown model_type in .*config.json 'electra'; there are: bert, deberta-v2, roberta, t5",
        ),
        ({"hidden_size": None, "vocab_size": 0}, "must give these .*: hidden_size, vocab_size"),
        ({"hidden_act": "relu"}, "unknown hidden_act in .*'relu'"),
    ],
)
def test_folders_of_other_networks_are_errors(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        encoder_of(changed(tmp_path, BERT, **fields))
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        encoder_of(tmp_path)
