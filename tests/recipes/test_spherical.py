"""Test the methods of angles and lengths against float64 written from the formulas."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import soups

RNG = np.random.default_rng(3)


def draw():
    return {"a": RNG.normal(size=(6, 5)).astype(np.float32), "b": RNG.normal(size=11).astype(np.float32)}


BASE, MEMBERS = draw(), [draw() for _ in range(4)]


def per_leaf(function, members, base=None):
    """Return what the oracle makes of the float64 vectors of each leaf."""
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


def test_multislerp_of_directions_that_cancel_is_the_weighted_mean():
    third = jax.tree.map(lambda x: np.zeros_like(x), MEMBERS[0])
    opposite = jax.tree.map(lambda x: -x, MEMBERS[0])
    close(soups.multislerp([MEMBERS[0], opposite, third]), third)
    signs = [{"logit_scale": np.float32(x)} for x in (1.5, -2.0, 3.0, -4.0)]
    assert soups.multislerp(signs)["logit_scale"] == np.float32(-0.375)


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
    function = jax.jit(lambda m, b: soups.nuslerp(m, weights=[1.0, 3.0], base=b, scope=scope))
    on_device = function(MEMBERS[:2], BASE)
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


jitted = functools.cache(jax.jit)


def everywhere(function, members):
    """Return what comes of NumPy's arrays, and of JAX's under jit, compiled once for each function and shapes."""
    return [function(members), jitted(function)(jax.tree.map(jnp.asarray, members))]


SCALARS = [(-0.5664639, 2.748347), (3.150, -2.366), (1.0, -1.0), (2.5, 2.5), (0.0, 3.0), (4.6052, 4.5811)]


# of the two numbers on a line: what the formula says, and where it says nothing the documented limit
ON_A_LINE = {
    "slerp": (lambda m: soups.interpolate(*m, t=0.3, path="spherical"), lambda a, b: 0.7 * a + 0.3 * b),
    "nuslerp": (lambda m: soups.nuslerp(m, weights=[0.7, 0.3]), lambda a, b: 0.7 * a + 0.3 * b),
    "nuslerp rows": (lambda m: soups.nuslerp(m, weights=[0.7, 0.3], scope="row"), lambda a, b: 0.7 * a + 0.3 * b),
    "nuslerp columns": (lambda m: soups.nuslerp(m, weights=[0.7, 0.3], scope="column"), lambda a, b: 0.7 * a + 0.3 * b),
    "multislerp": (soups.multislerp, lambda a, b: (a + b) / 2),
    "karcher": (soups.karcher, lambda a, b: np.sign(a or b) * (abs(a) + abs(b)) / 2),
    "model_stock": (
        lambda m: soups.model_stock(m, base=jax.tree.map(lambda x: x * 0, m[0])),
        lambda a, b: (a + b) / 2 if a * b > 0 else 0.0,
    ),
    "geometric_median": (soups.geometric_median, lambda a, b: (a + b) / 2),
}


@pytest.mark.parametrize("method", ON_A_LINE)
def test_leaves_of_one_element(method):
    function, oracle = ON_A_LINE[method]
    if "slerp" in method and method != "multislerp":  # nothing is at a right angle to all
        expected = [np.sin(0.3 * np.pi / 2) * b if a == 0 else oracle(a, b) for a, b in SCALARS]
    else:
        expected = [oracle(*values) for values in SCALARS]
    for shape in [(), (1,), (1, 1)]:
        for values, value in zip(SCALARS, expected, strict=True):
            result = function([{"logit_scale": np.full(shape, value, np.float32)} for value in values])["logit_scale"]
            assert result.shape == shape
            np.testing.assert_allclose(result, value, rtol=1e-6, atol=1e-6)
    stacked = [{"scalar": column, "one": column[:, None]} for column in np.float32(SCALARS).T]
    result = jax.jit(jax.vmap(function))(stacked)
    np.testing.assert_allclose(result["scalar"], expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(result["one"][:, 0], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("method", ["nuslerp", "multislerp", "karcher", "geometric_median"])
@pytest.mark.parametrize("factor", [-1.0, -3.0])
def test_opposite_vectors(method, factor, dtype):
    first = {"w": RNG.integers(-20, 20, size=(7, 5)).astype(dtype)}  # exact in bfloat16, three times too
    members = [first, {"w": (first["w"].astype(np.float64) * factor).astype(dtype)}]
    a, b = (member["w"].astype(np.float64) for member in members)
    means = {"nuslerp": 0.7 * a + 0.3 * b, "karcher": a * (1 - factor) / 2}
    for result in everywhere(ON_A_LINE[method][0], members)[: 1 if dtype == np.float64 else 2]:
        assert result["w"].dtype == dtype
        tolerance = 1e-2 if dtype == ml_dtypes.bfloat16 else 2e-6
        np.testing.assert_allclose(
            np.asarray(result["w"], np.float64), means.get(method, (a + b) / 2), rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("scope", ["row", "column"])
def test_rows_that_are_opposite_among_others(scope):
    a, b = RNG.normal(size=(2, 6, 4)).astype(np.float32)
    b[2], b[4] = -a[2], 0
    if scope == "column":
        a, b = a.T.copy(), b.T.copy()
    rows = (lambda x: x.T) if scope == "column" else (lambda x: x)
    others = [0, 1, 3, 5]
    expected = [slerp(0.3)([rows(x)[i].astype(np.float64) for x in (a, b)]) for i in others]
    for result in everywhere(lambda m: soups.nuslerp(m, weights=[0.7, 0.3], scope=scope), [{"w": a}, {"w": b}]):
        got = rows(np.asarray(result["w"]))
        np.testing.assert_allclose(got[2], 0.4 * rows(a)[2], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(got[4], np.sin(0.7 * np.pi / 2) * rows(a)[4], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(got[others], expected, rtol=1e-5, atol=1e-6)


def arc(vectors):
    """Return what lies at 0.3 of the arc of two vectors, by an angle that is exact near 0 and π too."""
    a, b = vectors
    apart, together = np.linalg.norm(unit(a) - unit(b)), np.linalg.norm(unit(a) + unit(b))
    omega, sine = 2 * np.arctan2(apart, together), apart * together / 2
    return (np.sin(0.7 * omega) * a + np.sin(0.3 * omega) * b) / sine


def stock_of_two(vectors):
    """Return `stock`, by the square of the sum of the directions, which is 2 + 2 cos Ω."""
    square = np.sum((unit(vectors[0]) + unit(vectors[1])) ** 2)
    return (square - 2) * 2 / square * np.mean(vectors, axis=0)


NEAR_A_LINE = {
    "tree.slerp": (lambda m: soups.tree.slerp(*m, 0.3), arc),
    "slerp": (lambda m: soups.slerp(m[1], base=m[0], t=0.3, parallel=1.0), arc),
    "nuslerp": (ON_A_LINE["nuslerp"][0], arc),
    "nuslerp of the model": (lambda m: soups.nuslerp(m, weights=[0.7, 0.3], scope="model"), arc),
    "multislerp": (soups.multislerp, lambda v: unit(unit(v[0]) + unit(v[1])) * np.mean(list(map(np.linalg.norm, v)))),
    "model_stock": (ON_A_LINE["model_stock"][0], stock_of_two),
}


@pytest.mark.parametrize("method", NEAR_A_LINE)
def test_vectors_that_are_nearly_parallel_or_opposite(method, mesh):
    """Under jit and vmap and on sharded arrays as on the host: only the rounding of the members is enlarged."""
    function, oracle = NEAR_A_LINE[method]
    angles = [angle for near in (3e-3, 1e-2, 0.3) for angle in (near, np.pi - near)]
    draw = np.random.default_rng(0)
    u, across = np.linalg.qr(draw.normal(size=(2 * 512, 2)))[0].T.reshape(2, 64, 16)
    pairs = [[2 * u, np.cos(angle) * u + np.sin(angle) * across] for angle in angles]
    stacked = [{"w": np.float32(vectors)} for vectors in zip(*pairs, strict=True)]
    apart = [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(len(angles))]
    vmapped = jax.jit(jax.vmap(function))(stacked)["w"]
    jitted_, shard = jax.jit(function), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("pool"))
    for angle, members, of_many in zip(angles, apart, vmapped, strict=True):
        expected = oracle([member["w"].astype(np.float64).ravel() for member in members]).reshape(64, 16)
        sharded = jitted_(jax.device_put(members, shard))["w"]
        for result in (function(members)["w"], jitted_(members)["w"], of_many, sharded):
            error = np.linalg.norm(result - expected) / np.linalg.norm(expected)
            assert error < 3e-7 / np.sin(angle / 2 + np.pi / 2), (method, angle, error)


def karcher_mean(vectors):
    """Return what `karcher` should in float64, with angles that are exact near 0 and π too."""
    units = [unit(v) for v in vectors]
    mean = unit(sum(units))
    for _ in range(10):
        angles = [2 * np.arctan2(np.linalg.norm(u - mean), np.linalg.norm(u + mean)) for u in units]
        tangents = [a / np.sin(a) * (u - np.cos(a) * mean) for a, u in zip(angles, units, strict=True)]
        tangent = sum(tangents) / len(units)
        if (length := np.linalg.norm(tangent)) < 1e-5:
            break
        mean = unit(np.cos(length) * mean + np.sin(length) * tangent / length)
    return mean * np.mean([np.linalg.norm(v) for v in vectors])


@pytest.mark.parametrize("distance", [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 0.03, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("number", [2, 3, 5])
@pytest.mark.parametrize("sums", ["cancel", "add"])
def test_karcher_where_directions_nearly_cancel_or_are_nearly_one(sums, number, distance):
    """On devices as on the host: the rounding of the members is enlarged where they cancel, and nowhere else."""
    draw = np.random.default_rng(number)
    around, first, second = np.linalg.qr(draw.normal(size=(64, 3)))[0].T
    angles = 2 * np.pi * np.arange(number) / number
    spread = [np.cos(angle) * first + np.sin(angle) * second for angle in angles]
    if sums == "add":
        spread = [draw.normal(size=64) / 8 for _ in spread]
    near = [s + distance * around if sums == "cancel" else around + distance * s for s in spread]
    lengths = draw.uniform(1, 2, size=number)
    members = [{"w": (length * unit(v)).astype(np.float32)} for length, v in zip(lengths, near, strict=True)]
    expected = karcher_mean([m["w"].astype(np.float64) for m in members])
    for result in everywhere(soups.karcher, members):
        np.testing.assert_allclose(result["w"], expected, atol=3e-7 / (distance if sums == "cancel" else 1))


@pytest.mark.parametrize("nearly_opposite", [False, True])
@pytest.mark.parametrize("method", ["nuslerp", "nuslerp rows", "multislerp", "karcher", "geometric_median"])
def test_complex_leaves_are_pairs_of_numbers(method, nearly_opposite):
    """As the vectors of their real and imaginary parts."""
    function = ON_A_LINE[method][0]
    members = [(RNG.normal(size=(2, 9)) + 1j * RNG.normal(size=(2, 9))).astype(np.complex64) for _ in range(2)]
    if nearly_opposite:
        members[1] = np.complex64(-1.2) * members[0] + np.complex64(0.02) * members[1]
    expected = function([{"w": member.view(np.float32)} for member in members])["w"].view(np.complex64)
    # the rounding of float32 is enlarged where directions nearly cancel
    for result in everywhere(function, [{"w": member} for member in members])[: 1 if nearly_opposite else 2]:
        np.testing.assert_allclose(result["w"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: soups.nuslerp(MEMBERS), "nuslerp takes exactly 2 members, got 4"),
        (lambda: soups.nuslerp(MEMBERS[:2], scope="rows"), r"unknown scope 'rows' \(did you mean 'row'\?\)"),
        (lambda: soups.model_stock(MEMBERS, base=BASE, scope="column"), "unknown scope 'column'"),
        (lambda: soups.karcher(MEMBERS, scope="row"), "unknown scope 'row'"),
        (lambda: soups.multislerp(MEMBERS, weights=[1, -1, 1, -1]), "weights that sum to zero cannot be normalized"),
        (
            lambda: soups.model_stock(MEMBERS[:1], base=BASE),
            "takes at least 2 members besides the base, got 1",
        ),
        (lambda: soups.multislerp(MEMBERS, weights=[1.0]), "4 members need 4 values of weights"),
        (lambda: soups.karcher([]), "no members"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


PAIRS = {1: [([2.0], [3.0]), ([2.0], [-3.0])], 2: [([1.0, 2.0], [2.0, 4.0]), ([1, 2], [1, 2]), ([1, 2], [-1, -2])]}


@pytest.mark.parametrize(
    "merge",
    [
        lambda a, b: soups.slerp(b, base=a, t=0.3),
        lambda a, b: soups.nuslerp([a, b], weights=[0.7, 0.3]),
        lambda a, b: soups.multislerp([a, b], weights=[0.7, 0.3]),
        lambda a, b: soups.karcher([a, b]),
        lambda a, b: soups.tree.slerp(a, b, 0.3),
    ],
    ids=["slerp", "nuslerp", "multislerp", "karcher", "tree.slerp"],
)
@pytest.mark.parametrize("size", PAIRS)
def test_gradients_are_finite_where_vectors_are_parallel_or_opposite(merge, size):
    gradient = jax.grad(lambda pair: jnp.sum(merge(*({"w": x} for x in pair))["w"] ** 2))
    found = jax.jit(jax.vmap(gradient))(np.float32(PAIRS[size]))
    assert np.isfinite(np.asarray(found)).all()


@pytest.mark.parametrize("exponent", [-110, -45, 60])
@pytest.mark.parametrize("method", ["nuslerp", "multislerp", "karcher", "geometric_median", "model_stock"])
def test_the_size_of_all_numbers_does_not_matter(method, exponent):
    members = MEMBERS[: 2 if method == "nuslerp" else 4]
    options = [{"base": BASE}, {"base": jax.tree.map(lambda x: np.ldexp(x, exponent), BASE)}]
    if method == "geometric_median":  # has no base
        options = [{}, {}]
    merged = getattr(soups, method)(members, **options[0])
    scaled = getattr(soups, method)([jax.tree.map(lambda x: np.ldexp(x, exponent), m) for m in members], **options[1])
    for name in ("a", "b"):
        np.testing.assert_allclose(np.ldexp(scaled[name], -exponent), merged[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("setting", [{"iterations": -1}, {"tolerance": -1e-5}])
def test_negative_settings_are_errors(setting):
    for method in (soups.karcher, soups.geometric_median):
        if method is soups.karcher or "iterations" in setting:
            with pytest.raises(ValueError, match=f"{next(iter(setting))} must be at least 0"):
                method(MEMBERS, **setting)
