"""Shuffle, augment and batch: the same batches for a seed, whatever reads them, resumable at every batch.

NumPy shuffles the epochs; grain reads, batches, and spreads over threads and processes. Grain's own shuffle is a cipher
on at least 16 bits, repeated until the index fits: 5 µs for an index of 65,536, 25 µs of 1,000, milliseconds of four.
NumPy takes 0.1 µs.
"""

import dataclasses
import functools
import itertools
import math
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import absl.flags
import jax
import numpy as np

from soups.data.dataset import Source, read_example, stack_examples
from soups.data.transforms import RandomTransform, Transform
from soups.lazy import extra

_FOREVER = 2**40  # steps
_AHEAD = 2  # batches that are read before they are asked for
_RUN = 16  # examples that make one element of the grain dataset: an element costs about 150 µs, a small example 5


def batch_indices(num_examples: int, batch_size: int, num_steps: int, seed: int) -> np.ndarray:
    """Return the examples of the first `num_steps` batches, int32 [num_steps, batch_size].

    It is the order of `loader`: every epoch is shuffled anew, and batches run across the borders of epochs, so that
    each example is used once per epoch and none is dropped. A batch larger than the data, and a seed that is not in
    0..2³²−1, are a ValueError.
    """
    return Order(num_examples, batch_size, seed)(0, num_steps * batch_size)[1].reshape(num_steps, batch_size)


def loader(
    source: Source,
    batch_size: int,
    *,
    seed: int,
    num_epochs: int | None = None,
    transform: Transform | None = None,
    random_transform: RandomTransform | None = None,
    process_index: int | None = None,
    process_count: int | None = None,
    num_threads: int = 8,
    num_workers: int = 0,
) -> Iterable[Mapping[str, np.ndarray]]:
    """Make an iterable over this process's part of every global batch; each `iter` of it is a `BatchIterator`.

    A batch is {"image": uint8 [B, H, W, C], "label": int32 [B], "index": int32 [B]}, B = batch_size / process_count.
    The parts of processes 0, 1, … one after the other are the batch that a single process would get.
    `num_epochs=None` never ends; otherwise the last batch is left out if it is not full. `process_index` and
    `process_count` are by default JAX's.

    Images go through `transform`, then through `random_transform` with a generator that is a function of the seed, the
    epoch and the example alone. So neither the number of threads, workers or processes nor resuming changes a batch.

    `num_threads` threads read a batch together, and two batches ahead (0: one is read when it is asked for). Threads of
    Python keep few cores busy; where there are more, `num_workers` processes take the batches in turns, each with
    `num_threads` threads. They are spawned, never forked, since JAX has threads: the source and the transforms are
    pickled for each of them, and a script needs its `if __name__ == "__main__":`.

    Raises:
        ValueError: a batch size above the number of examples, or one that the processes cannot share evenly; a process
            index that does not exist; a negative number of threads or workers; a seed outside 0..2³²−1. From the
            iterator: whatever reading an example raises, also in a worker.
    """
    process_count = jax.process_count() if process_count is None else process_count
    process_index = jax.process_index() if process_index is None else process_index
    if not 0 <= process_index < process_count:
        raise ValueError(f"process {process_index} does not exist among {process_count} processes")
    if batch_size % process_count:
        raise ValueError(f"a batch of {batch_size} cannot be shared evenly by {process_count} processes")
    if min(num_threads, num_workers) < 0:
        raise ValueError(
            f"num_threads and num_workers must not be negative, but they are {num_threads} and {num_workers}"
        )
    share = batch_size // process_count
    order = Order(len(source), batch_size, seed)
    num_steps = _FOREVER if num_epochs is None else num_epochs * len(source) // batch_size
    reader = _Reader(source, order, process_index * share, share, num_steps, transform, random_transform)
    return _Batches(functools.partial(_pipeline, reader, num_threads, num_workers))


