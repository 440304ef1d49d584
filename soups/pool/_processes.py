"""Let the first of several JAX processes do what must be done once."""

import json
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils


def on_first_process(function: Callable):
    """Call `function()` on process 0 alone and give what it returned (JSON-able) to all processes, when it is done.

    Raises:
        ValueError, OSError, RuntimeError: on every process, if it failed on the first.
    """
    if jax.process_count() == 1:
        return function()
    outcome = failure = None
    if jax.process_index() == 0:
        try:
            outcome = {"result": function()}
        except Exception as error:
            failure, outcome = error, {"error": str(error), "kind": _kind(error).__name__}
    outcome = json.loads(_broadcast(json.dumps(outcome).encode()))
    if failure is not None:
        raise failure
    if "error" in outcome:
        kinds = {kind.__name__: kind for kind in (ValueError, OSError, RuntimeError)}
        raise kinds[outcome["kind"]](f"on process 0: {outcome['error']}")
    return outcome["result"]


def _broadcast(message: bytes) -> bytes:
    # all processes must bring arrays of one size, so the length goes first
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(message))))
    padded = np.zeros(length, np.uint8)
    content = np.frombuffer(message, np.uint8)[:length]
    padded[: len(content)] = content
    return np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes()


def _kind(error: Exception) -> type[Exception]:
    return next((kind for kind in (ValueError, OSError) if isinstance(error, kind)), RuntimeError)
