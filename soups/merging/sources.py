"""Open what is merged: files of other formats, members of pools, Orbax checkpoints."""

import os
import pathlib

from soups.files import local_path
from soups.formats import CheckpointError, open_checkpoint
from soups.formats.folder import SINGLE
from soups.formats.orbax_steps import is_orbax
from soups.formats.tensors import Tensors, listed
from soups.formats.weights import ALL
from soups.lazy import orbax
from soups.names import check_name

_POOL = "manifest.json"
MODEL_FILES = tuple(f"{name}{index}" for name in SINGLE for index in ("", ".index.json"))


def open_model(reference: str | os.PathLike) -> Tensors:
    """Open a model by its path: a file or folder as `open_checkpoint`, POOL:MEMBER, or an Orbax checkpoint.

    PATH@TREE takes the tree of these keys, such as CKPT@ema_params or CKPT@model/ema, and PATH@. all of them; a path
    that exists goes first. Without it the weights are taken, as `soups.formats.weights` decides.

    Raises:
        FileNotFoundError: nothing is there.
        CheckpointError: it is damaged; several trees could be meant, or there is no such tree; a pool without the name
            of a member.
        ValueError: the pool has no such member, or the member holds NaN or infinity; a URL.
    """
    path, tree = _split(reference)
    pool, _, member = str(path).rpartition(":")
    if in_pool(path):
        if tree not in (None, ALL):
            raise ValueError(f"{reference}: a member of a pool is one tree, of which {listed([tree])} cannot be chosen")
        return _member(pool, member)
    if (path / _POOL).is_file():
        return _member(path, None)
    hugging_face = any((path / name).exists() for name in MODEL_FILES)
    return orbax.open_orbax(path, tree) if not hugging_face and is_orbax(path) else open_checkpoint(path, tree)


def in_pool(path: str | pathlib.Path) -> bool:
    """Say whether a path is POOL:NAME of a pool that is there."""
    pool = str(path).rpartition(":")[0]
    return bool(pool) and (pathlib.Path(pool) / _POOL).is_file()


def _split(reference):
    path = local_path(reference)
    if path.exists() or "@" not in str(reference):
        return path, None
    before, _, tree = str(reference).rpartition("@")
    return local_path(before), tree


def _member(path, name):
    from soups.pool import Pool

    pool = Pool(path, must_exist=True)
    if name is None:
        raise CheckpointError(
            f"{path} is a pool: name a member, such as {path}:{pool.names[0] if pool.names else 'NAME'}"
        )
    check_name(name, pool.names, f"member of {pool.path}")
    if nonfinite := pool.record(name)["nonfinite_leaves"]:
        raise ValueError(f"{pool.path}:{name} holds NaN or infinity in {listed(nonfinite)}")
    return pool.tensors(name)
