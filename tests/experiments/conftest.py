"""Share one finished run of the small experiment, made by the command line."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = pathlib.Path(__file__).with_name("small_config.py")


@pytest.fixture(scope="session")
def start(digits_dir):
    """Give a function that starts the small experiment in a workdir, with more flags, and gives its process."""
    # the networks are tiny, so nearly all the time of a run is compilation: programs that run slower are there sooner
    fast = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": fast}

    def starting(workdir, *flags, **options):
        script = [sys.executable, ROOT / "scripts" / "run.py", f"--config={CONFIG}", f"--config.data_dir={digits_dir}"]
        return subprocess.Popen([*script, f"--workdir={workdir}", *flags], cwd=ROOT, env=environment, **options)

    return starting


@pytest.fixture(scope="session")
def run(start):
    """Give a function that runs the small experiment to its end and gives the finished process."""

    def finish(workdir, *flags):
        with start(workdir, *flags, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                printed, errors = process.communicate(timeout=300)
            finally:
                process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, printed, errors)

    return finish


@pytest.fixture(scope="session")
def finished(run, tmp_path_factory):
    """Give the directory of a finished run, and what it printed."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    process = run(workdir)
    assert process.returncode == 0, process.stderr[-3000:]
    return workdir, process.stdout
