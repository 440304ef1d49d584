"""Test that any loss, any batch, any optimizer and any weights train."""

import dataclasses

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from soups import finetune, models, tree
from soups.train import Classification, Training, classification, fit, lp_ft, probe_on_features, step

STEPS, BATCH, RATE = 6, 4, 0.1
X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
Y = (X @ np.float32([1.0, -2.0, 0.5]) + 1.0).astype(np.float32)
START = {"w": np.zeros(3, np.float32), "b": np.zeros((), np.float32)}
WHOLE = {"batch_size": 8, "steps": STEPS}  # every batch is all of the data, in some order


def squares(params, batch, key):
    """Return the mean squared error of a line; the batch is a tuple."""
    x, y = batch
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


def descended(rates, wanted=("w", "b")):
    """Return what gradient descent makes of the line, in float64."""
    w, b = np.zeros(3), 0.0
    for rate in rates:
        residual = 2 * (X.astype(np.float64) @ w + b - Y) / len(Y)
        w = w - rate * ("w" in wanted) * X.T.astype(np.float64) @ residual
        b = b - rate * ("b" in wanted) * residual.sum()
    return {"w": w, "b": b}


def assert_close(actual, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), dict(actual), expected)


@pytest.fixture(scope="module", autouse=True)
def quick_programs():
    """Compile the steps quickly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "cpu_options", lambda statistics: {"xla_backend_optimization_level": 0})
        yield


# --- Data and loss ---


def test_any_loss_on_a_tuple_of_arrays():
    made = fit(squares, START, (X, Y), optimizer=optax.sgd(RATE), **WHOLE)
    assert_close(made["params"], descended([RATE] * STEPS))
    assert made["losses"].shape == (STEPS,) and made["averages"] == {}
    assert made["losses"][0] == pytest.approx(np.mean(Y**2), rel=1e-5)


def test_batches_are_taken_as_often_as_there_are_epochs():
    made = fit(squares, START, [(X, Y)], epochs=STEPS, optimizer=optax.sgd(RATE))
    assert_close(made["params"], descended([RATE] * STEPS))


def test_a_loss_takes_hyperparameters_and_moves_what_is_no_float():
    def loss(params, batch, key, *, scale=1.0):
        return scale * squares(params, batch, key), params | {"count": params["count"] + 1, "key": key}

    start = START | {"count": np.int32(0), "key": jax.random.key(1)}
    options = {"hyperparameters": {"scale": 0.5}, "ema_decay": 0.5, "swa_start": 0.0, "ema_decays": (0.9,)}
    made = fit(loss, start, (X, Y), optimizer=optax.sgd(RATE), accumulate=2, **options, **WHOLE)
    expected = descended([RATE / 2] * STEPS)
    assert_close({name: made["params"][name] for name in START}, expected)
    for name in ("ema", "swa"):
        assert made["averages"][name]["count"] == made["params"]["count"] == 2 * STEPS
    assert set(tree.names(made["averages"]["ema_0.9"])) == set(START)


# --- Optimizers ---


@pytest.mark.parametrize("optimizer", [optax.sgd, optax.inject_hyperparams(optax.sgd)])
def test_a_function_is_given_the_rate_of_each_step(optimizer):
    numbers = {"learning_rate": RATE, "warmup_fraction": 0.0}
    made = fit(squares, START, (X, Y), optimizer=optimizer, hyperparameters=numbers, **WHOLE)
    assert_close(made["params"], descended(RATE * (1 + np.cos(np.pi * np.arange(STEPS) / STEPS)) / 2))


def test_a_rate_of_another_name_is_not_scheduled():
    made = fit(squares, START, (X, Y), optimizer=lambda rate: optax.sgd(rate), hyperparameters={"rate": RATE}, **WHOLE)
    assert_close(made["params"], descended([RATE] * STEPS))


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adam(1e-1),
        optax.chain(optax.sgd(RATE), optax.contrib.reduce_on_plateau(patience=2)),
        optax.polyak_sgd(),
        optax.lbfgs(),
        optax.MultiSteps(optax.sgd(RATE), 2),
        optax.contrib.schedule_free_sgd(RATE),
        optax.multi_transform({"a": optax.sgd(RATE), "b": optax.adam(RATE)}, {"w": "a", "b": "b"}),
        lambda learning_rate: optax.rmsprop(learning_rate),
    ],
    ids=["adam", "plateau", "polyak", "lbfgs", "multi steps", "schedule free", "multi transform", "rmsprop"],
)
def test_optax_transformations_of_any_kind(optimizer):
    numbers = {} if not callable(optimizer) or isinstance(optimizer, tuple) else {"learning_rate": RATE}
    made = fit(squares, START, (X, Y), optimizer=optimizer, hyperparameters=numbers, batch_size=8, steps=30)
    assert made["losses"][-1] < 0.7 * made["losses"][0]


def test_free_hyperparameters_reach_the_optimizer():
    numbers, options = {"learning_rate": RATE, "weight_decay": 0.0}, {"optimizer": optax.adamw, **WHOLE}
    made = [
        fit(squares, START, (X, Y), hyperparameters=numbers | more, **options)["params"]["w"]
        for more in ({}, {"b1": 0.0})
    ]
    assert np.abs(made[0] - made[1]).max() > 1e-3


# --- Names and containers ---


@pytest.mark.parametrize("rules", [(("b", 0.0), (".*", 1.0)), (("w", 1.0), (".*", 0.0))])
def test_rules_freeze(rules):
    made = fit(squares, START, (X, Y), optimizer=optax.sgd(RATE), learning_rate_rules=rules, **WHOLE)
    assert_close(made["params"], descended([RATE] * STEPS, wanted=("w",)))


@pytest.mark.parametrize("name", ["kernel", "weight", "w"])
def test_weights_of_two_axes_decay_whatever_library_named_them(name):
    start = {"norm": {name: np.ones(2, np.float32)}, "dense": {name: np.ones((2, 2), np.float32)}}
    still = lambda params, batch, key: 0.0 * jnp.sum(params["dense"][name])  # noqa: E731
    numbers = {"learning_rate": RATE, "weight_decay": 0.5, "warmup_fraction": 0.0}
    made = fit(still, start, X, optimizer=optax.adamw, hyperparameters=numbers, batch_size=8, steps=1)
    np.testing.assert_allclose(made["params"]["dense"][name], 1 - RATE * 0.5, rtol=1e-6)
    np.testing.assert_array_equal(made["params"]["norm"][name], 1)


def test_rules_decide_over_collections_beside_params():
    def loss(params, batch, key):
        return squares({"w": params["params"]["w"] + params["lora"]["w"], "b": 0.0}, batch, key)

    start = {"params": {"w": START["w"]}, "lora": {"w": START["w"]}, "batch_stats": {"mean": np.float32(3)}}
    rules = (("lora/.*", 1.0), (".*", 0.0))
    made = fit(loss, start, (X, Y), optimizer=optax.sgd(RATE), learning_rate_rules=rules, **WHOLE)["params"]
    chex.assert_trees_all_equal(made | {"lora": None}, start | {"lora": None})
    assert np.abs(made["lora"]["w"]).max() > 0.1


class Line(nn.Module):
    """Map three numbers to one, in boxes that say over which axes they are cut."""

    @nn.compact
    def __call__(self, x):
        """Apply the line."""
        kernel = nn.with_partitioning(nn.initializers.zeros, ("data", None))
        return nn.Dense(1, kernel_init=kernel)(x)[:, 0]


WRAPS = [lambda tree: tree, flax.core.freeze, nn.unbox, lambda tree: flax.core.freeze(nn.unbox(tree))]


@pytest.mark.parametrize("wrap", WRAPS)
def test_boxed_and_frozen_variables(wrap):
    def loss(params, batch, key):
        value = jnp.mean((Line().apply(params, batch[0]) - batch[1]) ** 2)
        return value, jax.tree.map(lambda leaf: leaf, flax.core.unfreeze(params))

    start = wrap(Line().init(jax.random.key(0), X))
    rules = ((".*/bias", 0.0), ("params/.*/kernel", 1.0))
    options = {"optimizer": optax.sgd(RATE), "learning_rate_rules": rules, "ema_decay": 0.5}
    made = fit(loss, start, (X, Y), **options, **WHOLE)
    assert jax.tree.structure(made["params"]) == jax.tree.structure(start)
    kernel, bias = sorted(jax.tree.leaves(made["params"]), key=lambda leaf: -leaf.size)
    np.testing.assert_allclose(kernel[:, 0], descended([RATE] * STEPS, wanted=("w",))["w"], rtol=1e-5, atol=1e-6)
    assert bias == 0


def test_a_state_of_nnx_trains():
    graph, params, rest = nnx.split(nnx.Linear(3, 1, rngs=nnx.Rngs(0)), nnx.Param, ...)
    start = jax.tree.map(jnp.zeros_like, params)

    def loss(params, batch, key):
        return jnp.mean((nnx.merge(graph, params, rest)(batch[0])[:, 0] - batch[1]) ** 2)

    rules = (("bias", 0.0), ("kernel", 1.0))
    made = fit(loss, start, (X, Y), optimizer=optax.sgd(RATE), learning_rate_rules=rules, **WHOLE)
    assert type(made["params"]) is type(start)
    expected = descended([RATE] * STEPS, wanted=("w",))["w"]
    np.testing.assert_allclose(made["params"]["kernel"][...][:, 0], expected, rtol=1e-5, atol=1e-6)


class LinenNet(nn.Module):
    """BatchNorm, dropout and a head, in Linen."""

    @nn.compact
    def __call__(self, x, train):
        """Map [B, 3] to logits [B, 2]."""
        x = nn.Dropout(0.5, deterministic=not train)(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(2, name="head")(x)


class NnxNet(nnx.Module):
    """The same in NNX."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.norm, self.dropout = nnx.BatchNorm(3, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        """Map [B, 3] to logits [B, 2]."""
        return self.head(self.dropout(self.norm(x)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Module:
    """The head alone, as a pytree with methods, which is what Equinox's modules are."""

    kernel: jax.Array
    bias: jax.Array

    def __call__(self, x):
        """Map [B, 3] to logits [B, 2]."""
        return x @ self.kernel + self.bias[None]


