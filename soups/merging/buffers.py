"""Know the buffers that carry nothing: a network's class makes them anew, and what they hold shows that it can."""

import re

import numpy as np

from soups import tree
from soups.formats import Tensors
from soups.formats.tensors import leaf_of

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


_ROTARY, _ATTENTION = r"(?:\w*rot\w*|rope\w*)", r"(?:attn|attention)"
# by the last part of a name: the part before it, and what the array then holds
BUFFERS = {
    "position_ids": (".*", _positions),
    "token_type_ids": (".*", _zeros),
    "inv_freq": (_ROTARY, _frequencies),
    "original_inv_freq": (_ROTARY, _frequencies),
    "cos_cached": (_ROTARY, _first_angles(1)),
    "sin_cached": (_ROTARY, _first_angles(0)),
    "bias": (_ATTENTION, _causal),
    "masked_bias": (_ATTENTION, _far_below),
    "mask": (".*", _causal),
    "attn_mask": (".*", _causal),
    "attention_mask": (".*", _causal),
    "causal_mask": (".*", _causal),
}


def is_buffer(name: str) -> bool:
    """Say whether a tensor has the name of such a buffer."""
    return _check_of(name) is not None


def carries_nothing(checkpoint: Tensors, name: str) -> bool:
    """Say whether a tensor is such a buffer, or a counter, by its name and by what it holds; the tensor is read."""
    leaf = leaf_of(checkpoint, name)
    if not tree.is_float(leaf) and tree.is_counter(name):
        return True
    check = _check_of(name)
    if check is None or not 0 < leaf.nbytes <= LARGEST:
        return False
    array = np.asarray(checkpoint.read(name))
    return check(array.astype(np.float64) if tree.is_float(array) else array)


def _check_of(name):
    *before, last = name.replace("/", ".").rsplit(".", 2)
    around, check = BUFFERS.get(last, (None, None))
    return check if check and re.fullmatch(around, before[-1] if before else "") else None
