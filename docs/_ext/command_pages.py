"""Write a page of what each command of the shell says of itself."""

import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence

import soups
from soups.cli import COMMANDS


def page() -> str:
    """Return the page: the help of every command, and of the commands below it."""
    lines = ["The commands", "============", ""]
    lines += ["What ``soups COMMAND --help`` prints, at a width of 80 columns.", ""]
    for command in COMMANDS:
        lines += [f"soups {command}", "-" * (6 + len(command)), ""]
        for words, text in _helps([command]):
            above = [] if len(words) == 1 else [" ".join(["soups", *words]), "^" * 80, ""]
            lines += [*above, ".. code-block:: text", "", *(f"   {line}".rstrip() for line in text.splitlines()), ""]
    return "\n".join(lines)


def _helps(words: Sequence[str]) -> Iterator[tuple[Sequence[str], str]]:
    root = str(pathlib.Path(soups.__file__).parents[1])
    environment = os.environ | {"COLUMNS": "80", "PYTHONPATH": root}
    command = [sys.executable, "-m", "soups", *words, "--help"]
    text = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    yield words, text
    listed = re.search(r"^  COMMAND\n((?:    .*\n)+)", text, re.MULTILINE)
    for below in re.findall(r"^    (\S+)", listed[1] if listed else "", re.MULTILINE):
        yield from _helps([*words, below])