class BatchIterator:
    """Iterate over batches, and go on at any of them.

    `get_state()` gives {"next_index": number of batches taken}, which `set_state` takes, whatever the threads and
    workers. `close()` ends the workers; `contextlib.closing` calls it.
    """

    def __init__(self, start: Callable[[int], Iterable], finish: Callable[[Any], Any] = lambda batch: batch):
        """Take a function from the number of the first batch to the batches, and what is done to each."""
        self._start, self._finish, self._next_index, self._batches = start, finish, 0, None

    def __iter__(self):
        return self

    def __next__(self) -> Any:
        if self._batches is None:
            self._batches = iter(self._start(self._next_index))
        try:
            batch = next(self._batches)
        except Exception:  # or the next call would find an iterator that looks as if it had come to its end
            self.close()
            raise
        self._next_index += 1
        return self._finish(batch)

    def get_state(self) -> dict[str, int]:
        return {"next_index": self._next_index}

    def set_state(self, state: Mapping[str, int]) -> None:
        self.close()
        self._next_index = int(state["next_index"])

    def close(self) -> None:
        """End reading ahead; the next batch starts it again."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None


class _Batches:
    def __init__(self, start):
        self._start = start

    def __iter__(self):
        return BatchIterator(self._start, _arrays)


def _arrays(batch):
    # from a worker they come sorted, as arrays of a class of its own over shared memory
    return {name: np.asarray(batch[name]) for name in ("image", "label", "index")}


def _pipeline(reader, num_threads, num_workers, first_step):
    """Make a grain dataset of the batches from one on.

    It reads runs of examples, so that threads share a batch, yet few elements, since each costs something. Grain's own
    state is another one for every number of workers and may change with its version: so each start is a new dataset.
    """
    with extra("data"):
        import grain  # takes half a second to import

    runs_per_batch = math.ceil(reader.share / _RUN)
    turns = max(1, num_workers)
    rounds = math.ceil(max(0, reader.num_steps - first_step) / turns)
    runs = grain.MapDataset.range(rounds * turns * runs_per_batch).map(
        functools.partial(reader.run, first_step, turns, runs_per_batch)
    )
    ahead = _AHEAD * runs_per_batch if num_threads else 0
    runs = runs.to_iter_dataset(grain.ReadOptions(num_threads=min(num_threads, ahead), prefetch_buffer_size=ahead))
    batches = runs.batch(runs_per_batch, batch_fn=_join)
    if num_workers == 0:
        return batches
    profiling = "grain_enable_multiprocess_worker_profiling"
    if profiling in absl.flags.FLAGS:  # grain asks for it even where no absl program has parsed a command line
        absl.flags.FLAGS[profiling].present = True
    return batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers), _end_with_parent)


def _end_with_parent(worker_index, num_workers):
    """Let a worker not outlive a main process that was killed: nobody would ever take what it has read."""

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _join(runs: Sequence) -> dict[str, np.ndarray]:
    indices = np.concatenate([indices for indices, _ in runs])
    images, labels = stack_examples(itertools.chain.from_iterable(examples for _, examples in runs), len(indices))
    return {"image": images, "label": labels, "index": indices}


@dataclasses.dataclass(frozen=True)
class Order:
    """Return the epochs and the examples at some places of the endless sequence that is cut into batches."""

    num_examples: int
    batch_size: int
    seed: int

    def __post_init__(self):
        count = self.num_examples
        if not 1 <= self.batch_size <= count:
            raise ValueError(
                f"a batch must have between 1 and {count} examples, which are all there are, not {self.batch_size}"
            )
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"a seed must be in 0..2**32 - 1, got {self.seed}")

    def __call__(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        count = self.num_examples
        epochs = np.arange(start, stop) // count
        parts = [
            _shuffled(count, self.seed, epoch)[max(start - epoch * count, 0) : stop - epoch * count]
            for epoch in range(start // count, max(start, stop - 1) // count + 1)
        ]
        return epochs, np.concatenate(parts)


@functools.lru_cache(maxsize=16)  # of several loaders at once; a batch lies in at most two epochs
def _shuffled(num_examples, seed, epoch):
    order = np.random.default_rng([seed, epoch]).permutation(num_examples).astype(np.int32)
    order.flags.writeable = False
    return order


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Read one process's part of the batches: `share` examples from `offset` on in each."""

    source: Source
    order: Order
    offset: int
    share: int
    num_steps: int
    transform: Transform | None
    random_transform: RandomTransform | None

    def run(self, first_step: int, turns: int, runs_per_batch: int, element: int):
        """Read the examples of one element of the grain dataset.

        Worker w of W gets the elements w, w + W, …, which must be the runs of its batches one after the other. In the
        last round some workers have no batch: grain leaves out None.
        """
        in_worker, worker = divmod(element, turns)
        round_, run = divmod(in_worker, runs_per_batch)
        step = first_step + round_ * turns + worker
        if step >= self.num_steps:
            return None
        start = step * self.order.batch_size + self.offset
        epochs, indices = self.order(start + run * _RUN, start + min((run + 1) * _RUN, self.share))
        return indices, list(map(self._example, epochs.tolist(), indices.tolist()))

    def _example(self, epoch, index):
        def transform(image):
            image = image if self.transform is None else self.transform(image)
            if self.random_transform is None:
                return image
            # of another kind than the generator of the shuffle: to NumPy the seeds [s, e] and [s, e, 0] are the same
            return self.random_transform(image, np.random.Generator(np.random.Philox([self.order.seed, epoch, index])))

        return read_example(self.source, index, transform)
