"""Write down decisions one by one, or the state so far, so that a killed run goes on where it was."""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import xxhash

from soups import state, tree
from soups.files import PathLike, any_path, append, replace_file
from soups.lazy import is_jax, jax, multihost_utils
from soups.names import bounded
from soups.processes import is_first, on_first_process


class Journal:
    """Keep records in a file of JSON lines, each with its digest; without a path, in memory.

    The first line states what is being decided, and about which members: their names in order and, as another member
    may come to bear an old name, digests of their weights. A journal of something else is refused, unless it has no
    record yet: then nothing was decided, and it begins anew. A last line that was cut off by a crash is dropped, and
    one that is damaged is a ValueError. Records are appended (`write`) or the newest
    alone is kept (`keep`). Of several JAX processes the first one reads and writes, and all get the same records.
    """

    def __init__(
        self, path: PathLike | None, header: dict[str, Any], *, members: Mapping[str, tree.Tree] | None = None
    ):
        self._path = any_path(path) if path is not None else None
        self._old: list[dict[str, Any]] = []
        if self._path is not None:
            if members is not None:
                # those that know their digests, as a pool's do, are not read for them
                known = getattr(members, "identity", None) or getattr(members, "digest", None)
                digests = {name: known(name) if known else content_digest(members[name]) for name in members}
                header = {**header, "members": list(members), "digests": digests}
            self._header = json.loads(json.dumps(header))
            self._old = on_first_process(self._open)

    def _open(self):
        whole = records(self._path)
        whole = whole if len(whole) > 1 else []  # a first line alone is of a call that decided nothing
        there, *old = whole or [self._header]
        if differences := list(_differences(there, self._header)):
            raise ValueError(
                f"journal {self._path} was written by a different call:\n{bounded(differences)}\n"
                "Remove it, or give another path."
            )
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # rewrite what is whole, so a cut-off line never stays in the middle
        replace_file(self._path, b"".join(map(state.sealed_line, whole or [self._header])))
        return old

    @property
    def on_disk(self) -> bool:
        """Say whether there is a file, from which a later run may go on."""
        return self._path is not None

    def replay(self, kind: str, member: str) -> dict[str, Any] | None:
        """Return the next old record if it is of this kind and member, else None."""
        if self._old and (self._old[0].get("kind"), self._old[0].get("member")) == (kind, member):
            return self._old.pop(0)
        return None

    def newest(self) -> dict[str, Any] | None:
        """Return the last old record, else None."""
        return self._old[-1] if self._old else None

    def write(self, record: dict[str, Any]) -> dict[str, Any]:
        """Append a record and see it to the disk; an OSError has the path in its message."""
        if self._path is not None and is_first():
            append(self._path, state.sealed_line(record), sync=True)
        return record

    def keep(self, record: dict[str, Any]) -> None:
        """Put a record in the place of all others; an OSError has the path in its message, and the old ones stay."""
        if self._path is not None and is_first():
            replace_file(self._path, state.sealed_line(self._header) + state.sealed_line(record))


def records(path: PathLike) -> list[dict[str, Any]]:
    """Return the first line of a journal and its records; none where there is no journal.

    Raises:
        ValueError: a line that is damaged; the last one may be cut off.
    """
    path = any_path(path)
    lines = state.content(path).split(b"\n")[:-1] if path.exists() else []
    return [_parsed(path, number, line) for number, line in enumerate(lines, 1)]


def amend(path: PathLike, **fields: Any) -> None:
    """Put fields into the first line of a journal in the place of those of the same names."""
    header, *others = records(path)
    replace_file(path, b"".join(map(state.sealed_line, [header | fields, *others])))


def content_digest(params: tree.Tree) -> str:
    """Return the digest of the names, dtypes, shapes and numbers of a tree, that which a pool has of such a member.

    What is no array counts by its name, or as it is written.
    """
    leaves = sorted(tree.flatten(params).items(), key=operator.itemgetter(0))
    lines = [f"{name} {_described(leaf)}\n" for name, leaf in leaves]
    return xxhash.xxh3_128_hexdigest("".join(lines).encode(errors="backslashreplace"))


def _parsed(path, number, line):
    try:
        return state.unsealed_line(line, f"line {number} of journal {path}")
    except ValueError as error:
        remedy = "Cut the file off before that line to go on from there, or remove it." if number > 1 else "Remove it."
        raise ValueError(f"{error}: {line[:100]!r}\n{remedy}") from error


def _described(leaf):
    if not hasattr(leaf, "dtype"):
        return getattr(leaf, "__qualname__", repr(leaf))
    if is_jax(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        leaf = leaf if leaf.is_fully_addressable else multihost_utils.process_allgather(leaf, tiled=True)
    array = np.asarray(leaf)
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape)  # else () becomes (1,)
    digest = xxhash.xxh3_128_hexdigest(array.reshape(-1).view(np.uint8))
    return f"{array.dtype.name} {list(array.shape)} {digest}"


def _differences(there, here, within=""):
    """List how the first line of a journal differs from the one of this selection."""
    for name in sorted(there.keys() | here.keys()):
        a, b = (side.get(name, "(absent)") for side in (there, here))
        if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
            yield from _differences(a, b, f"{within}{name} of ")
        elif name == "digests" and there.get("members") != here.get("members"):
            continue  # of other members, which are named
        elif json.dumps(a) != json.dumps(b):  # a NaN is not itself, but it is written alike
            yield f"  {within}{name}: {a} there, {b} here"
