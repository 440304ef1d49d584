"""Check where a command will write, before it works."""

import os
import pathlib

from soups.files import local_path
from soups.lazy import orbax
from soups.merging.plan import check_places
from soups.merging.sources import in_pool


def check_place(plan, out: str, kind: str) -> pathlib.Path | str:
    """Return where a merge is written to: a path, or POOL:NAME as it is.

    Raises:
        FileExistsError: something is there.
        ValueError: it lies inside one of the inputs; it is POOL:NAME without the format of pools; the pool has such a
            member, or its members are others; names of tensors as `check_places`.
        NotADirectoryError, PermissionError: it cannot be made there.
    """
    if kind == "pool":
        from soups.merging.into_pool import check_pool, split_member

        check_pool(plan, out)
        _check_parents(local_path(split_member(out)[0]))
        orbax.check_path(local_path(out))
        return out
    if in_pool(out):
        raise ValueError(f"{out} would be a folder beside the pool: --format pool writes a member")
    if kind == "orbax":
        check_places(plan)
        orbax.check_path(local_path(out))
    path = local_path(out)
    if os.path.lexists(path):
        raise FileExistsError(f"{out} exists: a merge is written to a new place")
    above = {pathlib.Path(os.path.realpath(path)), *pathlib.Path(os.path.realpath(path)).parents}
    for model, checkpoint in plan.checkpoints.items():
        if checkpoint.path.is_dir() and pathlib.Path(os.path.realpath(checkpoint.path)) in above:
            raise ValueError(f"{out} would lie inside the model {model}: choose a place beside it")
    _check_parents(path)
    return path


def _check_parents(path):
    there = next(place for place in path.absolute().parents if os.path.lexists(place))
    if not there.is_dir():
        raise NotADirectoryError(f"cannot write {path}: {there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write {path}: there is no permission to write in {there}")
