"""Write a soup with the record of what went into it."""

import contextlib
import glob
import json
import os
import pathlib
import shutil
import uuid
from typing import Any

from soups.files import cannot_write, local_path, locked, replace_file, sync_files, sync_folder
from soups.names import bounded
from soups.pool import _describe, _paths
from soups.pool.pool import Pool, as_json
from soups.processes import on_first_process

FORMAT = "soups.soup/1"


def save_soup(out: str | os.PathLike, soup: Any, *, pool: Pool | None = None) -> pathlib.Path:
    """Write a soup as an Orbax checkpoint, together with `soup.json`, and return where it lies.

    The record holds the recipe and its settings, the ingredients with their weights, digests and metrics, the history
    of the selection, the versions, and the digests of the soup itself. It is there whole or not at all; what a killed
    process left beside it is deleted by the next one. With several JAX processes all of them must call it.

        soup = soups.greedy(pool, evaluate)
        soups.pool.save_soup("runs/soup", soup, pool=pool)

    Args:
        out: a path where nothing is yet.
        soup: a `soups.recipes.Soup`, or any pytree of arrays, of which only what `pool` says is known.
        pool: the pool, or a view of it, that the ingredients come from; of a plain tree all members are ingredients.

    Raises:
        FileExistsError: something already exists at `out`.
        BlockingIOError: another process is writing there.
        ValueError: leaves that are not arrays of numbers; an ingredient that the pool lacks, or has with another
            digest.
        OSError: the disk is full or cannot be written to.
    """
    from soups.recipes import Soup

    out = local_path(out).absolute()
    params, known = (soup.params, soup.record()) if isinstance(soup, Soup) else (soup, {})
    record, flat = _record(known, pool), _paths.flatten(params, "the soup")
    with contextlib.ExitStack() as stack:
        unfinished = pathlib.Path(on_first_process(lambda: str(_begin(out, stack))))
        _describe.save(unfinished / "soup", flat)
        on_first_process(lambda: _finish(unfinished / "soup", out, record, flat))
    return out


def _record(known, pool):
    """Return what is known of a soup before it is written; its ingredients are compared with the pool's members."""
    known = as_json(known, "the record of a soup")
    digests, weights = known.pop("digests", {}), known.pop("ingredients", None)
    if weights is None:
        weights = dict.fromkeys(pool or (), None)
    if pool is not None:
        lines = [f"  {name!r} is not a member of {pool.path}" for name in weights if name not in pool]
        lines += [
            f"  {name!r} has other weights in {pool.path}"
            for name in weights
            if name in pool and digests.get(name, pool.digest(name)) != pool.digest(name)
        ]
        if lines:
            raise ValueError(f"the soup was made from other members than those of the pool:\n{bounded(lines)}")
    ingredients = {name: {"weight": weight, "digest": digests.get(name)} for name, weight in weights.items()}
    for name in ingredients if pool is not None else ():
        ingredients[name] |= {"digest": pool.digest(name), "metrics": pool.metrics(name)}
    base = None if pool is None else pool.base
    return {"format": FORMAT, "recipe": None, **known, "ingredients": ingredients, "base": base}


def _begin(out, stack):
    # made before the long work, so that a place where nothing can be written is known at once
    _check_free(out)
    stack.enter_context(locked(out))
    for stray in out.parent.glob(f".{glob.escape(out.name)}-*.unfinished"):
        shutil.rmtree(stray)
    unfinished = out.with_name(f".{out.name}-{uuid.uuid4().hex}.unfinished")
    try:
        unfinished.mkdir()
    except OSError as error:
        raise cannot_write(out, error) from error
    stack.callback(shutil.rmtree, unfinished, ignore_errors=True)
    return unfinished


def _finish(directory, out, record, flat):
    record |= {**_describe.provenance(), **_describe.describe(directory, flat)}
    replace_file(directory / "soup.json", json.dumps(record, indent=1) + "\n")
    sync_files(directory)
    _check_free(out)
    directory.rename(out)
    sync_folder(out.parent)


def _check_free(out):
    if os.path.lexists(out):
        raise FileExistsError(f"{out} exists: choose a new path for the soup")
