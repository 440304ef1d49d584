"""Check matching by activations against known permutations and NumPy's correlation."""

import itertools

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from soups.recipes.rebasin import activation_matching


@pytest.fixture
def activations(rng):
    """Return activations of 50 inputs at 3 places: 6 units with large means, and these in another order with noise."""
    a = rng.normal(5.0, [1, 2, 3, 1, 2, 3], size=(50, 3, 6)).astype(np.float32)
    hidden = rng.permutation(6)
    return a, (a[..., hidden] + 0.1 * rng.normal(size=a.shape)).astype(np.float32), hidden


@pytest.mark.parametrize("cast", [np.asarray, jnp.asarray, lambda x: x.astype(ml_dtypes.bfloat16)])
def test_permutation_is_recovered(activations, cast):
    a, b, hidden = activations
    found = activation_matching({"p": cast(a)}, {"p": cast(b)}).permutations["p"]
    assert hidden[found].tolist() == list(range(6))


def test_correlation_is_that_of_numpy_and_pools_over_batches(activations):
    a, b, _ = activations
    matching = activation_matching({"p": a}, {"p": b})
    flat = [x.reshape(-1, 6).astype(np.float64) for x in (a, b)]
    expected = np.corrcoef(*flat, rowvar=False)[:6, 6:]
    order = matching.permutations["p"]
    np.testing.assert_allclose(matching.history, [np.trace(expected), expected[range(6), order].sum()], rtol=1e-10)
    cuts = [0, 1, 20, 50]
    pairs = list(itertools.pairwise(cuts))
    pooled = activation_matching(({"p": a[i:j]} for i, j in pairs), ({"p": b[i:j]} for i, j in pairs))
    np.testing.assert_allclose(pooled.history, matching.history, rtol=1e-10)
    assert pooled.permutations["p"].tolist() == order.tolist()


def test_inner_product_is_solved_as_by_brute_force(rng):
    a, b = rng.normal(1.0, 2.0, size=(2, 20, 4))
    batches = [[{"p": x[:7]}, {"p": x[7:]}] for x in (a, b)]
    matching = activation_matching(*batches, statistic="inner_product")
    product = sum(np.outer(x, y) for x, y in zip(a, b, strict=True)) / 20
    values = {o: sum(product[i, j] for i, j in enumerate(o)) for o in itertools.permutations(range(4))}
    assert tuple(matching.permutations["p"]) == max(values, key=values.get)
    np.testing.assert_allclose(matching.history, [values[0, 1, 2, 3], max(values.values())], rtol=1e-10)


def test_means_and_scales_matter_to_inner_products_only(activations):
    a, b, hidden = activations
    wrong = list(hidden).index(1)  # of B: the partner of unit 1 of A
    a, b = a + np.float32(100) * (np.arange(6) == 0), 7 * b + np.float32(100) * (np.arange(6) == wrong)
    found = activation_matching({"p": a}, {"p": b}).permutations["p"]
    assert hidden[found].tolist() == list(range(6))
    assert activation_matching({"p": a}, {"p": b}, statistic="inner_product").permutations["p"][0] == wrong


def test_constant_units_correlate_with_none(activations):
    a, b, hidden = activations
    a, b = a.copy(), b.copy()
    a[..., 2], b[..., list(hidden).index(2)] = 7.0, 0.0
    matching = activation_matching({"p": a}, {"p": b})
    assert hidden[matching.permutations["p"]].tolist() == list(range(6))
    assert 4.5 < matching.history[1] < 5


def test_permutations_are_matched_one_by_one(activations):
    a, b, hidden = activations
    found = activation_matching({"p": a, "q": b}, {"q": a, "p": b}).permutations
    assert hidden[found["p"]].tolist() == list(range(6))
    assert found["q"][found["p"]].tolist() == list(range(6))


def test_activations_that_do_not_fit_are_an_error(activations):
    a, b, _ = activations
    with pytest.raises(ValueError, match=r"unknown statistic 'corelation' \(did you mean 'correlation'"):
        activation_matching({"p": a}, {"p": b}, statistic="corelation")
    with pytest.raises(ValueError, match="no activations"):
        activation_matching([], [])
    for pair in ([{"p": a}], []), ([], [{"p": a}]):
        with pytest.raises(ValueError, match="need equally many batches, but one of them has only 0"):
            activation_matching(*pair)
    for pair in ({"p": a}, {"q": a, "p": a}), ({"p": a, "q": a}, {"p": a}):
        with pytest.raises(ValueError, match=r"unknown permutation in the activations of one network 'q'"):
            activation_matching(*pair)
    for x, y in (a, b[:2]), (a[0, 0], b[0, 0]):
        with pytest.raises(ValueError, match=r"'p' must be \[\.\.\., units\], of the same shape in both"):
            activation_matching({"p": x}, {"p": y})
    with pytest.raises(ValueError, match="'p' hold NaN or infinity"):
        activation_matching({"p": a}, {"p": b * np.float32(np.nan)})
    for batch in {"p": a[..., :3]}, {"q": a}:
        with pytest.raises(ValueError, match=r"batch 1 has activations of .*, the first batch of \{'p': 6\}"):
            activation_matching([{"p": a}, batch], [{"p": b}, batch])
