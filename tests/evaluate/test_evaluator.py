"""The evaluator against plain matrix products: batches, padding, meshes, compilations, bad datasets."""

import dataclasses
import os
import pathlib
import re
import socket
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from soups.data import Dataset
from soups.evaluate import Evaluator, evaluator, metrics


@dataclasses.dataclass
class ArrayDataset:
    """Stand in for a Dataset without its checks, to be given everything that is wrong."""

    images: np.ndarray
    labels: np.ndarray
    class_groups: tuple | None = None


def linear(params, inputs):
    return inputs.reshape(len(inputs), -1) @ params["kernel"] + params["bias"][None]


def make_dataset(rng, n=37):
    return ArrayDataset(rng.integers(0, 256, (n, 3, 2, 1), np.uint8), (np.arange(n) % 5).astype(np.int32))


def make_params(rng, classes=5):
    return {
        "kernel": rng.normal(size=(6, classes)).astype(np.float32),
        "bias": rng.normal(size=classes).astype(np.float32),
    }


def logits_in_float64(params, images):
    inputs = images.reshape(len(images), -1).astype(np.float64) / 255
    return inputs @ params["kernel"].astype(np.float64) + params["bias"].astype(np.float64)


@pytest.mark.parametrize("batch_size", [1, 8, 10, 36, 37, 1000])
def test_every_example_counts_once_whatever_the_batch(rng, batch_size):
    dataset, params = make_dataset(rng), make_params(rng)
    logits = Evaluator(linear, dataset, batch_size=batch_size).logits(params)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, logits_in_float64(params, dataset.images), rtol=1e-5, atol=1e-5)


def test_batches_are_even_and_at_most_of_the_given_size(rng):
    shapes = []

    def record(params, inputs):
        shapes.append(inputs.shape)
        return linear(params, inputs)

    Evaluator(record, make_dataset(rng, 30), batch_size=20).logits(make_params(rng))
    assert shapes == [(15, 3, 2, 1)]


def test_a_call_gives_the_metrics_and_counts_examples(rng):
    dataset, params = make_dataset(rng), make_params(rng)
    evaluate = Evaluator(linear, dataset, batch_size=16)
    expected = metrics(logits_in_float64(params, dataset.images), dataset.labels)
    assert evaluate(params) == pytest.approx(expected, rel=1e-5)
    assert evaluate.forward_passes == 37
    evaluate(params)
    assert evaluate.forward_passes == 74


def test_a_mesh_gives_the_logits_of_one_device(rng, mesh):
    dataset, params = make_dataset(rng), make_params(rng)
    one_device = Evaluator(linear, dataset, batch_size=16).logits(params)
    flat = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    for some_mesh in (mesh, flat):
        evaluate = Evaluator(linear, dataset, batch_size=16, mesh=some_mesh)
        np.testing.assert_allclose(evaluate.logits(params), one_device, rtol=1e-6, atol=1e-6)
        assert evaluate.forward_passes == 37


def test_the_batch_is_sharded_over_the_data_axis(rng, mesh):
    evaluate = Evaluator(linear, make_dataset(rng), batch_size=16, mesh=mesh)
    evaluate(make_params(rng))
    shapes = {shard.data.shape[0] for batch in evaluate._resident for shard in batch.addressable_shards}
    assert shapes == {7}  # three batches of 14 over the two devices of the axis "data"


def test_weights_on_one_device_or_sharded_give_the_same(rng, mesh):
    dataset, params = make_dataset(rng), make_params(rng, classes=8)
    expected = Evaluator(linear, dataset).logits(params)
    sharded = jax.device_put(params, NamedSharding(mesh, PartitionSpec(None)))
    sharded["kernel"] = jax.device_put(params["kernel"], NamedSharding(mesh, PartitionSpec(None, "pool")))
    over_data = {**sharded, "kernel": jax.device_put(params["kernel"], NamedSharding(mesh, PartitionSpec("data")))}
    last_device = jax.device_put(params, jax.devices()[-1])
    for weights in (sharded, over_data, last_device):
        for some_mesh in (mesh, None):
            logits = Evaluator(linear, dataset, mesh=some_mesh).logits(weights)
            np.testing.assert_allclose(logits, expected, rtol=1e-6, atol=1e-6)


