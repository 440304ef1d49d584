"""Give T5 its inputs, words and files; what all networks of texts share is in test_text_networks.py."""

import base64
import json
import math
import re

import jax
import numpy as np
import pytest
from recorded_texts import RECORDED, T5, T5_GATED, T5S, changed, tensors_of

from soups.models.architectures import encoder_of
from soups.models.import_weights import check_weights, import_weights
from soups.models.t5 import decoder_tokens, label_words, relative_buckets, word_scores
from soups.models.text_tokenizer import text_tokenizer

TOKENIZERS = json.loads((RECORDED.parent / "text_tokenizers.json").read_text())


@pytest.mark.parametrize("folder", T5S)
def test_later_words_are_not_seen(case, folder):
    _, params, apply, inputs, _ = case(folder)
    expected = np.asarray(apply(params, inputs))
    later = inputs["decoder_tokens"].copy()
    later[:, 6:] = 23 - later[:, 6:]
    found = np.asarray(apply(params, {**inputs, "decoder_tokens": later}))
    np.testing.assert_array_equal(found[:, :6], expected[:, :6])
    assert (np.abs(found[:, 6:] - expected[:, 6:]).max(axis=(0, 2)) > 1e-3).all()


@pytest.mark.parametrize("folder", T5S)
def test_scores_of_words_are_the_sums_of_their_log_probabilities(case, folder):
    arch, params, apply, inputs, _ = case(folder)
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
    tensors = tensors_of(T5)
    bias = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    more = {"encoder.embed_tokens.weight": tensors["shared.weight"], bias: np.zeros((8, 2), np.float32)}
    found = import_weights(write(tensors | more | {"lm_head.weight": tensors["shared.weight"]}), small("t5-base"))
    jax.tree.map(np.testing.assert_array_equal, found, import_weights(RECORDED / T5, small("t5-base")))


@pytest.mark.parametrize(
    ("folder", "wanted", "fields", "message"),
    [
        (T5, "t5-v1_1-base", {}, "lm_head.weight is missing"),
        (T5_GATED, "t5-base", {}, "DenseReluDense.wi.weight is missing"),
        (T5, "bert-base-cased", {}, "Hugging Face's T5 names, but bert-base-cased needs Hugging Face's BERT"),
        (T5, "t5-base", {"num_heads": 3, "d_kv": 2}, "says num_heads 3, but t5-base has 2"),
        (T5, "t5-base", {"relative_attention_max_distance": 9}, "max_distance 9, but t5-base has 7"),
        (T5, "t5-base", {"feed_forward_proj": "gelu"}, "says feed_forward_proj gelu, but t5-base has relu"),
        (T5, "t5-base", {"scale_decoder_outputs": False}, "says scale_decoder_outputs False"),
    ],
)
def test_files_of_another_network_are_errors(small, tmp_path, folder, wanted, fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_weights(changed(tmp_path, folder, **fields), small(wanted))


@pytest.mark.parametrize("said", [{"scale_decoder_outputs": None, "tie_word_embeddings": False}, {}])
def test_configs_of_all_versions_of_transformers_are_understood(small, tmp_path, said):
    check_weights(changed(tmp_path, T5_GATED, **said), small("t5-v1_1-base"))


@pytest.mark.parametrize("folder", T5S)
def test_a_network_has_the_sizes_that_its_folder_says(arch_of, tmp_path, folder):
    found = encoder_of(RECORDED / folder)
    assert found.features.clone(context_length=10) == arch_of(folder).features
    check_weights(RECORDED / folder, found)
    with pytest.raises(ValueError, match=r"must give these .*: d_kv"):
        encoder_of(changed(tmp_path, folder, d_kv=None))
