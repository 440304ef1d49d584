"""Compare T5 with what transformers computed, from folders that it wrote; padding and later words must not be seen.

The recorded folders and outputs are those of `scripts/benchmarks/parity_encoders.py --sizes small --record`.
"""

import base64
import json
import math
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest

from soups import tree
from soups.formats import open_checkpoint
from soups.models.architectures import architecture, encoder_of
from soups.models.import_weights import check_weights, import_weights
from soups.models.t5 import SHARDING_RULES, decoder_tokens, label_words, relative_buckets, word_scores
from soups.models.text_tokenizer import text_tokenizer
from soups.train import param_shardings

RECORDED = pathlib.Path(__file__).parent / "recorded" / "models"
TOKENIZERS = json.loads((RECORDED.parent / "text_tokenizers.json").read_text())
FOLDERS = {"t5-base": "transformers-T5-t5-base", "t5-v1_1-base": "transformers-T5-1.1-t5-v1_1-base"}


@pytest.fixture
def case(small):
    """Return a function from a name to its small architecture, recorded weights, compiled network and inputs."""

    def load(name):
        arch = small(name)
        params = import_weights(RECORDED / FOLDERS[name], arch)
        with np.load(RECORDED / f"{FOLDERS[name]}.logits.npz") as theirs:
            tokens, mask, written = theirs["inputs"]
            expected = theirs["float64"]
        inputs = {"tokens": tokens, "mask": mask.astype(bool), "decoder_tokens": written}
        return arch, params, jax.jit(arch.apply_fn(None)), inputs, expected

    return load


@pytest.mark.parametrize("name", FOLDERS)
def test_logits_equal_those_of_transformers(case, name):
    arch, params, apply, inputs, expected = case(name)
    tree.check_same_structure([arch.abstract(None), params])
    found = np.asarray(apply(params, inputs), np.float64)
    assert found.shape == expected.shape and np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", FOLDERS)
def test_padding_and_later_words_are_not_seen(case, name):
    _, params, apply, inputs, _ = case(name)
    expected, mask = np.asarray(apply(params, inputs)), inputs["mask"]
    for token in (1, 7):
        other = {**inputs, "tokens": np.where(mask, inputs["tokens"], token)}
        np.testing.assert_array_equal(apply(params, other), expected)
    later = inputs["decoder_tokens"].copy()
    later[:, 6:] = 23 - later[:, 6:]
    found = np.asarray(apply(params, {**inputs, "decoder_tokens": later}))
    np.testing.assert_array_equal(found[:, :6], expected[:, :6])
    assert (np.abs(found[:, 6:] - expected[:, 6:]).max(axis=(0, 2)) > 1e-3).all()


def test_every_token_of_the_mask_is_seen(case):
    _, params, apply, inputs, _ = case("t5-base")
    expected, mask = np.asarray(apply(params, inputs)), inputs["mask"]
    for row, last in enumerate(mask.sum(axis=1) - 1):
        tokens = inputs["tokens"].copy()
        tokens[row, last] = 3 + (tokens[row, last] - 2) % 20
        moved = np.abs(np.asarray(apply(params, {**inputs, "tokens": tokens})) - expected).max(axis=(1, 2)) > 1e-4
        assert moved.tolist() == [index == row for index in range(len(mask))]


@pytest.mark.parametrize("name", FOLDERS)
def test_scores_of_words_are_the_sums_of_their_log_probabilities(case, name):
    arch, params, apply, inputs, _ = case(name)
    words = np.array([[5, 9, 1], [7, 1, -1], [5, 1, -1]])
    scores = jax.jit(word_scores(arch.apply_fn(None), words))(params, inputs)
    for column, word in enumerate(words):
        own = word[word >= 0]
        written = np.broadcast_to([0, *own[:-1]], (len(inputs["tokens"]), len(own))).astype(np.int32)
        logits = np.asarray(apply(params, {**inputs, "decoder_tokens": written}), np.float64)
        of_token = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        expected = of_token[:, range(len(own)), own].sum(axis=1)
        np.testing.assert_allclose(scores[:, column], expected, rtol=1e-5, atol=1e-5)


