"""Batches: one order for a seed, shared by processes, resumable."""

import itertools

import numpy as np
import pytest

from soups.data import array_source, batch_indices, loader, to_channels

COUNT = 23


@pytest.fixture
def source(rng):
    return array_source(rng.integers(0, 256, (COUNT, 4, 4, 1), dtype=np.uint8), np.arange(COUNT) % 5)


def _take(batches, count):
    return list(itertools.islice(iter(batches), count))


def test_epochs_are_shuffled_anew_and_batches_run_across_their_borders():
    order = batch_indices(COUNT, 8, num_steps=9, seed=5)
    assert order.shape == (9, 8) and order.dtype == np.int32
    epochs = order.ravel()[: 3 * COUNT].reshape(3, COUNT)
    for epoch in epochs:
        assert sorted(epoch) == list(range(COUNT))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert tuple(epochs[0]) != tuple(range(COUNT))


def test_every_order_is_equally_likely():
    orders = np.concatenate([batch_indices(4, 4, 100, seed) for seed in range(24)])
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    assert np.sum(np.square(counts - 100)) / 100 < 49.7  # chi-squared with 23 degrees of freedom, p = 0.001


def test_the_order_is_a_function_of_the_seed():
    orders = [batch_indices(COUNT, 8, 4, seed) for seed in range(5)]
    np.testing.assert_array_equal(orders[0], batch_indices(COUNT, 8, 4, 0))
    assert len({order.tobytes() for order in orders}) == 5
    # the number of steps and the size of the batches do not change it
    np.testing.assert_array_equal(orders[0].ravel()[:30], batch_indices(COUNT, 6, 5, 0).ravel())


def test_the_second_epoch_is_not_the_first_of_the_next_seed():
    epochs = [batch_indices(COUNT, COUNT, 2, seed) for seed in range(4)]
    assert len({epoch.tobytes() for order in epochs for epoch in order}) == 8


@pytest.mark.parametrize("num_threads", [0, 8])
def test_the_loader_yields_that_order(source, num_threads):
    batches = _take(loader(source, 8, seed=5, num_threads=num_threads), 7)
    np.testing.assert_array_equal([batch["index"] for batch in batches], batch_indices(COUNT, 8, 7, 5))
    for batch in batches:
        np.testing.assert_array_equal(batch["image"], source.images[batch["index"]])
        np.testing.assert_array_equal(batch["label"], source.labels[batch["index"]])
    assert {name: values.dtype.name for name, values in batches[0].items()} == {
        "image": "uint8",
        "label": "int32",
        "index": "int32",
    }


def test_the_loader_transforms(source):
    (batch,) = _take(loader(source, 8, seed=5, transform=to_channels(3)), 1)
    np.testing.assert_array_equal(batch["image"], source.images[batch["index"]].repeat(3, 3))


def test_processes_tile_the_global_batch(source):
    whole = _take(loader(source, 8, seed=1), 6)
    parts = [_take(loader(source, 8, seed=1, process_index=index, process_count=2), 6) for index in (0, 1)]
    for batch, first, second in zip(whole, *parts, strict=True):
        for name in batch:
            assert len(first[name]) == len(second[name]) == 4
            np.testing.assert_array_equal(np.concatenate([first[name], second[name]]), batch[name])


def test_a_finite_number_of_epochs_leaves_out_the_last_batch_if_not_full(source):
    batches = list(loader(source, 8, seed=1, num_epochs=2))
    assert len(batches) == 2 * COUNT // 8
    np.testing.assert_array_equal([batch["index"] for batch in batches], batch_indices(COUNT, 8, 5, 1))


@pytest.mark.parametrize("num_threads", [0, 4])
def test_an_iterator_resumes_exactly(source, num_threads):
    iterator = iter(loader(source, 8, seed=2, num_threads=num_threads))
    for _ in range(4):
        next(iterator)
    state = iterator.get_state()
    expected = [next(iterator)["index"] for _ in range(5)]
    fresh = iter(loader(source, 8, seed=2, num_threads=num_threads))  # as another process would
    fresh.set_state(state)
    np.testing.assert_array_equal([next(fresh)["index"] for _ in range(5)], expected)
    iterator.set_state(state)
    np.testing.assert_array_equal(next(iterator)["index"], expected[0])


def test_errors(source):
    with pytest.raises(ValueError, match=r"between 1 and 23 examples .* not 24"):
        loader(source, 24, seed=0)
    with pytest.raises(ValueError, match=r"between 1 and 23 examples .* not 0"):
        batch_indices(COUNT, 0, 1, seed=0)
    with pytest.raises(ValueError, match="batch of 9 cannot be shared evenly by 2 processes"):
        loader(source, 9, seed=0, process_index=0, process_count=2)
    with pytest.raises(ValueError, match="process 2 does not exist among 2 processes"):
        loader(source, 8, seed=0, process_index=2, process_count=2)
    for seed in (-1, 2**32):
        with pytest.raises(ValueError, match="seed must be in 0"):
            batch_indices(COUNT, 8, 1, seed)
