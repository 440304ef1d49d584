"""Know the buffers that carry nothing: a network's class makes them anew, and what they hold shows that it can."""

import re

import numpy as np

from soups import tree
from soups.formats import Tensors

LARGEST = 1 << 26  # bytes; what is larger is not looked at


def _positions(array):
    return array.ndim > 0 and bool((array == np.arange(array.shape[-1])).all())


def _zeros(array):
    return not array.any()


def _frequencies(array):
    return array.ndim == 1 and bool((array > 0).all() and (array <= 1).all() and (np.diff(array) <= 0).all())


def _causal(array):
    if array.ndim < 2 or array.shape[-1] != array.shape[-2] or array.size != array.shape[-1] ** 2:
        return False
    square = array.reshape(array.shape[-2:])
    seen = np.tril(np.ones(square.shape, bool))
    # what is seen is marked by 1 and the rest by 0, or the rest is far below
    return bool((square == seen).all() or ((square[seen] == 0).all() and (square[~seen] <= -1e4).all()))


def _far_below(array):
    return array.size == 1 and bool((array <= -1e4).all())


def _first_angles(of_zero):
    return lambda array: array.ndim > 1 and bool((array.reshape(-1, *array.shape[-2:])[:, 0] == of_zero).all())


# the last parts of a name, and what the array then holds
BUFFERS = {
    "position_ids": _positions,
    "token_type_ids": _zeros,
    r"(?:\w*rot\w*|rope\w*)[./](?:original_)?inv_freq": _frequencies,
    r"(?:\w*rot\w*|rope\w*)[./]cos_cached": _first_angles(1),
    r"(?:\w*rot\w*|rope\w*)[./]sin_cached": _first_angles(0),
    r"(?:attn|attention)[./]bias": _causal,
    r"(?:attn_|attention_|causal_)?mask": _causal,
    "masked_bias": _far_below,
}
_NAME = re.compile("|".join(f"(?:.*[./])?(?P<kind_{index}>{name})" for index, name in enumerate(BUFFERS)))
_CHECKS = tuple(BUFFERS.values())


def is_buffer(name: str) -> bool:
    """Say whether a tensor has the name of such a buffer."""
    return _NAME.fullmatch(name) is not None


def carries_nothing(checkpoint: Tensors, name: str) -> bool:
    """Say whether a tensor is such a buffer, or a counter, by its name and by what it holds; the tensor is read."""
    leaf = checkpoint.leaves[checkpoint.aliases.get(name, name)]
    if tree.is_counter(name) and not tree.is_float(leaf):
        return True
    found = _NAME.fullmatch(name)
    if not found or not 0 < leaf.nbytes <= LARGEST:
        return False
    kind = next(index for index in range(len(_CHECKS)) if found[f"kind_{index}"])
    array = np.asarray(checkpoint.read(name))
    return _CHECKS[kind](array.astype(np.float64) if tree.is_float(array) else array)
