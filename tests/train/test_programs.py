"""Test that every way of running a sweep makes the same members."""

import functools
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

from soups.train import Classification, Training, fit
from soups.train.loop import prepared
from soups.train.programs import _begin, _of_all, _unmoved, in_programs

CLASSES, BATCH = 3, 8
# other numbers of steps, and every hyper-parameter; of the second group two of the four lanes of the mesh are filled up
MEMBERS = [
    {"learning_rate": 0.1, "epochs": 1, "seed": 1},
    {"learning_rate": 0.05, "epochs": 3, "seed": 2, "mixup": 0.4, "label_smoothing": 0.1},
    {"learning_rate": 0.1, "epochs": 2, "seed": 3, "augment_operations": 2, "augment_magnitude": 9.0},
    {"learning_rate": 0.05, "epochs": 0.5, "seed": 4, "weight_decay": 0.3, "warmup_fraction": 0.0},
    {"learning_rate": 0.05, "epochs": 2.5, "seed": 5, "augment_operations": 1, "augment_magnitude": 20.0, "mixup": 1.0},
    {"learning_rate": 0.05, "epochs": 0.5, "seed": 6, "weight_decay": 0.3, "warmup_fraction": 0.0},
]
NUM_STEPS = [3, 8, 5, 2, 7, 2]  # epochs · 20 / 8, rounded up


def network(params, images, key):
    """Apply two layers with dropout, so that the members also depend on the keys of their steps."""
    hidden = jnp.tanh(images.reshape(len(images), -1) @ params["hidden"]["kernel"])
    kept = jax.random.bernoulli(key, 0.9, hidden.shape).astype(jnp.float32)
    logits = (hidden * kept / 0.9) @ params["head"]["kernel"] + params["head"]["bias"][None]
    return logits, params


WAYS = ("sequential", "map", "vmap", "sharded over pool", "sharded over pool and data")


def descent(learning_rate, weight_decay=0.0, mask=None):
    """Make plain gradient descent, which no gradient next to zero makes take a whole step."""
    return optax.chain(optax.add_decayed_weights(weight_decay, mask), optax.sgd(learning_rate))


AVERAGED = {"ema_decay": 0.9, "swa_start": 0.5}
TRAINING = Training(loss=Classification(network, CLASSES), optimizer=descent, clip_norm=1.0, **AVERAGED)
# Programs may add up in other orders. Each of at most 8 steps at rates up to 0.1 adds up to 8 * 16 roundings of a
# gradient below 1, and what was added before grows by 1 + 0.1.
ROUNDING = 0.1 * 8 * 16 * 2.0**-24 * sum(1.1**step for step in range(8))


@pytest.fixture(scope="session")
def params():
    """Return start weights."""
    rng = np.random.default_rng(1)
    head = {"bias": np.zeros(CLASSES, np.float32), "kernel": rng.normal(size=(6, CLASSES)).astype(np.float32)}
    return {"head": head, "hidden": {"kernel": rng.normal(size=(16, 6)).astype(np.float32) / 4}}


@pytest.fixture(scope="session")
def data():
    """Return 20 images with labels."""
    rng = np.random.default_rng(2)
    images = rng.integers(0, 256, (20, 4, 4, 1), np.uint8)
    return {"image": images, "label": rng.integers(0, CLASSES, 20)}


