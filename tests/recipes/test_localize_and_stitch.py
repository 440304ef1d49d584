import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from soups import tree
from soups.recipes import uniform
from soups.recipes.localize_and_stitch import localize, localize_dataless, mask_overlap, stitch

D, C, B = 4, 3, 6


def network(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {"kernel": rng.normal(size=(D, C)).astype(dtype), "bias": rng.normal(size=C).astype(dtype)}


BASE = network(0)
MEMBERS = [jax.tree.map(lambda a, b: a + b, BASE, network(seed)) for seed in (1, 2, 3)]
VECTORS = [jax.tree.map(np.subtract, member, BASE) for member in MEMBERS]
BATCHES = [
    {
        "x": np.random.default_rng(seed).normal(size=(B, D)).astype(np.float32),
        "y": np.random.default_rng(seed + 10).integers(0, C, B),
    }
    for seed in (4, 5)
]


def to_jax(weights):
    return jax.tree.map(jnp.asarray, weights)


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def close(a, b, rtol=1e-5, atol=1e-6):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x, np.float64), np.asarray(y, np.float64), rtol=rtol, atol=atol)


# --- Learning a mask ---


def loss(params, batch):
    log_probs = jax.nn.log_softmax(batch["x"] @ params["kernel"] + params["bias"][None])
    return -jnp.mean(log_probs[jnp.arange(B), batch["y"]])


def gradient_by_hand(params):
    total = {"bias": 0.0, "kernel": 0.0}
    for batch in BATCHES:
        x = batch["x"].astype(np.float64)
        logits = x @ params["kernel"] + params["bias"]
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        error = (p - np.eye(C)[batch["y"]]) / B
        total = {"bias": total["bias"] + error.sum(0), "kernel": total["kernel"] + x.T @ error}
    return total


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def oracle(first, names, epochs, learning_rate, l1_strength, released):
    masks = {name: np.where(first[name], 5.0, -5.0) for name in names}
    for _ in range(epochs):
        params = {name: leaf.astype(np.float64) for name, leaf in BASE.items()}
        for name in names:
            params[name] = params[name] + sigmoid(masks[name]) * VECTORS[0][name]
        grads = gradient_by_hand(params)
        for name in names:
            slope = sigmoid(masks[name]) * (1 - sigmoid(masks[name]))
            penalty = -l1_strength * np.sign(masks[name]) if released else l1_strength
            masks[name] = masks[name] - slope * (learning_rate * grads[name] * VECTORS[0][name] + penalty)
    return {name: masks[name] > 0 if name in names else np.zeros(BASE[name].shape, bool) for name in BASE}


SETTINGS = {"density": 0.4, "epochs": 4, "learning_rate": 500.0, "l1_strength": 100.0}


@pytest.mark.parametrize("place", [lambda t: t, to_jax], ids=["host", "device"])
@pytest.mark.parametrize("update", ["paper", "released"])
def test_localize_equals_float64(update, place):
    result = localize(loss, BATCHES, base=place(BASE), member=place(MEMBERS[0]), update=update, **SETTINGS)
    first = localize_dataless(MEMBERS[0], base=BASE, density=0.4)
    settings = {name: SETTINGS[name] for name in ("epochs", "learning_rate", "l1_strength")}
    equal(result, oracle(first, list(BASE), **settings, released=update == "released"))
    assert isinstance(result["kernel"], type(place(BASE)["kernel"]))
    assert any((result[name] != first[name]).any() for name in BASE)  # it learned something


def test_updates_differ():
    results = [
        localize(loss, BATCHES, base=BASE, member=MEMBERS[0], update=u, **SETTINGS) for u in ("paper", "released")
    ]
    assert any((results[0][name] != results[1][name]).any() for name in BASE)


def test_localize_keeps_other_leaves_the_base_s():
    result = localize(loss, BATCHES, base=BASE, member=MEMBERS[0], only="kernel", **SETTINGS)
    assert not result["bias"].any()
    first = localize_dataless(MEMBERS[0], base=BASE, density=0.4, only="kernel")
    settings = {name: SETTINGS[name] for name in ("epochs", "learning_rate", "l1_strength")}
    equal(result, oracle(first, ["kernel"], **settings, released=False))


