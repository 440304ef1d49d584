"""Test the geometric median against float64 written from the formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import soups

MEMBERS = [{"w": row} for row in np.random.default_rng(3).normal(size=(4, 6)).astype(np.float32)]
jitted = jax.jit(soups.geometric_median)


def median(points):
    """Return the median: a member that Vardi and Zhang's test finds, or Weiszfeld's limit."""
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    best = distances.sum(0).argmin()
    others = distances[best] > 0
    force = np.linalg.norm(((points - points[best])[others] / distances[best][others, None]).sum(0))
    if force <= (~others).sum():
        return points[best]
    point = points.mean(0)
    for _ in range(100_000):
        pull = 1 / np.linalg.norm(points - point, axis=1)
        last, point = point, pull @ points / pull.sum()
        if abs(last - point).max() < 1e-13:
            break
    return point


@pytest.mark.parametrize("kind", ["spread", "a member is the median", "members are the same", "near a member"])
@pytest.mark.parametrize("number", [3, 4, 7])
def test_geometric_median_to_rounding(kind, number):
    points = np.random.default_rng(number).normal(size=(number, 40)).astype(np.float32)
    if kind == "a member is the median":
        points[1:] -= points[1:].mean(0)
        points[0] *= np.float32(1e-3)
    elif kind == "members are the same":
        points[1] = points[2]
    elif kind == "near a member":
        points[0] = median(points[1:].astype(np.float64)) + 1e-3
    expected = median(points.astype(np.float64))
    if kind == "a member is the median":
        np.testing.assert_array_equal(expected, points[0])
    for function in (soups.geometric_median, jitted):
        result = function([{"w": point} for point in points])
        np.testing.assert_allclose(result["w"], expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("weights", [0.0, [1.0, -1.0, 1.0, 1.0], [np.nan, 1.0, 1.0, 1.0]])
def test_geometric_median_blames_the_weights(weights):
    with pytest.raises(ValueError, match=r"weights must be (a finite number|finite, not negative)"):
        soups.geometric_median(MEMBERS, weights=weights)


def test_geometric_median_ignores_one_odd_member():
    members = [{"w": MEMBERS[0]["w"] + np.float32(step)} for step in (-0.01, 0.0, 0.01, 1000)]
    np.testing.assert_allclose(soups.geometric_median(members)["w"], MEMBERS[0]["w"], rtol=0.02, atol=0.02)


def slope(points, cotangent):
    """Return the gradient [K, n] of <cotangent, median>: of a median between the members, by the implicit function."""
    point = median(points)
    if (points == point).all(axis=1).any():
        return (points == point).all(axis=1)[:, None] * cotangent
    steps = points - point
    distances = np.linalg.norm(steps, axis=1)
    units = steps / distances[:, None]
    pulls = [(np.eye(len(point)) - np.outer(u, u)) / d for u, d in zip(units, distances, strict=True)]
    return np.array([pull @ np.linalg.solve(sum(pulls), cotangent) for pull in pulls])


@pytest.mark.parametrize("kind", ["spread", "a member is the median"])
def test_gradient(kind):
    rng = np.random.default_rng(5)
    points, cotangent = rng.normal(size=(4, 6)), rng.normal(size=6)
    if kind == "a member is the median":
        points[0] = points[1:].mean(0)
    points, cotangent = points.astype(np.float32), cotangent.astype(np.float32)

    def product(points):
        return jnp.dot(soups.geometric_median([{"w": point} for point in points])["w"], cotangent, precision="highest")

    expected = slope(points.astype(np.float64), cotangent.astype(np.float64))
    found = jax.jit(jax.grad(product))(points)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=5e-5)
    along = rng.normal(size=points.shape).astype(np.float32)
    _, moved = jax.jit(lambda *pair: jax.jvp(product, *([x] for x in pair)))(points, along)
    np.testing.assert_allclose(moved, (expected * along).sum(), rtol=1e-4, atol=5e-5)


A, B = (1.0, 2.0), (3.0, 4.0)


@pytest.mark.parametrize("points", [[[A]], [[A, B], [A, A], [(0.0, 0.0)] * 2], [[A, A, B], [A, A, A]]], ids=len)
def test_gradients_are_finite_where_a_member_is_the_median(points):
    function = lambda points: jnp.sum(soups.geometric_median([{"w": point} for point in points])["w"])  # noqa: E731
    found = jax.jit(jax.vmap(jax.grad(function)))(np.float32(points))
    np.testing.assert_allclose(np.asarray(found).sum(1), 1, rtol=1e-5)
