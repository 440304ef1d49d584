"""Fill in what a Hugging Face folder needs beside its tensors: config, tokenizer, recipe, model card."""

import dataclasses
import functools
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from soups.formats import CheckpointError
from soups.formats.folder import inside
from soups.formats.hub import how_to_complete, listing
from soups.formats.tensors import SUFFIXES
from soups.formats.text import STAND_INS, check_file, read_json
from soups.merging import ties
from soups.merging.card import FILE as CARD
from soups.merging.card import licence_note, model_card, parts_of_model
from soups.merging.chat_template import template_files
from soups.merging.config import FILE as CONFIG
from soups.merging.config import folder_of, read_config
from soups.merging.origin import has_folder, innermost, is_named, kept_files
from soups.merging.output_config import output_config
from soups.merging.planning import Plan
from soups.merging.vocabulary import NUMBERED, PIECES, tokens_folder
from soups.names import few, shown

RECIPES = ("recipe.yml", "mergekit_config.yml")
_TOKENIZER = re.compile(
    r"(tokeniz\w*|vocab[\w-]*|tekken|merges|special_tokens_map|added_tokens|normalizer)\.\w+|.*\.(model|spm|tiktoken)|"
    r"(additional_)?chat_template.*"
)
# weights of any format, merged or not, and what training leaves beside them
_WEIGHTS = re.compile(
    r".*\.(safetensors|bin|pt|pth|ckpt|tar|h5|hdf5|keras|msgpack|onnx|onnx[._]data|pb|tflite|gguf|ggml|npz|npy|ot|nemo|"
    r"pkl|pickle|mlmodel|engine|distcp|llamafile|tfevents.*|data-\d+-of-\d+)|.*\.index(\.json)?|events\.out\..*|"
    r"openvino_\w+\.xml|(trainer_state|(all|train|eval)_results|adapter_config|quant(ize)?_config)\.json|latest"
)
_FOLDERS = re.compile(
    r"\..*|__pycache__|(checkpoint|global_step)-?\d*|runs|wandb|logs|onnx|openvino|coreml|.*\.mlpackage"
)
_OWN = (CONFIG, CARD)
_WRITTEN = (*_OWN, "merge.json", *RECIPES)  # anew


def folder_files(plan: Plan) -> dict[str, str | pathlib.Path | Callable[[dict], str]]:
    """Return the files of the output's folder by name: text, the path of what is copied as it is, or the card.

    The card is a function of the record of the merge, which says what went in.

    They are made from the recipe, and from all of the base's own files but its weights; those of the tokenizer are of
    the model that `tokenizer_source` names.

    Raises:
        CheckpointError: a config, tokenizer or template that cannot be read.
    """
    return _files(plan)[0]


def folder_notes(plan: Plan) -> list[str]:
    """Return notes on the output's folder: what of the base is not copied, and what of its config followed the layers.

    Raises:
        CheckpointError: as `folder_files`.
    """
    return _files(plan)[1]


def member_files(model: str, checkpoint: Any) -> tuple[dict[str, str | pathlib.Path], list[str]]:
    """Return what a pool keeps with a member that is made of a model, and notes on what lies beside that and is not.

    That is what `soups.merging.origin` says: the names and ties of its tensors, all that a merge would copy into the
    output's folder, its config and its card.

    Raises:
        CheckpointError: a config that cannot be read.
    """
    folder = folder_of(checkpoint)
    files, left_out = _beside(checkpoint, tokens_folder(checkpoint))
    config = read_config(folder)
    whole = config is not None or folder == pathlib.Path(checkpoint.path)
    for name in [name for name in _OWN if whole and os.path.lexists(folder / name)]:
        if (reason := _wrong(folder, name)) is None:
            files[name] = folder / name
        else:
            left_out.append(f"{name}{reason}")
    named = is_named(checkpoint)
    if not (files or named):
        return {}, []
    kept = kept_files(
        checkpoint.leaves if named else None,
        files,
        keys=getattr(innermost(checkpoint), "keys", {}),
        aliases=checkpoint.aliases,
        stated=all(ties.is_stated(checkpoint, *pair) for pair in checkpoint.aliases.items()),
        parts=map(dataclasses.asdict, parts_of_model(model, checkpoint)),
    )
    return kept, _not_downloaded(folder) + _not_copied(folder, left_out)


