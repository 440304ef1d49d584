import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from soups import tree
from soups.recipes import uniform, weighted
from soups.recipes.regmean import regmean, regmean_pp

D, HEADS, E, OUT = 5, 2, 3, 4
SHAPES = {"query": (D, HEADS, E), "out": (HEADS, E, OUT), "dense": (D, OUT)}
SIZES = {"query/kernel": D, "out/kernel": HEADS * E, "dense/kernel": D}


def network(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    kernels = {name: {"kernel": rng.normal(size=shape).astype(dtype)} for name, shape in SHAPES.items()}
    return {**kernels, "norm": {"scale": rng.normal(size=D).astype(dtype)}}


def gram(seed, size, rows=40, spread=1.0):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(rows, size)) @ rng.normal(size=(size, size))) * np.geomspace(1, spread, size)
    return (x.T @ x / rows).astype(np.float32)


MEMBERS = [network(seed) for seed in range(3)]
GRAMS = [{name: gram(10 * seed + size, size) for name, size in SIZES.items()} for seed in (1, 2, 3)]


def regression(kernels, grams, alpha, weights):
    """Regress one kernel in float64, by the normal equations as they are printed."""
    left, right = 0, 0
    for kernel, g, weight in zip(kernels, grams, weights, strict=True):
        g = g.astype(np.float64)
        g = weight * np.where(np.eye(len(g)), g, alpha * g)
        left, right = left + g, right + g @ kernel.astype(np.float64).reshape(len(g), -1)
    return (np.linalg.inv(left) @ right).reshape(kernels[0].shape)


def oracle(members, grams, alpha, weights):
    average = jax.tree.map(lambda *leaves: np.average(np.stack(leaves).astype(np.float64), 0, weights), *members)
    for name in SHAPES:
        key = f"{name}/kernel"
        kernels = [member[name]["kernel"] for member in members]
        average[name]["kernel"] = regression(kernels, [g[key] for g in grams], alpha, weights)
    return average


def close(a, b, rtol=1e-5, atol=1e-5):
    tree.check_same_structure([a, b], dtypes=False)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x, np.float64), np.asarray(y, np.float64), rtol=rtol, atol=atol)


def to_jax(weights):
    return jax.tree.map(jnp.asarray, weights)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_equals_normal_equations(alpha):
    expected = oracle(MEMBERS, GRAMS, alpha, [1, 2, 1])
    close(regmean(MEMBERS, GRAMS, alpha=alpha, weights=[1, 2, 1]), expected)
    result = regmean(to_jax(MEMBERS), to_jax(GRAMS), alpha=alpha, weights=[1, 2, 1])
    close(result, expected, rtol=1e-3, atol=1e-3)  # float32 times the condition, up to 1e4 for alpha = 1
    assert np.abs(expected["dense"]["kernel"] - weighted(MEMBERS, [0.25, 0.5, 0.25])["dense"]["kernel"]).max() > 0.1


def test_minimises_the_distance_of_outputs():
    result = regmean(MEMBERS, GRAMS, alpha=1.0)

    def distance(kernel):
        differences = [kernel.astype(np.float64) - member["dense"]["kernel"] for member in MEMBERS]
        pairs = zip(differences, GRAMS, strict=True)
        return sum(np.trace(d.T @ g["dense/kernel"].astype(np.float64) @ d) for d, g in pairs)

    best = distance(result["dense"]["kernel"])
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert distance(result["dense"]["kernel"] + 0.01 * rng.normal(size=(D, OUT)).astype(np.float32)) > best


def test_members_on_the_host_take_grams_from_a_device():
    result = regmean(MEMBERS, to_jax(GRAMS))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(result))
    close(result, regmean(MEMBERS, GRAMS), 0, 0)


def test_equal_grams_give_the_average():
    close(regmean(MEMBERS, [GRAMS[0]] * 3), uniform(MEMBERS))


def test_identical_members_give_that_member():
    close(regmean([MEMBERS[0]] * 3, GRAMS), MEMBERS[0], rtol=1e-6, atol=0)


def test_alpha_is_irrelevant_for_diagonal_grams():
    diagonal = [{name: np.diag(np.diag(g)) for name, g in grams.items()} for grams in GRAMS]
    close(regmean(MEMBERS, diagonal, alpha=0.0), regmean(MEMBERS, diagonal, alpha=1.0), 0, 0)


def test_kernels_without_a_gram_are_averaged():
    result = regmean(MEMBERS, [{"dense/kernel": grams["dense/kernel"]} for grams in GRAMS])
    expected = {**uniform(MEMBERS), "dense": regmean(MEMBERS, GRAMS)["dense"]}
    close(result, expected)


