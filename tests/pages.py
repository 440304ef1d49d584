"""Follow a page of the documentation as its reader would, block by block in an empty folder."""

import os
import pathlib
import re
import subprocess
import sys

BLOCK = re.compile(r"```(python|bash)\n(?:# (\S+\.py)\n)?(.*?)```", re.DOTALL)


def sections(page):
    """Return the texts of a page's sections by their titles."""
    return {title: text for title, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", page.read_text(), re.M | re.S)}


def environment(folder, quick_start):
    """Return the environment of a shell in a folder, in which `soups` is this one and `python` the one that runs."""
    (folder / "bin").mkdir()
    for name, words in (("soups", "-m soups"), ("python", "")):
        program = folder / "bin" / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        program.chmod(0o755)
    return quick_start | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "JAX_NUM_CPU_DEVICES": "1"}


def follow(text, title, names, shell):
    """Run the blocks of a text: a first line such as "# my.py" names the file that one belongs in.

    `names`: of its Python; `shell`: the environment of its commands. Gives what these printed.
    """
    printed = ""
    for language, file, code in BLOCK.findall(text):
        if file:
            pathlib.Path(file).write_text(code)
        elif language == "bash":
            done = subprocess.run(["bash", "-ec", code], env=shell, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-3000:]
            printed += done.stdout
        else:
            exec(compile(code, title, "exec"), names)
    return printed
