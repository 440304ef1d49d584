"""Compare BatchNorm statistics, and their re-estimation for soups, with NumPy float64 over all the data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from soups import models, tree

MODEL = models.ConvNet(num_classes=3, widths=(4, 6), depth=2)
SHAPE = (8, 8, 2)


@pytest.fixture(scope="module")
def params():
    start = models.init(MODEL, jax.random.key(0), SHAPE)
    return models.replace_head(start, jax.random.key(1), 3, zero=False)


@pytest.fixture
def images(rng):
    return rng.normal(1.0, 2.0, size=(10, *SHAPE)).astype(np.float32)


def first_statistics(params, images):
    """Return mean and biased variance of the first convolution's output over all images and places, in float64."""
    kernel = np.asarray(params["params"]["stage_0_0"]["conv"]["kernel"], np.float64)
    padded = np.pad(images.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    out = sum(padded[:, i : i + 8, j : j + 8] @ kernel[i, j] for i in range(3) for j in range(3))
    return {"mean": out.mean((0, 1, 2)), "var": out.var((0, 1, 2))}


def assert_close(actual, expected, **tolerances):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerances), actual, expected)


def test_network_with_state_has_params_and_batch_stats(params):
    assert set(params) == {"params", "batch_stats"}
    shapes = {name: leaf.shape for name, leaf in tree.flatten(params["batch_stats"]).items()}
    layers = {"stage_0_0": 4, "stage_0_1": 4, "stage_1_0": 6, "stage_1_1": 6}
    assert shapes == {f"{layer}/norm/{kind}": (n,) for layer, n in layers.items() for kind in ("mean", "var")}
    assert params["params"]["head"]["kernel"].shape == (6, 3)


def test_training_updates_running_statistics_by_the_momentum(params, images):
    logits, updated = models.train_apply_fn(MODEL)(params, images, jax.random.key(0))
    batch = first_statistics(params, images)
    running = updated["batch_stats"]["stage_0_0"]["norm"]
    assert logits.shape == (10, 3)
    np.testing.assert_allclose(running["mean"], 0.9 * 0 + 0.1 * batch["mean"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(running["var"], 0.9 * 1 + 0.1 * batch["var"], rtol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, updated["params"], params["params"])


def test_evaluation_uses_running_statistics_so_images_do_not_see_each_other(params, images):
    apply = models.apply_fn(MODEL)
    np.testing.assert_allclose(apply(params, images)[:2], apply(params, images[:2]), rtol=1e-4, atol=1e-5)
    train = models.train_apply_fn(MODEL)
    together, alone = (train(params, x, jax.random.key(0))[0] for x in (images, images[:2]))
    assert not np.allclose(together[:2], alone, atol=1e-3)


def test_stats_of_a_batch_are_its_means_and_biased_variances(params, images):
    stats = models.stats_fn(MODEL)(params, images)
    assert_close(stats["stage_0_0"]["norm"], first_statistics(params, images), rtol=1e-4, atol=1e-5)


def test_stats_do_not_depend_on_the_old_statistics(params, images):
    stats = models.stats_fn(MODEL)
    diverged = {**params, "batch_stats": jax.tree.map(lambda leaf: leaf * jnp.nan, params["batch_stats"])}
    assert_close(stats(diverged, images), stats(params, images), rtol=0)


def test_logits_with_stats_of_a_batch_equal_those_of_training(params, images):
    own = {**params, "batch_stats": models.stats_fn(MODEL)(params, images)}
    expected, _ = models.train_apply_fn(MODEL)(params, images, jax.random.key(0))
    np.testing.assert_allclose(models.apply_fn(MODEL)(own, images), expected, rtol=1e-4, atol=1e-4)


def test_reestimation_from_a_single_batch_is_exact(params, images):
    stats = models.stats_fn(MODEL)
    actual = models.reestimate_batch_stats(stats, params, [images])
    assert_close(actual["batch_stats"], jax.jit(stats)(params, images), rtol=0)
    assert tree.flatten(actual).keys() == tree.flatten(params).keys()


@pytest.mark.parametrize("cuts", [(5,), (3, 4), (1, 2, 9)])
def test_reestimation_over_unequal_batches_equals_one_pass_over_all_data(params, images, cuts):
    images = images + np.arange(10, dtype=np.float32)[:, None, None, None]  # so that the batches' means differ
    actual = models.reestimate_batch_stats(models.stats_fn(MODEL), params, iter(np.split(images, cuts)))
    assert_close(actual["batch_stats"]["stage_0_0"]["norm"], first_statistics(params, images), rtol=1e-4)


def test_reestimation_combines_every_layer_by_the_law_of_total_variance(params, images):
    stats = models.stats_fn(MODEL)
    parts = [stats(params, part) for part in np.split(images, [4])]
    actual = models.reestimate_batch_stats(stats, params, np.split(images, [4]))["batch_stats"]
    for layer in parts[0]:
        mean, var = (np.stack([np.asarray(p[layer]["norm"][k], np.float64) for p in parts]) for k in ("mean", "var"))
        share = np.array([[0.4], [0.6]])
        second_moment = (share * (var + mean**2)).sum(0)
        np.testing.assert_allclose(actual[layer]["norm"]["mean"], (share * mean).sum(0), rtol=1e-5, atol=1e-6)
        expected = second_moment - (share * mean).sum(0) ** 2
        np.testing.assert_allclose(actual[layer]["norm"]["var"], expected, rtol=1e-4)


def test_statistics_of_a_soup_are_not_the_average_but_those_of_a_fresh_pass(params, images, rng):
    def member():
        noisy = jax.tree.map(lambda x: x + jnp.asarray(rng.normal(0, 0.2, x.shape), x.dtype), params["params"])
        return models.reestimate_batch_stats(models.stats_fn(MODEL), {**params, "params": noisy}, [images])

    soup = tree.mean([member(), member()])
    fresh = models.reestimate_batch_stats(models.stats_fn(MODEL), soup, [images])
    first = first_statistics(soup, images)
    assert_close(fresh["batch_stats"]["stage_0_0"]["norm"], first, rtol=1e-4, atol=1e-5)
    assert np.abs(soup["batch_stats"]["stage_0_0"]["norm"]["var"] - first["var"]).max() > 0.01


def test_gradient_does_not_flow_into_statistics_in_training(params, images):
    def loss(params):
        logits, _ = models.train_apply_fn(MODEL)(params, images, jax.random.key(0))
        return jnp.sum(logits**2)

    gradient = jax.jit(jax.grad(loss))(params)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient["batch_stats"]))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient["params"]["head"]))


