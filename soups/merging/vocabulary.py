"""Read the tokens of a model's tokenizer, in whatever file they are, and compare those of several models."""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from xxhash import xxh3_128_digest

from soups.formats.protobuf import fields
from soups.formats.text import read_bytes, read_json, read_text
from soups.merging.config import folder_of
from soups.names import few, shown

FILE, CONFIG, ADDED = "tokenizer.json", "tokenizer_config.json", "added_tokens.json"
# in the order in which they are looked for; rows follow the numbers in the first three
PIECES = ("tokenizer.model", "spiece.model", "spm.model", "sentencepiece.bpe.model", "sentencepiece.model")
NUMBERED = (FILE, "vocab.json", "vocab.txt")
OTHERS = ("tekken.json", "*.tiktoken", "*.spm", "vocab-*.json", "dict.txt", "bpe.codes")
_MOST_TOKENS = 1 << 24
_DIGITS = re.compile(r"[0-9]{1,9}")


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Hold the tokens of a tokenizer with their numbers, and the entries of the added ones among them."""

    tokens: dict[str, int]
    added: dict[str, dict[str, Any]]

    @property
    def size(self) -> int:
        """Return the number of rows that it needs."""
        return max(self.tokens.values(), default=-1) + 1


def vocabulary_file(folder: pathlib.Path) -> pathlib.Path | None:
    """Return the file that a folder's tokens are read from; None if it has none."""
    for name in (*NUMBERED, *PIECES):
        if os.path.lexists(folder / name):
            return folder / name
    return next((file for pattern in OTHERS for file in sorted(folder.glob(pattern))), None)


def tokens_folder(checkpoint: Any) -> pathlib.Path:
    """Return the folder of a model's tokenizer: that of its adapter, if one lies there, or its own."""
    adapters = [file.parent for file in checkpoint.sizes if file.name == "adapter_config.json"]
    return next((folder for folder in reversed(adapters) if vocabulary_file(folder)), folder_of(checkpoint))


def read_vocabulary(folder: pathlib.Path, *, with_rows: bool = False) -> Vocabulary:
    """Read the tokens of a folder: of its tokenizer.json, vocab.json, vocab.txt, or model of sentencepiece.

    `with_rows`: the number of each must be that of its row, which no model of sentencepiece promises.

    Raises:
        ValueError: none of these files is there, or one is damaged or of another kind.
    """
    path = vocabulary_file(folder)
    if path is None or (path.name not in NUMBERED and (with_rows or path.name not in PIECES)):
        there = f"; {path.name} does not tell them" if path else ""
        raise ValueError(f"no {', '.join(NUMBERED)} in {folder}, so the numbers of its tokens are not known{there}")
    try:
        tokens, entries = _read(path)
        for number, entry in _object(folder / CONFIG).get("added_tokens_decoder", {}).items():
            entries.setdefault(entry["content"], {"id": int(number) if _DIGITS.fullmatch(number) else number, **entry})
        for token, number in (_object(folder / ADDED) if path.name != FILE else {}).items():
            entries.setdefault(token, {"id": number, "content": token})
        tokens |= {token: entry["id"] for token, entry in entries.items()}
        for token, number in tokens.items():
            if type(token) is not str or type(number) is not int or not 0 <= number < _MOST_TOKENS:
                raise ValueError(f"{path} has {number!r:.50} as the number of the token {token!r:.50}")
        return Vocabulary(tokens, entries)
    except (TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"{path} has tokens that are not as Hugging Face writes them: {error!r:.200}") from error


def differing_vocabularies(checkpoints: Mapping) -> tuple[list[str], list[str]]:
    """Compare the tokens of equal number, and return why rows cannot be summed, and notes.

    What only some models have is in rows that the others do not use. Models without any vocabulary are taken as they
    are. A model with an adapter has the tokens that lie beside the adapter, if any do.
    """
    folders = {model: tokens_folder(checkpoint) for model, checkpoint in checkpoints.items()}
    found = {folder: vocabulary_file(folder) for folder in dict.fromkeys(folders.values())}
    files = {model: file for model, folder in folders.items() if (file := found[folder])}
    owners, distinct = {}, {}
    for model, file in files.items():
        owners.setdefault(file, model)
    for file, model in owners.items():
        distinct.setdefault(_identity(file), (model, file))
    lines, notes = _differences(list(distinct.values())) if len(distinct) > 1 else ([], [])
    rule = "say which vocabulary the output has: tokenizer_source: base, union or a model"
    if files and (without := [model for model in folders if model not in files]):
        notes.append(f"no tokenizer to compare with that of {next(iter(files))}: {few(without)}")
    return [f"  ~ the vocabulary of {line}; {rule}" for line in lines], notes


