"""Show how far a run is: a bar on a terminal, plain lines elsewhere, by the first process alone."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextlib.contextmanager
def progress(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Give a function that reports `n` more finished units, with rate and time to go."""
    show = _bar if sys.stdout.isatty() and jax.process_index() == 0 else _lines
    with show(what, total, unit) as advance:
        yield advance


def say(text: str) -> None:
    """Print a line at once."""
    if jax.process_index() == 0:
        print(text, flush=True)


@contextlib.contextmanager
def _bar(what, total, unit):
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit}, {{task.fields[rate]}}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(elapsed_when_finished=False),
    ]
    start, done = time.monotonic(), 0
    with Progress(*columns, console=Console()) as bars:
        task = bars.add_task(what, total=total, rate="")

        def advance(number):
            nonlocal done
            done += number
            bars.update(task, advance=number, rate=f"{done / (time.monotonic() - start):.3g}/s")

        yield advance


@contextlib.contextmanager
def _lines(what, total, unit):
    start, done = time.monotonic(), 0

    def advance(number):
        nonlocal done
        done += number
        elapsed = time.monotonic() - start
        rate = done / max(elapsed, 1e-9)
        left = f"{(total - done) / rate:.0f} s" if rate else "?"
        say(f"{what}: {done}/{total} {unit}, {elapsed:.0f} s, {rate:.3g}/s, ETA {left}")

    yield advance
