"""Check the alignment of networks against brute force and known permutations."""

import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import soups
from soups import tree
from soups.pool import Pool
from soups.recipes.permutation import Blocks, compose, identity, permute, random_permutations
from soups.recipes.rebasin import align, straight_through_matching, weight_matching

KEY = jax.random.key(0)
SPEC = {
    "layer_0/kernel": (None, "p0"),
    "layer_0/bias": ("p0",),
    "layer_1/kernel": ("p0", "p1"),
    "layer_1/bias": ("p1",),
    "head/kernel": ("p1", None),
    "head/bias": (None,),
}


def network(seed, sizes=(6, 10, 8, 3)):
    rng = np.random.default_rng(seed)
    layers = [*[f"layer_{index}" for index in range(len(sizes) - 2)], "head"]
    return {
        layer: {"kernel": rng.normal(size=(m, n)).astype(np.float32), "bias": rng.normal(size=n).astype(np.float32)}
        for layer, m, n in zip(layers, sizes[:-1], sizes[1:], strict=True)
    }


def objective(a, b):
    """Sum the products of all leaves that bear a permutation, in float64."""
    a, b = tree.flatten(a), tree.flatten(b)
    return sum(float((a[name].astype(np.float64) * b[name]).sum()) for name, axes in SPEC.items() if any(axes))


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert jax.tree.structure(a) == jax.tree.structure(b)


@pytest.fixture
def reference():
    return network(1)


@pytest.fixture
def other():
    return network(2)


# --- Weight matching ---


@pytest.mark.parametrize("seed", range(5))
def test_permuted_copy_is_recovered_exactly(reference, seed):
    hidden = random_permutations(SPEC, reference, jax.random.key(seed))
    copy = permute(reference, hidden, SPEC)
    matching = weight_matching(reference, copy, SPEC, key=KEY)
    assert matching.converged
    assert_equal(permute(copy, matching.permutations, SPEC), reference)
    assert_equal(compose(hidden, matching.permutations), identity({"p0": 10, "p1": 8}))


