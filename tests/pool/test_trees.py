"""Test that a pool keeps any pytree of arrays, and gives it back as dicts or in the caller's structure."""

import collections
import dataclasses
import json

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze
from flax.training.train_state import TrainState
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from soups import tree
from soups.pool import Pool, digest

Pair = collections.namedtuple("Pair", "left right")


@flax.struct.dataclass
class Struct:
    """Hold an array and a setting."""

    weights: jax.Array
    rate: float = flax.struct.field(pytree_node=False, default=0.1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    """Hold arrays as Equinox does."""

    weight: jax.Array
    bias: jax.Array | None
    name: str = dataclasses.field(metadata={"static": True}, default="layer")


@jax.tree_util.register_pytree_node_class
class Opaque:
    """Hold children without keys."""

    def __init__(self, *children):
        self.children = children

    def tree_flatten(self):
        """Return the children."""
        return self.children, None

    @classmethod
    def tree_unflatten(cls, _, children):
        """Make one of its children."""
        return cls(*children)


def _w(seed=0, shape=(3, 2)):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _train_state():
    params = {"dense": {"kernel": jnp.asarray(_w())}}
    state = TrainState.create(apply_fn=None, params=params, tx=optax.adam(1e-3))
    return state.replace(step=jnp.asarray(3))


TREES = {
    "frozen": (lambda: freeze({"a": {"b": _w()}}), ["a/b"]),
    "haiku": (lambda: {"mlp/~/linear_0": {"w": _w(), "b": _w(1)}, "mlp": {"w": _w(2)}}, None),
    "dots": (lambda: {"layer.0.weight": _w(), "layer": {"0.weight": _w(1)}, "": {"": _w(2)}}, None),
    "percent": (lambda: {"a%2Fb": _w(), "a.b": _w(1), "%": _w(2), "_METADATA": _w(3), "d": _w(4)}, None),
    "controls": (lambda: {"a\n\x1b[31m": _w(), "é ü": _w(1)}, None),
    "long": (lambda: {"x" * 300: _w(2), "y": {"z" * 120: {"z" * 120: _w(3)}}}, None),
    "list": (lambda: [_w(), {"a": _w(1)}], ["0", "1/a"]),
    "many": (lambda: [_w(i) for i in range(12)], [str(i) for i in range(12)]),
    "tuple": (lambda: {"a": (_w(), _w(1))}, ["a/0", "a/1"]),
    "namedtuple": (lambda: Pair(_w(), {"x": _w(1)}), ["left", "right/x"]),
    "none": (lambda: {"a": None, "b": _w(), "c": [None, _w(1)]}, ["b", "c/1"]),
    "empty": (lambda: {"a": {}, "b": _w(), "c": [], "d": (), "e": freeze({})}, ["b"]),
    "int keys": (lambda: {0: _w(), 1: {10: _w(1), 2: _w(2)}}, ["0", "1/2", "1/10"]),
    "tuple keys": (lambda: {("a", "b"): _w(), ("a", "c"): _w(1)}, ["('a', 'b')", "('a', 'c')"]),
    "struct": (lambda: Struct(_w()), ["weights"]),
    "dataclass": (lambda: Layer(_w(), None), ["weight"]),
    "opaque": (lambda: {"a": Opaque(_w(), _w(1))}, ["a/0", "a/1"]),
    "boxed": (lambda: {"k": nn.Partitioned(_w(), names=("x", None))}, ["k/value"]),
    "logical": (lambda: {"k": nn.LogicallyPartitioned(_w(), names=("x", None))}, ["k/value"]),
    "train state": (_train_state, None),
    "nnx state": (lambda: nnx.split(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))[1], ["bias/value", "kernel/value"]),
    "nnx module": (lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0)), ["bias/value", "kernel/value"]),
    "nothing in a leaf": (lambda: {"a": np.ones((0, 3), np.float32), "b": _w()}, ["a", "b"]),
    "scalars": (lambda: {"a": np.float32(2.5), "b": jnp.asarray(3), "c": np.array(True)}, ["a", "b", "c"]),
    "big-endian": (lambda: {"a": np.arange(5, dtype=">i4")}, ["a"]),
    "complex": (lambda: {"a": np.array([1 + 2j], np.complex64)}, ["a"]),
    "small dtypes": (lambda: {"a": jnp.ones(3, jnp.int4), "b": jnp.ones(3, jnp.float8_e4m3fn)}, ["a", "b"]),
}


