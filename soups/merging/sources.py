"""Open what is merged: files of other formats, members of pools, Orbax checkpoints."""

import os
import pathlib
import re

from soups.files import PathLike, any_path
from soups.formats import CheckpointError, open_checkpoint
from soups.formats.far import copied
from soups.formats.folder import SINGLE
from soups.formats.hub import cached_model
from soups.formats.orbax_steps import AGGREGATE, DATABASE, TREE_METADATA, is_orbax
from soups.formats.tensors import SUFFIXES, Tensors, listed
from soups.formats.weights import ALL
from soups.lazy import orbax
from soups.merging.origin import original
from soups.names import check_name
from soups.stores import StorePath, is_store

_POOL = "manifest.json"
MODEL_FILES = tuple(f"{name}{index}" for name in SINGLE for index in ("", ".index.json"))


def open_model(reference: PathLike) -> Tensors:
    """Open a model by its path: a file or folder as `open_checkpoint`, POOL:MEMBER, or an Orbax checkpoint.

    PATH@TREE takes the tree of these keys, such as CKPT@ema_params or CKPT@model/ema, and PATH@. all of them; a path
    that exists goes first. Without it the weights are taken, as `soups.formats.weights` decides. A model of the Hugging
    Face hub, org/name or org/name@revision, is that of the local cache.

    Raises:
        FileNotFoundError: nothing is there; for a model of the hub the message says how to download it.
        CheckpointError: the checkpoint, or a file that is kept with a member, is damaged; several trees could be meant,
            or the one that is named is not there; a pool without the name of a member.
        ValueError: a URL of another kind than s3:// and gs://; a pool that has no such member, or whose member holds
            NaN or infinity.
    """
    if in_pool(any_path(reference)):
        return _member(*split_pool(reference))
    path, tree = _split(cached_model(str(reference)))
    if is_pool(path):
        return _member(path, "")
    if isinstance(path, StorePath):
        if _is_orbax(path):
            return copied(path, lambda place: orbax.open_orbax(place, tree))
        return open_checkpoint(path, tree)
    hugging_face = any(os.path.lexists(path / name) for name in MODEL_FILES)
    return orbax.open_orbax(path, tree) if not hugging_face and is_orbax(path) else open_checkpoint(path, tree)


def _is_orbax(path):
    """Say whether a folder of a store is, or holds, an Orbax checkpoint."""
    if path.suffix in SUFFIXES or any((path / name).is_file() for name in MODEL_FILES):
        return False
    markers = (TREE_METADATA, AGGREGATE, DATABASE)
    return any(file.name in markers for file in path.sizes())


def is_pool(path: PathLike) -> bool:
    """Say whether there is a pool at a path."""
    return bool(path) and ((any_path if is_store(path) else pathlib.Path)(path) / _POOL).is_file()


def in_pool(path: PathLike) -> bool:
    """Say whether a path is POOL:NAME of a pool that is there."""
    return is_pool(split_pool(path)[0])


def split_pool(reference: PathLike) -> tuple[str, str]:
    """Return pool and name of POOL:NAME; behind a pool that is there the name may have a ":" itself."""
    text = str(reference)
    drive = len(os.path.splitdrive(text)[0])  # of Windows, C:
    pools = [text[: mark.start()] for mark in re.finditer(":(?!//)", text) if mark.start() >= drive]
    pool = next((pool for pool in pools if is_pool(pool)), (pools or [""])[-1])
    return pool, text[len(pool) + 1 :]


def _split(reference):
    path = any_path(reference)
    before, _, tree = str(reference).rpartition("@")
    if not before or path.exists():
        return path, None
    first = any_path(before)
    return (first, tree) if first.exists() else (path, None)


def _member(path, name):
    from soups.pool import Pool

    pool = Pool(path, must_exist=True)
    if not name:
        raise CheckpointError(
            f"{path} is a pool: name a member, such as {path}:{pool.names[0] if pool.names else 'NAME'}"
        )
    before, _, tree = name.rpartition("@")
    if name not in pool and before in pool:
        if tree != ALL:
            raise ValueError(
                f"{path}:{name}: a member of a pool is a single tree, so {tree!r} cannot be chosen from it"
            )
        name = before
    check_name(name, pool.names, f"member of {pool.path}")
    if nonfinite := pool.record(name)["nonfinite_leaves"]:
        raise ValueError(f"{pool.path}:{name} holds NaN or infinity in {listed(nonfinite)}")
    return original(pool.tensors(name))