@pytest.mark.parametrize("seed", range(3))
def test_single_hidden_layer_is_solved_as_by_brute_force(seed):
    spec = {"layer_0/kernel": (None, "p"), "layer_0/bias": ("p",), "head/kernel": ("p", None), "head/bias": (None,)}
    a, b = (network(10 * seed + index, (3, 5, 2)) for index in range(2))
    kernels = lambda params, layer: params[layer]["kernel"].astype(np.float64)  # noqa: E731
    values = {}
    for order in itertools.permutations(range(5)):
        values[order] = sum(
            kernels(a, "layer_0")[:, i] @ kernels(b, "layer_0")[:, j]
            + float(a["layer_0"]["bias"][i]) * float(b["layer_0"]["bias"][j])
            + kernels(a, "head")[i] @ kernels(b, "head")[j]
            for i, j in enumerate(order)
        )
    matching = weight_matching(a, b, spec, key=KEY)
    assert tuple(matching.permutations["p"]) == max(values, key=values.get)
    np.testing.assert_allclose(matching.history, [values[0, 1, 2, 3, 4], max(values.values())], rtol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_objective_never_decreases_and_is_that_of_the_weights(seed):
    a, b = network(seed), network(100 + seed)
    matching = weight_matching(a, b, SPEC, key=jax.random.key(seed))
    assert len(matching.history) > 1 and all(np.diff(matching.history) > 0)
    np.testing.assert_allclose(matching.history[0], objective(a, b), rtol=1e-12)
    np.testing.assert_allclose(matching.history[-1], objective(a, permute(b, matching.permutations, SPEC)), rtol=1e-12)


def test_end_is_an_optimum_of_each_permutation_alone():
    sizes = (3, 4, 4, 2)
    a, b = network(3, sizes), network(4, sizes)
    found = weight_matching(a, b, SPEC, key=KEY).permutations
    best = objective(a, permute(b, found, SPEC))
    for name in ("p0", "p1"):
        for order in itertools.permutations(range(4)):
            assert objective(a, permute(b, {**found, name: np.array(order)}, SPEC)) <= best + 1e-9


def test_identical_networks_stay(reference):
    matching = weight_matching(reference, reference, SPEC, key=KEY)
    assert_equal(matching.permutations, identity({"p0": 10, "p1": 8}))
    assert len(matching.history) == 1 and matching.converged


def test_key_decides_the_order_of_visits(reference, other):
    results = [weight_matching(reference, other, SPEC, key=jax.random.key(seed)) for seed in (*range(6), 0)]
    assert_equal(results[0].permutations, results[-1].permutations)
    assert results[0].history == results[-1].history
    assert len({result.history[1] for result in results}) > 1


def test_sweeps_are_limited_and_continued_from_a_start(reference, other):
    one = weight_matching(reference, other, SPEC, key=KEY, max_sweeps=1)
    assert len(one.history) == 2 and not one.converged
    rest = weight_matching(reference, other, SPEC, key=KEY, start=one.permutations)
    assert rest.history[0] == one.history[-1] and rest.converged
    part = weight_matching(reference, other, SPEC, key=KEY, start={"p0": one.permutations["p0"]})
    np.testing.assert_allclose(
        part.history[0], objective(reference, permute(other, {"p0": one.permutations["p0"]}, SPEC)), rtol=1e-12
    )


@pytest.mark.parametrize("cast", [jnp.asarray, lambda leaf: leaf.astype(ml_dtypes.bfloat16)], ids=["jax", "bfloat16"])
def test_matching_takes_any_arrays(reference, cast):
    hidden = random_permutations(SPEC, reference, jax.random.key(3))
    copy = jax.tree.map(cast, permute(reference, hidden, SPEC))
    assert_equal(
        compose(hidden, weight_matching(reference, copy, SPEC, key=KEY).permutations), identity({"p0": 10, "p1": 8})
    )


def test_blocks_are_matched_as_units():
    rng = np.random.default_rng(0)
    spec = {"in": (None, Blocks("heads", inner=3)), "out": (Blocks("heads", outer=2, inner=2), None)}
    params = {"in": rng.normal(size=(4, 5 * 3)), "out": rng.normal(size=(2 * 5 * 2, 3))}
    hidden = random_permutations(spec, params, jax.random.key(5))
    copy = permute(params, hidden, spec)
    assert_equal(permute(copy, weight_matching(params, copy, spec, key=KEY).permutations, spec), params)


def test_statistics_and_integers_move_but_do_not_vote(reference):
    rng = np.random.default_rng(0)
    spec = {f"params/{name}": axes for name, axes in SPEC.items()}
    spec |= {"batch_stats/mean": ("p0",), "params/steps": ("p0",)}
    hidden = random_permutations(SPEC, reference, jax.random.key(1))
    a, b = (
        {"params": {**params, "steps": rng.integers(0, 1000, 10)}, "batch_stats": {"mean": 1e4 * rng.normal(size=10)}}
        for params in (reference, permute(reference, hidden, SPEC))
    )
    found = weight_matching(a, b, spec, key=KEY).permutations
    assert_equal(permute(b, found, spec)["params"]["layer_0"], reference["layer_0"])
    np.testing.assert_array_equal(permute(b, found, spec)["batch_stats"]["mean"], b["batch_stats"]["mean"][found["p0"]])
    misled = weight_matching(a, b, spec, key=KEY, ignore="").permutations
    assert misled["p0"].tolist() != found["p0"].tolist()


def test_matching_refuses_what_does_not_fit(reference, other):
    with pytest.raises(ValueError, match=r"params: layer_1/bias has shape \(3,\) instead of \(8,\)"):
        wrong = {**other, "layer_1": {**other["layer_1"], "bias": np.zeros(3, np.float32)}}
        weight_matching(reference, wrong, SPEC, key=KEY)
    with pytest.raises(ValueError, match="- head/bias has no entry"):
        weight_matching(reference, other, {k: v for k, v in SPEC.items() if k != "head/bias"}, key=KEY)
    with pytest.raises(ValueError, match="  params: head/bias"):
        weight_matching(reference, {**other, "head": jax.tree.map(_with_nan, other["head"])}, SPEC, key=KEY)
    with pytest.raises(ValueError, match="max_sweeps must be at least 1, not 0"):
        weight_matching(reference, other, SPEC, key=KEY, max_sweeps=0)
    with pytest.raises(ValueError, match="unknown permutation 'p2'"):
        weight_matching(reference, other, SPEC, key=KEY, start={"p2": np.arange(8)})


def _with_nan(leaf):
    leaf = leaf.copy()
    leaf.flat[0] = np.nan
    return leaf


# --- Straight-through matching ---


def predict(params, inputs):
    x = inputs
    for layer in ("layer_0", "layer_1"):
        x = jax.nn.relu(x @ params[layer]["kernel"] + params[layer]["bias"][None])
    return x @ params["head"]["kernel"] + params["head"]["bias"][None]


@pytest.fixture(scope="module")
def misleading():
    """Return two networks of one function, and data: input 5 is always 0, and its weights mislead weight matching."""
    rng = np.random.default_rng(0)
    a = network(1)
    hidden = random_permutations(SPEC, a, jax.random.key(2))
    b = permute(a, hidden, SPEC)
    for params in (a, b):
        params["layer_0"]["kernel"][5] = 6 * rng.normal(size=10)
    inputs = rng.normal(size=(64, 6)).astype(np.float32)
    inputs[:, 5] = 0
    return a, b, (inputs, np.asarray(predict(a, inputs)))


def squared_error(params, batch):
    inputs, targets = batch
    return jnp.mean((predict(params, inputs) - targets) ** 2)


def test_straight_through_lowers_the_loss_at_the_midpoint(misleading):
    a, b, batch = misleading
    matching = straight_through_matching(a, b, SPEC, squared_error, [batch] * 40, key=KEY, learning_rate=0.3)
    losses = {
        name: float(squared_error(tree.mean([a, permute(b, permutations, SPEC)]), batch))
        for name, permutations in {
            "as they are": {},
            "weight matching": weight_matching(a, b, SPEC, key=KEY).permutations,
            "straight through": matching.permutations,
        }.items()
    }
    np.testing.assert_allclose(losses["straight through"], min(matching.history), rtol=1e-4)
    np.testing.assert_allclose(losses["weight matching"], matching.history[0], rtol=1e-4)
    assert losses["straight through"] < 0.5 * losses["weight matching"]
    assert losses["straight through"] < 0.5 * losses["as they are"]


def test_straight_through_steps_are_those_of_the_formula():
    """One unit layer without nonlinearity: the loss is linear in the weights, so φ after k steps is known."""
    spec = {"w": ("p",), "steps": ()}
    a, b = ({"w": np.float32(w), "steps": np.int32(7)} for w in ([1.0, 2.0, 3.0], [10.0, 20.0, 30.0]))
    slope = np.float32([-1.0, 2.0, 6.0])
    loss = lambda params, batch: jnp.vdot(params["w"], batch)  # noqa: E731
    matching = straight_through_matching(a, b, spec, loss, [slope] * 4, key=KEY, learning_rate=0.25, momentum=0.5)
    free, velocity, expected = np.float64([1, 2, 3]), np.zeros(3), []
    for _ in range(4):
        ranks = np.argsort(np.argsort(free))  # <φ, π(b)> is largest in the same order
        expected.append(float(slope @ (np.float64([1, 2, 3]) + np.float64([10, 20, 30])[ranks]) / 2))
        velocity = 0.5 * velocity + 0.5 * slope
        free = free - 0.25 * velocity
    np.testing.assert_allclose(matching.history, expected, rtol=1e-6)
    assert len(set(expected)) > 1
    assert matching.permutations["p"].tolist() == ranks.tolist()


def test_straight_through_refuses_what_does_not_fit(reference, other):
    loss = lambda params, batch: jnp.sum(params["head"]["bias"]) * batch  # noqa: E731
    with pytest.raises(ValueError, match="no batches"):
        straight_through_matching(reference, other, SPEC, loss, [], key=KEY)
    with pytest.raises(ValueError, match="loss is nan at step 0"):
        straight_through_matching(reference, other, SPEC, loss, [np.float32(np.nan)], key=KEY)
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\), not 1"):
        straight_through_matching(reference, other, SPEC, loss, [], key=KEY, momentum=1)
    with pytest.raises(ValueError, match="  reference: head/bias"):
        straight_through_matching(jax.tree.map(_with_nan, reference), other, SPEC, loss, [], key=KEY)