def test_weights_cut_over_data_are_gathered_and_not_the_batch(rng, mesh, monkeypatch):
    dataset, params, programs = make_dataset(rng), make_params(rng, classes=8), []

    def forward(*args, **options):
        programs.append(original.lower(*args, **options).compile().as_text())
        return original(*args, **options)

    original = evaluator._forward
    monkeypatch.setattr(evaluator, "_forward", forward)
    kernel = params["kernel"]
    cut = {**params, "kernel": jax.device_put(kernel, NamedSharding(mesh, PartitionSpec("data")))}
    logits = Evaluator(linear, dataset, batch_size=16, mesh=mesh).logits(cut)
    np.testing.assert_allclose(logits, Evaluator(linear, dataset, batch_size=16).logits(params), rtol=1e-6, atol=1e-6)
    gathered = set(re.findall(r"= f32\[([\d,]+)\]\S* all-gather\(", programs[0]))
    assert gathered == {"{},{}".format(*kernel.shape), "14,8"}  # and the logits of a batch


def test_many_weights_and_datasets_of_one_shape_compile_once(rng):
    traces = []

    def traced(params, inputs):
        traces.append(inputs.shape)
        return linear(params, inputs)

    for _ in range(3):
        evaluate = Evaluator(traced, make_dataset(rng), batch_size=10)
        for _ in range(3):
            evaluate(make_params(rng))
    assert len(traces) == 1


def test_a_large_dataset_moves_batch_by_batch(rng, monkeypatch):
    dataset, params = make_dataset(rng), make_params(rng)
    expected = Evaluator(linear, dataset, batch_size=10).logits(params)
    monkeypatch.setattr(evaluator, "_RESIDENT_BYTES", 100)
    evaluate = Evaluator(linear, dataset, batch_size=10)
    np.testing.assert_array_equal(evaluate.logits(params), expected)
    np.testing.assert_array_equal(evaluate.logits(params), expected)
    assert evaluate._resident is None


def test_images_stay_on_devices_up_to_a_sixteenth_of_their_memory():
    def device(gibibytes, process=0):
        stats = None if gibibytes is None else {"bytes_limit": gibibytes * 2**30}
        return SimpleNamespace(process_index=process, memory_stats=lambda: stats)

    assert evaluator.resident_bytes([device(None)], 1) == 2**30  # a CPU does not tell
    assert evaluator.resident_bytes([device(8)], 1) == 2**30
    assert evaluator.resident_bytes([device(80)], 1) == 5 * 2**30
    assert evaluator.resident_bytes([device(32)] * 4, 4) == 8 * 2**30
    assert evaluator.resident_bytes([device(32)] * 4, 2) == 4 * 2**30  # two devices have the same part
    assert evaluator.resident_bytes([device(64), device(32), device(1, process=1)], 3) == 6 * 2**30
    assert evaluator.resident_bytes(jax.devices(), 8) == 2**30


def test_full_batches_are_not_copied_on_their_way(rng):
    dataset = make_dataset(rng)
    evaluate = Evaluator(linear, dataset, batch_size=10)
    assert np.shares_memory(evaluate._padded(0, 10), dataset.images)
    assert len(evaluate._padded(30, 10)) == 10  # 37 examples


def test_a_dataset_of_the_library_is_accepted(rng):
    arrays, params = make_dataset(rng), make_params(rng)
    dataset = Dataset(arrays.images, arrays.labels, tuple("abcde"))
    np.testing.assert_array_equal(Evaluator(linear, dataset).logits(params), Evaluator(linear, arrays).logits(params))


def test_class_groups_take_the_largest_output(rng):
    dataset, params = make_dataset(rng), make_params(rng, classes=6)
    dataset.labels = dataset.labels % 3
    dataset.class_groups = ((4,), (0, 2, 5), (3, 1))
    full = logits_in_float64(params, dataset.images)
    expected = np.stack([full[:, [4]].max(1), full[:, [0, 2, 5]].max(1), full[:, [3, 1]].max(1)], axis=1)
    logits = Evaluator(linear, dataset).logits(params)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_a_preprocess_of_ones_own(rng):
    dataset, params = make_dataset(rng), make_params(rng)
    dataset.images = rng.normal(size=(37, 6)).astype(np.float32)
    logits = Evaluator(linear, dataset, preprocess=lambda x: x * 2).logits(params)
    np.testing.assert_allclose(logits, logits_in_float64(params, dataset.images * 2 * 255), rtol=1e-4, atol=1e-4)


