"""Test that a command ends in one line also where it cannot say it itself; with real processes and real limits."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from soups.formats import write_safetensors

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a witness is a fork")
COMMAND = """
import ctypes, os, signal, subprocess, sys, time
from soups.cli.stopping import Run, guarded

def command():
    run.go_on = "the same command goes on where it was"
    {work}
    return 0

run = Run("soups merge", alone=True, verbose={verbose})
code = guarded(command, run)
{after}
sys.exit(code)
"""
KILLED = "soups merge: was killed, most likely for lack of memory"
ABORTED = "soups merge: was aborted by a library, most likely for lack of memory"
END = ", fewer --threads need less; the same command goes on where it was\n"


def run(quick_start, work, verbose=False, after="", kilobytes=None, **settings):
    words = [sys.executable, "-c", COMMAND.format(work=work, verbose=verbose, after=after)]
    words = limited(words, kilobytes) if kilobytes else words
    done = subprocess.run(words, env=quick_start, capture_output=True, text=True, timeout=60, **settings)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("work", "number", "line"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", signal.SIGKILL, KILLED + END),
        ("os.abort()", signal.SIGABRT, ABORTED + END),
        (
            "run.leader = 'process 0 on tpu-7 (pid 12)'; os.abort()",
            signal.SIGABRT,
            "soups merge: was aborted by JAX, most likely because process 0 on tpu-7 (pid 12), which leads all others, "
            "has ended; the same command goes on where it was\n",
        ),
        (
            "ctypes.string_at(0)",
            signal.SIGSEGV,
            "soups merge: crashed in a library; --verbose says where; the same command goes on where it was\n",
        ),
        # a fork and a program that live longer hold no pipe of it
        (
            "os.fork() or (os.close(2), time.sleep(3), os._exit(0)); os.kill(os.getpid(), signal.SIGKILL)",
            signal.SIGKILL,
            KILLED + END,
        ),
        (
            "subprocess.Popen(['sleep', '3'], stderr=subprocess.DEVNULL); os.kill(os.getpid(), signal.SIGKILL)",
            signal.SIGKILL,
            KILLED + END,
        ),
    ],
    ids=["killed", "aborted", "abort of JAX", "crashed", "with a fork", "with a program"],
)
def test_what_ends_a_command_at_once_is_one_line(quick_start, work, number, line):
    out = {"stdin": subprocess.DEVNULL}
    assert run(quick_start, work, **out) == (-number, line)


def test_where_a_library_aborted_is_told_on_demand(quick_start):
    code, err = run(quick_start, "os.abort()", verbose=True)
    assert code == -signal.SIGABRT and err.startswith("Fatal Python error: Aborted\n") and err.endswith(ABORTED + END)
    assert "in command" in err


@pytest.mark.parametrize(
    ("work", "code", "err"),
    [
        ("pass", 0, ""),
        ("raise ValueError('wrong')", 2, "soups merge: wrong\n"),
        ("raise MemoryError", 2, f"soups merge: out of memory{END}"),
        ("raise SystemExit(0)", 0, ""),
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(20)", 143, "soups merge: stopped; " + END.split("; ")[1]),
        ("os.kill(run.witness._pid, signal.SIGKILL)", 0, ""),
    ],
)
def test_a_witness_says_nothing_of_what_was_said_and_leaves_nothing(quick_start, work, code, err):
    left = "try: os.waitpid(-1, os.WNOHANG)\nexcept ChildProcessError: pass\nelse: code = 99"
    assert run(quick_start, work, after=left) == (code, err)


@pytest.mark.parametrize(
    ("error", "line"),
    [("MemoryError", f"out of memory{END}"), ("ValueError('wrong')", "wrong\n"), ("OSError('gone')", "gone\n")],
)
def test_an_abort_while_a_command_says_what_was_wrong_takes_no_word_away(quick_start, error, line):
    gone = "sys.stderr = type('Gone', (), {'write': lambda *_: os.abort(), 'flush': lambda _: None})()"
    assert run(quick_start, f"{gone}; raise {error}", after="os.abort()") == (-signal.SIGABRT, f"soups merge: {line}")


def limited(words, kilobytes):
    """Return the command that runs another with so much memory at most."""
    return ["sh", "-c", f'ulimit -v {kilobytes} && exec "$@"', "sh", *words]


def test_what_libraries_say_is_kept_where_memory_is_limited(quick_start):
    for work, code, err in [
        ("os.write(2, b'a warning\\n'); print('own', file=sys.stderr)", 0, "own\na warning\n"),
        ("os.write(2, b'terminate called\\n'); os.abort()", -signal.SIGABRT, ABORTED + END),
        ("os.write(2, b'terminate called\\n'); raise MemoryError", 2, f"soups merge: out of memory{END}"),
    ]:
        assert run(quick_start, work, kilobytes=1 << 22) == (code, err)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the limit is not kept")
@pytest.mark.parametrize("kind", ["huggingface", "orbax"])
def test_a_merge_with_little_memory_is_made_or_ends_in_one_line(quick_start, tmp_path, kind):
    for number, name in enumerate("ab"):
        leaves = {f"l{index}.w": np.full((1024, 1280), number, np.float32) for index in range(10)}  # 50 MB
        write_safetensors(tmp_path / f"{name}.safetensors", leaves)
    words = [
        sys.executable,
        "-m",
        "soups",
        "merge",
        "--method",
        "linear",
        "--members",
        "a.safetensors",
        "b.safetensors",
    ]
    codes = set()
    for megabytes in {"huggingface": (200, 250, 300, 1000), "orbax": (700, 1100, 1500)}[kind]:
        done = subprocess.run(
            limited([*words, "--out", f"out{megabytes}", "--format", kind], megabytes * 1000),
            env=quick_start,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        codes.add(done.returncode)
        assert (done.returncode, done.stderr) == (0, "") or done.stderr.count("\n") == 1, megabytes
        assert done.returncode in (0, 2) or done.returncode < 0, done.stderr
        assert done.returncode == 0 or done.stderr.startswith("soups merge: "), done.stderr
    assert codes - {0}
