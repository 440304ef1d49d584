"""Compare encoders of texts with what transformers computed, from folders that it wrote; padding must not be seen.

The recorded folders and outputs are those of `scripts/benchmarks/parity_encoders.py --sizes small --record`.
"""

import dataclasses
import json
import math
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soups import tree
from soups.formats import open_checkpoint
from soups.models.architectures import architecture, encoder_of
from soups.models.disentangled import relative_places
from soups.models.import_weights import check_weights, import_weights
from soups.models.text_encoder import SHARDING_RULES
from soups.train import param_shardings

RECORDED = pathlib.Path(__file__).parent / "recorded" / "models"
FOLDERS = {
    "transformers-BERT-bert-base-uncased": 3,
    "transformers-BERT-MLM-bert-base-uncased-mlm": None,
    "transformers-MiniLM-minilm-l6": None,
    "transformers-RoBERTa-roberta-base-classifier": 3,
    "transformers-RoBERTa-MLM-roberta-base-mlm": None,
    "transformers-DeBERTa-deberta-v3-base": 3,
    "transformers-DeBERTa-MLM-deberta-v3-base-mlm": None,
    "released-DeBERTa-MLM-deberta-v3-small-mlm": None,
}
BERT, BERT_MLM, MINILM, ROBERTA, ROBERTA_MLM, DEBERTA, DEBERTA_MLM, DEBERTA_RELEASED = FOLDERS


def name_of(folder):
    return folder.split("-", 3 if "MLM" in folder else 2)[-1]


@pytest.fixture
def case(small):
    """Return a function from a recorded folder to its architecture, weights, compiled network and inputs."""

    def load(folder):
        arch = small(name_of(folder))
        params = import_weights(RECORDED / folder, arch)
        with np.load(RECORDED / f"{folder}.logits.npz") as theirs:
            tokens, mask, segments = theirs["inputs"]
            expected = theirs["float64"]
        inputs = {"tokens": tokens, "mask": mask.astype(bool), "segments": segments}
        return arch, params, jax.jit(arch.apply_fn(FOLDERS[folder])), inputs, expected

    return load


def seen(outputs, mask):
    """Leave out what a network makes of padding."""
    return np.where(mask[..., None], outputs, 0) if np.ndim(outputs) == 3 else np.asarray(outputs)


@pytest.mark.parametrize("folder", FOLDERS)
def test_outputs_equal_those_of_transformers(case, folder):
    arch, params, apply, inputs, expected = case(folder)
    tree.check_same_structure([arch.abstract(FOLDERS[folder]), params])
    found = seen(apply(params, inputs), inputs["mask"]).astype(np.float64)
    assert found.shape == expected.shape and np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("folder", FOLDERS)
def test_padding_is_not_seen(case, folder):
    _, params, apply, inputs, _ = case(folder)
    expected, mask = apply(params, inputs), inputs["mask"]
    for token in (1, 7):
        other = {**inputs, "tokens": np.where(mask, inputs["tokens"], token)}
        np.testing.assert_array_equal(seen(apply(params, other), mask), seen(expected, mask))
    count = mask[1].sum()
    alone = apply(params, {name: array[1:2, :count] for name, array in inputs.items()})
    np.testing.assert_allclose(alone, expected[1:2, :count] if np.ndim(expected) == 3 else expected[1:2], atol=1e-5)


@pytest.mark.parametrize("folder", [BERT, MINILM, ROBERTA, DEBERTA])
def test_every_token_of_the_mask_is_seen(case, folder):
    _, params, apply, inputs, _ = case(folder)
    expected, mask = np.asarray(apply(params, inputs)), inputs["mask"]
    for row, last in enumerate(mask.sum(axis=1) - 1):
        tokens = inputs["tokens"].copy()
        tokens[row, last] = 3 + (tokens[row, last] - 2) % 20
        moved = np.abs(np.asarray(apply(params, {**inputs, "tokens": tokens})) - expected).max(axis=1) > 1e-4
        assert moved.tolist() == [index == row for index in range(len(mask))]


def test_segments_are_zero_where_they_are_not_given(case):
    _, params, apply, inputs, _ = case(BERT)
    plain = {name: inputs[name] for name in ("tokens", "mask")}
    zeros = apply(params, {**plain, "segments": np.zeros_like(inputs["tokens"])})
    np.testing.assert_array_equal(apply(params, plain), zeros)
    assert not np.allclose(zeros, apply(params, inputs), atol=1e-3)


