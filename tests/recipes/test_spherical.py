"""Test the methods of angles and lengths against float64 written from the formulas."""

import jax
import numpy as np
import pytest

import soups

RNG = np.random.default_rng(3)


def draw():
    return {"a": RNG.normal(size=(6, 5)).astype(np.float32), "b": RNG.normal(size=11).astype(np.float32)}


BASE, MEMBERS = draw(), [draw() for _ in range(4)]


def per_leaf(function, members, base=None):
    """Give what the oracle makes of the float64 vectors of each leaf."""
    result = {}
    for name in ("a", "b"):
        vectors = [m[name].astype(np.float64).ravel() - (0 if base is None else base[name].ravel()) for m in members]
        result[name] = function(vectors).reshape(members[0][name].shape) + (0 if base is None else base[name])
    return result


def over_model(function, members):
    joined = function([np.concatenate([m["a"].ravel(), m["b"]]).astype(np.float64) for m in members])
    return {"a": joined[:30].reshape(6, 5), "b": joined[30:]}


def close(result, expected, tolerance=1e-6):
    for name in ("a", "b"):
        np.testing.assert_allclose(np.asarray(result[name], np.float64), expected[name], rtol=tolerance, atol=tolerance)


def unit(vector):
    return vector / np.linalg.norm(vector)


def slerp(t):
    def oracle(vectors):
        a, b = vectors
        omega = np.arccos(unit(a) @ unit(b))
        return (np.sin((1 - t) * omega) * a + np.sin(t * omega) * b) / np.sin(omega)

    return oracle


@pytest.mark.parametrize("base", [None, BASE], ids=["members", "task vectors"])
def test_nuslerp(base):
    result = soups.nuslerp(MEMBERS[:2], weights=[1.0, 3.0], base=base)
    close(result, per_leaf(slerp(0.75), MEMBERS[:2], base))


def test_nuslerp_over_the_model_is_that_of_the_tree():
    result = soups.nuslerp(MEMBERS[:2], weights=[0.7, 0.3], scope="model")
    close(result, over_model(slerp(0.3), MEMBERS[:2]))
    close(result, soups.interpolate(*MEMBERS[:2], t=0.3, path="spherical"), tolerance=1e-5)


def test_nuslerp_without_weight_goes_to_the_middle():
    close(soups.nuslerp(MEMBERS[:2], weights=[1.0, -1.0]), per_leaf(slerp(0.5), MEMBERS[:2]))


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_nuslerp_of_parallel_members_is_linear(factor):
    second = jax.tree.map(lambda x: x * np.float32(factor), MEMBERS[0])
    expected = jax.tree.map(lambda x: x.astype(np.float64) * (1 + factor) / 2, MEMBERS[0])
    close(soups.nuslerp([MEMBERS[0], second]), expected)


def test_multislerp():
    weights = np.array([1.0, 2.0, 3.0, 4.0])

    def oracle(vectors):
        share = weights / weights.sum()
        direction = unit(sum(s * unit(v) for s, v in zip(share, vectors, strict=True)))
        return direction * sum(s * np.linalg.norm(v) for s, v in zip(share, vectors, strict=True))

    close(soups.multislerp(MEMBERS, weights=weights, base=BASE), per_leaf(oracle, MEMBERS, BASE))


def test_multislerp_of_directions_that_cancel_is_an_error():
    third = jax.tree.map(lambda x: np.zeros_like(x), MEMBERS[0])
    opposite = jax.tree.map(lambda x: -x, MEMBERS[0])
    with pytest.raises(ValueError, match="directions cancel"):
        soups.multislerp([MEMBERS[0], opposite, third])


def test_karcher():
    def oracle(vectors):
        units = [unit(v) for v in vectors]
        mean = unit(sum(units))
        for _ in range(10):
            tangent = 0
            for u in units:
                angle = np.arccos(np.clip(u @ mean, -1, 1))
                tangent = tangent + angle / np.sin(angle) * (u - np.cos(angle) * mean) / len(units)
            length = np.linalg.norm(tangent)
            if length < 1e-5:
                break
            mean = unit(np.cos(length) * mean + np.sin(length) * tangent / length)
        return mean * np.mean([np.linalg.norm(v) for v in vectors])

    close(soups.karcher(MEMBERS), per_leaf(oracle, MEMBERS))
    close(soups.karcher(MEMBERS, base=BASE), per_leaf(oracle, MEMBERS, BASE))
    close(soups.karcher(MEMBERS, scope="model"), over_model(oracle, MEMBERS))


def test_karcher_mean_of_two_is_the_middle_of_their_arc_between_units():
    units = [{"a": unit(m["a"].ravel()).reshape(6, 5), "b": unit(m["b"])} for m in MEMBERS[:2]]
    close(soups.karcher(units), per_leaf(slerp(0.5), units))


