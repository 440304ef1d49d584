"""Turn text into the tokens that CLIP was trained on, with the vocabulary in a checkpoint's folder."""

import gzip
import html
import os
import pathlib
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from soups.formats.tensors import CheckpointError, short
from soups.formats.text import MAX_TEXT, read_json, read_text
from soups.lazy import extra

with extra("text"):
    import ftfy
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel, Split
    from tokenizers.pre_tokenizers import Sequence as Steps

PUBLISHED = "bpe_simple_vocab_16e6.txt.gz"
FILES = (("vocab.json", "merges.txt"), ("tokenizer.json",), (PUBLISHED,))
LENGTH = 77
LAST = "</w>"  # marks the token that ends a word
# what vocabularies call the first and the last token of a text: OpenAI and Hugging Face; open_clip
ENDS = (("<|startoftext|>", "<|endoftext|>"), ("<start_of_text>", "<end_of_text>"))
# the file has more merges than the networks have tokens: 512 bytes + 48,894 merges + 2 ends = 49,408
PUBLISHED_MERGES = 48_894
# U+0345 is dropped: under OpenAI's case-insensitive pattern it is no letter and yet not outside the letters
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}\x{345}]+"


def clip_tokenizer(path: str | os.PathLike) -> Callable[[Sequence[str]], np.ndarray]:
    """Read a vocabulary and give `tokenize(texts) -> tokens`, int32 [N, 77].

    A row is the start token, the byte pairs of the text, the end token and zeros; of a text that is too long the first
    75 tokens stay. Texts are cleaned as `clean` does, whatever file the vocabulary comes from. The names of special
    tokens are plain text here. `tokenize` raises a ValueError for anything but a sequence of strings.

    Args:
        path: a folder with, or one of: vocab.json beside merges.txt, tokenizer.json (both of Hugging Face), or
            bpe_simple_vocab_16e6.txt.gz (OpenAI, open_clip); the first of them that is there.

    Raises:
        FileNotFoundError: no such path, or a folder with none of these files.
        ValueError: files that are damaged, or do not hold a vocabulary of CLIP; everything wrong with it is listed.

    Radford et al., "Learning transferable visual models from natural language supervision", 2021, arXiv:2103.00020.
    """
    file = _find(pathlib.Path(path))
    numbers, merges = _read(file)
    start, end = _checked(numbers, merges, file)
    pairs = Tokenizer(BPE(numbers, merges, end_of_word_suffix=LAST))
    as_bytes = ByteLevel(add_prefix_space=False, use_regex=False)
    pairs.pre_tokenizer = Steps([Split(Regex(WORDS), "removed", invert=True), as_bytes])

    def tokenize(texts):
        _check_texts(texts)
        rows = np.zeros((len(texts), LENGTH), np.int32)
        for row, text in zip(rows, texts, strict=True):
            tokens = [start, *pairs.encode(clean(text)).ids[: LENGTH - 2], end]
            row[: len(tokens)] = tokens
        return rows

    return tokenize


def clean(text: str) -> str:
    """Clean a text as OpenAI does: mend its Unicode (ftfy), unescape HTML twice, single blanks, lower case."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()


def _find(path):
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"there is no vocabulary {path}")
    for names in FILES:
        if all((path / name).is_file() for name in names):
            return path / names[0]
    wanted = ", nor ".join(" with ".join(names) for names in FILES)
    raise FileNotFoundError(f"{path} has no vocabulary: neither {wanted}")


def _read(file):
    """Return {token: number} and the merges, pairs of tokens, the first to be applied first."""
    try:
        if file.name == "vocab.json":
            return read_json(file), _merges(read_text(file.with_name("merges.txt")))
        if file.suffix == ".json":
            model = read_json(file)["model"]
            return model["vocab"], [tuple(m.split(" ") if isinstance(m, str) else m) for m in model["merges"]]
        if file.suffix == ".gz":
            return _read_published(file)
    except CheckpointError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{file} is damaged, or not a vocabulary of CLIP: {type(error).__name__}, {error}") from error
    raise ValueError(f"{file} is not a vocabulary: give {', '.join(names[0] for names in FILES)}, or a folder")


def _read_published(file):
    # the tokens are not in the file: the bytes, the bytes at the end of a word, what the merges make, the two ends
    with gzip.open(file) as stream:
        merges = _merges(stream.read(MAX_TEXT).decode("utf-8"))[:PUBLISHED_MERGES]
    symbols = _symbols()
    tokens = [*symbols, *(symbol + LAST for symbol in symbols), *map("".join, merges), *ENDS[0]]
    return {token: number for number, token in enumerate(tokens)}, merges


def _merges(text):
    lines = text.split("\n")
    return [tuple(line.split()) for line in lines["#version" in lines[0] :] if line.strip()]


def _symbols():
    # a printable letter for each byte; by code point, which is the order of the published numbers
    return sorted(ByteLevel.alphabet())


def _checked(numbers, merges, file):
    """Return the numbers of the start and the end token of a good vocabulary."""
    if problems := list(_problems(numbers, merges)):
        raise ValueError(f"{file} is not a vocabulary of CLIP: {'; '.join(problems)}")
    return next(tuple(numbers[end] for end in ends) for ends in ENDS if all(end in numbers for end in ends))


def _problems(numbers, merges):
    if not isinstance(numbers, dict) or not all(type(number) is int for number in numbers.values()):
        yield "its vocabulary does not give each token a number"
        return
    if bad := [m for m in merges if len(m) != 2 or not all(isinstance(part, str) for part in m)]:
        yield f"{len(bad)} merges are not pairs of tokens, such as {short(str(bad[0]))}"
        return
    if sorted(numbers.values()) != list(range(len(numbers))):
        yield f"its {len(numbers)} tokens are not numbered from 0 to {len(numbers) - 1}, each number once"
    symbols = _symbols()
    if absent := [token for token in (*symbols, *(s + LAST for s in symbols)) if token not in numbers]:
        yield f"it lacks {len(absent)} of the 512 tokens of single bytes, such as {short(absent[0])}"
    if absent := [t for pair in merges for t in (*pair, "".join(pair)) if t not in numbers]:
        yield f"it lacks {len(absent)} tokens of merges, such as {short(absent[0])}"
    ends = next((ends for ends in ENDS if all(end in numbers for end in ends)), None)
    if ends is None:
        yield f"it lacks {' and '.join(ENDS[0])} (or {' and '.join(ENDS[1])})"
    elif numbers[ends[1]] != len(numbers) - 1:
        # the text tower reads the feature at the largest number of a row
        yield f"{ends[1]} has number {numbers[ends[1]]}, but it must have the last, {len(numbers) - 1}"


def _check_texts(texts):
    if isinstance(texts, str):
        raise ValueError("texts must be a sequence of strings, but one string was given: give [text]")
    if bad := [index for index, text in enumerate(texts) if not isinstance(text, str)]:
        raise ValueError(f"texts must be strings, but text {bad[0]} is a {type(texts[bad[0]]).__name__}")