def _files(plan):
    first = plan.checkpoints[plan.job.models[0]]
    tokens = folder_of(plan.checkpoints[plan.tokenizer.source]) if plan.tokenizer else tokens_folder(first)
    files, left_out = _beside(first, tokens)
    notes = []
    if plan.tokenizer and plan.tokenizer.files:
        stale = [name for name in (*NUMBERED[1:], *PIECES) if name in files]
        notes += [f"the output's tokens are those of its tokenizer.json; {name} has one model's" for name in stale]
        files |= plan.tokenizer.files
    folders = [folder_of(plan.checkpoints[model]) for model in plan.job.models]
    template = template_files(plan.job.chat_template, folders, files)
    if plan.job.chat_template and not template:
        notes.append("chat_template auto has no effect: no model has a template")
    files |= template
    if (config := read_config(folder_of(first))) is not None:
        made, more = output_config(config, plan)
        notes += more
        files[CONFIG] = json.dumps(made, indent=2) + "\n"
    files[RECIPES[plan.job.vocabulary == "mergekit"]] = plan.job.text
    library = "transformers" if config is not None and _is_of_transformers(config) else None
    files[CARD] = functools.partial(model_card, plan, library=library)
    notes += licence_note(plan)
    return files, notes + _not_downloaded(folder_of(first)) + _not_copied(folder_of(first), left_out)


def _is_of_transformers(config):
    """Say whether a config is one that transformers wrote or reads, not another library's with a model_type."""
    return "model_type" in config and bool({"transformers_version", "architectures", "auto_map"} & config.keys())


def _not_copied(folder, left_out):
    return [f"not copied from {folder}: {few(map(shown, left_out))}"] if left_out else []


def _beside(checkpoint, tokens):
    """Return the files beside a model's weights with the tokenizer of a folder, and those that are not copied."""
    files, left_out = _copied(checkpoint)
    if tokens != folder_of(checkpoint):
        files = {name: file for name, file in files.items() if not _TOKENIZER.fullmatch(name)}
        names = [name for name in _walk(tokens, []) if _TOKENIZER.fullmatch(name) and _wrong(tokens, name) is None]
        files |= {name: tokens / name for name in names}
    return files, left_out


def _copied(checkpoint):
    """Return the files beside a model's weights by name, and the names of those that are not copied."""
    folder, own = folder_of(checkpoint), {os.path.realpath(str(file)) for file in checkpoint.sizes}
    files, left_out = {}, []
    whole = folder == pathlib.Path(checkpoint.path) or (folder / "config.json").exists()
    # an Orbax checkpoint is a folder too, in whose files there is nothing but tensors
    beside = any(file.parent == folder and file.suffix in SUFFIXES for file in checkpoint.sizes)
    if whole and (beside or has_folder(checkpoint)):
        for name in _walk(folder, left_out):
            if os.path.realpath(folder / name) in own or name in _WRITTEN or re.search(r"\.index\.json$", name):
                continue
            if (reason := _wrong(folder, name)) is not None:
                left_out.append(f"{name}{reason}")
            else:
                files[name] = folder / name
    return files, left_out


def _not_downloaded(folder):
    """Return a note on the files that a snapshot of the hub lacks, where the list of them was downloaded."""
    try:
        files = read_json(path)["files"] if (path := listing(folder)) else {}
        lacking = [name for name in files if not _is_passed(name) and not os.path.lexists(folder / name)]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # huggingface_hub would fetch another one
        lacking = []
    return [f"{folder} lacks {few(map(shown, lacking))}{how_to_complete(folder)}"] if lacking else []


def _is_passed(name):
    *folders, file = name.split("/")
    return file.startswith(".") or bool(_WEIGHTS.fullmatch(file)) or any(map(_FOLDERS.fullmatch, folders))


def _walk(folder, left_out) -> Iterator[str]:
    """Yield the names of all files, those in folders with "/"; folders that are passed over go into `left_out`."""
    for place, inner, files in os.walk(folder):
        at = os.path.relpath(place, folder).replace(os.sep, "/")
        names = {name: name if at == "." else f"{at}/{name}" for name in sorted([*inner, *files])}
        links = [name for name in inner if os.path.islink(os.path.join(place, name))]
        passed = [name for name in inner if name in links or _FOLDERS.fullmatch(name)]
        left_out += sorted(f"{names[name]}/{' (a link)' if name in links else ''}" for name in passed)
        inner[:] = sorted(name for name in inner if name not in passed)
        yield from (names[name] for name in sorted(files))


def _wrong(folder, name):
    """Return why a file is not copied; None if it is."""
    if _is_passed(name):
        return ""
    path = folder / name
    if path.is_symlink() and how_to_complete(path):
        check_file(path)  # a snapshot of the hub links to nothing but what it has
    try:
        inside(folder, name)
        if not path.is_file():
            return " (not a file)"
        with open(path, "rb") as file:
            return " (a Git LFS pointer: run git lfs pull)" if re.match(STAND_INS[0][0], file.read(200)) else None
    except CheckpointError:
        return " (a link that leads out of the folder)"
    except OSError as error:
        return f" ({error.strerror})"