def stock(vectors):
    number = len(vectors)
    cosines = [unit(vectors[i]) @ unit(vectors[j]) for i in range(number) for j in range(i)]
    t = number * np.mean(cosines) / (1 + (number - 1) * np.mean(cosines))
    return t * np.mean(vectors, axis=0)


def test_model_stock():
    close(soups.model_stock(MEMBERS, base=BASE), per_leaf(stock, MEMBERS, BASE))


def test_model_stock_of_orthogonal_task_vectors_is_the_base():
    base = {"w": np.zeros(3, np.float32)}
    members = [{"w": row} for row in np.eye(3, dtype=np.float32)]
    np.testing.assert_array_equal(soups.model_stock(members, base=base)["w"], 0)


@pytest.mark.parametrize("scope", ["row", "column"])
def test_one_angle_for_each_row_or_column(scope):
    """Rows go along the last axis, columns along the first; a vector is one of either."""
    rows = {"a": lambda x: x if scope == "row" else x.T, "b": lambda x: x[None]}

    def by_rows(function, name, *arrays):
        made = np.array([function(list(vectors)) for vectors in zip(*map(rows[name], arrays), strict=True)])
        return made.T if (name, scope) == ("a", "column") else made.reshape(arrays[0].shape)

    base = {name: x.astype(np.float64) for name, x in BASE.items()}
    expected = {n: base[n] + by_rows(slerp(0.75), n, *(m[n] - base[n] for m in MEMBERS[:2])) for n in base}
    close(soups.nuslerp(MEMBERS[:2], weights=[1.0, 3.0], base=BASE, scope=scope), expected)
    on_device = jax.jit(lambda m, b: soups.nuslerp(m, weights=[1.0, 3.0], base=b, scope=scope))(MEMBERS[:2], BASE)
    close(on_device, expected, tolerance=1e-5)
    if scope == "row":
        expected = {n: base[n] + by_rows(stock, n, *(m[n] - base[n] for m in MEMBERS)) for n in base}
        close(soups.model_stock(MEMBERS, base=BASE, scope=scope), expected)


@pytest.mark.parametrize("function", [soups.multislerp, soups.karcher, soups.model_stock])
def test_a_member_that_left_the_leaf_as_it_was_counts_with_length_zero(function):
    members = [*MEMBERS[:2], BASE]
    result = function(members, base=BASE)
    assert all(np.isfinite(leaf).all() for leaf in result.values())
    if function is not soups.model_stock:  # the direction of the two others, two thirds of their length
        two = function(MEMBERS[:2], base=BASE)
        close(result, {n: BASE[n] + (two[n].astype(np.float64) - BASE[n]) * 2 / 3 for n in BASE})
    unchanged = function([BASE] * 3, base=BASE)
    assert all(np.array_equal(unchanged[name], BASE[name]) for name in BASE)


def test_multislerp_of_two_that_cancel_is_their_average():
    opposite = jax.tree.map(lambda x: -2 * x, MEMBERS[0])
    close(soups.multislerp([MEMBERS[0], opposite]), jax.tree.map(lambda x: -x.astype(np.float64) / 2, MEMBERS[0]))


def test_geometric_median():
    def oracle(vectors):
        point = np.mean(vectors, axis=0)
        for _ in range(500):
            pulls = [1 / np.linalg.norm(point - v) for v in vectors]
            point = sum(p * v for p, v in zip(pulls, vectors, strict=True)) / sum(pulls)
        return point

    close(soups.geometric_median(MEMBERS), per_leaf(oracle, MEMBERS))


def test_geometric_median_ignores_one_odd_member():
    near = [jax.tree.map(lambda x, s=s: x + np.float32(s), MEMBERS[0]) for s in (-0.01, 0.0, 0.01)]
    odd = jax.tree.map(lambda x: x + np.float32(1000), MEMBERS[0])
    close(soups.geometric_median([*near, odd]), MEMBERS[0], tolerance=0.02)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: soups.nuslerp(MEMBERS), "between two members, not 4"),
        (lambda: soups.nuslerp(MEMBERS[:2], scope="rows"), r"unknown scope 'rows' \(did you mean 'row'\?\)"),
        (lambda: soups.model_stock(MEMBERS, base=BASE, scope="column"), "unknown scope 'column'"),
        (lambda: soups.karcher(MEMBERS, scope="row"), "scope must be 'model' or 'leaf', not 'row'"),
        (lambda: soups.multislerp(MEMBERS, weights=[1, -1, 1, -1]), "weights that sum to zero cannot be normalized"),
        (lambda: soups.model_stock(MEMBERS[:1], base=BASE), "two members at least, but there is 1"),
        (lambda: soups.multislerp(MEMBERS, weights=[1.0]), "4 members need 4 weights"),
        (lambda: soups.karcher([]), "no members"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