def test_bfloat16_networks_give_float32(rng):
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), make_params(rng))
    evaluate = Evaluator(lambda p, x: linear(p, x.astype(jnp.bfloat16)), make_dataset(rng))
    assert evaluate.logits(params).dtype == np.float32


def test_two_processes_give_the_logits_of_one(rng, tmp_path):
    script = pathlib.Path(__file__).with_name("two_processes.py")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    workers = [
        subprocess.Popen(
            [sys.executable, script, str(process), port, tmp_path],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    try:
        for worker in workers:
            errors = worker.communicate(timeout=60)[1]
            assert worker.returncode == 0, errors
    finally:
        for worker in workers:
            worker.kill()
    first = np.random.default_rng(0)
    images = first.integers(0, 256, (37, 3, 2, 1), np.uint8)
    params = {"kernel": first.normal(size=(6, 5)).astype(np.float32), "bias": np.zeros(5, np.float32)}
    for process in range(2):
        logits = np.load(tmp_path / f"{process}.npy")
        np.testing.assert_allclose(logits, logits_in_float64(params, images), rtol=1e-5, atol=1e-5)


# --- Bad input ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.arange(30) % 5}, "37 images have 30 labels"),
        ({"labels": np.arange(37) % 5 - 1}, "labels go down to -1"),
        ({"labels": np.arange(37) / 5}, "labels must be integers"),
        ({"images": np.zeros((0, 3, 2, 1), np.uint8), "labels": np.zeros(0, int)}, "it has no examples"),
        ({"images": np.zeros((37, 6), np.float32)}, "images of dtype float32 need a preprocess"),
        ({"class_groups": ((0, 1),)}, "class_groups has 1 classes: at least two"),
        ({"class_groups": ((0,), (1,))}, "labels go up to 4, but class_groups has 2 classes"),
        ({"class_groups": ((0,), (1,), (), (2,), (-1,))}, r"group 2 of .*not \(\); group 4 of .*not \(-1,\)"),
    ],
)
def test_a_dataset_that_cannot_be_evaluated(rng, changes, message):
    dataset = dataclasses.replace(make_dataset(rng), **changes)
    with pytest.raises(ValueError, match=message):
        Evaluator(linear, dataset)


def test_a_mesh_or_batch_size_that_does_not_fit(rng):
    other = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
    with pytest.raises(ValueError, match="the mesh needs an axis 'data'; it has 'batch'"):
        Evaluator(linear, make_dataset(rng), mesh=other)
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        Evaluator(linear, make_dataset(rng), batch_size=0)


def test_a_network_whose_output_does_not_fit(rng):
    dataset = make_dataset(rng)
    with pytest.raises(ValueError, match="gives 3 classes, but the labels need at least 5"):
        Evaluator(linear, dataset)(make_params(rng, classes=3))
    with pytest.raises(ValueError, match="gives 1 classes, but the labels need at least 2"):
        Evaluator(linear, dataclasses.replace(dataset, labels=np.zeros(37, int)))(make_params(rng, classes=1))
    with pytest.raises(ValueError, match=r"must give logits \[37, classes\], not of shape \(37,\)"):
        Evaluator(lambda p, x: linear(p, x).sum(axis=1), dataset)(make_params(rng))
    dataset.class_groups = ((0,), (1,), (2,), (3,), (4, 9))
    with pytest.raises(ValueError, match="gives 5 classes, but the class groups need at least 10"):
        Evaluator(linear, dataset)(make_params(rng))


def test_weights_that_give_nan_are_an_error_of_the_metrics(rng):
    params = make_params(rng)
    params["bias"][2] = np.nan
    evaluate = Evaluator(linear, make_dataset(rng))
    assert np.isnan(evaluate.logits(params)[:, 2]).all()
    with pytest.raises(ValueError, match="37 of 37 examples hold NaN"):
        evaluate(params)
