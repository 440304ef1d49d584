"""Share one finished run of the small experiment, made by the command line."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
HERE = pathlib.Path(__file__).parent


@pytest.fixture(scope="session")
def command(digits_dir):
    """Return a function from a workdir and more flags to the command that runs the small experiment there."""

    def words(workdir, *flags, config="small_config"):
        script = [sys.executable, ROOT / "scripts" / "run.py", f"--config={HERE / config}.py"]
        return [*script, f"--config.data_dir={digits_dir}", f"--workdir={workdir}", *flags]

    return words


@pytest.fixture(scope="session")
def start(command, quick_start):
    """Return a function that starts the small experiment in a workdir, with more flags, and gives its process."""

    def starting(workdir, *flags, config="small_config", **options):
        return subprocess.Popen(command(workdir, *flags, config=config), cwd=ROOT, env=quick_start, **options)

    return starting


@pytest.fixture(scope="session")
def run(start):
    """Return a function that runs the small experiment to its end and gives the finished process."""

    def finish(workdir, *flags, config="small_config"):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with start(workdir, *flags, config=config, **pipes) as process:
            try:
                printed, errors = process.communicate(timeout=300)
            finally:
                process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, printed, errors)

    return finish


@pytest.fixture(scope="session")
def finished(run, tmp_path_factory):
    """Return the directory of a finished run, and what it printed."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    process = run(workdir)
    assert process.returncode == 0, process.stderr[-3000:]
    return workdir, process.stdout
