"""Bring models of different tokenizers to one vocabulary: embedding rows in the order of the output's tokens."""

import dataclasses
import functools
import json
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from soups import tree
from soups.formats.text import read_json
from soups.formats.view import View
from soups.merging.config import folder_of, read_config
from soups.merging.lora import model_reference
from soups.merging.values import brief
from soups.merging.vocabulary import ADDED, CONFIG, FILE, Vocabulary, read_vocabulary, same_files, vocabulary_file
from soups.names import check_name, did_you_mean, few, shown

# what the tensors with a row for each token are called
WORDS = ("embed", "wte", "lm_head", "shared", "output", "head", "decoder", "predictions")
NOT_WORDS = ("position", "token_type")
KINDS = ("zero", "model_token")
_PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}


@dataclasses.dataclass(frozen=True)
class Row:
    """Say where the row of a token comes from in models that do not have it; with `force` in all models.

    `model` None: zeros. `token`: another token of this model, by its text or its number.
    """

    model: str | None = None
    token: str | int | None = None
    force: bool = False


@dataclasses.dataclass(frozen=True)
class Rule:
    """State the output's vocabulary.

    Attributes:
        source: "base", "union", or a model.
        rows: of single tokens.
        multiple: the number of rows is rounded up to a multiple of it, with the mean of the others.
    """

    source: str = "base"
    rows: Mapping[str, Row] = dataclasses.field(default_factory=dict)
    multiple: int = 1


@dataclasses.dataclass(frozen=True)
class Aligned:
    """Hold what the output's folder needs of its vocabulary: files by name, the number of rows, notes for the user."""

    source: str
    files: dict[str, str]
    rows: int
    notes: tuple[str, ...] = ()


# --- The recipe -------------------------------------------------------------------------------------------------------


def parse_rule(given: Mapping[str, Any], models: list[str], where: str) -> Rule | None:
    """Understand a recipe's `tokenizer_source` or `tokenizer`; None without either.

    Raises:
        ValueError: both fields are given; a field or a model is unknown; a value has the wrong type.
    """
    block, source = given.get("tokenizer"), given.get("tokenizer_source")
    if block is None:
        return None if source is None else Rule(_source(source, models, f"tokenizer_source of {where}"))
    if source is not None:
        raise ValueError(f"{where}: tokenizer_source and tokenizer are two ways to say the same: give one of them")
    where = f"tokenizer of {where}"
    if not isinstance(block, Mapping):
        raise ValueError(f"{where} must be a mapping, not {brief(block)}")
    for key in block:
        check_name(key, ("source", "tokens", "pad_to_multiple_of"), f"field of {where}")
    multiple, tokens = block.get("pad_to_multiple_of") or 1, block.get("tokens") or {}
    if type(multiple) is not int or multiple < 1:
        raise ValueError(f"{where}: pad_to_multiple_of must be a whole number above 0, not {brief(multiple)}")
    if not isinstance(tokens, Mapping):
        raise ValueError(f"{where}: tokens must be a mapping from tokens to their sources, not {brief(tokens)}")
    rows = {str(token): _row(value, models, f"{where}: {token!r}") for token, value in tokens.items()}
    return Rule(_source(block.get("source", "union"), models, where), rows, multiple)


def _source(source, models, where):
    source = source if source in ("base", "union") else model_reference(source, where)
    return check_name(source, ["base", "union", *models], where)


def _row(value, models, where):
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be a mapping with source, not {brief(value)}")
    for key in value:
        check_name(key, ("source", "force"), f"field of {where}")
    source, force = value.get("source"), value.get("force", False)
    if type(force) is not bool:
        raise ValueError(f"{where}: force must be true or false, not {brief(force)}")
    if not isinstance(source, Mapping) or "kind" not in source:
        return Row(check_name(model_reference(source, where), models, f"source of {where}"), None, force)
    if check_name(source["kind"], KINDS, f"kind of {where}") == "zero":
        return Row(None, None, force)
    for key in source:
        check_name(key, ("kind", "model", "token", "token_id"), f"field of {where}")
    if ("token" in source) == ("token_id" in source):
        raise ValueError(f"{where}: give either token or token_id")
    for key, kind in (("token", str), ("token_id", int)):
        if key in source and type(source[key]) is not kind:
            what = "a text" if kind is str else "a whole number"
            raise ValueError(f"{where}: {key} must be {what}, not {brief(source[key])}")
    model = check_name(model_reference(source.get("model"), where), models, f"model of {where}")
    return Row(model, source.get("token", source.get("token_id")), force)


# --- The vocabularies -------------------------------------------------------------------------------------------------


