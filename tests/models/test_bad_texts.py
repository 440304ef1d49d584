"""Return every network of texts files of all kinds, and what it cannot take."""

import base64
import dataclasses
import json
import logging
import pathlib

import jax
import numpy as np
import pytest
from miniature.torch_zip import write_state_dict

from soups.formats import open_checkpoint
from soups.models.architectures import architecture
from soups.models.import_weights import check_weights, import_weights
from soups.models.text_tokenizer import text_tokenizer

RECORDED = pathlib.Path(__file__).parent / "recorded"
TOKENIZERS = json.loads((RECORDED / "text_tokenizers.json").read_text())
FOLDERS = {
    "bert-base-uncased": "transformers-BERT-bert-base-uncased",
    "roberta-base-classifier": "transformers-RoBERTa-roberta-base-classifier",
    "minilm-l6": "transformers-MiniLM-minilm-l6",
    "deberta-v3-base": "transformers-DeBERTa-deberta-v3-base",
    "bert-base-uncased-mlm": "transformers-BERT-MLM-bert-base-uncased-mlm",
    "deberta-v3-base-mlm": "transformers-DeBERTa-MLM-deberta-v3-base-mlm",
    "t5-base": "transformers-T5-t5-base",
    "t5-v1_1-base": "transformers-T5-1.1-t5-v1_1-base",
}
HEADED = ("bert-base-uncased", "roberta-base-classifier", "deberta-v3-base")
HEADLESS = ("bert-base-uncased-mlm", "deberta-v3-base-mlm", "t5-base", "t5-v1_1-base")


def write_tokenizer(folder, arch):
    """Write the recorded vocabulary of a kind of network, and give the number of its tokens."""
    if arch.family == "roberta":
        numbers = {token: number for number, token in enumerate(TOKENIZERS["pairs"])}
        (folder / "vocab.json").write_text(json.dumps(numbers))
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *TOKENIZERS["merges"], ""]), encoding="utf-8")
        return len(numbers)
    if arch.family == "bert":
        (folder / "vocab.txt").write_text("\n".join([*TOKENIZERS["pieces"], ""]), encoding="utf-8")
        (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')
        return len(TOKENIZERS["pieces"])
    name = "spiece.model" if arch.family == "t5" else "spm.model"
    (folder / name).write_bytes(base64.b64decode(TOKENIZERS[name]))
    return text_tokenizer(folder).vocabulary_size


@pytest.fixture(params=FOLDERS)
def network(request, small, tmp_path):
    """Return a small network of each kind with as many embeddings as its recorded vocabulary has, and its folder."""
    arch = small(request.param)
    count = write_tokenizer(tmp_path, arch)
    return dataclasses.replace(arch, features=arch.features.clone(vocabulary_size=count)), tmp_path


def test_a_tokenizer_of_its_own_fits_and_others_do_not(network, tmp_path_factory):
    arch, folder = network
    assert text_tokenizer(folder, arch, length=10).vocabulary_size == arch.features.vocabulary_size
    with pytest.raises(ValueError, match="length 11 is more than the 10 of"):
        text_tokenizer(folder, arch, length=11)
    with pytest.raises(ValueError, match="is the tokenizer of another network: it has"):
        text_tokenizer(folder, architecture(arch.name), length=10)
    other = architecture("bert-base-uncased" if arch.family == "t5" else "t5-base")
    same = dataclasses.replace(other, features=other.features.clone(vocabulary_size=arch.features.vocabulary_size))
    with pytest.raises(ValueError, match=r"another network: a row of .* (begins with|has no) a start token"):
        text_tokenizer(folder, same, length=10)


def test_over_long_and_empty_texts_are_said(network, caplog):
    arch, folder = network
    tokenize = text_tokenizer(folder, arch, length=10)
    with caplog.at_level(logging.WARNING, logger="soups"):
        made = tokenize(["a photo of " * 20, "a"])
    assert "1 of 2 texts have more than 10 tokens and are cut" in caplog.text and made["tokens"].shape == (2, 10)
    for second in (None, ["a", "b"]):
        with pytest.raises(ValueError, match="1 empty text, the first is number 1: leave it out"):
            tokenize(["a", " \t"], second)


def test_texts_beyond_the_length_of_a_network_are_errors(network):
    arch, _ = network
    inputs = {"tokens": np.zeros((1, 11), np.int32), "mask": np.ones((1, 11), bool)}
    inputs |= {"decoder_tokens": np.zeros((1, 2), np.int32)} if arch.family == "t5" else {}
    with pytest.raises(ValueError, match=r"tokens must be \[B, T\], T from 1 to 10, not \[1, 11\]"):
        jax.eval_shape(arch.apply_fn(None), arch.abstract(None), inputs)


@pytest.mark.parametrize("name", [*FOLDERS, "align-base"])
def test_torch_files_hold_the_same_as_safetensors(small, tmp_path, name):
    folder = RECORDED / "models" / FOLDERS.get(name, "transformers-ALIGN-align-base")
    checkpoint = open_checkpoint(folder)
    tensors = {one: np.array(checkpoint.read(one)) for one in (*checkpoint.leaves, *checkpoint.aliases)}
    floats = {one: tensor for one, tensor in tensors.items() if tensor.dtype == np.float32}
    path = write_state_dict(tmp_path / "pytorch_model.bin", floats)
    jax.tree.map(np.testing.assert_array_equal, *(import_weights(one, small(name)) for one in (path, folder)))


@pytest.mark.parametrize("name", HEADED)
def test_heads_of_other_sizes_are_errors(small, name):
    with pytest.raises(ValueError, match="its head is of 3 classes, not 5"):
        check_weights(RECORDED / "models" / FOLDERS[name], small(name), num_classes=5)


@pytest.mark.parametrize("name", HEADLESS)
def test_networks_without_a_head_get_none(small, name):
    with pytest.raises(ValueError, match="gives logits of its vocabulary, and has no head: leave out num_classes"):
        check_weights(RECORDED / "models" / FOLDERS[name], small(name), num_classes=3)


@pytest.mark.parametrize("name", FOLDERS)
def test_files_of_every_other_network_are_errors(small, name):
    others = {other: folder for other, folder in FOLDERS.items() if small(other).family != small(name).family}
    for folder in others.values():
        with pytest.raises(ValueError, match=r"has .* names, but .* needs|does not hold the weights of"):
            check_weights(RECORDED / "models" / folder, small(name))