def of_library(library):
    """Return start weights, and the network in training mode."""
    if library == "linen":
        return LinenNet().init(jax.random.key(0), X, False), models.train_apply_fn(LinenNet())
    if library == "nnx":
        return models.from_nnx(NnxNet())[1], models.nnx_train_apply_fn(NnxNet())
    return Module(np.zeros((3, 2), np.float32), np.zeros(2, np.float32)), lambda params, inputs, key: params(inputs)


@pytest.mark.parametrize("library", ["linen", "nnx", "pytrees with methods"])
def test_networks_of_all_libraries_train(library):
    start, train_apply = of_library(library)
    loss, data = Classification(train_apply, 2, preprocess=None), {"image": X, "label": (Y > 1).astype(int)}
    made = fit(loss, start, data, batch_size=8, steps=40, hyperparameters={"learning_rate": 0.1}, ema_decay=0.5)
    assert type(made["params"]) is type(start)
    assert made["losses"][-10:].mean() < 0.95 * made["losses"][:10].mean()
    if library != "pytrees with methods":  # 40 batches of all data move the running mean by 1 - 0.99 ** 40
        (mean,) = (leaf for name, leaf in tree.flatten(made["params"]["batch_stats"]).items() if "mean" in name)
        np.testing.assert_allclose(mean, (1 - 0.99**40) * X.mean(0), rtol=1e-3, atol=1e-5)


