"""Test that workers which seldom exchange their weights find what the formulas say, wherever they are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soups.data.batches import batch_indices
from soups.train import Exchange, Training, fit_workers
from soups.train.lanes import lane_mesh

WORKERS, STEPS, BATCH, RATE = 4, 7, 8, 0.05
RNG = np.random.default_rng(0)
DATA = {"x": RNG.normal(size=(20, 5)).astype(np.float32), "y": RNG.normal(size=(20, 3)).astype(np.float32)}
START = {"w": RNG.normal(size=(5, 3)).astype(np.float32), "kept": np.float32([1.1, 2.2, 3.3])}
NESTEROV = optax.sgd(0.7, momentum=0.9, nesterov=True)


def loss(params, batch, key):
    return jnp.mean((batch["x"] @ params["w"] + params["kept"][None] - batch["y"]) ** 2)


TRAINING = Training(
    loss=loss,
    optimizer=lambda learning_rate=RATE: optax.sgd(RATE),
    learning_rate_rules=(("kept", 0.0), (".*", 1.0)),
)
train = functools.partial(fit_workers, TRAINING, START, DATA, steps=STEPS, batch_size=BATCH)


def by_hand(every, outer_rate=1.0, momentum=0.0):
    """Return the weights that NumPy finds in float64: local steps, then Nesterov's on the moves of the average."""
    x, y = np.float64(DATA["x"]), np.float64(DATA["y"])
    orders = [batch_indices(20, BATCH, STEPS, seed) for seed in range(WORKERS)]
    begin = np.float64(START["w"])
    workers, velocity = [begin] * WORKERS, np.zeros_like(begin)
    for step in range(STEPS):
        for worker, order in enumerate(orders):
            rows = order[step]
            error = x[rows] @ workers[worker] + START["kept"] - y[rows]
            workers[worker] = workers[worker] - RATE * 2 * x[rows].T @ error / error.size
        if step + 1 == STEPS or (every and (step + 1) % every == 0):
            move = begin - np.mean(workers, axis=0)
            velocity = momentum * velocity + move
            begin = begin - outer_rate * (move + momentum * velocity if momentum else move)
            workers = [begin] * WORKERS
    return begin


@pytest.mark.parametrize(
    ("exchange", "expected"),
    [
        (Exchange(), by_hand(None)),
        (Exchange(every=3), by_hand(3)),
        (Exchange(every=3, outer=NESTEROV), by_hand(3, 0.7, 0.9)),
        (Exchange(every=1), by_hand(1)),
    ],
    ids=["lo-fi", "local SGD", "DiLoCo", "every step"],
)
def test_they_find_what_the_formulas_say(exchange, expected):
    made = train(WORKERS, exchange=exchange)
    np.testing.assert_allclose(made["w"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(made["kept"], START["kept"])
    on_mesh = train(exchange=exchange, mesh=lane_mesh({"pool": WORKERS, "data": 2}))
    np.testing.assert_allclose(on_mesh["w"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(on_mesh["kept"], START["kept"])


def test_plain_descent_that_averages_at_each_step_is_gradients_that_are_all_reduced():
    orders = np.stack([batch_indices(20, BATCH, STEPS, seed) for seed in range(WORKERS)], axis=1)
    weights = np.float64(START["w"])
    for rows in orders.reshape(STEPS, -1):
        error = np.float64(DATA["x"])[rows] @ weights + START["kept"] - DATA["y"][rows]
        weights = weights - RATE * 2 * np.float64(DATA["x"])[rows].T @ error / error.size
    np.testing.assert_allclose(by_hand(1), weights)


def test_statistics_are_averaged_without_the_outer_optimizer():
    start = {"params": {"w": np.ones((5, 3), np.float32)}, "batch_stats": {"mean": np.zeros(5, np.float32)}}

    def moving(params, batch, key):
        mean = 0.5 * params["batch_stats"]["mean"] + 0.5 * batch["x"].mean(0)
        return jnp.mean((batch["x"] @ params["params"]["w"] - batch["y"]) ** 2), {
            "params": params["params"],
            "batch_stats": {"mean": mean},
        }

    options = {"steps": 1, "batch_size": BATCH, "optimizer": optax.sgd(RATE)}
    made = fit_workers(moving, start, DATA, 3, exchange=Exchange(outer=NESTEROV), **options)
    rows = [batch_indices(20, BATCH, 1, seed)[0] for seed in range(3)]
    expected = np.mean([0.5 * np.float64(DATA["x"])[one].mean(0) for one in rows], axis=0)
    np.testing.assert_allclose(made["batch_stats"]["mean"], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("place", [{"workers": WORKERS}, {"mesh": True}], ids=["one device", "mesh"])
def test_a_run_that_was_killed_goes_on_to_the_bit(tmp_path, place):
    place = {"mesh": lane_mesh({"pool": WORKERS, "data": 2})} if "mesh" in place else place
    options = {"exchange": Exchange(every=3, outer=NESTEROV), **place}

    def killed(index, losses):
        assert len(losses) == WORKERS
        if index == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(directory=tmp_path / "run", save_every=2, on_step=killed, **options)
    made = train(directory=tmp_path / "run", save_every=2, **options)
    np.testing.assert_array_equal(made["w"], train(**options)["w"])
    with pytest.raises(ValueError, match=r"training.exchange: .*every.*3"):
        train(directory=tmp_path / "run", **place)


def test_what_is_wrong_is_said():
    for wrong in ({}, {"workers": 2, "mesh": lane_mesh({"pool": 2, "data": 4})}):
        with pytest.raises(ValueError, match="either a number of workers, or a mesh"):
            train(**wrong)
    for every in (0, 1.5, -1, True):
        with pytest.raises(ValueError, match="every must be"):
            Exchange(every=every)
    with pytest.raises(ValueError, match="outer must be an optax transformation, not a float"):
        Exchange(outer=0.7)
    with pytest.raises(ValueError, match="workers must be"):
        train(0)
    with pytest.raises(ValueError, match="needs the axes"):
        train(mesh=jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)))
    assert Exchange(every=3).count(7) == 3 and Exchange().count(7) == 1
