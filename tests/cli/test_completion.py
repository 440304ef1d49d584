"""Test what shells complete, by the shells themselves where they are installed."""

import shutil
import subprocess

import pytest

from soups.cli import COMMANDS, main
from soups.cli.completion import _known

CASES = [
    (["soups", ""], list(COMMANDS)),
    (["soups", "me"], ["merge"]),
    (["soups", "merge", "--method", "ti"], ["ties"]),
    (["soups", "merge", "--method", "ties", "--dens"], ["--density"]),
    (["soups", "merge", "--base", "a", "--format", ""], ["huggingface", "orbax", "pool"]),
    (
        ["soups", "pool", ""],
        ["list", "show", "verify", "add", "import", "export", "remove", "certify", "release", "log", "watch"],
    ),
    (["soups", "pool", "import", "--ar"], ["--arch"]),
    (["soups", "run", "--config", "dig"], ["digits", "digits_tasks"]),
    (["soups", "run", "--wo"], ["--workdir"]),
    (["soups", "completion", "z"], ["zsh"]),
]
# how each shell is asked what it would complete; $@ are the words
ASK = {
    "bash": 'source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _soups; printf "%s\n" "${COMPREPLY[@]}"',
    "zsh": """
compdef() {}
compadd() { shift; for one in "$@"; do [[ $one == ${words[CURRENT]}* ]] && print -r -- $one; done }
source "$0"
words=("$@") CURRENT=$#
_soups
""",
    "fish": "source $argv[1]; complete -C (string join ' ' -- $argv[2..])",
}


@pytest.fixture(scope="module", params=ASK)
def ask(request, tmp_path_factory):
    """Return a function from the words before the cursor to what a shell completes there."""
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    folder = tmp_path_factory.mktemp(request.param)
    with (folder / "completion").open("w") as file, pytest.MonkeyPatch.context() as patched:
        patched.setattr("sys.stdout", file)
        assert main(["completion", request.param]) == 0

    def asked(words):
        quiet = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[request.param]
        command = [request.param, *quiet, "-c", ASK[request.param], folder / "completion", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        assert done.stderr == ""
        return sorted(line.partition("\t")[0] for line in done.stdout.splitlines())

    return asked


@pytest.mark.parametrize(("words", "expected"), CASES, ids=lambda words: " ".join(words))
def test_a_shell_completes_what_a_command_takes(ask, words, expected):
    assert ask(words) == sorted(expected)


def test_every_command_says_what_it_takes():
    assert all("--help" in _known(name).options for name in COMMANDS)


def test_another_shell_is_refused(capsys):
    assert main(["completion", "bush"]) == 2
    assert "bush" in capsys.readouterr().err