# --- Classification ---

IMAGES = np.random.default_rng(1).integers(0, 256, (12, 4, 4, 1), np.uint8)
PICTURES = {"image": IMAGES, "label": np.arange(12) % 3}


def classify(params, inputs, key):
    """Apply two layers."""
    hidden = inputs.reshape(len(inputs), -1) @ params["trunk"]["kernel"]
    return hidden @ params["head"]["kernel"] + params["head"]["bias"][None]


def two_layers():
    rng = np.random.default_rng(2)
    head = {"kernel": np.zeros((5, 3), np.float32), "bias": np.zeros(3, np.float32)}
    return {"trunk": {"kernel": rng.normal(size=(16, 5)).astype(np.float32)}, "head": head}


def test_augmentation_that_is_off_is_not_traced(monkeypatch):
    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(classification, "rand_augment", refuse)
    loss, options = Classification(classify, 3), {"batch_size": 6, "steps": 1}
    assert fit(loss, two_layers(), PICTURES, **options)["losses"].shape == (1,)
    with pytest.raises(AssertionError):
        fit(loss, two_layers(), PICTURES, hyperparameters={"augment_operations": 1}, **options)


def test_double_precision_gives_the_same_training():
    numbers = {"augment_operations": 2, "augment_magnitude": 9.0, "mixup": 0.3, "label_smoothing": 0.1, "seed": 3}
    averaged = {"ema_decay": 0.5, "swa_start": 0.3, "ema_decays": (0.9,)}
    training = Training(loss=Classification(classify, 3), clip_norm=1.0, accumulate=2, **averaged)
    options = {"hyperparameters": numbers, "batch_size": 6, "steps": 3}
    start, data = two_layers(), PICTURES | {"label": np.arange(12) // 7}
    start["head"]["kernel"] += start["trunk"]["kernel"][:5, :3]  # no gradient is zero but for rounding
    single = jax.device_get(fit(training, start, data, **options))
    with jax.enable_x64(True):
        double = jax.device_get(fit(training, start, data, **options))
    assert {leaf.dtype for leaf in jax.tree.leaves(double)} == {np.dtype(np.float32)}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), double, single)


