"""The evaluator against plain matrix products: batches, meshes, several networks at once, any data, bad datasets."""

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
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import soups
from soups import evaluate as room
from soups.data import Dataset
from soups.evaluate import Evaluator, LogitCache, Metric, NotFiniteError, _examples, evaluator, metrics
from soups.recipes.speculative import greedy_speculative

# Programs that are compiled differently may add up the 6 products and the bias of a logit, each below 4, otherwise.
REORDERED = {"rtol": 0, "atol": 7 * 2**-24 * 7 * 4}


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
        np.testing.assert_allclose(evaluate.logits(params), one_device, **REORDERED)
        assert evaluate.forward_passes == 37


def test_the_batch_is_sharded_over_the_data_axis(rng, mesh):
    evaluate = Evaluator(linear, make_dataset(rng), batch_size=16, mesh=mesh)
    evaluate(make_params(rng))
    shapes = {shard.data.shape[0] for batch in evaluate._resident for shard in batch[0].addressable_shards}
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
            np.testing.assert_allclose(logits, expected, **REORDERED)


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
    np.testing.assert_allclose(logits, Evaluator(linear, dataset, batch_size=16).logits(params), **REORDERED)
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
    assert np.shares_memory(evaluate._padded(dataset.images, 0, 10), dataset.images)
    assert len(evaluate._padded(dataset.images, 30, 10)) == 10  # 37 examples


def test_a_dataset_of_the_library_is_accepted(rng):
    arrays, params = make_dataset(rng), make_params(rng)
    dataset = Dataset(arrays.images, arrays.labels, tuple("abcde"))
    expected = Evaluator(linear, arrays).logits(params)
    pair = arrays.images, arrays.labels
    for form in (dataset, pair, list(pair), dict(zip(("image", "label"), pair, strict=True))):
        np.testing.assert_array_equal(Evaluator(linear, form).logits(params), expected)


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


# --- Several networks side by side ---


@pytest.fixture
def dataset(rng):
    return make_dataset(rng)


@pytest.fixture
def candidates(rng):
    return [make_params(rng) for _ in range(7)]


@pytest.mark.parametrize("count", [1, 4, 7])
def test_four_groups_of_two_devices_give_the_logits_of_one_after_the_other(dataset, candidates, count):
    pair = Mesh(np.array(jax.devices()[:2]), ("data",), axis_types=(AxisType.Auto,))
    one = Evaluator(linear, dataset, batch_size=16, mesh=pair)
    many = Evaluator(linear, dataset, width=4, batch_size=16)
    assert dict(many.mesh.shape) == {"member": 4, "data": 2}
    found = many.many_logits(candidates[:count])
    assert len(found) == count
    for logits, params in zip(found, candidates, strict=False):
        assert logits.dtype == np.float32
        np.testing.assert_array_equal(logits, one.logits(params))
        np.testing.assert_allclose(logits, logits_in_float64(params, dataset.images), rtol=1e-5, atol=1e-5)
    assert many.forward_passes == 37 * count
    assert many.many(candidates[:count]) == [one(params) for params in candidates[:count]]


@pytest.mark.parametrize("groups", [1, 8])
def test_any_division_of_the_devices(dataset, candidates, groups):
    expected = [Evaluator(linear, dataset).logits(params) for params in candidates]
    found = Evaluator(linear, dataset, width=groups).many_logits(candidates)
    np.testing.assert_allclose(found, expected, **REORDERED)
    assert Evaluator(linear, dataset, width=groups).many([]) == []


def test_some_of_the_devices(dataset, candidates):
    many = Evaluator(linear, dataset, width=3, devices=jax.devices()[2:5])
    assert many.mesh.devices.tolist() == [[device] for device in jax.devices()[2:5]]
    np.testing.assert_allclose(
        many.many_logits(candidates)[6], Evaluator(linear, dataset).logits(candidates[6]), **REORDERED
    )


def test_each_candidate_lies_on_its_own_group(dataset, candidates):
    many = Evaluator(linear, dataset, width=4)
    stacked = many._stacked(*[params["kernel"] for params in candidates[:4]])
    assert stacked.shape == (4, 6, 5)
    for shard in stacked.addressable_shards:
        ((row, _),) = np.argwhere(many.mesh.devices == shard.device)
        np.testing.assert_array_equal(shard.data[0], candidates[row]["kernel"])


