"""Check what networks of texts are given: tokens and mask by name."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from soups.names import differences

_KINDS = {"mask": (jnp.bool_, "booleans")}  # all others are integers


def checked_inputs(
    inputs: Mapping[str, jax.Array], names: Sequence[str], length: int, what: str
) -> list[jax.Array | None]:
    """Return the arrays of these names, None where one is not given; "tokens" and "mask", the first two, must be there.

    All are [B, T], but for "at", which is [B, K]. A ValueError for other inputs, and for more tokens
    than `length`; `what` says who takes them.
    """
    required = {*names[:2]}
    if not isinstance(inputs, Mapping) or not required <= inputs.keys() <= {*names}:
        keys = inputs.keys() if isinstance(inputs, Mapping) else ()
        lines = differences(required - keys, keys - {*names}) if keys else []
        given = "" if keys else f", not a {type(inputs).__name__}"
        wanted = f'{what} takes {{"tokens": integers [B, T], "mask": booleans [B, T]}}, as a tokenizer gives'
        raise ValueError("\n".join([wanted + given, *lines]))
    found = [inputs.get(name) for name in names]
    tokens = found[0]
    if tokens.ndim != 2 or not 1 <= tokens.shape[1] <= length:
        raise ValueError(f"tokens must be [B, T], T from 1 to {length}, not {list(tokens.shape)}")
    for name, array in zip(names, found, strict=True):
        if array is None:
            continue
        kind, wanted = _KINDS.get(name, (jnp.integer, "integers"))
        shape = (len(tokens), *array.shape[-1:]) if name == "at" else tokens.shape
        if array.shape != shape or not jnp.issubdtype(array.dtype, kind):
            raise ValueError(f"{name} must be {wanted} {list(shape)}, but they are {array.dtype} {list(array.shape)}")
    return found
