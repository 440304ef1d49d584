"""Test that streaming a merge from disk gives the numbers of merging in memory, in little memory."""

import functools
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from soups import tree
from soups.pool import Pool
from soups.tree import Tree


def _params(seed, size=70_001):
    # more elements than one block, and no multiple of it
    rng = np.random.default_rng(seed)
    return {
        "long": rng.standard_normal(size, np.float32),
        "half": jnp.asarray(rng.standard_normal((300, 301)), jnp.bfloat16),
        "block": {"kernel": rng.standard_normal((24, 16), np.float32), "scale": np.float32(rng.standard_normal())},
        "steps": np.arange(5),
        "mask": np.array([True, False]),
    }


@pytest.fixture
def pool(tmp_path, mesh):
    """Give a pool of three members, one of them sharded."""
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


@pytest.mark.parametrize("whole_leaves", [False, True])
def test_a_streamed_mean_is_the_mean_in_memory_to_the_bit(pool, whole_leaves):
    streamed = pool.merge_leaves(tree.mean, whole_leaves=whole_leaves)
    _same_bytes(streamed, tree.mean(list(pool.values())))
    expected = np.mean([np.asarray(_params(seed)["long"], np.float64) for seed in range(3)], axis=0)
    np.testing.assert_allclose(streamed["long"], expected, rtol=0, atol=1e-6)


def test_members_come_in_the_order_of_the_view(pool):
    weights = [0.7, 0.2, 0.1]
    view = pool.select(["m2", "m0", "m1"])
    streamed = view.merge_leaves(functools.partial(tree.weighted_sum, weights=weights))
    _same_bytes(streamed, tree.weighted_sum([pool["m2"], pool["m0"], pool["m1"]], weights))


def test_a_function_may_use_jax_and_give_other_dtypes(pool):
    def widened_sum(members):
        return jax.tree.map(lambda *leaves: sum(jnp.asarray(leaf).astype(jnp.float32) for leaf in leaves), *members)

    merged = pool.merge_leaves(widened_sum)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {np.dtype(np.float32)}
    expected = sum(np.asarray(_params(seed)["half"], np.float64) for seed in range(3))
    np.testing.assert_allclose(merged["half"], expected, rtol=1e-6, atol=1e-6)


def test_whole_leaves_have_their_names_and_shapes(pool):
    def sorted_rows(members):
        ((name, leaf),) = members[0].items()
        return {name: np.sort(leaf, axis=-1) if name == "block/kernel" else leaf}

    merged = pool.merge_leaves(sorted_rows, whole_leaves=True)
    np.testing.assert_array_equal(merged["block"]["kernel"], np.sort(_params(0)["block"]["kernel"], axis=-1))


def test_a_function_that_is_not_element_wise_is_noticed(pool):
    with pytest.raises(ValueError, match=r"gave shape \(1,\) .*needs whole_leaves=True"):
        pool.merge_leaves(lambda members: jax.tree.map(lambda leaf: leaf[:1], members[0]))
    with pytest.raises(ValueError, match="must give"):
        pool.merge_leaves(lambda members: {"other": np.ones(1)})


def test_what_the_function_raises_comes_through(pool):
    def refuse(members):
        raise ZeroDivisionError("not today")

    with pytest.raises(ZeroDivisionError, match="not today"):
        pool.merge_leaves(refuse)


def test_integer_leaves_that_differ_are_all_named_before_any_work(pool):
    params = _params(3)
    params["steps"][2] = 7
    params["mask"][0] = False
    pool.add("m3", params)
    with pytest.raises(ValueError, match="must be identical in all members; these differ: mask, steps"):
        pool.merge_leaves(lambda members: pytest.fail("called"))


def test_merging_needs_the_memory_of_the_result_and_a_few_blocks(tmp_path):
    pool = Pool(tmp_path)
    size = 1_000_000
    for seed in range(6):
        pool.add(f"m{seed}", {"a": np.full(size, seed, np.float32), "b": np.full((size, 2), seed, np.float32)})
    tracemalloc.start()
    try:
        merged = pool.merge_leaves(tree.mean)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    member = 3 * size * 4
    assert member < peak < 1.5 * member
    assert np.unique(merged["b"]).tolist() == [2.5]
