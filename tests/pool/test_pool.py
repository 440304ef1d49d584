"""Test that a pool keeps what it is given, hands it out unchanged, and says clearly what it cannot do."""

import functools
import os

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import v1 as ocp

from soups.pool import Pool, PoolCorruptionError, digest, load_checkpoint, save_checkpoint


def _params(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "dense": {
            "kernel": rng.standard_normal((16, 8), np.float32),
            "bias": jnp.asarray(rng.standard_normal(8), jnp.bfloat16),
        },
        "half": rng.standard_normal((3, 5)).astype(np.float16),
        "scale": np.float32(seed + 1.5),
        "steps": np.arange(4, dtype=np.int32),
        "mask": np.array([True, False, True]),
        "zeros": np.zeros((2, 2), np.float32),
    }


def _same_bytes(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture
def pool(tmp_path):
    """Return a pool of three members."""
    pool = Pool(tmp_path / "pool")
    for seed in range(3):
        pool.add(f"lr-{seed}", _params(seed), {"seed": seed}, metrics={"held_out": 0.5 + seed})
    return pool


def test_members_come_back_unchanged_and_read_only(pool):
    assert pool.names == ["lr-0", "lr-1", "lr-2"] == list(pool)
    for seed, (_, params) in enumerate(pool.items()):
        _same_bytes(params, _params(seed))
        assert not any(leaf.flags.writeable for leaf in jax.tree.leaves(params))


def test_mapped_members_keep_no_files_open(pool):
    before = len(os.listdir("/proc/self/fd"))
    held = [pool[name] for name in pool]
    assert len(os.listdir("/proc/self/fd")) <= before
    assert len(jax.tree.leaves(held)) == 21


def test_mapped_members_outlive_their_files(pool):
    params = pool["lr-1"]
    pool.remove("lr-1")
    _same_bytes(params, _params(1))


def test_load_restores_into_shardings(pool, mesh):
    def sharded(leaf):
        spec = P("pool", "data") if leaf.shape == (16, 8) else P()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    like = jax.tree.map(sharded, pool.structure)
    loaded = pool.load("lr-2", like=like)
    _same_bytes(loaded, _params(2))
    assert jax.tree.map(lambda leaf: leaf.sharding, loaded) == jax.tree.map(lambda leaf: leaf.sharding, like)


def test_load_without_shardings_goes_to_the_first_device(pool):
    loaded = pool.load("lr-0", like=pool.structure)
    assert {leaf.device for leaf in jax.tree.leaves(loaded)} == {jax.devices()[0]}


def test_load_lists_every_difference_of_like(pool):
    like = pool.structure
    del like["half"]
    like["dense"]["kernel"] = jax.ShapeDtypeStruct((16, 9), np.float32)
    like["mask"] = jax.ShapeDtypeStruct((3,), np.int8)
    with pytest.raises(ValueError) as error:
        pool.load("lr-0", like=like)
    for part in ("half is missing", "dense/kernel has shape (16, 9)", "mask has dtype int8"):
        assert part in str(error.value)


def test_float64_is_mapped_but_not_silently_narrowed(tmp_path):
    pool = Pool(tmp_path)
    pool.add("wide", {"w": np.arange(3.0)})
    assert pool["wide"]["w"].dtype == np.float64
    with pytest.raises(ValueError, match="float64 only with jax_enable_x64"):
        pool.load("wide", like=pool.structure)


def test_sharded_members_are_stored_by_shard_and_read_whole(tmp_path, mesh):
    params = _params()
    kernel = jax.device_put(params["dense"]["kernel"], NamedSharding(mesh, P("pool", "data")))
    replicated = jax.device_put(params["half"], NamedSharding(mesh, P()))
    pool = Pool(tmp_path)
    record = pool.add("sharded", {**params, "half": replicated, "dense": {**params["dense"], "kernel": kernel}})
    chunks = [file for file in record["files"] if "dense.kernel/" in file and not file.endswith(".zarray")]
    assert len(chunks) == 8
    assert sum("/half/" in file for file in record["files"]) == 2
    _same_bytes(pool["sharded"], params)
    assert not pool["sharded"]["dense"]["kernel"].flags.writeable
    assert pool.digest("sharded") == digest(params) == Pool(tmp_path).digest("sharded")


def test_the_digest_tells_names_dtypes_shapes_and_numbers_apart():
    weights = np.arange(6, dtype=np.float32)
    trees = [
        {"a": weights},
        {"b": weights},
        {"a": weights.reshape(2, 3)},
        {"a": weights.view(np.int32)},
        {"a": weights + 1},
        {"a": {"a": weights}},
    ]
    assert len({digest(tree) for tree in trees}) == len(trees)
    assert digest({"a": np.asfortranarray(weights.reshape(2, 3))}) == digest(trees[2])


def test_a_member_is_a_checkpoint_that_orbax_restores(pool):
    path = pool.path / pool.record("lr-1")["path"]
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one), pool.structure)
    _same_bytes(ocp.load(path, like), _params(1))


