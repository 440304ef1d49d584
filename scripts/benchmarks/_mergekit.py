"""Install mergekit into a virtual environment of its own and run it."""

import pathlib
import subprocess
import sys

VERSION = "0.1.5"


def install(folder) -> pathlib.Path:
    """Return the folder of mergekit's programs; make the environment if it is not there."""
    folder = pathlib.Path(folder).absolute()
    if not (folder / "bin" / "mergekit-pytorch").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(folder / "bin" / "pip"), "install", "-q", f"mergekit=={VERSION}"], check=True)
    return folder / "bin"


def command(programs: pathlib.Path, recipe, out, *, folders: bool = False) -> list[str]:
    """Return the command that merges bare tensor files, or with `folders` Hugging Face folders."""
    program = "mergekit-yaml" if folders else "mergekit-pytorch"
    return [str(programs / program), str(recipe), str(out), "--quiet"]
