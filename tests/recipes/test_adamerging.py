import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from soups import tree
from soups.recipes.adamerging import _entropy_and_products, adamerge, adamerging

D, H, C, B = 3, 4, 3, 8
HEADS = [np.random.default_rng(seed).normal(size=(H, C)).astype(np.float32) for seed in (20, 21)]
BATCHES = [[np.random.default_rng(10 * k + i).normal(size=(B, D)).astype(np.float32) for i in range(3)] for k in (1, 2)]


def network(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {"kernel": rng.normal(size=(D, H)).astype(dtype), "bias": rng.normal(size=H).astype(dtype)}


BASE = network(0)
MEMBERS = [jax.tree.map(lambda a, b: a + np.float32(0.5) * b, BASE, network(seed)) for seed in (1, 2)]


def with_head(head):
    def apply(params, inputs):
        return jnp.tanh(inputs @ params["kernel"] + params["bias"][None]) @ head

    return apply


APPLY = list(map(with_head, HEADS))


def mixed_by_hand(coefficients):
    """Mix in float64; `coefficients` [leaves or 1, K], the leaves being bias and kernel."""
    rows = dict(zip(("bias", "kernel"), np.broadcast_to(coefficients, (2, 2)), strict=True))
    return {
        name: BASE[name] + sum(c * (m[name].astype(np.float64) - BASE[name]) for c, m in zip(row, MEMBERS, strict=True))
        for name, row in rows.items()
    }


def entropy(raw, step, clip=True):
    params, total = mixed_by_hand(np.clip(raw, 0, 1) if clip else raw), 0.0
    for task, head in enumerate(HEADS):
        x = BATCHES[task][step % 3].astype(np.float64)
        logits = np.tanh(x @ params["kernel"] + params["bias"]) @ head
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        total -= (p * np.log(p)).sum(1).mean()
    return total


def finite_difference(raw, step, clip, size=1e-6):
    grads = np.zeros_like(raw)
    for index in np.ndindex(raw.shape):
        plus, minus = raw.copy(), raw.copy()
        plus[index] += size
        minus[index] -= size
        grads[index] = (entropy(plus, step, clip) - entropy(minus, step, clip)) / (2 * size)
    return grads


def oracle(rows, steps, learning_rate, initial=0.3, clip=True):
    """Run Adam in float64 on finite differences of the entropy."""
    raw, m, v, history = np.full((rows, 2), initial), 0.0, 0.0, []
    for step in range(steps):
        history.append(entropy(raw, step, clip))
        grads = finite_difference(raw, step, clip)
        m, v = 0.9 * m + 0.1 * grads, 0.999 * v + 0.001 * grads**2
        m_hat, v_hat = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
        raw = raw - learning_rate * m_hat / (np.sqrt(v_hat) + 1e-8)
    return (np.clip(raw, 0, 1) if clip else raw), history


def run(function=adamerging, members=MEMBERS, **changed):
    return function(members, **{"base": BASE, "apply_fn": APPLY, "batches": BATCHES, **changed})


@pytest.mark.parametrize("per", ["member", "leaf"])
@pytest.mark.parametrize("place", [lambda t: t, lambda t: jax.tree.map(jnp.asarray, t)], ids=["host", "device"])
def test_equals_adam_on_finite_differences(per, place):
    soup = run(members=place(MEMBERS), base=place(BASE), per=per, steps=8, learning_rate=0.02)
    coefficients, history = oracle(1 if per == "member" else 2, 8, 0.02)
    np.testing.assert_allclose(soup.history, history, rtol=1e-5)
    assert abs(history[3] - history[0]) > 1e-2  # the first batches again: it moved
    np.testing.assert_allclose(list(soup.ingredients.values()), coefficients.mean(0), rtol=1e-4)
    for name, leaf in mixed_by_hand(coefficients).items():
        np.testing.assert_allclose(soup.params[name], leaf, rtol=1e-4, atol=1e-5)
    if per == "leaf":
        np.testing.assert_allclose([list(row.values()) for row in soup.leaf_weights.values()], coefficients, rtol=1e-4)
        assert list(soup.leaf_weights) == ["bias", "kernel"]
        assert np.ptp(coefficients) > 0.02  # each leaf has its own


def test_gradient_equals_finite_differences():
    coefficients = np.float32([[0.2, 0.5], [0.4, 0.1]])
    vectors = [tree.sub(member, BASE) for member in MEMBERS]
    value, products = _entropy_and_products(BASE, vectors, coefficients, APPLY, [iter(task) for task in BATCHES])
    expected = finite_difference(coefficients.astype(np.float64), 0, clip=False)
    assert value == pytest.approx(entropy(coefficients, 0), rel=1e-5)
    np.testing.assert_allclose(products, expected, rtol=1e-4, atol=1e-5)


def test_entropy_falls():
    soup = run(steps=60, learning_rate=0.02, per="leaf")
    assert (np.array(soup.history[-3:]) < np.array(soup.history[:3]) - 0.02).all()  # of the same three batches


@pytest.mark.parametrize("clip", [True, False])
def test_clip_keeps_coefficients_in_the_unit_interval(clip):
    soup = run(steps=12, learning_rate=0.1, clip=clip)
    coefficients, history = oracle(1, 12, 0.1, clip=clip)
    inside = (coefficients >= 0).all() and (coefficients <= 1).all()
    assert inside == clip  # without it they leave
    np.testing.assert_allclose(list(soup.ingredients.values()), coefficients[0], rtol=1e-3)
    np.testing.assert_allclose(soup.history, history, rtol=1e-4)


def test_gradient_is_zero_where_clip_has_cut():
    # entropy of logits (w + x, 0): the first batch pulls w up, the others down
    up, down = np.float32([[3.0]]), np.float32([[-3.0]])

    def apply(params, inputs):
        first = inputs + params["w"][None]
        return jnp.concatenate([first, jnp.zeros_like(first)], axis=1)

    arguments = {"base": {"w": np.float32([0])}, "apply_fn": apply, "batches": [[up] + [down] * 30], "steps": 30}
    cut = adamerging([{"w": np.float32([1])}], initial=0.95, learning_rate=0.1, **arguments)
    assert cut.ingredients["0"] == 1.0  # nothing pulls it back
    free = adamerging([{"w": np.float32([1])}], initial=0.95, learning_rate=0.1, clip=False, **arguments)
    assert free.ingredients["0"] < 0.95


def test_one_function_for_all_tasks_and_names():
    by_name = run(
        members={"x": MEMBERS[0], "y": MEMBERS[1]},
        apply_fn=APPLY[0],
        batches={"y": BATCHES[1], "x": BATCHES[0]},
        steps=2,
    )
    in_order = run(apply_fn=[APPLY[0]] * 2, steps=2)
    assert list(by_name.ingredients) == ["x", "y"]
    assert by_name.history == in_order.history


def test_record():
    soup = run(steps=2, learning_rate=0.01)
    settings = {"per": "member", "steps": 2, "learning_rate": 0.01, "initial": 0.3, "clip": True}
    assert soup.recipe == {"name": "adamerging", **settings}
    assert len(soup.history) == 2
    assert soup.leaf_weights is None


def test_task_vectors_that_were_changed_before():
    vectors = [tree.sub(member, BASE) for member in MEMBERS]
    same = run(adamerge, vectors, steps=3)
    assert same.history == run(steps=3).history
    assert same.recipe["name"] == "adamerge"
    trimmed = [{**vector, "bias": np.zeros_like(vector["bias"])} for vector in vectors]
    np.testing.assert_array_equal(run(adamerge, trimmed, steps=3).params["bias"], BASE["bias"])


def test_keeps_dtypes_and_copies_integers():
    narrow = [{**jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), m), "table": np.int32(3)} for m in MEMBERS]
    base = {**jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), BASE), "table": np.int32(3)}

    def apply(params, inputs):
        floats = {name: params[name].astype(jnp.float32) for name in BASE}
        return APPLY[0](floats, inputs)

    soup = run(members=narrow, base=base, apply_fn=apply, steps=2)
    assert jax.tree.map(lambda leaf: leaf.dtype, soup.params) == jax.tree.map(lambda leaf: leaf.dtype, base)
    assert soup.params["table"] == 3
    narrow[1]["table"] = np.int32(4)
    with pytest.raises(ValueError, match="these differ: table"):
        run(members=narrow, base=base, apply_fn=apply, steps=2)