@pytest.fixture(scope="session")
def made(params, data, mesh):
    """Return a function that runs the sweep in one of `WAYS`, each once."""
    pool_alone = jax.make_mesh((4,), ("pool",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    meshes = {"sharded over pool": pool_alone, "sharded over pool and data": mesh}

    @functools.cache
    def run(way, wanted=(0, 1, 2, 3, 4, 5), members_per_program=None, reached=lambda *seen: None):
        if way == "sequential":
            options = {"batch_size": BATCH}
            return {index: fit(TRAINING, params, data, hyperparameters=MEMBERS[index], **options) for index in wanted}
        options = {"mode": way.split()[0], "mesh": meshes.get(way), "members_per_program": members_per_program}
        return dict(programs(TRAINING, params, data, MEMBERS, wanted, reached=reached, **options))

    return run


def programs(training, params, data, members, wanted, *, reached=lambda name, steps, loss: None, **options):
    data, known = prepared(training, params, data, dict(enumerate(members)), BATCH)
    options = {"mode": "map", "mesh": None, "members_per_program": None} | options
    return in_programs(training, params, data, known, wanted, batch_size=BATCH, reached=reached, **options)


# --- Every mode makes the same members ---


@pytest.mark.parametrize("way", WAYS)
def test_a_member_has_its_own_number_of_steps(made, way):
    results = made(way)
    assert sorted(results) == list(range(len(MEMBERS)))
    assert [len(results[index]["losses"]) for index in range(len(MEMBERS))] == NUM_STEPS


@pytest.mark.parametrize("way", WAYS[1:])
def test_all_modes_make_the_same_members(made, way):
    for index, expected in made("sequential").items():
        chex.assert_trees_all_close(made(way)[index], expected, rtol=0, atol=ROUNDING)


def test_members_differ(made, params):
    weights = [result["params"]["head"]["kernel"] for result in made("map").values()]
    distances = [np.abs(a - b).max() for i, a in enumerate(weights) for b in [*weights[:i], params["head"]["kernel"]]]
    assert min(distances) > 1e-3


# --- What resuming stands on: what was left out changes no bit of the rest ---


@pytest.mark.parametrize("way", WAYS[1:])
def test_skipped_members_change_no_bit_of_the_others(made, way):
    whole, resumed = made(way), made(way, (1, 2, 4, 5))
    assert sorted(resumed) == [1, 2, 4, 5]
    for index, result in resumed.items():
        chex.assert_trees_all_equal(result, whole[index])


def test_programs_in_lockstep_are_not_run_where_none_of_their_members_is_wanted(made):
    whole, seen = made("vmap", members_per_program=4), []
    resumed = made("vmap", (4,), members_per_program=4, reached=lambda *told: seen.append(told))
    assert list(resumed) == [4] and {name for name, *_ in seen} == {4}
    chex.assert_trees_all_equal(resumed[4], whole[4])


# --- What a user sees meanwhile ---


@pytest.mark.parametrize("way", WAYS[1:])
def test_every_mode_says_how_far_each_member_is_and_its_loss(made, way):
    told = {index: {} for index in range(len(MEMBERS))}
    results = made(way, reached=lambda name, step, loss: told[name].__setitem__(step, loss))
    assert [list(steps) for steps in told.values()] == [list(range(1, count + 1)) for count in NUM_STEPS]
    for index, result in results.items():
        assert list(told[index].values()) == result["losses"].tolist()


def test_the_next_member_trains_while_the_last_one_is_kept(params, data):
    steps = []

    def watched(params, images, key):
        jax.debug.callback(lambda: steps.append(None))
        return network(params, images, key)

    training = Training(loss=Classification(chex.assert_max_traces(watched, n=1), CLASSES))
    made = programs(training, params, data, [{"epochs": 0.5, "seed": 0}, {"epochs": 0.5, "seed": 1}], range(2))
    next(made)
    deadline = time.monotonic() + 60
    while len(steps) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(steps) == 4


def test_weights_that_no_step_moves_are_there_once(params, data):
    rules = (("hidden/.*", 0.0), (".*", 1.0))
    training = Training(loss=Classification(network, CLASSES), optimizer=descent, learning_rate_rules=rules)
    chosen = {str(index): MEMBERS[index] for index in (0, 1)}
    arrays, members = prepared(training, params, data, chosen, BATCH)
    fixed = _unmoved(training, params, arrays, members, BATCH)
    assert fixed == {"head": {"bias": False, "kernel": False}, "hidden": {"kernel": True}}
    rows = jax.tree.map(
        lambda *x: np.stack(x), *[(training.numbers(one), np.zeros((8, BATCH), int)) for one in members.values()]
    )
    begin = _of_all("vmap", None, functools.partial(_begin, training, fixed))
    state, _ = jax.eval_shape(begin, params, (), rows)
    assert [leaf.shape for leaf in jax.tree.leaves(state["params"])] == [(2, CLASSES), (2, 6, CLASSES)]
    options = {"batch_size": BATCH, "mesh": None, "members_per_program": None, "reached": lambda *seen: None}
    found = dict(in_programs(training, params, arrays, members, list(members), mode="vmap", **options))
    for name, result in found.items():
        alone = fit(training, params, data, batch_size=BATCH, hyperparameters=chosen[name])
        chex.assert_trees_all_close(result["params"], jax.device_get(alone["params"]), atol=ROUNDING, rtol=0)
        np.testing.assert_array_equal(result["params"]["hidden"]["kernel"], params["hidden"]["kernel"])


def test_weights_that_a_loss_moves_by_itself_are_each_members_own(params, data):
    def moving(params, images, key):
        logits, _ = network(params, images, key)
        return logits, {**params, "hidden": {"kernel": params["hidden"]["kernel"] + 1.0}}

    rules = (("hidden/.*", 0.0), (".*", 1.0))
    training = Training(loss=Classification(moving, CLASSES), optimizer=descent, learning_rate_rules=rules)
    arrays, members = prepared(training, params, data, {"a": MEMBERS[0]}, BATCH)
    assert _unmoved(training, params, arrays, members, BATCH) is None
    assert _unmoved(TRAINING, params, arrays, members, BATCH) is None
