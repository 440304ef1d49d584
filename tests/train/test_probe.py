"""Test features and probes against NumPy and scikit-learn."""

import itertools
import os

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from sklearn.linear_model import LogisticRegression

from soups.data import array_source
from soups.evaluate import LogitCache
from soups.train import probe
from soups.train.probe import extract_features, probe_on_features

CLASSES, WIDTH = 3, 5


def trunk(params, inputs):
    """Return more classes than features, as CLIP has."""
    return inputs.reshape(len(inputs), -1) @ params["kernel"]


@pytest.fixture
def pictures(rng):
    """Return 30 images of labels 0 to 29, weights and what the features must be."""
    images = rng.integers(0, 256, (30, 4, 3, 1), np.uint8)
    kernel = rng.normal(size=(12, WIDTH)).astype(np.float32)
    expected = images.reshape(30, -1) / 255.0 @ kernel.astype(np.float64)
    return array_source(images, np.arange(30)), {"kernel": kernel}, expected


@pytest.fixture(scope="module")
def examples():
    """Return 200 features of a small size in three classes that overlap, and their labels."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, CLASSES, 200)
    features = 0.04 * (rng.normal(size=(CLASSES, WIDTH))[labels] + rng.normal(size=(200, WIDTH))) + 0.01
    return features.astype(np.float32), labels


@pytest.fixture(scope="module")
def data_mesh():
    """Return a mesh of 8 devices along "data"."""
    return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))


# --- Features ---


def test_features_are_those_of_the_trunk(pictures, data_mesh):
    dataset, params, expected = pictures
    for mesh in (None, data_mesh):
        features = extract_features(trunk, params, dataset, batch_size=7, mesh=mesh)
        assert features.dtype == np.float32
        np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)


def test_a_source_is_decoded_batch_by_batch(pictures, monkeypatch):
    dataset, params, expected = pictures
    monkeypatch.setattr("soups.evaluate.evaluator._RESIDENT_BYTES", 0)
    decoded = []

    class Source:
        class_names = dataset.class_names

        def __len__(self):
            return len(dataset)

        def __getitem__(self, index):
            decoded.append(index)
            return dataset[index]

    features = extract_features(
        lambda params, inputs: trunk(params, inputs[:, ::-1]),
        params,
        Source(),
        transform=lambda image: image[::-1],
        batch_size=8,
    )
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)
    assert sorted(decoded) == sorted([0, *range(30)])  # the first one also tells the shape


def test_features_are_kept(pictures, tmp_path):
    dataset, params, _ = pictures
    cache = LogitCache(tmp_path)
    first = extract_features(trunk, params, dataset, cache=cache, key=("weights", "data"))

    def not_again(params, inputs):
        raise AssertionError("the features are on the disk")

    again = extract_features(not_again, params, dataset, cache=cache, key=("weights", "data"))
    np.testing.assert_array_equal(again, first)
    with pytest.raises(ValueError, match="a cache needs a key="):
        extract_features(trunk, params, dataset, cache=cache)


# --- The probe ---


def scaled(features):
    return (features.astype(np.float64) - features.mean(dtype=np.float64)) / features.std(dtype=np.float64)


@pytest.mark.parametrize("strength", [1e-3, 1.0])
def test_a_probe_is_the_logistic_regression_of_scikit_learn(examples, strength):
    features, labels = examples
    head = probe_on_features(features, labels, num_classes=CLASSES, strengths=[strength])
    oracle = LogisticRegression(C=strength, tol=1e-8, max_iter=1000).fit(scaled(features), labels)
    mean, std = features.mean(dtype=np.float64), features.std(dtype=np.float64)
    kernel = oracle.coef_.T / std
    bias = oracle.intercept_ - mean * kernel.sum(0)
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in head.items()} == {
        "kernel": ((WIDTH, CLASSES), np.float32),
        "bias": ((CLASSES,), np.float32),
    }
    # the sum of the logits is free, which scikit-learn may use for the bias
    centred = lambda array: array - array.mean(-1, keepdims=True)  # noqa: E731
    scale = np.abs(kernel).max()
    np.testing.assert_allclose(centred(head["kernel"]), centred(kernel), atol=2e-4 * scale)
    np.testing.assert_allclose(centred(head["bias"]), centred(bias), atol=2e-4 * scale)


def test_chunks_and_devices_make_no_difference(examples, data_mesh, monkeypatch):
    features, labels = examples
    options = {"num_classes": CLASSES, "strengths": [1.0]}
    whole = probe_on_features(features, labels, **options)
    monkeypatch.setattr(probe, "_CHUNK", 7)  # 200 examples in 29 chunks, or in 4 of 8 devices: both with padding
    for mesh in (None, data_mesh):
        parted = probe_on_features(features, labels, mesh=mesh, **options)
        np.testing.assert_allclose(parted["kernel"], whole["kernel"], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(parted["bias"], whole["bias"], rtol=1e-3, atol=1e-3)


def test_the_strength_is_chosen_by_what_is_held_out(examples):
    features, labels = examples
    noisy = np.where(np.arange(200) < 100, labels, np.random.default_rng(0).integers(0, CLASSES, 200))
    rows = []
    options = {"num_classes": CLASSES, "strengths": (1e2, 1e-7, 1e-2, 1e-3), "on_strength": rows.append}
    held_out = features[100:], labels[100:]
    head = probe_on_features(features[80:], noisy[80:], held_out=held_out, **options)
    assert [row["strength"] for row in rows] == [1e-7, 1e-3, 1e-2, 1e2]
    assert all(later["loss"] < earlier["loss"] for earlier, later in itertools.pairwise(rows))
    right = np.argmax(held_out[0] @ head["kernel"] + head["bias"], axis=1) == held_out[1]
    best = max(row["accuracy"] for row in rows)
    assert right.mean() == best > min(row["accuracy"] for row in rows)
    alone = probe_on_features(
        features[80:],
        noisy[80:],
        num_classes=CLASSES,
        strengths=[next(r["strength"] for r in rows if r["accuracy"] == best)],
    )
    np.testing.assert_allclose(head["kernel"], alone["kernel"], rtol=0.02, atol=0.02 * np.abs(alone["kernel"]).max())


class Killed(Exception):
    pass


@pytest.mark.parametrize("survived", [0, 1, 3])
def test_a_killed_probe_fits_no_strength_twice(examples, tmp_path, monkeypatch, survived):
    features, labels = examples
    data = {"features": features, "labels": labels, "num_classes": CLASSES, "held_out": (features, labels)}
    options = data | {"strengths": (1e2, 1e-7, 1e-2, 1e-3), "journal": tmp_path / "new" / "probe.jsonl"}
    fitted, real = [], probe._fit

    def fit(*arguments):
        if len(fitted) == survived:
            raise Killed
        fitted.append(arguments)
        return real(*arguments)

    rows, expected = [], []
    whole = probe_on_features(**options | {"journal": None}, on_strength=expected.append)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(probe, "_fit", fit)
        probe_on_features(**options)
    monkeypatch.setattr(probe, "_fit", lambda *arguments: fitted.append(arguments) or real(*arguments))
    head = probe_on_features(**options, on_strength=rows.append)
    assert len(fitted) == 4 and rows == expected
    for name, leaf in whole.items():
        np.testing.assert_array_equal(head[name], leaf)
    for change, line in [
        ({"max_iterations": 9}, "  max_iterations: 200 there, 9 here"),
        ({"strengths": (1.0,)}, "  strengths: [1e-07, 0.001, 0.01, 100.0] there, [1.0] here"),
        ({"features": features + 1}, "  data: "),
        ({"labels": labels[::-1]}, "  data: "),
    ]:
        with pytest.raises(ValueError, match=r"probe\.jsonl was written by a different call") as error:
            probe_on_features(**options | change)
        assert str(error.value).splitlines()[1].startswith(line)
    assert len(fitted) == 4


def test_a_full_disk_names_the_journal_of_the_probe(examples, tmp_path, monkeypatch):
    features, labels = examples
    options = {"num_classes": CLASSES, "strengths": [1.0], "journal": tmp_path / "probe.jsonl"}
    with open("/dev/full", "w") as full:
        flushed = []  # first the journal's header, then its records
        monkeypatch.setattr(os, "fsync", lambda _: os.write(full.fileno(), b"x") if flushed else flushed.append(1))
        with pytest.raises(OSError, match=r"cannot write .*probe\.jsonl: No space left on device"):
            probe_on_features(features, labels, **options)


def test_what_cannot_be_fitted_is_listed(examples):
    features, labels = examples
    with pytest.raises(ValueError, match="a probe cannot be fitted") as error:
        probe_on_features(
            np.where(np.arange(WIDTH) == 2, np.nan, features),
            labels + 1,
            num_classes=CLASSES,
            strengths=[0.0, 1.0],
            held_out=(np.ones((4, 2), np.float32), np.zeros(4, np.int32)),
        )
    assert str(error.value).splitlines()[1:] == [
        "  labels of the features must be integers from 0 to 2",
        "  the features hold NaN or infinity",
        "  held_out are all equal",
        "  held_out has features [4, 2], not [N, 5]",
        "  strengths must be positive numbers, not (0.0, 1.0)",
    ]
    for wrong in (labels[:-1], labels[:, None]):
        with pytest.raises(ValueError, match=r"the features must be \[N, D\] with labels \[N\], not \[200, 5\] with"):
            probe_on_features(features, wrong, num_classes=CLASSES, strengths=[1.0])
    with pytest.raises(ValueError, match="10 strengths need held_out to choose among them"):
        probe_on_features(features, labels, num_classes=CLASSES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": "3"}, "num_classes must be a whole number, not '3'"),
        ({"num_classes": 1}, "num_classes must be at least 2, not 1"),
        ({"max_iterations": -1}, "max_iterations must be at least 1, not -1"),
        ({"strengths": 1.0}, "strengths must be a sequence of positive numbers, not 1.0"),
        ({"strengths": ["a"]}, r"strengths must be positive numbers, not \('a',\)"),
        ({"held_out": 3}, "held_out must be a pair"),
        ({"features": np.ones((4, 2), np.complex64)}, "the features must be real numbers, not complex64"),
        ({"features": np.ma.ones((4, 2))}, "one of the features and labels is a masked array"),
        ({"journal": "hf://bucket/j"}, "is a URL: give a local path"),
    ],
)
def test_what_a_probe_does_not_take(changes, message):
    given = {"features": np.eye(4, 2), "labels": np.arange(4) % CLASSES, "num_classes": CLASSES, "strengths": [1.0]}
    with pytest.raises(ValueError, match=message):
        probe_on_features(**given | changes)
