"""Tell of a process whether it still runs, and let the processes of a run watch over each other, by files."""

import contextlib
import functools
import json
import os
import pathlib
import socket
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from soups.files import made_folder, replace_file
from soups.lazy import jax
from soups.processes import on_first_process
from soups.progress import say

BEAT = 3.0  # seconds from one sign of life to the next
SILENT = 30.0  # seconds after which a process that gives none is taken for dead
_SLOW = 0.2  # of a step, which is what a process must wait for its own batches to be called a straggler
_watches: list["Watch"] = []


@functools.cache
def place() -> str | None:
    """Return what names this machine and its processes' numbers until it is started anew; None where nothing does."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def started(pid: int) -> str:
    """Return when a process of this machine was started, "" if none has this number: numbers are taken again."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return ""


def described() -> dict[str, Any]:
    """Return what tells this process from all others."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": started(os.getpid()), "place": place()}


def has_ended(there: dict[str, Any]) -> bool:
    """Say whether it is sure that a described process has ended: it was one of this machine, and is gone."""
    return place() is not None and there["place"] == place() and started(there["pid"]) != there["started"]


class Silence:
    """Know how long, by the clock here, something has been as it is."""

    def __init__(self):
        """Know nothing yet."""
        self._seen: dict[Any, tuple[Any, float]] = {}

    def seconds(self, key: Any, value: Any) -> float:
        """Return how long the value of a key has been this one."""
        now = time.monotonic()
        if key not in self._seen or self._seen[key][0] != value:
            self._seen[key] = value, now
        return now - self._seen[key][1]


def content(path: pathlib.Path) -> dict[str, Any]:
    """Return the JSON object of a file; {} of one that is missing or is being written."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


# --- Processes of one run ---------------------------------------------------------------------------------------------


class Watch:
    """Return signs of life in a file beside those of the other processes of a run, and look at theirs."""

    def __init__(
        self,
        folder: pathlib.Path,
        name: str,
        index: int,
        count: int,
        lost: Callable[[str], None],
        say: Callable[[str], None] = say,
        seen: Callable[[str], None] = lambda who: None,
    ):
        """Take a name of the run, which process this is of how many, and what is called when one is lost or slow.

        `seen` is called with where process 0 is, without which JAX aborts all others.
        """
        self.index, self.count, self._name = index, count, name
        self._folder, self._lost, self._say, self._seen = folder, lost, say, seen
        self._beat, self._fed, self._steps, self._since = 0, 0.0, 0, time.monotonic()
        self._silence, self._done, self._told, self.found = Silence(), threading.Event(), set(), None
        self._known = {}

    @contextlib.contextmanager
    def watching(self) -> Iterator["Watch"]:
        """Watch until the end, and then tell the others how this process ended."""
        self._give()
        thread = threading.Thread(target=self._watch, name="watching processes", daemon=True)
        thread.start()
        _watches.append(self)
        ended = "with an error"
        try:
            yield self
            ended = "well"
        finally:
            _watches.remove(self)
            self._done.set()
            thread.join()
            self._give(ended)

    def fed(self, seconds: float) -> None:
        """Take note of how long a step waited for the batches of this process."""
        self._fed, self._steps = self._fed + seconds, self._steps + 1

    def who_is_lost(self, seconds: float) -> str | None:
        """Return which process was lost, if it is found out in time."""
        deadline = time.monotonic() + seconds
        while self.found is None and time.monotonic() < deadline:
            time.sleep(0.1)
        return self.found

    def _path(self, index):
        return self._folder / f"{self._name}-{index}.json"

    def _give(self, ended=None):
        self._beat += 1
        seconds, self._since = time.monotonic() - self._since, time.monotonic()
        told = described() | {"beat": self._beat, "ended": ended, "steps": self._steps, "fed": self._fed}
        self._fed, self._steps = 0.0, 0
        with contextlib.suppress(OSError):  # a store that is away for a moment
            made_folder(self._folder)
            replace_file(self._path(self.index), json.dumps(told | {"seconds": seconds}))

    def _watch(self):
        while not self._done.wait(BEAT):
            self._give()
            others = {i: content(self._path(i)) for i in range(self.count) if i != self.index}
            for index, there in others.items():
                if index == 0 and there and not self._known.get(0):
                    self._seen(f"process 0 on {there['host']} (pid {there['pid']})")
                self._known[index] = there or self._known.get(index, {})
                if self.found is None and (why := self._problem(index, there)):
                    self.found = f"process {index}{self._whereabouts(index)} {why}"
                    self._lost(self.found)
            if self.index == 0:
                self._name_stragglers(others | {0: content(self._path(0))})

    def _whereabouts(self, index):
        there = self._known[index]
        return f" on {there['host']} (pid {there['pid']})" if there else ""

    def _problem(self, index, there):
        silent = self._silence.seconds(index, there.get("beat"))
        if there.get("ended"):
            return "ended with an error" if there["ended"] != "well" else None
        if there and has_ended(there):
            return "died"
        return f"gave no sign of life for {silent:.0f} s" if silent > SILENT else None

    def _name_stragglers(self, found):
        found = {i: one for i, one in found.items() if one.get("steps")}
        waits = {i: one["fed"] / one["steps"] for i, one in found.items()}
        for index, wait in waits.items() if len(waits) == self.count else ():
            others = statistics.median(one for i, one in waits.items() if i != index)
            step = found[index]["seconds"] / found[index]["steps"]
            if wait > 2 * others and wait - others > _SLOW * step and index not in self._told:
                self._told.add(index)
                self._known.setdefault(index, found[index])
                self._say(
                    f"process {index}{self._whereabouts(index)} is a straggler: each step waits {wait:.2g} s for its "
                    f"batches, and {others:.2g} s for those of the others"
                )


@contextlib.contextmanager
def watched(
    folder: pathlib.Path, lost: Callable[[str], None], seen: Callable[[str], None] = lambda who: None
) -> Iterator[None]:
    """Watch over all JAX processes; `lost` is called with the name of one that was lost, which most likely ends this.

    `seen` is called with where process 0 is, without which JAX aborts all others before they can say anything. Where
    this one fails because another has ended, as a collective does whose peer is gone, the error names that one.
    """
    if jax.process_count() == 1:
        yield
        return
    name = on_first_process(lambda: uuid.uuid4().hex)
    with Watch(folder, name, jax.process_index(), jax.process_count(), lost, seen=seen).watching() as watch:
        try:
            yield
        except RuntimeError as error:  # of JAX
            if found := watch.who_is_lost(SILENT + 3 * BEAT):
                raise ChildProcessError(found) from error
            raise


def fed(seconds: float) -> None:
    """Take note of how long a step waited for the batches of this process, where others watch over it."""
    for watch in _watches:
        watch.fed(seconds)
