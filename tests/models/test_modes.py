"""A network is in the mode it should be in, whatever its flag is called, or is refused in words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from soups import models
from soups.models.functional import IN_TRAINING

SHAPE = (2, 2, 1)
IMAGES = np.random.default_rng(0).normal(2.0, 3.0, (6, *SHAPE)).astype(np.float32)
MEAN, VARIANCE = IMAGES.reshape(6, -1).mean(0), IMAGES.reshape(6, -1).var(0)


def _layers(x, train):
    x = nn.BatchNorm(name="norm", momentum=0.5)(x.reshape(len(x), -1), use_running_average=not train)
    return nn.Dropout(0.5)(x, deterministic=not train)


def _linen(flag, *, field=False):
    """Make a network with a flag of this name, a keyword or a field, whose default is the other mode."""
    if field:

        def call(self, x):
            return _layers(x, train=getattr(self, flag) == IN_TRAINING[flag])

        return type("Net", (nn.Module,), {"__annotations__": {flag: bool}, "__call__": nn.compact(call)})(True)
    scope = {"nn": nn, "layers": _layers, "told": IN_TRAINING[flag]}
    exec(f"def call(self, x, *, {flag}): return layers(x, train={flag} == told)", scope)
    return type("Net", (nn.Module,), {"__call__": nn.compact(scope["call"])})()


class _Nnx(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(4, momentum=0.5, use_running_average=None, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, deterministic=None, rngs=rngs)

    def layers(self, x, train):
        """Map [B, 2, 2, 1] to [B, 4]."""
        return self.dropout(self.norm(x.reshape(len(x), -1), use_running_average=not train), deterministic=not train)


def _nnx(flag, *, field=False):
    scope = {"told": IN_TRAINING[flag]}
    if field:
        exec(f"def call(self, x): return self.layers(x, train=self.{flag} == told)", scope)
    else:
        exec(f"def call(self, x, *, {flag}): return self.layers(x, train={flag} == told)", scope)
    model = type("Net", (_Nnx,), {"__call__": scope["call"]})(nnx.Rngs(0))
    if field:
        setattr(model, flag, True)
    return model


def _of_linen(model):
    params = models.init(model, jax.random.key(0), SHAPE)
    return params, models.apply_fn(model), models.train_apply_fn(model), models.stats_fn(model)


def _of_nnx(model):
    apply, params = models.from_nnx(model)
    return params, apply, models.nnx_train_apply_fn(model), models.stats_fn(model)


CASES = [(_of_linen, _linen, flag, field) for flag in IN_TRAINING for field in (False, True)]
CASES += [(_of_nnx, _nnx, flag, False) for flag in IN_TRAINING]
CASES += [(_of_nnx, _nnx, flag, True) for flag in IN_TRAINING if flag != "train"]  # a method of every NNX module


@pytest.mark.parametrize(("taken", "made", "flag", "field"), CASES)
def test_a_flag_of_any_known_name_sets_the_mode(taken, made, flag, field):
    params, apply, train_apply, stats = taken(made(flag, field=field))
    flat = IMAGES.reshape(6, -1)
    np.testing.assert_allclose(apply(params, IMAGES), flat / np.sqrt(1 + 1e-5), rtol=1e-6)
    logits, moved = train_apply(params, IMAGES, jax.random.key(0))
    dropped = np.asarray(logits) == 0
    assert 0 < dropped.sum() < dropped.size
    expected = 2 * (flat - MEAN) / np.sqrt(VARIANCE + 1e-5)
    np.testing.assert_allclose(logits, np.where(dropped, 0, expected), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(moved["batch_stats"]["norm"]["mean"], MEAN / 2, rtol=1e-5)
    measured = stats(params, IMAGES)["norm"]
    np.testing.assert_allclose(measured["mean"], MEAN, rtol=1e-5)
    np.testing.assert_allclose(measured["var"], VARIANCE, rtol=1e-5)


class _Dropped(nn.Module):
    """A flag of a name that nobody knows; its default is evaluation."""

    layer: str = "dropout"

    @nn.compact
    def __call__(self, x, noisy: bool = False):
        """Map [B, 2, 2, 1] to [B, 4]."""
        x = nn.Dense(4)(x.reshape(len(x), -1))
        if self.layer == "norm":
            return nn.BatchNorm(use_running_average=not noisy)(x)
        if self.layer == "attention":
            return nn.MultiHeadDotProductAttention(2, dropout_rate=0.1)(x, deterministic=not noisy)
        return nn.Dropout(0.0 if self.layer == "idle" else 0.5)(x, not noisy)


@pytest.mark.parametrize(("layer", "named"), [("dropout", "Dropout_0"), ("norm", "BatchNorm_0"), ("attention", "Mult")])
def test_training_in_evaluation_mode_is_refused(layer, named):
    model = _Dropped(layer)
    params = models.init(model, jax.random.key(0), SHAPE)
    with pytest.raises(ValueError, match=rf"in training {named}.* stay in evaluation mode: .*deterministic"):
        models.train_apply_fn(model)(params, IMAGES, jax.random.key(0))


def test_dropout_that_drops_nothing_needs_no_mode():
    model = _Dropped("idle")
    params = models.init(model, jax.random.key(0), SHAPE)
    models.train_apply_fn(model)(params, IMAGES, jax.random.key(0))


@pytest.mark.parametrize("noisy", [False, True])
def test_an_nnx_network_in_the_other_mode_is_refused(noisy):
    call = {"__call__": lambda self, x: self.layers(x, train=noisy)}
    model = type("Net", (_Nnx,), call)(nnx.Rngs(0))
    apply, params = models.from_nnx(model)
    if noisy:
        with pytest.raises(ValueError, match="in evaluation Dropout and BatchNorm would stay in training mode"):
            apply(params, IMAGES)
    else:
        with pytest.raises(ValueError, match="in training Dropout and BatchNorm would stay in evaluation mode"):
            models.nnx_train_apply_fn(model)(params, IMAGES, jax.random.key(0))


def test_grams_and_activations_are_those_of_evaluation():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, deterministic):
            return nn.Dense(3, name="dense")(nn.Dropout(0.9)(x.reshape(len(x), -1), deterministic))

    params, flat = models.init(Net(), jax.random.key(0), SHAPE), IMAGES.reshape(6, -1)
    grams = models.linear_inputs_gram(Net(), params, [jnp.asarray(IMAGES)])
    np.testing.assert_allclose(grams["dense/kernel"], flat.T @ flat / 6, rtol=1e-5)
    found = models.activation_statistics(Net(), params, [IMAGES])["dense"]["mean"]
    np.testing.assert_allclose(found, (flat @ params["dense"]["kernel"]).mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("made", "flag"), [(_linen, "deterministic"), (_nnx, "train")])
def test_a_network_of_a_module_trains_in_its_mode(made, flag):
    network = models.Network.of(made(flag))
    params = network.init(jax.random.key(0), SHAPE)
    network.check(SHAPE, 4)
    logits, moved = network.trained(params, IMAGES, jax.random.key(0))
    assert 0 < (np.asarray(logits) == 0).sum() < logits.size
    np.testing.assert_allclose(moved["batch_stats"]["norm"]["mean"], MEAN / 2, rtol=1e-5)
    assert (np.asarray(network.apply(params, IMAGES)) != 0).all()
    alone = models.Network(init=network.init, apply=network.apply)
    with pytest.raises(ValueError, match="the weights have 'batch_stats', so the network needs a train_apply"):
        alone.check(SHAPE, 4)
