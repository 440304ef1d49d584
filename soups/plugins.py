"""Run a user's own Python: files, and functions that a config names as "module:function"."""

import contextlib
import importlib.util
import inspect
import os
import pathlib
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

from soups.files import local_path
from soups.names import bounded, did_you_mean, differences

_LONG = 500  # characters of a line of what a user's function raises
_GUARD = '; the file is imported: what it does as a script belongs under if __name__ == "__main__":'


def load_plugin(path: str, option: str = "--plugin") -> ModuleType:
    """Run a file of Python as a module of its own, once, and return the module.

    A FileNotFoundError begins with the `option` that gave its path; a ValueError has what the file raised, and where.
    """
    given, path = path, pathlib.Path(os.path.realpath(local_path(path)))
    name = f"soups_plugin_{path.stem}_{abs(hash(path)):x}"
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise FileNotFoundError(f"{option}: no file at {given}")
    spec = importlib.util.spec_from_loader(name, importlib.machinery.SourceFileLoader(name, str(path)))
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        with _without_arguments(str(path)):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        line = _line(error, path)
        raise ValueError(f"{option}: {given}, line {line}: {_words(error)}{_guard(error)}") from error
    return module


@contextlib.contextmanager
def importable(folder: str | os.PathLike) -> Iterator[None]:
    """Let the modules of a folder be imported first, as those beside a script are."""
    folder = os.path.abspath(folder)
    sys.path.insert(0, folder)
    importlib.invalidate_caches()  # it does not know of files that were written a moment ago
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # a user's module may have changed the path
            sys.path.remove(folder)


def named(reference: Any, registered: Mapping[str, str], field: str) -> Callable:
    """Return what a field of a config names: something registered, or a function or class as "module:function".

    `registered`: from names to such references. A ValueError lists them, or says what the module raised, with its line.
    """
    module, name, choices = _module_of(reference, registered, field)
    found = getattr(module, name, None)
    if not callable(found):
        raise ValueError(_nothing(module, name, callable, f"{field} {reference!r}: there is no function", choices))
    return found


def made(reference: str, field: str) -> Any:
    """Return the value that "module:name" names, or what the function of that name returns, called with nothing.

    A ValueError as of `named`, or says what the function raised, with its line.
    """
    module, name, choices = _module_of(reference, {}, field)
    if not hasattr(module, name):
        raise ValueError(_nothing(module, name, lambda _: True, f"{field} {reference!r}: there is no", choices))
    found = getattr(module, name)
    if not callable(found):
        return found
    with blamed(f"{field} {reference!r}", found):
        return found()


def called(
    reference: Any, registered: Mapping[str, str], field: str, settings: Mapping[str, Any], **offered: Any
) -> Any:
    """Return what a function, named as in `named`, makes of settings, and of what is offered if it takes that by name.

    A ValueError lists all settings that it does not take, or that it needs, or says what a function of a user's own
    raised, with its line.
    """
    function = named(reference, registered, field)
    given = _fitting(function, settings, offered, f"{field} {reference!r}", field)
    if reference in registered:
        return function(**given)
    with blamed(f"{field} {reference!r}", function):
        return function(**given)


@contextlib.contextmanager
def blamed(what: str, function: Callable) -> Iterator[None]:
    """Make one ValueError of whatever is raised inside, with the line in the file that defines a user's function."""
    try:
        yield
    except (Exception, SystemExit) as error:
        module = sys.modules.get(getattr(function, "__module__", None))
        raise ValueError(f"{what} failed: {_place(error, getattr(module, '__file__', None))}") from error


def _module_of(reference, registered, field):
    """Return the module that a reference names, the name in it, and the end of a message: what may be named instead."""
    choices = f"; there are: {', '.join(sorted(registered))}, or your own" if registered else ": name your own"
    choices += " as 'module:function'"
    target = registered.get(reference, reference) if isinstance(reference, str) else ""
    module, _, name = target.partition(":")
    if not (module and name):
        raise ValueError(f"unknown {field} {reference!r:.200}{did_you_mean(reference, registered)}{choices}")
    return _imported(module, f"{field} {reference!r}", choices), name, choices


def _nothing(module, name, fits, what, choices):
    known = {own: value for own, value in vars(module).items() if not isinstance(value, ModuleType)}
    hint = did_you_mean(name, (own for own, value in known.items() if fits(value)))
    return f"{what} {name!r} in {getattr(module, '__file__', None) or module.__name__}{hint}{choices}"


def _imported(name, what, choices):
    try:
        with _without_arguments(name):
            return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            hint = did_you_mean(name, (module.name for module in pkgutil.iter_modules(sys.path[:1])))
            raise ValueError(f"{what}: no module {name!r} in {sys.path[0]} or installed{hint}{choices}") from error
        file = None
        with contextlib.suppress(Exception):  # of a package that fails nothing can be found
            file = importlib.util.find_spec(name).origin
        raise ValueError(f"{what} failed: {_place(error, file)}{_guard(error)}") from error


@contextlib.contextmanager
def _without_arguments(name):
    """Let what is imported see a command line without arguments: those of this one are not meant for it."""
    given, sys.argv = sys.argv, [name]
    try:
        yield
    finally:
        sys.argv = given


def _guard(error):
    """Return "; ..." on what a file does as a script, where an import fails by that; else nothing."""
    lines = [frame.line or "" for frame in traceback.extract_tb(error.__traceback__)]
    return _GUARD if isinstance(error, SystemExit) or any("argv" in line for line in lines) else ""


def _fitting(function, settings, offered, what, field):
    """Return the arguments of a function: all settings, and what it takes of what is offered."""
    parameters = inspect.signature(function).parameters.values()
    named_ones = {one.name: one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
    given = {name: value for name, value in offered.items() if name in named_ones} | dict(settings)
    needed = {name for name, one in named_ones.items() if one.default is one.empty}
    extra = given.keys() - named_ones.keys()
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        extra = ()
    if lines := differences(sorted(needed - given.keys()), sorted(extra), field, named_ones.keys() - given.keys()):
        raise ValueError(f"{what} takes other settings:\n" + "\n".join(lines))
    return given


def _place(error, file):
    line = _line(error, file)
    return ("" if line == "?" else f"{file}, line {line}: ") + _words(error)


def _words(error):
    kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
    return bounded([line[:_LONG] for line in f"{kind}{error}".rstrip().splitlines()]) or type(error).__name__


def _line(error, path):
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return lines[-1] if lines else "?"
