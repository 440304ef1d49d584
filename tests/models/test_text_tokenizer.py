"""Tokenize as encoders of texts were trained: against tokens recorded from transformers, by hand, with bad files."""

import base64
import dataclasses
import functools
import json
import pathlib
import struct

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE

from soups.models.architectures import architecture
from soups.models.text_tokenizer import text_tokenizer

RECORDED = json.loads((pathlib.Path(__file__).parent / "recorded" / "text_tokenizers.json").read_text("utf-8"))
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##b", "é", "e", "A", "."]
CLS, SEP, A, B, AFTER = 2, 3, 5, 6, 7


def write_pieces(folder, pieces=PIECES, **settings):
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join([*pieces, ""]), encoding="utf-8")
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def write_pairs(folder, tokens=RECORDED["pairs"], merges=RECORDED["merges"]):
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    return folder


def write_model(folder, name):
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(base64.b64decode(RECORDED[name]))
    return folder


FORMS = {
    "vocab.txt": lambda folder: write_pieces(folder, RECORDED["pieces"], do_lower_case=True),
    "vocab.txt, cased": lambda folder: write_pieces(folder, RECORDED["pieces"], do_lower_case=False),
    "vocab.json, merges.txt": write_pairs,
    "spiece.model": functools.partial(write_model, name="spiece.model"),
    "spm.model": functools.partial(write_model, name="spm.model"),
}


