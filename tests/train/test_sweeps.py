"""Test that a sweep is data, and that every way of running it makes the same members."""

import collections
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from soups.train import Classification, Training, run_sweep, search

CLASSES, BATCH = 3, 8
# other numbers of steps, and every hyper-parameter; four lanes of the mesh take 8 members, so that two are filled up
MEMBERS = [
    {"learning_rate": 3e-2, "epochs": 1, "seed": 1},
    {"learning_rate": 1e-2, "epochs": 3, "seed": 2, "mixup": 0.4, "label_smoothing": 0.1},
    {"learning_rate": 2e-2, "epochs": 2, "seed": 3, "augment_operations": 2, "augment_magnitude": 9.0},
    {"learning_rate": 1e-2, "epochs": 0.5, "seed": 4, "weight_decay": 0.3, "warmup_fraction": 0.0},
    {"learning_rate": 1e-2, "epochs": 2.5, "seed": 5, "augment_operations": 1, "augment_magnitude": 20.0, "mixup": 1.0},
    {"learning_rate": 1e-2, "epochs": 0.5, "seed": 6, "weight_decay": 0.3, "warmup_fraction": 0.0},
]
NUM_STEPS = [3, 8, 5, 2, 7, 2]  # epochs · 20 / 8, rounded up


def network(params, images, key):
    """Apply two layers with dropout, so that the members also depend on the keys of their steps."""
    hidden = jnp.tanh(images.reshape(len(images), -1) @ params["hidden"]["kernel"])
    kept = jax.random.bernoulli(key, 0.9, hidden.shape).astype(jnp.float32)
    logits = (hidden * kept / 0.9) @ params["head"]["kernel"] + params["head"]["bias"][None]
    return logits, params


WAYS = ("sequential", "map", "vmap", "sharded over pool", "sharded over pool and data")
TRAINING = Training(loss=Classification(network, CLASSES), clip_norm=1.0, ema_decay=0.9, swa_start=0.5)


@pytest.fixture(scope="session")
def params():
    """Give start weights."""
    rng = np.random.default_rng(1)
    head = {"bias": np.zeros(CLASSES, np.float32), "kernel": rng.normal(size=(6, CLASSES)).astype(np.float32)}
    return {"head": head, "hidden": {"kernel": rng.normal(size=(16, 6)).astype(np.float32) / 4}}


@pytest.fixture(scope="session")
def data():
    """Give 20 images with labels."""
    rng = np.random.default_rng(2)
    images = rng.integers(0, 256, (20, 4, 4, 1), np.uint8)
    return {"image": images, "label": rng.integers(0, CLASSES, 20)}