@pytest.mark.parametrize("place", [lambda t: t, to_jax], ids=["host", "device"])
def test_directions_without_data_keep_the_average(place):
    # three rows span three of five directions, the same for all members, and the last input is dead
    rows = np.random.default_rng(0).normal(size=(3, D)).astype(np.float64)
    rows[:, -1] = 0
    grams = [
        {"dense/kernel": (rows.T @ np.diag(np.float64(s)) @ rows).astype(np.float32)} for s in ([1, 2, 3], [3, 2, 1])
    ]
    members = MEMBERS[:2]
    result = regmean(place(members), place(grams), alpha=1.0)["dense"]["kernel"]
    average = uniform(members)["dense"]["kernel"]
    np.testing.assert_allclose(result[-1], average[-1], rtol=1e-6)
    # on the rows that were seen it is the regression
    expected = [rows @ member["dense"]["kernel"] for member in members]
    share = np.array([1, 2, 3])[:, None] / 4
    np.testing.assert_allclose(
        rows @ np.asarray(result, np.float64), share * expected[0] + (1 - share) * expected[1], rtol=1e-3, atol=1e-3
    )
    # and orthogonal to them, with the inputs scaled to one power, it is the average
    powers = sum(np.diag(g["dense/kernel"]).astype(np.float64) for g in grams) / 2
    unseen = np.linalg.svd(rows[:, :-1])[2][3:]
    assert np.abs(rows[:, :-1] @ unseen.T).max() < 1e-12
    change = powers[:-1, None] * (np.asarray(result, np.float64) - average)[:-1]
    assert np.linalg.norm(unseen @ change) < 1e-3 * np.linalg.norm(change)
    with pytest.raises(AssertionError):  # and it is not just the average
        np.testing.assert_allclose(rows @ np.asarray(result, np.float64), rows @ average, rtol=1e-2)


@pytest.mark.parametrize("place", [lambda t: t, to_jax], ids=["host", "device"])
def test_inputs_of_very_different_scales_are_not_lost(place):
    grams = [{"dense/kernel": gram(seed, D, spread=1e-5)} for seed in (1, 2)]
    result = regmean(place(MEMBERS[:2]), place(grams), alpha=0.5)["dense"]["kernel"]
    kernels = [member["dense"]["kernel"] for member in MEMBERS[:2]]
    expected = regression(kernels, [g["dense/kernel"] for g in grams], 0.5, [1, 1])
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-4)


def test_under_jit_and_by_name():
    expected = regmean(MEMBERS, GRAMS)
    traced = jax.jit(lambda m, g, w: regmean(m, g, weights=w))(MEMBERS, GRAMS, jnp.ones(3))
    close(traced, expected, rtol=1e-4, atol=1e-4)  # float32 times the condition, up to 1e3 here
    names = ["a", "b", "c"]
    by_name = regmean(dict(zip(names, MEMBERS, strict=True)), dict(zip(names[::-1], GRAMS[::-1], strict=True)))
    close(by_name, expected, 0, 0)


def test_keeps_dtypes_and_copies_integers():
    members = [{**network(seed, ml_dtypes.bfloat16), "steps": np.int32([3])} for seed in range(3)]
    result = regmean(members, GRAMS)
    assert jax.tree.map(lambda leaf: leaf.dtype, result) == jax.tree.map(lambda leaf: leaf.dtype, members[0])
    assert result.pop("steps") == [3]
    wide = [{k: jax.tree.map(lambda leaf: leaf.astype(np.float32), m[k]) for k in result} for m in members]
    close(result, jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), regmean(wide, GRAMS)), 0, 0)


def changed(name, value):
    return [{**GRAMS[0], name: value}, *GRAMS[1:]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"members": []}, "no members"),
        ({"grams": GRAMS[:2]}, "3 members need 3 values of grams, but 2 were given"),
        ({"grams": [None] * 3}, "grams must be a mapping .name of a kernel: matrix. for each member; that of 0 is not"),
        (
            {"grams": changed("dens/kernel", gram(0, D))},
            "unknown leaf in the grams 'dens/kernel' .did you mean 'dense/k",
        ),
        ({"grams": [*GRAMS[:2], {}]}, "members 0 and 2 differ in: dense/kernel, out/kernel, query/kernel"),
        ({"grams": changed("dense/kernel", gram(0, 4))}, r"member 0 for dense/kernel has shape \(4, 4\).* with in = 5"),
        ({"grams": changed("out/kernel", gram(0, 5))}, "in = 2 or 6"),
        (
            {"grams": [{"norm/scale": gram(0, D)}] * 3},
            r"norm/scale of shape \(5,\) and dtype float32 is not the kernel",
        ),
        (
            {"grams": changed("dense/kernel", gram(0, D) * np.float32(np.nan))},
            "Gram matrix of member 0 for dense/kernel",
        ),
        ({"alpha": 1.1}, r"alpha must be in \[0, 1\], not 1.1"),
        ({"weights": [1, -1, 1]}, "not negative"),
        ({"members": [{"dense": MEMBERS[0]["dense"]}, *MEMBERS[1:]]}, "1: norm/scale is extra"),
        (
            {"members": [jax.tree.map(lambda x: x * np.float32(np.nan), MEMBERS[0]), *MEMBERS[1:]]},
            "member 0: dense/kern",
        ),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        regmean(**{"members": MEMBERS, "grams": GRAMS, **arguments})


