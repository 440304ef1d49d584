"""Find the public names of the library, and say which of them lack a docstring."""

import ast
import functools
import importlib
import importlib.util
import inspect
import pathlib
import pkgutil
import types
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from sphinx.pycode import ModuleAnalyzer

#: modules that are public beside the packages of `soups`, as names of it or of one of its rooms
MODULES = (
    "soups.tree",
    "soups.engine",
    "soups.allocator",
    "soups.recipes.sparsify",
    "soups.recipes.permutation",
    "soups.recipes.rebasin",
    "soups.train.search",
    "soups.writers",
)
NOT_PUBLIC = ("soups.cli", "soups.finetune", "soups.merge")  # commands; and what says where something has gone


class Name(NamedTuple):
    """A public name: the shortest path that it is imported by, the module that it is from, and its value."""

    path: str
    home: str
    value: Any

    @property
    def kind(self) -> str:
        """Return the directive that documents it."""
        if not str(getattr(self.value, "__module__", "")).startswith("soups") or not hasattr(self.value, "__name__"):
            return "data"
        if inspect.isclass(self.value):
            return "autoexception" if issubclass(self.value, BaseException) else "autoclass"
        return "autofunction"

    @property
    def doc(self) -> str:
        """Return its docstring; of a constant the comment "#:" at it."""
        if self.kind != "data":
            return self.value.__doc__ or ""
        comments = ModuleAnalyzer.for_module(self.home).find_attr_docs()
        return "\n".join(comments.get(("", self.path.rpartition(".")[2]), [])).strip()

    @property
    def place(self) -> tuple[str, int]:
        """Return where it stands in the code, to sort by."""
        return self.home, ModuleAnalyzer.for_module(self.home).tagorder.get(self.path.rpartition(".")[2], 0)


@functools.cache
def rooms() -> dict[str, list[Name]]:
    """Return the public names of each room, in the order of its code; each name once, in the first room that has it."""
    top = importlib.import_module("soups")
    packages = [f"soups.{one.name}" for one in pkgutil.iter_modules(top.__path__) if one.ispkg]
    shorter = {id(value): f"soups.{name}" for name, value in _offered("soups")}
    done, found = set(), {}
    for room in [*(name for name in packages if name not in NOT_PUBLIC), *MODULES]:
        names = []
        for name, value in _offered(room):
            path = shorter.get(id(value), f"{room}.{name}")
            if id(value) not in done and path not in NOT_PUBLIC and not isinstance(value, types.ModuleType):
                done.add(id(value))
                names.append(Name(path, _home(room, name, value), value))
        for name in names:
            ModuleAnalyzer.for_module(name.home).analyze()
        found[room] = sorted(names, key=lambda name: name.place)
    return found


def _offered(room: str) -> Iterator[tuple[str, Any]]:
    """Yield what a package has in its `__all__`, or else imports from below and defines; what a module defines."""
    module = importlib.import_module(room)
    names = getattr(module, "__all__", None) or _imported_or_defined(module)
    yield from ((name, getattr(module, name)) for name in names if not name.startswith("_"))


def _imported_or_defined(module):
    package = hasattr(module, "__path__")
    for node in _body(module.__name__):
        if package and isinstance(node, ast.ImportFrom) and node.module.startswith(f"{module.__name__}."):
            yield from (one.asname or one.name for one in node.names)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif not package and isinstance(node, ast.Assign):
            described = ModuleAnalyzer.for_module(module.__name__).find_attr_docs()
            names = (one.id for one in node.targets if isinstance(one, ast.Name))
            yield from (name for name in names if name.isupper() or ("", name) in described)


def _body(module):
    return ast.parse(pathlib.Path(importlib.util.find_spec(module).origin).read_text(encoding="utf-8")).body


def _home(room, name, value):
    """Return the module that a name is from; of a constant the one of this room that assigns it."""
    if hasattr(value, "__name__") and str(value.__module__).startswith("soups"):
        return value.__module__
    below = pkgutil.iter_modules(getattr(importlib.import_module(room), "__path__", []))
    candidates = [f"{room}.{one.name}" for one in below if not one.ispkg]
    if room == "soups.merging":  # which offers what declarations hold
        candidates.append("soups.recipes.declare")
    theirs = (home for home in candidates if name in _assigned(home) and _value(f"{home}.{name}") is value)
    return next(theirs, room)


@functools.cache
def _assigned(module):
    found = set()
    for node in _body(module):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found |= {one.id for one in targets if isinstance(one, ast.Name)}
    return found


def undocumented() -> list[str]:
    """List the public names, with the methods of classes, that have no docstring."""
    missing = []
    for name in (name for names in rooms().values() for name in names):
        missing += [name.path] * (not name.doc)
        if name.kind == "autoclass":
            missing += [
                f"{name.path}.{one}" for one in methods(name.value) if not inspect.getdoc(getattr(name.value, one))
            ]
    return missing


def methods(kind: type) -> list[str]:
    """List the public methods and properties that a class of the library defines itself."""
    found = []
    for name, value in vars(kind).items():
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        field = name.startswith("_") or name in getattr(kind, "__dataclass_fields__", ())
        if not field and inspect.isfunction(function) and str(function.__module__).startswith("soups"):
            found.append(name)
    return found


@functools.cache
def paths() -> Mapping[int, str]:
    """Return the path that each public value is documented by."""
    return {id(name.value): name.path for names in rooms().values() for name in names if name.kind != "data"}


def resolve(text: str, where: tuple[str, ...] = ("",)) -> str | None:
    """Return the path that a name is documented by, looked for below each of `where`; None if it is not public."""
    for start in where:
        whole = f"{start}.{text}" if start else text
        parts = whole.split(".")
        for end in range(len(parts), 1, -1):
            value = _value(".".join(parts[:end]))
            if id(value) not in paths() or (end < len(parts) and not hasattr(value, parts[end])):
                continue
            if len(parts) - end <= 1:
                return ".".join([paths()[id(value)], *parts[end:]])
    return None


def is_there(path: str) -> bool:
    """Say whether a dotted path of the library stands for anything, public or not."""
    return _value(path) is not NotImplemented


@functools.cache
def _value(path):
    """Return what a dotted path stands for; `NotImplemented` if it stands for nothing."""
    try:
        return pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError):
        return NotImplemented
