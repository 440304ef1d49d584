"""Test that a sweep fills a pool member by member, in every way of training, and that a killed one goes on."""

import dataclasses
import re

import chex
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soups.data.batches import BatchIterator, batch_indices
from soups.pool import Pool
from soups.train import Training, fit, step, sweep, sweeps

BATCH = 4
X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
DATA = (X, X.sum(1))
START = {"w": np.zeros(3, np.float32)}
MEMBERS = [{"learning_rate": 0.1, "seed": seed, "num_steps": 3 + seed % 3} for seed in range(5)]
WAYS = {
    "map": {},
    "sequential": {"mode": "sequential", "save_every": 2},
    "batches": {"save_every": 2},
    "lanes": {"save_every": 2},
}


def squares(params, batch, key):
    """Return the mean squared error of a line through the origin."""
    return jnp.mean((batch[0] @ params["w"] - batch[1]) ** 2)


TRAINING = Training(loss=squares, optimizer=optax.sgd, ema_decay=0.5)


def batches(index, count, *, seed):
    """Load a part of a member's batches."""
    order = batch_indices(len(X), BATCH, 9, seed)
    part = order[:, index * BATCH // count : (index + 1) * BATCH // count]
    return BatchIterator(lambda first: (tuple(array[rows] for array in DATA) for rows in part[first:]))


@pytest.fixture(scope="module", autouse=True)
def quick_programs():
    """Compile the steps quickly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "cpu_options", lambda statistics: {"xla_backend_optimization_level": 0})
        yield


@pytest.fixture(params=WAYS)
def into(request, mesh):
    """Return a function that puts members into a pool in one of the ways."""
    options = WAYS[request.param] | ({"mesh": mesh} if request.param == "lanes" else {})
    data = batches if request.param in ("batches", "lanes") else DATA
    options |= {} if data is batches else {"batch_size": BATCH}

    def run(pool, members=MEMBERS, training=TRAINING, **more):
        return sweep(training, START, data, members, pool, **options, **more)

    return run


class Killed(Exception):
    """End a sweep in the middle."""


def kill(name, result):
    """End the sweep when the first member is in the pool."""
    raise Killed


def test_a_killed_sweep_goes_on_to_the_same_bits(into, tmp_path, capsys):
    whole, killed = Pool(tmp_path / "whole"), Pool(tmp_path / "killed")
    made = into(whole)
    total = sum(member["num_steps"] for member in MEMBERS)
    shown = r"steps, \d+ s, [0-9.e+]+/s, loss ([0-9.e+-]+) of (\w+)\n"
    loss, last = re.search(rf"sweep: {total}/{total} {shown}", capsys.readouterr().out).groups()
    assert float(loss) == pytest.approx(whole.record(last)["metadata"]["losses"][-1], rel=1e-3)
    assert sorted(made) == [f"member_0{index}" for index in range(5)]
    assert [whole.record(name)["metadata"]["config"] for name in made] == MEMBERS
    with pytest.raises(Killed):
        into(killed, on_member=kill)
    assert len(Pool(killed.path)) == 1
    into(Pool(killed.path))
    assert [whole.digest(name) for name in made] == [Pool(killed.path).digest(name) for name in made]
    assert not list(tmp_path.glob("*.training"))


def test_a_member_is_what_fit_makes(into):
    for member, params in zip(MEMBERS, into(None).values(), strict=True):
        expected = fit(TRAINING, START, DATA, batch_size=BATCH, hyperparameters=member)["params"]
        # in at most 5 steps at rate 0.1, gradients of at most 8 that are sums of eight products in some order
        chex.assert_trees_all_close(params, expected, rtol=0, atol=5 * 0.1 * 8 * 8 * 2.0**-24)


def test_a_longer_list_in_another_order_makes_what_is_new_alone(into, tmp_path):
    pool, seen = Pool(tmp_path / "pool"), []
    into(pool, MEMBERS[:2])
    before = {name: pool.record(name) for name in pool}
    made = into(pool, [MEMBERS[2], MEMBERS[1], MEMBERS[0]], on_member=lambda name, result: seen.append(name))
    assert list(made) == ["member_02", "member_01", "member_00"]
    assert seen == ["member_02"]
    assert {name: pool.record(name) for name in before} == before


def test_what_a_member_is_made_from_decides(into, tmp_path):
    pool = Pool(tmp_path / "pool")
    into(pool, MEMBERS[:1], names=["first"])
    into(pool, MEMBERS[:1], names=["first"], on_member=kill)  # which is not called
    for changed in (
        {"training": dataclasses.replace(TRAINING, clip_norm=2.0)},
        {"training": dataclasses.replace(TRAINING, optimizer=lambda learning_rate: optax.sgd(learning_rate))},
        {"members": [MEMBERS[0] | {"learning_rate": 0.2}]},
    ):
        with pytest.raises(ValueError, match="already has first, made from something else"):
            into(pool, **{"members": MEMBERS[:1], "names": ["first"], **changed})
    assert list(pool) == ["first"]


def test_other_data_or_start_weights_make_other_members(tmp_path):
    pool, options = Pool(tmp_path / "pool"), {"batch_size": BATCH, "mode": "sequential"}
    starts = [(START, DATA), ({"w": np.ones(3, np.float32)}, DATA), (START, (X, X.sum(1) + 1))]
    names = [*(list(sweep(TRAINING, start, data, MEMBERS[:1], pool, **options)) for start, data in starts)]
    assert names == [["member_00"], ["member_01"], ["member_02"]]


def test_averages_metrics_losses_and_bases_are_kept(into, tmp_path):
    pool, averaged, seen = Pool(tmp_path / "pool"), Pool(tmp_path / "ema"), {}
    options = {"evaluate": lambda params: params["w"][0], "base": "start", "metadata": {"arch": "line"}}
    made = into(pool, MEMBERS[:1], averages={"ema": averaged}, on_member=seen.__setitem__, **options)
    (name,), (result,) = seen, seen.values()
    assert pool.metrics(name) == {"score": float(made[name]["w"][0])}
    assert averaged.metrics(name) == {"score": float(averaged[name]["w"][0])}
    assert pool.base == averaged.base == "start"
    assert 0 < np.linalg.norm(averaged[name]["w"]) < np.linalg.norm(pool[name]["w"])
    metadata = pool.record(name)["metadata"]
    assert metadata["losses"] == result["losses"].tolist() and len(metadata["losses"]) == MEMBERS[0]["num_steps"]
    assert metadata["arch"] == "line" and metadata["config"] == MEMBERS[0]
    assert averaged.record(name)["metadata"] == metadata | {"average": "ema"}


def test_a_member_that_diverged_is_kept_and_not_measured(into, tmp_path, capsys):
    pool = Pool(tmp_path / "pool")
    into(
        pool, [{"learning_rate": 1e30, "seed": 1, "num_steps": 5}], evaluate=lambda params: kill("", params)
    )  # not called
    assert pool.metrics("member_00") == {} and not pool.usable
    assert pool.record("member_00")["metadata"]["losses"][-1] is None
    assert "at the last of 5 steps, diverged, and no soup will take it" in capsys.readouterr().out


def test_a_long_curve_is_kept_as_the_means_of_its_parts():
    assert sweeps._curve(np.arange(200.0)) == (4 * np.arange(50) + 1.5).tolist()


def test_one_sweep_at_a_time_trains_for_a_pool(into, tmp_path):
    pool, averaged = Pool(tmp_path / "pool"), Pool(tmp_path / "averaged")

    def again(name, result):
        with pytest.raises(BlockingIOError, match=r"another sweep is writing to .*pool: process"):
            into(Pool(pool.path), MEMBERS[2:4], on_member=kill)
        with pytest.raises(BlockingIOError, match=r"another sweep is writing to .*averaged: process"):
            into(Pool(tmp_path / "other"), MEMBERS[:1], averages={"ema": averaged}, on_member=kill)

    into(pool, (member for member in MEMBERS[:1]), averages={"ema": averaged}, on_member=again)
    into(pool, MEMBERS[:2])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["averaged", "pool"]


def test_a_pool_that_was_opened_before_others_added_makes_nothing_again(into, tmp_path):
    early, late = Pool(tmp_path / "pool"), Pool(tmp_path / "pool")
    into(late)
    trained = []
    made = into(early, on_member=lambda name, result: trained.append(name))
    assert not trained and sorted(made) == sorted(Pool(tmp_path / "pool"))
    early = Pool(tmp_path / "pool")
    into(late, [{**MEMBERS[0], "seed": 90}], names=["mine"])
    with pytest.raises(ValueError, match="already has mine, made from something else"):
        into(early, [{**MEMBERS[0], "seed": 91}], names=["mine"], on_member=lambda name, result: trained.append(name))
    assert not trained


def test_members_of_another_sweep_in_the_pool_are_named(tmp_path, capsys):
    pool, said = Pool(tmp_path / "pool"), []
    made = {"start": START, "training": TRAINING, "batch_size": BATCH}
    for change in ({}, {"batch_size": 2}, {"training": dataclasses.replace(TRAINING, clip_norm=1.0)}, {}):
        given = made | change
        sweep(given["training"], given["start"], DATA, MEMBERS[:1], pool, batch_size=given["batch_size"])
        said += re.findall(r"also holds (\d) members made with other data", capsys.readouterr().out)
    assert said == ["1", "2", "2"]
    sweep(TRAINING, START, DATA, MEMBERS[:1], pool, batch_size=BATCH, names=["mine"])  # whose caller tells them apart
    assert "also holds" not in capsys.readouterr().out
