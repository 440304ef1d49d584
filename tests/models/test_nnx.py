"""Check that Flax NNX models work as pure functions of plain dicts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from soups import models, tree


class Layers(nnx.Module):
    """A list of layers, dropout and a head: integer keys and state of random numbers."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        """Map [B, 4] to logits [B, 3]."""
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.head(self.dropout(x))


class Normed(Layers):
    """The same with BatchNorm on its inputs."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x):
        """Map [B, 4] to logits [B, 3]."""
        return super().__call__(self.norm(x))


@pytest.fixture
def inputs(rng):
    return rng.normal(size=(5, 4)).astype(np.float32)


@pytest.fixture(params=[Layers, Normed])
def model(request):
    return request.param(nnx.Rngs(0))


def numpy_layers(params, x):
    for layer in ("0", "1"):
        x = np.maximum(x @ params["layers"][layer]["kernel"] + params["layers"][layer]["bias"], 0)
    return x @ params["head"]["kernel"] + params["head"]["bias"]


def test_params_are_a_plain_dict_with_string_keys():
    _, params = models.from_nnx(Layers(nnx.Rngs(0)))
    assert tree.names(params) == [
        "head/bias", "head/kernel", "layers/0/bias", "layers/0/kernel", "layers/1/bias", "layers/1/kernel",
    ]  # fmt: skip
    assert set(params["layers"]) == {"0", "1"} and type(params) is dict
    assert models.head_rule(params) == "head/.*"


def test_batch_norm_statistics_are_part_of_the_weights():
    _, params = models.from_nnx(Normed(nnx.Rngs(0)))
    assert tree.names(params["batch_stats"]) == ["norm/mean", "norm/var"]
    assert set(params["params"]) == {"layers", "norm", "head"}


def test_apply_is_the_model_in_evaluation_mode_under_jit_and_changes_nothing(inputs):
    model = Layers(nnx.Rngs(0))
    apply, params = models.from_nnx(model)
    expected = numpy_layers(jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params), inputs)
    np.testing.assert_allclose(apply(params, inputs), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.jit(apply)(params, inputs), expected, rtol=1e-5, atol=1e-6)
    assert not model.dropout.deterministic
    assert model.dropout.rngs.count[...] == 0


def test_apply_uses_the_statistics_it_is_given(inputs):
    apply, params = models.from_nnx(Normed(nnx.Rngs(0)))
    stats = {"norm": {"mean": jnp.full((4,), 2.0), "var": jnp.full((4,), 4.0)}}
    actual = jax.jit(apply)({**params, "batch_stats": stats}, inputs)
    expected = numpy_layers(jax.tree.map(np.asarray, params["params"]), (inputs - 2) / np.sqrt(4 + 1e-5))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_vmap_over_members_equals_one_by_one(model, inputs, rng):
    apply, params = models.from_nnx(model)
    members = [jax.tree.map(lambda x: x + jnp.asarray(rng.uniform(size=x.shape), x.dtype), params) for _ in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    together = jax.jit(jax.vmap(apply, in_axes=(0, None)))(stacked, inputs)
    expected = np.stack([apply(member, inputs) for member in members])
    np.testing.assert_allclose(together, expected, rtol=1e-5, atol=1e-5)


def test_grad_and_vmap_of_grad_have_the_structure_of_the_weights(model, inputs):
    apply, params = models.from_nnx(model)
    gradient = jax.grad(lambda params: jnp.sum(apply(params, inputs)))
    single = jax.jit(gradient)(params)
    tree.check_same_structure([params, single])
    trunk = single.get("params", single)
    np.testing.assert_allclose(trunk["head"]["bias"], np.full(3, 5.0), rtol=1e-6)  # Σ over 5 inputs
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params)
    pair = jax.jit(jax.vmap(gradient))(stacked)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-5, atol=1e-6), pair, single)


def test_training_drops_out_by_the_key_and_moves_the_statistics(inputs):
    model = Normed(nnx.Rngs(0))
    _, params = models.from_nnx(model)
    train_apply = jax.jit(models.nnx_train_apply_fn(model))
    logits, moved = train_apply(params, inputs, jax.random.key(1))
    tree.check_same_structure([params, moved])
    stats = moved["batch_stats"]["norm"]
    np.testing.assert_allclose(stats["mean"], 0.01 * inputs.mean(0), rtol=1e-5, atol=1e-7)  # 1 - momentum, from 0
    np.testing.assert_allclose(stats["var"], 0.99 + 0.01 * inputs.var(0), rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, moved["params"], params["params"])
    np.testing.assert_array_equal(logits, train_apply(params, inputs, jax.random.key(1))[0])
    assert np.abs(logits - train_apply(params, inputs, jax.random.key(2))[0]).max() > 1e-3
    assert model.dropout.rngs.count[...] == 0


def test_soup_goes_back_into_a_model(model, inputs):
    apply, params = models.from_nnx(model)
    soup = tree.mean([params, jax.tree.map(lambda leaf: leaf + 1, params)])
    cooked = models.into_nnx(model, soup)
    jax.tree.map(np.testing.assert_array_equal, models.from_nnx(cooked)[1], soup)
    jax.tree.map(np.testing.assert_array_equal, models.from_nnx(model)[1], params)
    cooked.eval()
    np.testing.assert_allclose(cooked(inputs), apply(soup, inputs), rtol=1e-6)


def test_copy_shares_no_state_with_the_model(inputs):
    model = Layers(nnx.Rngs(0))
    models.into_nnx(model, models.from_nnx(model)[1])(inputs)  # dropout draws, so the copy's counter moves
    assert model.dropout.rngs.count[...] == 0


def test_other_names_and_shapes_are_one_error_that_lists_them(inputs):
    model = Layers(nnx.Rngs(0))
    apply, params = models.from_nnx(model)
    wrong = {**params, "head": {"kernel": params["head"]["kernel"][:, :2], "bais": params["head"]["bias"]}}
    for call in (lambda: apply(wrong, inputs), lambda: models.into_nnx(model, wrong)):
        with pytest.raises(ValueError) as error:
            call()
        message = str(error.value)
        assert "head/bias is missing" in message
        assert "head/bais is extra (did you mean 'head/bias'?)" in message
        assert "head/kernel has shape (4, 2) instead of (4, 3)" in message


class Gate(nnx.Variable):
    """A kind of variable of one's own."""


class Gated(Normed):
    """The same with a gate, which is neither a parameter nor a statistic, and a cache."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.gate = nnx.List([Gate(jnp.full((3,), 0.5))])
        self.cached = nnx.Cache(jnp.ones(()))

    def __call__(self, x):
        """Map [B, 4] to logits [B, 3]."""
        return super().__call__(x) * self.gate[0][...][None]


def test_variables_of_ones_own_are_weights_as_well(inputs):
    model = Gated(nnx.Rngs(0))
    apply, params = models.from_nnx(model)
    assert set(params) == {"params", "batch_stats", "Gate"}
    assert tree.names(params["Gate"]) == ["gate/0"]
    doubled = {**params, "Gate": jax.tree.map(lambda leaf: 2 * leaf, params["Gate"])}
    np.testing.assert_allclose(apply(doubled, inputs), 2 * apply(params, inputs), rtol=1e-6)
    cooked = models.into_nnx(model, tree.mean([params, doubled]))
    np.testing.assert_array_equal(cooked.gate[0][...], np.full(3, 0.75))
    with pytest.raises(ValueError, match="Gate/gate/0 is missing"):
        models.into_nnx(model, {name: node for name, node in params.items() if name != "Gate"})
