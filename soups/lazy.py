"""Import JAX when it is first used: a merge of files on the host never needs it, and it takes half a second."""

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any


class _Module:
    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str):
        return getattr(importlib.import_module(self._name), attribute)


jax: Any = _Module("jax")
jnp: Any = _Module("jax.numpy")
multihost_utils: Any = _Module("jax.experimental.multihost_utils")
orbax: Any = _Module("soups.formats.orbax")  # files of other formats need none of it


def is_jax(value: Any) -> bool:
    """Say whether a value is a JAX array, traced or not; without JAX there is none."""
    return "jax" in sys.modules and isinstance(value, sys.modules["jax"].Array)


def jit(**options) -> Callable[[Callable], Callable]:
    """Return a decorator that compiles a function by `jax.jit` with these options when it is first called."""

    def decorate(function):
        compiled = functools.cache(lambda: importlib.import_module("jax").jit(function, **options))
        return functools.wraps(function)(lambda *arguments, **named: compiled()(*arguments, **named))

    return decorate