@pytest.mark.parametrize(
    ("name", "relative"), [("bert-base-uncased", set()), ("deberta-v3-base", {"12, 8"})], ids=["BERT", "DeBERTa"]
)
def test_dropout_is_on_in_training_alone(small, name, relative):
    arch = small(name)
    params, inputs = arch.abstract(3), {"tokens": np.zeros((2, 4), np.int32), "mask": np.ones((2, 4), bool)}

    def draws(program):
        return set(re.findall(r"random_bits\[[^]]*shape=\(([\d, ]+)\)", str(jax.make_jaxpr(program)(params, inputs))))

    apply = arch.apply_fn(3, dropout=0.1)
    train = arch.train_apply_fn(3, dropout=0.1)
    attention, tokens, pooled = "2, 2, 4, 4", "2, 4, 8", "2, 8"
    assert draws(apply) == set() and draws(lambda p, x: train(p, x, jax.random.key(0))) == {
        attention,
        tokens,
        pooled,
        *relative,
    }


def test_training_without_dropout_is_evaluation_and_remat_changes_nothing(case):
    arch, params, apply, inputs, _ = case(BERT)
    logits, same = jax.jit(arch.train_apply_fn(3, remat=True))(params, inputs, jax.random.key(0))
    np.testing.assert_allclose(logits, apply(params, inputs), rtol=1e-5, atol=1e-6)
    tree.check_same_structure([params, same])


def test_bfloat16_keeps_float32_weights_and_outputs(small):
    model = small("roberta-base-mlm").model(None, dtype=jnp.bfloat16)
    inputs = {"tokens": np.ones((1, 3), np.int32), "mask": np.ones((1, 3), bool)}
    shapes = jax.eval_shape(model.init_with_output, jax.random.key(0), inputs)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("folder", [BERT_MLM, DEBERTA_MLM])
def test_weights_sharded_by_the_rules_give_the_same(case, folder):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    _, params, apply, inputs, _ = case(folder)
    shardings = param_shardings(params, mesh, SHARDING_RULES)
    cut = {name for name, leaf in tree.flatten(shardings).items() if "model" in str(leaf.spec)}
    block = "Transformer/encoderblock_0"
    assert {f"{block}/MlpBlock_0/Dense_1/kernel", "token_embedding/embedding"} <= cut
    assert f"{block}/MultiHeadDotProductAttention_0/query/kernel" in cut and "mlm/dense/kernel" not in cut
    found = apply(jax.device_put(params, shardings), inputs)
    np.testing.assert_allclose(seen(found, inputs["mask"]), seen(apply(params, inputs), inputs["mask"]), atol=1e-5)


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


def tensors_of(folder):
    checkpoint = open_checkpoint(RECORDED / folder)
    return {name: np.array(checkpoint.read(name)) for name in (*checkpoint.leaves, *checkpoint.aliases)}


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


def changed(tmp_path, folder, **fields):
    """Copy a recorded folder, with other values in its config.json; None leaves one out."""
    copy = tmp_path / "copy"
    shutil.copytree(RECORDED / folder, copy)
    config = json.loads((copy / "config.json").read_text()) | fields
    (copy / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    return copy


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
    found, expected = encoder_of(RECORDED / folder, **options), small(name_of(folder))
    assert (found.family, found.feature_dim, found.features) == (expected.family, 8, expected.features)
    check_weights(RECORDED / folder, found)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model_type": "electra"},
            "unknown model_type in .*config.json 'electra'; there are: bert, deberta-v2, roberta, t5",
        ),
        ({"hidden_size": None, "vocab_size": 0}, "does not say, .*: hidden_size, vocab_size"),
        ({"hidden_act": "relu"}, "unknown hidden_act in .*'relu'"),
    ],
)
def test_folders_of_other_networks_are_errors(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        encoder_of(changed(tmp_path, BERT, **fields))
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        encoder_of(tmp_path)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("bert-base-uncased", 109_482_240),  # all as published, with the pooler
        ("bert-large-uncased", 335_141_888),
        ("roberta-base", 124_645_632 - 590_592),  # the pooler, which is not used
        ("minilm-l6", 22_713_216 - 147_840),
        ("deberta-v3-base", 183_831_552 + 590_592),  # the trunk and the pooler of DebertaV2ForSequenceClassification
    ],
)
def test_encoders_have_the_published_number_of_weights(name, count):
    assert tree.count(architecture(name).abstract(None)) == count
