"""Test how much commands say: with --quiet errors and results alone, with --verbose the log of libraries too."""

import logging

import numpy as np
import pytest

from soups import Pool
from soups.cli import COMMANDS, main
from soups.cli.stopping import Run, guarded
from soups.formats import write_safetensors


@pytest.fixture
def quiet(tmp_path, monkeypatch, capsys):
    """Return a function from a command's words to its exit code and lines, in a folder with two models and a pool."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate("ab"):
        write_safetensors(tmp_path / f"{name}.safetensors", {"w": np.full(3, number, np.float32)})
        Pool("pool").add(name, {"w": np.full(3, number, np.float32)})

    def run(*words):
        code = main([*words, "--quiet"])
        out, err = capsys.readouterr()
        return code, out.splitlines() + err.splitlines()

    return run


def test_what_was_made_is_all_that_is_said(quiet):
    linear = ["merge", "--method", "linear", "--members", "a.safetensors", "b.safetensors", "--out"]
    assert quiet(*linear, "out", "--dry-run") == (0, [])
    assert quiet(*linear, "out") == (0, ["out"])
    assert quiet(*linear, "pool:soup", "--format", "pool") == (0, ["pool:soup"])
    assert quiet("merge", "--verify", "out") == (0, [])
    assert quiet("pool", "list", "pool") == (0, ["a", "b", "soup"])
    assert quiet("pool", "show", "pool", "a") == (0, [f"a {Pool('pool').digest('a')}"])
    assert quiet("pool", "add", "pool", "c", "a.safetensors") == (0, ["c"])
    assert quiet("pool", "verify", "pool") == (0, [])
    assert quiet("pool", "remove", "pool", "a", "b") == (0, ["a", "b"])
    assert "ties" in quiet("merge", "--methods")[1]


def test_errors_are_said(quiet, tmp_path):
    code, lines = quiet("pool", "list", "nowhere")
    assert code == 2 and len(lines) == 1 and lines[0].startswith("soups pool: ")
    member = next(path for path in (tmp_path / "pool").rglob("*") if path.is_file() and path.stat().st_size == 12)
    member.write_bytes(b"\1" * 12)
    code, lines = quiet("pool", "verify", "pool")
    assert code == 1 and len(lines) == 1 and lines[0][:3] in ("a: ", "b: ")


def test_logs_are_printed_on_demand_and_levels_stay(capsys):
    def command():
        logging.getLogger("a_library").info("it works")
        return 0

    levels = logging.getLogger().level, len(logging.getLogger().handlers)
    for verbose, said in ((False, ""), (True, "INFO a_library: it works\n")):
        assert guarded(command, Run("soups merge", verbose=verbose)) == 0
        assert capsys.readouterr().err == said
    assert levels == (logging.getLogger().level, len(logging.getLogger().handlers))


@pytest.mark.parametrize("command", COMMANDS)
def test_the_words_may_stand_before_the_command(command, capsys):
    assert main(["-q", command, "--nonsense"]) == main(["--debug", command, "--nonsense"]) == 2
    assert f"soups {command}: unknown option --nonsense" in capsys.readouterr().err
