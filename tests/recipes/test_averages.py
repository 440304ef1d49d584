import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import soups
from soups import tree


def test_weighted_takes_names():
    members = {"a": {"w": np.float32([1])}, "b": {"w": np.float32([2])}, "c": {"w": np.float32([4])}}
    assert soups.weighted(members, {"c": 0.5, "a": 0.25})["w"][0] == 2.25
    assert soups.weighted(list(members.values()), {2: 0.5, "0": 0.25})["w"][0] == 2.25


def test_weighted_names_an_unknown_member():
    with pytest.raises(ValueError, match=r"unknown member 'menber_1' .did you mean 'member_1'"):
        soups.weighted({"member_1": {"w": np.float32([1])}}, {"menber_1": 1.0})


def test_weighted_counts_weights():
    with pytest.raises(ValueError, match="1 members need 1 values of weights, but 2"):
        soups.weighted([{"w": np.float32([1])}], [0.5, 0.5])


LARGE = np.float32(3e38)  # two of them overflow float32
OVERFLOWING = {
    "uniform": lambda a, b, half: soups.uniform([a, a, a]),
    "linear": lambda a, b, half: soups.linear([a, a, b], weights=[2, 1, 2], normalize=False),
    "weighted": lambda a, b, half: soups.weighted([a, a, b], [2, 1, 2]),
    "wise_ft": lambda a, b, half: soups.wise_ft(a, base=b, alpha=1.0),
    "task_arithmetic": lambda a, b, half: soups.task_arithmetic([a], base=b, scale=1.0),
    "ties": lambda a, b, half: soups.ties([a], base=b, density=1.0),
    "mean": lambda a, b, half: tree.mean([a, a, a]),
    "weighted_sum": lambda a, b, half: tree.weighted_sum([a, a, b], [2, 1, 2]),
    "lerp": lambda a, b, half: tree.lerp(b, a, 1.0),
    "add_scaled": lambda a, b, half: tree.add_scaled(b, half, 4.0),
    "ema": lambda a, b, half: soups.ema(b, a, 0.0),
}


@pytest.mark.parametrize("call", OVERFLOWING.values(), ids=OVERFLOWING)
def test_what_overflows_midway_alone_is_no_overflow(call):
    a, b, half = ({"w": np.full(3, factor * LARGE), "v": np.ones(2, np.float32)} for factor in (1, -1, 0.5))
    merged = call(a, b, half)["w"]
    assert merged.dtype == np.float32
    np.testing.assert_allclose(merged, a["w"], rtol=1e-6)


@pytest.mark.parametrize("number", [2, 3, 8])
def test_the_mean_of_large_numbers_is_no_overflow_on_devices(number):
    members = [{"w": jnp.full(3, LARGE)}] * number
    for average in (soups.uniform, tree.mean, jax.jit(soups.uniform)):
        np.testing.assert_allclose(average(members)["w"], members[0]["w"], rtol=1e-6)


def test_what_overflows_is_said_to():
    a = {"w": np.full(3, LARGE)}
    for members in ([a, a], [{"w": a["w"] * (1 + 0j)}] * 2):
        for average in (tree.weighted_sum, soups.weighted):
            with pytest.raises(ValueError, match=r"the merged w overflows (float32|complex64), though no member does"):
                average(members, [1, 1])


@pytest.mark.parametrize("count", [-1, np.nan, "2", None])
def test_a_mean_is_of_a_number_of_members(count):
    with pytest.raises(ValueError, match=r"^count must be "):
        soups.running_mean({"w": np.ones(2, np.float32)}, {"w": np.ones(2, np.float32)}, count)


def test_running_mean_of_bfloat16_kept_in_float32(rng):
    values = rng.normal(size=300).astype(np.float32)
    mean = tree.widen({"w": values[:1]})
    for count, value in enumerate(values[1:], start=1):
        mean = soups.running_mean(mean, {"w": value[None]}, count)
    np.testing.assert_allclose(mean["w"][0], values.astype(np.float64).mean(), atol=1e-6)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32, np.float64])
def test_averages_of_any_dtype_move(dtype):
    start, member = {"w": np.ones(3, dtype)}, {"w": np.full(3, 1.5, dtype)}
    average = mean = start
    for step in range(1, 2001):
        average, mean = soups.ema(average, member, 0.999), soups.running_mean(mean, member, step)
    assert (
        average["w"].dtype
        == mean["w"].dtype
        == np.promote_types(dtype if dtype == np.float64 else np.float32, np.float32)
    )
    np.testing.assert_allclose(average["w"], 1.5 - 0.5 * 0.999**2000, rtol=1e-5)
    np.testing.assert_allclose(mean["w"], 1.5 - 0.5 / 2001, rtol=1e-5)


def test_ema_from_zero_is_wise_ft_of_the_debiased_average(rng):
    # a property of the WiSE-FT paper: EMA started at θ0 equals (1 − α) θ0 + α (debiased EMA), α = 1 − β^T
    start, decay, steps = 0.7, 0.9, 12
    trajectory = rng.normal(size=steps)
    average = {"w": np.float64([start])}
    for value in trajectory:
        average = soups.ema(average, {"w": np.float64([value])}, decay)
    weights = (1 - decay) * decay ** np.arange(steps)[::-1]
    alpha = 1 - decay**steps
    expected = soups.wise_ft(
        {"w": np.float64([weights @ trajectory / alpha])}, base={"w": np.float64([start])}, alpha=alpha
    )
    np.testing.assert_allclose(average["w"], expected["w"], rtol=1e-12)


def test_wise_ft_equals_float64(rng):
    member, base = ({"w": rng.normal(size=7).astype(np.float32)} for _ in range(2))
    expected = 0.75 * member["w"].astype(np.float64) + 0.25 * base["w"]
    np.testing.assert_allclose(soups.wise_ft(member, base=base, alpha=0.75)["w"], expected, rtol=1e-6)


def test_wise_ft_only_interpolates_the_trunk():
    member = {"trunk": np.float32([2.0]), "head": np.float32([5.0, 6.0])}
    base = {"trunk": np.float32([0.0])}
    for wise_ft in (soups.wise_ft, soups.recipes.METHODS["wise_ft"]):
        result = wise_ft(member, base=base, alpha=0.5, only="trunk")
        assert result["trunk"][0] == 1.0
        np.testing.assert_array_equal(result["head"], member["head"])


def test_wise_ft_needs_the_head_in_the_base_unless_told():
    with pytest.raises(ValueError, match="- base: head is missing"):
        soups.wise_ft({"trunk": np.float32([2.0]), "head": np.float32([5.0])}, base={"trunk": np.float32([0.0])})


def test_interpolate_refuses_another_path():
    with pytest.raises(ValueError, match="unknown path 'curved'"):
        soups.interpolate({}, {}, t=0.5, path="curved")
