"""Test that the public API says its types, and that a type checker understands what users write."""

import importlib
import inspect
import os
import pathlib
import subprocess
import sys
import types

import pytest

import soups

ROOT = pathlib.Path(__file__).parents[1]
ROOMS = ["soups", "soups.tree", "soups.rebasin", "soups.sparsify", "soups.writers"]
ROOMS += [f"soups.{path.parent.name}" for path in sorted(ROOT.glob("soups/*/__init__.py")) if path.parent.name != "cli"]
ROOMS += ["soups.data.imagenet", "soups.train.search"]


def public(module):
    """Yield the functions that a module offers, those of its classes too, by their names."""
    for name in getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]:
        value = getattr(module, name)
        if inspect.isclass(value) and value.__module__.startswith("soups"):
            yield from ((f"{name}.{method}", function) for method, function in methods(value))
        elif inspect.isfunction(value) and value.__module__.startswith(module.__name__):
            yield name, value


def methods(kind):
    for name, value in vars(kind).items():
        function = getattr(value, "fget", None) or getattr(value, "__func__", value)
        own = inspect.isfunction(function) and function.__module__ == kind.__module__ and function.__name__ == name
        if own and (not name.startswith("_") or name in ("__call__", "__contains__", "__getitem__", "__init__")):
            yield name, function


def unsaid(function):
    """List the parameters without a type, and "return" where that has none."""
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    found = [one.name for one in parameters if one.annotation is one.empty and one.name not in ("self", "cls")]
    needed = signature.return_annotation is signature.empty and function.__name__ != "__init__"
    return found + ["return"] * needed


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_function_says_its_types(room):
    module = getattr(soups, room.removeprefix("soups.")) if room.count(".") == 1 and room != "soups.writers" else None
    module = module or importlib.import_module(room)
    assert isinstance(module, types.ModuleType)
    assert {name: unsaid(function) for name, function in public(module) if unsaid(function)} == {}


def test_a_function_that_does_not_say_its_types_is_found():
    module = types.ModuleType("soups.bare")
    exec("def whole(x: int) -> int: ...\ndef bare(x, y: int = 1): ...\ndef _own(x): ...", vars(module))
    exec("class Kind:\n    def __init__(self, size): ...\n    def call(self, x: int): ...", vars(module))
    assert {name: unsaid(function) for name, function in public(module)} == {
        "whole": [],
        "bare": ["x", "return"],
        "Kind.__init__": ["size"],
        "Kind.call": ["return"],
    }
    found = dict(public(soups.pool))
    assert found["Pool.add"] is soups.Pool.add and "ties" in dict(public(soups.recipes))


def test_a_type_checker_takes_what_is_right_and_refuses_what_is_wrong(tmp_path):
    """A cache beside that of JAX makes it quick the next time."""
    command = [sys.executable, "-m", "mypy", "--strict", "--warn-unused-ignores", "--cache-dir", ".cache/mypy"]
    environment = os.environ | {"MYPYPATH": str(ROOT)}
    done = subprocess.run([*command, "tests/typed_calls.py"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_stub_of_the_methods_is_what_their_declarations_say(script):
    stub = script("write_stub")
    assert stub.PATH.read_text() == stub.stub(), "python scripts/write_stub.py writes it anew"