def test_weights_on_a_device_and_in_bfloat16(dataset, candidates):
    narrow = [jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), params) for params in candidates[:4]]

    def apply(params, inputs):
        return linear(params, inputs.astype(jnp.bfloat16))

    found = Evaluator(apply, dataset, width=4).many_logits(narrow)
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

    many = Evaluator(traced, dataset, width=4, batch_size=16)
    many._data = dataset.images.view(Counting), None
    for _ in range(3):
        many.many_logits(candidates)
    again = Evaluator(traced, dataset, width=4, batch_size=16)
    again.many_logits(candidates[:2])
    assert traces == [(7, 3, 2, 1)]  # half of a batch of 14, on each of two devices
    assert [start for start in reads if start in (0, 14, 28)] == [0, 14, 28]


def test_a_large_dataset_moves_batch_by_batch_side_by_side(dataset, candidates, monkeypatch):
    expected = Evaluator(linear, dataset, width=4, batch_size=10).many_logits(candidates)
    monkeypatch.setattr(evaluator, "_RESIDENT_BYTES", 100)
    np.testing.assert_array_equal(Evaluator(linear, dataset, width=4, batch_size=10).many_logits(candidates), expected)


def test_class_groups_take_the_largest_output_side_by_side(dataset, candidates):
    dataset.labels = dataset.labels % 3
    dataset.class_groups = ((4,), (0, 2), (3, 1))
    one, many = Evaluator(linear, dataset), Evaluator(linear, dataset, width=4)
    np.testing.assert_allclose(many.many_logits(candidates), [one.logits(p) for p in candidates], **REORDERED)


def test_greedy_selection_over_the_groups_is_that_of_one_device(dataset, candidates):
    one, many = Evaluator(linear, dataset), Evaluator(linear, dataset, width=4)
    expected = soups.greedy(candidates, one, metric="accuracy")
    found = greedy_speculative(candidates, many.many, width=4, metric="accuracy")
    assert found.history == expected.history
    np.testing.assert_array_equal(found.params["kernel"], expected.params["kernel"])


@pytest.mark.parametrize("width", [None, 4])
def test_a_network_that_overflows_does_not_cost_the_others_their_results(dataset, candidates, width):
    evaluate = Evaluator(linear, dataset, width=width)
    expected = evaluate.many(candidates)
    broken = {**candidates[2], "kernel": np.full((6, 5), 3e38, np.float32)}  # finite, but its logits are not
    found = evaluate.many([*candidates[:2], broken, *candidates[3:]])
    assert [*found[:2], *found[3:]] == [*expected[:2], *expected[3:]]
    assert found[2].keys() == expected[2].keys() and all(np.isnan(value) for value in found[2].values())
    members = {f"m{index}": params for index, params in enumerate(candidates)} | {"m2": broken}
    for metric in ("accuracy", "nll"):
        one_by_one = soups.greedy(members, evaluate, metric=metric)
        assert [step["reason"] for step in one_by_one.history if step["member"] == "m2"] == ["its score is nan"]
        together = greedy_speculative(members, evaluate.many, width=4, metric=metric)
        assert repr(together.record()) == repr(one_by_one.record())


def test_the_old_class_says_what_it_is_called_now():
    with pytest.raises(ImportError, match=r"is Evaluator\(apply_fn, dataset, width=groups\)"):
        from soups.evaluate import ParallelEvaluator  # noqa: F401


# --- Any data and any metric ---


def regress(params, inputs):
    return {"near": inputs["x"] @ params["w"], "far": inputs["x"].sum(1) + inputs["n"].astype(jnp.float32)}


def far_error(outputs, targets):
    return float(np.abs(outputs["far"] - targets["far"]).mean())


@pytest.mark.parametrize("width", [None, 2])
@pytest.mark.parametrize("batch_size", [4, 100])
def test_pytrees_of_inputs_outputs_and_targets(rng, width, batch_size):
    inputs = {"x": rng.normal(size=(11, 3)).astype(np.float32), "n": rng.integers(0, 9, 11).astype(np.int32)}
    targets = {"near": rng.normal(size=(11, 2)), "far": rng.normal(size=11)}
    networks = [{"w": rng.normal(size=(3, 2)).astype(np.float32)} for _ in range(3)]
    wanted = {
        "far error": Metric(far_error, "min"),
        "mse": lambda outputs, targets: room.mse(outputs["near"], targets["near"]),
    }
    evaluate = Evaluator(regress, (inputs, targets), metrics=wanted, width=width, batch_size=batch_size)
    assert evaluate.modes == {"far error": "min", "mse": "min"}
    for params, found in zip(networks, evaluate.many(networks), strict=True):
        near = inputs["x"].astype(np.float64) @ params["w"].astype(np.float64)
        far = inputs["x"].sum(1, dtype=np.float64) + inputs["n"]
        expected = {"far error": np.abs(far - targets["far"]).mean(), "mse": np.square(near - targets["near"]).mean()}
        assert found == pytest.approx(expected, rel=1e-5) and evaluate(params) == found
    best = soups.greedy(networks, evaluate, metric="mse")
    assert best.score == min(evaluate(params)["mse"] for params in [*networks, best.params])


