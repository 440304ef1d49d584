"""Test that a command ends in one line, whatever ends it; with real processes and signals."""

import errno
import importlib
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from soups.cli.stopping import Run, guarded
from soups.formats import write_safetensors

STUCK = """
import sys, threading, time
from soups.cli.stopping import Run, guarded

def command():
    {work}

sys.exit(guarded(command, Run("soups merge", "the same command goes on where it was")))
"""
WAITS = "print('begun', flush=True); time.sleep(60)"
# the executor waits for what its thread does
THREAD = """import concurrent.futures
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        sleeping = threads.submit(time.sleep, 60)
        print("begun", flush=True)
        sleeping.result()"""
# where an exception may be wrapped
CLASS = """class Descriptor:
        def __set_name__(self, owner, name):
            print("begun", flush=True)
            time.sleep(60)
    class Owner:
        attribute = Descriptor()"""
# where an exception is ignored
GARBAGE = """class Owner:
        def __del__(self):
            print("begun", flush=True)
            time.sleep(60)
    Owner()
    time.sleep(60)"""
# what a save that is stopped leaves quiet
LATE = """import atexit
    class Owner:
        def __del__(self):
            raise RuntimeError
    atexit.register(Owner)
    sys.unraisablehook = lambda found: None
    print("begun", flush=True)
    time.sleep(60)"""
LINE = "soups merge: stopped; the same command goes on where it was\n"


def start(quick_start, work):
    words = [sys.executable, "-c", STUCK.format(work=work)]
    process = subprocess.Popen(words, env=quick_start, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"
    return process


@pytest.mark.parametrize(
    ("number", "work"),
    [
        (signal.SIGINT, WAITS),
        (signal.SIGTERM, THREAD),
        (signal.SIGTERM, GARBAGE),
        (signal.SIGTERM, LATE),
        (signal.SIGHUP, WAITS),
        (signal.SIGHUP, CLASS),
    ],
)
def test_a_signal_ends_it_in_one_line(quick_start, number, work):
    process = start(quick_start, work)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (128 + number, LINE)


def test_a_second_signal_ends_it_at_once(quick_start):
    process = start(quick_start, THREAD)
    while process.poll() is None:  # signals that come before the first is heard are one
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    _, err = process.communicate()
    assert (process.returncode, err) == (-signal.SIGINT, "")


def test_ignored_signals_stay_ignored(quick_start):
    work = "print('begun'); signal.raise_signal(signal.SIGINT); print('lives')"
    ignoring = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + STUCK.format(work=work)
    done = subprocess.run([sys.executable, "-c", ignoring], env=quick_start, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "begun\nlives\n", "")


def test_a_merge_that_was_stopped_goes_on(quick_start, tmp_path):
    rng = np.random.default_rng(0)
    for name in "xab":
        leaves = {f"l{index}.w": rng.normal(size=(64, 64)).astype(np.float32) for index in range(6)}
        write_safetensors(tmp_path / f"{name}.safetensors", leaves)
    members = ["--base", "x.safetensors", "--members", "a.safetensors", "b.safetensors"]
    words = [sys.executable, "-m", "soups", "merge", "--method", "wudi", "--only", "l[345].w", *members, "--out", "out"]
    words += ["--shard-size", "17kB", "--threads", "1", "--steps"]
    process = subprocess.Popen([*words, "10000000"], env=quick_start, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    unfinished = tmp_path / ".out.unfinished"
    while not (unfinished / "model-00003-of-00006.safetensors.done").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (143, LINE) and unfinished.exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        np._core._exceptions._ArrayMemoryError((2**40,), np.dtype(np.float32)),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 34359738368 bytes.\nmore"),
        RuntimeError("can't start new thread"),
        ImportError("libjax_common.so: failed to map segment from shared object"),
    ],
    ids=["python", "numpy", "system", "devices", "threads", "libraries"],
)
def test_lack_of_memory_is_one_line(capsys, error):
    def command():
        raise error

    assert guarded(command, Run("soups merge", "the same command goes on where it was")) == 2
    err = capsys.readouterr().err
    assert err.startswith("soups merge: out of memory") and err.count("\n") == 1
    assert err.endswith("; the same command goes on where it was\n")


def test_faults_of_the_program_itself_are_not_hidden():
    def command():
        raise RuntimeError("a fault")

    with pytest.raises(RuntimeError, match="a fault"):
        guarded(command, Run("soups merge"))
    with pytest.raises(ImportError, match="No module named"):
        guarded(lambda: importlib.import_module("soups.cli.nothing"), Run("soups merge"))


def test_a_closed_pipe_is_quiet(quick_start):
    words = [sys.executable, "-m", "soups", "merge", "--methods"]
    with subprocess.Popen(words, env=quick_start, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 128 + signal.SIGPIPE


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_imports_ends_it_in_one_line(quick_start, tmp_path, number):
    # a module that the command imports waits for the signal
    (tmp_path / "argparse.py").write_text("import time\nprint('begun', flush=True)\ntime.sleep(60)\n")
    path = os.pathsep.join([str(tmp_path), quick_start.get("PYTHONPATH", "")])
    words = [sys.executable, "-m", "soups", "merge"]
    process = subprocess.Popen(
        words, env=quick_start | {"PYTHONPATH": path}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (128 + number, "soups: stopped\n")
