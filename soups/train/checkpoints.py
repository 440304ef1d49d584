"""Keep the state of a training run on disk, whole or not at all, and find it again."""

import hashlib
import json
import logging
import os
import pathlib
import shutil
from typing import Any

import xxhash

from soups import state as state_files
from soups import tree
from soups.files import replace_file
from soups.formats.orbax import load, save_checkpoint
from soups.processes import on_all_processes, on_first_process

_KEPT = 2  # should the last one be damaged, the one before it is there
_DIGESTS, _POSITIONS = "digests.json", "positions.json"


def save_state(directory: pathlib.Path, step: int, state: tree.Tree, position: Any) -> None:
    """Keep the state after `step` steps as `directory/step_00000123`, and of older ones the last.

    An Orbax checkpoint "state", the `position` (JSON) of each process's loader, and the digest of every file: all are
    written under another name, then renamed. With several JAX processes all of them must call it.
    """
    final = directory / f"step_{step:08d}"
    fresh = directory / f"{final.name}.unfinished"
    positions = on_all_processes(lambda: position)
    on_first_process(lambda: _begin(directory, fresh))
    save_checkpoint(fresh / "state", state)
    on_first_process(lambda: _finish(fresh, final, positions))


def restore_state(directory: pathlib.Path, abstract: tree.Tree) -> tuple[int, tree.Tree, list[Any]] | None:
    """Return (step, state, position of each process) of the newest whole checkpoint, or None if there is none yet.

    `abstract`: the state as jax.ShapeDtypeStructs with shardings; a ValueError where it has other leaves or shapes. A
    damaged checkpoint is passed over, with a line in the log; it is a ValueError if all are. With several JAX
    processes all of them must call it.
    """
    names = on_first_process(lambda: _newest_first(directory))
    for name in names:
        path = directory / name
        problems = on_first_process(lambda path=path: _problems(path))
        if not problems:
            positions = on_first_process(lambda path=path: json.loads((path / _POSITIONS).read_text()))
            return int(name.removeprefix("step_")), load(path / "state", abstract), positions
        logging.getLogger(__name__).error("%s is damaged and passed over: %s", path, "; ".join(problems))
    if names:
        raise ValueError(f"every checkpoint in {directory} is damaged: {', '.join(names)}; remove them to begin anew")
    return None


def _begin(directory, fresh):
    directory.mkdir(parents=True, exist_ok=True)
    for left in directory.glob("*.unfinished"):  # by a process that was killed
        shutil.rmtree(left)
    fresh.mkdir()


def _finish(fresh, final, positions):
    replace_file(fresh / _POSITIONS, json.dumps(positions))
    state_files.write(fresh / _DIGESTS, _digests(fresh))
    if final.exists():  # it is damaged, else the run had gone on from it
        _remove(final)
    os.replace(fresh, final)
    for old in _newest_first(final.parent)[_KEPT:]:
        _remove(final.parent / old)


def _remove(path):
    gone = path.with_name(f"{path.name}.old.unfinished")  # no half of it may ever be taken for a checkpoint
    os.replace(path, gone)
    shutil.rmtree(gone)


def _newest_first(directory):
    return sorted((path.name for path in directory.glob("step_*") if path.suffix != ".unfinished"), reverse=True)


def _digests(path):
    found = {}
    for file in sorted(file for file in path.rglob("*") if file.is_file() and file.name != _DIGESTS):
        with file.open("rb") as content:
            found[file.relative_to(path).as_posix()] = hashlib.file_digest(content, xxhash.xxh3_128).hexdigest()
    return found


def _problems(path):
    """List the files that are missing or do not have the bytes that were written."""
    try:
        expected = state_files.read(path / _DIGESTS)
    except (OSError, ValueError) as error:
        return [f"{_DIGESTS} cannot be read: {error}"]
    found = _digests(path)
    return [
        f"{file} {'is missing' if file not in found else 'does not have the bytes that were written'}"
        for file in expected
        if found.get(file) != expected[file]
    ]