def align(
    rule: Rule | None, checkpoints: Mapping[str, Any], base: str | None = None
) -> tuple[dict[str, Any], Aligned | None]:
    """Return the models with rows for the tokens of the output, and what the output's folder needs.

    A row is that of the same token in the model. Where the model lacks it, it is the row of `rule.rows`, or that of the
    base, or the mean of the models that have it. The tokens of a union are the first model's, then those of the others
    that have a row, in their order, as added tokens; behind them come the tokens of `rule.rows` that are not among
    them. Models that have the same tokens are left as they are.

    Args:
        rule: None leaves the models as they are.
        checkpoints: by model, the base first.
        base: the base, if the merge has one.

    Raises:
        ValueError: models whose tokens or their rows are not known, or whose embeddings cannot be told from other
            tensors; rules that take the row of a token that is not there; tokens without a row in any model and
            without a rule.
    """
    if rule is None:
        return dict(checkpoints), None
    first, folders = next(iter(checkpoints)), {model: folder_of(c) for model, c in checkpoints.items()}
    source = first if rule.source in ("base", "union") else rule.source
    same_size = len({_vocabulary_size(folder) for folder in folders.values()}) == 1
    known = any(map(vocabulary_file, folders.values()))
    notes = [] if known else [f"tokenizer_source {rule.source} has no effect: no model has a tokenizer"]
    as_they_are = dict(checkpoints), Aligned(source, {}, 0, tuple(notes))
    plain = same_size and not rule.rows and rule.multiple == 1
    if plain and same_files(list(folders.values())):
        return as_they_are
    vocabularies = {model: read_vocabulary(folder, with_rows=True) for model, folder in folders.items()}
    if plain and all(found.tokens == vocabularies[first].tokens for found in vocabularies.values()):
        return as_they_are
    known = {model: _with_rows(found, folders[model], model) for model, found in vocabularies.items()}
    union = rule.source == "union"
    output, unused = _union(vocabularies, known, rule.rows) if union else (vocabularies[source], [])
    new = [token for token in rule.rows if token not in output.tokens]
    output = _with_added(output, new)
    rows = math.ceil(output.size / rule.multiple) * rule.multiple
    own, donors = _rows(rule, base, output, known)
    lists = {
        "the union leaves out tokens without a row in any model": unused,
        f"added to the vocabulary of {source}, because the recipe has a rule for them": new,
    }
    notes = [f"{what}: {few(repr(shown(token)) for token in tokens)}" for what, tokens in lists.items() if tokens]
    files = _files(folders[source], output) if union or new else {}
    return _views(checkpoints, folders, own, donors, rows), Aligned(source, files, rows, tuple(notes))


def _vocabulary_size(folder):
    """Return the vocab_size of a model's config, also of a model of several parts; None without one."""
    config = read_config(folder) or {}
    parts = [config, config.get("text_config")]
    sizes = [part["vocab_size"] for part in parts if isinstance(part, dict) and "vocab_size" in part]
    return next((size for size in sizes if type(size) is int), None)


def _with_rows(vocabulary, folder, model):
    """Return the tokens of a model that have rows; a tokenizer may have more than its model."""
    size = _vocabulary_size(folder)
    if size is None:
        raise ValueError(f"{model} has no vocab_size in its config.json: its embeddings cannot be told from others")
    return {token: number for token, number in vocabulary.tokens.items() if number < size}


def _union(vocabularies, known, ruled):
    """Add to the first tokenizer what others have beside it: as added tokens, in the order of their numbers.

    Return it, and the tokens of others that have neither a row in any model nor a rule, which are left out.
    """
    first, with_rows = next(iter(vocabularies.values())), set(ruled).union(*known.values())
    unused = [t for v in vocabularies.values() for t in v.tokens if t not in with_rows and t not in first.tokens]
    tokens, added, free = dict(first.tokens), dict(first.added), first.size
    for vocabulary in vocabularies.values():
        for token in sorted(vocabulary.tokens, key=vocabulary.tokens.get):
            if token not in with_rows and token not in first.tokens:
                continue
            if token not in tokens:
                tokens[token], free = free, free + 1
            if token not in first.tokens or token in vocabulary.added:
                entry = {**_PLAIN, "content": token, **vocabulary.added.get(token, {}), "id": tokens[token]}
                added.setdefault(token, entry)
    return Vocabulary(tokens, added), list(dict.fromkeys(unused))


def _with_added(vocabulary, tokens):
    """Return a vocabulary with further tokens, as added ones behind the others."""
    numbers = {token: vocabulary.size + at for at, token in enumerate(tokens)}
    entries = {token: {**_PLAIN, "content": token, "id": number} for token, number in numbers.items()}
    return Vocabulary(vocabulary.tokens | numbers, vocabulary.added | entries)


