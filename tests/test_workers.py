"""Test what is called side by side: in threads, and in processes that fork where no JAX is."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from soups import workers
from soups.formats import write_safetensors

KILLED = "a process of this merge was killed, perhaps because memory ran out"
MERGE = """
import sys
from soups.cli import main
from soups.merging import planning
planning.FORKED = {least}
{more}
sys.exit(main(sys.argv[1:]))
"""
# the fourth block waits, in one of two processes
WAITS = """
import os, time
from soups.formats.write import Writer
write, written = Writer.write, []
def slow(*arguments):
    written.append(write(*arguments))
    if len(written) == 4:
        print("pids", os.getppid(), os.getpid(), flush=True)
        time.sleep(60)
Writer.write = slow
"""


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("base", "a", "b"):
        leaves = {f"w{i}": rng.standard_normal((16, 4 + i), np.float32) for i in range(9)}
        write_safetensors(tmp_path / f"{name}.safetensors", leaves | {"steps": np.arange(3)})
    return tmp_path


def merge(folder, quick_start, out, least, more="", method="dare"):
    members = ["--members", "a.safetensors", "b.safetensors"]
    words = ["--method", method, "--base", "base.safetensors", *members, "--threads", "2", "--out", out]
    return command(folder, quick_start, words, least, more)


def command(folder, quick_start, words, least, more=""):
    script = MERGE.format(least=least, more=more)
    return subprocess.Popen(
        [sys.executable, "-c", script, "merge", *words],
        **{"cwd": folder, "env": quick_start, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE},
    )


@pytest.mark.parametrize("number", [1, 3])
def test_results_keep_the_order_of_the_items_and_the_first_error_ends_all(number):
    assert workers.in_threads(lambda n: n * n, range(7), number) == [n * n for n in range(7)]
    with pytest.raises(ZeroDivisionError):
        workers.in_threads(lambda n: 1 / n, range(7), number)


def test_nothing_forks_beside_jax():
    assert "jax" in sys.modules and not workers.may_fork()


def test_processes_write_what_threads_write(folder, quick_start):
    for method in ("dare", "ties"):  # the second is measured over the whole model
        contents = []
        for least in (0, 10**9):
            process = merge(folder, quick_start, f"{method}{least}", least, method=method)
            assert process.communicate()[1] == "" and process.returncode == 0
            out = folder / f"{method}{least}"
            contents.append({file.name: file.read_bytes() for file in out.iterdir()})
        assert contents[0] == contents[1]
        process = command(folder, quick_start, ["--verify", f"{method}0"], 0)
        assert process.communicate() == (f"{method}0 is what its recipe and its models give, bit for bit\n", "")


def test_the_error_of_a_process_is_that_of_the_merge(folder, quick_start):
    broken = {f"w{i}": np.full((16, 4 + i), np.nan if i == 7 else 1.0, np.float32) for i in range(9)}
    write_safetensors(folder / "b.safetensors", broken | {"steps": np.arange(3)})
    process = merge(folder, quick_start, "out", 0)
    assert process.communicate()[1] == "soups merge: b.safetensors: w7 holds NaN or infinity; leave it out\n"
    assert process.returncode == 2 and not (folder / "out").exists()


def begun(process):
    """Return the process ids of a merge and of the worker that waits."""
    for line in process.stdout:
        if line.startswith("pids"):
            return [int(word) for word in line.split()[1:]]
    raise AssertionError(process.stderr.read())


def is_running(pid):
    try:
        return "\nState:\tZ" not in pathlib.Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="processes fork on Linux alone")
@pytest.mark.parametrize(
    ("sent", "victim", "code", "line"),
    [
        (signal.SIGKILL, 0, -signal.SIGKILL, ""),
        (signal.SIGTERM, 0, 143, "soups merge: stopped; the same command goes on where it was\n"),
        (signal.SIGINT, None, 130, "soups merge: stopped; the same command goes on where it was\n"),
        (signal.SIGKILL, 1, 2, f"soups merge: {KILLED}; fewer --threads need less; the same command goes on"),
    ],
    ids=["killed", "terminated", "interrupted", "worker killed"],
)
def test_no_process_outlives_the_merge_and_the_same_command_goes_on(folder, quick_start, sent, victim, code, line):
    process = merge(folder, quick_start, "out", 0, WAITS)
    pids = begun(process)
    for pid in reversed(pids) if victim is None else [pids[victim]]:  # Ctrl-C goes to all; the first ends the others
        os.kill(pid, sent)
    error = process.communicate(timeout=30)[1]
    assert process.returncode == code and error.startswith(line)
    deadline = time.monotonic() + 10
    while is_running(pids[1]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(pids[1])
    process = merge(folder, quick_start, "out", 0)
    assert process.communicate()[1] == "" and (folder / "out").is_dir()
