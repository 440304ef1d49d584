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
        "sweep: 5/8 members, 10 s, 0.5/s, ETA 6 s",
        "sweep: 8/8 members, 16 s, 0.5/s",
    ]


def test_a_note_is_shown_before_the_time_to_go(capsys):
    with progress("sweep", 2, "steps") as advance:
        advance(1, "loss 0.9")
        advance(1, "loss 0.5")
    assert re.fullmatch(r"sweep: 2/2 steps, 0 s, [0-9.e+]+/s, loss 0.5\n", capsys.readouterr().out)


def times_to_go(lines):
    return [line.partition(", ETA ")[2] for line in lines]


def test_what_comes_before_the_first_report_is_not_counted_in_the_time_to_go(capsys, monkeypatch):
    # nothing was there when it was started; then 40 s of compilation
    reports = [(1, 0), (41, 1), (46, 1), (51, 1), (56, 1)]
    assert times_to_go(printed(reports, capsys, monkeypatch, total=10)) == ["", "328 s", "35 s", "30 s"]


def test_what_was_there_at_once_does_not_promise_that_the_rest_is(capsys, monkeypatch):
    reports = [(0.13, 1), (11, 1), (22, 1), (33, 1)]  # the first was kept by an earlier run
    assert times_to_go(printed(reports, capsys, monkeypatch, total=6)) == ["22 s", "33 s", "22 s"]


def test_members_that_are_finished_together_do_not_make_the_time_to_go_swing(capsys, monkeypatch):
    """Test the sweep of 24 members in programs of 8, 700 s each, whose time to go was 704 s, then 3 s."""
    reports = [(700 * (1 + done // 8) + 0.1 * (done % 8), 1) for done in range(24)]
    lines = printed(reports, capsys, monkeypatch, total=24)
    assert lines[0] == "sweep: 1/24 members, 700 s" and lines[-1] == "sweep: 24/24 members, 2101 s, 0.0114/s"
    for done, text in zip((9, 17), times_to_go(lines)[1:3], strict=True):
        assert float(text.removesuffix(" s")) == pytest.approx((24 - done) * 700 / 8, rel=0.01)


def test_what_an_earlier_run_has_finished_is_not_counted_in_the_rate(capsys, monkeypatch):
    assert printed([(10, 1), (21, 1)], capsys, monkeypatch, total=8, done=5) == [
        "sweep: 5/8 members were finished before",
        "sweep: 6/8 members, 10 s",
        "sweep: 7/8 members, 21 s, 0.1/s, ETA 10 s",
    ]


def test_there_is_a_line_every_five_seconds_and_one_at_the_end(capsys, monkeypatch):
    reports = [(0.3 * number, 1) for number in range(1, 52)]
    lines = printed(reports, capsys, monkeypatch, total=51)
    assert [int(line.split()[1].split("/")[0]) for line in lines] == [17, 34, 51]
    assert not any("?" in line for line in lines)


def test_the_calls_of_a_function_are_counted(capsys):
    with watched(max, "barriers", 2, "evaluations") as call:
        assert call(1, 2) == 2 and call(4, 3) == 4
    assert capsys.readouterr().out.startswith("barriers: 2/2 evaluations, ")


def test_items_are_counted_when_they_are_worked_on(capsys):
    taken = []
    for item in counted("ab", "distilling", 2, "steps"):
        assert not capsys.readouterr().out
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
    assert re.search(r"sweep ━+ 3/3 0:00:\d\d members, [0-9.e+]+/s", last), text


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
