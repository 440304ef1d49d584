import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from soups import tree
from soups.recipes import uniform, weighted, wise_ft
from soups.recipes.fisher import ESTIMATORS, fisher, fisher_information, fisher_interpolate

N, D, H, C = 7, 3, 4, 3


def network(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    shapes = {"hidden": {"kernel": (D, H), "bias": (H,)}, "head": {"kernel": (H, C), "bias": (C,)}}
    return {
        layer: {name: rng.normal(size=shape).astype(dtype) for name, shape in leaves.items()}
        for layer, leaves in shapes.items()
    }


def apply(params, inputs):
    hidden = jnp.tanh(inputs @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
    return hidden @ params["head"]["kernel"] + params["head"]["bias"][None]


PARAMS = network(0)
INPUTS = np.random.default_rng(1).normal(size=(N, D)).astype(np.float32)
LABELS = np.random.default_rng(2).integers(0, C, N).astype(np.int32)


def probabilities(x):
    p = jax.tree.map(lambda leaf: leaf.astype(np.float64), PARAMS)
    hidden = np.tanh(x @ p["hidden"]["kernel"] + p["hidden"]["bias"])
    logits = hidden @ p["head"]["kernel"] + p["head"]["bias"]
    exponentials = np.exp(logits - logits.max())
    return hidden, exponentials / exponentials.sum()


def gradient(x, label):
    """Differentiate log p(label | x) by hand, in float64."""
    hidden, shares = probabilities(x)
    error = np.eye(C)[label] - shares
    back = (PARAMS["head"]["kernel"].astype(np.float64) @ error) * (1 - hidden**2)
    return {
        "hidden": {"kernel": np.outer(x, back), "bias": back},
        "head": {"kernel": np.outer(hidden, error), "bias": error},
    }


def oracle(estimator, batch_size, labels):
    total = jax.tree.map(lambda leaf: np.zeros(leaf.shape), PARAMS)
    for start in range(0, N, batch_size):
        mixed = jax.tree.map(np.zeros_like, total)
        for example in range(start, min(start + batch_size, N)):
            x = INPUTS[example].astype(np.float64)
            _, shares = probabilities(x)
            for label in range(C):
                g = gradient(x, label)
                if estimator == "batch":
                    mixed = jax.tree.map(lambda m, g, s=shares[label]: m + np.sqrt(s) * g, mixed, g)
                share = shares[label] if estimator != "empirical" else float(label == labels[example])
                if estimator != "batch":
                    total = jax.tree.map(lambda t, g, s=share: t + s * g**2, total, g)
        total = jax.tree.map(lambda t, m: t + m**2, total, mixed)
    return jax.tree.map(lambda leaf: leaf / N, total)


def close(a, b, rtol=1e-5, atol=1e-6):
    tree.check_same_structure([a, b], dtypes=False)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x, np.float64), np.asarray(y, np.float64), rtol=rtol, atol=atol)


@pytest.mark.parametrize("batch_size", [3, 32])
@pytest.mark.parametrize("estimator", ["exact", "empirical", "batch"])
def test_information_equals_gradients_by_hand(estimator, batch_size):
    labels = LABELS if estimator == "empirical" else None
    result = fisher_information(apply, PARAMS, INPUTS, estimator=estimator, labels=labels, batch_size=batch_size)
    close(result, oracle(estimator, batch_size, LABELS))
    assert {leaf.dtype for leaf in jax.tree.leaves(result)} == {np.dtype(np.float32)}


def test_the_oracles_of_the_estimators_differ():
    exact = oracle("exact", 3, None)["head"]["kernel"]
    np.testing.assert_array_equal(exact, oracle("exact", 32, None)["head"]["kernel"])
    batch = [oracle("batch", size, None)["head"]["kernel"] for size in (3, 32)]
    assert np.abs(batch[0] - batch[1]).max() > 0.02
    assert np.abs(batch[0] - exact).max() > 0.02


def test_sampled_draws_one_label_for_each_example_whatever_the_batches():
    key = jax.random.key(5)
    log_probs = jax.nn.log_softmax(apply(PARAMS, INPUTS))
    labels = [int(jax.random.categorical(jax.random.fold_in(key, i), log_probs[i])) for i in range(N)]
    assert len(set(labels)) > 1
    for batch_size in (3, 32):
        result = fisher_information(apply, PARAMS, INPUTS, estimator="sampled", key=key, batch_size=batch_size)
        close(result, oracle("empirical", N, labels))


def test_sampled_is_unbiased():
    # the same example many times: the mean over its drawn labels is the expectation
    many = np.repeat(INPUTS[:1], 4096, axis=0)
    exact = fisher_information(apply, PARAMS, INPUTS[:1])
    sampled = fisher_information(apply, PARAMS, many, estimator="sampled", key=jax.random.key(0), batch_size=4096)
    close(sampled, exact, rtol=0.15, atol=0.01)  # 1/√4096 = 0.016 for each share, of probabilities down to 0.05


