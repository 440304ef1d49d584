"""Test that streaming a merge from disk gives the numbers of merging in memory, in little memory."""

import dataclasses
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import soups
from soups import engine, tree
from soups.pool import Pool
from soups.recipes import Inputs
from soups.tree import Tree


def _params(seed, size=70_001):
    # more elements than one block, and no multiple of it
    rng = np.random.default_rng(seed)
    return {
        "long": rng.standard_normal(size, np.float32),
        "half": jnp.asarray(rng.standard_normal((300, 301)), jnp.bfloat16),
        "block": {"kernel": rng.standard_normal((24, 16), np.float32), "scale": np.float32(rng.standard_normal())},
        "offsets": np.arange(5),
        "mask": np.array([True, False]),
    }


@pytest.fixture
def pool(tmp_path, mesh):
    """Return a pool of three members, one of them sharded."""
    pool = Pool(tmp_path / "pool")
    for seed in range(3):
        params = _params(seed)
        if seed == 1:
            params["block"]["kernel"] = jax.device_put(
                params["block"]["kernel"], NamedSharding(mesh, P("pool", "data"))
            )
        pool.add(f"m{seed}", params, metrics={"held_out": seed / 4}, base="start")
    return pool


def _same_bytes(a: Tree, b: Tree):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.shape, x.dtype, x.tobytes()) == (y.shape, y.dtype, y.tobytes())


@pytest.mark.parametrize("unit", ["element", "row", "leaf"])
def test_a_streamed_mean_is_the_mean_in_memory_to_the_bit(pool, unit):
    recipe = dataclasses.replace(soups.uniform.recipe(Inputs(3)), unit=unit)
    streamed = engine.merge(recipe, pool)
    _same_bytes(streamed, tree.mean(list(pool.values())))
    expected = np.mean([np.asarray(_params(seed)["long"], np.float64) for seed in range(3)], axis=0)
    np.testing.assert_allclose(streamed["long"], expected, rtol=0, atol=1e-6)


def test_members_come_in_the_order_of_the_view(pool):
    weights = [0.7, 0.2, 0.1]
    streamed = soups.weighted(pool.select(["m2", "m0", "m1"]), weights)
    _same_bytes(streamed, tree.weighted_sum([pool["m2"], pool["m0"], pool["m1"]], weights))


def test_what_a_recipe_raises_comes_through(pool):
    def refuse(part, _):
        raise ZeroDivisionError("not today")

    with pytest.raises(ZeroDivisionError, match="not today"):
        engine.merge(engine.Recipe(refuse), pool)


def test_integer_leaves_that_differ_are_all_named_before_any_work(pool):
    params = _params(3)
    params["offsets"][2] = 7
    params["mask"][0] = False
    pool.add("m3", params)
    recipe = engine.Recipe(lambda part, _: pytest.fail("called"))
    with pytest.raises(ValueError, match=r"must be identical in all members.* these differ: mask, offsets"):
        engine.merge(recipe, pool)
    assert soups.uniform(pool, keep_first="mask|offsets")["offsets"].tolist() == [0, 1, 2, 3, 4]


def test_merging_needs_the_memory_of_the_result_and_a_few_blocks(tmp_path):
    pool = Pool(tmp_path)
    size = 1_000_000
    for seed in range(6):
        pool.add(f"m{seed}", {"a": np.full(size, seed, np.float32), "b": np.full((size, 2), seed, np.float32)})
    tracemalloc.start()
    try:
        merged = soups.uniform(pool)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    member = 3 * size * 4
    assert member < peak < 1.5 * member
    assert np.unique(merged["b"]).tolist() == [2.5]
