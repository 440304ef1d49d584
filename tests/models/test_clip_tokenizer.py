"""Tokenize as CLIP does: against tokens recorded from open_clip, by hand, and with files that are no vocabulary."""

import gzip
import itertools
import json
import pathlib

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordPiece
from tokenizers.pre_tokenizers import ByteLevel

from soups.models.clip_tokenizer import clean, clip_tokenizer

RECORDED = json.loads((pathlib.Path(__file__).parent / "recorded" / "clip_tokenizer.json").read_text("utf-8"))
SYMBOLS = sorted(ByteLevel.alphabet())
BYTES = [*SYMBOLS, *(symbol + "</w>" for symbol in SYMBOLS)]
ENDS = ["<|startoftext|>", "<|endoftext|>"]


def write_published(folder, merges, header='"bpe_simple_vocab_16e6.txt#version: 0.2'):
    path = folder / "bpe_simple_vocab_16e6.txt.gz"
    path.write_bytes(gzip.compress("\n".join([header, *merges, ""]).encode()))
    return path


def numbers_of(merges, ends=ENDS):
    return {token: number for number, token in enumerate([*BYTES, *(m.replace(" ", "") for m in merges), *ends])}


def write_vocab(folder, numbers, merges):
    (folder / "vocab.json").write_text(json.dumps(numbers))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    return folder


def write_tokenizer(folder, numbers, merges):
    pairs = [tuple(merge.split()) for merge in merges]
    Tokenizer(BPE(numbers, pairs, end_of_word_suffix="</w>")).save(str(folder / "tokenizer.json"))
    return folder


def row(*tokens):
    return [*tokens, *[0] * (77 - len(tokens))]


@pytest.fixture
def bare(tmp_path):
    """Return the tokenizer of a vocabulary without merges: a byte is its place in `BYTES`, the ends are 512 and 513."""
    return clip_tokenizer(write_published(tmp_path, []))


def test_tokens_are_those_of_open_clip(tmp_path):
    texts, expected = zip(*RECORDED["cases"], strict=True)
    tokens = clip_tokenizer(write_published(tmp_path, RECORDED["merges"]))(texts)
    assert tokens.dtype == np.int32
    for text, mine, theirs in zip(texts, tokens, expected, strict=True):
        assert mine.tolist() == row(*map(int, theirs.split())), text


def test_all_forms_of_a_vocabulary_give_the_same(tmp_path):
    texts, merges = [text for text, _ in RECORDED["cases"]], RECORDED["merges"]
    expected = clip_tokenizer(write_published(tmp_path, merges))(texts)
    numbers = numbers_of(merges)
    for write in (write_vocab, write_tokenizer):
        folder = tmp_path / write.__name__
        folder.mkdir()
        np.testing.assert_array_equal(clip_tokenizer(write(folder, numbers, merges))(texts), expected)
    old = json.loads((folder / "tokenizer.json").read_text())
    old["model"]["merges"] = merges  # "a b", as files were before 2024; now ["a", "b"]
    (folder / "tokenizer.json").write_text(json.dumps(old))
    np.testing.assert_array_equal(clip_tokenizer(folder / "tokenizer.json")(texts), expected)


def test_numbers_come_from_the_file_and_open_clips_names_of_the_ends_are_known(tmp_path):
    numbers = {token: number for number, token in enumerate([*reversed(BYTES), "<start_of_text>", "<end_of_text>"])}
    tokens = clip_tokenizer(write_vocab(tmp_path, numbers, []))(["ab"])
    assert tokens.tolist() == [row(512, 511 - BYTES.index("a"), 511 - BYTES.index("b</w>"), 513)]


def test_the_last_byte_of_a_word_is_another_token(bare):
    a, b, last = SYMBOLS.index("a"), SYMBOLS.index("b"), 256
    assert bare(["ab a", ""]).tolist() == [row(512, a, last + b, last + a, 513), row(512, 513)]


def test_merges_apply_in_their_order(tmp_path):
    tokenize = clip_tokenizer(write_published(tmp_path, ["b c", "a b", "ab c</w>"]))
    bc, c_last = 512, 256 + SYMBOLS.index("c")
    assert tokenize(["bcc", "abc"]).tolist() == [row(515, bc, c_last, 516), row(515, 514, 516)]


@pytest.mark.parametrize("count", [75, 76, 1000])
def test_a_long_text_keeps_its_end_token(bare, count):
    numbers = [SYMBOLS.index(letter) for letter in ("xy" * count)[:count]]
    numbers[-1] += 256
    tokens = bare([("xy" * count)[:count]])
    assert tokens.tolist() == [[512, *numbers[:75], 513]]


