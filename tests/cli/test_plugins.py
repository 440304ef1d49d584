"""Test that a user's file is run, once, and that its mistakes are named with their lines."""

import sys

import pytest

from soups.cli import main
from soups.cli.plugins import load_plugin


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