def test_metrics_by_name_and_a_mapping_with_image_and_label(rng):
    arrays, params = make_dataset(rng), make_params(rng, classes=6)
    names = ["top_5", "per_class_accuracy", "macro_f1", "accuracy"]
    found = Evaluator(linear, {"image": arrays.images, "label": arrays.labels}, metrics=names)(params)
    logits = logits_in_float64(params, arrays.images)
    assert found == pytest.approx({name: room.METRICS[name].function(logits, arrays.labels) for name in names})


def test_what_is_kept_of_the_outputs_is_computed_on_the_device(rng):
    tokens = rng.integers(0, 7, (10, 5)).astype(np.int32)
    targets = np.where(rng.random((10, 5)) < 0.2, -100, rng.integers(0, 7, (10, 5)))
    params = {"table": rng.normal(size=(7, 7)).astype(np.float32)}

    def predict(params, tokens):
        return params["table"][tokens]

    names = ["token_accuracy", "token_nll", "perplexity"]
    whole = Evaluator(predict, (tokens, targets), metrics=names)
    small = Evaluator(predict, (tokens, targets), metrics=names, keep=room.token_scores, batch_size=3)
    assert {name: leaf.shape for name, leaf in small.logits(params).items()} == {"nll": (10, 5), "correct": (10, 5)}
    assert small(params) == pytest.approx(whole(params), rel=1e-6)


@pytest.mark.parametrize("width", [None, 4])
def test_outputs_are_cached_by_the_weights(dataset, candidates, width, tmp_path):
    def make(key="linear on digits"):
        return Evaluator(linear, dataset, width=width, cache=LogitCache(tmp_path), key=key)

    first, again = make(), make()
    expected = Evaluator(linear, dataset, width=width).many_logits(candidates)
    np.testing.assert_array_equal(first.many_logits(candidates[:5]), expected[:5])
    copies = jax.tree.map(jnp.asarray, candidates)  # the same numbers elsewhere
    np.testing.assert_array_equal(again.many_logits(copies), expected)
    assert (first.forward_passes, again.forward_passes) == (5 * 37, 2 * 37)
    other = make("another key")
    other(candidates[0])
    assert other.forward_passes == 37
    with pytest.raises(ValueError, match="a cache needs a key="):
        make(None)


@pytest.mark.parametrize("outputs", [lambda p, x: {"file": x @ p, "sum/0": x.sum(1)}, lambda p, x: x @ p])
def test_several_outputs_are_cached_by_name(rng, tmp_path, outputs):
    inputs, targets = rng.normal(size=(11, 3)).astype(np.float32), np.zeros(11)
    cost = Metric(lambda found, _: float(sum(np.sum(leaf) for leaf in jax.tree.leaves(found))), "min")
    options = {"metrics": {"cost": cost}, "cache": LogitCache(tmp_path), "key": "sums", "batch_size": 4}
    first, again = (Evaluator(outputs, (inputs, targets), **options) for _ in range(2))
    params = rng.normal(size=3).astype(np.float32)
    jax.tree.map(np.testing.assert_array_equal, first.logits(params), again.logits(params))
    assert first(params) == again(params) and (first.forward_passes, again.forward_passes) == (11, 0)


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
    with pytest.raises(NotFiniteError):
        evaluate(params)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray, lambda leaf: leaf.astype(ml_dtypes.bfloat16)])
def test_inputs_that_are_not_finite_are_named_unless_a_preprocess_is_given(monkeypatch, value, kind):
    monkeypatch.setattr(_examples, "_BLOCK", 4)
    inputs, labels = np.zeros((10, 3), np.float32), np.arange(10) % 2
    tokens = np.zeros((10, 2), np.int32)
    Evaluator(linear, ({"a": kind(inputs), "b": tokens}, labels))
    inputs[[5, 7], 2] = value
    given = {"a": kind(np.zeros((10, 1), np.float32)), "b": tokens, "c": kind(inputs)}
    for inputs in (given, given["c"]):
        with pytest.raises(
            ValueError, match=r"inputs hold NaN or infinity, first in example 5: .* such as lambda x: x"
        ):
            Evaluator(linear, (inputs, labels))
        Evaluator(linear, (inputs, labels), preprocess=lambda x: x)


