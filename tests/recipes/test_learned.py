import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import soups
from soups import tree
from soups.recipes.learned import _float_gradient

RNG = np.random.default_rng(2)
K, D, C, B = 4, 5, 3, 16
MEMBERS = [
    {"a": RNG.normal(size=(D, C)).astype(np.float32), "b": RNG.normal(size=C).astype(np.float32)} for _ in range(K)
]
BATCHES = [
    {"x": RNG.normal(size=(B, D)).astype(np.float32), "y": RNG.integers(0, C, B).astype(np.int32)} for _ in range(6)
]


def loss(params, batch, temperature):
    logits = temperature * (batch["x"] @ params["a"] + params["b"][None])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()


def oracle(per):
    """Differentiate through the mixing itself, with all members stacked: what the published code does."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *MEMBERS)
    raw = {"a": jnp.ones(K), "b": jnp.ones(K)} if per == "leaf" else jnp.ones(K)

    def mixed(raw):
        rows = raw if per == "leaf" else {"a": raw, "b": raw}
        return {name: jnp.tensordot(jax.nn.softmax(rows[name]), stacked[name], 1) for name in stacked}

    variables, optimizer = {"raw": raw, "beta": jnp.float32(1.0)}, optax.adamw(0.05, weight_decay=0.0)
    state, history = optimizer.init(variables), []
    for batch in BATCHES:
        value, grads = jax.value_and_grad(lambda v, b=batch: loss(mixed(v["raw"]), b, v["beta"]))(variables)
        updates, state = optimizer.update(grads, state, variables)
        variables = optax.apply_updates(variables, updates)
        history.append(float(value))
    return mixed(variables["raw"]), float(variables["beta"]), history


@pytest.mark.parametrize("per", ["model", "leaf"])
@pytest.mark.parametrize("place", [lambda t: t, lambda t: jax.tree.map(jnp.asarray, t)], ids=["host", "device"])
def test_equals_differentiating_through_the_mixture(per, place):
    with jax.numpy_dtype_promotion("standard"):  # optax itself does not run under strict promotion
        params, beta, history = oracle(per)
    soup = soups.learned([place(m) for m in MEMBERS], loss, BATCHES, per=per)
    np.testing.assert_allclose(soup.history, history, rtol=1e-5)
    assert history[-1] != pytest.approx(history[0], rel=1e-3)  # it moved
    np.testing.assert_allclose(soup.temperature, beta, rtol=1e-5)
    for name in params:
        np.testing.assert_allclose(soup.params[name], params[name], rtol=1e-4, atol=1e-5)


def test_weights_are_a_distribution_per_leaf():
    soup = soups.learned(MEMBERS, loss, BATCHES, per="leaf")
    assert set(soup.leaf_weights) == {"a", "b"}
    for weights in soup.leaf_weights.values():
        assert sum(weights.values()) == pytest.approx(1.0, abs=1e-6)
        assert min(weights.values()) > 0
    assert sum(soup.ingredients.values()) == pytest.approx(1.0, abs=1e-6)


def test_the_device_never_holds_the_members():
    members = [{"w": RNG.normal(size=(300, 1000)).astype(np.float32)} for _ in range(12)]
    member_bytes, peak = members[0]["w"].nbytes, 0

    def watched_batches():
        nonlocal peak
        for _ in range(3):
            yield np.float32(0.1)
            peak = max(peak, sum(array.nbytes for array in jax.live_arrays() if array.nbytes >= member_bytes))

    soups.learned(members, lambda p, b, t: t * jnp.mean((p["w"] - b) ** 2), watched_batches())
    assert peak <= 2 * member_bytes  # the mixed weights and their gradient


@pytest.mark.parametrize("per", ["model", "leaf"])
def test_72_members_need_less_than_three_models_on_the_device(per):
    members = [{name: RNG.normal(scale=0.05, size=(256, 256)).astype(np.float32) for name in "abcd"} for _ in range(72)]
    batches = [np.float32(RNG.normal(size=(2, 256))) for _ in range(3)]
    one_model, held = tree.count(members[0]) * 4, []

    def network_loss(params, batch, temperature):
        # while a step runs: its arguments, and what is left of the steps before
        jax.debug.callback(lambda: held.append(sum(array.nbytes for array in jax.live_arrays())))
        for layer in "abcd":
            batch = jnp.tanh(batch @ params[layer])
        return jnp.mean((temperature * batch - 1) ** 2)

    before = sum(array.nbytes for array in jax.live_arrays())
    soups.learned(members, network_loss, batches, per=per)
    jax.effects_barrier()
    program = jax.jit(_float_gradient(network_loss)).lower(members[0], batches[0], np.float32(1)).compile()
    memory = program.memory_analysis()
    results = memory.output_size_in_bytes + memory.temp_size_in_bytes
    assert len(held) == 3
    assert min(held) - before >= one_model  # the weights
    assert results >= one_model  # their gradient
    assert max(held) - before + results < 3 * one_model


def test_integer_leaves_are_carried_along():
    members = [m | {"steps": np.int32([3])} for m in MEMBERS]
    assert soups.learned(members, loss, BATCHES).params["steps"][0] == 3


def test_wrong_use_is_explained():
    with pytest.raises(ValueError, match="'model' or 'leaf', not 'layer'"):
        soups.learned(MEMBERS, loss, BATCHES, per="layer")
    with pytest.raises(ValueError, match="no batches"):
        soups.learned(MEMBERS, loss, [])
    with pytest.raises(ValueError, match="the loss is nan at step 0"):
        soups.learned(MEMBERS, lambda p, b, t: jnp.nan * jnp.sum(p["b"]), BATCHES)