def test_load_checkpoint_reads_what_orbax_wrote_by_its_defaults(tmp_path):
    ocp.save(tmp_path / "other", {"a": {"b": jnp.arange(3.0)}, "c": np.ones((2, 2), np.float16)})
    _same_bytes(
        load_checkpoint(tmp_path / "other"),
        {"a": {"b": np.arange(3, dtype=np.float32)}, "c": np.ones((2, 2), np.float16)},
    )
    with pytest.raises(FileNotFoundError, match="no checkpoint directory"):
        load_checkpoint(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is not an Orbax checkpoint"):
        load_checkpoint(tmp_path / "empty")


def test_records_hold_what_is_known_of_a_member(tmp_path):
    pool = Pool(tmp_path)
    given = {"config": {"learning_rate": np.float32(0.5), "betas": (0.9, 0.999)}, "seed": np.int64(3)}
    record = pool.add("a", _params(), given, metrics={"held_out": jnp.float32(0.75)}, base="start")
    assert record == pool.record("a") == Pool(tmp_path).record("a")
    assert record["metadata"] == {"config": {"learning_rate": 0.5, "betas": [0.9, 0.999]}, "seed": 3}
    assert record["metrics"] == {"held_out": 0.75}
    assert (record["status"], record["nonfinite_leaves"], record["base"]) == ("ok", [], "start")
    assert record["leaves"]["dense/bias"]["keys"] == ["dense", "bias"]
    assert (record["leaves"]["dense/bias"]["dtype"], record["leaves"]["dense/bias"]["shape"]) == ("bfloat16", [8])
    assert record["versions"]["jax"] == jax.__version__
    assert Pool(tmp_path).base == "start" == pool.base
    record["metrics"]["held_out"] = 0
    assert pool.metrics("a") == {"held_out": 0.75}


def test_metrics_are_merged_and_seen_through_views_and_anew(pool):
    view = pool.select(["lr-1"])
    assert view.update_metrics("lr-1", {"shift": np.float64(0.25), "held_out": 1}) == {"held_out": 1, "shift": 0.25}
    assert pool.metrics("lr-1") == view.metrics("lr-1") == Pool(pool.path).metrics("lr-1")


def test_members_that_diverged_are_kept_but_not_usable(pool):
    params = _params()
    params["dense"]["bias"] = params["dense"]["bias"].at[3].set(jnp.nan)
    params["half"][0, 0] = np.inf
    record = pool.add("diverged", params)
    assert (record["status"], record["nonfinite_leaves"]) == ("non-finite", ["dense/bias", "half"])
    assert pool.usable.names == ["lr-0", "lr-1", "lr-2"]
    assert "diverged" in pool
    _same_bytes(pool["diverged"], params)


def test_views_keep_their_order_and_do_not_change_the_pool(pool):
    view = pool.select(["lr-2", "lr-0"])
    assert (view.names, len(view), "lr-1" in view) == (["lr-2", "lr-0"], 2, False)
    with pytest.raises(KeyError, match="no member 'lr-1'"):
        view["lr-1"]
    for change in (lambda: view.add("new", _params()), lambda: view.remove("lr-0")):
        with pytest.raises(ValueError, match="view of some members"):
            change()


def test_unknown_names_are_listed_with_the_closest(pool):
    with pytest.raises(ValueError) as error:
        pool.select(["lr-0", "lr_1", "else", "lr-0"])
    for part in ("'lr_1'", "did you mean 'lr-1'?", "'else'", "'lr-0' is selected twice"):
        assert part in str(error.value)
    with pytest.raises(ValueError, match=r"(?s)no member 'lr-0x0' .*\.\.\. and 80 more$"):
        pool.select([f"lr-0x{number}" for number in range(100)])
    for call in (pool.__getitem__, pool.record, pool.metrics, pool.digest, pool.remove):
        with pytest.raises(KeyError, match="did you mean 'lr-2'"):
            call("lr-22")
    with pytest.raises(KeyError, match="no member"):
        pool.update_metrics("else", {})
    assert pool.get("else") is None


def test_a_taken_name_and_another_structure_are_errors_that_leave_nothing(pool):
    files = sorted(pool.path.rglob("*"))
    with pytest.raises(ValueError, match="already has a member 'lr-0'"):
        pool.add("lr-0", _params())
    other = _params()
    other["hal"] = other.pop("half")
    other["dense"]["kernel"] = np.ones((16, 10), np.float32)
    other["zeros"] = np.zeros((2, 2), np.float64)
    with pytest.raises(ValueError) as error:
        pool.add("other", other)
    for part in ("member lr-0", "half is missing", "hal is extra", "(16, 10) instead of (16, 8)", "dtype float64"):
        assert part in str(error.value)
    assert sorted(pool.path.rglob("*")) == files


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"\ud800": np.ones(2)}, r"\\ud800 is not valid text"),
        ({"a": 1.0, "b": np.ones(2)}, "a is a float, not an array: numpy.asarray"),
        ({"a": True}, "a is a bool, not an array"),
        ({"a": {"b": [np.ones(2), np.sum]}}, "a/b/1 is a numpy._ArrayFunctionDispatcher, not an array"),
        ({"a": "text"}, "a is a str, not an array"),
        ({"a": np.array(["x"])}, "dtype <U1"),
        ({"a": np.array([None])}, "dtype object"),
        ({"a": np.array(["2026"], "M8[Y]")}, "only numbers and booleans"),
        ({"a": np.ones(2, np.longdouble)}, "a has dtype float128: only"),
        ({"a": np.ones(2, ml_dtypes.float6_e2m3fn)}, "a has dtype float6_e2m3fn: only"),
        ({"a": np.ones(2, ml_dtypes.float4_e2m1fn)}, "a has dtype float4_e2m1fn: only"),
        ({"a": np.ones(2, ml_dtypes.uint4)}, "a has dtype uint4: only"),
        ({"a": jax.random.key(0)}, r"a is a PRNG key: store its numbers, jax.random.key_data\(key\)"),
        ({"a/b": np.ones(2), "a": {"b": np.ones(2)}}, "a/b is the name of two leaves"),
        ({1: np.ones(2), "a": np.ones(2)}, "cannot be stored"),
        ({"\x1b[2J": 1.0}, r"\\x1b\[2J is a float"),
        ({"a": np.ones((0, 3))}, "does not hold a single number"),
        ({"a": None, "b": {}}, "does not hold a single number"),
        ({}, "the tree itself is a dict"),
        (np.ones(3), "the tree itself is a ndarray, not a container"),
    ],
)
def test_what_a_pool_cannot_hold_is_named(tmp_path, params, message):
    with pytest.raises(ValueError, match=message):
        Pool(tmp_path / "pool").add("x", params)
    assert not (tmp_path / "pool").exists()


