"""Show how far a run is: a bar on a terminal, plain lines elsewhere, by the first process alone."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from soups.lazy import jax


@contextlib.contextmanager
def progress(what: str, total: int, unit: str, *, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Return a function that reports `n` more finished units, with rate and time to go; an earlier run finished `done`.

    Both are measured from the first report on, before which programs are compiled; until there is a second, from the
    start.
    """
    show = _bar if sys.stdout.isatty() and _is_first() else _lines
    with show(what, total, unit, done) as advance:
        yield advance


def say(text: str) -> None:
    """Print a line at once."""
    if _is_first():
        print(text, flush=True)


def _is_first():
    # who has not imported JAX has no other processes, and a merge of files shall not wait for it
    return "jax" not in sys.modules or jax.process_index() == 0


@contextlib.contextmanager
def _bar(what, total, unit, done):
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit}, {{task.fields[rate]}}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(elapsed_when_finished=False),
    ]
    pace = _Pace(done)
    with Progress(*columns, console=Console()) as bars:
        task = bars.add_task(what, total=total, completed=done, rate="")

        def advance(number):
            pace.add(number)
            bars.update(task, advance=number, rate=f"{pace.rate:.3g}/s")  # which measures its own time to go so, too

        yield advance


@contextlib.contextmanager
def _lines(what, total, unit, done):
    pace = _Pace(done)
    if done:
        say(f"{what}: {done}/{total} {unit} were finished before")

    def advance(number):
        pace.add(number)
        left = f"{(total - pace.done) / pace.rate:.0f} s" if pace.rate else "?"
        say(f"{what}: {pace.done}/{total} {unit}, {pace.elapsed:.0f} s, {pace.rate:.3g}/s, ETA {left}")

    yield advance


class _Pace:
    """Count units and how fast they are finished."""

    def __init__(self, done):
        self._start = time.monotonic()
        self._begun, self._first = (done, 0.0), None
        self.done, self.elapsed, self.rate = done, 0.0, 0.0

    def add(self, number):
        self.done += number
        self.elapsed = time.monotonic() - self._start
        before, since = self._first or self._begun
        self.rate = (self.done - before) / max(self.elapsed - since, 1e-9)
        if self._first is None and number:
            self._first = self.done, self.elapsed
