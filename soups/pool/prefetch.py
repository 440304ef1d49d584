"""Read members ahead of need."""

import concurrent.futures
import os
import pathlib
import re
import threading
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import DTypeLike

from soups import arguments, tree
from soups.lazy import jax
from soups.names import check_name

_SHARE = 0.5  # of the memory that is free at the start, where nothing else is said
_UNKNOWN = 2**32  # bytes that are taken to be free where the system does not say, as Windows


def prefetched(
    members: arguments.Members,
    order: Sequence[str] | None = None,
    *,
    ahead: int = 2,
    keep_bytes: int | None = None,
    dtype: DTypeLike | None = None,
) -> Mapping[str, tree.Tree]:
    """Return the members by the same names, read in threads ahead of need and kept in memory while there is room.

    When a member is asked for, threads begin to read the `ahead` members after it in `order`, each in a thread of its
    own. What was read is kept, and read once, until `keep_bytes` are full; later members are read each time they are
    asked for. An error of reading is raised where the member is asked for, and asking again reads it again.

    Args:
        order: in which they will be asked for; default: that of `members`. Another order costs waiting, no more.
        ahead: how many members are read ahead, and so wait in memory beyond those that are kept.
        keep_bytes: the most bytes of members to keep; 0 keeps none. Default: half the memory that is free now.
        dtype: what float32 and wider leaves are rounded to, such as "bfloat16", which keeps twice as many members.
            They are given in their own dtype, always rounded. Default: they stay as they are. See `kept_dtype`.

    Returns:
        A mapping to nested dicts of NumPy arrays in memory, not in mapped files, which must not be changed. Its method
        `as_kept(name)` gives a member in the dtype in which it is kept.
    """
    members = arguments.as_mapping(members)
    order = [check_name(name, members, "member") for name in (members if order is None else order)]
    keep_bytes = _room() if keep_bytes is None else keep_bytes
    if ahead < 0 or keep_bytes < 0:
        raise ValueError(f"ahead and keep_bytes must be at least 0, not {ahead} and {keep_bytes}")
    dtype = None if dtype is None else jax.numpy.dtype(dtype)
    return _Prefetched(members, order, ahead, keep_bytes, dtype)


def kept_dtype(members: arguments.Members) -> str:
    """Choose the dtype in which `prefetched` keeps members: "bfloat16" if they fit into half the free memory only so.

    Otherwise "float32": where all fit as they are, and where they would not fit even so, since some are then read again
    anyway. Members are taken to be as large as the first.
    """
    members = arguments.as_mapping(members)
    floats = [leaf for leaf in jax.tree.leaves(members[next(iter(members))]) if tree.is_float(leaf)]
    wide = len(members) * sum(leaf.nbytes for leaf in floats)
    narrow = len(members) * sum(2 * leaf.size for leaf in floats)
    return "bfloat16" if narrow <= _room() < wide else "float32"


class _Prefetched(Mapping):
    def __init__(self, members, order, ahead, keep_bytes, dtype):
        self._members = members
        self._order = order
        self._places = {name: place for place, name in enumerate(order)}
        self._ahead = ahead
        self._room = keep_bytes
        self._dtype = dtype
        self._kept = {}
        self._coming: dict[str, concurrent.futures.Future] = {}
        self._lock = threading.Lock()
        self._threads = concurrent.futures.ThreadPoolExecutor(ahead + 1, thread_name_prefix="prefetch")

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, name) -> bool:
        return name in self._members

    def __getitem__(self, name: str) -> tree.Tree:
        stored, dtypes = self._stored(name)
        return jax.tree.map(lambda leaf, dtype: leaf if leaf.dtype == dtype else leaf.astype(dtype), stored, dtypes)

    def as_kept(self, name: str) -> tree.Tree:
        """Return a member in the dtype in which it is kept."""
        return self._stored(name)[0]

    def _stored(self, name):
        with self._lock:
            self._start(name)
            coming = self._coming.get(name)
            stored = self._kept.get(name)
        return self._arrived(name, coming) if stored is None else stored

    @property
    def digest(self):
        """Return what tells a member's digest, where the members know theirs and are not rounded."""
        if self._dtype is not None:
            raise AttributeError(
                "members that are rounded when they are read have other digests than those of the pool"
            )
        return self._members.digest

    @property
    def identity(self):
        """Return what tells a member from every other, rounded or not, where the members know their digests."""
        known = self._members.digest
        return known if self._dtype is None else lambda name: f"{known(name)} as {self._dtype}"

    def _start(self, name):
        """Begin to read a member and those after it, and let go of what was read ahead in vain."""
        place = self._places.get(name, len(self._order))
        for wanted in (name, *self._order[place + 1 : place + 1 + self._ahead]):
            if wanted not in self._kept and wanted not in self._coming:
                self._coming[wanted] = self._threads.submit(_read, self._members, wanted, self._dtype)
        # those a little before stay too: several threads may ask for neighbours in any order
        near = self._order[max(0, place - self._ahead) : place + 1 + self._ahead]
        for other, future in list(self._coming.items()):
            if other != name and other not in near and future.done():
                del self._coming[other]
                if not future.exception():
                    self._keep(other, future.result())

    def _arrived(self, name, coming):
        stored = None
        try:
            stored = coming.result()
        finally:
            with self._lock:
                if self._coming.get(name) is coming:
                    del self._coming[name]
                    if stored is not None:
                        self._keep(name, stored)
        return stored

    def _keep(self, name, stored):
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(stored[0]))
        if size <= self._room:
            self._room -= size
            self._kept[name] = stored


def _read(members, name, dtype):
    """Return a member's leaves as they are kept, and the dtypes in which they are given."""
    member = members[name]
    return jax.tree.map(lambda leaf: _in_memory(leaf, dtype), member), jax.tree.map(lambda leaf: leaf.dtype, member)


def _in_memory(leaf, dtype):
    if dtype is not None and tree.is_float(leaf) and leaf.dtype.itemsize > dtype.itemsize:
        return np.asarray(leaf).astype(dtype)
    if isinstance(leaf, np.ndarray) and leaf.flags.owndata:
        return leaf
    copy = np.array(leaf)  # in the order of the file: to transpose would take longer than to read
    copy.flags.writeable = False
    return copy


def _room():
    return int(_SHARE * _free_bytes())


def _free_bytes():
    try:
        return 1024 * int(re.search(r"MemAvailable:\s*(\d+)", pathlib.Path("/proc/meminfo").read_text())[1])
    except OSError:  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2 if hasattr(os, "sysconf") else _UNKNOWN
