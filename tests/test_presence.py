"""Let processes of a run watch over each other: here they are watches in threads, with short times."""

import os
import time

import pytest

from soups import presence
from soups.presence import Watch


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Return and look for signs of life quickly."""
    monkeypatch.setattr(presence, "BEAT", 0.02)
    monkeypatch.setattr(presence, "SILENT", 0.3)


def pair(folder, **options):
    """Return two watches of a run, and the list of what each of them finds lost."""
    found = [[], []]
    return [Watch(folder, "run", index, 2, found[index].append, **options) for index in range(2)], found


def until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_processes_that_end_well_are_not_missed(tmp_path):
    (first, second), found = pair(tmp_path)
    with first.watching():
        with second.watching():
            time.sleep(0.1)
        time.sleep(0.6)
    assert found == [[], []]


def test_one_that_fails_is_named_at_once(tmp_path):
    (first, second), found = pair(tmp_path)
    with first.watching():
        with pytest.raises(OSError, match="disk"), second.watching():
            time.sleep(0.1)
            raise OSError("disk")
        assert first.who_is_lost(10) == f"process 1 on {os.uname().nodename} (pid {os.getpid()}) ended with an error"
    assert len(found[0]) == 1 and not found[1]


def test_one_that_is_silent_is_named(tmp_path):
    (first, second), found = pair(tmp_path)
    with first.watching():
        second._give()  # and never again
        until(lambda: found[0])
    assert "process 1 on " in found[0][0] and "gave no sign of life for 0" in found[0][0]
    (first, _), found = pair(tmp_path / "never")
    with first.watching():
        until(lambda: found[0])
    assert found[0][0].startswith("process 1 gave no sign of life")


def test_one_of_this_machine_that_is_gone_is_named_before_the_time(tmp_path, monkeypatch):
    monkeypatch.setattr(presence, "SILENT", 1000.0)
    (first, second), found = pair(tmp_path)
    with first.watching():
        monkeypatch.setattr(presence, "described", lambda: there | {"started": "another"})
        there = {"host": "here", "pid": os.getpid(), "place": presence.place()}
        second._give()
        until(lambda: found[0])
    assert found[0] == [f"process 1 on here (pid {os.getpid()}) died"]


def test_a_straggler_is_named_once(tmp_path):
    told = []
    (first, second), _ = pair(tmp_path, say=told.append)
    with first.watching(), second.watching():
        for _ in range(30):
            first.fed(0.0001)
            second.fed(0.009)
            time.sleep(0.01)
    assert len(told) == 1 and told[0].startswith("process 1 on ") and "straggler: each step waits 0.009 s" in told[0]


def test_one_process_has_nobody_to_watch(tmp_path):
    with presence.watched(tmp_path, pytest.fail):
        presence.fed(1.0)
    assert not list(tmp_path.iterdir())
