"""Check specs of permutation symmetries, and what applying permutations does, against loops in NumPy."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from soups.recipes.permutation import (
    Blocks,
    check_function_unchanged,
    check_spec,
    compose,
    identity,
    invert,
    permute,
    random_permutations,
    spec_from_rules,
)

SPEC = {
    "first/kernel": (None, "hidden"),
    "first/bias": ("hidden",),
    "second/kernel": ("hidden", "out"),
    "scale": (),
}
FLAT_SPEC = {
    "conv/kernel": (None, "channels"),
    "dense/kernel": (Blocks("channels", outer=4), Blocks("heads", inner=2)),
    "out/kernel": (Blocks("heads", inner=2), None),
}


@pytest.fixture
def params(rng):
    return {
        "first": {"bias": rng.normal(size=8), "kernel": rng.normal(size=(3, 8))},
        "scale": np.asarray(2.0),
        "second": {"kernel": rng.normal(size=(8, 4))},
    }


@pytest.fixture
def flat_params(rng):
    shapes = {"conv": (5, 3), "dense": (4 * 3, 3 * 2), "out": (3 * 2, 2)}
    return {name: {"kernel": rng.normal(size=shape).astype(np.float32)} for name, shape in shapes.items()}


def flat_network(params, inputs_BxSxI):
    """Flatten [4 places, 3 channels] before a dense layer of 3 heads of 2 elements, which are divided by their norm."""
    features_BxSxC = jax.nn.relu(inputs_BxSxI @ params["conv"]["kernel"])
    heads_BxHxE = (features_BxSxC.reshape(-1, 12) @ params["dense"]["kernel"]).reshape(-1, 3, 2)
    heads_BxHxE = heads_BxHxE / (1 + jnp.linalg.norm(heads_BxHxE, axis=-1, keepdims=True))
    return heads_BxHxE.reshape(-1, 6) @ params["out"]["kernel"]


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert jax.tree.structure(a) == jax.tree.structure(b)


def test_permute_takes_units_in_the_order_of_the_permutation(params):
    hidden, out = np.array([2, 0, 1, 3, 7, 6, 5, 4]), np.array([3, 1, 0, 2])
    moved = permute(params, {"hidden": hidden, "out": out}, SPEC)
    for i in range(8):
        assert moved["first"]["bias"][i] == params["first"]["bias"][hidden[i]]
        for j in range(3):
            assert moved["first"]["kernel"][j, i] == params["first"]["kernel"][j, hidden[i]]
        for j in range(4):
            assert moved["second"]["kernel"][i, j] == params["second"]["kernel"][hidden[i], out[j]]
    assert moved["scale"] == 2.0


def test_blocks_permute_units_inside_a_flattened_axis():
    kernel = np.arange(2 * 3 * 2).reshape(12, 1)
    moved = permute({"k": kernel}, {"p": [1, 2, 0]}, {"k": (Blocks("p", outer=2, inner=2), None)})
    assert moved["k"].ravel().tolist() == [2, 3, 4, 5, 0, 1, 8, 9, 10, 11, 6, 7]


def test_function_with_flattened_axes_is_unchanged(flat_params, rng):
    inputs = rng.normal(size=(6, 4, 5)).astype(np.float32)
    permutations = {"channels": np.array([2, 0, 1]), "heads": np.array([1, 2, 0])}
    check_function_unchanged(flat_network, flat_params, permutations, FLAT_SPEC, inputs)
    wrong = {**FLAT_SPEC, "dense/kernel": (Blocks("channels", inner=4), Blocks("heads", inner=2))}
    with pytest.raises(ValueError, match=r"outputs differ by up to .* alone: channels \(\d\.\d+\)\. Check"):
        check_function_unchanged(flat_network, flat_params, permutations, wrong, inputs)


def test_outputs_that_tell_nothing_are_an_error(flat_params, rng):
    inputs = rng.normal(size=(6, 4, 5)).astype(np.float32)
    for value in (0, np.nan):
        silent = {**flat_params, "out": {"kernel": flat_params["out"]["kernel"] * np.float32(value)}}
        with pytest.raises(ValueError, match="so nothing can be compared"):
            check_function_unchanged(flat_network, silent, {"heads": [1, 2, 0]}, FLAT_SPEC, inputs)


def test_inverse_undoes_and_composition_is_one_after_the_other(params):
    first, then = (random_permutations(SPEC, params, jax.random.key(seed)) for seed in (0, 1))
    moved = permute(params, first, SPEC)
    assert_equal(permute(moved, invert(first), SPEC), params)
    assert_equal(permute(params, compose(first, then), SPEC), permute(moved, then, SPEC))
    assert_equal(permute(params, compose(first, {}), SPEC), moved)
    assert_equal(permute(params, identity(check_spec(SPEC, params)), SPEC), params)


def test_random_permutations_follow_the_key(params):
    a, again, other = (random_permutations(SPEC, params, jax.random.key(seed)) for seed in (0, 0, 1))
    assert_equal(a, again)
    assert a["hidden"].tolist() != other["hidden"].tolist()
    assert {name: sorted(order.tolist()) for name, order in a.items()} == {
        "hidden": list(range(8)),
        "out": list(range(4)),
    }


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.int32])
def test_permute_keeps_dtypes_and_values(params, dtype):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    moved = permute(params, {"hidden": np.arange(8)[::-1]}, SPEC)
    assert {leaf.dtype for leaf in jax.tree.leaves(moved)} == {np.dtype(dtype)}
    np.testing.assert_array_equal(moved["first"]["bias"], params["first"]["bias"][::-1])


def test_permute_under_jit_and_vmap_and_on_sharded_weights(params, mesh):
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)
    permutations = random_permutations(SPEC, params, jax.random.key(0))
    expected = permute(params, permutations, SPEC)
    assert_equal(jax.jit(lambda p: permute(p, permutations, SPEC))(params), expected)
    two = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    assert_equal(
        jax.tree.map(lambda leaf: leaf[1] / 2, jax.vmap(lambda p: permute(p, permutations, SPEC))(two)), expected
    )
    specs = {0: P(), 1: P("pool"), 2: P(None, "pool")}
    placed = jax.tree.map(lambda leaf: jax.device_put(leaf, NamedSharding(mesh, specs[leaf.ndim])), params)
    assert_equal(permute(placed, permutations, SPEC), expected)


@pytest.mark.parametrize(
    ("permutations", "message"),
    [
        ({"hiden": np.arange(8)}, r"unknown permutation 'hiden' \(did you mean 'hidden'"),
        ({"hidden": np.arange(7)}, "'hidden' must hold each of 0, …, 7 once"),
        ({"hidden": np.zeros(8, int)}, r"once, but it is \[0 0 0 0 0 0 0 0\]"),
        ({"out": np.array([1, 2, 3, 4])}, "'out' must hold each of 0, …, 3 once"),
    ],
)
def test_permutations_that_do_not_fit_are_an_error(params, permutations, message):
    with pytest.raises(ValueError, match=message):
        permute(params, permutations, SPEC)


def test_check_spec_gives_sizes(params, flat_params):
    assert check_spec(SPEC, params) == {"hidden": 8, "out": 4}
    assert check_spec(FLAT_SPEC, flat_params) == {"channels": 3, "heads": 3}


def test_check_spec_lists_every_mistake(params):
    params = {**params, "square": np.zeros((4, 4)), "lost": np.zeros(2), "text": np.zeros(3), "odd": np.zeros(7)}
    spec = {
        "first/kernal": (None, "hidden"),
        "first/kernel": (None, "hidden"),
        "first/bias": ("hidden", None),
        "second/kernel": ("out", "hidden"),
        "scale": (),
        "square": ("stream", "stream"),
        "text": "hid",
        "odd": (Blocks("heads", inner=2),),
    }
    with pytest.raises(ValueError, match="spec does not fit") as error:
        check_spec(spec, params)
    assert str(error.value).splitlines()[1:] == [
        "  + first/kernal is not a leaf (did you mean 'first/kernel'?)",
        "  - lost has no entry",
        "  ~ first/bias: 2 axes are named, but the shape is (8,)",
        "  ~ odd: axis 0 of size 7 is not divisible by 1 x 2",
        "  ~ second/kernel axis 1: permutation 'hidden' has 4 units, 8 at first/kernel axis 1",
        "  ~ square: permutation 'stream' is on two axes, but may be on only one axis of an array",
        "  ~ text: 'hid' must be a tuple of the name of a permutation, Blocks or None for each axis",
    ]


def test_rules_make_a_spec():
    params = {f"block_{i}": {"up": np.zeros((2, 6)), "down": np.zeros((6, 2))} for i in range(2)} | {
        "bias": np.zeros(2)
    }
    rules = [
        (r"(block_\d)/up", (None, Blocks(r"\1/heads", inner=3))),
        (r"(block_\d)/down", (Blocks(r"\1/heads", inner=3), None)),
        (".*", None),
    ]
    assert spec_from_rules(params, rules) == {
        "bias": (None,),
        "block_0/down": (Blocks("block_0/heads", inner=3), None),
        "block_0/up": (None, Blocks("block_0/heads", inner=3)),
        "block_1/down": (Blocks("block_1/heads", inner=3), None),
        "block_1/up": (None, Blocks("block_1/heads", inner=3)),
    }


def test_first_rule_counts_and_mistakes_are_errors(params):
    rules = [("first/.*", None), ("first/kernel", (None, "hidden")), (".*", None)]
    assert spec_from_rules(params, rules)["first/kernel"] == (None, None)
    with pytest.raises(ValueError, match=r"no rule matches leaf 'scale'"):
        spec_from_rules(params, rules[:1])
    with pytest.raises(ValueError, match=r"rule 'frist/kernel' matches no leaf"):
        spec_from_rules(params, [("frist/kernel", None), (".*", None)])
    with pytest.raises(ValueError, match="first/bias: 2 axes are named"):
        spec_from_rules(params, [("first/.*", (None, "hidden")), (".*", None)])