def _same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.shape, x.dtype) == (y.shape, np.asarray(y).dtype.newbyteorder("="))
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.parametrize("kind", TREES)
def test_any_tree_comes_back_by_name_and_in_the_callers_structure(tmp_path, kind):
    make, names = TREES[kind]
    params = make()
    pool = Pool(tmp_path)
    record = pool.add("first", params)
    pool.add("second", params)
    flat = tree.flatten(params)
    assert list(record["leaves"]) == list(flat)
    assert names is None or list(flat) == names
    plain = pool["first"]
    assert tree.flatten(plain).keys() == flat.keys()
    for name, leaf in tree.flatten(plain).items():
        np.testing.assert_array_equal(leaf, np.asarray(flat[name]))
    native = jax.tree.map(lambda leaf: jnp.asarray(leaf, leaf.dtype.newbyteorder("=")), params)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), native)
    _same(pool.load("second", like=like), params)
    assert Pool(tmp_path).verify() == {"first": [], "second": []}
    assert record["digest"] == digest(params) == digest(native)
    tensors = pool.tensors("second")
    for name, leaf in flat.items():
        np.testing.assert_array_equal(tensors.read(name), np.asarray(leaf))


def test_plain_dicts_keep_keys_with_slashes_and_empty_places(tmp_path):
    pool = Pool(tmp_path)
    pool.add("m", {"mlp/~/linear": {"w": _w()}, "batch_stats": {}, "rest": [None, (), _w(1)]})
    plain = pool["m"]
    assert (plain["batch_stats"], plain["rest"]["0"], plain["rest"]["1"]) == ({}, None, {})
    np.testing.assert_array_equal(plain["mlp/~/linear"]["w"], _w())
    np.testing.assert_array_equal(plain["rest"]["2"], _w(1))


def test_like_may_be_sharded_and_of_another_container(tmp_path, mesh):
    pool = Pool(tmp_path)
    pool.add("m", freeze({"a/b": [_w(shape=(4, 8)), np.zeros((0, 2), np.float32)]}))
    rows = NamedSharding(mesh, P("data"))
    like = {
        "a/b": (
            jax.ShapeDtypeStruct((4, 8), np.float32, sharding=rows),
            jax.ShapeDtypeStruct((0, 2), np.float32, sharding=NamedSharding(mesh, P())),
        )
    }
    loaded = pool.load("m", like=like)
    assert isinstance(loaded["a/b"], tuple)
    assert loaded["a/b"][0].sharding == rows
    np.testing.assert_array_equal(loaded["a/b"][0], _w(shape=(4, 8)))
    with pytest.raises(ValueError, match=r"a\\/b/0 is missing"):
        pool.load("m", like={"a": {"b": like["a/b"]}})


def test_the_record_says_what_kind_of_key_each_is(tmp_path):
    record = Pool(tmp_path).add("m", {"a/b": [Struct(_w())], "c": {7: _w(1)}, "d": Opaque(_w())})
    assert {name: leaf["keys"] for name, leaf in record["leaves"].items()} == {
        "a/b/0/weights": ["a/b", {"index": 0}, {"attribute": "weights"}],
        "c/7": ["c", {"key": 7}],
        "d/0": ["d", {"child": 0}],
    }


@pytest.mark.parametrize("other", [{"a": {"b": _w()}}, {"a\\/b": _w()}, {"a\\": {"b": _w()}}])
def test_a_slash_in_a_key_is_no_step_down(tmp_path, other):
    pool = Pool(tmp_path)
    pool.add("m", {"a/b": _w()})
    with pytest.raises(ValueError, match="differ in structure"):
        pool.add("n", other)
    assert digest({"a/b": _w()}) != digest(other)


def test_containers_of_the_same_names_are_the_same_structure(tmp_path):
    pool = Pool(tmp_path)
    pool.add("m", {"a": [_w(), _w(1)]})
    pool.add("n", {"a": (_w(2), _w(3))})
    pool.add("o", {"a": {"0": _w(4), "1": _w(5)}})
    assert jax.tree.structure(pool["m"]) == jax.tree.structure(pool["o"])
    assert json.loads(json.dumps(pool.record("m"))) == pool.record("m")


def test_a_train_state_as_it_is_made_is_refused_for_its_step(tmp_path):
    state = TrainState.create(apply_fn=None, params={"w": _w()}, tx=optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"step is a int, not an array: numpy\.asarray makes it one"):
        Pool(tmp_path).add("m", state)


def test_leaves_of_64_bits_come_back_within_enable_x64(tmp_path):
    with jax.enable_x64(True):
        params = {"w": jnp.arange(3, dtype="int64"), "f": jnp.ones(2, "float64")}
        pool = Pool(tmp_path / "pool")
        pool.add("a", params)
        loaded = pool.load("a", like=params)
    assert {name: leaf.dtype.name for name, leaf in loaded.items()} == {"w": "int64", "f": "float64"}
    assert digest(loaded) == digest(params) == pool.digest("a")
    pool.add("b", loaded)
    assert pool.digest("b") == pool.digest("a")


@pytest.mark.parametrize("base", [3, b"x", ["x"]])
def test_a_base_that_is_no_text_is_refused_before_it_closes_the_pool(base, tmp_path):
    pool = Pool(tmp_path / "pool")
    with pytest.raises(ValueError, match="base must be the name or the digest of weights"):
        pool.add("a", {"w": np.ones(2, np.float32)}, base=base)
    assert list(Pool(tmp_path / "pool")) == []
