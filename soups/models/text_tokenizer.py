"""Turn texts, or pairs of them, into the tokens that an encoder was trained on, by its own vocabulary."""

import dataclasses
import functools
import logging
import os
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from soups.arguments import check_within
from soups.data.lengths import round_up
from soups.formats.gguf import read_arrays, read_header
from soups.formats.hub import cached_model
from soups.formats.text import read_bytes, read_json, read_text
from soups.lazy import extra
from soups.models.architectures import FAMILY_FIELDS, Architecture, architecture
from soups.models.decoder_sizes import KINDS, is_gguf
from soups.models.sentencepiece import unigram_tokenizer
from soups.names import check_name, count_of

with extra("text"):
    from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import BPE, Unigram, WordPiece

logger = logging.getLogger("soups")

FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",), ("spiece.model",), ("spm.model",))
TRUNCATION = ("longest_first", "only_first", "only_second")
SIDES = {"begin": "right", "end": "left"}  # which part of a text stays, and where it is cut
_ROLES = {"start": ("[CLS]", "<s>"), "end": ("[SEP]", "</s>"), "padding": ("[PAD]", "<pad>")}
_ROLES |= {"mask": ("[MASK]", "<mask>"), "unknown": ("[UNK]", "<unk>")}
_END = "<|endoftext|>"  # GPT-2's only special token
_NAMES = {"start": "bos_token", "end": "eos_token", "padding": "pad_token", "unknown": "unk_token"}
_IN_GGUF = {"start": "bos", "end": "eos", "padding": "padding", "unknown": "unknown"}
_LISTS, _CONTROL = ("tokens", "merges", "token_type"), "3"
_DIGITS = {"gpt-2": False, "smollm": True}  # the ways in which GGUF cuts texts, with "each digit alone"
_SURROGATE = re.compile("[\ud800-\udfff]")
_SPARE = 128  # embeddings without a token; some networks have a round number of them


