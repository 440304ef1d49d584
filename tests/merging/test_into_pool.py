"""Test merges into members of pools."""

import numpy as np
import pytest

from soups import Pool, merging
from soups.merging.into_pool import merge_to_pool, split_member
from soups.tree import flatten


def leaves(seed):
    rng = np.random.default_rng(seed)
    return {"head": {"kernel": rng.normal(size=(3, 2)).astype(np.float32), "bias": np.full(2, seed, np.float32)}}


@pytest.fixture
def pool(tmp_path):
    """Give the path of a pool of the members "a" and "b"."""
    pool = Pool(tmp_path / "pool")
    for seed, name in enumerate("ab", start=1):
        pool.add(name, leaves(seed), base="start")
    return tmp_path / "pool"


def average(small, *models):
    entries = [{"model": model, "parameters": {"weight": 1}} for model in models]
    text = small.plain({"merge_method": "linear", "models": entries})
    return merging.plan(merging.parse_recipe(str(text)), merging.open_model)


def test_a_merge_becomes_a_member(small, pool):
    done = []
    plan = average(small, f"{pool}:a", f"{pool}:b")
    record = merge_to_pool(plan, f"{pool}:soup", progress=done.append)
    merged = flatten(Pool(pool)["soup"])
    for name, array in flatten(leaves(1)).items():
        expected = (array.astype(np.float64) + flatten(leaves(2))[name]) / 2
        small.near(merged[name], expected)
    assert sum(done) == plan.write_bytes and record["base"] == "start"
    assert record["metadata"]["merge"]["method"] == "linear"
    assert set(record["metadata"]["merge"]["inputs"]) == {f"{pool}:a", f"{pool}:b"}
    assert Pool(pool).verify() == {"a": [], "b": [], "soup": []}


def test_a_pool_is_made_by_its_first_member(small, pool, tmp_path):
    record = merge_to_pool(average(small, f"{pool}:a"), f"{tmp_path}/new:soup")
    np.testing.assert_array_equal(Pool(tmp_path / "new")["soup"]["head"]["bias"], [1, 1])
    assert record["base"] is None  # of that pool nobody knows the base


def test_what_does_not_fit_is_an_error_before_any_work(small, pool, models):
    plan = average(small, f"{pool}:a")
    with pytest.raises(ValueError, match="has a member 'b': a merge is written under a new name"):
        merge_to_pool(plan, f"{pool}:b", progress=pytest.fail)
    with pytest.raises(ValueError, match=r"soup: head/bias is missing"):
        merge_to_pool(average(small, models["a"]), f"{pool}:soup", progress=pytest.fail)
    for wrong in ("pool", "pool:", ":soup"):
        with pytest.raises(ValueError, match=f"a member of a pool is POOL:NAME, not '{wrong}'"):
            split_member(wrong)