def test_localize_narrow_weights_with_integers():
    base, member = (
        {**jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), weights), "steps": np.int32([n])}
        for n, weights in ((3, BASE), (5, MEMBERS[0]))
    )

    def widened(params, batch):
        assert params["steps"].dtype == np.int32
        return loss({name: params[name].astype(jnp.float32) for name in BASE}, batch)

    # far more strength than the noise of bfloat16 has: every element is decided by the sign of its gradient
    result = localize(
        widened, BATCHES, base=base, member=member, epochs=1, learning_rate=1e6, l1_strength=0.0, density=0.5
    )
    assert not result.pop("steps").any()
    first = localize_dataless(MEMBERS[0], base=BASE, density=0.5)
    grads = gradient_by_hand(
        {name: BASE[name] + np.float64(sigmoid(5)) * VECTORS[0][name] * first[name] for name in BASE}
    )
    helps = {name: grads[name] * VECTORS[0][name] for name in BASE}
    clear = {name: np.abs(helps[name]) > 0.05 for name in BASE}
    assert sum(leaf.sum() for leaf in clear.values()) > 5
    for name in BASE:
        np.testing.assert_array_equal(result[name][clear[name]], helps[name][clear[name]] < 0)


def test_penalty_empties_the_mask():
    result = localize(loss, BATCHES, base=BASE, member=MEMBERS[0], density=0.5, learning_rate=1.0, l1_strength=1e4)
    assert not any(leaf.any() for leaf in jax.tree.leaves(result))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"update": "code"}, "unknown update 'code'"),
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"density": 0.0}, r"density must be in \(0, 1\], not 0.0"),
        ({"batches": []}, "no batches in epoch 0"),
        ({"batches": iter(BATCHES)}, "no batches in epoch 1: .* an iterator that is exhausted"),
        ({"batches": [{**BATCHES[0], "x": BATCHES[0]["x"] * np.float32(np.nan)}]}, "the loss is nan in epoch 0"),
        ({"member": {"bias": BASE["bias"]}}, "member: kernel is missing"),
        ({"member": {**BASE, "bias": BASE["bias"] * np.float32(np.nan)}}, "  member: bias"),
        ({"only": "head"}, "rule 'head' matches no leaf"),
    ],
)
def test_errors_of_localize(changed, message):
    arguments = {"loss_fn": loss, "batches": BATCHES, "base": BASE, "member": MEMBERS[0], **changed}
    with pytest.raises(ValueError, match=message):
        localize(**arguments)


# --- The largest elements ---


def largest_by_hand(vectors, density):
    """Rank by magnitude, then by position, one after the other."""
    flat = [(-abs(float(x)), name, i) for name in vectors for i, x in enumerate(vectors[name].ravel())]
    chosen = sorted(flat)[: max(1, int(density * len(flat)))]
    masks = {name: np.zeros(leaf.size, bool) for name, leaf in vectors.items()}
    for _, name, i in chosen:
        masks[name][i] = True
    return {name: mask.reshape(vectors[name].shape) for name, mask in masks.items()}


@pytest.mark.parametrize("how", ["host", "device", "jit"])
def test_dataless_takes_the_largest(how):
    place = (lambda t: t) if how == "host" else to_jax
    for density in (0.01, 0.3, 1.0):
        function = functools.partial(localize_dataless, density=density)
        function = jax.jit(function) if how == "jit" else function
        result = function(place(MEMBERS[0]), base=place(BASE))
        equal(result, largest_by_hand(VECTORS[0], density))
        assert isinstance(result["bias"], np.ndarray if how == "host" else jax.Array)


@pytest.mark.parametrize("kept", [1, 2, 3, 5, 6, 8, 10])
def test_first_of_equal_ones_go_in(kept):
    base = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.float32)}
    member = {"a": np.float32([[1, 2, -1], [1, 0, 1]]), "b": np.float32([-1, 3, 1, 1])}
    density = min(1.0, kept / 10 + 1e-6)
    expected = largest_by_hand(member, density)
    assert sum(mask.sum() for mask in expected.values()) == kept
    equal(localize_dataless(member, base=base, density=density), expected)
    equal(localize_dataless(to_jax(member), base=to_jax(base), density=density), expected)


def test_dataless_only_and_integers():
    member, base = ({**weights, "steps": np.int32([n])} for n, weights in ((5, MEMBERS[0]), (3, BASE)))
    result = localize_dataless(member, base=base, density=0.5, only="kernel|steps")
    assert not result["steps"].any()
    equal({"kernel": result["kernel"]}, largest_by_hand({"kernel": VECTORS[0]["kernel"]}, 0.5))
    assert not result["bias"].any()
    with pytest.raises(ValueError, match="no float leaf matches 'steps'"):
        localize_dataless(member, base=base, only="steps")


# --- Stitching ---

MASKS = [localize_dataless(member, base=BASE, density=0.6) for member in MEMBERS]


