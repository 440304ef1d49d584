"""Say what a merge was made from, so that it can be made again, and read that back."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import xxhash

from soups.files import PathLike, any_path, replace_file
from soups.formats.folder import inside
from soups.formats.hub import cached_model
from soups.formats.mapping import hash_files
from soups.formats.tensors import CheckpointError
from soups.formats.text import read_json
from soups.merging.lora import absolute_reference, split_reference
from soups.merging.planning import Plan
from soups.merging.planning import plan as make_plan
from soups.merging.recipe_file import parse_recipe
from soups.merging.repeated import repeated, same_contents
from soups.merging.sources import is_pool, open_model, split_pool
from soups.stores import StorePath, is_store

Path = pathlib.Path | StorePath
AnyPath = TypeVar("AnyPath", pathlib.Path, StorePath)
FORMAT = "soups.merge/1"
RECORD = "merge.json"  # in an output's folder; beside an output that is one file, FILE.merge.json
Digests = dict[str, list[list[str]]]  # by output: model, tensor and digest of all that went in


def record(plan: Plan, digests: Digests, chosen: Mapping[str, Any] | None = None) -> dict:
    """Return what is needed to make the same merge again: recipe, versions, and a digest of each input's tensors.

    `chosen`: how the recipe was chosen, which the record then says too. Its "notes", if it has any, say which members
    count several times, now that the digests are known, and that a base is a member.
    """
    import soups

    job = plan.job
    notes = dict.fromkeys([*plan.repeated, *repeated(job, same_contents(digests, job.models))])
    inputs = {model: {"path": absolute_reference(model), **_summary(digests, model)} for model in plan.checkpoints}
    return {
        "format": FORMAT,
        "method": job.method,
        "vocabulary": job.vocabulary,
        "seed": job.seed,
        "recipe": job.text,
        "inputs": inputs,
        "versions": {"soups": soups.__version__, "numpy": np.__version__},
        **({"notes": list(notes)} if notes else {}),
    } | ({"chosen": dict(chosen)} if chosen else {})


def record_beside(out: AnyPath) -> AnyPath:
    """Return where the record of an output that is one file lies."""
    return out.with_name(f"{out.name}.{RECORD}")


def note_record(out: AnyPath, found: dict) -> None:
    """Put a record into the place of an output's own."""
    note = record_beside(out) if out.is_file() else out / RECORD
    write_record(note, found, note.parent)


def write_record(note: Path, found: Mapping[str, Any], folder: Path) -> None:
    """Write a record into a file that will lie in a folder, from which its paths go out: others need not see the rest.

    A path that shares nothing with the folder's stays absolute.
    """
    inputs = {model: entry | {"path": _seen_from(folder, entry["path"])} for model, entry in found["inputs"].items()}
    replace_file(note, json.dumps({**found, "inputs": inputs}, indent=1) + "\n")


def is_record(path: Path) -> bool:
    """Say whether a file is the record of a merge."""
    try:
        return bool(_checked_record(read_json(path), path))
    except (OSError, ValueError):
        return False


def read_record(out: PathLike) -> dict:
    """Return the record of a merge: of a folder, a file or an Orbax checkpoint, of POOL:NAME, or of the hub's ORG/NAME.

    Raises:
        FileNotFoundError: nothing is there, or this program did not write it.
        ValueError: a URL; a record that is damaged.

    The paths of its inputs are absolute, wherever the output lies by now; of those that moved otherwise they are what
    the recipe says, if something is there.
    """
    path = any_path(cached_model(str(out)))
    note = record_beside(path) if path.is_file() else path / RECORD
    if note.is_file():
        found = _checked_record(read_json(note), note)
        for model, entry in found["inputs"].items():
            entry["path"] = _located(note.parent, entry["path"], model)
        return found
    from soups.pool import Pool

    pool, name = split_pool(out)
    there = path.exists() if isinstance(path, StorePath) else os.path.lexists(path)
    if not there and not is_pool(pool):
        raise FileNotFoundError(f"there is nothing at {out}")
    members = Pool(pool) if pool else {}
    if name in members and "merge" in members.record(name)["metadata"]:
        return members.record(name)["metadata"]["merge"]
    raise FileNotFoundError(f"{out} has no record of a merge: no {note.name}, and it is not a pool's member with one")


def changed_files(found: Mapping[str, Any], folder: pathlib.Path) -> list[str]:
    """List the files beside the tensors that a folder does not have as its record says."""
    lines = []
    for name, digest in found.get("files", {}).items():
        try:
            same = hash_files(inside(folder, name)) == digest
            lines += [] if same else [f"{name} was changed since it was written"]
        except (FileNotFoundError, CheckpointError):
            lines.append(f"{name} is missing")
    return lines


def plan_again(found: dict) -> Plan:
    """Plan the merge of a record once more, from whatever directory.

    Raises:
        ValueError, FileNotFoundError, CheckpointError: as `parse_recipe` and `plan`.
    """
    located = {model: entry["path"] for model, entry in found["inputs"].items()}
    return make_plan(parse_recipe(found["recipe"], seed=found["seed"]), open_model, located)


def _checked_record(found, where):
    inputs = found.get("inputs")
    whole = found.get("format") == FORMAT and isinstance(found.get("recipe"), str) and type(found.get("seed")) is int
    whole = whole and isinstance(inputs, dict) and all(map(_is_input, inputs.values()))
    if not whole or not isinstance(found.get("files", {}), dict):
        raise ValueError(f"{where} is not a record of a merge in the format {FORMAT!r}, or it is damaged")
    return found


def _is_input(entry):
    return isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("path", "digest"))


def _seen_from(folder, reference):
    """Return an absolute reference to a model as it is from a folder: ./MODEL or ../MODEL, each part of MODEL+LORA."""
    path, adapter = split_reference(reference)
    if isinstance(folder, StorePath):
        return reference  # an absolute path or a URL: nothing lies beside a store
    if adapter is not None:
        return f"{_seen_from(folder, path)}+{_seen_from(folder, adapter)}"
    start = os.path.realpath(folder)
    if not os.path.isabs(path) or pathlib.Path(start).parts[:2] != pathlib.Path(path).parts[:2]:
        return path
    found = os.path.relpath(path, start).replace(os.sep, "/")  # a record may be read on another system
    return found if found.startswith(os.pardir) else f"./{found}"


def _located(folder, reference, model):
    """Return the absolute reference of a model that a record in a folder has."""
    path, adapter = split_reference(reference)
    if adapter is not None:
        return f"{_located(folder, path, '')}+{_located(folder, adapter, '')}"
    if not path.startswith(("./", "../")):
        return path
    found = os.path.normpath(os.path.join(os.path.realpath(folder), path))
    there = absolute_reference(model) if model else ""
    return there if there and not _exists(found) and _exists(there) else found


def _exists(reference):
    return is_store(reference) or any(
        os.path.exists(part) for part in (reference, split_pool(reference)[0], reference.rpartition("@")[0])
    )


def _summary(digests, model):
    """Return how many tensors of a model went in, and one digest of them all."""
    tensors = sorted(
        {(tensor, digest) for found in digests.values() for name, tensor, digest in found if name == model}
    )
    return {"tensors": len(tensors), "digest": xxhash.xxh3_128_hexdigest(json.dumps(tensors).encode())}