@pytest.mark.parametrize("dtype", ["longdouble", "clongdouble"])
def test_what_orbax_cannot_hold_is_named(tmp_path, dtype):
    with pytest.raises(ValueError, match=r"x cannot be written, for Orbax has no such numbers:\n  a/b has dtype"):
        save_checkpoint(tmp_path / "x", {"a": {"b": np.ones(2, dtype)}, "c": np.ones(2)})


def test_everything_that_cannot_be_held_is_listed_at_once(tmp_path):
    with pytest.raises(ValueError) as error:
        Pool(tmp_path).add(
            "x", {"a": {"b": "c"}, "d": 3, "e": jax.random.key(0), "f": {str(i): i for i in range(1000)}}
        )
    assert all(part in str(error.value) for part in ("a/b is a str", "d is a int", "e is a PRNG key", "and 983 more"))
    assert len(str(error.value)) < 3000


def test_names_and_metadata_are_checked(tmp_path):
    pool = Pool(tmp_path)
    for name in ("", "line\nbreak", 3):
        with pytest.raises(ValueError, match="name must be a non-empty printable string"):
            pool.add(name, _params())
    with pytest.raises(ValueError, match=r"metadata must be something that JSON can hold: .*set"):
        pool.add("x", _params(), {"transforms": {"flip"}})
    for unreadable in (
        {"a": "\ud800"},
        {1: 0, "1": 0},
        functools.reduce(lambda inner, _: {"a": inner}, range(3000), {}),
    ):
        with pytest.raises(ValueError, match="metadata must be something that JSON can hold"):
            pool.add("x", _params(), unreadable)
    with pytest.raises(ValueError, match="metrics must be a dict, not float"):
        pool.add("x", _params(), metrics=0.5)
    name = "../../lr=1e-3, wd=0.1/é"
    pool.add(name, _params())
    assert list(Pool(tmp_path)) == [name]
    assert (tmp_path / pool.record(name)["path"]).parent == tmp_path / "members"


def test_a_pool_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pool = Pool("pool")
    assert (len(pool), pool.names, pool.verify(), pool.sweep_orphans()) == (0, [], {}, [])
    assert not (tmp_path / "pool").exists()
    with pytest.raises(ValueError, match="has no members"):
        pool.structure  # noqa: B018
    with pytest.raises(FileNotFoundError, match="there is no pool at"):
        Pool("pool", must_exist=True)
    pool.add("first", _params())
    assert Pool(tmp_path / "pool", must_exist=True).names == ["first"]
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file"):
        Pool("file")


def test_removing_takes_the_files_too(pool):
    path = pool.path / pool.record("lr-1")["path"]
    pool.remove("lr-1")
    assert (pool.names, path.exists()) == (["lr-0", "lr-2"], False)
    pool.add("lr-1", _params(7))
    assert Pool(pool.path).names == ["lr-0", "lr-2", "lr-1"]


def test_a_reader_is_told_of_a_member_that_was_removed_meanwhile(pool):
    reader = Pool(pool.path)
    pool.remove("lr-1")
    with pytest.raises(PoolCorruptionError, match=r"'lr-1' was removed from the pool"):
        reader["lr-1"]
    with pytest.raises(KeyError, match=r"removed .* by another process"):
        reader.update_metrics("lr-1", {"held_out": 1})
