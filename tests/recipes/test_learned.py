import json
import os

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
def test_members_kept_in_bfloat16_are_mixed_to_the_bit_as_if_they_were_float32(per):
    narrow = [jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), member) | {"n": np.int32([3])} for member in MEMBERS]
    wide = [member | {name: member[name].astype(np.float32) for name in "ab"} for member in narrow]
    expected = soups.learned(wide, loss, BATCHES, per=per)
    found = soups.learned(narrow, loss, BATCHES, per=per, dtype="float32")
    assert found.history == expected.history
    for name, leaf in expected.params.items():
        assert found.params[name].dtype == leaf.dtype
        np.testing.assert_array_equal(found.params[name], leaf)


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
    with pytest.raises(ValueError, match="unknown value of per 'layer'"):
        soups.learned(MEMBERS, loss, BATCHES, per="layer")
    with pytest.raises(ValueError, match="learning_rate must be above 0, not 0"):
        soups.learned(MEMBERS, loss, BATCHES, learning_rate=0)
    with pytest.raises(ValueError, match="no batches"):
        soups.learned(MEMBERS, loss, [])
    with pytest.raises(ValueError, match="the loss is nan at step 0"):
        soups.learned(MEMBERS, lambda p, b, t: jnp.nan * jnp.sum(p["b"]), BATCHES)


class Killed(Exception):
    pass


def dying(survived):
    """Yield as many batches, then die."""
    yield from BATCHES[:survived]
    raise Killed


@pytest.mark.parametrize("per", ["model", "leaf"])
@pytest.mark.parametrize("survived", [0, 1, 4, 6])
def test_goes_on_from_its_journal_with_the_same_bits(per, survived, tmp_path):
    whole, path, run = soups.learned(MEMBERS, loss, BATCHES, per=per), tmp_path / "new" / "learned.jsonl", []
    with pytest.raises(Killed):
        soups.learned(MEMBERS, loss, dying(survived), per=per, journal=path)

    def counted(params, batch, temperature):
        jax.debug.callback(lambda: run.append(1))
        return loss(params, batch, temperature)

    soup = soups.learned(MEMBERS, counted, BATCHES, per=per, journal=path)
    jax.effects_barrier()
    assert len(run) == len(BATCHES) - survived
    assert json.dumps(soup.record()) == json.dumps(whole.record())  # which has all losses and weights
    for name, leaf in whole.params.items():
        np.testing.assert_array_equal(soup.params[name], leaf)
    again = soups.learned(MEMBERS, counted, [*BATCHES, BATCHES[0]], per=per, journal=path)
    jax.effects_barrier()
    assert len(run) == len(BATCHES) - survived + 1  # one epoch more goes on as well
    assert again.history[:-1] == whole.history


def test_journal_of_another_soup_is_refused_and_stays(tmp_path):
    path = tmp_path / "learned.jsonl"
    soups.learned(MEMBERS, loss, BATCHES, journal=path)
    before = path.read_bytes()
    others = [dict(zip("abcd", MEMBERS, strict=True)), [{"a": m["a"], "b": m["b"], "c": m["b"]} for m in MEMBERS]]
    for members, settings, line in [
        (MEMBERS, {"per": "leaf"}, "  per: model there, leaf here"),
        (MEMBERS, {"learning_rate": 0.1}, "  learning_rate: 0.05 there, 0.1 here"),
        (MEMBERS, {"dtype": "float32"}, "  dtype: None there, float32 here"),
        (others[0], {}, "  members: ['0', '1', '2', '3'] there, ['a', 'b', 'c', 'd'] here"),
    ]:
        with pytest.raises(ValueError, match=r"learned\.jsonl was written by a different call") as error:
            soups.learned(members, loss, BATCHES, journal=path, **settings)
        assert str(error.value).splitlines()[1:-1] == [line]
    with pytest.raises(ValueError, match=r"a different call:\n  digests of 0: .*\n  digests of 1: "):
        soups.learned(others[1], loss, BATCHES, journal=path)
    with pytest.raises(ValueError, match="was written by a different call"):
        soups.greedy(MEMBERS, lambda params: 0.0, journal=path)
    with pytest.raises(ValueError, match="the journal has 6 steps, but only 5 batches were given"):
        soups.learned(MEMBERS, loss, BATCHES[:5], journal=path)
    with pytest.raises(ValueError, match="the 6 steps of the journal used other batches, or another order of them"):
        soups.learned(MEMBERS, loss, BATCHES[::-1], journal=path)
    assert path.read_bytes() == before


def test_journal_of_another_pool_with_the_same_names_is_refused(tmp_path):
    pools = [soups.Pool(tmp_path / name) for name in ("one", "other")]
    for sign, pool in zip((1, -1), pools, strict=True):
        for index, member in enumerate(MEMBERS):
            pool.add(f"m{index}", {name: sign * leaf for name, leaf in member.items()})
    soups.learned(pools[0], loss, BATCHES[:1], journal=tmp_path / "j")
    with pytest.raises(ValueError, match=r"a different call:\n  digests of m0: "):
        soups.learned(pools[1], loss, BATCHES[:1], journal=tmp_path / "j")


def test_a_full_disk_names_the_journal_and_keeps_its_steps(tmp_path, monkeypatch):
    path = tmp_path / "learned.jsonl"
    soups.learned(MEMBERS, loss, BATCHES[:2], journal=path)
    before = path.read_bytes()
    with open("/dev/full", "w") as full, monkeypatch.context() as patched:
        flushed = []  # first the journal as it was, then with one step more
        patched.setattr(os, "fsync", lambda _: os.write(full.fileno(), b"x") if flushed else flushed.append(1))
        with pytest.raises(OSError, match=r"cannot write .*learned\.jsonl: No space left on device"):
            soups.learned(MEMBERS, loss, BATCHES, journal=path)
    assert path.read_bytes() == before


def test_of_several_processes_the_first_one_writes(tmp_path, monkeypatch):
    path = tmp_path / "learned.jsonl"
    monkeypatch.setattr("soups.journal.is_first", lambda: False)
    soups.learned(MEMBERS, loss, BATCHES[:2], journal=path)
    assert path.read_text().count("\n") == 1  # as it was opened
    monkeypatch.undo()
    soups.learned(MEMBERS, loss, BATCHES[:2], journal=path)
    assert path.read_text().count("\n") == 2
