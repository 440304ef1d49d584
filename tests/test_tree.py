import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import soups
from soups import arrays, tree


def random_tree(rng, dtype=np.float32):
    return {
        "Dense_0": {"kernel": rng.normal(size=(4, 3)).astype(dtype), "bias": rng.normal(size=3).astype(dtype)},
        "head": {"kernel": rng.normal(size=(3, 2)).astype(dtype)},
    }


def as_vector(weights):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(weights)])


def to_jax(weights):
    return jax.tree.map(jnp.asarray, weights)


@pytest.fixture(params=[lambda t: t, to_jax], ids=["numpy", "jax"])
def place(request):
    return request.param


def test_names_join_keys_in_leaf_order(rng):
    assert tree.names(random_tree(rng)) == ["Dense_0/bias", "Dense_0/kernel", "head/kernel"]


def test_mean_equals_float64(rng, place):
    members = [random_tree(rng) for _ in range(5)]
    expected = np.mean([as_vector(m) for m in members], axis=0)
    np.testing.assert_allclose(as_vector(tree.mean([place(m) for m in members])), expected, rtol=1e-6, atol=1e-7)


def test_weighted_sum_equals_float64(rng, place):
    members, weights = [random_tree(rng) for _ in range(3)], [0.2, -1.5, 3.0]
    expected = sum(w * as_vector(m) for w, m in zip(weights, members, strict=True))
    result = tree.weighted_sum([place(m) for m in members], weights)
    np.testing.assert_allclose(as_vector(result), expected, rtol=1e-5, atol=1e-6)


def test_lerp_and_add_scaled_equal_float64(rng, place):
    a, b = random_tree(rng), random_tree(rng)
    np.testing.assert_allclose(
        as_vector(tree.lerp(place(a), place(b), 0.3)), 0.7 * as_vector(a) + 0.3 * as_vector(b), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        as_vector(tree.add_scaled(place(a), place(b), -2.0)), as_vector(a) - 2.0 * as_vector(b), rtol=1e-5, atol=1e-6
    )


def test_lerp_of_equal_trees_is_exact(rng):
    a = random_tree(rng)
    np.testing.assert_array_equal(as_vector(tree.lerp(a, a, 0.37)), as_vector(a))


def test_slerp_equals_float64(rng, place):
    a, b, t = random_tree(rng), random_tree(rng), 0.3
    x, y = as_vector(a), as_vector(b)
    omega = np.arccos(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))
    expected = (np.sin((1 - t) * omega) * x + np.sin(t * omega) * y) / np.sin(omega)
    np.testing.assert_allclose(as_vector(tree.slerp(place(a), place(b), t)), expected, rtol=1e-4, atol=1e-6)


def test_slerp_of_parallel_trees_is_linear(rng):
    a = random_tree(rng)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, a)
    np.testing.assert_allclose(as_vector(tree.slerp(a, doubled, 0.5)), 1.5 * as_vector(a), rtol=1e-6)


def test_dot_norm_cosine_equal_float64(rng, place):
    a, b = random_tree(rng), random_tree(rng)
    x, y = as_vector(a), as_vector(b)
    np.testing.assert_allclose(float(tree.dot(place(a), place(b))), x @ y, rtol=1e-5)
    np.testing.assert_allclose(float(tree.norm(place(a))), np.linalg.norm(x), rtol=1e-6)
    expected = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
    np.testing.assert_allclose(float(tree.cosine(place(a), place(b))), expected, rtol=1e-5)


def test_cosine_with_zero_is_zero(rng):
    a = random_tree(rng)
    assert float(tree.cosine(a, jax.tree.map(np.zeros_like, a))) == 0.0


def test_bfloat16_is_summed_in_float32(place):
    ones = [{"w": np.array([256.0], ml_dtypes.bfloat16)}] + [{"w": np.array([1.0], ml_dtypes.bfloat16)}] * 4
    total = tree.weighted_sum([place(m) for m in ones], [1.0] * 5)["w"]
    assert total.dtype == jnp.bfloat16
    assert float(total[0]) == 260.0  # in bfloat16, 256 + 1 is 256


def test_sub_keeps_what_bfloat16_would_lose():
    a, b = {"w": np.array([257.0], np.float32)}, {"w": np.array([256.0], np.float32)}
    a16, b16 = {"w": np.array([1.0], ml_dtypes.bfloat16)}, {"w": np.array([0.0039], ml_dtypes.bfloat16)}
    assert tree.sub(a, b)["w"][0] == 1.0
    assert tree.sub(a16, b16)["w"].dtype == np.float32
    assert tree.sub(a16, b16)["w"][0] == np.float32(1.0) - np.float32(b16["w"][0])


def test_float64_stays_float64():
    big = [{"w": np.array([1.0 + 2**-40])}, {"w": np.array([1.0])}]
    assert tree.mean(big)["w"][0] == 1.0 + 2**-41