# --- Many members ---


@pytest.fixture
def copies(reference):
    return [permute(reference, random_permutations(SPEC, reference, jax.random.key(s)), SPEC) for s in range(3)]


@pytest.mark.parametrize("method", ["weight", "merge_many"])
def test_soup_of_aligned_copies_is_the_copy(copies, method):
    for to in (0, 2, "1"):
        soup = soups.uniform(align(copies, SPEC, key=KEY, to=to, method=method))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), soup, copies[int(to)])


@pytest.mark.parametrize("method", ["weight", "merge_many"])
def test_aligned_members_are_permuted_members_and_the_reference_stays(method):
    members = {name: network(seed) for seed, name in enumerate("abc")}
    aligned = align(members, SPEC, key=KEY, to="b", method=method)
    assert list(aligned) == ["a", "b", "c"]
    assert_equal(aligned["b"], members["b"])
    for name in "abc":  # a permuted network has the same units: each hidden column is one of the old ones
        columns = {tuple(column) for column in members[name]["layer_0"]["kernel"].T}
        assert {tuple(column) for column in aligned[name]["layer_0"]["kernel"].T} == columns
        assert {leaf.dtype for leaf in jax.tree.leaves(aligned[name])} == {np.dtype(np.float32)}
    assert _spread(aligned) < _spread(members)