def test_the_device_never_holds_the_task_vectors():
    members = [{"w": np.random.default_rng(k).normal(size=(300, 1000)).astype(np.float32)} for k in range(6)]
    base = {"w": np.zeros((300, 1000), np.float32)}
    size, peak = base["w"].nbytes, 0

    def apply(params, inputs):
        return inputs @ params["w"][:, :5]

    def watched():
        nonlocal peak
        peak = max(peak, sum(array.nbytes for array in jax.live_arrays() if array.nbytes >= size))
        yield np.ones((2, 300), np.float32)

    class Batches:
        def __iter__(self):
            return watched()

    adamerging(members, base=base, apply_fn=apply, batches=[Batches()] * 6, steps=2)
    assert 0 < peak <= 2 * size  # the gradients


@pytest.mark.parametrize("function", [adamerging, adamerge])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"members": []}, "no members were given"),
        ({"per": "leaves"}, "unknown value of per 'leaves'"),
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, not 0.0"),
        ({"initial": 1.5}, r"initial must be in \[0, 1\], not 1.5"),
        ({"initial": np.inf, "clip": False}, "initial must be a finite number, not inf"),
        ({"apply_fn": APPLY[:1]}, "2 members need 2 values of apply_fns, but 1 were given"),
        ({"batches": {"0": BATCHES[0]}}, "batches must be given by the names of the members:\n  - 1 is missing"),
        ({"batches": [BATCHES[0], []]}, "no batches for task 1"),
        ({"batches": [BATCHES[0], iter(BATCHES[1])]}, "no batches for task 1: .* an iterator that is exhausted"),
        ({"batches": [BATCHES[0], [BATCHES[1][0] * np.inf]]}, "the entropy is nan at step 0"),
        ({"members": [MEMBERS[0], {"kernel": MEMBERS[1]["kernel"]}]}, "1: bias is missing"),
        (
            {"members": [MEMBERS[0], {**MEMBERS[1], "bias": MEMBERS[1]["bias"] * np.nan}]},
            "  (member|task vector) 1: bias",
        ),
        ({"base": {**BASE, "bias": BASE["bias"] * np.nan}}, "  base: bias"),
        (
            {"apply_fn": lambda params, inputs: inputs @ params["kernel"][:, 0]},
            r"logits \[B, C\], but it gave float32\[8\]",
        ),
    ],
)
def test_errors(function, changed, message):
    with pytest.raises(ValueError, match=message), np.errstate(invalid="ignore"):
        run(function, **changed)