def test_bfloat16_network_is_close_and_measures_in_float32(params, images):
    narrow = models.ConvNet(num_classes=3, widths=(4, 6), depth=2, dtype=jnp.bfloat16)
    stats = models.stats_fn(narrow)(params, images)
    assert {leaf.dtype for leaf in jax.tree.leaves(stats)} == {jnp.dtype(jnp.float32)}
    expected = models.apply_fn(MODEL)(params, images)
    np.testing.assert_allclose(models.apply_fn(narrow)(params, images), expected, atol=0.1)


class Normed(nn.Module):
    """Normalise twice, with momenta of its layers alone, and drop out between."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Map [B, D] to [B, 3]."""
        x = nn.BatchNorm(not train, momentum=0.37, name="first")(x)
        x = nn.Dropout(0.5, deterministic=not train)(nn.Dense(4, name="dense")(x))
        return nn.Dense(3, name="head")(nn.BatchNorm(not train, name="second")(x))


class NnxNormed(nnx.Module):
    """The same network in NNX."""

    def __init__(self, rngs):
        self.first, self.second = nnx.BatchNorm(2, momentum=0.37, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
        self.dense, self.head = nnx.Linear(2, 4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        """Map [B, D] to [B, 3]."""
        return self.head(self.second(self.dropout(self.dense(self.first(x)))))


def plain_update(params, inputs):
    """Apply the same network written without a library, as Equinox or Haiku would, and return its new statistics."""
    x, new = inputs, {}
    for name, momentum in (("first", 0.37), ("second", 0.99)):
        layer = {"mean": x.mean(0), "var": x.var(0)}
        new[name] = jax.tree.map(
            lambda old, batch, m=momentum: m * old + (1 - m) * batch, params["batch_stats"][name], layer
        )
        x = (x - layer["mean"][None]) / jnp.sqrt(layer["var"] + 1e-5)[None]
        norm = params["params"][name]
        x = x * norm["scale"][None] + norm["bias"][None]
        if name == "first":
            x = x @ params["params"]["dense"]["kernel"] + params["params"]["dense"]["bias"][None]
    return {**params, "batch_stats": new}


def normed_weights(start):
    generator = np.random.default_rng(3)
    return tree.map_with_names(
        lambda name, leaf: jnp.asarray(np.abs(generator.normal(size=leaf.shape)) + 0.5, jnp.float32), start
    )


def statistics_in_float64(params, inputs):
    weights = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"])
    x, found = inputs.astype(np.float64), {}
    for name in ("first", "second"):
        found[name] = {"mean": x.mean(0), "var": x.var(0)}
        x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * weights[name]["scale"] + weights[name]["bias"]
        x = x @ weights["dense"]["kernel"] + weights["dense"]["bias"] if name == "first" else x
    return found


MEAN, STD = (0.4, 0.6), (0.2, 0.3)
LIBRARIES = {  # stats with the mean and std of the caller, and how close they come
    "linen": (lambda: models.stats_fn(Normed(), MEAN, STD), 1e-5),
    "nnx": (lambda: models.stats_fn(NnxNormed(nnx.Rngs(0)), MEAN, STD), 1e-5),
    "updates": (lambda: models.running_stats_fn(lambda params, x: plain_update(params, (x - shift()) / scale())), 3e-5),
}


def shift():
    return np.float32([MEAN])


def scale():
    return np.float32([STD])


@pytest.mark.parametrize("library", LIBRARIES)
def test_statistics_of_any_library_with_any_momentum_and_normalisation_are_those_of_numpy(library, rng):
    make, tolerance = LIBRARIES[library]
    params = normed_weights(Normed().init(jax.random.key(0), np.zeros((2, 2), np.float32)))
    inputs = rng.uniform(size=(50, 2)).astype(np.float32)
    expected = statistics_in_float64(params, (inputs - shift()) / scale())
    found = models.reestimate_batch_stats(make(), params, [inputs])
    assert_close(found["batch_stats"], expected, rtol=tolerance, atol=tolerance)
    assert found["params"] is params["params"]
    parts = models.reestimate_batch_stats(make(), params, np.split(inputs, [20]))["batch_stats"]["first"]
    assert_close(parts, expected["first"], rtol=tolerance, atol=tolerance)


class OwnStatistics(nn.Module):
    """Keep a statistic in a layer of one's own."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Map [B, D] to [B, D]."""
        mean = self.variable("batch_stats", "mean", jnp.zeros, (2,))
        if train:
            mean.value = 0.9 * mean.value + 0.1 * x.mean(0)
        return nn.BatchNorm(not train)(x - mean.value[None])


def test_statistics_that_are_not_a_batch_norms_are_named(rng):
    inputs = rng.normal(size=(5, 2)).astype(np.float32)
    params = OwnStatistics().init(jax.random.key(0), inputs)
    with pytest.raises(ValueError, match=r"not those of a BatchNorm of Flax.*:\nmean\nMeasure them with running_stats"):
        models.stats_fn(OwnStatistics())(params, inputs)
    _, weights = models.from_nnx(NnxUnused(nnx.Rngs(0)))
    with pytest.raises(ValueError, match="or it was not called:\nunused/mean\nunused/var\n"):
        models.stats_fn(NnxUnused(nnx.Rngs(0)))(weights, inputs)


class NnxUnused(NnxNormed):
    """Have a layer that is never called."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.unused = nnx.BatchNorm(2, rngs=rngs)


def test_network_without_batch_norm_is_an_error(images):
    vit = models.vit("mu/4", num_classes=3)
    with pytest.raises(ValueError, match="no 'batch_stats'"):
        models.stats_fn(vit)(models.init(vit, jax.random.key(0), SHAPE), images)
    with pytest.raises(ValueError, match="no 'batch_stats'"):
        models.reestimate_batch_stats(models.stats_fn(MODEL), {"head": {"kernel": images}}, [images])


def test_no_batches_is_an_error(params):
    with pytest.raises(ValueError, match="at least one"):
        models.reestimate_batch_stats(models.stats_fn(MODEL), params, [])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_batch_that_is_not_finite_is_named_before_it_spoils_the_statistics(params, images, value):
    spoilt = np.array(images)
    spoilt[0] = value
    mlp, flat = models.MLP(3, (4,)), spoilt.reshape(len(spoilt), -1)
    weights = models.init(mlp, jax.random.key(0), flat.shape[1:])
    calls = {
        "reestimate_batch_stats": lambda: models.reestimate_batch_stats(models.stats_fn(MODEL), params, [spoilt]),
        "activation_statistics": lambda: models.activation_statistics(mlp, weights, [flat]),
        "repair": lambda: models.repair(mlp, weights, [weights, weights], [flat]),
    }
    for call in calls.values():
        with pytest.raises(ValueError, match="batch 0 holds NaN or infinity"):
            call()


@pytest.mark.parametrize(
    ("stats", "message"),
    [
        (None, "stats must be a function stats.params, inputs., not a NoneType"),
        (lambda params: params, "stats is called as stats.params, inputs., but takes"),
        (
            lambda params, inputs: {"bn": {"mean": np.zeros(3), "var": np.ones(3)}},
            "must give new statistics for all of",
        ),
    ],
)
def test_what_gives_no_statistics_is_an_error(params, images, stats, message):
    with pytest.raises(ValueError, match=message):
        models.reestimate_batch_stats(stats, params, [images])
