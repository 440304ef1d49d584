"""Test that one merge at a time writes to a place."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from soups.merging.lock import locked

HOLD = """
import pathlib, sys, time
from soups.merging.lock import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Give a process that holds the lock of `out`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.fixture
def recipe(models):
    return {"merge_method": "passthrough", "models": [models["a"]]}


def test_the_second_says_who_holds_the_place_and_a_killed_one_holds_nothing(holder, recipe, small, tmp_path):
    with pytest.raises(BlockingIOError, match=rf"another merge writes to .*out: process {holder.pid} on \S+, since \d"):
        small.merge(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    small.merge(recipe, tmp_path / "other")
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / ".out.lock").exists()  # but nobody holds it
    small.merge(recipe, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


def test_a_failed_merge_leaves_the_place_free(recipe, small, tmp_path):
    def fail(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small.merge(recipe, tmp_path / "out", progress=fail)
    assert not (tmp_path / ".out.lock").exists()
    small.merge(recipe, tmp_path / "out")


def test_threads_take_turns_without_ever_being_two(tmp_path):
    inside, most, refused = [], [], []

    def work():
        for _ in range(200):
            try:
                with locked(tmp_path / "out"):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
            except BlockingIOError:
                refused.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) + len(refused) == 800 and max(most) == 1