def test_lp_ft_by_gradient_steps_trains_the_head_then_all():
    probe = {"learning_rate": 0.1, "epochs": 2}
    made = lp_ft(Classification(classify, 3), two_layers(), PICTURES, head="head", probe=probe, batch_size=6, steps=2)
    np.testing.assert_array_equal(made["probe"]["trunk"]["kernel"], two_layers()["trunk"]["kernel"])
    assert np.abs(made["probe"]["head"]["kernel"]).max() > 0.05
    assert np.abs(made["params"]["trunk"]["kernel"] - two_layers()["trunk"]["kernel"]).max() > 1e-4
    expected = fit(Classification(classify, 3), made["probe"], PICTURES, batch_size=6, steps=2)
    chex.assert_trees_all_equal(made["params"], expected["params"])


@pytest.mark.parametrize("inputs", ["bytes", "bytes, normalised", "floats"])
def test_lp_ft_on_features_begins_with_the_fitted_head(inputs):
    seen, data, preprocess = IMAGES / np.float32(255), PICTURES, classification.unit_range
    if inputs == "floats":
        data, preprocess = PICTURES | {"image": seen}, None
    elif inputs == "bytes, normalised":
        seen, preprocess = 2 * seen - 1, lambda images: 2 * classification.unit_range(images) - 1
    features = lambda params, inputs: inputs.reshape(len(inputs), -1) @ params["trunk"]["kernel"]  # noqa: E731
    options = {"probe": {"strengths": (1.0,)}, "features": features, "batch_size": 6, "steps": 1}
    made = lp_ft(Classification(classify, 3, preprocess), two_layers(), data, head="head", **options)
    expected = features(two_layers(), seen)
    head = probe_on_features(expected, PICTURES["label"], num_classes=3, strengths=(1.0,))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), made["probe"]["head"], head)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("finetune", "soups.train.fit"),
        ("finetune_resumable", r"soups.train.fit\(directory=...\)"),
        ("finetune_lanes", r"soups.train.sweep\(mesh=...\)"),
        ("run_sweep", "soups.train.sweep"),
        ("sweep", "soups.train.search"),
        ("Training", r"soups.train.Training\(loss=soups.train.Classification\(train_apply, num_classes\)\)"),
        ("averages", "soups.train.averages"),
    ],
)
def test_the_old_names_say_the_new_ones(old, new):
    with pytest.raises(ImportError, match=rf"^soups\.finetune\.{old} is now {new}$"):
        getattr(finetune, old)
