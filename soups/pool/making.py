"""Say beside a pool who makes which of its members, and how far it is: for processes on any hosts, and who watches.

In the folder `.POOL.making` each process that makes members has a file, which a thread of it renews every few seconds
with the steps that were taken. A claim on a member is a file that is created where there is none, so one process alone
succeeds, and it holds as long as that process renews its own: a lease. Who finds that a file has not changed for the
length of the lease, by its own clock, takes the claim over by creating the next file in turn, in which again one
process alone succeeds. No clocks of two hosts are compared and nothing is locked, so any shared folder will do.
"""

import contextlib
import dataclasses
import json
import pathlib
import re
import threading
import time
import urllib.parse
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from soups.files import create_file, made_folder, replace_file
from soups.presence import Silence, content, described, has_ended

LEASE = 45.0  # seconds after which a process that did not renew its file is taken for dead
RENEWED = 5.0  # seconds from one renewal to the next
_CLAIM = re.compile(r"(.+)\.(\d+)\.claim")
_here: dict[str, "Maker"] = {}  # the makers of this process, by their tokens


def folder_of(pool: pathlib.Path) -> pathlib.Path:
    """Return the folder in which the makers of a pool say what they do."""
    return pool.with_name(f".{pool.name}.making")


@dataclasses.dataclass
class Maker:
    """Hold what one process makes for a pool, its claims among it, and say so in a file that a thread renews."""

    pool: pathlib.Path
    planned: dict[str, int | None] = dataclasses.field(default_factory=dict)
    token: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
    members: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        """Know the folder, and nothing yet of other makers."""
        self.folder, self._silence, self._claims = folder_of(self.pool), Silence(), {}
        self._beat, self._done, self._lock = 0, threading.Event(), threading.Lock()

    @contextlib.contextmanager
    def present(self) -> Iterator["Maker"]:
        """Be there: write the file, renew it until the end, and then take it and all claims away."""
        made_folder(self.folder)
        self._renew()
        thread = threading.Thread(target=self._renewing, name=f"renewing {self.token[:6]}", daemon=True)
        thread.start()
        _here[self.token] = self
        try:
            yield self
        finally:
            del _here[self.token]
            self._done.set()
            thread.join()
            for name in list(self._claims):
                self.release(name)
            self._path(self.token).unlink(missing_ok=True)
            self._sweep()
            with contextlib.suppress(OSError):  # others are there
                self.folder.rmdir()

    def begin(self, name: str, steps: int | None = None) -> None:
        """Say that a member is being made."""
        self.members[name] = {"begun": time.time(), "first": None, "step": 0, "steps": steps, "loss": None}

    def note(self, name: str, step: int, steps: int | None = None, loss: float | None = None) -> None:
        """Say how many steps a member has taken; the file tells it when it is renewed."""
        if (one := self.members.get(name)) is not None:
            one["first"] = one["first"] or [step, time.time()]
            now = {"step": step, "loss": loss, "at": time.time()}
            self.members[name] = one | now | ({} if steps is None else {"steps": steps})

    def end(self, name: str) -> None:
        """Say that a member is not being made any more."""
        self.members.pop(name, None)

    # --- Claims -------------------------------------------------------------------------------------------------------

    def claim(self, name: str) -> bool:
        """Claim a member, and say whether it is this process's: nobody alive has claimed it."""
        found = self._claimed(name)
        if found:
            holder = content(found[max(found)]).get("maker", "")
            if not self._dead(holder):
                return False
            self._path(holder).unlink(missing_ok=True)  # so that all of its claims are free
        place = self.folder / f"{urllib.parse.quote(name, safe='')}.{max(found, default=-1) + 1}.claim"
        try:
            create_file(place, json.dumps({"maker": self.token}))
        except FileNotFoundError:  # the last of the others has just taken the folder away
            made_folder(self.folder)
            self._renew()
            return self.claim(name)
        except FileExistsError:
            return False
        for old in found.values():
            old.unlink(missing_ok=True)
        self._claims[name] = place
        self.begin(name)
        return True

    def release(self, name: str) -> None:
        """Return up a claim."""
        self._claims.pop(name).unlink(missing_ok=True)
        self.end(name)

    def _claimed(self, name):
        quoted = urllib.parse.quote(name, safe="")
        found = (_CLAIM.fullmatch(path.name) for path in _files(self.folder, ".claim"))
        return {int(match[2]): self.folder / match[0] for match in found if match and match[1] == quoted}

    def _sweep(self):
        """Take away what processes have left that are known to be dead."""
        for path in _files(self.folder, ".maker"):
            if (there := content(path)) and has_ended(there):
                path.unlink(missing_ok=True)
        for path in _files(self.folder, ".claim"):
            if (holder := content(path).get("maker")) and not self._path(holder).exists():
                path.unlink(missing_ok=True)

    def _dead(self, token):
        there = content(self._path(token))
        if not there:  # a maker is there before its claims, and goes after them; a claim may be half written
            return token != "" or self._silence.seconds(token, None) > LEASE
        return has_ended(there) or self._silence.seconds(token, there["beat"]) > LEASE

    # --- The file -----------------------------------------------------------------------------------------------------

    def _path(self, token):
        return self.folder / f"{token}.maker"

    def _renewing(self):
        while not self._done.wait(min(RENEWED, LEASE / 4)):
            with contextlib.suppress(OSError):  # a store that is away for a moment
                self._renew()

    def _renew(self):
        with self._lock:
            self._beat += 1
            told = described() | {"beat": self._beat, "time": time.time()}
            told |= {"planned": self.planned, "members": dict(self.members)}
            for tries in range(20):
                try:
                    made_folder(self.folder)
                    replace_file(self._path(self.token), json.dumps(told))
                    return
                except OSError:
                    if tries == 19 or self.folder.is_dir():  # else the last of the others has just taken it away
                        raise


@contextlib.contextmanager
def making(pool: pathlib.Path, planned: Mapping[str, int | None] | Iterable[str] = ()) -> Iterator[Maker]:
    """Say beside a pool that this process makes members of it; `planned`: all that are to be made, with their steps."""
    planned = dict(planned) if isinstance(planned, Mapping) else dict.fromkeys(planned)
    with Maker(pool, planned).present() as maker:
        yield maker


def note(pool: pathlib.Path, name: str, step: int, steps: int | None = None, loss: float | None = None) -> None:
    """Say how many steps a member has taken that this process makes, to whom it may concern: see `Maker.note`."""
    for maker in list(_here.values()):
        if maker.pool == pool:
            maker.note(name, step, steps, loss)


def makers(pool: pathlib.Path) -> list[dict[str, Any]]:
    """Return what each process that makes members of a pool says of itself, with its "claims", the oldest first."""
    folder, claimed = folder_of(pool), {}
    for path in _files(folder, ".claim"):
        if match := _CLAIM.fullmatch(path.name):
            claimed.setdefault(content(path).get("maker"), []).append(urllib.parse.unquote(match[1]))
    found = [content(path) | {"claims": claimed.get(path.stem, [])} for path in _files(folder, ".maker")]
    return sorted((one for one in found if "pid" in one), key=lambda one: (one["host"], one["pid"]))


def _files(folder, suffix):
    """Return the files of a folder in order; none where the last of the makers takes the folder away just now."""
    try:
        return sorted(path for path in folder.iterdir() if path.name.endswith(suffix))
    except FileNotFoundError:
        return []
