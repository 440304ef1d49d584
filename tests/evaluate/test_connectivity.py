"""Paths, barriers, angles and planes of functions whose landscape is known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soups import evaluate


def point(*values):
    """Make a tree of two leaves from numbers."""
    array = np.array(values, np.float32)
    return {"layer": {"kernel": array[:-1][None]}, "bias": array[-1:]}


def vector(params):
    return np.concatenate([np.asarray(params["layer"]["kernel"]).ravel(), np.asarray(params["bias"])])


def random_points(rng, count, size=6):
    return [point(*rng.normal(size=size)) for _ in range(count)]


def test_a_path_evaluates_points_on_the_line(rng):
    a, b = random_points(rng, 2)
    scores = evaluate.path(lambda p: vector(p)[0], a, b, [0.25, 0.5])
    first, last = vector(a)[0].item(), vector(b)[0].item()
    assert scores == pytest.approx([0.75 * first + 0.25 * last, 0.5 * first + 0.5 * last], rel=1e-6)
    seen = []
    evaluate.path(lambda p: seen.append(p) or 0.0, a, b, [0, 1])
    assert seen[0] is a and seen[1] is b


def test_interpolation_advantage_of_a_quadratic(rng):
    a, b = random_points(rng, 2)
    # -|x|² is concave: the middle gains |a − b|² / 4
    advantage = evaluate.interpolation_advantage(lambda p: -np.sum(vector(p) ** 2), a, b)
    assert advantage == pytest.approx(np.sum((vector(a) - vector(b)) ** 2) / 4, rel=1e-5)


def test_the_barrier_of_a_quadratic():
    # loss 4 − x² along x from −1 to 2: above the chord by (x + 1)(2 − x), at t = 0.5 by 1.5² = 2.25
    a, b = point(-1, 0, 0), point(2, 0, 0)

    def loss(params):
        return 4 - vector(params)[0].item() ** 2

    assert evaluate.barrier(loss, a, b, mode="min") == pytest.approx(2.25)
    assert evaluate.barrier(loss, a, b, [0.2], mode="min") == pytest.approx(0.2 * 0.8 * 9)
    assert evaluate.barrier(lambda p: -loss(p), a, b) == pytest.approx(2.25)
    assert evaluate.barrier(loss, a, b) == 0.0  # no drop: as an accuracy it would rise


def test_the_barrier_of_a_step():
    def accuracy(params):
        return 0.2 if 0.35 < vector(params)[0] < 0.75 else (0.9 if vector(params)[0] < 0.5 else 0.8)

    # at x = 0.4 the line between the ends is at 0.86
    assert evaluate.barrier(accuracy, point(0, 0), point(1, 0)) == pytest.approx(0.66)
    assert evaluate.barrier(accuracy, point(0, 0), point(0.3, 0)) == pytest.approx(0.0)


def test_a_nan_on_the_path_is_not_hidden():
    score = evaluate.barrier(lambda p: math.nan if 0.4 < vector(p)[0] < 0.6 else 1.0, point(0, 0), point(1, 0))
    assert math.isnan(score)


SCORES = {
    "barrier": lambda function, a, b, **options: evaluate.barrier(function, a, b, [0.3], **options),
    "barriers": lambda function, a, b, **options: evaluate.barriers(function, [a, b], [0.3], **options)[0, 1],
    "interpolation_advantage": evaluate.interpolation_advantage,
    "path": lambda function, a, b, mode=None, **options: evaluate.path(function, a, b, [0, 0.3], **options),
    "plane_grid": lambda function, a, b, mode=None, **options: evaluate.plane_grid(
        function, point(5, 1, 1), a, b, points_per_axis=2, **options
    )["values"],
}


@pytest.mark.parametrize("name", SCORES)
def test_a_metric_is_chosen_by_name_and_its_direction_is_known(rng, name):
    a, b = random_points(rng, 2, 3)

    def both(params):
        bumpy = float(np.sin(3 * vector(params)).sum())
        return {"accuracy": bumpy, "nll": bumpy, "cost": bumpy}

    for metric, mode in (("accuracy", "max"), ("nll", "min")):
        expected = SCORES[name](lambda params, metric=metric: both(params)[metric], a, b, mode=mode)
        assert SCORES[name](both, a, b, metric=metric) == expected
    with pytest.raises(ValueError, match="choose one with metric="):
        SCORES[name](both, a, b)
    if name not in ("path", "plane_grid"):
        with pytest.raises(ValueError, match="a higher or a lower 'cost' is better"):
            SCORES[name](both, a, b, metric="cost")
        with pytest.raises(ValueError, match="mode must be 'max' or 'min', not 'least'"):
            SCORES[name](both, a, b, metric="cost", mode="least")


@pytest.mark.parametrize("name", SCORES)
def test_outputs_that_overflow_are_no_score(rng, name):
    def overflow(params):
        raise evaluate.NotFiniteError("logits hold NaN")

    assert np.isnan(SCORES[name](overflow, *random_points(rng, 2, 3))).all()


def test_the_barrier_of_a_known_path_equals_a_loop(rng):
    places = np.linspace(0, 1, 7)
    for _ in range(20):
        scores, rise, fall = rng.uniform(size=7).tolist(), 0.0, 0.0
        for place, score in zip(places, scores, strict=True):
            difference = score - ((1 - place) * scores[0] + place * scores[-1])
            rise, fall = max(rise, difference), max(fall, -difference)
        assert evaluate.path_barrier(scores, places, mode="min") == pytest.approx(rise, abs=1e-12)
        assert evaluate.path_barrier(scores, places, mode="max") == pytest.approx(fall, abs=1e-12)
    assert evaluate.path_barrier([0.5, 0.9, 0.5], [0, 0.5, 1], mode="max") == 0
    assert evaluate.path_barrier([1.0, 0.2, 2.0], [0, 0.5, 1], mode="min") == 0


def test_barriers_of_all_pairs(rng):
    members = dict(zip("abc", random_points(rng, 3), strict=True))
    calls = []

    def bumpy(params):
        calls.append(1)
        return float(np.sin(3 * vector(params)).sum())

    matrix = evaluate.barriers(bumpy, members, [0.3, 0.7])
    assert len(calls) == 3 + 3 * 2
    for i, a in enumerate("abc"):
        for j, b in enumerate("abc"):
            expected = evaluate.barrier(bumpy, members[a], members[b], [0.3, 0.7]) if i != j else 0.0
            assert matrix[i, j] == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_angles_of_known_vectors():
    base = point(1, 1, 1)
    right, up, diagonal, left = point(3, 1, 1), point(1, 1, 6), point(2, 1, 2), point(0, 1, 1)
    assert evaluate.angle(right, up, base) == pytest.approx(90)
    assert evaluate.angle(right, diagonal, base) == pytest.approx(45)
    assert evaluate.angle(right, left, base) == pytest.approx(180)
    assert evaluate.angle(right, right, base) == 0
    matrix = evaluate.angles({"right": right, "up": up, "diagonal": diagonal}, base)
    np.testing.assert_allclose(matrix, [[0, 90, 45], [90, 0, 45], [45, 45, 0]], atol=1e-9)
    np.testing.assert_allclose(evaluate.norms([right, up, diagonal], base), [2, 5, np.sqrt(2)])


def test_small_angles_are_exact():
    tiny = 1e-3
    angle = evaluate.angle(point(1, 0, 0), point(1, tiny, 0), point(0, 0, 0))
    assert angle == pytest.approx(math.degrees(math.atan(tiny)), rel=1e-5)


def test_angles_of_bfloat16_weights_on_the_device(rng):
    base, a, b = (jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), p) for p in random_points(rng, 3))
    u, v = (np.float64(vector(p)) - np.float64(vector(base)) for p in (a, b))
    expected = math.degrees(math.acos(u @ v / math.sqrt((u @ u) * (v @ v))))
    assert evaluate.angle(a, b, base) == pytest.approx(expected, rel=1e-9)


def test_the_plane_holds_its_three_points(rng):
    base, a, b = random_points(rng, 3)
    plane = evaluate.plane(base, a, b)
    middle = (vector(a) + vector(b)) / 2
    for name, expected in (("base", vector(base)), ("a", vector(a)), ("b", vector(b)), ("mean", middle)):
        np.testing.assert_allclose(vector(plane.at(*plane.points[name])), expected, rtol=1e-5, atol=1e-6)
    u, v = vector(plane.u), vector(plane.v)
    np.testing.assert_allclose([u @ u, v @ v, u @ v], [1, 1, 0], atol=1e-6)
    assert plane.points["base"] == (0.0, 0.0)
    assert math.dist(plane.points["a"], plane.points["b"]) == pytest.approx(
        float(np.linalg.norm(vector(a) - vector(b))), rel=1e-5
    )


def test_the_grid_measures_distances_in_the_plane(rng):
    base, a, b = random_points(rng, 3)
    grid = evaluate.plane_grid(
        lambda p: np.linalg.norm(vector(p) - vector(base)), base, a, b, points_per_axis=4, margin=0.5
    )
    xs, ys = grid["x"], grid["y"]
    assert len(xs) == len(ys) == 4
    for i, y in enumerate(ys):
        for j, x in enumerate(xs):
            assert grid["values"][i][j] == pytest.approx(math.hypot(x, y), rel=1e-4)
    corners = [grid["points"][name] for name in ("base", "a", "b")]
    for axis, positions in enumerate((xs, ys)):
        low, high = min(c[axis] for c in corners), max(c[axis] for c in corners)
        assert positions[0] == pytest.approx(low - 0.5 * (high - low))
        assert positions[-1] == pytest.approx(high + 0.5 * (high - low))


def test_planes_keep_dtypes_and_integer_leaves(rng):
    def with_step(params):
        bfloat16 = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), params)
        return bfloat16 | {"step": jnp.int32(7)}

    base, a, b = (with_step(p) for p in random_points(rng, 3))
    plane = evaluate.plane(base, a, b)
    rebuilt = plane.at(*plane.points["b"])
    assert rebuilt["step"] == 7
    assert rebuilt["bias"].dtype == jnp.bfloat16
    np.testing.assert_allclose(vector(rebuilt).astype(np.float32), vector(b).astype(np.float32), rtol=0.01, atol=0.01)


def test_errors_of_connectivity(rng):
    base, a, b = random_points(rng, 3)
    with pytest.raises(ValueError, match="mode must be 'max' or 'min', not 'maximum'"):
        evaluate.barrier(lambda p: 0.0, a, b, mode="maximum")
    with pytest.raises(ValueError, match=r"ts must lie in \[0, 1\]: \[0.5, 1.5\]"):
        evaluate.barrier(lambda p: 0.0, a, b, [0.5, 1.5])
    with pytest.raises(ValueError, match="these members equal the base: start"):
        evaluate.angles({"a": a, "start": base}, base)
    with pytest.raises(ValueError, match="- 1: bias is missing"):
        evaluate.angles([a, {"layer": b["layer"]}], base)
    for flat in (base, a, evaluate_line(base, a)):
        with pytest.raises(ValueError, match="lie on one line"):
            evaluate.plane(base, a, flat)
    with pytest.raises(ValueError, match="lie on one line"):
        evaluate.plane(base, base, b)
    with pytest.raises(ValueError, match="at least 2 points per axis"):
        evaluate.plane_grid(lambda p: 0.0, base, a, b, points_per_axis=1)
    with pytest.raises(ValueError, match="a margin of at least 0"):
        evaluate.plane_grid(lambda p: 0.0, base, a, b, margin=-0.1)


def evaluate_line(a, b):
    """Return a point beyond `b` on the line from `a`."""
    return jax.tree.map(lambda x, y: x + np.float32(1.7) * (y - x), a, b)