def _spread(members):
    mean = tree.mean(list(members.values()))
    return sum(float(tree.norm(tree.sub(member, mean))) ** 2 for member in members.values())


def test_merge_many_ends_where_no_member_can_come_nearer_to_the_mean_of_the_others():
    members = [network(seed, (3, 4, 4, 2)) for seed in range(3)]
    aligned = align(members, SPEC, key=KEY, method="merge_many")
    for index, member in enumerate(aligned):
        others = tree.mean(aligned[:index] + aligned[index + 1 :])
        best = objective(others, member)
        for name, order in itertools.product(("p0", "p1"), itertools.permutations(range(4))):
            assert objective(others, permute(member, {name: np.array(order)}, SPEC)) <= best + 1e-5


@pytest.mark.parametrize("method", ["weight", "merge_many"])
def test_one_member_is_aligned(reference, method):
    assert_equal(align([reference], SPEC, key=KEY, method=method), [reference])


def test_align_takes_a_pool(copies, tmp_path):
    pool = Pool(tmp_path / "pool")
    for index, weights in enumerate(copies):
        pool.add(f"member_{index}", weights)
    aligned = align(pool, SPEC, key=KEY, to="member_2")
    assert list(aligned) == ["member_0", "member_1", "member_2"]
    for weights in aligned.values():
        assert_equal(weights, copies[2])


def test_align_refuses_what_does_not_fit(copies):
    with pytest.raises(ValueError, match="no members"):
        align([], SPEC, key=KEY)
    with pytest.raises(ValueError, match="unknown member 'x'; there are: 0, 1, 2"):
        align(copies, SPEC, key=KEY, to="x")
    with pytest.raises(ValueError, match="unknown member '3'; there are: 0, 1, 2"):
        align(copies, SPEC, key=KEY, to=3)
    with pytest.raises(ValueError, match=r"unknown method 'weigth' \(did you mean 'weight'"):
        align(copies, SPEC, key=KEY, method="weigth")
    with pytest.raises(ValueError, match="1: head/bias is missing"):
        align([copies[0], {**copies[1], "head": {"kernel": copies[1]["head"]["kernel"]}}], SPEC, key=KEY)
    with pytest.raises(ValueError, match="  member 1: head/bias"):
        align([copies[0], jax.tree.map(_with_nan, copies[1])], SPEC, key=KEY)
