"""Test the methods that look at each difference to the base against float64 written from the formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soups.recipes.differences import arcee_fusion, magmax, nearswap, ram, ram_plus

RNG = np.random.default_rng(5)
SHAPES = {"a": {"kernel": (6, 10)}, "b": (9,), "c": (2, 3, 4)}


def draw(scale=1.0, density=1.0):
    def leaf(shape):
        return (scale * RNG.normal(size=shape) * (RNG.random(shape) < density)).astype(np.float32)

    return jax.tree.map(leaf, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def moved(tree, step):
    return jax.tree.map(lambda b, d: b + d, tree, step)


BASE = draw()
MEMBERS = [moved(BASE, draw(0.1, density=0.5)) for _ in range(4)]


def vectors(member):
    return jax.tree.map(lambda m, b: m.astype(np.float64) - b, member, BASE)


def close(result, expected, tolerance=1e-6):
    assert jax.tree.structure(result) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(x, np.float64), np.asarray(y, np.float64), rtol=tolerance, atol=tolerance)


def element_wise(function, members=MEMBERS):
    """Return base + what the oracle makes of the members' float64 differences at each element, one after the other."""

    def leaf(base, *steps):
        result = np.array(base, np.float64)
        for place in np.ndindex(base.shape):
            result[place] += function([step[place] for step in steps])
        return result

    return jax.tree.map(leaf, BASE, *[vectors(member) for member in members])


@pytest.mark.parametrize("t", [0.0, 1e-4, 0.05])
def test_nearswap(t):
    expected = element_wise(lambda steps: min(max(t / max(abs(steps[0]), 1e-6), 0), 1) * steps[0], MEMBERS[:1])
    close(nearswap(MEMBERS[:1], base=BASE, t=t), expected)


def test_nearswap_moves_no_element_further_than_t():
    step = vectors(nearswap(MEMBERS[:1], base=BASE, t=0.05))
    assert max(abs(leaf).max() for leaf in jax.tree.leaves(step)) == pytest.approx(0.05, rel=1e-4)
    close(nearswap(MEMBERS[:1], base=BASE, t=10.0), MEMBERS[0])


def softmax(row):
    return np.exp(row - row.max()) / np.exp(row - row.max()).sum()


def fused(member, base):
    """Return what arcee_fusion makes of one leaf, and its importance, in float64 from the definition."""
    rows, starts = (x.astype(np.float64).reshape(-1, x.shape[-1]) for x in (member, base))
    importance = np.zeros_like(rows)
    for r, (row, start) in enumerate(zip(rows, starts, strict=True)):
        p, q = softmax(row) + 1e-8, softmax(start) + 1e-8
        importance[r] = np.abs(row - start) * np.sum(p * np.log(p / q))
    ranked = sorted(importance.ravel())
    low, middle, high = (ranked[int(f * (len(ranked) - 1))] for f in (0.25, 0.5, 0.75))
    kept = importance >= middle + 1.5 * (high - low)
    return np.where(kept, rows, starts).reshape(base.shape), kept.sum()


def test_arcee_fusion():
    both = jax.tree.map(fused, MEMBERS[0], BASE)
    is_pair = lambda x: isinstance(x, tuple)  # noqa: E731
    expected = jax.tree.map(lambda pair: pair[0], both, is_leaf=is_pair)
    kept = sum(jax.tree.leaves(jax.tree.map(lambda pair: pair[1], both, is_leaf=is_pair)))
    assert 3 < kept < 30
    close(arcee_fusion(MEMBERS[:1], base=BASE), expected)


def test_arcee_fusion_sees_the_divergence_of_rows_that_hardly_moved():
    base = {"w": RNG.normal(size=(40, 50)).astype(np.float32)}
    near = {"w": base["w"] + (1e-4 * RNG.normal(size=(40, 50))).astype(np.float32)}
    expected, kept = fused(near["w"], base["w"])
    for convert in (np.asarray, jnp.asarray):
        result = arcee_fusion([{"w": convert(near["w"])}], base={"w": convert(base["w"])})["w"]
        differ = np.asarray(result, np.float64) != expected.astype(np.float32)
        assert differ.sum() <= 2 < kept  # elements at the threshold itself


@pytest.mark.parametrize(("largest", "kept"), [(0.6, 0.6), (0.4, 0.0)])
def test_arcee_fusion_ranks_from_zero_and_rounds_down(largest, kept):
    # in one row importance goes with the difference: 0.2 + 1.5 (0.3 - 0.1) is the threshold
    member = {"w": np.float32([0.1, -0.2, 0.3, largest])}
    result = arcee_fusion([member], base={"w": np.zeros(4, np.float32)})["w"]
    np.testing.assert_array_equal(result, np.float32([0, 0, 0, kept]))


