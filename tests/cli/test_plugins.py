"""Test that a user's file is run, once, and that its mistakes are named with their lines."""

import subprocess
import sys

import numpy as np
import pytest
import yaml

from soups.cli import main
from soups.cli.plugins import load_plugin
from soups.formats import open_checkpoint, write_safetensors

METHOD = """
from soups.engine import Recipe
from soups.recipes import method


@method(base="required", summary="the base and a multiple of the first task vector")
def first_times(inputs, *, factor=2.0):
    return Recipe(lambda part, _: part.base + factor * part.vector(0))
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ndef f(:\n", "line 2: SyntaxError: invalid syntax"),
        ("\n\nimport no_such_module\n", "line 3: ModuleNotFoundError: No module named 'no_such_module'"),
        ("def f():\n    raise RuntimeError('first\\nsecond')\n\nf()\n", "line 2: RuntimeError: first"),
        ("import json\njson.loads('{')\n", "line 2: JSONDecodeError: Expecting property name"),
        ("import sys\nsys.exit(3)\n", "line 2: SystemExit: 3"),
        ("é = '\ud800'", "SyntaxError"),
        ("a\0b", "SyntaxError: source code string cannot contain null bytes"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, text, message):
    file = tmp_path / "mine.py"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    before = set(sys.modules)
    assert main(["merge", "--plugin", str(file), "--methods"]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith(f"soups merge: --plugin: {file}, ") and message in err and err.count("\n") == 1
    assert not [name for name in set(sys.modules) - before if "mine" in name]


def test_a_file_is_run_once(tmp_path, capsys):
    file, count = tmp_path / "mine.py", tmp_path / "count"
    file.write_text(f"import pathlib\nwith open({str(count)!r}, 'a') as file:\n    file.write('x')\n")
    load_plugin(str(file))
    (tmp_path / "link.py").symlink_to(file)
    for name in (file, tmp_path / "link.py"):
        assert main(["merge", "--plugin", str(name), "--plugin", str(file), "--methods"]) == 0
    assert count.read_text() == "x"


@pytest.mark.parametrize(
    ("name", "message"), [("none.py", "no file at"), ("", "is no path"), ("gs://a/b.py", "is a URL")]
)
def test_what_is_no_file_is_named(name, message, capsys):
    assert main(["merge", "--plugin", name, "--methods"]) == 2
    assert message in capsys.readouterr().err


def test_a_method_of_ones_own(tmp_path, quick_start):
    def soups(*words):
        command = [sys.executable, "-m", "soups", "merge", "--plugin", "mine.py", *words]
        done = subprocess.run(command, env=quick_start, cwd=tmp_path, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    (tmp_path / "mine.py").write_text(METHOD)
    arrays = {name: np.full(3, value, np.float32) for name, value in [("base", 1), ("a", 3)]}
    for name, array in arrays.items():
        write_safetensors(tmp_path / f"{name}.safetensors", {"w": array})
    assert "first_times" in soups("--methods")[1]
    assert "--factor" in soups("--method", "first_times", "--help")[1]
    words = ["--method", "first_times", "--base", "base.safetensors", "--members", "a.safetensors", "--out"]
    code, _, err = soups(*words, "out", "--factor", "3")
    assert (code, err) == (0, "")
    np.testing.assert_array_equal(open_checkpoint(tmp_path / "out").read("w"), [7, 7, 7])
    assert soups(*words, "never", "--fctor", "3")[2] == "soups merge: unknown option --fctor (did you mean --factor?)\n"
    recipe = yaml.safe_load((tmp_path / "out" / "recipe.yml").read_text())
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe | {"parameters": {"factor": 5}}))
    assert soups("recipe.yml", "again")[::2] == (0, "")
    np.testing.assert_array_equal(open_checkpoint(tmp_path / "again").read("w"), [11, 11, 11])
    assert soups("--verify", "again")[::2] == (0, "")