def test_information_of_narrow_weights_and_integer_leaves():
    params = {**network(0, ml_dtypes.bfloat16), "table": np.int32([3])}
    result = fisher_information(lambda p, x: apply(p, x.astype(jnp.bfloat16)), params, INPUTS)
    np.testing.assert_array_equal(result["table"], np.float32([0]))
    assert {leaf.dtype for leaf in jax.tree.leaves(result)} == {np.dtype(np.float32)}
    result.pop("table")
    close(result, oracle("exact", N, None), rtol=0.1, atol=0.05)


def test_inputs_may_be_a_tree():
    parts = {"a": INPUTS[:, :1], "b": INPUTS[:, 1:]}
    result = fisher_information(lambda p, x: apply(p, jnp.concatenate([x["a"], x["b"]], 1)), PARAMS, parts)
    close(result, oracle("exact", N, None))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"estimator": "exakt"}, "unknown estimator 'exakt' .did you mean 'exact'"),
        ({"labels": LABELS}, "'exact' does not use labels: only 'empirical' does"),
        ({"key": jax.random.key(0)}, "'exact' does not use key: only 'sampled' does"),
        ({"estimator": "empirical"}, "'empirical' needs labels"),
        ({"estimator": "sampled"}, "'sampled' needs key"),
        ({"estimator": "empirical", "labels": LABELS[:3]}, r"labels must be 7 integers, not int32 of shape \(3,\)"),
        ({"estimator": "empirical", "labels": LABELS / 2}, "labels must be 7 integers, not float64"),
        ({"estimator": "empirical", "labels": LABELS + 1}, r"labels must be in 0\.\.2, but are in 1\.\.3"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"inputs": INPUTS[:0]}, "the same number of examples, at least 1"),
        ({"inputs": (INPUTS, INPUTS[:2])}, r"they have \[2, 7\]"),
        ({"apply_fn": lambda p, x: apply(p, x)[0]}, r"logits \[B, C\], but it gave float32\[3\]"),
        ({"inputs": INPUTS * np.nan}, "NaN or infinity in the Fisher information of head/bias"),
    ],
)
def test_information_errors(changed, message):
    arguments = {"apply_fn": apply, "params": PARAMS, "inputs": INPUTS, **changed}
    with pytest.raises(ValueError, match=message):
        fisher_information(**arguments)


def test_every_estimator_is_named():
    with pytest.raises(ValueError, match=", ".join(sorted(ESTIMATORS))):
        fisher_information(apply, PARAMS, INPUTS, estimator="none")


# --- Merging ---

MEMBERS = [network(seed) for seed in (3, 4, 5)]
FISHERS = [jax.tree.map(np.square, network(seed)) for seed in (6, 7, 8)]
for information in FISHERS:  # where nobody knows anything
    information["hidden"]["kernel"][0] = 0
ONES = jax.tree.map(np.ones_like, PARAMS)


def merged_by_hand(weights, floors, normalize=False):
    norms = [np.sqrt(sum((leaf.astype(np.float64) ** 2).sum() for leaf in jax.tree.leaves(f))) for f in FISHERS]
    shares = [w / n if normalize else w for w, n in zip(weights, norms, strict=True)]

    def leaf(*leaves):
        masses = [c * np.maximum(f.astype(np.float64), m) for c, f, m in zip(shares, leaves[3:], floors, strict=True)]
        return sum(m * x for m, x in zip(masses, leaves[:3], strict=True)) / sum(masses)

    return jax.tree.map(leaf, *MEMBERS, *FISHERS)


@pytest.mark.parametrize("place", [lambda t: t, lambda t: jax.tree.map(jnp.asarray, t)], ids=["host", "device"])
@pytest.mark.parametrize("normalize", [False, True])
def test_fisher_equals_float64(normalize, place):
    members, fishers = list(map(place, MEMBERS)), list(map(place, FISHERS))
    result = fisher(members, fishers, weights=[1.0, 0.5, 2.0], normalize=normalize)
    close(result, merged_by_hand([1.0, 0.5, 2.0], [1e-6] * 3, normalize))


def test_a_member_with_a_floor_alone_decides_where_nobody_knows_more():
    result = fisher(MEMBERS, FISHERS, floor=[0, 1e-6, 0])
    close(result, merged_by_hand([1, 1, 1], [0, 1e-6, 0]))
    np.testing.assert_allclose(result["hidden"]["kernel"][0], MEMBERS[1]["hidden"]["kernel"][0], rtol=1e-6)
    equal = fisher(MEMBERS, FISHERS)["hidden"]["kernel"][0]
    np.testing.assert_allclose(equal, np.mean([m["hidden"]["kernel"][0] for m in MEMBERS], 0), rtol=1e-5)


def test_a_setting_that_is_gone_says_what_does_the_same():
    with pytest.raises(TypeError, match=r"unknown argument 'favor'.*; floor takes one number for each member: above 0"):
        fisher(MEMBERS, FISHERS, favor=1)


def test_large_floor_hides_the_information():
    close(fisher(MEMBERS, FISHERS, floor=1e3), uniform(MEMBERS))


