"""Show a checkpoint with some of its tensors changed, without writing it: they are made when they are read."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from soups.formats.tensors import Leaf, Tensors


@dataclasses.dataclass(frozen=True)
class View:
    """Return the tensors of a checkpoint by name, as its checkpoint does.

    Attributes:
        checkpoint: what the others are read from.
        changed: the headers of the tensors that are changed; their dtype is that which the output takes from them.
        make: from the name of one of these to its array, in float32 or wider.
        sizes: of all files that go in.
        added_notes: sentences for the user, beside the checkpoint's.
        tied: aliases beside those of the checkpoint, of which those that are changed are none any more.
    """

    checkpoint: Tensors
    changed: Mapping[str, Leaf]
    make: Callable[[str], np.ndarray] = dataclasses.field(repr=False)
    sizes: dict[pathlib.Path, int]
    added_notes: Sequence[str] = ()
    tied: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def path(self) -> pathlib.Path:
        """Return the path of the checkpoint."""
        return self.checkpoint.path

    @functools.cached_property
    def leaves(self) -> dict[str, Leaf]:
        """Return all headers, in the checkpoint's order."""
        return {**self.checkpoint.leaves, **self.changed}

    @property
    def metadata(self) -> dict[str, str]:
        """Return the checkpoint's metadata."""
        return self.checkpoint.metadata

    @property
    def notes(self) -> Sequence[str]:
        """Return the checkpoint's notes and those of the change."""
        return (*self.checkpoint.notes, *self.added_notes)

    @functools.cached_property
    def aliases(self) -> dict[str, str]:
        """Return the tied tensors."""
        own = {alias: kept for alias, kept in self.checkpoint.aliases.items() if alias not in self.changed}
        return {**own, **self.tied}

    @property
    def digests(self) -> dict[str, str]:
        """Return the digests that the checkpoint knows of tensors that are not changed."""
        return {name: digest for name, digest in self.checkpoint.digests.items() if name not in self.changed}

    def check(self, process: int = 0, processes: int = 1) -> None:
        """Compare the checkpoint's files with their digests."""
        self.checkpoint.check(process, processes)

    def check_leaf(self, name: str, digest: str) -> None:
        """Compare the digest of a tensor that is not changed, as the checkpoint does."""
        if name not in self.changed:
            self.checkpoint.check_leaf(name, digest)

    def map(self, name: str) -> np.ndarray:
        """Return a tensor: made anew, or as the checkpoint maps it."""
        name = self.aliases.get(name, name)
        return self.make(name) if name in self.changed else self.checkpoint.map(name)

    def read(self, name: str, index: Any = ...) -> np.ndarray:
        """Return a tensor, or a part of it: made anew, or as the checkpoint gives it."""
        name = self.aliases.get(name, name)
        return self.make(name)[index] if name in self.changed else self.checkpoint.read(name, index)

    def making(self, name: str) -> int:
        """Count the bytes of memory that it takes to make a tensor."""
        name = self.aliases.get(name, name)
        made = [2 * 4 * int(np.prod(self.changed[name].shape))] if name in self.changed else []
        return sum(made) + self.checkpoint.making(name)

    def chunk_rows(self, name: str) -> int:
        """Return how many indices of the first axis a row of chunks has; 0 for a tensor that is read or made whole."""
        name = self.aliases.get(name, name)
        return 0 if name in self.changed else self.checkpoint.chunk_rows(name)
