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
    """Be the `Tensors` of a checkpoint with changes."""

    checkpoint: Tensors
    changed: Mapping[str, Leaf]  #: headers; their dtype is that which the output takes from them
    make: Callable[[str], np.ndarray] = dataclasses.field(repr=False)  #: of their names, in float32 or wider
    sizes: dict[pathlib.Path, int]  #: of all files that go in
    added_notes: Sequence[str] = ()  #: sentences for the user, beside the checkpoint's
    #: aliases beside those of the checkpoint, of which those that are changed are none any more
    tied: Mapping[str, str] = dataclasses.field(default_factory=dict)

    path = property(lambda self: self.checkpoint.path)
    metadata = property(lambda self: self.checkpoint.metadata)
    notes = property(lambda self: (*self.checkpoint.notes, *self.added_notes))
    digests = property(
        lambda self: {name: own for name, own in self.checkpoint.digests.items() if name not in self.changed}
    )

    @functools.cached_property
    def leaves(self) -> dict[str, Leaf]:
        return {**self.checkpoint.leaves, **self.changed}

    @functools.cached_property
    def aliases(self) -> dict[str, str]:
        own = {alias: kept for alias, kept in self.checkpoint.aliases.items() if alias not in self.changed}
        return {**own, **self.tied}

    def check(self, process: int = 0, processes: int = 1) -> None:
        self.checkpoint.check(process, processes)

    def check_leaf(self, name: str, digest: str) -> None:
        if name not in self.changed:
            self.checkpoint.check_leaf(name, digest)

    def map(self, name: str) -> np.ndarray:
        name = self.aliases.get(name, name)
        return self.make(name) if name in self.changed else self.checkpoint.map(name)

    def read(self, name: str, index: Any = ...) -> np.ndarray:
        name = self.aliases.get(name, name)
        return self.make(name)[index] if name in self.changed else self.checkpoint.read(name, index)

    def making(self, name: str) -> int:
        name = self.aliases.get(name, name)
        made = [2 * 4 * int(np.prod(self.changed[name].shape))] if name in self.changed else []
        return sum(made) + self.checkpoint.making(name)

    def chunk_rows(self, name: str) -> int:
        name = self.aliases.get(name, name)
        return 0 if name in self.changed else self.checkpoint.chunk_rows(name)
