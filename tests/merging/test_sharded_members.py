"""Merge members that are kept in shards of different meshes, each device reading no more than its own part."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import yaml
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from soups import merging
from soups.formats.orbax import load, save_checkpoint
from soups.merging.sharded import merge_sharded, merged_leaves
from soups.pool import load_checkpoint

SHAPE, LEAVES = (64, 48), ("one", "two", "three")


def mesh(sizes):
    names = ("x", "y")[: len(sizes)]
    return jax.make_mesh(
        sizes, names, axis_types=(AxisType.Auto,) * len(sizes), devices=jax.devices()[: np.prod(sizes)]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a base and two members: by rows as FSDP cuts, by columns as tensor parallelism, and over both axes."""
    place = tmp_path_factory.mktemp("members")
    cuts = {"base": NamedSharding(mesh((8,)), P("x")), "a": NamedSharding(mesh((4,)), P(None, "x"))}
    cuts["b"] = NamedSharding(mesh((4, 2)), P("x", "y"))
    for name, sharding in cuts.items():
        leaves = {leaf: jax.device_put(array, sharding) for leaf, array in weights(name).items()}
        save_checkpoint(place / name, leaves)
    return place


def weights(name):
    rng = np.random.default_rng(["base", "a", "b"].index(name))
    return {leaf: rng.normal(size=SHAPE).astype(ml_dtypes.bfloat16) for leaf in LEAVES}


def planned(folder):
    models = [{"model": str(folder / name), "parameters": {"weight": 0.5}} for name in ("a", "b")]
    recipe = {"merge_method": "task_arithmetic", "vocabulary": "mergekit", "models": models}
    recipe |= {"base_model": str(folder / "base"), "parameters": {"lambda": 0.5}}
    return merging.plan(merging.parse_recipe(yaml.safe_dump(recipe)), merging.open_model)


def expected(leaf):
    base, a, b = (np.float64(weights(name)[leaf]) for name in ("base", "a", "b"))
    return base + 0.5 * (0.5 * (a - base) + 0.5 * (b - base))


@pytest.mark.parametrize("count", [8, 2])
def test_members_cut_otherwise_are_merged_on_any_number_of_devices(folder, tmp_path, count):
    merge_sharded(planned(folder), tmp_path / "out", devices=jax.devices()[:count])
    merged = load_checkpoint(tmp_path / "out")
    for leaf in LEAVES:
        np.testing.assert_allclose(np.float64(merged[leaf]), expected(leaf), rtol=2**-7, atol=2**-9)  # of bfloat16
    # elastic: what was kept by one number of devices is read by another
    one = jax.ShapeDtypeStruct(SHAPE, jnp.bfloat16, sharding=NamedSharding(mesh((4,)), P("x")))
    again = load(tmp_path / "out", dict.fromkeys(LEAVES, one))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again), merged)


def test_no_more_than_what_is_merged_and_one_leaf_is_held(folder):
    leaf, held = np.prod(SHAPE) * 2, []
    before = {id(array) for array in jax.live_arrays()}

    def progress(count):
        assert count <= leaf / 8  # a shard
        held.append(sum(array.nbytes for array in jax.live_arrays() if id(array) not in before))

    merged = merged_leaves(planned(folder), progress=progress)
    # outputs, the members and the base of one leaf, and some booleans
    assert max(held) <= (len(LEAVES) - 1 + 3) * leaf + 1000
    assert all(len({str(shard.index) for shard in array.addressable_shards}) == 8 for array in merged.values())
