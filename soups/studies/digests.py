"""Know the data of a split and a function's program again, by their digests."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import xxhash

from soups.pool import digest
from soups.studies.examples import number_of


def digest_of(data: Any) -> str:
    """Return the digest of inputs and targets of a split."""
    known = getattr(data, "digest", None)  # sets that were decoded once know theirs
    if isinstance(known, str):
        return known
    return digest({"inputs": jax.tree.map(lambda leaf: leaf[:], data.images), "labels": data.labels})


def program_digest(function: Callable, *arguments: Any) -> str:
    """Return a digest of a function's program on such arguments, or on arrays of their shapes, and of its constants."""
    traced = jax.make_jaxpr(function)(*arguments)
    text = re.sub(r" at 0x[0-9a-f]+", "", str(traced.jaxpr))  # where functions lie differs from run to run
    constants = {str(place): np.asarray(value) for place, value in enumerate(traced.consts)}
    return xxhash.xxh3_64_hexdigest((text + (digest(constants) if constants else "")).encode())


_BLOCK = 1024  # examples that are read at a time


def shared_examples(chooses: str, splits: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each split that has examples, inputs and targets to the byte, of the one that chooses.

    Raises:
        ValueError: a split that has the same examples, in whatever order.
    """
    known, sentences = _examples(splits[chooses]), []
    own = set(known)
    for name, data in splits.items():
        there = [] if name == chooses else _examples(data)
        if there and sorted(there) == sorted(known):
            raise ValueError(
                f"{name} has the very examples of {chooses}: what chose the soups cannot judge them, so give other "
                "examples, or a part of them to each, as soups.data.split_indices does"
            )
        if shared := sum(example in own for example in there):
            sentences.append(
                f"{shared} of {len(there)} examples of {name} are also in {chooses}, which chooses the soups: "
                f"the scores on {name} are inflated by that"
            )
    return sentences


def _examples(data):
    """Return a digest of each example."""
    leaves, found = jax.tree.leaves((data.images, data.labels)), []
    for start in range(0, number_of(data), _BLOCK):
        blocks = (np.ascontiguousarray(leaf[start : start + _BLOCK]) for leaf in leaves)
        rows = [block.reshape(len(block), math.prod(block.shape[1:])).view(np.uint8) for block in blocks]
        found += [b"".join(map(xxhash.xxh3_128_digest, parts)) for parts in zip(*rows, strict=True)]
    return found
