"""Keep with a member of a pool what it came from, and give that back: names and ties of its tensors, files beside them.

    origin.json         an index: names of tensors, those that are tied, and of which models it was made
    origin/config.json  and all else that a merge would copy into its output, as it was

Both are kept by the pool like the member's own files, with a digest for each.
"""

import json
import pathlib
import types
from collections.abc import Iterable, Mapping
from typing import Any

from soups import tree
from soups.files import replace_file
from soups.formats import write_safetensors
from soups.formats.folder import SINGLE
from soups.formats.tensors import CheckpointError, separator
from soups.formats.text import parse_json, read_json

FORMAT = "soups.origin/1"
INDEX, FOLDER = "origin.json", "origin"
File = bytes | str | pathlib.Path
NO_KEYS: Mapping[str, Iterable[str]] = types.MappingProxyType({})


def kept_files(
    names: Iterable[str] | None,
    files: Mapping[str, File],
    *,
    keys: Mapping[str, Iterable[str]] = NO_KEYS,
    aliases: Mapping[str, str] = types.MappingProxyType({}),
    stated: bool = True,
    parts: Iterable[Mapping[str, Any]] = (),
) -> dict[str, File]:
    """Return the files that a pool keeps with a member, by name.

    Args:
        names: of its tensors where they come from, in their order; None: only the pool's are known.
        files: what lies beside the tensors there, by name.
        keys: of the names that are not nested at their `separator`.
        aliases: names that are tied to one of `names`.
        stated: whether their file itself says that they are tied.
        parts: what is known of the models, as in `soups.merging.card.Part`; none: what the card among `files` says.
    """
    if names is not None:
        names = {name: "/".join(own) for name, own in _keys(list(names), keys).items()}
    index = {"format": FORMAT, "names": names, "aliases": dict(aliases), "stated": stated, "parts": list(parts)}
    text = json.dumps(index, indent=1, default=str) + "\n"
    return {INDEX: text, **{f"{FOLDER}/{name}": file for name, file in files.items()}}


def original(member: Any) -> Any:
    """Return a pool's member as what it came from had it; the same if that is not known.

    Its tensors have the names and ties that they had there, and its `path` is the folder of the files that lay beside
    them. `named`: whether the names are known. `parts`: as of `kept_files`.

    Raises:
        PoolCorruptionError: kept files that differ, are missing, or were put there; all are named.
        CheckpointError: an index that this version does not know.
    """
    kept = member.kept()
    if INDEX not in kept:
        return member
    index = read_json(kept[INDEX])
    names = _checked(index, member, kept[INDEX])
    made = member.renamed(names)
    made.named, made.parts, made.aliases = index["names"] is not None, index["parts"], index["aliases"]
    made.metadata = made.aliases if index["stated"] else {}
    if folder := _folder(kept):
        made.path = folder
    return made


def write_original(folder: pathlib.Path, params: Any, kept: Mapping[str, File]) -> None:
    """Write nested weights into a folder as the model that they came from, by what `kept_files` says of it.

    Names and ties of tensors in model.safetensors, and the files beside it, are as they were; where the names are not
    known, they are the pool's.
    """
    leaves, metadata = tree.flatten(params), {}
    if INDEX in kept:
        index = read_json(kept[INDEX]) if isinstance(kept[INDEX], pathlib.Path) else parse_json(kept[INDEX], INDEX)
        if sorted((index["names"] or {}).values()) == sorted(leaves):
            leaves = {name: leaves[leaf] for name, leaf in index["names"].items()}
        metadata = {"format": "pt"} | (index["aliases"] if index["stated"] else {})
    write_safetensors(folder / SINGLE[0], leaves, metadata)
    for name, file in kept.items():
        if name.startswith(f"{FOLDER}/"):
            place = folder / name.removeprefix(f"{FOLDER}/")
            place.parent.mkdir(parents=True, exist_ok=True)
            replace_file(place, file)


def files_of(checkpoint: Any) -> dict[str, pathlib.Path]:
    """Return the files beside the tensors that were kept with a member, by name; none of what is no member."""
    found = innermost(checkpoint)
    kept = found.kept() if hasattr(found, "kept") else {}
    return {name.removeprefix(f"{FOLDER}/"): file for name, file in kept.items() if name.startswith(f"{FOLDER}/")}


def is_named(checkpoint: Any) -> bool:
    """Say whether the names of tensors are those of files, and not only those of a pool's pytree."""
    return getattr(innermost(checkpoint), "named", True)


def has_folder(checkpoint: Any) -> bool:
    """Say whether a model is a pool's member whose `path` is the folder of the files that were kept with it."""
    found = innermost(checkpoint)
    return getattr(found, "directory", found.path) != found.path


def innermost(checkpoint: Any) -> Any:
    """Return what is shown changed by views."""
    while hasattr(checkpoint, "checkpoint"):
        checkpoint = checkpoint.checkpoint
    return checkpoint


def share_names(models: Mapping[str, Any]) -> dict[str, Any]:
    """Return the models, of which members of pools have the names and ties of the first that is no member, or is first.

    Tensors with the same keys are the same, whatever they were called where the members came from, if that is known.
    """
    first = next((found for found in models.values() if not hasattr(found, "renamed")), next(iter(models.values())))
    called, shared = {}, dict(models)
    for model, found in models.items():
        if found is first or not hasattr(found, "renamed") or found.leaves.keys() == first.leaves.keys():
            continue
        called = called or {own: name for name, own in _keys(first.leaves, getattr(first, "keys", {})).items()}
        names = {called.get(own, name): name for name, own in found.keys.items()}
        if len(names) == len(found.leaves) and names.keys() != found.leaves.keys():
            made = shared[model] = found.renamed(names)
            made.path, made.named, made.parts, made.metadata = found.path, is_named(first), found.parts, first.metadata
            made.aliases = {alias: name for alias, name in first.aliases.items() if name in names}
    return shared


def _keys(names, keys):
    """Return the keys of each name, those that are known or those between its separators."""
    mark = separator(names)
    return {name: tuple(keys.get(name) or name.split(mark)) for name in names}


def _folder(kept):
    """Return the folder of the files beside the tensors; None without any."""
    inside = [name for name in kept if name.startswith(f"{FOLDER}/")]
    return kept[INDEX].with_name(FOLDER) if inside else None


def _checked(index, member, file):
    """Return the leaf of each name of an index that is what this library writes."""
    names, aliases, parts = (index.get(key) for key in ("names", "aliases", "parts"))
    names = {leaf: leaf for leaf in member.leaves} if names is None else names
    try:
        whole = index["format"] == FORMAT and sorted(names.values()) == sorted(member.leaves)
        whole = whole and all(alias not in names and tied in names for alias, tied in aliases.items())
        whole = whole and isinstance(index["stated"], bool) and all(map(_is_part, parts))
    except (LookupError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise CheckpointError(f"{file} does not say what member {member.name!r} came from in the format {FORMAT!r}")
    return names


def _is_part(part):
    kinds = {"name": str, "id": str | None, "commit": str | None, "stated": dict}
    return part.keys() == kinds.keys() and all(isinstance(part[key], kind) for key, kind in kinds.items())
