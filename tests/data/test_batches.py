"""Batches: one order and one augmentation for a seed, whatever reads them, resumable."""

import contextlib
import itertools
import multiprocessing

import numpy as np
import PIL.Image
import pytest

from soups.data import array_source, batch_indices, folder_source, loader, to_channels
from soups.data.random_transforms import compose_random, random_flip, random_resized_crop

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
    settings = {"seed": 1, "random_transform": _augment}
    whole = _take(loader(source, 8, **settings), 6)
    parts = [_take(loader(source, 8, process_index=index, process_count=2, **settings), 6) for index in (0, 1)]
    for batch, first, second in zip(whole, *parts, strict=True):
        for name in batch:
            assert len(first[name]) == len(second[name]) == 4
            np.testing.assert_array_equal(np.concatenate([first[name], second[name]]), batch[name])


def test_a_finite_number_of_epochs_leaves_out_the_last_batch_if_not_full(source):
    batches = list(loader(source, 8, seed=1, num_epochs=2))
    assert len(batches) == 2 * COUNT // 8
    np.testing.assert_array_equal([batch["index"] for batch in batches], batch_indices(COUNT, 8, 5, 1))


@pytest.mark.parametrize("num_threads", [0, 8])
def test_an_iterator_resumes_exactly(source, num_threads):
    """In the middle of an epoch, with random transforms."""
    augmented = loader(source, 8, seed=2, random_transform=_augment, num_threads=num_threads)
    iterator = iter(augmented)
    for _ in range(4):
        next(iterator)
    state = iterator.get_state()
    expected = _take(iterator, 5)
    fresh = iter(augmented)  # as another process would
    fresh.set_state(state)
    _assert_equal(_take(fresh, 5), expected)
    iterator.set_state(state)
    _assert_equal(_take(iterator, 1), expected[:1])


def test_an_iterator_resumes_after_the_last_batch(source):
    iterator = iter(loader(source, 8, seed=2, num_epochs=1))
    assert len(list(iterator)) == 2 and list(iterator) == []
    state = iterator.get_state()
    fresh = iter(loader(source, 8, seed=2, num_epochs=1))
    fresh.set_state(state)
    assert state == {"next_index": 2} and list(fresh) == []


def _augment(image, rng):
    """Draw much and little, so that a generator shared by two examples would be seen."""
    return np.roll(image, rng.integers(16), 0) + rng.integers(0, 256, image.shape, np.uint8)


def _assert_equal(batches, expected):
    for batch, other in zip(batches, expected, strict=True):
        assert set(batch) == set(other)
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])


def test_random_draws_are_a_function_of_seed_epoch_and_example():
    source = array_source(np.zeros((COUNT, 4, 4, 1), np.uint8), np.arange(COUNT) % 5)

    def images(seed, batch_size, num_threads):
        batches = _take(loader(source, batch_size, seed=seed, random_transform=_augment, num_threads=num_threads), 6)
        index = np.concatenate([batch["index"] for batch in batches])[: 2 * COUNT].reshape(2, COUNT)
        drawn = np.concatenate([batch["image"] for batch in batches])[: 2 * COUNT].reshape(2, COUNT, 4, 4, 1)
        return np.stack([epoch[np.argsort(order)] for epoch, order in zip(drawn, index, strict=True)])

    drawn = images(0, 10, 0)
    np.testing.assert_array_equal(images(0, 8, 8), drawn)
    np.testing.assert_array_equal(images(0, 23, 1), drawn)
    all_drawn = np.concatenate([drawn, images(1, 10, 0)])  # 2 seeds x 2 epochs
    assert len({image.tobytes() for image in all_drawn.reshape(-1, 16)}) == 4 * COUNT


def test_the_draws_of_an_example_are_the_documented_generators(source):
    (batch,) = _take(loader(source, 8, seed=5, random_transform=_augment), 1)
    for image, index in zip(batch["image"], batch["index"], strict=True):
        expected = _augment(source.images[index], np.random.Generator(np.random.Philox([5, 0, index])))
        np.testing.assert_array_equal(image, expected)


def test_random_transforms_come_after_the_fixed_ones(source):
    seen = []
    random = lambda image, rng: (seen.append(image.shape), image)[1]  # noqa: E731
    _take(loader(source, 8, seed=5, transform=to_channels(3), random_transform=random, num_threads=0), 1)
    assert seen == [(4, 4, 3)] * 8


def test_workers_give_the_same_batches_and_resume_and_fail(tmp_path, rng):
    """One loader for all three, since starting processes takes seconds; the state is that of a loader without them."""
    for index in range(COUNT):
        path = tmp_path / str(index % 2) / f"{index:02d}.png"
        path.parent.mkdir(exist_ok=True)
        PIL.Image.fromarray(rng.integers(0, 256, (12, 12), dtype=np.uint8)).save(path)
    source = folder_source(tmp_path)
    settings = {"seed": 7, "random_transform": compose_random(random_resized_crop(8), random_flip())}
    expected = _take(loader(source, 5, num_epochs=1, num_threads=0, **settings), 4)
    broken = int(batch_indices(COUNT, 5, 4, 7)[3, 2])
    name = [*sorted(tmp_path.glob("0/*")), *sorted(tmp_path.glob("1/*"))][broken]
    name.write_bytes(b"no image")

    batches = loader(source, 5, num_epochs=1, num_threads=2, num_workers=2, **settings)
    with contextlib.closing(iter(batches)) as iterator:
        iterator.set_state({"next_index": 1})
        _assert_equal(_take(iterator, 2), expected[1:3])
        assert iterator.get_state() == {"next_index": 3}
        assert len(multiprocessing.active_children()) == 2
        with pytest.raises(ValueError, match=f"{name}: cannot be read as an image"):
            next(iterator)
        assert iterator.get_state() == {"next_index": 3}
    assert not multiprocessing.active_children()


def test_an_example_that_cannot_be_read_is_never_skipped(source):
    def broken(image):
        raise ValueError("broken")

    for num_threads in (0, 8):
        iterator = iter(loader(source, 8, seed=5, transform=broken, num_threads=num_threads))
        for _ in range(2):  # not an iterator that has come to its end after the first error
            with pytest.raises(ValueError, match="broken"):
                next(iterator)


def test_errors(source):
    with pytest.raises(ValueError, match=r"between 1 and 23 examples, .* not 24"):
        loader(source, 24, seed=0)
    with pytest.raises(ValueError, match=r"between 1 and 23 examples, .* not 0"):
        batch_indices(COUNT, 0, 1, seed=0)
    with pytest.raises(ValueError, match="batch of 9 cannot be shared evenly by 2 processes"):
        loader(source, 9, seed=0, process_index=0, process_count=2)
    with pytest.raises(ValueError, match="process 2 does not exist among 2 processes"):
        loader(source, 8, seed=0, process_index=2, process_count=2)
    for settings in ({"num_threads": -1}, {"num_workers": -2}):
        with pytest.raises(ValueError, match=r"num_threads and num_workers must not be negative"):
            loader(source, 8, seed=0, **settings)
    with pytest.raises(ValueError, match=r"images have different shapes, .* give a transform"):
        next(iter(loader(_Uneven(source.class_names), 20, seed=0)))
    for seed in (-1, 2**32):
        with pytest.raises(ValueError, match="seed must be in 0"):
            batch_indices(COUNT, 8, 1, seed)


class _Uneven:
    """A source of images of different heights."""

    def __init__(self, class_names):
        self.class_names = class_names

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        return {"image": np.zeros((3 + index % 2, 4, 1), np.uint8), "label": 0}