@pytest.mark.parametrize("groups", [0, 3])
def test_groups_that_do_not_divide_the_devices(dataset, groups):
    with pytest.raises(ValueError, match=rf"{groups} groups do not divide the devices of each process \(8\)"):
        Evaluator(linear, dataset, width=groups)


def test_what_the_evaluator_refuses_side_by_side(dataset):
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        Evaluator(linear, dataset, width=4, batch_size=0)
    dataset.class_groups = ((0,), (1,))
    with pytest.raises(ValueError, match="class_groups has 2 classes"):
        Evaluator(linear, dataset, width=4)


def test_a_network_whose_output_does_not_fit_side_by_side(dataset, candidates):
    few = [{"kernel": params["kernel"][:, :3], "bias": params["bias"][:3]} for params in candidates]
    with pytest.raises(ValueError, match="gives 3 classes, but the labels need at least 5"):
        Evaluator(linear, dataset, width=4).many(few)
    with pytest.raises(ValueError, match=r"must give logits \[19, classes\], not of shape \(19,\)"):
        Evaluator(lambda p, x: linear(p, x).sum(axis=1), dataset, width=4).many(candidates)
    with pytest.raises(ValueError, match=r"differ in structure.*"):
        Evaluator(linear, dataset, width=4).many([candidates[0], few[0]])


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ((np.zeros((3, 2)), np.zeros(4)), {"metrics": ["mse"]}, "its arrays have 3, 4 examples"),
        ((np.zeros((3, 2)), np.zeros(3)), {}, r"labels must be integers \[N\], not float64 .* give metrics="),
        ((np.zeros((3, 2)), {"a": np.zeros(3)}), {}, "not several arrays"),
        *[
            (
                (np.zeros((3, 2)), np.zeros((3, 1), int)),
                {"metrics": ["mse", name]},
                r"must be integers \[N\], not int64",
            )
            for name in [*room.classification.NAMES, "top_1", "top_5", "per_class_accuracy"]
        ],
        (np.zeros((3, 2)), {}, "the dataset must be a pair .* not a ndarray"),
        (
            {"image": np.zeros((3, 2)), "label": np.zeros(3, int), "mask": np.zeros(3)},
            {},
            r"(?s)keys of the dataset must be .*mask is extra",
        ),
        (([[1.0], [2.0]], np.zeros(2, int)), {}, r"it must hold arrays \[N, ...\], but 1.0 is not one: numpy.asarray"),
        ((np.zeros((3, 2)), [1.0, 2.0, 3.0]), {"metrics": ["mse"]}, "numpy.asarray makes arrays of lists"),
        ((np.zeros((3, 2)), np.zeros(3)), {"metrics": ["msee"]}, r"unknown metric 'msee' \(did you mean 'mse'\?\)"),
        (
            (np.zeros((3, 2)), np.zeros(3)),
            {"metrics": {"cost": far_error}},
            r"'cost' is better: give Metric\(function, 'max'\) or",
        ),
        ((np.zeros((3, 2)), np.zeros(3)), {"metrics": "mse"}, "metrics must be a list of names, or a mapping"),
        ((np.zeros((3, 2), ">f4"), np.zeros(3, int)), {}, r"has the byte order of other machines: .*'float32'"),
        ((np.zeros((3, 2)), np.ma.zeros(3, int)), {}, "is a masked array: leave out what is masked"),
        *[
            ((np.zeros((3, 2)), np.zeros(3, int)), {"batch_size": size}, "batch_size must be a whole number")
            for size in (1.5, "8", None, [4], np.nan)
        ],
        ((np.zeros((3, 2)), np.zeros(3, int)), {"width": 1.0}, "width must be an integer, not 1.0"),
        ((np.zeros((3, 2)), np.zeros(3, int)), {"preprocess": 3}, "preprocess must be a function .* not a int"),
        ((np.zeros((3, 2)), np.zeros(3, int)), {"keep": len}, "keep is called as keep.outputs, targets."),
        ((np.zeros((3, 2), object), np.zeros(3, int)), {}, "one of its inputs has dtype object: programs take arrays"),
        ((np.full((3, 2), "a"), np.zeros(3, int)), {}, "one of its inputs has dtype <U1: programs take arrays"),
        (
            (np.zeros((3, 2)), np.zeros(3, int)),
            {"metrics": {"f1": 3}},
            r"metrics\['f1'\] must be a function metrics.* not a int",
        ),
        (
            (np.zeros((3, 2)), np.zeros(3, int)),
            {"metrics": {"f1": lambda o: 1.0}},
            r"metrics\['f1'\] is called as .*\(outputs, targets",
        ),
        (
            (np.zeros((3, 2)), np.zeros(3, int)),
            {"cache": "here", "key": "k"},
            "cache must be a soups.evaluate.LogitCache",
        ),
        ((np.zeros((3, 2)), np.zeros(3, int)), {"width": 1, "devices": "cpu"}, "devices must be a list of them"),
        ((np.zeros((3, 2)), np.zeros(3, int)), {"mesh": "data"}, "mesh must be a jax.sharding.Mesh, not a str"),
        ((np.zeros((3, 2)), np.zeros(3)), {"metrics": []}, "metrics must be a list of names, or a mapping"),
        ((np.zeros((3, 2)), np.zeros(3, int)), {"mesh": "both", "width": 2}, "not both"),
    ],
)
def test_data_and_settings_that_cannot_be_evaluated(data, options, message, mesh):
    with pytest.raises(ValueError, match=message):
        Evaluator(linear, data, **({**options, "mesh": mesh} if options.get("mesh") == "both" else options))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (None, "weights must be a tree of arrays, not None"),
        ({"w": "a"}, "weights must be arrays of numbers:\n  w is a str"),
        ({"w": np.array(["a"])}, "  w has dtype <U1: programs take arrays of numbers alone"),
        ({"w": jax.ShapeDtypeStruct((2,), np.float32)}, "  w is a ShapeDtypeStruct"),
    ],
)
def test_weights_that_are_no_numbers_are_named_before_the_network_sees_them(dataset, params, message):
    with pytest.raises(ValueError, match=message):
        Evaluator(linear, dataset)(params)
    with pytest.raises(ValueError, match="several networks must be a list of their weights, not a dict"):
        Evaluator(linear, dataset).many({"a": params})


