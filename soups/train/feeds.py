"""Feed runs with batches: from arrays in memory or from loaders, each checked, from any step on."""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from soups.data.batches import BatchIterator, batch_indices
from soups.train import checks
from soups.train.step import Training


def feed_of(
    training: Training, data: Any, members: Mapping[str, Mapping[str, Any]], batch_size: int | None
) -> Callable[..., Any]:
    """Return a function from a member's name and which part of its batches is wanted to an iterable over them.

    `data`: a pytree of arrays in memory, an iterable of batches, or a function from name, index and number of parts to
    one. Of arrays every epoch is shuffled anew by the member's seed, and none of the examples is left out. Errors are
    those of `soups.train.checks.arrays`.
    """
    if not checks.is_arrays(data):
        if batch_size is not None:
            raise ValueError("batch_size is for arrays in memory, but batches were given, which have a size already")
        return data if callable(data) else lambda name, index, count: data
    data = checks.arrays(training, data, batch_size, members.values())
    length = len(jax.tree.leaves(data)[0])

    def part(name, index, count):
        steps, share = members[name]["num_steps"], batch_size // count
        if batch_size % count:
            raise ValueError(f"a batch of {batch_size} cannot be shared evenly by {count} processes")
        order = batch_indices(length, batch_size, steps, int(members[name]["seed"]))

        def batches(first):
            for rows in order[first:, index * share : (index + 1) * share]:
                yield jax.tree.map(lambda array, rows=rows: array[rows], data)

        return BatchIterator(batches)

    return part


class LaneBatches:
    """Return the parts of the batches that this process loads, by lane.

    A ValueError for a loader that cannot be resumed, where it should be; from the iterator: fewer batches than steps.
    """

    def __init__(self, training, feed, lanes, shares, first, position, resumable):
        """Take for each of `lanes` its name and its hyper-parameters; a lane past the last of them repeats that one."""
        with contextlib.ExitStack() as stack:
            self._lanes = {}
            for lane, share in shares.items():
                name, member = lanes[lane]
                own = None if position is None else position[str(lane)]
                # a lane without a member needs a batch too: the first one of another member
                batches = _MemberBatches(training, feed(name, *share), name, member, first, own, resumable)
                self._lanes[lane] = stack.enter_context(contextlib.closing(batches))
            self._stack = stack.pop_all()

    def __next__(self):
        return {lane: next(batches) for lane, batches in self._lanes.items()}

    def get_state(self):
        return {str(lane): batches.get_state() for lane, batches in self._lanes.items()}

    def close(self):
        self._stack.close()


def by_lane(positions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join the positions of the lanes that each process had; a ValueError where two stood elsewhere in one lane."""
    joined = {lane: position for process in positions for lane, position in process.items()}
    for process in positions:
        if other := [lane for lane, position in process.items() if position != joined[lane]]:
            raise ValueError(f"the processes that loaded lane {other[0]} stood at different positions")
    return joined


class _MemberBatches:
    """Return the batches of a member until its last step, and from then on the last one again and again."""

    def __init__(self, training, loader: Iterable, name, member, taken, position, resumable):
        self._training, self._member, self._taken = training, member, taken
        self._whose = f" of {name}" if name else ""
        self._batches = iter(loader)
        self._last = self._end = None
        self._open = True
        if resumable and not (hasattr(self._batches, "get_state") and hasattr(self._batches, "set_state")):
            kind = type(self._batches).__name__
            raise ValueError(
                f"the loader's iterator{self._whose}, a {kind}, cannot be resumed: it needs get_state and set_state"
            )
        if position is not None and taken < member["num_steps"]:
            self._batches.set_state(position)

    def __next__(self):
        if self._last is None or self._taken < self._member["num_steps"]:
            batch = next(self._batches, None)
            if batch is None:
                steps = self._member["num_steps"]
                raise ValueError(f"the batches{self._whose} ended after {self._taken} of {steps} steps")
            self._last = checks.batch(self._training, batch, self._member)
            self._taken += 1
            if self._taken >= self._member["num_steps"]:  # nothing needs to be read ahead while other members go on
                self._end = {"position": self.get_state()}
                self.close()
        return self._last

    def get_state(self):
        if self._end is not None:
            return self._end["position"]
        return self._batches.get_state() if hasattr(self._batches, "get_state") else None

    def close(self):
        if self._open and hasattr(self._batches, "close"):
            self._batches.close()
        self._open = False