class Encoded(NamedTuple):
    """Hold what texts became: the inputs of a network by name, and how many of them were cut."""

    inputs: dict[str, np.ndarray]
    cut: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TextTokenizer:
    """Turn texts into what networks of texts take: `tokenize(texts)`, or `tokenize(texts, second_texts)`.

    Attributes:
        name: of the file.
        tokenizer: of the library `tokenizers`.
        length: the most tokens of a row, with those of start and end.
        truncation, keep, limits: as of `text_tokenizer`.
        special: the numbers of the tokens "start", "end", "padding", "mask" and "unknown"; T5 has no "start" and no
            "mask", and a decoder may lack some; it pads with its end where it has no padding.
    """

    name: str
    tokenizer: Tokenizer
    length: int
    truncation: str
    keep: str
    limits: tuple[int | None, int | None]
    special: dict[str, int]

    @property
    def vocabulary_size(self) -> int:
        """Return one more than the largest number of a token."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def __call__(self, texts: Sequence[str], second: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Return {"tokens": int32 [N, T], "mask": bool [N, T], "segments": int32 [N, T]}.

        T is the smallest of `soups.data.LENGTHS` that holds the longest row; the mask is False where a row is padded,
        behind its tokens. Texts that are cut are counted in a warning.

        A ValueError for what are not texts, an empty one, and second texts of another number.
        """
        found = self.encode(texts, second)
        if found.cut:
            logger.warning("%d of %d texts have more than %d tokens and are cut", found.cut, len(texts), self.length)
        return found.inputs

    def encode(self, texts: Sequence[str], second: Sequence[str] | None = None) -> Encoded:
        """Return the inputs with the number of texts that were cut; errors are those of a call."""
        _check_texts(texts, "texts")
        given = list(texts)
        if second is not None:
            _check_texts(second, "second texts")
            if len(second) != len(texts):
                raise ValueError(f"there are {len(texts)} texts, but {len(second)} second texts")
            given = list(zip(texts, second, strict=True))
        rows, cut = self._rows(given)
        longest = max(map(len, rows))
        shape = (len(rows), min(round_up(longest), self.length) if longest <= self.length else longest)
        tokens, segments = np.full(shape, self.special["padding"], np.int32), np.zeros(shape, np.int32)
        mask = np.arange(shape[1])[None] < np.array([len(row) for row in rows])[:, None]
        for index, row in enumerate(rows):
            tokens[index, : len(row)], segments[index, : len(row)] = row.ids, row.type_ids
        return Encoded({"tokens": tokens, "mask": mask, "segments": segments}, cut)

    def numbers(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text alone: nothing is cut, and no special token is added; "" has none."""
        return [row.ids for row in self._whole.encode_batch(list(texts), add_special_tokens=False)]

    @functools.cached_property
    def _whole(self):
        made = Tokenizer.from_str(self.tokenizer.to_str())
        made.no_truncation()
        return made

    def _rows(self, given):
        """Return the encodings of texts or pairs, and how many were cut."""
        if self.limits == (None, None):
            rows = self.tokenizer.encode_batch(given)
            return rows, sum(bool(row.overflowing) for row in rows)
        parts = zip(*(one if isinstance(one, tuple) else (one,) for one in given), strict=True)
        encoded, cut = [], np.zeros(len(given), bool)
        for limit, texts in zip(self.limits, parts, strict=False):
            rows = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
            encoded.append(rows)
            if limit is not None:
                cut |= [len(row) > limit for row in rows]
                for row in rows:
                    row.truncate(limit)
        joined = [self.tokenizer.post_process(*parts) for parts in zip(*encoded, strict=True)]
        return joined, int((cut | [bool(row.overflowing) for row in joined]).sum())


def text_tokenizer(
    path: str | os.PathLike,
    arch: str | Architecture | None = None,
    *,
    length: int = 128,
    truncation: str = "longest_first",
    keep: str = "begin",
    limits: tuple[int | None, int | None] = (None, None),
    lower_case: bool | None = None,
) -> TextTokenizer:
    """Read the tokenizer of a network of texts: `tokenize(texts)` gives its inputs.

        tokenize = text_tokenizer("all-MiniLM-L6-v2", "minilm-l6", length=64)
        tokenize(["a text", "another one"])                   # {"tokens", "mask", "segments"}, each [2, 16]
        tokenize(["a premise"], ["and a hypothesis"])         # pairs

    A row is the start token, the text, the end token; of a pair, for BERT, the second text and the end token again, for
    RoBERTa two end tokens between the texts. T5 has no start token. A decoder's row is the text alone, but for what its
    tokenizer.json adds. Tokens are those of `transformers` for the same files and settings.

    Args:
        path: a folder of Hugging Face, or an id on the hub, org/name, in the local cache, with one of: tokenizer.json;
            vocab.json beside merges.txt (byte pairs, as RoBERTa's and GPT-2's); vocab.txt (word pieces, as BERT's);
            spiece.model or spm.model (Unigram pieces of SentencePiece, as those of T5 and of DeBERTa-v3). Or such a
            file, or the GGUF file of a decoder with byte pairs in it.
        arch: the network, to see that the tokenizer is its own. None: it is not checked.
        length: the most tokens of a row.
        truncation: what is cut of a pair that is longer: "longest_first" token by token of the longer text,
            "only_first" or "only_second".
        keep: "begin" or "end" of what is cut.
        limits: the most tokens of the first and of the second text, cut before they are joined, as LM-BFF (Gao et al.,
            2021, arXiv:2012.15723) limits them; it keeps their beginning.
        lower_case: for a vocab.txt without tokenizer_config.json, whether its words are in small letters.

    Raises:
        FileNotFoundError: no such path, or a folder with none of these files.
        ValueError: files that are damaged or lack a special token; settings that are unknown; a vocab.txt of which
            nothing says whether it is lower-case; a tokenizer with more tokens than the network has embeddings, or far
            fewer; a length beyond the network's.
    """
    check_name(truncation, TRUNCATION, "truncation")
    check_name(keep, SIDES, "keep")
    for limit in limits:
        check_within("limits", 1 if limit is None else limit, "[1, inf)", whole=True)
    length = check_within("length", length, "[4, inf)", whole=True)
    file = _find(pathlib.Path(cached_model(str(path))))
    tokenizer = _read(file, lower_case)
    tokenizer.no_padding()
    tokenizer.enable_truncation(length, strategy=truncation, direction=SIDES[keep])
    special = {role: found for role, names in _ROLES.items() if (found := _number(tokenizer, names)) is not None}
    # a network that writes texts neither begins with a token of its own nor fills masks
    needed = _ROLES.keys() - ({"start", "mask"} if isinstance(tokenizer.model, Unigram) else ())
    if architecture(arch).family in KINDS if arch is not None else _is_decoder(file, tokenizer):
        special = _ends(file, tokenizer)
    elif missing := [" or ".join(names) for role, names in _ROLES.items() if role in needed and role not in special]:
        raise ValueError(f"{file} is not the tokenizer of an encoder: it lacks {', '.join(missing)}")
    options = {"truncation": truncation, "keep": keep, "limits": tuple(limits), "special": special}
    made = TextTokenizer(name=str(file), tokenizer=tokenizer, length=length, **options)
    if arch is not None:
        _check_fits(made, architecture(arch))
    return made


def _is_decoder(file, tokenizer):
    if is_gguf(file):
        return True
    plain = isinstance(tokenizer.model, BPE) and _number(tokenizer, _ROLES["mask"]) is None
    return plain and (tokenizer.token_to_id(_END) is not None or "eos_token" in _settings(file))


def _ends(file, tokenizer):
    """Return the numbers of a decoder's special tokens; without padding of its own it pads with its end."""
    if is_gguf(file):
        said = read_header(file, dequantise=True).metadata
        found = {role: said.get(f"tokenizer.ggml.{name}_token_id") for role, name in _IN_GGUF.items()}
        found = {role: int(number) for role, number in found.items() if number is not None}
    else:
        settings = _settings(file)
        given = {role: settings.get(name) for role, name in _NAMES.items()}
        names = {role: one["content"] if isinstance(one, dict) else one for role, one in given.items()}
        names["end"] = names["end"] or _END
        numbers = {role: tokenizer.token_to_id(name) for role, name in names.items() if name is not None}
        found = {role: number for role, number in numbers.items() if number is not None}
    if "end" not in found:
        raise ValueError(f"{file} is not the tokenizer of a decoder: nothing says which of its tokens is the end")
    return {"padding": found["end"]} | found


def _check_fits(tokenize, arch):
    if arch.image_size is not None:
        raise ValueError(f"architecture {arch.name!r} takes images, not texts")
    encoder = arch.family in FAMILY_FIELDS
    if (encoder and "start" not in tokenize.special) or (arch.family == "t5" and "start" in tokenize.special):
        wanted = "begins with" if encoder else "has no"
        raise ValueError(
            f"{tokenize.name} is the tokenizer of another network: a row of {arch.name} {wanted} a start token"
        )
    rows, tokens = arch.features.vocabulary_size, tokenize.vocabulary_size
    if not tokens <= rows < tokens + _SPARE:
        raise ValueError(
            f"{tokenize.name} is the tokenizer of another network: it has {tokens} tokens, and {arch.name} has {rows} "
            "embeddings of tokens"
        )
    if tokenize.length > arch.features.context_length:
        raise ValueError(f"length {tokenize.length} is more than the {arch.features.context_length} of {arch.name}")


def _number(tokenizer, names):
    return next((found for name in names if (found := tokenizer.token_to_id(name)) is not None), None)


def _check_texts(texts, what):
    if isinstance(texts, str):
        raise ValueError(f"{what} must be a sequence of strings, but one string was given: give [text]")
    if not len(texts):
        raise ValueError(f"there are no {what}")
    if bad := [index for index, text in enumerate(texts) if not isinstance(text, str)]:
        raise ValueError(f"{what} must be strings, but text {bad[0]} is a {type(texts[bad[0]]).__name__}")
    if empty := [index for index, text in enumerate(texts) if not text.strip()]:
        raise ValueError(f"{count_of(len(empty), f'empty {what[:-1]}')}, the first is number {empty[0]}: leave it out")
    if broken := [index for index, text in enumerate(texts) if not text.isascii() and _SURROGATE.search(text)]:
        raise ValueError(f"text {broken[0]} of the {what} holds half a character (a lone surrogate)")


# --- Files ------------------------------------------------------------------------------------------------------------


def _find(path):
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"there is no tokenizer {path}")
    for names in FILES:
        if all((path / name).is_file() for name in names):
            return path / names[0]
    wanted = ", nor ".join(" with ".join(names) for names in FILES)
    raise FileNotFoundError(f"{path} has no tokenizer: neither {wanted}")


def _read(file, lower_case):
    try:
        if file.name == "vocab.json":
            return _byte_pairs(file)
        if file.suffix == ".txt":
            return _word_pieces(file, lower_case)
        if file.suffix == ".model":
            return _unigram(file)
        if is_gguf(file):
            return _of_gguf(file)
        return Tokenizer.from_str(read_text(file))
    except (FileNotFoundError, ValueError):
        raise
    except Exception as error:  # what the library raises has no class of its own
        raise ValueError(f"{file} is damaged, or not a tokenizer: {error}") from error


def _settings(file) -> dict:
    beside = file.with_name("tokenizer_config.json")
    return read_json(beside) if beside.is_file() else {}


def _word_pieces(file, lower_case):
    lines = read_text(file).split("\n")  # other line ends, such as U+2028, are tokens
    numbers = {line.removesuffix("\r"): number for number, line in enumerate(lines) if line or number + 1 < len(lines)}
    settings = _settings(file)
    lower = settings.get("do_lower_case") if lower_case is None else lower_case
    if not isinstance(lower, bool):
        raise ValueError(f"{file}: nothing says whether its words are in lower case: give lower_case")
    start, end, *_ = names = ["[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]"]
    if missing := [name for name in names if name not in numbers]:
        raise ValueError(f"{file} is not a vocabulary of word pieces: it lacks {', '.join(missing)}")
    made = Tokenizer(WordPiece(numbers, unk_token="[UNK]", max_input_chars_per_word=100))
    made.add_special_tokens(names)
    options = {"strip_accents": settings.get("strip_accents")}
    options |= {"handle_chinese_chars": settings.get("tokenize_chinese_chars", True)}
    made.normalizer = normalizers.BertNormalizer(lowercase=lower, **options)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing((end, numbers[end]), (start, numbers[start]))
    return made


def _unigram(file):
    try:
        return unigram_tokenizer(read_bytes(file))
    except (ValueError, KeyError) as error:
        raise ValueError(f"{file} is damaged, or not a tokenizer: {error}") from error


def _byte_pairs(file):
    numbers, lines = read_json(file), read_text(file.with_name("merges.txt")).split("\n")
    merges = [tuple(line.split(" ")) for line in lines["#version" in lines[0] :] if line.strip()]
    start, end, *_ = names = ["<s>", "</s>", "<pad>", "<unk>", "<mask>"]
    if _END in numbers and not numbers.keys() & {*names}:
        return _bytes(numbers, merges, [_END])
    if missing := [name for name in names if name not in numbers]:
        raise ValueError(f"{file} is not a vocabulary of RoBERTa: it lacks {', '.join(missing)}")
    space = bool(_settings(file).get("add_prefix_space", False))
    made = Tokenizer(BPE(numbers, merges))
    made.add_special_tokens([*names[:-1], AddedToken("<mask>", lstrip=True, special=True)])
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    made.post_processor = processors.RobertaProcessing((end, numbers[end]), (start, numbers[start]))
    return made


def _bytes(numbers, merges, special, digits=False):
    """Return byte pairs without what encoders add; with `digits` each digit is a token of its own."""
    made = Tokenizer(BPE(numbers, merges))
    made.add_special_tokens(special)
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if digits:
        parts = [pre_tokenizers.Digits(individual_digits=True), made.pre_tokenizer]
        made.pre_tokenizer = pre_tokenizers.Sequence(parts)
    return made


def _of_gguf(file):
    said, lists = read_header(file, dequantise=True).metadata, [f"tokenizer.ggml.{name}" for name in _LISTS]
    kind, form = said.get("tokenizer.ggml.model"), said.get("tokenizer.ggml.pre")
    if kind != "gpt2" or form not in _DIGITS or said.get("tokenizer.ggml.add_bos_token", "False") != "False":
        known = f'only byte pairs ("gpt2") cut as {", ".join(_DIGITS)} are read, without a token in front'
        raise ValueError(f"{file} has a tokenizer {kind!r} that cuts texts as {form!r}: {known}")
    found = read_arrays(file, lists)
    if missing := [name for name in lists if name not in found]:
        raise ValueError(f"{file} is not a tokenizer: it lacks {', '.join(missing)}")
    tokens, merges, kinds = (found[name] for name in lists)
    if len(tokens) != len(kinds):
        raise ValueError(f"{file} is damaged: it has {len(tokens)} tokens, but the kinds of {len(kinds)}")
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    numbers = {token: number for number, token in enumerate(tokens)}
    return _bytes(numbers, [tuple(pair.split(" ")) for pair in merges], special, _DIGITS[form])