def test_decoders_begin_with_padding_and_end_before_the_end():
    assert decoder_tokens(np.array([[5, 9, 1], [7, 1, -1]])).tolist() == [[0, 5, 9], [0, 7, 1]]
    for wrong in ([5, 1], [[-1, 5]], [[1.5]], [[]]):
        with pytest.raises(ValueError, match=r"words must be integers \[C, U\], each with a token"):
            decoder_tokens(np.array(wrong))


def test_words_for_classes_end_behind_their_tokens(tmp_path):
    spiece = tmp_path / "spiece.model"
    spiece.write_bytes(base64.b64decode(TOKENIZERS["spiece.model"]))
    tokenize = text_tokenizer(spiece, length=8)
    words = label_words(tokenize, ["a photo", "photo", "a"])
    assert words.shape == (3, 3) and words.dtype == np.int32
    for word, text in zip(words, ["a photo", "photo", "a"], strict=True):
        own = word[word >= 0].tolist()
        assert own == tokenize.tokenizer.encode(text).ids and own[-1] == 1 and (word[len(own) :] == -1).all()
    with pytest.raises(ValueError, match="the words 'a' and ' a' become the same tokens"):
        label_words(tokenize, ["photo", "a", " a"])
    with pytest.raises(ValueError, match="words for classes have more than 8 tokens"):
        label_words(tokenize, ["a photo of a photo of a photo of a photo", "a"])


def test_dropout_is_on_in_training_alone(small):
    arch = small("t5-base")
    inputs = {"tokens": np.zeros((2, 4), np.int32), "mask": np.ones((2, 4), bool)}
    inputs["decoder_tokens"] = np.zeros((2, 3), np.int32)

    def draws(program):
        jaxpr = str(jax.make_jaxpr(program)(arch.abstract(None), inputs))
        return set(re.findall(r"random_bits\[[^]]*shape=\(([\d, ]+)\)", jaxpr))

    train = arch.train_apply_fn(None, dropout=0.1)
    tokens, hidden, attention = (
        {"2, 4, 8", "2, 3, 8"},
        {"2, 4, 16", "2, 3, 16"},
        {"2, 2, 4, 4", "2, 2, 3, 3", "2, 2, 3, 4"},
    )
    assert draws(arch.apply_fn(None, dropout=0.1)) == set()
    assert draws(lambda p, x: train(p, x, jax.random.key(0))) == tokens | hidden | attention


def test_training_without_dropout_is_evaluation_and_remat_changes_nothing(case):
    arch, params, apply, inputs, _ = case("t5-v1_1-base")
    logits, same = jax.jit(arch.train_apply_fn(None, remat=True))(params, inputs, jax.random.key(0))
    np.testing.assert_allclose(logits, apply(params, inputs), rtol=1e-4, atol=1e-5)
    tree.check_same_structure([params, same])


def test_weights_sharded_by_the_rules_give_the_same(case):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    _, params, apply, inputs, _ = case("t5-v1_1-base")
    shardings = param_shardings(params, mesh, SHARDING_RULES)
    cut = {name for name, leaf in tree.flatten(shardings).items() if "model" in str(leaf.spec)}
    assert {"decoder/block_1/cross_attention/out/kernel", "encoder/block_0/mlp/gate/kernel", "lm_head/kernel"} <= cut
    assert "encoder/norm/scale" not in cut and "encoder/relative_bias/embedding" not in cut
    found = apply(jax.device_put(params, shardings), inputs)
    np.testing.assert_allclose(found, apply(params, inputs), rtol=1e-4, atol=1e-5)


def test_relative_positions_are_those_of_t5():
    encoder, decoder = (relative_buckets(300, 32, 128, causal=causal) for causal in (False, True))
    assert encoder[100, 93:108].tolist() == [7, 6, 5, 4, 3, 2, 1, 0, 17, 18, 19, 20, 21, 22, 23]
    assert decoder[100, 85:102].tolist() == [*range(15, -1, -1), 0]
    for away in (9, 20, 50, 100, 299):
        own = min(8 + math.floor(8 * math.log(away / 8) / math.log(16)), 15)
        assert (encoder[away, 0], encoder[0, away]) == (own, 16 + own)
    for away in (17, 40, 100, 299):
        assert decoder[away, 0] == min(16 + math.floor(16 * math.log(away / 16) / math.log(8)), 31)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_tokens": None}, r"decoder_tokens must be \[B · C, U\] for 2 texts, but there are none"),
        ({"decoder_tokens": np.zeros(3, np.int32)}, r"but they are \[3\]"),
        ({"decoder_tokens": np.zeros((1, 3), np.int32)}, r"for 2 texts, but they are \[1, 3\]"),
        ({"decoder_tokens": np.zeros((2, 3), np.float32)}, "decoder_tokens must be integers, but they are float32"),
        ({"mask": None}, "mask is missing"),
        ({"tokens": np.zeros((2, 11), np.int32), "mask": np.ones((2, 11), bool)}, r"T from 1 to 10, not \[2, 11\]"),
    ],
)
def test_other_inputs_are_errors(small, changes, message):
    arch = small("t5-base")
    inputs = {"tokens": np.zeros((2, 3), np.int32), "mask": np.ones((2, 3), bool)}
    inputs |= {"decoder_tokens": np.zeros((2, 3), np.int32)} | changes
    given = {name: array for name, array in inputs.items() if array is not None}
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(arch.apply_fn(None), arch.abstract(None), given)