def test_identical_integer_leaves_are_copied(place):
    members = [place({"step": np.int32([7]), "w": np.float32([i])}) for i in range(2)]
    assert int(tree.mean(members)["step"][0]) == 7
    assert tree.mean(members)["step"].dtype == np.int32


def test_different_integer_leaves_are_named():
    members = [{"table": {"rows": np.int32([i])}, "mask": np.array([i == 0])} for i in range(2)]
    with pytest.raises(ValueError, match=r"differ: mask, table/rows"):
        tree.mean(members)
    tree.check_copied(members, keep_first="mask|table/.*")
    with pytest.raises(ValueError, match=r"differ: mask"):
        tree.check_copied(members, keep_first="table/.*")
    with pytest.raises(ValueError, match=r"rule 'tables/.*' matches no leaf"):
        tree.check_copied(members, keep_first="tables/.*")


COUNTED = ["num_batches_tracked", "num_updates", "n_averaged", "step", "steps", "global_step", "count", "counter"]


@pytest.mark.parametrize("name", [*COUNTED, "iteration", "iterations", "bn/num_batches_tracked", "bn.num_updates"])
def test_counters_are_those_of_the_first(name, place):
    members = [place({name: np.int32(7 + i), "w": np.float32([i])}) for i in range(2)]
    assert int(tree.mean(members)[name]) == 7
    assert int(jax.jit(lambda a, b: tree.mean([a, b]))(*members)[name]) == 7


@pytest.mark.parametrize("name", ["steps/w", "stepsize", "account", "discount", "position_ids"])
def test_other_integers_are_no_counters(name):
    assert not tree.is_counter(name)


def test_leaves_of_another_kind_are_named():
    members = [{"a": np.float32([1]), "b": np.int32([1])}, {"a": np.complex64([1]), "b": np.float32([1])}]
    with pytest.raises(ValueError, match=r"in some members but not in others: a, b"):
        tree.check_copied(members)


NO_ARRAYS = {
    "number": (1.5, "float"),
    "text": ("adam", "str"),
    "function": (abs, "builtin_function_or_method"),
    "strings": (np.array(["a"]), "numpy.ndarray of <U1"),
    "objects": (np.array([None]), "numpy.ndarray of object"),
    "spans": (np.zeros(2, "m8[s]"), "numpy.ndarray of timedelta64[s]"),
    "key": (jax.random.key(0), "of key<fry>"),
    "masked": (np.ma.masked_array(np.ones(2), [0, 1]), "MaskedArray"),
}
TAKES_TREES = {
    "mean": lambda t: tree.mean([t, t]),
    "weighted_sum": lambda t: tree.weighted_sum([t], [1.0]),
    "lerp": lambda t: tree.lerp(t, t, 0.5),
    "slerp": lambda t: tree.slerp(t, t, 0.5),
    "sub": lambda t: tree.sub(t, t),
    "add_scaled": lambda t: tree.add_scaled(t, t),
    "dot": lambda t: tree.dot(t, t),
    "norm": tree.norm,
    "cosine": lambda t: tree.cosine(t, t),
    "all_finite": tree.all_finite,
    "nonfinite_names": tree.nonfinite_names,
    "split_floats": tree.split_floats,
    "cast_like": lambda t: tree.cast_like(t, t),
    "widen": tree.widen,
    "count": tree.count,
    "check_same_structure": lambda t: tree.check_same_structure([t, t]),
}


@pytest.mark.parametrize("function", TAKES_TREES)
def test_leaves_that_are_no_arrays_are_named(function):
    leaves = {name: leaf for name, (leaf, _) in NO_ARRAYS.items()}
    with pytest.raises(ValueError, match="must be NumPy or JAX arrays of numbers") as error:
        TAKES_TREES[function]({"layer": leaves, "w": np.ones(2, np.float32), "none": None})
    for name, (_, kind) in NO_ARRAYS.items():
        assert any(f"layer/{name} is a " in line and kind in line for line in str(error.value).splitlines())
    TAKES_TREES[function]({"w": np.ones(2, np.float32), "none": None})


@pytest.mark.parametrize("function", ["lerp", "slerp", "dot", "norm", "cosine", "all_finite", "widen"])
def test_shapes_alone_are_no_numbers(function):
    with pytest.raises(ValueError, match=r"w is a jax.*ShapeDtypeStruct of float32"):
        TAKES_TREES[function]({"w": jax.ShapeDtypeStruct((2,), np.float32)})


def test_the_widest_complex_numbers_have_inner_products(rng):
    vector = rng.normal(size=3) + 1j * rng.normal(size=3)
    np.testing.assert_allclose(tree.norm({"w": vector.astype(np.clongdouble)}), np.linalg.norm(vector), rtol=1e-12)


