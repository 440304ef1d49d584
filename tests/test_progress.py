"""Test what is printed while a run goes on, on a terminal and elsewhere."""

import os
import pty
import re
import subprocess
import sys

import pytest

from soups import progress as module
from soups.progress import counted, progress, watched

PROGRAM = """
import time
from soups.progress import progress, say
with progress("sweep", 3, "members") as advance:
    say("a line")
    advance(1)
    time.sleep(0.2)
    advance(2)
"""


def printed(reports, capsys, monkeypatch, **options):
    """Report (time, units) one by one, and return what was printed."""
    clock = iter([0.0, *(time for time, _ in reports)])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with progress("sweep", unit="members", **options) as advance:
        for _, units in reports:
            advance(units)
    return capsys.readouterr().out.splitlines()


def test_lines_have_count_rate_and_time_to_go(capsys, monkeypatch):
    assert printed([(4, 2), (10, 3), (16, 3)], capsys, monkeypatch, total=8) == [
        "sweep: 2/8 members, 4 s, ?, ETA ?",
        "sweep: 5/8 members, 10 s, 0.5/s, ETA 6 s",
        "sweep: 8/8 members, 16 s, 0.5/s, ETA 0 s",
    ]


def times_to_go(lines):
    return [line.rpartition("ETA ")[2] for line in lines]


def test_what_comes_before_the_first_report_is_not_counted_in_the_time_to_go(capsys, monkeypatch):
    # nothing was there when it was started; then 40 s of compilation
    reports = [(1, 0), (41, 1), (46, 1), (51, 1), (56, 1)]
    assert times_to_go(printed(reports, capsys, monkeypatch, total=10)) == ["?", "?", "328 s", "35 s", "30 s"]


def test_members_that_are_finished_together_do_not_make_the_time_to_go_swing(capsys, monkeypatch):
    """Test the sweep of 24 members in programs of 8, 700 s each, whose time to go was 704 s, then 3 s."""
    reports = [(700 * (1 + done // 8) + 0.1 * (done % 8), 1) for done in range(24)]
    shown = times_to_go(printed(reports, capsys, monkeypatch, total=24))
    assert shown[:8] == ["?"] * 8 and shown[-1] == "0 s"
    for done, text in enumerate(shown[8:-1], start=9):
        assert float(text.removesuffix(" s")) == pytest.approx((24 - done) * 700 / 8, rel=0.01)


def test_what_an_earlier_run_has_finished_is_not_counted_in_the_rate(capsys, monkeypatch):
    assert printed([(10, 1), (21, 1)], capsys, monkeypatch, total=8, done=5) == [
        "sweep: 5/8 members were finished before",
        "sweep: 6/8 members, 10 s, ?, ETA ?",
        "sweep: 7/8 members, 21 s, 0.1/s, ETA 10 s",
    ]


def test_many_units_have_a_line_a_second_and_one_at_the_end(capsys, monkeypatch):
    reports = [(0.3 * number, 1) for number in range(1, 102)]
    lines = printed(reports, capsys, monkeypatch, total=101)
    assert [int(line.split()[1].split("/")[0]) for line in lines] == [*range(1, 101, 4), 101]


def test_the_calls_of_a_function_are_counted(capsys):
    with watched(max, "barriers", 2, "evaluations") as call:
        assert call(1, 2) == 2 and call(4, 3) == 4
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == [
        "barriers: 1/2 evaluations",
        "barriers: 2/2 evaluations",
    ]


def test_items_are_counted_when_they_are_worked_on(capsys):
    taken = []
    for item in counted("ab", "distilling", 2, "steps"):
        assert len(capsys.readouterr().out.splitlines()) == len(taken[:1])
        taken.append(item)
    assert taken == ["a", "b"] and capsys.readouterr().out.startswith("distilling: 2/2 steps, ")


def test_a_terminal_shows_a_bar():
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        printed = read_to_end(ours)
    os.close(ours)
    assert process.returncode == 0, printed
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", printed)
    assert "a line" in text
    last = text.splitlines()[-1]
    assert re.search(r"sweep ━+ 3/3 members, [0-9.e+]+/s 0:00:\d\d ETA 0 s", last), text


def read_to_end(terminal):
    chunks = []
    while True:
        try:
            chunk = os.read(terminal, 4096)
        except OSError:  # Linux's way to say that the other side is closed
            chunk = b""
        if not chunk:
            return b"".join(chunks).decode()
        chunks.append(chunk)


def test_what_is_finished_shows_nothing(capsys):
    with progress("sweep", 8, "members", done=8):
        pass
    assert capsys.readouterr().out == ""