def test_t5_has_no_head(small):
    with pytest.raises(ValueError, match="T5 writes the names of classes, and has no head"):
        small("t5-base").abstract(3)


# --- Files ---


def test_copies_of_the_embeddings_are_left_out(small, write):
    checkpoint = open_checkpoint(RECORDED / FOLDERS["t5-base"])
    tensors = {name: np.array(checkpoint.read(name)) for name in (*checkpoint.leaves, *checkpoint.aliases)}
    bias = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    more = {"encoder.embed_tokens.weight": tensors["shared.weight"], bias: np.zeros((8, 2), np.float32)}
    found = import_weights(write(tensors | more | {"lm_head.weight": tensors["shared.weight"]}), small("t5-base"))
    jax.tree.map(np.testing.assert_array_equal, found, import_weights(RECORDED / FOLDERS["t5-base"], small("t5-base")))


def changed(tmp_path, name, **fields):
    """Copy a recorded folder, with other values in its config.json; None leaves one out."""
    copy = tmp_path / "copy"
    shutil.copytree(RECORDED / FOLDERS[name], copy)
    config = json.loads((copy / "config.json").read_text()) | fields
    (copy / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    return copy


@pytest.mark.parametrize(
    ("name", "wanted", "fields", "message"),
    [
        ("t5-base", "t5-v1_1-base", {}, "lm_head.weight is missing"),
        ("t5-v1_1-base", "t5-base", {}, "DenseReluDense.wi.weight is missing"),
        ("t5-base", "bert-base-cased", {}, "Hugging Face's T5 names, but bert-base-cased needs Hugging Face's BERT"),
        ("t5-base", "t5-base", {"num_heads": 3, "d_kv": 2}, "says num_heads 3, but t5-base has 2"),
        ("t5-base", "t5-base", {"relative_attention_max_distance": 9}, "max_distance 9, but t5-base has 7"),
        ("t5-base", "t5-base", {"feed_forward_proj": "gelu"}, "says feed_forward_proj gelu, but t5-base has relu"),
        ("t5-base", "t5-base", {"scale_decoder_outputs": False}, "says scale_decoder_outputs False"),
    ],
)
def test_files_of_another_network_are_errors(small, tmp_path, name, wanted, fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_weights(changed(tmp_path, name, **fields), small(wanted))


@pytest.mark.parametrize("said", [{"scale_decoder_outputs": None, "tie_word_embeddings": False}, {}])
def test_configs_of_all_versions_of_transformers_are_understood(small, tmp_path, said):
    check_weights(changed(tmp_path, "t5-v1_1-base", **said), small("t5-v1_1-base"))


@pytest.mark.parametrize("name", FOLDERS)
def test_a_network_has_the_sizes_that_its_folder_says(small, tmp_path, name):
    found = encoder_of(RECORDED / FOLDERS[name])
    assert found.features.clone(context_length=10) == small(name).features
    check_weights(RECORDED / FOLDERS[name], found)
    with pytest.raises(ValueError, match=r"does not say, .*: d_kv"):
        encoder_of(changed(tmp_path, name, d_kv=None))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("t5-small", 60_506_624),
        ("t5-base", 222_903_552),
        ("t5-v1_1-small", 76_961_152),
        ("t5-v1_1-base", 247_577_856),
    ],
)
def test_networks_have_the_published_number_of_weights(name, count):
    assert tree.count(architecture(name).abstract(None)) == count
