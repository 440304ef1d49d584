"""Shuffle and batch: one order for a seed, whatever the number of processes, resumable at every batch.

NumPy shuffles the epochs and grain reads the batches. Grain's own shuffle is a cipher on at least 16 bits, repeated
until the index fits: 5 µs for an index of 65,536, 25 µs of 1,000, milliseconds of four. NumPy takes 0.1 µs.
"""

import functools
from collections.abc import Mapping

import jax
import numpy as np

from soups.data.dataset import Source, read_example, stack_examples
from soups.data.transforms import Transform

_FOREVER = 2**62  # steps


def batch_indices(num_examples: int, batch_size: int, num_steps: int, seed: int) -> np.ndarray:
    """Give the examples of the first `num_steps` batches, int32 [num_steps, batch_size].

    It is the order of `loader`: every epoch is shuffled anew, and batches run across the borders of epochs, so that
    each example is used once per epoch and none is dropped.

    Raises:
        ValueError: a batch larger than the data, or a seed that is not in 0..2³²−1.
    """
    batch = _shuffled_batches(num_examples, batch_size, seed)
    return np.stack([batch(step) for step in range(num_steps)])


def loader(
    source: Source,
    batch_size: int,
    *,
    seed: int,
    num_epochs: int | None = None,
    transform: Transform | None = None,
    process_index: int | None = None,
    process_count: int | None = None,
    num_threads: int = 8,
):
    """Make a grain dataset that yields this process's part of every global batch.

    A batch is {"image": uint8 [B, H, W, C], "label": int32 [B], "index": int32 [B]}, B = batch_size / process_count.
    The parts of processes 0, 1, … one after the other are the batch that a single process would get. Batches are read
    ahead, each by one of `num_threads` threads (0: read when asked for). `num_epochs=None` never ends; otherwise the
    last batch is left out if it is not full. An iterator's `get_state()` and `set_state(state)` resume exactly.
    `process_index` and `process_count` are by default JAX's.

    Raises:
        ValueError: a batch that is larger than the data or that the processes cannot share evenly, a process index that
            does not exist, or a seed that is not in 0..2³²−1.
    """
    import grain  # takes half a second to import

    process_count = jax.process_count() if process_count is None else process_count
    process_index = jax.process_index() if process_index is None else process_index
    if not 0 <= process_index < process_count:
        raise ValueError(f"process {process_index} does not exist among {process_count} processes")
    if batch_size % process_count:
        raise ValueError(f"a batch of {batch_size} cannot be shared evenly by {process_count} processes")
    share = batch_size // process_count

    batch = _shuffled_batches(len(source), batch_size, seed)
    num_steps = _FOREVER if num_epochs is None else num_epochs * len(source) // batch_size

    def read(step: int) -> Mapping[str, np.ndarray]:
        mine = batch(step)[process_index * share : (process_index + 1) * share]
        images, labels = stack_examples((read_example(source, int(index), transform) for index in mine), share)
        return {"image": images, "label": labels, "index": mine}

    batches = grain.MapDataset.range(num_steps).map(read)
    return batches.to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads))


def _shuffled_batches(num_examples, batch_size, seed):
    """Give the function from a step to the indices of its batch."""
    if not 1 <= batch_size <= num_examples:
        raise ValueError(f"a batch must have between 1 and {num_examples} examples (all there are), not {batch_size}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"a seed must be in 0..2**32 - 1, got {seed}")

    @functools.lru_cache(maxsize=2)  # a batch lies in at most two epochs
    def epoch(number):
        return np.random.default_rng([seed, number]).permutation(num_examples).astype(np.int32)

    def batch(step):
        numbers, places = np.divmod(np.arange(step * batch_size, (step + 1) * batch_size), num_examples)
        return np.concatenate([epoch(number)[places[numbers == number]] for number in np.unique(numbers)])

    return batch
