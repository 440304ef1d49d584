"""Test the command `soups` itself: which command it runs, and its words."""

import importlib
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

import soups
from soups.cli import COMMANDS, main, merge_options
from soups.cli import options as cli_options

ROOT = pathlib.Path(__file__).parents[2]
ALL = [[name] for name in COMMANDS]
ALL += [["pool", name] for name in ("list", "show", "verify", "add", "import", "remove")]


def shell(quick_start, *words, **settings):
    return subprocess.run(
        [sys.executable, *map(str, words)], env=quick_start, capture_output=True, text=True, **settings
    )


def test_version_and_help(capsys):
    for words, expected in [(["--version"], f"soups {soups.__version__}\n"), (["--help"], "usage: soups ")]:
        with pytest.raises(SystemExit) as end:
            main(words)
        out = capsys.readouterr().out
        assert end.value.code == 0 and out.startswith(expected)
    assert all(f"  {name} " in out and what in out for name, what in COMMANDS.items())


@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_every_command_has_help_for_a_narrow_terminal(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    shown = []
    for words in ([*command, "--help"], ["help", *command], ["help", *command, "--quiet"]):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] == shown[2]
    lines = shown[0].splitlines()
    assert lines[0].startswith(f"usage: soups {' '.join(command)} ") and max(map(len, lines)) <= 80
    assert any(line.startswith(f"  soups {' '.join(command)} ") for line in lines), "an example is needed"
    assert all(any(line.startswith(f"  {option}") for line in lines) for option in ("-h, ", "-q, ", "-v, "))


@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_an_option_that_no_command_has_is_named(command, capsys):
    for word, meant in [("--verbsoe", "--verbose"), ("--quite=3", "--quiet")]:
        assert main([*command, word, "--nothing-like-it"]) == 2
        message = f"soups {command[0]}: unknown option {word.partition('=')[0]} (did you mean {meant}?)"
        assert capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize("command", COMMANDS)
def test_tracebacks_are_printed_where_all_is_told(command, capsys):
    for option in ("-v", "--verbose", "--debug"):
        assert main([option, command, "--nonsense"]) == 2
        *lines, last = capsys.readouterr().err.splitlines()
        assert lines[0].startswith("Traceback") and last.startswith(f"soups {command}: unknown")


@pytest.mark.parametrize(
    ("word", "known", "option"),
    [
        ("--dnsity", ["--density", "--insist"], "density"),
        ("--metod", ["--method", "--methods"], "method"),
        ("--confg.members", ["--config"], "config"),
        ("--density", ["--insist"], None),
        ("--scale", ["--sharded"], None),
        ("--base", ["--verbose", "-b"], None),
        ("--q", ["-q", "--quiet"], None),
    ],
)
def test_only_a_slip_of_an_option_is_taken_for_it(word, known, option):
    assert cli_options.meant(word, known) == (f" (did you mean --{option}?)" if option else "")


def test_an_unknown_command_is_named(capsys):
    assert main(["mrege"]) == 2
    assert capsys.readouterr().err.startswith("soups: unknown command 'mrege' (did you mean 'merge'?); there are: ")
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("soups: a command is needed; there are: merge, search, greedy, ")
    for words, message in [
        (["--methods"], "soups: unknown option --methods: a command comes first\n"),
        (["--vrsion"], "soups: unknown option --vrsion (did you mean --version?): a command comes first\n"),
        (["help", "mrege"], "soups: unknown command 'mrege' (did you mean 'merge'?)"),
        (["pool", "lst"], "soups pool: unknown command 'lst' (did you mean 'list'?); there are: add, certify, "),
        (["-q", "pool", "-v"], "soups: --quiet and --verbose exclude each other"),
    ]:
        assert main(words) == 2
        assert capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize(
    ("program", "prog"),
    [
        (["-m", "soups", "merge"], "soups merge"),
        ([ROOT / "scripts" / "merge.py"], "merge.py"),
        (["-m", "soups", "pool", "list"], "soups pool"),
        ([ROOT / "scripts" / "pool.py", "list"], "pool.py"),
        ([ROOT / "scripts" / "run.py", "--config=x"], "run.py"),
    ],
)
def test_programs_by_themselves(quick_start, program, prog):
    words = [sys.executable, *program, "nowhere", "--densty"]
    done = subprocess.run(words, env=quick_start, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{prog}: unknown option --densty") and done.stderr.count("\n") == 1


def test_names_that_are_not_utf8_are_printed(quick_start, tmp_path):
    environment = {**quick_start, "PYTHONIOENCODING": "ascii"}
    name = b"caf\xe9\x1b[31m"
    done = subprocess.run(
        [sys.executable, "-m", "soups", "merge", "--method", "linear", "--members", name, "--out", "θ"],
        env=environment,
        capture_output=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(b"soups merge: the name caf\\xe9\\x1b[31m is not UTF-8") and done.stderr.isascii()


COMMAND_LINE = re.compile(rf"^(?:\$ )?soups ({'|'.join(COMMANDS)}) (.*?)(?:\s+#.*)?$", re.MULTILINE)


def test_the_commands_of_the_documentation_are_understood():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    found = [line for page in pages for line in COMMAND_LINE.findall(page.read_text().replace("\\\n", ""))]
    assert len(found) >= 8
    for command, line in found:
        words = shlex.split(line)
        if command == "merge":
            merge_options.parse(words, "soups merge", "")
        elif command == "search":
            importlib.import_module("soups.cli.search").parse(words, "soups search")
        else:
            module = importlib.import_module(f"soups.cli.{command.replace('-', '_')}")
            module.parser(f"soups {command}").parse([word for word in words if not word.startswith("--config.")])