def stitched_by_hand():
    def leaf(base, *rest):
        wide, masks = [x.astype(np.float64) for x in rest[:3]], rest[3:]
        result = base.astype(np.float64)
        for index in np.ndindex(base.shape):
            chosen = [x[index] - result[index] for x, mask in zip(wide, masks, strict=True) if mask[index]]
            result[index] += np.mean(chosen) if chosen else 0.0
        return result

    return jax.tree.map(leaf, BASE, *MEMBERS, *MASKS)


def test_stitch_equals_float64():
    counts = sum(mask["kernel"].astype(int) for mask in MASKS)
    assert set(counts.ravel()) == {0, 1, 2, 3}  # every case is there
    expected = stitched_by_hand()
    close(stitch(MEMBERS, MASKS, base=BASE), expected)
    close(stitch(to_jax(MEMBERS), to_jax(MASKS), base=to_jax(BASE)), expected)
    close(jax.jit(lambda m, s, b: stitch(m, s, base=b))(MEMBERS, MASKS, BASE), expected)
    named = {name: member for name, member in zip(("base", "b", "c"), MEMBERS, strict=True)}
    close(stitch(named, dict(zip(("c", "b", "base"), MASKS[::-1], strict=True)), base=BASE), expected)


def test_full_masks_give_the_mean_of_the_task_vectors():
    full = jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), BASE)
    close(stitch(MEMBERS, [full] * 3, base=BASE), uniform(MEMBERS))
    empty = jax.tree.map(np.logical_not, full)
    equal(stitch(MEMBERS, [empty] * 3, base=BASE), BASE)
    close(stitch(MEMBERS, [empty, full, empty], base=BASE), MEMBERS[1])


def test_stitch_keeps_dtypes_and_copies_integers():
    narrow = [
        {**jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), m), "table": np.int32([3])} for m in (BASE, *MEMBERS)
    ]
    masks = [{**mask, "table": np.zeros(1, bool)} for mask in MASKS]
    result = stitch(narrow[1:], masks, base=narrow[0])
    assert jax.tree.map(lambda leaf: leaf.dtype, result) == jax.tree.map(lambda leaf: leaf.dtype, narrow[0])
    assert result["table"] == [3]
    wide = [{name: weights[name].astype(np.float32) for name in BASE} for weights in narrow]
    expected = tree.cast_like(stitch(wide[1:], MASKS, base=wide[0]), {name: narrow[0][name] for name in BASE})
    equal({name: result[name] for name in BASE}, expected)
    narrow[1]["table"] = np.int32([4])
    with pytest.raises(ValueError, match="these differ: table"):
        stitch(narrow[1:], masks, base=narrow[0])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"members": []}, "no members"),
        ({"masks": MASKS[:2]}, "3 members need 3 values of masks, but 2 were given"),
        ({"masks": [{"bias": MASKS[0]["bias"]}, *MASKS[1:]]}, "0: kernel is missing"),
        (
            {"masks": [MASKS[0], VECTORS[1], MASKS[2]]},
            "masks must be boolean; in the mask of member 1 these leaves are not: bias, kernel",
        ),
        ({"members": [{"bias": BASE["bias"]}, *MEMBERS[1:]]}, "base: kernel is extra"),
        ({"members": [{**BASE, "bias": BASE["bias"] * np.float32(np.nan)}, *MEMBERS[1:]]}, "member 0: bias"),
    ],
)
def test_errors_of_stitch(changed, message):
    with pytest.raises(ValueError, match=message):
        stitch(**{"members": MEMBERS, "masks": MASKS, "base": BASE, **changed})


def test_overlap():
    a = {"x": np.array([[True, True], [False, False]]), "y": np.array([True])}
    b = {"x": np.array([[True, False], [False, True]]), "y": np.array([True])}
    none = jax.tree.map(np.zeros_like, a)
    result = mask_overlap({"a": a, "b": to_jax(b), "none": none})
    assert result["percent"] == pytest.approx({"a": 60.0, "b": 60.0, "none": 0.0})
    assert result["jaccard"]["a"] == {"a": 1.0, "b": 0.5, "none": 0.0}
    assert result["jaccard"]["b"]["a"] == 0.5
    assert result["jaccard"]["none"]["none"] == 1.0
    assert mask_overlap([a])["percent"] == pytest.approx({"0": 60.0})
    assert mask_overlap(iter([a]))["percent"] == pytest.approx({"0": 60.0})
    with pytest.raises(ValueError, match="no members"):
        mask_overlap([])
    with pytest.raises(ValueError, match="1: y is missing"):
        mask_overlap([a, {"x": a["x"]}])
    with pytest.raises(ValueError, match="masks must be boolean; in the mask of member 0"):
        mask_overlap([VECTORS[0]])