@pytest.mark.parametrize("apply_fn", ["linear", lambda params: 0, lambda params, x, key: x])
def test_what_is_no_function_of_weights_and_inputs_is_no_network(dataset, apply_fn):
    with pytest.raises(ValueError, match=r"apply_fn (must be a function|is called as) apply_fn.params, inputs"):
        Evaluator(apply_fn, dataset)


@pytest.mark.parametrize("found", [None, np.ones(3), "good"])
def test_what_a_metric_gives_is_a_number(dataset, candidates, found):
    evaluate = Evaluator(linear, dataset, metrics={"accuracy": lambda outputs, targets: found})
    with pytest.raises(ValueError, match="the metric 'accuracy' must give a number, not"):
        evaluate(candidates[0])


def test_images_of_other_integers_than_bytes_are_not_taken_as_they_are():
    evaluate = Evaluator(
        lambda params, x: x.reshape(len(x), -1)[:, :2], (np.zeros((3, 2, 2, 1), np.uint16), np.arange(3) % 2)
    )
    with pytest.raises(ValueError, match=r"images \[3, 2, 2, 1\] of dtype uint16 need a preprocess"):
        evaluate({})


def test_outputs_that_are_not_one_for_each_example(rng):
    inputs, targets = rng.normal(size=(6, 2)).astype(np.float32), np.zeros(6)
    with pytest.raises(ValueError, match=r"6 examples need outputs \[6, ...\], not of shape \(\)"):
        Evaluator(lambda params, x: x.sum(), (inputs, targets), metrics=["mse"])({})


PIXELS = np.random.default_rng(3).integers(0, 256, (40, 6, 6, 1)).astype(np.float32)


@pytest.mark.parametrize(
    ("inputs", "refused"),
    [
        (PIXELS, True),
        (PIXELS + np.float32(0.25) * (PIXELS < 250), True),  # as after resizing
        (PIXELS[..., 0], True),
        (PIXELS.astype(np.float64), True),
        ({"image": PIXELS, "size": np.ones((40, 2), np.float32)}, True),
        (PIXELS.astype(np.uint8), False),
        (PIXELS / 255, False),
        (PIXELS / 127 - 1, False),
        (PIXELS * 5, False),  # no bytes
        (PIXELS[..., 0] / 2, False),  # of three axes it may be anything
        (PIXELS.reshape(40, -1), False),
    ],
)
def test_images_of_floats_up_to_255_are_refused_unless_a_preprocess_is_named(inputs, refused):
    data = inputs, np.arange(40) % 2
    if refused:
        with pytest.raises(ValueError, match=r"images are floats up to 255, but only bytes .* such as lambda x: x"):
            Evaluator(lambda params, x: x, data)
        with pytest.raises(ValueError, match="images are floats up to 255"):
            Evaluator(lambda params, x: x, data, preprocess=evaluator.unit_range)
        assert Evaluator(lambda params, x: x, data, preprocess=lambda x: x)
    else:
        assert Evaluator(lambda params, x: x, data)
