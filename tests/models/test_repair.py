"""Check the statistics of repaired soups against the goals, in NumPy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from soups import models, tree
from soups.models.mlp import MLP
from soups.models.repair import activation_statistics, repair

MODEL = MLP(3, widths=(5, 6))
INPUTS = np.random.default_rng(7).normal(1.0, 2.0, size=(40, 4)).astype(np.float32)


class SmallConvNet(nn.Module):
    """Apply two convolutions with biases and a head."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Map [B, H, W, C] to [B, 2]."""
        x = nn.relu(nn.Conv(4, (3, 3), name="conv_0")(x))
        x = nn.relu(nn.Conv(5, (3, 3), strides=(2, 2), name="conv_1")(x))
        return nn.Dense(2, name="head")(x.mean((1, 2)))


class TwoCalls(nn.Module):
    """Call one layer twice."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Map [B, 4] to [B, 4]."""
        layer = nn.Dense(4, name="layer")
        return layer(layer(x))


class NoBias(nn.Module):
    """Apply a layer without bias."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Map [B, 4] to [B, 4]."""
        return nn.Dense(4, use_bias=False, name="layer")(x)


def mlp_weights(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    sizes = {"layer_0": (4, 5), "layer_1": (5, 6), "head": (6, 3)}
    return {
        name: {"kernel": rng.normal(size=shape).astype(dtype), "bias": rng.normal(size=shape[1]).astype(dtype)}
        for name, shape in sizes.items()
    }


@pytest.fixture
def members():
    return [mlp_weights(seed) for seed in range(2)]


def pre_activations(params, inputs=INPUTS):
    """Return the outputs of both hidden layers and of the head in float64."""
    x, outputs = inputs.astype(np.float64), {}
    for layer in ("layer_0", "layer_1", "head"):
        weights = {name: np.asarray(leaf, np.float64) for name, leaf in params[layer].items()}
        outputs[layer] = x @ weights["kernel"] + weights["bias"]
        x = np.maximum(outputs[layer], 0)
    return outputs


def goal(members, layer, kind, weights=(0.5, 0.5)):
    return sum(w * getattr(pre_activations(m)[layer], kind)(0) for m, w in zip(members, weights, strict=True))


@pytest.mark.parametrize("weights", [None, [0.75, 0.25]])
def test_statistics_of_the_repaired_soup_are_the_goals(members, weights):
    used = weights or [0.5, 0.5]
    soup = tree.weighted_sum(members, used)
    repaired = repair(MODEL, soup, members, [INPUTS], weights=weights)
    before, after = pre_activations(soup), pre_activations(repaired)
    for layer in ("layer_0", "layer_1"):
        for kind in ("mean", "std"):
            expected = goal(members, layer, kind, used)
            np.testing.assert_allclose(getattr(after[layer], kind)(0), expected, rtol=1e-3, atol=1e-3)
    # layer 0 is linear in the inputs, so its mean was right; its variance had fallen
    assert np.all(before["layer_0"].std(0) < goal(members, "layer_0", "std", used) - 0.01)
    jax.tree.map(np.testing.assert_array_equal, repaired["head"], soup["head"])


def test_statistics_are_pooled_over_batches(members):
    measured = activation_statistics(MODEL, members[0], [INPUTS[:10], INPUTS[10:15], INPUTS[15:]])
    assert list(measured) == ["head", "layer_0", "layer_1"]
    for layer, outputs in pre_activations(members[0]).items():
        np.testing.assert_allclose(measured[layer]["mean"], outputs.mean(0), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(measured[layer]["var"], outputs.var(0), rtol=1e-4)


def test_first_layer_is_exact_over_batches(members):
    soup = tree.mean(members)
    repaired = repair(MODEL, soup, members, [INPUTS[:10], INPUTS[10:]])
    outputs = pre_activations(repaired)["layer_0"]
    np.testing.assert_allclose(outputs.mean(0), goal(members, "layer_0", "mean"), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(outputs.std(0), goal(members, "layer_0", "std"), rtol=1e-3)


def test_identical_members_are_left_alone(members):
    repaired = repair(MODEL, members[0], {"a": members[0], "b": members[0]}, [INPUTS])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), repaired, members[0])


def test_layers_are_chosen_by_path(members):
    soup = tree.mean(members)
    repaired = repair(MODEL, soup, members, [INPUTS], layers="layer_1")
    jax.tree.map(np.testing.assert_array_equal, repaired["layer_0"], soup["layer_0"])
    outputs = pre_activations(repaired)["layer_1"]
    np.testing.assert_allclose(outputs.std(0), goal(members, "layer_1", "std"), rtol=1e-3)


def test_constant_units_are_only_shifted(members):
    soup = tree.mean(members)
    soup["layer_0"]["kernel"][:, 2] = 0
    repaired = repair(MODEL, soup, members, [INPUTS])
    assert tree.all_finite(repaired)
    outputs = pre_activations(repaired)["layer_0"][:, 2]
    np.testing.assert_allclose(outputs, goal(members, "layer_0", "mean")[2], rtol=1e-4, atol=1e-4)


def test_dtypes_stay():
    members = [mlp_weights(seed, jnp.bfloat16) for seed in range(2)]
    repaired = repair(MODEL, tree.mean(members), members, [INPUTS])
    assert {leaf.dtype for leaf in jax.tree.leaves(repaired)} == {np.dtype(jnp.bfloat16)}


def test_convolutions_are_repaired_by_channel():
    model, images = SmallConvNet(), np.random.default_rng(0).normal(size=(6, 4, 4, 2)).astype(np.float32)
    shapes = jax.eval_shape(lambda key: models.init(model, key, (4, 4, 2)), jax.random.key(0))
    rng = np.random.default_rng(1)
    members = [jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes) for _ in range(2)]
    repaired = repair(model, tree.mean(members), members, [images])
    a, b, after = (activation_statistics(model, params, [images]) for params in (*members, repaired))
    for layer in ("conv_0", "conv_1"):
        np.testing.assert_allclose(
            after[layer]["mean"], (a[layer]["mean"] + b[layer]["mean"]) / 2, rtol=1e-3, atol=1e-3
        )
        std = (np.sqrt(a[layer]["var"]) + np.sqrt(b[layer]["var"])) / 2
        np.testing.assert_allclose(np.sqrt(after[layer]["var"]), std, rtol=1e-3)
    padded = np.pad(images.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel, bias = (np.asarray(repaired["conv_0"][name], np.float64) for name in ("kernel", "bias"))
    outputs = sum(padded[:, i : i + 4, j : j + 4] @ kernel[i, j] for i in range(3) for j in range(3)) + bias
    np.testing.assert_allclose(after["conv_0"]["mean"], outputs.mean((0, 1, 2)), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(after["conv_0"]["var"], outputs.var((0, 1, 2)), rtol=1e-4)


def test_batch_norm_networks_have_their_statistics_estimated_again():
    model, images = models.ConvNet(2, widths=(3,)), np.random.default_rng(0).normal(size=(6, 4, 4, 2))
    images = images.astype(np.float32)
    shapes = jax.eval_shape(lambda key: models.init(model, key, (4, 4, 2)), jax.random.key(0))
    rng = np.random.default_rng(1)
    members = [jax.tree.map(lambda s: np.abs(rng.normal(size=s.shape)).astype(np.float32), shapes) for _ in range(2)]
    soup = tree.mean(members)
    repaired = repair(model, soup, members, [images])
    expected = models.reestimate_batch_stats(models.stats_fn(model), soup, [images])
    jax.tree.map(np.testing.assert_array_equal, repaired, expected)
    assert not np.allclose(repaired["batch_stats"]["stage_0_0"]["norm"]["mean"], 0, atol=1e-3)
    # what goes into the first BatchNorm is what its convolution gives
    found = activation_statistics(model, soup, [images], layers="stage_0_0/conv")["stage_0_0/conv"]
    for kind, value in expected["batch_stats"]["stage_0_0"]["norm"].items():
        np.testing.assert_allclose(found[kind], value, rtol=1e-4)


def test_what_does_not_fit_is_an_error(members):
    soup = tree.mean(members)
    with pytest.raises(ValueError, match="no members were given"):
        repair(MODEL, soup, [], [INPUTS])
    with pytest.raises(ValueError, match="no batches were given"):
        repair(MODEL, soup, members, [])
    with pytest.raises(ValueError, match="no batches were given"):
        activation_statistics(MODEL, soup, [])
    with pytest.raises(ValueError, match="give a list, not an iterator"):
        repair(MODEL, soup, members, iter([INPUTS]))
    with pytest.raises(ValueError, match="1: head/bias is missing"):
        repair(MODEL, soup, [members[0], {**members[1], "head": {"kernel": members[1]["head"]["kernel"]}}], [INPUTS])
    with pytest.raises(ValueError, match="NaN or infinity in member 1: head/bias"):
        bad = {**members[1], "head": {**members[1]["head"], "bias": np.full(3, np.nan, np.float32)}}
        repair(MODEL, soup, [members[0], bad], [INPUTS])
    with pytest.raises(ValueError, match="2 members need 2 values of weights, but 1 were given"):
        repair(MODEL, soup, members, [INPUTS], weights=[1.0])


def test_layers_that_do_not_fit_are_errors(members):
    soup = tree.mean(members)
    for function in (
        lambda: repair(MODEL, soup, members, [INPUTS], layers="layer_O"),
        lambda: activation_statistics(MODEL, soup, [INPUTS], layers="layer_O"),
    ):
        with pytest.raises(ValueError, match=r"'layer_O' match no Dense or Conv layer \(did you mean 'layer_[01]'"):
            function()
    once = {"layer": {"kernel": np.eye(4, dtype=np.float32), "bias": np.ones(4, np.float32)}}
    with pytest.raises(ValueError, match="layer layer is called more than once"):
        repair(TwoCalls(), once, [once], [INPUTS])
    without = {"layer": {"kernel": np.eye(4, dtype=np.float32)}}
    with pytest.raises(ValueError, match="no bias to take the shift: layer; make them"):
        repair(NoBias(), without, [without], [INPUTS])
