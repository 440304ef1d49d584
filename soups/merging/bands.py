"""Merge tensors that lie in chunks by bands of their rows, so that a few chunks are in memory and no whole tensor."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import xxhash

from soups import engine
from soups.arrays import as_bytes
from soups.formats import Tensors
from soups.formats.tensors import leaf_of

BAND = 1 << 23  # bytes of a tensor that are made at a time, if a row of its chunks is not larger


def cut(checkpoints: Mapping[str, Tensors], output) -> list[slice]:
    """Return the parts of the first axis that a tensor of the output is made in; one of all where it is made at once.

    It is cut where an input lies in chunks and the method needs no leaf whole.
    """
    inputs = [(checkpoints[model], tensor) for model, tensor in output.sources]
    rows = max(checkpoint.chunk_rows(tensor) for checkpoint, tensor in inputs)
    whole = output.recipe is None or output.recipe.unit == "leaf"
    if not rows or whole or (output.recipe.unit == "row" and len(output.shape) < 2):
        return [slice(None)]
    if any(found.making(tensor) and not found.chunk_rows(tensor) for found, tensor in inputs):
        return [slice(None)]  # what is made whole would be made for each band
    if any(leaf_of(*pair).shape != output.shape for pair in inputs):
        return [slice(None)]
    return _bands(output.shape, rows, output.nbytes)


def _bands(shape, rows, nbytes):
    step = rows * max(1, BAND * shape[0] // (rows * nbytes)) if nbytes else shape[0]
    return [slice(begin, min(begin + step, shape[0])) for begin in range(0, shape[0], step)]


def making(checkpoints: Mapping[str, Tensors], output) -> int:
    """Count the bytes that it takes to make the inputs of a tensor, or of the largest band of it."""
    first, *others = cut(checkpoints, output)
    share = (first.stop - first.start) / output.shape[0] if others else 1
    total = 0
    for model, tensor in output.sources:
        if needed := checkpoints[model].making(tensor):
            total += needed - round((1 - share) * leaf_of(checkpoints[model], tensor).nbytes)
    return total


def digest_of(checkpoint: Tensors, tensor: str) -> str:
    """Return the XXH3 (128 bits, hexadecimal) of a tensor's bytes, as records have it."""
    leaf, digest = leaf_of(checkpoint, tensor), xxhash.xxh3_128()
    rows = checkpoint.chunk_rows(tensor)
    for band in _bands(leaf.shape, rows, leaf.nbytes) if rows else [slice(None)]:
        digest.update(as_bytes(checkpoint.read(tensor, (band, ...) if rows else ...)))
    return digest.hexdigest()


class _Name(str):
    """Name a band as messages show it, and say which tensor it is of and which element of that is its first."""

    tensor: str
    start: int


def banded(leaf: engine.Leaf, bands: Sequence[slice], read: Callable[[slice], list[np.ndarray]]) -> list[engine.Leaf]:
    """Return leaves for the bands of one, which their recipe measures together, and draws for by their place in it."""
    if len(bands) == 1:
        return [dataclasses.replace(leaf, recipe=relocated(leaf.recipe))]
    leaves = []
    for band in bands:
        name = _Name(f"{leaf.name}[{band.start}:{band.stop}]")
        name.tensor, name.start = leaf.name, band.start * math.prod(leaf.shape[1:])
        own = {"name": name, "shape": (band.stop - band.start, *leaf.shape[1:]), "passed": None}
        own |= {"recipe": relocated(leaf.recipe), "read": functools.partial(read, band)}
        leaves.append(dataclasses.replace(leaf, **own))
    return leaves


def relocated(recipe: engine.Recipe) -> engine.Recipe:
    """Return a recipe of scope "model" that takes parts of bands for parts of their tensors."""

    def moved(part):
        if not isinstance(part.name, _Name):
            return part
        return dataclasses.replace(part, name=part.name.tensor, start=part.name.start + part.start)

    def measure(parts):
        return recipe.measure(lambda: map(moved, parts()))

    def merge(part, measured):
        return recipe.merge(moved(part), measured)

    return dataclasses.replace(recipe, scope="model", measure=measure, merge=merge)


def blocks(leaf, bands, read, measured, at_least) -> Iterator[tuple[int, np.ndarray]]:
    """Return the merged blocks of a leaf as `engine.blocks` does, made band by band."""
    leaves = banded(leaf, bands, read)
    if leaf.recipe.scope == "leaf":
        measured = engine.measure_model(leaves, at_least)
    hashes = [xxhash.xxh3_128() for _ in leaf.labels]

    def hashed(band):
        arrays = band.read()
        for digest, array in zip(hashes, arrays, strict=True):
            digest.update(as_bytes(array))
        return arrays

    for band in leaves:
        hashing = dataclasses.replace(band, read=functools.partial(hashed, band))
        for start, block in engine.blocks(hashing, measured, at_least):
            yield band.name.start + start, block
    leaf.passed([digest.hexdigest() for digest in hashes])
