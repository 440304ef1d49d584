"""Every benchmark can start: what it takes of the library is there, and is called with options that there are."""

import ast
import importlib.util
import inspect
import json
import os
import pathlib
import sys
import types

import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "scripts" / "benchmarks"
SCRIPTS = {path.relative_to(FOLDER).as_posix(): path for path in sorted(FOLDER.rglob("*.py"))}
NOTHING = object()


@pytest.fixture
def load(monkeypatch):
    """Yield a function that imports a benchmark, and leaves nothing of it behind."""
    for folder in (FOLDER / "peers", FOLDER):
        monkeypatch.syspath_prepend(folder)
    environment, before = dict(os.environ), set(sys.modules)
    yield lambda script: importlib.import_module(script.removesuffix(".py").replace("/", "."))
    os.environ.clear()
    os.environ.update(environment)
    for name in set(sys.modules) - before:
        if name.split(".")[0] in {"peers", *(path.stem for path in SCRIPTS.values())}:
            del sys.modules[name]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_benchmark_finds_what_it_takes_of_the_library(script, load):
    tree = ast.parse(SCRIPTS[script].read_text())
    roots = {name.split(".")[0] for name, _ in imports(tree)}
    if None in map(importlib.util.find_spec, roots):  # it is for the interpreter of a peer
        assert "soups" not in roots
        return
    wrong = [f"{name} has no {part}" for name, part in imports(tree) if part and not has(name, part)]
    assert not [*wrong, *misfits(tree, vars(load(script)))]


@pytest.mark.parametrize("script", [name for name, path in SCRIPTS.items() if "ArgumentParser" in path.read_text()])
def test_a_benchmark_says_what_its_options_are(script, load, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as ended:
        load(script).main()
    assert ended.value.code == 0 and "--out" in capsys.readouterr().out


def test_what_is_gone_is_found():
    code = "import soups\nfrom soups import tree\nfrom soups.pool import Pool\n"
    code += "def f(tree): soups.uniform(tree.gone, other=1), Pool('x', 1, 2), soups.gone, Pool(*tree), Pool(a=1)\n"
    code += "def g(): return [tree.gone(pool) for pool in Pool], soups.uniform(**f), soups.tree.mean([1])[0].gone\n"
    names = {}
    exec(code, names)
    expected = ["soups.uniform: got an unexpected", "Pool: too many", "soups.gone is", "Pool: missing", "tree.gone is"]
    found = misfits(ast.parse(code), names)
    assert len(found) == len(expected) and all(a in b for a, b in zip(expected, found, strict=True)), found


def imports(tree):
    """Yield the modules that are imported, each with what is taken of it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name) for alias in node.names)


def has(name, part):
    if name.split(".")[0] != "soups" or hasattr(importlib.import_module(name), part):
        return True
    return importlib.util.find_spec(f"{name}.{part}") is not None


def misfits(node, names):
    """List what code takes of the library that is not there, and calls that do not fit what is called."""
    found = []
    if isinstance(node, ast.FunctionDef | ast.Lambda):
        names = {name: value for name, value in names.items() if name not in bound(node)}
    if isinstance(node, ast.Attribute):
        owner = value_of(node.value, names)
        if isinstance(owner, types.ModuleType) and is_of_library(owner) and not hasattr(owner, node.attr):
            found.append(f"line {node.lineno}: {ast.unparse(node)} is gone")
    if isinstance(node, ast.Call) and is_of_library(function := value_of(node.func, names)):
        bare = [one for one in node.args if not isinstance(one, ast.Starred)]
        named = {keyword.arg: keyword for keyword in node.keywords if keyword.arg}
        whole = len(bare) + len(named) == len(node.args) + len(node.keywords)
        signature = inspect.signature(function)
        try:
            (signature.bind if whole else signature.bind_partial)(*bare, **named)
        except TypeError as error:
            found.append(f"line {node.lineno}: {ast.unparse(node.func)}: {error}")
    return found + [one for child in ast.iter_child_nodes(node) for one in misfits(child, names)]


def bound(function):
    """Return the names that a function binds itself."""
    arguments = {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
    stored = (node for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    return arguments | {node.id for node in stored}


def value_of(node, names):
    """Return what a name, or a name in a module, stands for."""
    if isinstance(node, ast.Name):
        return names.get(node.id, NOTHING)
    if isinstance(node, ast.Attribute) and isinstance(owner := value_of(node.value, names), types.ModuleType):
        return getattr(owner, node.attr, NOTHING)
    return NOTHING


def is_of_library(value):
    name = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
    return str(name).split(".")[0] == "soups"


def test_what_an_installation_brings_is_in_the_docs_as_it_was_measured():
    root = FOLDER.parents[1] / "docs"
    measured = json.loads((root / "benchmarks" / "install_size.json").read_text())
    page = (root / "benchmarks.md").read_text()
    assert f"has {measured['wheel_bytes'] / 1e6:.2f} MB" in page
    for name, start in {
        "soups": "| `.` ",
        "soups[all]": "| `.[all",
        "optax": "| `optax`",
        "mergekit": "| `mergekit`",
    }.items():
        found = measured["results"][name]
        (row,) = [line for line in page.splitlines() if line.startswith(start)]
        assert f"| {len(found['packages'])} | {found['bytes'] / 1e6:,.0f} |" in row
    assert f"[{len(measured['results']['soups']['packages'])} packages]" in (root.parent / "README.md").read_text()
