"""Say beside a pool who makes which of its members, and how far it is: for processes on any hosts, and who watches.

In the folder `.POOL.making` each process that makes members has a lease (see `soups.leases`), whose file tells of the
steps that were taken each time it is renewed. A claim on a member is a lease that holds as long as that one does.
"""

import contextlib
import dataclasses
import time
import urllib.parse
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import xxhash

from soups import leases
from soups.files import AnyPath
from soups.presence import content

_here: dict[str, "Maker"] = {}  # the makers of this process, by their tokens


def folder_of(pool: AnyPath) -> AnyPath:
    """Return the folder in which the makers of a pool say what they do."""
    return pool.with_name(f".{pool.name}.making")


@dataclasses.dataclass
class Maker:
    """Hold what one process makes for a pool, its claims among it, and say so in a file that a thread renews."""

    pool: AnyPath
    planned: dict[str, int | None] = dataclasses.field(default_factory=dict)
    members: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        """Be there."""
        self.folder, self.claims = folder_of(self.pool), {}
        name = f"{uuid.uuid4().hex}.maker"
        self.lease = leases.take(self.folder / name, self.pool, "process", told=self._told)
        _here[name] = self

    def close(self) -> None:
        """Release all claims, and take away what processes have left that are known to be dead."""
        del _here[self.lease.path.name]
        for name in list(self.claims):
            self.release(name)
        for path in _files(self.folder, ".maker"):
            if path != self.lease.path and not leases.is_held(path):
                path.unlink(missing_ok=True)
        for path in _files(self.folder, ".claim"):
            with contextlib.suppress(BlockingIOError):
                leases.take(path, self.pool, "process", on=self.lease).end()
        self.lease.end()
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

    def finish(self, name: str) -> None:
        """Say that a member is not being made any more."""
        self.members.pop(name, None)

    def claim(self, name: str) -> bool:
        """Claim a member, and say whether it is this process's: nobody alive has claimed it."""
        readable = urllib.parse.quote(name, safe="")[:60]
        place = self.folder / f"{readable}-{xxhash.xxh3_64_hexdigest(name.encode())}.claim"
        try:
            self.claims[name] = leases.take(place, self.pool, "process", on=self.lease)
        except BlockingIOError:
            return False
        self.begin(name)
        return True

    def release(self, name: str) -> None:
        """Release a claim."""
        self.claims.pop(name).end()
        self.finish(name)

    def _told(self):
        return {"time": time.time(), "planned": self.planned, "members": dict(self.members)}


def making(
    pool: AnyPath, planned: Mapping[str, int | None] | Iterable[str] = ()
) -> contextlib.AbstractContextManager[Maker]:
    """Say beside a pool that this process makes members of it; `planned`: all that are to be made, with their steps."""
    return contextlib.closing(Maker(pool, dict(planned) if isinstance(planned, Mapping) else dict.fromkeys(planned)))


def note(pool: AnyPath, name: str, step: int, steps: int | None = None, loss: float | None = None) -> None:
    """Say how many steps a member has taken that this process makes, to whom it may concern: see `Maker.note`."""
    for maker in list(_here.values()):
        if maker.pool == pool:
            maker.note(name, step, steps, loss)


def makers(pool: AnyPath) -> list[dict[str, Any]]:
    """Return what each process that makes members of a pool says of itself, by its host and number."""
    found = (content(path) for path in _files(folder_of(pool), ".maker"))
    return sorted((one for one in found if "pid" in one), key=lambda one: (one["host"], one["pid"]))


def _files(folder, suffix):
    """Return the files of a folder in order; none where the last of the makers takes the folder away just now."""
    try:
        return sorted(path for path in folder.iterdir() if path.name.endswith(suffix))
    except FileNotFoundError:
        return []
