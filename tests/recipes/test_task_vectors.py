"""Test arithmetic on task vectors against float64 written from the formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import soups
from soups.engine import Part
from soups.recipes import _random, _select
from soups.recipes._select import kth_magnitudes
from soups.recipes.sparsify import drop, magprune, outliers, trim

RNG = np.random.default_rng(7)


def bits(seed, name, part, shape):
    """Return the first and the further bits of all elements [2, *shape]."""
    places = part.xp.arange(np.prod(shape), dtype=np.int64 if part.xp is np else np.uint32).reshape(shape)
    first = _random.first_bits(seed, name, part, shape).astype(np.float32)
    return part.xp.stack([first, _random.further_bits(seed, name, part, places.reshape(-1)).reshape(shape)])


def uniform(seed, name, leaf, size):
    return bits(seed, name, Part(leaf, [np.zeros(1)]), (size,)).astype(np.float64).sum(0) / 256


SHAPES = {"a": {"kernel": (6, 10)}, "b": (9,), "scalar": ()}


def draw(scale=1.0):
    return jax.tree.map(
        lambda shape: (scale * RNG.normal(size=shape)).astype(np.float32),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


BASE = draw()
MEMBERS = [jax.tree.map(lambda b, d: b + d, BASE, draw(0.1)) for _ in range(4)]


def flat(tree):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def vectors(members=None):
    # subtracted in float32 first: selection must see the same magnitudes, ties included
    return np.stack([flat(jax.tree.map(lambda m, b: m - b, m, BASE)) for m in members or MEMBERS])


def close(result, expected):
    np.testing.assert_allclose(flat(result), expected, rtol=1e-6, atol=1e-6)


def trimmed(task_vectors, kept):
    result = np.zeros_like(task_vectors)
    for i, vector in enumerate(task_vectors):
        for place in sorted(range(vector.size), key=lambda p: -abs(vector[p]))[:kept]:
            result[i, place] = vector[place]
    return result


def elected(task_vectors, weights, *, normalize, majority=None):
    merged = np.zeros(task_vectors.shape[1])
    mass = [sum(w * v for w, v in zip(weights, column, strict=True)) for column in task_vectors.T]
    if majority is None:
        majority = 1.0 if sum(np.sign(mass)) >= 0 else -1.0
    for place, column in enumerate(task_vectors.T):
        sign = np.sign(mass[place]) or majority
        agree = [(w, v) for w, v in zip(weights, column, strict=True) if np.sign(w * v) == sign]
        total = sum(w * v for w, v in agree)
        divisor = sum(w for w, _ in agree) if normalize else 1.0
        merged[place] = total / divisor if abs(divisor) > 1e-8 else total
    return merged


@pytest.mark.parametrize("scale", [0.3, -0.5])
def test_task_arithmetic(scale):
    weights = [1.0, 0.5, 2.0, 0.0]
    result = soups.task_arithmetic(MEMBERS, base=BASE, scale=scale, weights=weights)
    close(result, flat(BASE) + scale * sum(w * v for w, v in zip(weights, vectors(), strict=True)))


def test_forgetting_undoes_learning():
    learned = soups.task_arithmetic(MEMBERS[:1], base=BASE, scale=1.0)
    forgotten = soups.task_arithmetic([learned], base=BASE, scale=-1.0)
    close(forgotten, 2 * flat(BASE) - flat(MEMBERS[0]))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("density", [0.1, 0.2, 0.5])
def test_ties_over_the_model(density, normalize):
    kept = int(70 * density) + 1  # as published: one more than the fraction says
    expected = elected(trimmed(vectors(), kept), [1.0] * 4, normalize=normalize)
    result = soups.ties(MEMBERS, base=BASE, density=density, scale=0.7, normalize=normalize)
    close(result, flat(BASE) + 0.7 * expected)


def test_ties_per_leaf_with_weights():
    weights = [2.0, 1.0, 1.0, 0.5]
    result = soups.ties(MEMBERS, base=BASE, density=0.3, weights=weights, scope="leaf")
    task_vectors, expected = vectors(), []
    for start, end in [(0, 60), (60, 69), (69, 70)]:
        part = trimmed(task_vectors[:, start:end], min(int((end - start) * 0.3), end - start - 1) + 1)
        expected.append(elected(part, weights, normalize=True))
    close(result, flat(BASE) + np.concatenate(expected))


def test_ties_takes_the_majority_sign_where_all_cancels():
    base = {"w": np.zeros(5, np.float32)}
    a, b = {"w": np.float32([1, -3, -3, -3, 2])}, {"w": np.float32([-1, -3, -3, -3, 2])}
    np.testing.assert_array_equal(soups.ties([a, b], base=base, density=1.0)["w"], np.float32([-1, -3, -3, -3, 2]))
    positive = soups.combine_task_vectors([a, b], base=base, elect=True, normalize=True, tie="positive")
    np.testing.assert_array_equal(positive["w"], np.float32([1, -3, -3, -3, 2]))


def test_ties_of_agreeing_members_with_all_kept_is_their_mean():
    members = [jax.tree.map(lambda b, s=s: b + np.float32(s), BASE) for s in (0.5, 1.0, 1.5)]
    close(soups.ties(members, base=BASE, density=1.0), flat(BASE) + 1.0)


def test_dare_keeps_about_the_density_and_rescales():
    base = {"w": np.zeros(40_000, np.float32)}
    members = [{"w": np.ones(40_000, np.float32)}] * 2
    one = soups.dare(members[:1], base=base, density=0.25)["w"]
    assert set(np.unique(one)) == {0.0, 4.0}
    assert abs((one > 0).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 40_000)
    # members draw apart
    both = soups.dare(members, base=base, density=0.25)["w"]
    assert abs((both == 8).mean() - 0.25**2) < 4 * np.sqrt(0.0625 / 40_000)
    other = soups.dare(members[:1], base=base, density=0.25, seed=1)["w"]
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.02


def test_dare_is_unbiased():
    runs = [flat(soups.dare(MEMBERS, base=BASE, density=0.5, scale=0.5, seed=seed)) for seed in range(400)]
    expected = flat(soups.task_arithmetic(MEMBERS, base=BASE, scale=0.5))
    error = np.std(runs, axis=0) / np.sqrt(len(runs))
    assert np.all(np.abs(np.mean(runs, axis=0) - expected) < 5 * error + 1e-6)


def test_norm_rescaling_restores_the_l1_norm_of_each_leaf():
    by_magnitude = (trim(0.5, rescale=True), outliers(0.5, 0.1, rescale=True))
    for sparsifier in (drop(0.5, rescale="norm"), magprune(0.5, 0.2, rescale="norm"), *by_magnitude):
        result = soups.combine_task_vectors(MEMBERS[:1], base=BASE, sparsify=sparsifier, scope="leaf")
        sparse = jax.tree.map(lambda r, b: np.abs(r.astype(np.float64) - b).sum(), result, BASE)
        whole = jax.tree.map(lambda m, b: np.abs(m.astype(np.float64) - b).sum(), MEMBERS[0], BASE)
        np.testing.assert_allclose(sparse["a"]["kernel"], whole["a"]["kernel"], rtol=1e-5)


@pytest.mark.parametrize(
    ("rescale", "epsilon"), [("probability", 0.3), ("norm", 0.3), (None, 0.3), (None, -0.3), ("probability", -0.3)]
)
def test_magprune_keeps_by_rank_in_each_row(rescale, epsilon):
    rows = RNG.permuted(np.tile(np.arange(1, 11, dtype=np.float32), (20_000, 1)), axis=1)
    rows[:, :2] = 5.5  # two that tie rank in their order
    vector = rows * RNG.choice(np.float32([-1, 1]), rows.shape)
    members, base = [{"w": vector}], {"w": np.zeros_like(vector)}
    sparsifier = magprune(0.6, epsilon, rescale=rescale)
    sparse = soups.combine_task_vectors(members, base=base, sparsify=sparsifier)["w"]
    ranks = np.argsort(np.argsort(rows, axis=1, kind="stable"), axis=1)
    kept = np.stack([(sparse != 0)[ranks == rank] for rank in range(10)])
    probability = 0.6 - epsilon + 2 * epsilon * np.arange(10) / 9
    deviation = np.sqrt(probability * (1 - probability) / 20_000)
    assert np.all(np.abs(kept.mean(1) - probability) < 4 * deviation)
    correlations = np.corrcoef((sparse != 0).T - probability[ranks].T)[np.triu_indices(10, 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(20_000)
    factors = sparse[sparse != 0] / vector[sparse != 0]
    if rescale == "probability":
        np.testing.assert_allclose(factors, 1 / probability[ranks][sparse != 0], rtol=1e-5)
    else:
        np.testing.assert_allclose(factors, factors[0], rtol=1e-5)


@pytest.mark.parametrize("shape", [(40, 30), (200,), (5, 1), (2, 3, 2), (), (0, 4), (4, 0)])
def test_magprune_keeps_the_same_on_devices(shape):
    vector = np.round(np.asarray(RNG.normal(size=shape), np.float32), 1)  # with ties
    for sparsifier in (magprune(0.6, 0.3, rescale=None), magprune(0.6, -0.3, rescale=None), magprune(0.6, 0.4)):
        for start in (0, 2**32 + 1200):
            here = sparsifier.apply(Part("w", [vector], np.zeros_like(vector), start), 0, None)
            there = jax.jit(
                lambda x, s=sparsifier, start=start: s.apply(Part("w", [x], jnp.zeros_like(x), start), 0, None)
            )(vector)
            np.testing.assert_allclose(here, there, rtol=1e-6)


def test_breadcrumbs():
    expected = []
    for start, end in [(0, 60), (60, 69), (69, 70)]:
        size, part = end - start, vectors()[:, start:end]
        top = int(0.1 * size)
        bottom = max(0, size - int(0.5 * size) - top)
        kept = np.zeros_like(part)
        for i, vector in enumerate(part):
            for rank, place in enumerate(sorted(range(size), key=lambda p: abs(vector[p]))):
                if bottom <= rank < size - top:
                    kept[i, place] = vector[place]
        expected.append(kept.sum(0))
    result = soups.breadcrumbs(MEMBERS, base=BASE, density=0.5, gamma=0.1, scale=0.4)
    # of a leaf with one element int(0.5) = 0 would stay: the rank of the threshold is the last
    close(
        {"a": result["a"], "b": result["b"]},
        flat({"a": BASE["a"], "b": BASE["b"]}) + 0.4 * np.concatenate(expected[:2]),
    )


AWKWARD = [RNG.normal(size=(5, 8)).astype(np.float32), np.float32([0, -0.0, 1e-40, -1e38] * 12 + [2, -2])]


@pytest.mark.parametrize("k", [1, 7, 50, 89, 90])
def test_kth_magnitude(k):
    expected = np.sort(np.abs(np.concatenate([array.ravel() for array in AWKWARD])))[k - 1]
    assert kth_magnitudes(lambda: AWKWARD, 90, [k]) == [expected]
    (found,) = kth_magnitudes(lambda: map(jnp.asarray, AWKWARD), 90, [k])
    assert found == expected or abs(expected) < 1e-37  # XLA takes subnormal numbers for zero


@pytest.mark.parametrize("gathered", [10**6, 100])
def test_kth_magnitude_of_two_dtypes(gathered, monkeypatch):
    monkeypatch.setattr(_select, "GATHERED", gathered)
    values = RNG.normal(size=2001).astype(np.float32)
    arrays = [values[:1000], values[1000:].astype(np.float64)]
    assert kth_magnitudes(lambda: arrays, values.size, [7]) == [np.sort(np.abs(values))[6]]


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.2, 0.9, 1.0])
@pytest.mark.parametrize("kind", ["random", "sorted", "few values", "all equal"])
def test_kth_magnitude_of_many(kind, fraction, monkeypatch):
    values = np.random.default_rng(0).normal(size=50_000).astype(np.float32)
    if kind == "sorted":
        values = np.sort(values)
    elif kind == "few values":
        values = np.round(values)
    elif kind == "all equal":
        values[:] = -0.5
    k = max(1, int(fraction * values.size))
    expected = np.sort(np.abs(values))[k - 1]
    assert kth_magnitudes(lambda: np.split(values, 10), values.size, [k, 1]) == [expected, np.abs(values).min()]
    monkeypatch.setattr(_select, "GATHERED", 1000)
    assert kth_magnitudes(lambda: np.split(values, 10), values.size, [k, 1]) == [expected, np.abs(values).min()]


def test_random_numbers_belong_to_the_element_alone():
    part = Part("leaf", [np.zeros((30, 7), np.float32)])
    whole = bits(3, "drop/0", part, (30, 7))
    block = Part("leaf", [np.zeros(50, np.float32)], start=101)
    np.testing.assert_array_equal(bits(3, "drop/0", block, (50,)), whole.reshape(2, -1)[:, 101:151])
    on_device = jax.jit(lambda x: bits(3, "drop/0", Part("leaf", [x]), x.shape))(jnp.zeros((30, 7)))
    np.testing.assert_array_equal(on_device, whole)
    assert not np.array_equal(bits(3, "drop/0", Part("other", part.leaves), (30, 7)), whole)


@pytest.mark.parametrize("start", [0, 2**16 - 5, 2**32 + 2**18 - 5, 7 * 2**32 + 3])
def test_random_numbers_are_the_same_on_devices(start):
    there = jax.jit(lambda x: bits(3, "drop/0", Part("leaf", [x], start=start), (1000,)))(jnp.zeros(1))
    part = Part("leaf", [np.zeros(1, np.float32)], start=start)
    np.testing.assert_array_equal(bits(3, "drop/0", part, (1000,)), there)


@pytest.mark.parametrize("border", [2**32, 2**34])
def test_random_numbers_on_both_sides_of_the_largest_integer(border):
    parts = [Part("leaf", [np.zeros(1)], start=start) for start in (border - 6, border)]
    both, above = bits(3, "drop/0", parts[0], (13,)), bits(3, "drop/0", parts[1], (7,))
    np.testing.assert_array_equal(both[:, 6:], above)
    np.testing.assert_array_equal(both[:, :6], bits(3, "drop/0", parts[0], (6,)))


@pytest.mark.parametrize("probability", [1e-9, 0.1, 0.25, 0.9, 1.0])
def test_what_is_below_a_probability(probability):
    part, drawn = Part("leaf", [np.zeros(1)]), uniform(3, "x", "leaf", 20_000)
    expected = drawn < np.float32(probability)
    on_device = jax.jit(lambda x: _random.below([probability], 3, "x", Part("leaf", [x]), (20_000,))[0])(jnp.zeros(1))
    array = np.full(20_000, probability, np.float32)
    for mask in (*_random.below([probability, array], 3, "x", part, (20_000,)), on_device):
        np.testing.assert_array_equal(mask, expected)
    scalars = [Part("leaf", [np.zeros(())], start=place) for place in range(2000)]
    each = [_random.below([probability], 3, "x", scalar, ())[0] for scalar in scalars]
    np.testing.assert_array_equal(each, expected[:2000])


def test_a_part_on_a_device_may_not_cross_the_largest_integer():
    with pytest.raises(ValueError, match="leaf w: a part must not cross element 4294967296"):
        _random.below([0.3], 0, "x", Part("w", [jnp.zeros(1)], start=2**32 - 2), (3,))


def test_streams_of_other_seeds_members_and_leaves_are_independent():
    streams = [(0, "drop/0", "a"), (0, "drop/1", "a"), (0, "drop/0", "b"), (1, "drop/0", "a"), (0, "drop/10", "a")]
    drawn = np.stack([uniform(s, n, leaf, 500_000) for s, n, leaf in streams])
    correlations = np.corrcoef(drawn)[np.triu_indices(len(streams), 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(drawn.shape[1])
    kept = drawn < 0.1
    both = (kept[:, None] & kept[None]).mean(-1)[np.triu_indices(len(streams), 1)]
    assert np.abs(both - 0.01).max() < 5 * np.sqrt(0.01 * 0.99 / drawn.shape[1])
    # nor is one stream another one, shifted
    for lag in (1, 2**10, 2**17):
        assert max(np.abs(np.corrcoef(a[:-lag], b[lag:])[0, 1]) for a in drawn for b in drawn) < 6e-3


def test_random_numbers_are_uniform_and_independent_of_their_neighbours():
    drawn = uniform(0, "x", "leaf", 1_000_000)
    assert drawn.min() >= 0 and drawn.max() < 1
    counts = np.bincount((drawn * 1000).astype(int), minlength=1000)
    assert abs(((counts - 1000) ** 2 / 1000).sum() - 999) < 5 * np.sqrt(2 * 999)  # chi squared
    for lag in (1, 2, 64, 4096):
        assert abs(np.corrcoef(drawn[:-lag], drawn[lag:])[0, 1]) < 5e-3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: soups.ties(MEMBERS, base=BASE, density=0.0), r"density must be in \(0, 1\], not 0.0"),
        (lambda: soups.dare(MEMBERS, base=BASE, density=1.5), r"density must be in \(0, 1\], not 1.5"),
        (lambda: drop(0.5, rescale="l2"), "rescale must be 'probability', 'norm' or None, not 'l2'"),
        (lambda: magprune(0.5, 0.1, rescale="l2"), "rescale must be"),
        (lambda: soups.della(MEMBERS, base=BASE, density=0.9, epsilon=0.2), r"density ± epsilon must lie in \(0, 1\]"),
        (lambda: outliers(0.5, 1.0), r"gamma must be in \[0, 1\), not 1.0"),
        (lambda: soups.ties(MEMBERS, base=BASE, weights=[1.0]), "4 members need 4 values of weights, but 1 were given"),
        (
            lambda: soups.combine_task_vectors(MEMBERS, base=BASE, sparsify=[trim(0.5)]),
            "4 members need 4 values of sparsify, but 1 were given",
        ),
        (lambda: soups.combine_task_vectors(MEMBERS, base=BASE, tie="negative"), "unknown tie"),
        (lambda: soups.combine_task_vectors(MEMBERS, base=BASE, scope="row"), "unknown scope"),
        (lambda: soups.ties(MEMBERS, base={"a": BASE["a"]}), "base: b is missing"),
        (lambda: soups.ties([], base=BASE), "no members"),
        (
            lambda: soups.ties([*MEMBERS, jax.tree.map(lambda x: x * np.nan, BASE)], base=BASE),
            r"member 4: a/kernel, b, scalar",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_integer_leaves_are_copied_and_must_agree():
    members = [{"w": np.float32([i]), "table": np.int32(5)} for i in range(2)]
    base = {"w": np.float32([0]), "table": np.int32(0)}
    assert soups.ties(members, base=base)["table"] == 5
    members[1]["table"] = np.int32(6)
    with pytest.raises(ValueError, match="these differ: table"):
        soups.ties(members, base=base)


@pytest.mark.parametrize("factor", [1e-12, 1e12])
@pytest.mark.parametrize(
    "merge",
    [
        lambda weights: soups.ties(MEMBERS, base=BASE, density=0.5, weights=weights),
        lambda weights: soups.della(MEMBERS, base=BASE, weights=weights),
        lambda weights: soups.dare(MEMBERS, base=BASE, density=0.5, weights=weights, elect=True),
        lambda weights: soups.combine_task_vectors(MEMBERS, base=BASE, weights=weights, normalize=True),
    ],
    ids=["ties", "della", "dare", "sum"],
)
def test_a_normalised_merge_does_not_know_the_scale_of_its_weights(merge, factor):
    expected = merge([1.0, 2.0, 3.0, 4.0])
    assert not np.allclose(flat(expected), flat(BASE), atol=1e-3)
    np.testing.assert_allclose(
        flat(merge([factor * w for w in (1.0, 2.0, 3.0, 4.0)])), flat(expected), rtol=0, atol=2e-6
    )
