"""Let several processes make the members of one pool: each claims those that it makes, and none is made twice."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from soups import tree
from soups.pool.making import Maker, making
from soups.pool.pool import Pool

_SECONDS = 1.0  # from one look at what other processes have made to the next


@contextlib.contextmanager
def claimed(pool: Pool, names: Iterable[str], most: int = 1, maker: Maker | None = None) -> Iterator[list[str]]:
    """Claim the first members, `most` of them, that are not in the pool and that no process is making, on any host.

    A claim is a lease: that of a process that was killed is free at once for processes on its machine, and for those
    on others when it was not renewed for `soups.leases.SECONDS` seconds. `maker`: from `making`, if there is one.
    """
    names, mine = list(names), []
    with making(pool.path, names) if maker is None else contextlib.nullcontext(maker) as maker:
        try:
            for name in names:
                if len(mine) == most:
                    break
                if not maker.claim(name):
                    continue
                mine.append(name)
                pool.refresh()  # it may have come in since names were listed
                if name in pool:
                    maker.release(mine.pop())
            yield mine
        finally:
            for name in mine:
                maker.release(name)


def claims(pool: Pool, names: Iterable[str], most: int = 1) -> Iterator[list[str]]:
    """Yield members to make and add, up to `most` at a time, until all of these are in the pool.

    Those that another process is making are waited for; if it dies, they are yielded too.
    """
    names = list(names)
    if all(name in pool for name in names):
        return
    with making(pool.path, names) as maker:
        while missing := [name for name in names if name not in pool]:
            with claimed(pool, missing, most, maker) as mine:
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