def test_information_of_one_gives_the_average():
    close(fisher(MEMBERS, [ONES] * 3), uniform(MEMBERS))
    close(fisher(MEMBERS, [ONES] * 3, weights=[1, 2, 1]), weighted(MEMBERS, [0.25, 0.5, 0.25]))


def test_identical_members_give_that_member():
    close(fisher([PARAMS] * 3, FISHERS, normalize=True), PARAMS, rtol=1e-6, atol=0)


def test_by_name_in_any_order_and_under_jit():
    expected = fisher(MEMBERS, FISHERS, weights=[1.0, 2.0, 3.0])
    members, fishers = (
        dict(zip("abc", MEMBERS, strict=True)),
        dict(zip("cab", [FISHERS[i] for i in (2, 0, 1)], strict=True)),
    )
    close(fisher(members, fishers, weights={"c": 3.0, "b": 2.0, "a": 1.0}), expected, rtol=0, atol=0)
    traced = jax.jit(lambda m, f, w: fisher(m, f, weights=w, normalize=True))(MEMBERS, FISHERS, jnp.arange(1.0, 4.0))
    close(traced, fisher(MEMBERS, FISHERS, weights=[1, 2, 3], normalize=True))


def test_keeps_dtypes_and_copies_integers():
    members = [{**network(seed, ml_dtypes.bfloat16), "table": np.int32([3])} for seed in (3, 4, 5)]
    fishers = [{**f, "table": np.float32([0])} for f in FISHERS]
    result = fisher(members, fishers)
    assert jax.tree.map(lambda leaf: leaf.dtype, result) == jax.tree.map(lambda leaf: leaf.dtype, members[0])
    np.testing.assert_array_equal(result.pop("table"), [3])
    wide = fisher([jax.tree.map(lambda leaf: leaf.astype(np.float32), m) for m in members], fishers)
    close(result, {k: jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), wide[k]) for k in result}, 0, 0)
    members[1]["table"] = np.int32([4])
    with pytest.raises(ValueError, match="these differ: table"):
        fisher(members, fishers)


def test_interpolate():
    a, b = MEMBERS[:2]
    close(fisher_interpolate(a, b, ONES, ONES, alpha=0.25), wise_ft(b, base=a, alpha=0.25))
    close(fisher_interpolate(a, b, *FISHERS[:2], alpha=0.0), a)
    close(fisher_interpolate(a, b, *FISHERS[:2], alpha=1.0), b)
    expected = fisher([a, b], FISHERS[:2], weights=[0.75, 0.25], normalize=True)
    close(fisher_interpolate(a, b, *FISHERS[:2], alpha=0.25, normalize=True), expected, 0, 0)
    close(jax.jit(lambda t: fisher_interpolate(a, b, ONES, ONES, alpha=t))(0.25), wise_ft(b, base=a, alpha=0.25))
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\], not 1.5"):
        fisher_interpolate(a, b, ONES, ONES, alpha=1.5)


def with_leaf(value):
    return {**FISHERS[0], "head": {**FISHERS[0]["head"], "bias": np.float32([1, value, 1])}}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"members": []}, "no members"),
        ({"fishers": FISHERS[:2]}, "3 members need 3 values of fishers, but 2 were given"),
        ({"fishers": {"0": FISHERS[0], "1": FISHERS[1], "3": FISHERS[2]}}, r"- 2 is missing\n  \+ 3 is extra"),
        ({"fishers": [*FISHERS[:2], {"hidden": FISHERS[2]["hidden"]}]}, "2: head/bias is missing"),
        (
            {"fishers": [with_leaf(np.nan), *FISHERS[1:]]},
            "beside member 0: head/b",
        ),
        ({"fishers": [with_leaf(-1), *FISHERS[1:]]}, "negative Fisher information of member 0: head/bias"),
        ({"fishers": [jax.tree.map(np.zeros_like, ONES), *FISHERS[1:]], "normalize": True}, "of member 0 is all zeros"),
        ({"weights": [1, 2]}, "3 members need 3 values of weights, but 2 were given"),
        ({"weights": [1, -1, 1]}, r"not negative and not all zero, but they are \[1.0, -1.0, 1.0\]"),
        ({"weights": [0, 0, 0]}, "not all zero"),
        ({"weights": [1, np.inf, 1]}, "must be a finite number"),
        ({"floor": 0}, "floor must be above 0 for a member whose weight is above 0"),
        ({"floor": [1e-6, -1, 0]}, "floor must be at least 0, not -1"),
        ({"floor": [1e-6, 0, 0], "weights": [0, 1, 1]}, "floor must be above 0 for a member whose weight is above 0"),
        (
            {"members": [jax.tree.map(lambda x: x * np.float32(np.nan), MEMBERS[0]), *MEMBERS[1:]]},
            "member 0: head/bias",
        ),
        ({"members": [{"hidden": PARAMS["hidden"]}, *MEMBERS[1:]]}, "1: head/bias is extra"),
    ],
)
def test_fisher_errors(changed, message):
    with pytest.raises(ValueError, match=message):
        fisher(**{"members": MEMBERS, "fishers": FISHERS, **changed})