@pytest.mark.parametrize("shape", [(OUT, D), (OUT, 2, 3), (D, D)], ids=str)
def test_kernels_of_torch_have_their_inputs_last(shape):
    rng, size = np.random.default_rng(3), int(np.prod(shape[1:]))
    members = [{"weight": rng.normal(size=shape).astype(np.float32)} for _ in range(2)]
    measured = [gram(seed, size) for seed in (1, 2)]
    turned = [member["weight"].reshape(len(member["weight"]), -1).T for member in members]
    expected = regression(turned, measured, 0.9, [1, 1]).T.reshape(shape)
    close(regmean(members, [{"weight": g} for g in measured], inputs="last"), {"weight": expected})
    if shape[0] != size:  # of as many inputs as the kernel has outputs
        wrong = [{"weight": np.eye(shape[0], dtype=np.float32)}] * 2
        with pytest.raises(ValueError, match=rf"with its inputs last needs \[in, in\] with in = {size}$"):
            regmean(members, wrong, inputs="last")


# --- RegMean++ ---


def two_layers(seed):
    rng = np.random.default_rng(seed)
    return {
        "embed": rng.normal(size=(D, D)).astype(np.float32),
        "first": {"kernel": rng.normal(size=(D, D)).astype(np.float32), "bias": rng.normal(size=D).astype(np.float32)},
        "second": {"kernel": rng.normal(size=(D, OUT)).astype(np.float32)},
    }


DEEP = {name: two_layers(seed) for seed, name in enumerate("ab")}
DATA = {name: np.random.default_rng(seed).normal(size=(20, D)) for seed, name in enumerate("ab")}
GROUPS = ["first/.*", "second/.*"]


def measure(name, calls=None):
    def grams(params):
        if calls is not None:
            calls.append((name, params))
        p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
        first = DATA[name] @ p["embed"]
        second = np.maximum(first @ p["first"]["kernel"] + p["first"]["bias"], 0)
        return {"first/kernel": first.T @ first / 20, "second/kernel": second.T @ second / 20}

    return grams


def test_layers_are_merged_one_after_the_other():
    merged = jax.tree.map(lambda x, y: (x.astype(np.float64) + y) / 2, DEEP["a"], DEEP["b"])
    for layer in ("first", "second"):
        grams = [measure(name)(merged)[f"{layer}/kernel"] for name in DEEP]  # of layers that are merged already
        merged[layer]["kernel"] = regression([m[layer]["kernel"] for m in DEEP.values()], grams, 0.9, [1, 1])
    result = regmean_pp(DEEP, {name: measure(name) for name in DEEP}, groups=GROUPS)
    close(result, merged)
    plain = regmean(DEEP, {name: measure(name)(DEEP[name]) for name in DEEP})
    assert np.abs(result["second"]["kernel"] - plain["second"]["kernel"]).max() > 0.01


def test_candidates_have_their_own_weights_in_the_layer_that_is_merged():
    calls = []
    regmean_pp(DEEP, {name: measure(name, calls) for name in DEEP}, groups=iter(GROUPS))
    assert [name for name, _ in calls] == ["a", "b", "a", "b"]
    average = uniform(DEEP)
    for number, (name, params) in enumerate(calls):
        np.testing.assert_array_equal(params["embed"], average["embed"])
        np.testing.assert_array_equal(params["second"]["kernel"], DEEP[name]["second"]["kernel"])
        bias = DEEP[name]["first"]["bias"] if number < 2 else average["first"]["bias"]
        np.testing.assert_array_equal(params["first"]["bias"], bias)
    np.testing.assert_array_equal(calls[2][1]["first"]["kernel"], calls[3][1]["first"]["kernel"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": []}, "at least one regex"),
        ({"groups": "first/.*"}, "a list of at least one regex"),
        ({"groups": ["first/.*", "thrid/.*"]}, "rule 'thrid/.*' matches no leaf"),
        ({"groups": ["embed"]}, "no Gram matrix of a leaf in group 'embed', only of: first/kernel, second/kernel"),
        ({"grams_of": {"a": measure("a")}}, "- b is missing"),
        ({"grams_of": [lambda params: {"other": np.eye(D)}] * 2}, "unknown leaf in the grams 'other'"),
        ({"members": {}}, "no members"),
    ],
)
def test_errors_of_regmean_pp(arguments, message):
    settings = {"members": DEEP, "grams_of": {name: measure(name) for name in DEEP}, "groups": GROUPS, **arguments}
    with pytest.raises(ValueError, match=message):
        regmean_pp(**settings)
