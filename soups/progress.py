"""Show how far a run is: a bar on a terminal, plain lines elsewhere, by the first process alone."""

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator

from soups.lazy import is_installed, jax

_EVERY = 5  # seconds from one line to the next
_NOTEBOOK = 110  # characters of a line below a cell, which wraps longer ones
_TOGETHER = 0.1  # reports that follow each other within this part of the time before them came together


@contextlib.contextmanager
def progress(what: str, total: int, unit: str, *, done: int = 0) -> Iterator[Callable[..., None]]:
    """Return `advance(n, note="")`, which reports `n` more finished units; an earlier run finished `done`.

    Shown are rate, note (such as a loss) and time to go as far as they are known; in lines, one every few seconds.

    Units that were finished together, as the members of one program are, count as finished over the time before them;
    so the time to go is known from the second such report on. What comes before the first one, when programs are
    compiled, counts only until there is a better measure.
    """
    if done >= total:  # nothing is left to be shown
        yield lambda number, note="": None
        return
    show = _bar if sys.stdout.isatty() and is_first() and is_installed("rich") else _lines
    with show(what, total, unit, done) as advance:
        yield advance


def counted(items: Iterable, what: str, total: int, unit: str) -> Iterator:
    """Return the items one by one, and show how many of `total` were taken and worked on."""
    with progress(what, total, unit) as advance:
        for item in items:
            yield item
            advance(1)


@contextlib.contextmanager
def watched(function: Callable, what: str, total: int, unit: str) -> Iterator[Callable]:
    """Return the function, and show how many of its `total` calls are done."""
    with progress(what, total, unit) as advance:

        def call(*arguments):
            result = function(*arguments)
            advance(1)
            return result

        yield call


def say(text: str) -> None:
    """Print a line at once."""
    if is_first():
        print(text, flush=True)


def terminal_width() -> int | None:
    """Return how wide printed lines may be: as COLUMNS says, the terminal or a notebook; None elsewhere, as in a pipe.

    What reads a pipe (grep, cut, a log) wants a row in one line.
    """
    if os.environ.get("COLUMNS", "").isdecimal() or sys.stdout.isatty():
        return shutil.get_terminal_size().columns
    return _NOTEBOOK if "ipykernel" in sys.modules else None


def is_first() -> bool:
    """Say whether this is the first of several JAX processes, which speaks for all of them, or the only one."""
    # who has not imported JAX has no other processes, and a merge of files shall not wait for it
    return "jax" not in sys.modules or jax.process_index() == 0


@contextlib.contextmanager
def _bar(what, total, unit, done):
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    text = TextColumn("{task.fields[text]}")
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), text]
    pace = _Pace(total, done)
    with Progress(*columns, console=Console()) as bars:
        task = bars.add_task(what, total=total, completed=done, text=unit)

        def advance(number, note=""):
            pace.add(number)
            bars.update(task, advance=number, text=", ".join([unit, *pace.said(note)]))

        yield advance


@contextlib.contextmanager
def _lines(what, total, unit, done):
    pace = _Pace(total, done)
    if done:
        say(f"{what}: {done}/{total} {unit} were finished before")

    shown = 0.0

    def advance(number, note=""):
        nonlocal shown
        pace.add(number)
        if pace.elapsed < shown + _EVERY and pace.done < total:
            return
        shown = pace.elapsed
        say(", ".join([f"{what}: {pace.done}/{total} {unit}", f"{pace.elapsed:.0f} s", *pace.said(note)]))

    yield advance


class _Pace:
    """Count units and how fast they are finished, by the groups of reports that came together and are complete."""

    def __init__(self, total, done):
        self._total, self._before, self.done = total, done, done
        self._start, self.elapsed, self._rate = time.monotonic(), 0.0, 0.0
        self._begin = self._end = self._gap = None  # of the newest group: when it began, ended, and was waited for
        self._first = None  # when the first group ended, and how many units there were

    def add(self, number):
        now = self.elapsed = time.monotonic() - self._start
        if number and self._begin is None:
            self._begin = self._gap = now
        elif number and now - self._begin > _TOGETHER * self._gap:
            self._close(number)
            self._begin, self._gap = now, now - self._begin
        if number:
            self._end = now
        self.done += number

    def _close(self, number):
        if self._first is None:
            self._first = self._end, self.done
            units, seconds = self.done - self._before, self._begin
            both = units + max(number, units)  # with a second group like it, which ends now
            if 2 * both * seconds < units * self.elapsed:  # the first was there at once, as what is kept is
                units, seconds = both, self.elapsed
        else:
            units, seconds = self.done - self._first[1], self._begin - self._first[0]
        self._rate = units / max(seconds, 1e-9)

    def said(self, note):
        """List what is known: the rate, the caller's own note, and the time to go."""
        if self.done >= self._total and not self._rate:
            self._rate = (self.done - self._before) / max(self.elapsed, 1e-9)
        rate = [f"{self._rate:.3g}/s"] if self._rate else []
        left = [f"ETA {(self._total - self.done) / self._rate:.0f} s"] if rate and self.done < self._total else []
        return [*rate, *[note][: len(note)], *left]
