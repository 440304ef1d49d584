"""Let one of several JAX processes do what must be done once, and all of them know of it."""

import json
import sys
from collections.abc import Callable

import numpy as np

from soups.lazy import jax, multihost_utils


def count() -> int:
    """Return how many processes there are: one where JAX is not imported, whose backend this does not start."""
    return jax.process_count() if "jax" in sys.modules else 1


def is_first() -> bool:
    """Say whether this is the first process, or the only one."""
    return "jax" not in sys.modules or jax.process_index() == 0


def on_first_process(function: Callable):
    """Call `function()` on process 0 alone and give what it returned (JSON-able) to all processes, when it is done.

    If it failed there, every process raises: a ValueError, OSError or RuntimeError.
    """
    if count() == 1:
        return function()
    return json.loads(from_first_process(lambda: json.dumps(function()).encode()))


def from_first_process(function: Callable[[], bytes]) -> bytes:
    """Call `function()` on process 0 alone and give the bytes it returned to all processes; errors likewise."""
    if count() == 1:
        return function()
    message, failure = b"", None
    if jax.process_index() == 0:
        try:
            message = b"+" + function()
        except Exception as error:
            kind = next((kind for kind in _KINDS if isinstance(error, kind)), RuntimeError)
            failure, message = error, f"-{kind.__name__}:{error}".encode()
    message = _broadcast(message)
    if failure is not None:
        raise failure
    if message[:1] == b"-":
        kind, _, text = message[1:].decode().partition(":")
        raise {kind.__name__: kind for kind in _KINDS}[kind](f"on process 0: {text}")
    return message[1:]


def on_all_processes(function: Callable):
    """Call `function()` on every process and give what each of them returned (JSON-able) to all.

    If it failed on one, all raise a ValueError, that one its own error.
    """
    if count() == 1:
        return [function()]
    failure = None
    try:
        outcome = {"result": function()}
    except Exception as error:
        failure, outcome = error, {"error": str(error)}
    outcomes = [json.loads(message) for message in _gathered(json.dumps(outcome).encode())]
    if failure is not None:
        raise failure
    for process, outcome in enumerate(outcomes):
        if "error" in outcome:
            raise ValueError(f"on process {process}: {outcome['error']}")
    return [outcome["result"] for outcome in outcomes]


def all_or_none(function: Callable):
    """Call `function()` on every process and give each its own result, which may be anything; errors are as above."""
    made = []
    on_all_processes(lambda: made.append(function()))
    return made[0]


_KINDS = (ValueError, OSError, RuntimeError)
_AT_ONCE = 2**26  # bytes: a longer message goes in parts, of each of which the devices hold a few copies


def _broadcast(message: bytes) -> bytes:
    # all processes must bring arrays of one size, so the length goes first, in two numbers that fit into int32
    parts, rest = map(int, multihost_utils.broadcast_one_to_all(np.array(divmod(len(message), _AT_ONCE), np.int32)))
    length = parts * _AT_ONCE + rest
    starts = range(0, length, _AT_ONCE)
    return b"".join(_broadcast_part(message[at : at + _AT_ONCE], min(_AT_ONCE, length - at)) for at in starts)


def _broadcast_part(message, length):
    padded = np.zeros(max(1024, 1 << (length - 1).bit_length()), np.uint8)  # few sizes, for each is a compilation
    padded[: len(message)] = np.frombuffer(message, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes()[:length]


def _gathered(message: bytes) -> list[bytes]:
    lengths = multihost_utils.process_allgather(np.int32(len(message)))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(message)] = np.frombuffer(message, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]
