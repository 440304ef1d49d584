"""Watch from any host who makes which members of a pool, how far they are, and how long it will take."""

import contextlib
import dataclasses
import io
import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from soups import leases
from soups.cli.show import say, table
from soups.files import any_path
from soups.lazy import is_installed
from soups.names import count_of
from soups.pool import Pool
from soups.pool.making import folder_of, makers

COLUMNS = ("member", "status", "where", "step", "loss", "steps/s")


@dataclasses.dataclass(frozen=True)
class Line:
    """Hold what is known of one member: `steps` is None and the rate 0 where they are not."""

    name: str
    status: str
    where: str = ""
    step: int = 0
    steps: int | None = None
    loss: float | None = None
    rate: float = 0.0

    @property
    def cells(self) -> tuple[str, ...]:
        """Return the cells of the table."""
        taken = f"{self.step}/{self.steps}" if self.steps else str(self.step or "")
        loss = "" if self.loss is None else f"{self.loss:.4g}"
        return self.name, self.status, self.where, taken, loss, f"{self.rate:.3g}" if self.rate else ""


def watch(options, run) -> int:
    """Show the members of a pool until all are made, in a table on a terminal and in lines elsewhere."""
    there = folder_of(any_path(options.pool)).exists()
    pool = Pool(options.pool, must_exist=not there)
    if options.every <= 0:
        raise ValueError(f"--every must be a number of seconds above 0, not {options.every:g}")
    with _shown() as show:
        while True:
            pool.refresh()
            lines = status(pool, makers(pool.path), time.time())
            if options.once:
                _print(pool, lines)
                return 0
            show(pool, lines)
            if all(line.status.startswith("made") for line in lines):
                return 0
            time.sleep(options.every)


def status(pool: Pool, found: Sequence[Mapping[str, Any]], now: float) -> list[Line]:
    """Return a line for each member: those that are made, those that are being made, and those that wait."""
    lines = {name: _made(pool, name) for name in pool}
    for maker in found:
        silent, where = now - maker["time"], f"{maker['host']} {maker['pid']}"
        for name, one in maker["members"].items():
            if name not in pool:
                steps = one["steps"] or maker["planned"].get(name)
                lines[name] = Line(name, "being made", where, one["step"], steps, one["loss"], _rate(one))
                if silent > leases.SECONDS:  # the next process that looks for work takes it
                    lines[name] = dataclasses.replace(lines[name], status=f"silent for {silent:.0f} s", rate=0.0)
    for maker in found:
        for name, steps in maker["planned"].items():
            lines.setdefault(name, Line(name, "waiting", steps=steps))
    return list(lines.values())


def _made(pool, name):
    record = pool.record(name)
    losses = [loss for loss in record["metadata"].get("losses") or () if isinstance(loss, int | float)]
    return Line(name, "made" if record["status"] == "ok" else f"made, {record['status']}", loss=(losses or [None])[-1])


def _rate(one):
    if not one.get("at") or not one["first"]:
        return 0.0
    begun, since = one["first"]
    return (one["step"] - begun) / (one["at"] - since) if one["at"] > since else 0.0


def seconds_left(lines: Sequence[Line]) -> float | None:
    """Return how long the steps that are left take at the rate of now; None where rates or steps are not known.

    A member whose steps are not known yet is taken for as long as the mean of those that are.
    """
    left = [line for line in lines if not line.status.startswith("made")]
    known = [line.steps for line in lines if line.steps]
    rate = sum(line.rate for line in left)
    if not left or not known or not rate:
        return None if left else 0.0
    mean = sum(known) / len(known)
    return sum(max(0.0, (line.steps or mean) - line.step) for line in left) / rate


def summary(lines: Sequence[Line]) -> str:
    """Say in one line how many members are made, and when all will be."""
    counts = {what: sum(line.status.startswith(what) for line in lines) for what in ("made", "being made", "silent")}
    rate, left = sum(line.rate for line in lines), seconds_left(lines)
    told = [f"{counts['made']}/{count_of(len(lines), 'member')} made", f"{counts['being made']} being made"]
    told += [f"{counts['silent']} silent"] if counts["silent"] else []
    told += [f"{rate:.3g} steps/s"] if rate else []
    if counts["made"] < len(lines):
        told.append("ETA unknown" if left is None else f"ETA {_duration(left)}")
    return ", ".join(told)


def _duration(seconds):
    if seconds < 120:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _print(pool, lines):
    table(f"{pool.path}: {summary(lines)}", COLUMNS, [line.cells for line in lines], COLUMNS[3:])


@contextlib.contextmanager
def _shown():
    if not (sys.stdout.isatty() and is_installed("rich")):
        yield lambda pool, lines: (say(summary(lines)), sys.stdout.flush())
        return
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False, vertical_overflow="visible") as live:

        def show(pool, lines):
            written = io.StringIO()
            with contextlib.redirect_stdout(written):
                _print(pool, lines)
            live.update(Text(written.getvalue()), refresh=True)

        yield show