@pytest.fixture
def pieces(tmp_path):
    """Return a folder with the word pieces of `PIECES`."""
    return write_pieces(tmp_path / "pieces", do_lower_case=True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("whole", [False, True])
def test_tokens_are_those_of_transformers(tmp_path, form, whole):
    folder, texts = FORMS[form](tmp_path / "files"), RECORDED["texts"]
    if whole:  # the same in one file, with other settings that must not count
        tokenizer = text_tokenizer(folder).tokenizer
        tokenizer.enable_padding(length=99)
        folder = tmp_path / "whole"
        folder.mkdir()
        tokenizer.save(str(folder / "tokenizer.json"))
    for case in [case for case in RECORDED["cases"] if case["form"] == form]:
        paired, length, truncation, keep = case["settings"]
        tokenize = text_tokenizer(folder, length=length, truncation=truncation, keep=keep)
        found = tokenize(texts, [*texts[1:], texts[0]] if paired else None)
        for name, dtype in {"tokens": np.int32, "mask": np.bool_, "segments": np.int32}.items():
            assert found[name].dtype == dtype and len(found[name]) == len(texts)
        assert found["segments"].sum(axis=1).tolist() == case["second"]
        for row, mask, expected in zip(found["tokens"], found["mask"], case["tokens"], strict=True):
            assert row[mask].tolist() == [*map(int, expected.split())]
            assert (row[~mask] == tokenize.special["padding"]).all() and mask[: mask.sum()].all()


def test_t5_ends_its_texts_and_has_tokens_for_what_is_left_out(tmp_path):
    tokenize = text_tokenizer(write_model(tmp_path, "spiece.model"), length=32)
    assert tokenize.special == {"end": 1, "padding": 0, "unknown": 2} and tokenize.vocabulary_size == 700
    one, other = (tokenize([text])["tokens"][0] for text in ("a photo", "of a dog"))
    one, other = (row[: row.tolist().index(1) + 1].tolist() for row in (one, other))
    both = tokenize(["a photo"], ["of a dog"])
    assert both["tokens"][0, : len(one + other)].tolist() == one + other and not both["segments"].any()
    assert tokenize(["<extra_id_0><extra_id_99></s>"])["tokens"][0, :4].tolist() == [699, 600, 1, 1]


def test_deberta_begins_and_ends_its_texts(tmp_path):
    tokenize = text_tokenizer(write_model(tmp_path, "spm.model"), length=32)
    assert tokenize.special == {"start": 1, "end": 2, "padding": 0, "unknown": 3, "mask": 600}
    both = tokenize(["a photo"], ["of a dog [MASK]"])
    count, ends = both["mask"].sum(), np.flatnonzero(both["tokens"][0] == 2)
    assert both["tokens"][0, 0] == 1 and both["tokens"][0, count - 2] == 600 and ends[-1] == count - 1
    assert both["segments"][0].tolist() == [int(ends[0] < place < count) for place in range(16)]


def field(number, value):
    """Write a field of a protobuf message."""
    if isinstance(value, float):
        return bytes([number << 3 | 5]) + struct.pack("<f", value)
    if isinstance(value, int):
        return bytes([number << 3, value])
    return bytes([number << 3 | 2, len(value)]) + value


def model_of(pieces, trainer=b"", normalizer=b""):
    """Write a model of SentencePiece by hand."""
    made = [field(1, field(1, name.encode()) + field(2, score) + field(3, kind)) for name, score, kind in pieces]
    return b"".join([*made, field(2, trainer), field(3, normalizer)])


ENDS = [("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2)]


def test_the_most_likely_pieces_are_taken(tmp_path):
    pieces = [*ENDS, ("▁", -3.0, 1), ("a", -3.0, 1), ("▁a", -2.0, 1), ("ab", -2.5, 1), ("b", -3.0, 1), ("<x>", 0.0, 4)]
    unknown = bytes([40 << 3 & 127 | 128, 40 << 3 >> 7, 2])  # unk_id, in two bytes
    (tmp_path / "spiece.model").write_bytes(model_of(pieces, unknown))
    tokenize = text_tokenizer(tmp_path, length=16)
    # -2 - 3 for ▁a b is more than -3 - 2.5 for ▁ ab; unknown letters are one token together
    for text, expected in {
        "ab": [5, 7],
        "  ab   ab ": [5, 7, 5, 7],
        "abab": [5, 7, 6],
        "a?!": [5, 2],
        "a<x>b": [5, 8, 3, 7],
    }.items():
        assert tokenize([text])["tokens"][0][: len(expected) + 1].tolist() == [*expected, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (model_of(ENDS)[:-9], "is damaged, or not a tokenizer: it is truncated, or not a SentencePiece model"),
        (b"\xff" * 40, "is damaged, or not a tokenizer: it is truncated, or not a SentencePiece model"),
        (field(2, b""), "it holds no pieces"),
        (model_of(ENDS, field(3, 2)), "only its Unigram vocabularies are read: give tokenizer.json"),
        (model_of(ENDS[2:]), r"it has neither \[CLS\] and \[SEP\] nor </s>: give tokenizer.json"),
        (model_of([(name[1:], *rest) for name, *rest in ENDS]), r"neither \[CLS\] and \[SEP\] nor </s>"),
    ],
)
def test_other_models_are_errors(tmp_path, content, message):
    (tmp_path / "spiece.model").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        text_tokenizer(tmp_path)


def test_a_row_is_as_long_as_the_next_of_few_lengths(pieces):
    tokenize = text_tokenizer(pieces, length=20)
    assert tokenize(["a b"])["tokens"].shape == (1, 16)
    assert tokenize(["a b"])["tokens"][0, :5].tolist() == [CLS, A, B, SEP, 0]
    assert tokenize(["a " * 15])["tokens"].shape == tokenize(["a " * 99])["tokens"].shape == (1, 20)


def test_texts_that_are_cut_are_counted(pieces, caplog):
    tokenize = text_tokenizer(pieces, length=6)
    inputs = tokenize(["a " * 4, "b " * 5, "ab"])
    assert "1 of 3 texts have more than 6 tokens and are cut" in caplog.text
    assert inputs["tokens"][1].tolist() == [CLS, B, B, B, B, SEP] and inputs["tokens"][2].tolist() == [
        CLS,
        A,
        AFTER,
        SEP,
        0,
        0,
    ]
    assert tokenize.encode(["a", "b " * 9]).cut == 1 and tokenize.encode(["a"], ["b " * 9]).cut == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"truncation": "only_first"}, [CLS, A, SEP, B, B, B, SEP]),
        ({"truncation": "only_second"}, [CLS, A, A, A, SEP, B, SEP]),
        ({"truncation": "longest_first"}, [CLS, A, A, SEP, B, B, SEP]),
        ({"limits": (1, None)}, [CLS, A, SEP, B, B, B, SEP]),
        ({"limits": (2, 1)}, [CLS, A, A, SEP, B, SEP, 0]),
        ({"limits": (None, 2)}, [CLS, A, A, SEP, B, B, SEP]),
    ],
)
def test_pairs_are_cut_as_asked(pieces, options, expected):
    tokenize = text_tokenizer(pieces, length=7, **options)
    encoded = tokenize.encode(["a a a"], ["b b b"])
    assert encoded.inputs["tokens"].tolist() == [expected] and encoded.cut == 1


