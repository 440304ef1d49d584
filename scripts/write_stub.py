"""Write `soups/recipes/__init__.pyi`, in which type checkers and editors find the signatures of all declared methods.

    python scripts/write_stub.py

A declared method takes members where the decorated function takes `Inputs`, and no type of a decorator can say that. A
test compares the file with what this writes.
"""

import ast
import inspect
import pathlib
import re
import subprocess
import sys

from soups import recipes
from soups.files import replace_file

PATH = pathlib.Path(recipes.__file__).with_suffix(".pyi")
#: where the words of annotations come from
MODULES = {
    "collections.abc": ("Callable", "Mapping", "Sequence"),
    "numpy.typing": ("ArrayLike",),
    "soups.arguments": ("Members", "PerMember", "Trees"),
    "soups.recipes.sparsify": ("Sparsifier",),
    "soups.tree": ("Tree",),
    "typing": ("Any",),
}
DOCSTRING = '"""List what the room offers, and the signatures of declared methods; scripts/write_stub.py wrote this."""'


def stub() -> str:
    """Return the text of the file."""
    body = ast.parse(pathlib.Path(recipes.__file__).read_text()).body
    names = {alias.name: node.module for node in body if isinstance(node, ast.ImportFrom) for alias in node.names}
    methods = {name: getattr(recipes, name).method for name in names if hasattr(getattr(recipes, name), "method")}
    defined = [_definition(name, method.signature) for name, method in methods.items()]
    words = set(re.findall(r"\w+", " ".join(defined)))
    imports = [f"from {module} import {name}" for module, own in MODULES.items() for name in own if name in words]
    imports += [f"from {module} import {name} as {name}" for name, module in names.items() if name not in methods]
    return _formatted("\n".join([DOCSTRING, "", *imports, "", *defined, ""]))


def _definition(name, signature):
    parameters = [_parameter(one) for one in signature.parameters.values()]
    keyword = next(i for i, one in enumerate(signature.parameters.values()) if one.kind is one.KEYWORD_ONLY)
    parameters.insert(keyword, "*")
    return f"def {name}({', '.join(parameters)}) -> {signature.return_annotation}: ..."


def _parameter(one):
    if one.default is inspect.Parameter.empty:
        return f"{one.name}: {one.annotation}"
    simple = one.default is None or isinstance(one.default, bool | int | float | str)
    return f"{one.name}: {one.annotation} = {one.default!r}" if simple else f"{one.name}: {one.annotation} = ..."


def _formatted(text):
    for words in (["check", "--select", "I", "--fix", "--quiet"], ["format"]):
        command = [sys.executable, "-m", "ruff", *words, "--stdin-filename", str(PATH), "-"]
        text = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    return text


if __name__ == "__main__":
    replace_file(PATH, stub())
