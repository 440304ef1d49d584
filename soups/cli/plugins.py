"""Run a user's file that declares merging methods."""

import importlib.util
import os
import pathlib
import sys
import traceback

from soups.files import local_path


def load_plugin(path: str) -> None:
    """Run a file of Python as a module of its own, once.

    Raises:
        FileNotFoundError: no file.
        ValueError: what the file raised, with its line.
    """
    given, path = path, pathlib.Path(os.path.realpath(local_path(path)))
    name = f"soups_plugin_{path.stem}_{abs(hash(path)):x}"
    if name in sys.modules:
        return
    if not path.is_file():
        raise FileNotFoundError(f"--plugin: no file at {given}")
    spec = importlib.util.spec_from_loader(name, importlib.machinery.SourceFileLoader(name, str(path)))
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"--plugin: {given}, line {_line(error, path)}: {message}") from error


def _line(error, path):
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return lines[-1] if lines else "?"
