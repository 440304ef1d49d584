"""Cook a soup from a pool in one call, and write it with the record of what went into it."""

import functools
import json
import pathlib
import shutil
import uuid
from collections.abc import Callable

from soups.pool import _describe, _paths
from soups.pool.pool import Pool, as_json
from soups.processes import on_first_process
from soups.tree import Tree

FORMAT = "soups.soup/1"


def merge(pool: Pool, recipe: Callable, out=None, *, whole_leaves: bool = False) -> Tree:
    """Merge the members of a pool, streamed from disk, and give nested dicts of NumPy arrays.

    With `out` the soup is written there as an Orbax checkpoint, together with `soup.json`: the recipe and its settings,
    the ingredients with their digests, metrics and weights, the versions, and the digests of the soup itself. It is
    there whole or not at all. With several JAX processes all of them must call it.

    Args:
        pool: a pool or a view of one.
        recipe: a function from a list of trees to a tree, or a functools.partial of one. A function of this library,
            such as soups.uniform or functools.partial(soups.ties, base=base), is given the pool itself.
        out: a path where nothing is yet.
        whole_leaves: for recipes of your own that are not element-wise; see `Pool.merge_leaves`.

    Raises:
        FileExistsError: something is at `out`.
        ValueError, PoolCorruptionError: as `Pool.merge_leaves`.
        OSError: the disk is full or cannot be written to.
    """
    if out is None:
        return _merged(pool, recipe, whole_leaves)
    out = pathlib.Path(out).absolute()
    unfinished = pathlib.Path(on_first_process(lambda: str(_make_unfinished(out))))
    try:
        params = _merged(pool, recipe, whole_leaves)
        flat = _paths.flatten(params, "the soup")
        _describe.save(unfinished / "soup", flat)
        on_first_process(lambda: _finish(unfinished / "soup", out, _ingredients(pool, recipe), flat))
    finally:
        on_first_process(lambda: shutil.rmtree(unfinished, ignore_errors=True))
    return params


def _merged(pool, recipe, whole_leaves):
    function = recipe.func if isinstance(recipe, functools.partial) else recipe
    if (getattr(function, "__module__", None) or "").startswith("soups.recipes."):
        pool.check_mergeable()
        return recipe(pool)  # it knows best how to stream, and which base belongs to which leaf
    return pool.merge_leaves(recipe, whole_leaves=whole_leaves)


def _make_unfinished(out):
    # made before the long work, so that a place where nothing can be written is known at once
    _check_free(out)
    unfinished = out.with_name(f".{out.name}-{uuid.uuid4().hex[:12]}.unfinished")
    unfinished.mkdir(parents=True)
    return unfinished


def _check_free(out):
    if out.exists():
        raise FileExistsError(f"{out} exists: a soup is written to a new place")


def _finish(directory, out, ingredients, flat):
    record = {"format": FORMAT, **ingredients, **_describe.provenance(), **_describe.describe(directory, flat)}
    (directory / "soup.json").write_text(json.dumps(record, indent=1) + "\n")
    _check_free(out)
    directory.rename(out)


def _ingredients(pool, recipe):
    settings = recipe.keywords if isinstance(recipe, functools.partial) else {}
    function = recipe.func if isinstance(recipe, functools.partial) else recipe
    weights = as_json({"weights": settings.get("weights")}, "weights")["weights"] or [None] * len(pool)
    return {
        "recipe": {
            "name": getattr(function, "__name__", type(function).__name__),
            "settings": {name: _setting(value) for name, value in settings.items()},
        },
        "ingredients": {
            name: {"weight": weight, "digest": pool.digest(name), "metrics": pool.metrics(name)}
            for name, weight in zip(pool, weights, strict=True)
        },
        "base": pool.base,
    }


def _setting(value):
    try:
        return as_json({"value": value}, "a setting")["value"]
    except ValueError:
        return {"digest": _describe.digest(value)} if isinstance(value, dict) else repr(value)
