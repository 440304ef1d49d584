"""Test averages along a trajectory against float64, at decays where a plain float32 average stands still."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soups.recipes import ema
from soups.train import trajectory

DECAYS = (0.999, 0.9999999)
STEPS = 3000


@pytest.fixture(scope="module")
def walk():
    """Return start weights of size 0.03 and 3,000 float32 weights that drift from them by about 0.001."""
    rng = np.random.default_rng(0)
    start = 0.03 * rng.normal(size=50)
    drift = 1e-3 * rng.normal(size=50) * np.linspace(0, 1, STEPS)[:, None] + 1e-5 * rng.normal(size=(STEPS, 50))
    return start.astype(np.float32), (start + drift).astype(np.float32)


@pytest.fixture(scope="module")
def followed(walk):
    """Return the float32 state after all steps: of `trajectory`, and of the plain average at the higher decay."""
    start, weights = ({"w": part} for part in walk)

    def step(carry, params):
        drifts, plain = carry
        return (trajectory.follow(drifts, params, DECAYS), ema(plain, params, DECAYS[1])), None

    first = (trajectory.start(start, DECAYS), start)
    (drifts, plain), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, weights))(first)
    return {"averages": {}, "drifts": drifts, "step": jnp.int32(STEPS)}, plain["w"]


def exact(walk, decay):
    """Return θ₀ and how far its exponential average has moved, in float64."""
    start, weights = (part.astype(np.float64) for part in walk)
    average = start
    for now in weights:
        average = decay * average + (1 - decay) * now
    return start, average - start


@pytest.mark.parametrize("decay", DECAYS)
def test_averages_move_as_in_float64(walk, followed, decay):
    start, moved = exact(walk, decay)
    state, _ = followed
    actual = np.asarray(state["drifts"]["moved"][DECAYS.index(decay)]["w"], np.float64)
    assert np.linalg.norm(actual - moved) < 1e-5 * np.linalg.norm(moved)
    average = trajectory.averages(state, DECAYS)[f"ema_{decay}"]["w"]
    np.testing.assert_allclose(average, start + moved, rtol=1e-7, atol=1e-5 * np.abs(moved).max())


def test_a_plain_float32_average_stands_still(walk, followed):
    start, moved = exact(walk, DECAYS[1])
    assert np.linalg.norm((followed[1] - start) - moved) > 0.5 * np.linalg.norm(moved)


@pytest.mark.parametrize("decay", DECAYS)
def test_unbiased_averages_are_weighted_means_of_the_trajectory(walk, followed, decay):
    state, _ = followed
    weights = np.float64(decay) ** np.arange(STEPS)[::-1]
    expected = np.average(walk[1].astype(np.float64), axis=0, weights=weights)
    actual = trajectory.averages(state, DECAYS, unbiased=True)[f"ema_{decay}"]["w"]
    moved = np.linalg.norm(expected - walk[0])
    assert np.linalg.norm(np.asarray(actual, np.float64) - expected) < 1e-4 * moved


def test_a_decay_of_zero_is_the_last_weights():
    drifts = trajectory.follow(trajectory.start({"w": np.float32([1, 2])}, (0.0,)), {"w": np.float32([3, 5])}, (0.0,))
    state = {"averages": {"swa": 1}, "drifts": drifts, "step": np.int32(1)}
    for unbiased in (False, True):
        named = trajectory.averages(state, (0.0,), unbiased=unbiased)
        assert list(named) == ["swa", "ema_0.0"]
        np.testing.assert_array_equal(named["ema_0.0"]["w"], [3, 5])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_weights_of_few_bits_are_averaged_in_float32(dtype):
    weights = [np.asarray(row, dtype) for row in np.random.default_rng(1).normal(size=(4, 6))]
    drifts = trajectory.start({"w": weights[0]}, (0.9,))
    for row in weights[1:]:
        drifts = trajectory.follow(drifts, {"w": row}, (0.9,))
    average = trajectory.averages({"averages": {}, "drifts": drifts}, (0.9,))["ema_0.9"]["w"]
    first, *rest = (row.astype(np.float64) for row in weights)
    expected = first
    for row in rest:
        expected = 0.9 * expected + 0.1 * row
    assert average.dtype == np.float32
    np.testing.assert_allclose(average, expected, rtol=0, atol=8 * 2.0**-24 * np.abs(weights).max())