def test_complex_leaves_stay_complex(rng, place):
    a, b = ({"w": rng.normal(size=4) + 1j * rng.normal(size=4)} for _ in range(2))
    narrow = [place({"w": t["w"].astype(np.complex64)}) for t in (a, b)]
    for result, expected in [
        (tree.mean(narrow), (a["w"] + b["w"]) / 2),
        (tree.weighted_sum(narrow, [0.2, -1.5]), 0.2 * a["w"] - 1.5 * b["w"]),
        (tree.lerp(*narrow, 0.3), 0.7 * a["w"] + 0.3 * b["w"]),
        (tree.add_scaled(*narrow, 2.0), a["w"] + 2 * b["w"]),
    ]:
        assert result["w"].dtype == np.complex64
        np.testing.assert_allclose(result["w"], expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(tree.norm(narrow[0]), np.linalg.norm(a["w"]), rtol=1e-6)
    np.testing.assert_allclose(tree.dot(*narrow), np.vdot(a["w"], b["w"]).real, rtol=1e-5)
    assert not np.iscomplexobj(tree.cosine(*narrow))


@pytest.mark.parametrize("number", [1, 2, 3, 5, 7, 8, 100, 10_000])
def test_mean_of_equal_members_is_exact(number, rng, place):
    member = place({"w": rng.normal(size=50).astype(np.float32)})
    np.testing.assert_array_equal(tree.mean([member] * number)["w"], member["w"])


@pytest.mark.parametrize("weights", [None, 1e-4])
def test_error_of_a_sum_does_not_grow_with_the_number(weights, rng, place):
    values = (1 + rng.random(size=(10_000, 8))).astype(np.float32)
    members = [place({"w": row}) for row in values]
    result = tree.mean(members) if weights is None else tree.weighted_sum(members, [weights] * len(members))
    np.testing.assert_allclose(result["w"], values.astype(np.float64).mean(0), rtol=3e-7)


@pytest.mark.parametrize("size", [1, 3, 1_000_000])
def test_inner_products_keep_the_digits_of_float64_on_the_host(size, rng):
    a, b = (rng.normal(size=size).astype(np.float32) for _ in range(2))
    wide = a.astype(np.float64) @ b.astype(np.float64)
    np.testing.assert_allclose(tree.dot({"w": a}, {"w": b}), wide, rtol=1e-12)
    np.testing.assert_allclose(arrays.inner(a[::-2], b[::-2]), a[::-2].astype(np.float64) @ b[::-2], rtol=1e-12)
    np.testing.assert_allclose(tree.cosine({"w": a}, {"w": -3 * a}), -1, rtol=1e-7)
    mixed = tree.dot({"w": a, "v": jnp.float32([2])}, {"w": b, "v": jnp.float32([3])})
    np.testing.assert_allclose(mixed, wide + 6, rtol=1e-5)


@pytest.mark.parametrize("values", [(-0.5664639, 2.748347), (3.0, 3.0), (3.150, -2.366)])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_slerp_of_one_number_is_linear(values, shape, place):
    a, b = (place({"logit_scale": np.full(shape, value, np.float32)}) for value in values)
    expected = 0.7 * values[0] + 0.3 * values[1]
    np.testing.assert_allclose(tree.slerp(a, b, 0.3)["logit_scale"], expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(tree.slerp)(a, b, 0.3)["logit_scale"], expected, rtol=1e-6)


def test_integer_leaves_under_jit_say_what_to_do():
    with pytest.raises(ValueError, match="partition"):
        jax.jit(lambda a, b: tree.mean([a, b]))({"n": jnp.int32(1)}, {"n": jnp.int32(1)})


def test_structure_error_lists_every_difference(rng):
    good = random_tree(rng)
    bad = {"Dense_0": {"kernell": good["Dense_0"]["kernel"], "bias": np.zeros(5, np.float32)}, "head": good["head"]}
    with pytest.raises(ValueError) as error:
        tree.check_same_structure([good, bad], ["A", "B"])
    message = str(error.value)
    assert "- B: Dense_0/kernel is missing" in message
    assert "+ B: Dense_0/kernell is extra (did you mean 'Dense_0/kernel'?)" in message
    assert "~ B: Dense_0/bias has shape (5,) instead of (3,)" in message


def test_structure_error_tells_dtypes(rng):
    a = random_tree(rng)
    b = jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), a)
    with pytest.raises(ValueError, match="has dtype bfloat16 instead of float32"):
        tree.mean([a, b])
    tree.check_same_structure([a, b], dtypes=False)


def test_no_trees_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        tree.mean([])


def test_weights_must_be_as_many_as_trees(rng):
    with pytest.raises(ValueError, match="2 trees need 2 weights, but 3"):
        tree.weighted_sum([random_tree(rng)] * 2, [1, 2, 3])