@pytest.fixture(scope="session")
def made(params, data, mesh):
    """Give a function that runs the sweep in one of `WAYS`, each once."""
    pool_alone = jax.make_mesh((4,), ("pool",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    meshes = {"sharded over pool": pool_alone, "sharded over pool and data": mesh}

    @functools.cache
    def run(way, members_per_program=None, skip=()):
        options = {"mode": way.split()[0], "mesh": meshes.get(way), "members_per_program": members_per_program}
        return dict(run_sweep(TRAINING, params, data, MEMBERS, batch_size=BATCH, skip=skip, **options))

    return run


# --- A sweep is data ---


def test_grid_and_zipped():
    assert search.grid(a=[1, 2], b="xy") == [
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y"},
        {"a": 2, "b": "x"},
        {"a": 2, "b": "y"},
    ]
    assert search.zipped(a=[1, 2], b="xy") == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    with pytest.raises(ValueError, match=r"differ in number: \{'a': 2, 'b': 3\}"):
        search.zipped(a=[1, 2], b="xyz")


def test_a_random_member_depends_on_its_index_and_the_seed_alone():
    drawn = functools.partial(
        search.random, learning_rate=search.log_uniform(1e-4, 1e-1), epochs=search.integers(4, 16)
    )
    assert drawn(20, 0)[:5] == drawn(5, 0)
    assert drawn(5, 1) != drawn(5, 0)
    assert len({member["learning_rate"] for member in drawn(20, 0)}) == 20


def test_distributions():
    members = search.random(
        1000,
        0,
        learning_rate=search.log_uniform(1e-4, 1e-2),
        smoothing=search.uniform(0.5, 1.0),
        epochs=search.integers(4, 7),
        mixup=search.zero_or(0.25, search.uniform(0.5, 1.0)),
    )
    drawn = {name: np.array([member[name] for member in members]) for name in members[0]}
    logarithms = np.log10(drawn["learning_rate"])
    assert logarithms.min() >= -4 and logarithms.max() <= -2
    assert abs(logarithms.mean() + 3) < 5 * (2 / np.sqrt(12)) / np.sqrt(1000)
    assert 0.5 <= drawn["smoothing"].min() < drawn["smoothing"].max() < 1.0
    counts = collections.Counter(drawn["epochs"].tolist())
    assert set(counts) == {4, 5, 6, 7}
    assert min(counts.values()) > 250 - 5 * np.sqrt(250)
    assert abs((drawn["mixup"] == 0).mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 1000)


# --- Every mode makes the same members ---


@pytest.mark.parametrize("way", WAYS)
def test_a_member_has_its_own_number_of_steps(made, way):
    results = made(way)
    assert sorted(results) == list(range(len(MEMBERS)))
    assert [len(results[index]["losses"]) for index in range(len(MEMBERS))] == NUM_STEPS


@pytest.mark.parametrize("way", WAYS[1:])
def test_all_modes_make_the_same_members(made, way):
    # Float32 rounding remains, as sums are fused and split otherwise: 3e-7 at most was seen here, and none for "map".
    for index, expected in made("sequential").items():
        chex.assert_trees_all_close(made(way)[index], expected, rtol=1e-5, atol=1e-6)


def test_members_differ(made, params):
    weights = [result["params"]["head"]["kernel"] for result in made("map").values()]
    distances = [np.abs(a - b).max() for i, a in enumerate(weights) for b in [*weights[:i], params["head"]["kernel"]]]
    assert min(distances) > 1e-3


# --- What resuming stands on: what was left out changes no bit of the rest ---


@pytest.mark.parametrize("way", WAYS)
def test_skipped_members_change_no_bit_of_the_others(made, way):
    whole, resumed = made(way), made(way, skip=(0, 3))
    assert sorted(resumed) == [1, 2, 4, 5]
    for index, result in resumed.items():
        chex.assert_trees_all_equal(result, whole[index])


def test_programs_of_fewer_members_change_no_bit(made):
    chunked = made("map", members_per_program=4)
    for index, result in made("map").items():
        chex.assert_trees_all_equal(chunked[index], result)
    resumed = made("map", members_per_program=4, skip=(0, 1, 2, 3, 5))  # the first program is not even run
    assert list(resumed) == [4]
    chex.assert_trees_all_equal(resumed[4], chunked[4])


def test_programs_share_one_compilation(params, data):
    training = Training(loss=Classification(chex.assert_max_traces(network, n=1), CLASSES))
    members = [{"epochs": epochs} for epochs in (0.5, 1, 2)]
    assert len(dict(run_sweep(training, params, data, members, batch_size=BATCH, members_per_program=1))) == 3


# --- Bad input ---


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mode": "pmap"}, "mode must be one of sequential, map, vmap, sharded, not 'pmap'"),
        ({"mode": "sharded"}, 'needs a mesh with an axis "pool", not None'),
        ({"members": []}, "at least one member"),
        (
            {"members": [{}, {"learning_rat": 1.0}]},
            "unknown hyper-parameter 'learning_rat' .did you mean 'learning_rate'",
        ),
        ({"members": [{"seed": -1}]}, "seed must be a whole number from 0"),
        ({"members": [{}, {"sam_radius": 0.1}]}, r"sam=False. does not fit sam_radius=0.1"),
        ({"batch_size": 21}, "between 1 and 20 examples .all there are., not 21"),
    ],
)
def test_bad_input_is_an_error_before_any_work(params, data, changed, message):
    arguments = {"members": MEMBERS, "batch_size": BATCH} | changed
    with pytest.raises(ValueError, match=message):
        run_sweep(TRAINING, params, data, **arguments)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image": np.zeros((19, 4, 4, 1), np.uint8)}, "differ in number: {'image': 19, 'label': 20}"),
        ({"label": np.full(20, 3)}, "labels must be 0 to 2, but they go from 3 to 3"),
        ({"label": np.full(20, -1)}, "labels must be 0 to 2, but they go from -1 to -1"),
        ({"label": np.ones((20, 4), np.float32)}, r"targets must be \[N, 3\], not \[20, 4\]"),
    ],
)
def test_data_that_does_not_fit_is_an_error(params, data, changed, message):
    with pytest.raises(ValueError, match=message):
        run_sweep(TRAINING, params, data | changed, MEMBERS, batch_size=BATCH)


def test_a_mesh_without_pool_is_an_error(params, data):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    with pytest.raises(ValueError, match='axis "pool"'):
        run_sweep(TRAINING, params, data, MEMBERS, batch_size=BATCH, mode="sharded", mesh=mesh)