def test_arcee_fusion_bounds_the_divergence_of_improbable_elements():
    # without the 1e-8 the first row would be the outlier that lets the others stay
    base = np.float32([[0, -50], [0, 0], [0, 0], [0, 0]])
    member = np.float32([[0, 0], [1000, -1000], [1000, -1000], [1000, -1000]])
    assert fused(member, base)[1] == 0
    for convert in (np.asarray, jnp.asarray):
        result = arcee_fusion([{"w": convert(member)}], base={"w": convert(base)})["w"]
        np.testing.assert_array_equal(result, base)


def test_arcee_fusion_of_the_base_and_of_a_scalar():
    close(arcee_fusion([BASE], base=BASE), BASE)
    # no row diverges: no element is less important than another
    assert arcee_fusion([{"x": np.float32(3)}], base={"x": np.float32(2)})["x"] == 3


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_magmax(scale):
    close(magmax(MEMBERS, base=BASE, scale=scale), element_wise(lambda steps: scale * max(steps, key=abs)))


def test_magmax_takes_the_last_of_equal_magnitudes():
    base, members = {"w": np.zeros(2, np.float32)}, [{"w": np.float32([1, -2])}, {"w": np.float32([-1, 1])}]
    np.testing.assert_array_equal(magmax(members, base=base, scale=1.0)["w"], [-1, -2])
    np.testing.assert_array_equal(magmax(members[::-1], base=base, scale=1.0)["w"], [1, -2])


def mean_of_active(epsilon, factors=None):
    def element(steps):
        active = [i for i, step in enumerate(steps) if abs(step) > epsilon]
        if len(active) == 1:
            return steps[active[0]] * (factors[active[0]] if factors else 1)
        return sum(steps[i] for i in active) / max(len(active), 1)

    return element


@pytest.mark.parametrize("epsilon", [1e-5, 0.05])
def test_ram(epsilon):
    close(ram(MEMBERS, base=BASE, epsilon=epsilon), element_wise(mean_of_active(epsilon)))


def factors(steps, rescale, limit):
    active = np.stack([abs(step) > 1e-5 for step in steps])
    count = active.sum(0)
    return [
        1 + rescale * min(int((on & (count > 1)).sum()) / max(int((on & (count == 1)).sum()), 1e-5), limit)
        for on in active
    ]


@pytest.mark.parametrize("scope", ["leaf", "model"])
def test_ram_plus(scope):
    steps = [np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(vectors(m))]) for m in MEMBERS]
    expected, start = [], 0
    for base in jax.tree.leaves(BASE):
        here = [step[start : start + base.size] for step in steps]
        counted = steps if scope == "model" else here
        merge = mean_of_active(1e-5, factors(counted, rescale=0.7, limit=9.0))
        expected.append(base + np.reshape([merge(column) for column in zip(*here, strict=True)], base.shape))
        start += base.size
    result = ram_plus(MEMBERS, base=BASE, rescale=0.7, limit=9.0, scope=scope)
    close(result, jax.tree.unflatten(jax.tree.structure(BASE), expected))


def test_ram_plus_without_rescaling_is_ram_and_the_limit_holds():
    close(ram_plus(MEMBERS, base=BASE, rescale=0.0), ram(MEMBERS, base=BASE))
    base = {"w": np.zeros(4, np.float32)}
    members = [{"w": np.float32([1, 2, 2, 0])}, {"w": np.float32([0, 2, 4, 8])}]
    np.testing.assert_allclose(ram_plus(members, base=base)["w"], [1.02, 2, 3, 8.16], rtol=1e-6)


def test_identical_members():
    member = moved(BASE, draw(0.1))
    close(ram([member] * 3, base=BASE, epsilon=0.0), member)
    close(ram_plus([member] * 3, base=BASE, epsilon=0.0), member)
    close(magmax([member] * 3, base=BASE, scale=1.0), member)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nearswap(MEMBERS, base=BASE), "nearswap takes exactly 1 member besides the base, got 4"),
        (lambda: nearswap(MEMBERS[:1], base=BASE, t=-1), "t must be at least 0, not -1"),
        (lambda: arcee_fusion(MEMBERS[:2], base=BASE), "arcee_fusion takes exactly 1 member besides the base, got 2"),
        (lambda: ram(MEMBERS, base=BASE, epsilon=-1e-3), "epsilon must be at least 0, not -0.001"),
        (lambda: ram_plus(MEMBERS, base=BASE, epsilon=np.nan), "epsilon must be a finite number, not nan"),
        (lambda: ram_plus(MEMBERS, base=BASE, limit=-0.5), "limit must be at least 0, not -0.5"),
        (lambda: ram_plus(MEMBERS, base=BASE, scope="modle"), "unknown scope 'modle' .did you mean 'model'"),
        (lambda: magmax([], base=BASE), "no members"),
        (lambda: magmax(MEMBERS, base={"a": BASE["a"]}), "base: b is missing"),
        (lambda: magmax([MEMBERS[0], jax.tree.map(lambda x: x * np.nan, BASE)], base=BASE), "member 1: a/kernel"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