@pytest.mark.parametrize("function", ["mean", "weighted_sum", "lerp", "sub", "add_scaled", "all_finite", "widen"])
def test_shapes_without_numbers_are_named(function):
    with pytest.raises(ValueError, match=r"w is a jax.*ShapeDtypeStruct of float16"):
        TAKES_TREES[function]({"w": jax.ShapeDtypeStruct((2,), np.float16)})


@pytest.mark.parametrize("weights", [{0: 0.5, 1: 0.5}, 0.5, np.float32(0.5), np.ones((2, 2)), None])
def test_weights_without_an_order_are_an_error(weights):
    trees = [{"w": np.ones(2, np.float32)}] * 2
    with pytest.raises(ValueError, match="weights must be a sequence of numbers, one for each tree, not"):
        tree.weighted_sum(trees, weights)
    np.testing.assert_array_equal(tree.weighted_sum(iter(trees), iter([0.5, 0.25]))["w"], [0.75, 0.75])


def test_first_matching_rule_wins(rng):
    values = tree.match(random_tree(rng), [("head/.*", 10.0), (".*/kernel", 1.0), (".*", 0.0)])
    assert tree.flatten(values) == {"Dense_0/bias": 0.0, "Dense_0/kernel": 1.0, "head/kernel": 10.0}


def test_rules_must_match_whole_names_and_cover_all(rng):
    with pytest.raises(ValueError) as error:
        tree.match(random_tree(rng), [("head", 1), ("Dense_0/kernel", 2)])
    message = str(error.value)
    assert "no rule matches leaf 'Dense_0/bias'" in message
    assert "no rule matches leaf 'head/kernel'" in message
    assert "rule 'head' matches no leaf" in message


def test_misspelt_rule_has_a_suggestion(rng):
    with pytest.raises(ValueError, match=r"'haed/kernel' matches no leaf \(did you mean 'head/kernel'"):
        tree.match(random_tree(rng), [("haed/kernel", 1), (".*", 0)])


def test_partition_and_combine_are_inverse(rng):
    weights = random_tree(rng)
    head, trunk = tree.partition(weights, "head/.*")
    assert tree.names(head) == ["head/kernel"]
    assert tree.names(trunk) == ["Dense_0/bias", "Dense_0/kernel"]
    again = tree.combine(head, trunk)
    assert jax.tree.structure(again) == jax.tree.structure(weights)
    assert all(x is y for x, y in zip(jax.tree.leaves(again), jax.tree.leaves(weights), strict=True))


def test_nonfinite_leaves_are_named(rng, place):
    weights = random_tree(rng)
    weights["head"]["kernel"][0, 0] = np.nan
    weights["Dense_0"]["bias"][1] = np.inf
    assert tree.nonfinite_names(place(weights)) == ["Dense_0/bias", "head/kernel"]
    assert not tree.all_finite(place(weights))
    assert tree.all_finite(place(random_tree(rng)))


ARITHMETIC = {
    "mean": (lambda a, b: tree.mean([a, b]), "member 1"),
    "weighted_sum": (lambda a, b: tree.weighted_sum([a, b], [1.0, 0.0]), "member 1"),
    "lerp": (lambda a, b: tree.lerp(a, b, 0.0), "b"),
    "slerp": (lambda a, b: tree.slerp(a, b, 0.5), "b"),
    "sub": (tree.sub, "b"),
    "add_scaled": (tree.add_scaled, "b"),
}


@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_names_what_is_not_finite(name, rng, place):
    function, label = ARITHMETIC[name]
    good, bad = random_tree(rng), random_tree(rng)
    bad["head"]["kernel"][1, 1] = np.nan
    with pytest.raises(tree.NonFiniteError, match=f"  {label}: head/kernel$"):
        function(place(good), place(bad))
    assert np.isnan(jax.jit(function)(good, bad)["head"]["kernel"]).any()  # where nobody can look at numbers


@pytest.mark.parametrize("name", ["weighted_sum", "sub", "add_scaled"])
def test_arithmetic_names_what_overflows(name, place):
    function = {**ARITHMETIC, "weighted_sum": (lambda a, b: tree.weighted_sum([a, b], [1.0, -1.0]), "")}[name][0]
    huge, low = place({"w": np.float32([3e38])}), place({"w": np.float32([-3e38])})
    with pytest.raises(tree.NonFiniteError, match="the merged w overflows float32, though no member does"):
        function(huge, huge if name == "add_scaled" else low)


@pytest.mark.parametrize(
    "call", [tree.flatten, tree.names, lambda t: soups.uniform([t, t]), lambda t: soups.ties([t, t], base=t)]
)
def test_two_leaves_of_one_name_are_an_error(call):
    with pytest.raises(ValueError, match=r"two leaves have the same name, .*: a/b"):
        call({"a/b": np.ones(2, np.float32), "a": {"b": np.zeros(2, np.float32)}})
