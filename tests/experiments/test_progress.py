"""Test what is printed while a run goes on, on a terminal and elsewhere."""

import os
import pty
import re
import subprocess
import sys

from soups.experiments import progress as module
from soups.experiments.progress import progress

PROGRAM = """
from soups.experiments.progress import progress, say
with progress("sweep", 3, "members") as advance:
    say("a line")
    advance(1)
    advance(2)
"""


def test_lines_have_count_rate_and_time_to_go(capsys, monkeypatch):
    clock = iter([100.0, 104.0, 110.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with progress("sweep", 8, "members") as advance:
        advance(2)
        advance(3)
    assert capsys.readouterr().out.splitlines() == [
        "sweep: 2/8 members, 4 s, 0.5/s, ETA 12 s",
        "sweep: 5/8 members, 10 s, 0.5/s, ETA 6 s",
    ]


def test_what_comes_before_the_first_report_is_not_counted_in_the_time_to_go(capsys, monkeypatch):
    clock = iter([0.0, 1.0, 41.0, 43.0, 45.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with progress("sweep", 10, "members") as advance:
        advance(0)  # nothing was there when it was started; then 40 s of compilation
        advance(1)
        advance(1)
        advance(1)
    assert [line.partition("s, ")[2].partition("s, ")[2] for line in capsys.readouterr().out.splitlines()] == [
        "0/s, ETA ?",
        "0.0244/s, ETA 369 s",
        "0.5/s, ETA 16 s",
        "0.5/s, ETA 14 s",
    ]


def test_what_an_earlier_run_has_finished_is_not_counted_in_the_rate(capsys, monkeypatch):
    clock = iter([0.0, 10.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with progress("sweep", 8, "members", done=5) as advance:
        advance(1)
    assert capsys.readouterr().out.splitlines() == [
        "sweep: 5/8 members were finished before",
        "sweep: 6/8 members, 10 s, 0.1/s, ETA 20 s",
    ]


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
    assert re.search(r"sweep ━+ 3/3 members, [0-9.e+]+/s 0:00:\d\d ETA 0:00:00", last), text


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