def _files(folder, output):
    """Return the files of a vocabulary that is no model's own: those of this one, with all added tokens."""
    if not os.path.lexists(folder / FILE):
        raise ValueError(f"no {FILE} in {folder}, which a vocabulary with added tokens needs")
    added = sorted(output.added.values(), key=lambda entry: entry["id"])
    files = {FILE: read_json(folder / FILE) | {"added_tokens": added}}
    config = read_json(folder / CONFIG) if os.path.lexists(folder / CONFIG) else {}
    if "added_tokens_decoder" in config:
        entries = {str(x["id"]): {name: value for name, value in x.items() if name != "id"} for x in added}
        files[CONFIG] = config | {"added_tokens_decoder": entries}
    if os.path.lexists(folder / ADDED):
        files[ADDED] = {entry["content"]: entry["id"] for entry in added}
    return {name: json.dumps(content, ensure_ascii=False, indent=2) for name, content in files.items()}


# --- The rows ---------------------------------------------------------------------------------------------------------


def _rows(rule, base, output, known):
    """Return, by model, the row of each token of the output (-1: none): its own, or those of what stands in for others.

    A token that a model lacks gets the mean of the rows that stand in for it.
    """
    without = [
        token for token in output.tokens if token not in rule.rows and not any(token in k for k in known.values())
    ]
    if without:
        raise ValueError(
            f"{len(without)} tokens have no row in any model, because their tokenizers go beyond vocab_size: "
            f"{few(repr(shown(token)) for token in without)}; "
            "say which row they get, such as tokenizer: {tokens: {TOKEN: {source: {kind: zero}}}}"
        )
    own = {model: np.full(output.size, -1) for model in known}
    donors = {model: np.full(output.size, -1) for model in known}
    for token, number in output.tokens.items():
        having = {model: tokens[token] for model, tokens in known.items() if token in tokens}
        row = rule.rows.get(token)
        if row is None or not row.force:
            for model, place in having.items():
                own[model][number] = place
        if row is not None:
            standing_in = _stand_in(row, token, known)
        else:
            standing_in = {base: having[base]} if base in having else having
        for model, place in standing_in.items():
            donors[model][number] = place
    return own, donors


def _stand_in(row, token, known):
    if row.model is None:
        return {}
    tokens, wanted = known[row.model], token if row.token is None else row.token
    if type(wanted) is int and row.token is not None:
        if wanted not in tokens.values():
            raise ValueError(f"the row of {token!r}: {row.model} has no token number {wanted}")
        return {row.model: wanted}
    if wanted not in tokens:
        raise ValueError(f"the row of {token!r}: {row.model} has no token {wanted!r}{did_you_mean(wanted, tokens)}")
    return {row.model: tokens[wanted]}


def _views(checkpoints, folders, own, donors, rows):
    sizes = {file: size for c in checkpoints.values() for file, size in c.sizes.items()}
    views = {}
    for model, checkpoint in checkpoints.items():
        changed = {}
        for name in _tables(checkpoint, _vocabulary_size(folders[model])):
            leaf = checkpoint.leaves[name]
            shape = (rows, *leaf.shape[1:])
            changed[name] = dataclasses.replace(leaf, shape=shape, nbytes=math.prod(shape) * leaf.dtype.itemsize)
        if not changed:
            raise ValueError(f"{model} has no tensor with a row for each of the tokens that its config.json counts")
        views[model] = View(checkpoint, changed, functools.partial(_made, model, checkpoints, own, donors, rows), sizes)
    return views


def _tables(checkpoint, size):
    """List the tensors with a row for each token."""
    return [
        name
        for name, leaf in checkpoint.leaves.items()
        if tree.is_float(leaf)
        and leaf.shape[:1] == (size,)
        and any(word in name.lower() for word in WORDS)
        and not any(word in name.lower() for word in NOT_WORDS)
    ]


def _made(model, checkpoints, own, donors, rows, name):
    table = checkpoints[model].read(name)
    size, has = len(own[model]), own[model] >= 0
    made = np.zeros((rows, *table.shape[1:]), tree.widen_leaves([table[:0]])[0].dtype)
    made[:size][has] = table[own[model][has]]
    lacks = np.flatnonzero(~has)
    total, count = np.zeros((len(lacks), *table.shape[1:])), np.zeros(len(lacks))
    for other, places in donors.items():
        there = np.flatnonzero(places[lacks] >= 0)
        if len(there):
            total[there] += checkpoints[other].read(name)[places[lacks][there]].astype(np.float64)
            count[there] += 1
    made[lacks] = total / np.maximum(count, 1).reshape(-1, *[1] * (table.ndim - 1))
    made[size:] = made[:size].mean(axis=0, dtype=np.float64)
    return made
