"""Share one finished run of the small experiment, made by the command line."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = pathlib.Path(__file__).with_name("small_config.py")


@pytest.fixture(scope="session")
def command(digits_dir):
    """Give a function from a workdir and more flags to the command of the small experiment."""

    def make(workdir, *flags):
        script = [sys.executable, ROOT / "scripts" / "run.py", f"--config={CONFIG}", f"--config.data_dir={digits_dir}"]
        return [*map(str, script), f"--workdir={workdir}", *flags]

    return make


@pytest.fixture(scope="session")
def run(command):
    """Give a function that runs the command to its end and gives the finished process."""

    def finish(workdir, *flags):
        return subprocess.run(command(workdir, *flags), cwd=ROOT, capture_output=True, text=True, timeout=300)

    return finish


@pytest.fixture(scope="session")
def finished(run, tmp_path_factory):
    """Give the directory of a finished run, and what it printed."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    process = run(workdir)
    assert process.returncode == 0, process.stderr[-3000:]
    return workdir, process.stdout
