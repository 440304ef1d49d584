"""Predict numbers and write words: losses against NumPy, and the head of a linear fit against the normal equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soups.train import Regression, TextToText, Training, fit, ridge_on_features

KEY = jax.random.key(0)


def linear(params, inputs, key):
    return inputs["x"] @ params["w"]


@pytest.fixture
def data(rng):
    """Return features of 40 examples, and numbers that depend on them."""
    x = rng.normal(size=(40, 3)).astype(np.float32)
    return x, (x @ [1.0, -2.0, 0.5] + 3 + 0.1 * rng.normal(size=40)).astype(np.float32)


@pytest.mark.parametrize("columns", [None, 1])
def test_the_loss_of_numbers_is_the_mean_squared_error(data, columns):
    x, y = data
    params = {"w": np.ones((3,) if columns is None else (3, 1), np.float32)}
    loss, updated = Regression(linear)(params, {"image": {"x": x}, "label": jnp.asarray(y)}, KEY)
    assert loss == pytest.approx(np.square(x.sum(axis=1) - y).mean(), rel=1e-5) and updated is params


def test_numbers_are_learned(data):
    x, y = data
    training = Training(loss=Regression(linear))
    start, batch = {"w": np.zeros((3, 1), np.float32)}, {"image": {"x": x}, "label": y - 3}
    made = fit(training, start, batch, batch_size=20, epochs=60, hyperparameters={"learning_rate": 0.1})
    np.testing.assert_allclose(made["params"]["w"][:, 0], [1, -2, 0.5], atol=0.1)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(4, np.int32), r"labels must be numbers, floats \[B\], not int32 \[4\]"),
        (np.zeros((4, 1), np.float32), r"floats \[B\], not float32 \[4, 1\]"),
        (np.array([0, 1, np.nan, 2], np.float32), "labels must be finite numbers"),
        ([0.0, 1.0], "not list"),
    ],
)
def test_labels_that_are_no_numbers_are_errors(labels, message):
    with pytest.raises(ValueError, match=message):
        Regression(linear).check({"image": {"x": np.zeros((4, 3))}, "label": labels}, {})


def test_several_outputs_are_errors(data):
    x, y = data
    with pytest.raises(ValueError, match=r"labels \[40\] need one output each, not outputs \[40, 2\]"):
        Regression(linear)({"w": np.ones((3, 2), np.float32)}, {"image": {"x": x}, "label": jnp.asarray(y)}, KEY)


def test_the_head_of_a_fit_solves_the_normal_equations(data):
    x, y = (one.astype(np.float64) for one in data)
    head = ridge_on_features(*data, strengths=[0.3])
    centred, scale = x - x.mean(axis=0), x.std()
    matrix = centred.T @ centred / scale**2 / len(x) + np.eye(3) / 0.3
    weights = np.linalg.solve(matrix, centred.T @ (y - y.mean()) / scale / len(x)) / scale
    np.testing.assert_allclose(head["kernel"][:, 0], weights, rtol=1e-5)
    np.testing.assert_allclose(head["bias"], [y.mean() - x.mean(axis=0) @ weights], rtol=1e-5)


def test_the_strength_is_chosen_by_the_held_out_error(data):
    x, y = data
    found = ridge_on_features(x[:30], y[:30], strengths=[1e-4, 100.0], held_out=(x[30:], y[30:]))
    np.testing.assert_array_equal(found["kernel"], ridge_on_features(x[:30], y[:30], strengths=[100.0])["kernel"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": np.zeros((4, 3))}, r"needed, not float64 \[4, 3\] and float\d\d \[40\]"),
        ({"strengths": 1.0}, "strengths must be a sequence of positive numbers, not 1.0"),
        ({"features": np.full((40, 3), "1")}, "needed, not <U1"),
        ({"held_out": (np.zeros((4, 2)), np.zeros(4))}, r"held_out has features \[4, 2\], not \[N, 3\]"),
        ({"held_out": (np.full((4, 3), np.nan), np.zeros(4))}, "held_out: features .* all finite"),
        ({"held_out": (np.zeros((4, 3)), np.zeros((4, 1)))}, r"held_out: .* not float64 \[4, 3\] and float64 \[4, 1\]"),
        ({"labels": np.full(40, np.inf)}, "all finite"),
        ({"strengths": [0.0]}, r"strengths must be .*\(0, inf\)|strengths"),
        ({"strengths": [1.0, 2.0]}, "several and held_out"),
        ({"strengths": []}, "one strength is needed"),
    ],
)
def test_fits_that_cannot_be_made_are_errors(data, changes, message):
    given = {"features": data[0], "labels": data[1], "strengths": [1.0]} | changes
    with pytest.raises(ValueError, match=message):
        ridge_on_features(given.pop("features"), given.pop("labels"), **given)


# --- Words ---

WORDS = np.array([[5, 3, 1], [2, 1, -1]], np.int32)


def writer(params, inputs, key):
    """Return logits that depend on the token before, and are wrong for others than those of the words."""
    return params["table"][inputs["decoder_tokens"]]


def test_the_loss_of_words_is_the_mean_over_their_tokens(rng):
    params = {"table": rng.normal(size=(6, 6)).astype(np.float32)}
    batch = {"image": {"tokens": np.zeros((3, 4), np.int32)}, "label": np.array([0, 1, 1])}
    found, updated = TextToText(writer, WORDS)(jax.tree.map(jnp.asarray, params), batch, KEY)
    table = params["table"].astype(np.float64)
    log = table - np.log(np.exp(table).sum(axis=1, keepdims=True))
    first, second = [log[0, 5], log[5, 3], log[3, 1]], [log[0, 2], log[2, 1]]
    assert found == pytest.approx(-np.mean([*first, *second, *second]), rel=1e-5) and updated["table"].shape == (6, 6)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            {"image": np.zeros(2), "label": np.array([0, 1])},
            "inputs must be arrays by name, as from a tokenizer, not a nda",
        ),
        ({"image": {}, "label": np.array([0, 2])}, "labels must be 0 to 1, but they go from 0 to 2"),
        ({"image": {}, "label": np.array([0.0, 1.0])}, r"labels must be whole numbers \[B\], not float64 \[2\]"),
    ],
)
def test_labels_that_are_no_classes_are_errors(batch, message):
    with pytest.raises(ValueError, match=message):
        TextToText(writer, WORDS).check(batch, {})


def test_words_without_a_token_are_errors():
    with pytest.raises(ValueError, match=r"words must be integers \[C, U\], each with a token"):
        TextToText(writer, np.array([[5, 1], [-1, -1]]))
