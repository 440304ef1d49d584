"""Tokenize as decoders were trained: against tokens recorded from transformers, also out of a GGUF file.

The record is that of `scripts/benchmarks/parity_text_tokenizer.py --forms GPT-2 digits --record`.
"""

import json
import pathlib
import struct

import numpy as np
import pytest
from tokenizers import Tokenizer

from soups.models.text_tokenizer import text_tokenizer

RECORDED = json.loads((pathlib.Path(__file__).parent / "recorded" / "decoder_tokenizers.json").read_text("utf-8"))
SPECIAL = ["<|endoftext|>", "<|im_start|>"]
OF_ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
TOKENS = [*SPECIAL, *(token for token in RECORDED["pairs"] if token not in OF_ROBERTA)]


def write_pairs(folder, tokens=TOKENS, **settings):
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *RECORDED["merges"], ""]), encoding="utf-8")
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def write_gguf(folder, **changes):
    """Write a GGUF file with a tokenizer; a value that is None is left out."""
    folder.mkdir(exist_ok=True)
    values = {"model": "gpt2", "pre": "smollm", "tokens": TOKENS, "merges": RECORDED["merges"]}
    values |= {"token_type": [3, 3, *[1] * (len(TOKENS) - 2)], "eos_token_id": 0, "bos_token_id": 1} | changes
    values = {f"tokenizer.ggml.{name}": value for name, value in values.items() if value is not None}
    content = struct.pack("<4sIQQ", b"GGUF", 3, 1, len(values))
    for name, value in values.items():
        content += _text(name) + _value(value)
    content += _text("w") + struct.pack("<IQIQ", 1, 1, 0, 0)
    (folder / "model.gguf").write_bytes(content + b"\0" * (-len(content) % 32) + b"\0" * 4)
    return folder / "model.gguf"


def _value(value):
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    items = [_text(item) if isinstance(item, str) else struct.pack("<i", item) for item in value]
    return struct.pack("<IIQ", 9, 8 if isinstance(value[0], str) else 5, len(items)) + b"".join(items)


def _text(text):
    return struct.pack("<Q", len(text.encode())) + text.encode()


FORMS = {"GPT-2": write_pairs, "digits": write_gguf}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("whole", [False, True])
def test_tokens_are_those_of_transformers(tmp_path, form, whole):
    path, texts = FORMS[form](tmp_path / "files"), RECORDED["texts"]
    if whole:  # the same as tokenizer.json
        tokenizer, path = text_tokenizer(path).tokenizer, tmp_path / "whole"
        path.mkdir()
        tokenizer.save(str(path / "tokenizer.json"))
    for case in [case for case in RECORDED["cases"] if case["form"] == form]:
        paired, length, truncation, keep = case["settings"]
        tokenize = text_tokenizer(path, length=length, truncation=truncation, keep=keep)
        found = tokenize(texts, [*texts[1:], texts[0]] if paired else None)
        assert found["segments"].sum(axis=1).tolist() == case["second"]
        for row, mask, expected in zip(found["tokens"], found["mask"], case["tokens"], strict=True):
            assert row[mask].tolist() == [*map(int, expected.split())]
            assert (row[~mask] == 0).all() and mask[: mask.sum()].all()


def test_numbers_are_neither_cut_nor_padded(tmp_path):
    tokenize, texts = text_tokenizer(write_gguf(tmp_path / "files"), length=4), RECORDED["texts"]
    found = tokenize.numbers([*texts, ""])
    case = next(case for case in RECORDED["cases"] if case["form"] == "digits" and not case["settings"][0])
    expected = [[*map(int, row.split())] for row in case["tokens"]]
    assert [row[:64] for row in found[:-1]] == expected and found[-1] == []
    assert tokenize(texts)["tokens"].shape[1] == 4 and max(map(len, found)) > 64


def test_each_digit_is_a_token(tmp_path):
    tokenize = text_tokenizer(write_gguf(tmp_path / "files"))
    assert [len(row) for row in tokenize.numbers(["1234", " 12"])] == [4, 3]


def test_special_tokens_are_those_of_the_files(tmp_path):
    assert text_tokenizer(write_gguf(tmp_path / "a")).special == {"padding": 0, "end": 0, "start": 1}
    assert text_tokenizer(write_gguf(tmp_path / "b", padding_token_id=5)).special["padding"] == 5
    assert text_tokenizer(write_pairs(tmp_path / "c")).special == {"padding": 0, "end": 0}
    settings = {"eos_token": {"content": "<|im_start|>"}, "pad_token": "<|endoftext|>", "bos_token": None}
    assert text_tokenizer(write_pairs(tmp_path / "d", **settings)).special == {"padding": 0, "end": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "llama"}, r"has a tokenizer 'llama' that cuts texts as 'smollm': only byte pairs \(\"gpt2\"\)"),
        ({"pre": "qwen2"}, "cuts texts as 'qwen2': only byte pairs .* cut as gpt-2, smollm are read"),
        ({"pre": None}, "cuts texts as None"),
        ({"add_bos_token": True}, "without a token in front"),
        ({"merges": None}, "is not a tokenizer: it lacks tokenizer.ggml.merges"),
        ({"token_type": [3]}, "is damaged: it has 408 tokens, but the kinds of 1"),
        ({"merges": ["zz yy"]}, "is damaged, or not a tokenizer"),
        ({"eos_token_id": None}, "nothing says which of its tokens is the end"),
    ],
)
def test_other_tokenizers_in_gguf_are_errors(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        text_tokenizer(write_gguf(tmp_path / "files", **changes))


def test_a_decoder_without_an_end_is_an_error(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    made = Tokenizer.from_str(text_tokenizer(write_gguf(tmp_path / "gguf")).tokenizer.to_str())
    content = json.loads(made.to_str().replace("<|endoftext|>", "<|other|>"))
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="nothing says which of its tokens is the end"):
        text_tokenizer(folder, "gpt2")


def test_a_tokenizer_of_another_network_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="is the tokenizer of another network: it has 408 tokens, and gpt2 has 50257"):
        text_tokenizer(write_pairs(tmp_path / "files"), "gpt2")
    assert isinstance(text_tokenizer(write_pairs(tmp_path / "files")).numbers(["a"])[0][0], int | np.integer)