def test_limits_count_the_tokens_of_each_text(pieces):
    found = text_tokenizer(pieces, limits=(2, 1)).encode(["a b", "a b a"])
    assert found.cut == 1 and found.inputs["tokens"][:, :5].tolist() == [[CLS, A, B, SEP, 0]] * 2


@pytest.mark.parametrize(
    ("settings", "options", "expected"),
    [
        ({"do_lower_case": True}, {}, [A, 9]),
        ({"do_lower_case": False}, {}, [10, 8]),
        ({"do_lower_case": True, "strip_accents": False}, {}, [A, 8]),
        ({"do_lower_case": True}, {"lower_case": False}, [10, 8]),
        ({}, {"lower_case": True}, [A, 9]),
    ],
)
def test_small_letters_and_accents_are_as_the_folder_says(tmp_path, settings, options, expected):
    tokenize = text_tokenizer(write_pieces(tmp_path / "pieces", **settings), **options)
    assert tokenize(["A é"])["tokens"][0, 1:3].tolist() == expected


def test_a_vocabulary_whose_case_nothing_says_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="nothing says whether its words are in lower case: give lower_case"):
        text_tokenizer(write_pieces(tmp_path / "pieces"))


def test_a_tokenizer_of_another_network_is_an_error(pieces):
    arch = architecture("minilm-l6")
    with pytest.raises(ValueError, match="it has 12 tokens, and minilm-l6 has 30522 embeddings of tokens"):
        text_tokenizer(pieces, arch)
    fitting = dataclasses.replace(arch, features=arch.features.clone(vocabulary_size=16, context_length=32))
    assert text_tokenizer(pieces, fitting, length=32).vocabulary_size == 12
    with pytest.raises(ValueError, match="length 33 is more than the 32 of minilm-l6"):
        text_tokenizer(pieces, fitting, length=33)
    smaller = dataclasses.replace(arch, features=arch.features.clone(vocabulary_size=11))
    with pytest.raises(ValueError, match="it has 12 tokens, and minilm-l6 has 11 embeddings"):
        text_tokenizer(pieces, smaller)
    with pytest.raises(ValueError, match="'vit-b16' takes images, not texts"):
        text_tokenizer(pieces, "vit-b16")


@pytest.mark.parametrize(
    ("texts", "second", "message"),
    [
        ("a", None, "one string was given: give \\[text\\]"),
        ([], None, "there are no texts"),
        (["a", 3], None, "text 1 is a int"),
        (["a", "  "], None, "1 empty text, the first is number 1"),
        (["a"], [""], "1 empty second text, the first"),
        (["a"], ["b", "b"], "there are 1 texts, but 2 second texts"),
        (["\ud800"], None, "text 0 of the texts holds half a character"),
    ],
)
def test_other_texts_are_errors(pieces, texts, second, message):
    with pytest.raises(ValueError, match=message):
        text_tokenizer(pieces)(texts, second)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truncation": "first"}, "unknown truncation 'first'"),
        ({"keep": "middle"}, "unknown keep 'middle'"),
        ({"length": 3}, r"length must be .*4"),
        ({"limits": (0, None)}, r"limits must be .*1"),
    ],
)
def test_other_settings_are_errors(pieces, options, message):
    with pytest.raises(ValueError, match=message):
        text_tokenizer(pieces, **options)


def test_folders_and_files_that_hold_no_tokenizer_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither tokenizer.json, nor vocab.json with merges.txt, nor .*spm"):
        text_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no tokenizer"):
        text_tokenizer(tmp_path / "absent")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is damaged, or not a tokenizer"):
        text_tokenizer(tmp_path)
    Tokenizer(BPE({"a": 0}, [])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"is not the tokenizer of an encoder: it lacks \[CLS\] or <s>"):
        text_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"is not a vocabulary of word pieces: it lacks \[CLS\], \[MASK\]"):
        text_tokenizer(write_pieces(tmp_path / "pieces", ["[PAD]", "[SEP]", "[UNK]"], do_lower_case=True))
    with pytest.raises(ValueError, match="is not a vocabulary of RoBERTa: it lacks <s>, </s>"):
        text_tokenizer(write_pairs(tmp_path / "pairs", ["a", "<pad>", "<unk>", "<mask>"], []))
    with pytest.raises(ValueError, match=r"vocab.json is damaged, or not a tokenizer: .*`xy`"):
        text_tokenizer(write_pairs(tmp_path / "merges", merges=["x y"]))
