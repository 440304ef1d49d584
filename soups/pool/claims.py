"""Let several processes make the members of one pool: each claims those that it makes, and none is made twice."""

import contextlib
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from soups import tree
from soups.files import locked
from soups.pool.pool import Pool

_SECONDS = 1.0  # from one look at what other processes have made to the next


@contextlib.contextmanager
def claimed(pool: Pool, names: Iterable[str], most: int = 1) -> Iterator[list[str]]:
    """Claim the first members, `most` of them, that are not in the pool and that no process is making.

    A claim is a lock on a file beside the pool; that of a killed process is free.
    """
    mine = []
    with contextlib.ExitStack() as stack:
        for name in names:
            if len(mine) == most:
                break
            lock = pool.path.with_name(f".{pool.path.name}.{urllib.parse.quote(name, safe='')}.lock")
            try:
                stack.enter_context(locked(pool.path / name, lock, "run"))
            except BlockingIOError:
                continue
            pool.refresh()  # it may have come in since names were listed
            if name not in pool:
                mine.append(name)
        yield mine


def claims(pool: Pool, names: Iterable[str], most: int = 1) -> Iterator[list[str]]:
    """Yield members to make and add, up to `most` at a time, until all of these are in the pool.

    Those that another process is making are waited for; if it dies, they are yielded too.
    """
    while missing := [name for name in names if name not in pool]:
        with claimed(pool, missing, most) as mine:
            if mine:
                yield mine
        if not mine:
            time.sleep(_SECONDS)
            pool.refresh()


def made_once(pool: Pool, name: str, make: Callable[[], tree.Tree], record: Mapping[str, Any]) -> tree.Tree:
    """Return a member, made and added if it is not there; where another process is making it, wait for it."""
    for _ in claims(pool, [name]):
        pool.add(name, make(), record)
    return pool[name]