def _differences(files):
    """Return how the tokens of (model, file) differ and which cannot be compared, and notes on those that get lost."""
    seen, lines, notes, unread, first, rules = {}, [], [], {}, {}, ""
    for model, file in files:
        try:
            if len({name == "sentencepiece.bpe.model" for name in (file.name, files[0][1].name)}) > 1:
                raise ValueError(f"{files[0][1]} and {file} number their rows in different ways")
            tokens = read_vocabulary(file.parent).tokens
        except ValueError as error:
            unread.setdefault(_identity(file), []).append(f"{model} cannot be compared: {error}")
            continue
        if model == files[0][0]:
            first, rules = tokens, _rules(file)
        elif tokens == first and rules and _rules(file) not in (rules, ""):
            notes.append(
                f"the tokenizer of {model} cuts text by other rules than that of {files[0][0]}, which the output gets"
            )
        elif first and (more := [token for token in tokens if token not in first]):
            notes.append(
                f"the tokenizer of {files[0][0]}, which the output gets, lacks {len(more)} tokens of {model}, such as "
                f"{shown(more[0])!r}: tokenizer_source: union keeps them"
            )
        pairs = ((number, token, *seen.get(number, (token, ""))) for token, number in tokens.items())
        if different := [pair for pair in pairs if pair[1] != pair[2]]:
            number, token, other, owner = min(different)
            lines.append(
                f"{model} is not that of {owner}: {len(different)} of its numbers stand for other tokens, {number} for "
                f"{shown(token)!r} instead of {shown(other)!r}"
            )
        seen |= {number: (token, model) for token, number in tokens.items() if number not in seen}
    lines += [line for group in unread.values() for line in group] if seen or len(unread) > 1 else []
    return lines, notes


def _identity(file):
    """Return what the tokens follow from, without reading them: the bytes of the file and the added tokens."""
    try:
        further = json.dumps(_object(file.parent / CONFIG).get("added_tokens_decoder"), sort_keys=True)
    except ValueError as error:
        further = str(error)
    return _contents(file.parent, (file.name, ADDED)), further


def _rules(file):
    """Return all by which a tokenizer.json cuts text into its tokens, in one form; of other files nothing."""
    if file.name != FILE:
        return ""
    content = read_json(file)
    model = {name: value for name, value in content["model"].items() if name != "vocab"}
    if isinstance(merges := model.get("merges"), list):  # today's are pairs
        model["merges"] = [" ".join(map(str, pair)) if isinstance(pair, list) else pair for pair in merges]
    rules = {name: content.get(name) for name in ("normalizer", "pre_tokenizer", "post_processor")}
    return json.dumps([model, rules], sort_keys=True)


def same_files(folders: list[pathlib.Path]) -> bool:
    """Return whether all files of the tokenizer are the same in all folders."""
    first, *others = map(_signature, dict.fromkeys(folders))
    return all(other == first for other in others)


def _signature(folder):
    others = [file.name for pattern in OTHERS for file in sorted(folder.glob(pattern))]
    return _contents(folder, (*NUMBERED, "merges.txt", *PIECES, CONFIG, ADDED, *others))


def _contents(folder, names):
    """Return the digests of those of these files that are there."""
    return tuple((name, xxh3_128_digest(read_bytes(folder / name))) for name in names if os.path.lexists(folder / name))


def _object(path):
    return read_json(path) if os.path.lexists(path) else {}


def _read(path):
    """Return the numbers of tokens, and the entries of added ones."""
    if path.name == "vocab.txt":
        return _lines(path), {}
    if path.name in PIECES:
        return {piece: number for number, piece in enumerate(_pieces(path))}, {}
    content = read_json(path)
    if path.name != FILE:
        return content, {}
    model = content.get("model")
    found = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(found, dict | list):
        raise ValueError(f"{path} has no model with a vocab: it is not a Hugging Face tokenizer")
    if isinstance(found, list):  # [token, score] of a unigram model
        found = {entry[0]: number for number, entry in enumerate(found)}
    return found, {entry["content"]: entry for entry in content.get("added_tokens") or []}


def _lines(path):
    lines = [line.removesuffix("\r") for line in read_text(path).removesuffix("\n").split("\n")]
    if all(re.fullmatch(r"\S+ \d+", line) for line in lines):
        raise ValueError(f"{path} is a dictionary of fairseq, which leaves out the first tokens: {FILE} is needed")
    return {line: number for number, line in enumerate(lines)}


def _pieces(path):
    """Return the pieces of a model of sentencepiece, a protocol buffer whose field 1 has them, each in its field 1."""
    content = read_bytes(path)
    try:
        pieces = [_text(piece) for field, piece in fields(content) if field == 1]
    except (ValueError, StopIteration, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a sentencepiece model, or is damaged") from error
    if not pieces:
        raise ValueError(f"{path} is not a sentencepiece model: it has no pieces")
    return pieces


def _text(piece):
    return next(value for field, value in fields(piece) if field == 1).decode()
