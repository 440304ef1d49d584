"""Test pools in folders whose file system has no locks for all hosts: leases are in their place."""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from soups import Pool, files, leases
from soups.files import has_locks, locked

CHILD = """
import re, sys, numpy as np
from soups import Pool, files, leases
files._SHARED, leases.SECONDS = re.compile(".*"), 2.0
pool, die = Pool(sys.argv[1]), sys.argv[2]
if die == "lock":
    write = type(pool._records).write
    type(pool._records).write = lambda *arguments: __import__("os").kill(__import__("os").getpid(), 9)
sys.stdin.readline()
for name in sys.argv[3:]:
    try:
        pool.add(name, {"w": np.full(4, len(name), np.float32)})
        print("added", name, flush=True)
    except ValueError:
        print("not", name, flush=True)
"""


@pytest.fixture(autouse=True)
def shared(monkeypatch):
    """Take every file system for one that hosts share; leases end after two seconds."""
    monkeypatch.setattr(files, "_SHARED", re.compile(".*"))
    monkeypatch.setattr(leases, "SECONDS", 2.0)


def child(quick_start, *words):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", CHILD, *map(str, words)], env=quick_start, **pipes)


def test_of_writers_of_one_name_one_wins(tmp_path, quick_start):
    path = tmp_path / "pool"
    writers = [child(quick_start, path, "never", "same", *own) for own in ("ab", "cd")]
    for writer in writers:
        writer.stdin.write("\n")
        writer.stdin.flush()
    said = "".join(writer.communicate()[0] for writer in writers)
    assert (said.count("added same"), said.count("not same")) == (1, 1)
    pool = Pool(path)
    assert sorted(pool) == ["a", "b", "c", "d", "same"] and not any(pool.verify().values())
    assert not [name for name in os.listdir(path) if name.startswith(".lock")]
    assert not [name for name in os.listdir(path / "members") if ".adding" in name]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_what_a_killed_writer_held_is_free(elsewhere, tmp_path, quick_start, monkeypatch):
    pool = Pool(tmp_path / "pool")
    pool.add("first", {"w": np.zeros(4, np.float32)})
    with child(quick_start, pool.path, "lock", "killed") as process:
        process.communicate("\n")
    assert process.returncode == -signal.SIGKILL and (pool.path / ".lock").exists()
    if elsewhere:  # no process knows that of another host has ended
        monkeypatch.setattr(leases, "has_ended", lambda there: False)
    begun = time.monotonic()
    pool.add("killed", {"w": np.ones(4, np.float32)})
    assert (time.monotonic() - begun > 1) == elsewhere
    assert list(Pool(pool.path)) == ["first", "killed"]
    (orphan, _) = pool.sweep_orphans()
    assert orphan.startswith("members/killed-") and pool.sweep_orphans() == []
    assert not any(pool.verify().values()) and not (pool.path / ".lock").exists()


def test_a_member_that_fails_leaves_nothing_and_a_place_is_held_by_one(tmp_path, monkeypatch):
    pool = Pool(tmp_path / "pool")
    monkeypatch.setattr("soups.pool._manifest.check_reserved", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pool.add("a", {"w": np.ones(2, np.float32)})
    assert os.listdir(pool.path / "members") == []
    with (
        locked(tmp_path / "out"),
        pytest.raises(BlockingIOError, match=r"another merge is writing to .*out: process \d+ on"),
        locked(tmp_path / "out"),
    ):
        pytest.fail("two hold it")
    assert not (tmp_path / ".out.lock").exists()


@pytest.mark.parametrize(
    ("kind", "locks"), [("ext4", True), ("nfs4", False), ("fuse.sshfs", False), ("fuseblk", True), ("lustre", False)]
)
def test_file_systems_that_hosts_share_have_no_locks(kind, locks, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(files, "_file_system", lambda path: kind)
    assert has_locks(files.local_path("x")) == locks
