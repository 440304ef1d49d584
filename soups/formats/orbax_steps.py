"""Find the trees of an Orbax checkpoint: in a folder, in the parts of a step, in the newest of several steps."""

import os
import pathlib
import re

from soups.formats.tensors import CheckpointError, listed, short
from soups.formats.weights import is_average

TREE_METADATA, AGGREGATE, DATABASE = "_METADATA", "checkpoint", "manifest.ocdbt"
FLAX = "flax_model.msgpack"  # of Hugging Face's models in Flax
CONTAINERS = ("default", "items", "state", "pytree", "train_state")  # what Orbax and its users call the one tree
_STEP = re.compile(r"(?:(.*)_)?(\d{1,18})")
_UNFINISHED = ".orbax-checkpoint-tmp"
_MAPPINGS = {*(bytes([0x80 | count]) for count in range(1, 16)), b"\xde", b"\xdf"}  # of MessagePack, not empty


def is_orbax(path: str | os.PathLike) -> bool:
    """Say whether a folder is, or holds, an Orbax checkpoint, a step of one, or steps; or whether a file is Flax's."""
    path = pathlib.Path(os.path.realpath(path))
    if path.is_file():
        return path.suffix == ".msgpack" or (bool(_STEP.fullmatch(path.name)) and _is_flax(path))
    return path.is_dir() and bool(trees(path) or _steps(path) or _unfinished(path))


def trees(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Return the trees of a checkpoint: itself, or the parts of a step by name; none where it is no checkpoint."""
    if folder.is_file() or _is_tree(folder):
        return {"": folder}
    if not folder.is_dir():
        return {}
    if (folder / FLAX).is_file():
        return {"": folder / FLAX}
    return {
        inner.name: inner for inner in sorted(folder.iterdir()) if _UNFINISHED not in inner.name and _is_tree(inner)
    }


def known_tree(trees: dict[str, pathlib.Path]) -> tuple[dict[str, pathlib.Path], list[str]]:
    """Return the one tree that has a name which Orbax gives, and the names of the others; else all trees."""
    known = [name for name in trees if name in CONTAINERS]
    beside = [name for name in trees if name not in CONTAINERS]
    if len(known) != 1 or "params" in trees or any(map(is_average, beside)):
        return trees, []
    return {known[0]: trees[known[0]]}, beside


def newest(folder: pathlib.Path) -> tuple[pathlib.Path, tuple[str, ...]]:
    """Return a checkpoint, or of the folder of several the newest one that is finished, and the note that says so."""
    if trees(folder):
        return folder, ()
    steps = [step for step in _steps(folder) if trees(step[2]) and (step[2].is_dir() or _is_flax(step[2]))]
    if not steps:
        there = _unfinished(folder)
        raise CheckpointError(
            f"{folder} holds no finished Orbax checkpoint" + (f"; unfinished: {listed(there)}" if there else "")
        )
    if len({prefix for _, prefix, _ in steps}) > 1:
        raise CheckpointError(
            f"{folder} holds several kinds of steps: name one of {listed(step.name for *_, step in steps)}"
        )
    return steps[-1][2], (f"the newest finished step of {len(steps)} is taken: {short(steps[-1][2].name)}",)


def _is_tree(folder):
    return any((folder / name).is_file() for name in (TREE_METADATA, AGGREGATE, DATABASE))


def _is_flax(path):
    with open(path, "rb") as file:
        return file.read(1) in _MAPPINGS


def _steps(folder):
    """List (number, prefix, path) of the steps in a folder, finished or not."""
    found = ((_STEP.fullmatch(inner.name), inner) for inner in folder.iterdir())
    return sorted((int(match[2]), match[1] or "", inner) for match, inner in found if match)


def _unfinished(folder):
    return [inner.name for inner in folder.iterdir() if _UNFINISHED in inner.name]
