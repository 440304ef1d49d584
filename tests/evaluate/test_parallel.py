"""Several candidates at once on groups of devices against the evaluator that takes one after the other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

import soups
from soups.evaluate import Evaluator, evaluator
from soups.evaluate.parallel import ParallelEvaluator
from soups.recipes.speculative import greedy_speculative


@dataclasses.dataclass
class ArrayDataset:
    images: np.ndarray
    labels: np.ndarray
    class_groups: tuple | None = None


def linear(params, inputs):
    return inputs.reshape(len(inputs), -1) @ params["kernel"] + params["bias"][None]


@pytest.fixture
def dataset(rng):
    return ArrayDataset(rng.integers(0, 256, (37, 3, 2, 1), np.uint8), (np.arange(37) % 5).astype(np.int32))


@pytest.fixture
def candidates(rng):
    return [
        {"kernel": rng.normal(size=(6, 5)).astype(np.float32), "bias": rng.normal(size=5).astype(np.float32)}
        for _ in range(7)
    ]


def logits_in_float64(params, images):
    inputs = images.reshape(len(images), -1).astype(np.float64) / 255
    return inputs @ params["kernel"].astype(np.float64) + params["bias"].astype(np.float64)


@pytest.mark.parametrize("count", [1, 4, 7])
def test_four_groups_of_two_devices_give_the_logits_of_one_after_the_other(dataset, candidates, count):
    pair = Mesh(np.array(jax.devices()[:2]), ("data",), axis_types=(AxisType.Auto,))
    one = Evaluator(linear, dataset, batch_size=16, mesh=pair)
    many = ParallelEvaluator(linear, dataset, 4, batch_size=16)
    assert dict(many.mesh.shape) == {"pool": 4, "data": 2}
    found = many.logits(candidates[:count])
    assert len(found) == count
    for logits, params in zip(found, candidates, strict=False):
        assert logits.dtype == np.float32
        np.testing.assert_array_equal(logits, one.logits(params))
        np.testing.assert_allclose(logits, logits_in_float64(params, dataset.images), rtol=1e-5, atol=1e-5)
    assert many.forward_passes == 37 * count
    assert many(candidates[:count]) == [one(params) for params in candidates[:count]]


@pytest.mark.parametrize("groups", [1, 8])
def test_any_division_of_the_devices(dataset, candidates, groups):
    expected = [Evaluator(linear, dataset).logits(params) for params in candidates]
    found = ParallelEvaluator(linear, dataset, groups).logits(candidates)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert ParallelEvaluator(linear, dataset, groups).logits([]) == []


def test_some_of_the_devices(dataset, candidates):
    many = ParallelEvaluator(linear, dataset, 3, devices=jax.devices()[2:5])
    assert many.mesh.devices.tolist() == [[device] for device in jax.devices()[2:5]]
    np.testing.assert_allclose(many.logits(candidates)[6], Evaluator(linear, dataset).logits(candidates[6]), rtol=1e-6)


def test_each_candidate_lies_on_its_own_group(dataset, candidates):
    many = ParallelEvaluator(linear, dataset, 4)
    stacked = many._stacked(*[params["kernel"] for params in candidates[:4]])
    assert stacked.shape == (4, 6, 5)
    for shard in stacked.addressable_shards:
        ((row, _),) = np.argwhere(many.mesh.devices == shard.device)
        np.testing.assert_array_equal(shard.data[0], candidates[row]["kernel"])


def test_weights_on_a_device_and_in_bfloat16(dataset, candidates):
    narrow = [jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), params) for params in candidates[:4]]

    def apply(params, inputs):
        return linear(params, inputs.astype(jnp.bfloat16))

    found = ParallelEvaluator(apply, dataset, 4).logits(narrow)
    np.testing.assert_allclose(found, [Evaluator(apply, dataset).logits(p) for p in narrow], rtol=1e-2, atol=1e-2)


def test_one_compilation_and_one_reading_of_the_images(dataset, candidates):
    traces, reads = [], []

    def traced(params, inputs):
        traces.append(inputs.shape)
        return linear(params, inputs)

    class Counting(np.ndarray):
        def __getitem__(self, index):
            if isinstance(index, slice):
                reads.append(index.start)
            return super().__getitem__(index)

    many = ParallelEvaluator(traced, dataset, 4, batch_size=16)
    many._evaluator._images = dataset.images.view(Counting)
    for _ in range(3):
        many.logits(candidates)
    again = ParallelEvaluator(traced, dataset, 4, batch_size=16)
    again.logits(candidates[:2])
    assert traces == [(7, 3, 2, 1)]  # half of a batch of 14, on each of two devices
    assert [start for start in reads if start in (0, 14, 28)] == [0, 14, 28]


def test_a_large_dataset_moves_batch_by_batch(dataset, candidates, monkeypatch):
    expected = ParallelEvaluator(linear, dataset, 4, batch_size=10).logits(candidates)
    monkeypatch.setattr(evaluator, "_RESIDENT_BYTES", 100)
    np.testing.assert_array_equal(ParallelEvaluator(linear, dataset, 4, batch_size=10).logits(candidates), expected)


def test_class_groups_take_the_largest_output(dataset, candidates):
    dataset.labels = dataset.labels % 3
    dataset.class_groups = ((4,), (0, 2), (3, 1))
    one, many = Evaluator(linear, dataset), ParallelEvaluator(linear, dataset, 4)
    np.testing.assert_allclose(many.logits(candidates), [one.logits(p) for p in candidates], rtol=1e-6, atol=1e-6)


def test_greedy_selection_over_the_groups_is_that_of_one_device(dataset, candidates):
    one, many = Evaluator(linear, dataset), ParallelEvaluator(linear, dataset, 4)
    expected = soups.greedy(candidates, one, metric="accuracy")
    found = greedy_speculative(candidates, many, width=4, metric="accuracy")
    assert found.history == expected.history
    np.testing.assert_array_equal(found.params["kernel"], expected.params["kernel"])


# --- Bad input ---


@pytest.mark.parametrize("groups", [0, 3])
def test_groups_that_do_not_divide_the_devices(dataset, groups):
    with pytest.raises(ValueError, match=rf"{groups} groups do not divide the devices of each process \(8\)"):
        ParallelEvaluator(linear, dataset, groups)


def test_what_the_evaluator_refuses(dataset):
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        ParallelEvaluator(linear, dataset, 4, batch_size=0)
    dataset.class_groups = ((0,), (1,))
    with pytest.raises(ValueError, match="class_groups has 2 classes"):
        ParallelEvaluator(linear, dataset, 4)


def test_a_network_whose_output_does_not_fit(dataset, candidates):
    few = [{"kernel": params["kernel"][:, :3], "bias": params["bias"][:3]} for params in candidates]
    with pytest.raises(ValueError, match="gives 3 classes, but the dataset needs at least 5"):
        ParallelEvaluator(linear, dataset, 4)(few)
    with pytest.raises(ValueError, match=r"must give logits \[19, classes\], not of shape \(19,\)"):
        ParallelEvaluator(lambda p, x: linear(p, x).sum(axis=1), dataset, 4)(candidates)
    with pytest.raises(ValueError, match=r"differ in structure.*"):
        ParallelEvaluator(linear, dataset, 4)([candidates[0], few[0]])