def test_names_of_special_tokens_are_plain_text(bare):
    tokens = bare(["a<|endoftext|>"])[0].tolist()
    assert tokens.index(513) == len("a<|endoftext|>") + 1


def test_only_the_merges_of_the_published_networks_are_used(tmp_path):
    merges = [f"{a} {b}" for a, b in itertools.islice(itertools.product(SYMBOLS, SYMBOLS), 48_900)]
    (tokens,) = clip_tokenizer(write_published(tmp_path, merges))([""])
    assert tokens[:3].tolist() == [49_406, 49_407, 0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" Two\t\n lines\u00a0\u3000now ", "two lines now"),
        ("R&amp;D &amp;amp;lt; &eacute;", "r&d < é"),
        ("it’s “so”", 'it\'s "so"'),  # ftfy straightens quotes
        ("cafÃ© ﬁne ＡＢ", "café fine ab"),  # ftfy: UTF-8 read as Latin-1, ligatures, full width
        ("e\u0301 ΣΊΣΥΦΟΣ İ", "é σίσυφος i\u0307"),  # NFC; a sigma that ends a word
        ("\ud800 \x00x", "\ufffd x"),
    ],
)
def test_texts_are_cleaned_as_openai_does(text, expected):
    assert clean(text) == expected


def damage_json(folder):
    (folder / "vocab.json").write_text('{"a": 1')


def no_object(folder):
    (folder / "vocab.json").write_text("[1, 2]")


def no_numbers(folder):
    (folder / "vocab.json").write_text('{"a": "b"}')


def no_pairs(folder):
    (folder / "merges.txt").write_text("a b c\n")


def other_merges(folder):
    (folder / "merges.txt").write_text("qu x\n")


def gap(folder):
    write_vocab(folder, numbers_of([]) | {"extra": 600}, [])


def gpt2(folder):
    write_vocab(folder, {token: number for number, token in enumerate([*SYMBOLS, *ENDS])}, [])


def no_ends(folder):
    write_vocab(folder, numbers_of([], ["<s>", "</s>"]), [])


def ends_first(folder):
    write_vocab(folder, {token: number for number, token in enumerate([*ENDS, *BYTES])}, [])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (damage_json, "vocab.json is not valid JSON"),
        (no_object, "vocab.json is not a JSON object"),
        (no_numbers, "its vocabulary does not give each token a number"),
        (no_pairs, r"1 merges are not pairs of tokens, such as .*'a', 'b', 'c'"),
        (other_merges, "it lacks 2 tokens of merges, such as 'qu'"),
        (gap, "its 515 tokens are not numbered from 0 to 514, each number once; .*it must have the last, 514"),
        (gpt2, "it lacks 256 of the 512 tokens of single bytes, such as '!</w>'"),
        (no_ends, r"it lacks <\|startoftext\|> and <\|endoftext\|> \(or <start_of_text> and <end_of_text>\)"),
        (ends_first, r"<\|endoftext\|> has number 1, but it must have the last, 513"),
    ],
)
def test_what_is_wrong_with_a_vocabulary_is_said(tmp_path, spoil, message):
    write_vocab(tmp_path, numbers_of([]), [])
    clip_tokenizer(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message):
        clip_tokenizer(tmp_path)


def test_another_kind_of_tokenizer_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    Tokenizer(WordPiece({"[UNK]": 0}, unk_token="[UNK]")).save(str(path))
    with pytest.raises(ValueError, match=r"tokenizer.json is damaged, or not a vocabulary of CLIP: KeyError, 'merges'"):
        clip_tokenizer(path)


def test_a_damaged_archive_is_named(tmp_path):
    path = write_published(tmp_path, RECORDED["merges"])
    whole = path.read_bytes()
    for content in (whole[:100], b"no archive", whole[:200] + b"\x00" * 50 + whole[250:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"bpe_simple_vocab_16e6.txt.gz is damaged, or not a vocabulary"):
            clip_tokenizer(path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither vocab\.json with merges\.txt, nor tokenizer\.json, nor bpe"):
        clip_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no vocabulary .*nowhere"):
        clip_tokenizer(tmp_path / "nowhere")
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"merges\.txt"):
        clip_tokenizer(tmp_path / "vocab.json")
    (tmp_path / "vocab.bin").write_text("{}")
    with pytest.raises(ValueError, match=r"vocab\.bin is not a vocabulary: give vocab\.json, tokenizer\.json, bpe"):
        clip_tokenizer(tmp_path / "vocab.bin")


def test_texts_must_be_a_sequence_of_strings(bare):
    with pytest.raises(ValueError, match=r"must be a sequence of strings, but one string was given: give \[text\]"):
        bare("a photo")
    with pytest.raises(ValueError, match="texts must be strings, but text 1 is a int"):
        bare(["a photo", 3])
