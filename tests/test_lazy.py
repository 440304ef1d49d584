"""Test what an installation without extras can do, and that it names the extra where it lacks one."""

import ast
import importlib.metadata
import json
import pathlib
import re
import subprocess
import sys
import tomllib

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from soups.formats import open_checkpoint, write_safetensors
from soups.lazy import EXTRAS, extra

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OF_ALL = ("train", "data", "text", "report", "recycling")  # what the project itself runs on
COMMANDS = {
    ("run", "--config", "c.py"): 'ml_collections is not installed: pip install "soups[data,report,train]"',
    ("report", "w"): 'matplotlib is not installed: pip install "soups[report]"',
    ("predict", "--pool", "p", "--images", "i", "--out", "o"): 'flax is not installed: pip install "soups[data,train]"',
    ("zero-shot", "--out", "o"): 'flax is not installed: pip install "soups[data,text,train]"',
    ("pool", "import", "--arch", "a", "--pool", "p", "a.pt"): 'flax is not installed: pip install "soups[train]"',
}


def closure(requirements):
    """Return the distributions that pip installs with some."""
    found, left = set(), [Requirement(line) for line in requirements]
    while left:
        one = left.pop()
        found.add(canonicalize_name(one.name))
        for further in map(Requirement, importlib.metadata.requires(one.name) or ()):
            asked = [{"extra": name} for name in ("", *one.extras)]
            new = canonicalize_name(further.name) not in found or further.extras
            if new and (further.marker is None or any(map(further.marker.evaluate, asked))):
                left.append(further)
    return found


def outside(requirements):
    """Return what can be imported here, and could not if only these were installed."""
    inside = closure(requirements) | {"soups"}
    packages = importlib.metadata.packages_distributions()
    return [name for name, of in packages.items() if not inside & set(map(canonicalize_name, of))]


@pytest.fixture(scope="module")
def found(quick_start, tmp_path_factory):
    """Return what was wrong with which module, without all extras and without each, and what commands printed."""
    extras = PROJECT["optional-dependencies"]
    place = tmp_path_factory.mktemp("windows")
    for name in "ab":
        write_safetensors(place / name, {"w": np.full((300, 1000), ord(name), np.float32), "v": np.ones(3, np.float32)})
    a, b, folder, npz, work = (str(place / name) for name in ("a", "b", "folder", "c.npz", "work"))
    print_two = f"{sys.executable} -c 'print(2)' {{model}}"
    on = [["merge", "--method", "linear", "--members", a, b, "--out", out] for out in (folder, npz)]
    on += [["merge", "--verify", folder], ["rank", "--members", a, b, "--eval", print_two, "--work", work]]
    jobs = {"core": outside(PROJECT["dependencies"]), "commands": list(COMMANDS), "on windows": on}
    for name in OF_ALL:
        others = [line for other in OF_ALL if other != name for line in extras[other]]
        jobs[name] = outside([*PROJECT["dependencies"], *others])
    command = [sys.executable, ROOT / "tests" / "without_extras.py", json.dumps(jobs)]
    done = subprocess.run(command, env=quick_start, capture_output=True, text=True, check=True)
    return jobs, json.loads(done.stdout) | {"place": place}


def test_the_requirements_are_those_of_the_core_and_of_all_extras():
    extras = PROJECT["optional-dependencies"]
    assert extras["all"] == [f"soups[{','.join(OF_ALL)}]"]
    listed = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert listed == sorted({*PROJECT["dependencies"], *(line for name in OF_ALL for line in extras[name])})


def test_every_requirement_has_an_oldest_version_and_ends_before_the_next_major_one():
    for requirement in map(
        Requirement,
        [
            line
            for lines in [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][name] for name in EXTRAS)]
            for line in lines
        ],
    ):
        assert [one.operator for one in sorted(requirement.specifier, key=str)] == ["<", ">="], requirement


def test_the_extras_bring_what_is_imported_of_them():
    assert EXTRAS.keys() == PROJECT["optional-dependencies"].keys() - {"all", "dev", "docs"}
    brought_by = importlib.metadata.packages_distributions()
    for name, packages in EXTRAS.items():
        brought = {canonicalize_name(brought_by.get(package, [package])[0]) for package in packages}
        assert brought == {canonicalize_name(Requirement(line).name) for line in PROJECT["optional-dependencies"][name]}


def test_the_core_imports_what_needs_no_extra(found):
    jobs, found = found
    assert {"flax", "PIL", "matplotlib", "rich", "tokenizers", "grain"} <= set(jobs["core"])
    rooms = {re.match(r"soups\.\w+", name)[0] for name in found["core"]}
    assert rooms == {"soups.cli", "soups.data", "soups.models", "soups.report", "soups.studies"}
    works = {"soups.cli.merge", "soups.cli.pool", "soups.data", "soups.data.sources", "soups.studies.cook"}
    assert not works & found["core"].keys()
    message = re.compile(r'\w+ is not installed: pip install "soups\[[a-z,]+\]"')
    assert all(kind == "MissingExtraError" and message.fullmatch(text) for kind, text in found["core"].values())


@pytest.mark.parametrize("name", ["train", "data", "text"])  # what reports need comes with train and data too
def test_what_lacks_one_extra_names_it(name, found):
    jobs, found = found
    assert found[name]
    for kind, text in found[name].values():
        package, lacking = re.fullmatch(r'(\w+) is not installed: pip install "soups\[([a-z,]+)\]"', text).groups()
        assert (kind, package in jobs[name], lacking) == ("MissingExtraError", True, name)


def test_a_command_that_lacks_extras_says_so_in_one_line(found):
    for (words, message), printed in zip(COMMANDS.items(), found[1]["commands"], strict=True):
        assert printed == [2, "", f"soups {words[0]}: {message}\n"]


def test_every_module_is_imported_where_there_is_no_posix(found):
    assert found[1]["windows"]["refused"] == {}


def test_merges_and_evaluations_run_where_there_is_no_posix(found):
    for code, _, err in found[1]["windows"]["commands"]:
        assert (code, err) == (0, "")
    place = found[1]["place"]
    for merged in (open_checkpoint(place / "folder"), open_checkpoint(place / "c.npz")):
        np.testing.assert_array_equal(merged.read("w"), np.full((300, 1000), (ord("a") + ord("b")) / 2))
    assert {path.name for path in place.iterdir()} == {"a", "b", "c.npz", "c.npz.merge.json", "folder", "work"}


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.name)
def test_scripts_import_packages_of_extras_where_their_lack_is_named(script):
    named = [line for node in ast.parse(script.read_text()).body for line in _imported(node)]
    assert not {name.partition(".")[0] for name in named} & {name for names in EXTRAS.values() for name in names}


def _imported(node):
    """Return what a statement at the top of a module imports by itself, not within `with extra(...)`."""
    return [one.name for one in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None) or ""]


def test_an_error_of_something_else_stays_as_it_is():
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_package'") as caught, extra("train"):
        import no_such_package  # noqa: F401
    assert caught.type is ModuleNotFoundError
