"""Show a checkpoint with some of its tensors changed, without writing it: they are made when they are read."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from soups.pool.formats import Checkpoint, Leaf


@dataclasses.dataclass(frozen=True)
class View:
    """Give the tensors of a checkpoint by name, as a `Checkpoint` does.

    Attributes:
        checkpoint: a `Checkpoint` or what gives tensors as one does.
        changed: the headers of the tensors that are changed; their dtype is that which the output takes from them.
        make: from the name of one of these to its array, in float32 or wider.
        sizes: of all files that go in.
    """

    checkpoint: Checkpoint
    changed: Mapping[str, Leaf]
    make: Callable[[str], np.ndarray] = dataclasses.field(repr=False)
    sizes: dict[pathlib.Path, int]

    @property
    def path(self) -> pathlib.Path:
        """Give the path of the checkpoint."""
        return self.checkpoint.path

    @functools.cached_property
    def leaves(self) -> dict[str, Leaf]:
        """Give all headers, in the checkpoint's order."""
        return {**self.checkpoint.leaves, **self.changed}

    @property
    def metadata(self) -> dict[str, str]:
        """Give the checkpoint's metadata."""
        return self.checkpoint.metadata

    @property
    def aliases(self) -> dict[str, str]:
        """Give the checkpoint's tied tensors."""
        return self.checkpoint.aliases

    def read(self, name: str) -> np.ndarray:
        """Give a tensor: made anew, or as the checkpoint gives it."""
        name = self.aliases.get(name, name)
        return self.make(name) if name in self.changed else self.checkpoint.read(name)

    def making(self, name: str) -> int:
        """Count the bytes of memory that it takes to make a tensor."""
        name = self.aliases.get(name, name)
        made = [2 * 4 * int(np.prod(self.changed[name].shape))] if name in self.changed else []
        inner = self.checkpoint.making(name) if isinstance(self.checkpoint, View) else 0
        return sum(made) + inner
