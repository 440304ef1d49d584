"""Test that members trained side by side are those trained alone, each on its own devices, also in two processes."""

import dataclasses
import functools
import json
import pathlib
import re
import sys

import chex
import jax
import killed_run
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from two_processes_lanes import (
    MEMBERS,
    MESH,
    PLAIN,
    QUICK,
    make_loader,
    mesh_of,
    placed_on,
    run,
    train_group,
    train_workers,
)

from soups import tree
from soups.train import averages, fit, lanes, step
from soups.train.feeds import by_lane
from soups.train.lanes import Lanes, groups_of, shares_of, take_lane

HERE = pathlib.Path(__file__).parent

FULL = dataclasses.replace(killed_run.TRAINING, sam=True, ema_decay=0.9)  # in two parts, with three averages
SHARP = {name: one | {"sam_radius": 0.1} for name, one in MEMBERS.items()}


@pytest.fixture(scope="module", autouse=True)
def quick_programs():
    """Compile the steps quickly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "cpu_options", lambda statistics: QUICK)
        yield


@functools.cache
def programs(training, sizes):
    return Lanes(training, killed_run.start_weights(), **placed_on(mesh_of(*sizes)))


def run_full(directory, members=SHARP, **options):
    return run(directory, programs(FULL, (2, 2, 2)), members, **options)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Return the directory and the states of two members on a mesh with all axes, which nothing interrupted."""
    directory = tmp_path_factory.mktemp("full")
    return directory, run_full(directory)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Return what one process finds on the mesh of two."""
    return run(tmp_path_factory.mktemp("plain"), programs(PLAIN, MESH))


def alone(name, directory):
    """Train a member of `full` with its batch cut as there, on a mesh without "pool"; its weights are whole in use."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    batches, options = make_loader(name), {"hyperparameters": SHARP[name], "directory": directory, **placed_on(mesh)}
    return fit(FULL, killed_run.start_weights(), batches, **options)


def no_batches(name, index, count):
    raise AssertionError("a finished group needs no data")


def losses(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- Equal to a member alone ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_is_that_trained_alone(full, tmp_path, name):
    made, state = alone(name, tmp_path), full[1][name]
    expected = {"params": made["params"], "averages": made["averages"]}
    assert state["step"] == MEMBERS[name]["num_steps"]
    state = {"params": state["params"], "averages": averages(state, FULL.ema_decays)}
    # XLA may fuse the two programs differently. A gradient is a sum of up to 48 products, so it is right to 48 half
    # units in the last place, and a step of Adam moves a weight by the rate times what is relative to the gradient.
    relative = 48 * 2.0**-23
    bound = MEMBERS[name]["num_steps"] * MEMBERS[name]["learning_rate"] * relative
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=relative, atol=bound), state, expected)
    assert tree.norm(tree.sub(state["params"], killed_run.start_weights())) > 0.03
    lines = losses(full[0] / "short" / f"losses_{name}.jsonl")
    assert [line["step"] for line in lines] == list(range(MEMBERS[name]["num_steps"]))
    expected = [line["loss"] for line in losses(tmp_path / "losses.jsonl")]
    np.testing.assert_allclose([line["loss"] for line in lines], expected, rtol=relative)


def test_each_device_holds_its_share_of_its_own_member():
    of_state = programs(FULL, (2, 2, 2)).shardings
    specs = {name: sharding.spec for name, sharding in tree.flatten(of_state).items()}
    assert specs["params/hidden/kernel"] == P("pool", ("data", "model"))
    assert specs["drifts/moved/1/head/kernel"] == P("pool", ("data", "model"))
    assert specs["step"] == specs["params/head/bias"] == P("pool")


def test_no_exchange_crosses_lanes():
    placement, mesh = programs(FULL, (2, 2, 2)), mesh_of(2, 2, 2)
    rows = NamedSharding(mesh, P("pool", "data"))
    batch = {
        "image": jax.ShapeDtypeStruct((2, 12, 4, 4, 3), np.uint8, sharding=rows),
        "label": jax.ShapeDtypeStruct((2, 12), np.int32, sharding=rows),
    }
    known = {name: value for name, value in FULL.hyperparameters.items() if name not in FULL.loss.optional}
    numbers = placement.values([known | {"num_steps": 3}] * 2)
    text = placement.step.lower(placement.abstract(killed_run.start_weights()), batch, numbers).compile().as_text()
    exchanges = re.findall(r" (?:all-\w+|reduce-scatter|collective-permute)(?:-start)?\(.*", text)
    groups = [group for line in exchanges for group in groups_in(line)]
    assert len(exchanges) > 5 and max(map(len, groups)) == 4
    assert all(set(group) <= set(range(4)) or set(group) <= set(range(4, 8)) for group in groups)


def groups_in(line):
    """Read the groups of devices from an instruction: {{0,1},{2,3}}, or [groups,size]<=[dimensions]T(order)."""
    if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", line):
        return [[int(device) for device in group.split(",")] for group in re.findall(r"\d[\d,]*", listed[1])]
    shape, dimensions, order = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line).groups()
    shape, dimensions = ([int(size) for size in sizes.split(",")] for sizes in (shape, dimensions))
    devices = np.arange(8).reshape(dimensions)
    devices = devices.transpose([int(axis) for axis in order.split(",")]) if order else devices
    return devices.reshape(shape).tolist()


def test_groups_of_devices_are_read_as_xla_writes_them():
    assert groups_in("all-reduce(x), replica_groups={{0,1},{2,3}}, to") == [[0, 1], [2, 3]]
    assert groups_in("collective-permute(x), source_target_pairs={{0,7}}") == [[0, 7]]
    assert groups_in("all-gather(x), replica_groups=[2,4]<=[8], d") == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert groups_in("all-gather(x), replica_groups=[2,4]<=[4,2]T(1,0), d") == [[0, 2, 4, 6], [1, 3, 5, 7]]


# --- Groups -----------------------------------------------------------------------------------------------------------


def test_members_of_similar_length_come_together_in_the_order_of_the_search():
    steps = {"a": 4, "b": 9, "c": 5, "d": 8, "e": 5}
    assert groups_of(steps, 2) == [["a"], ["b", "d"], ["c", "e"]]
    assert groups_of(steps, 3) == [["a", "e"], ["b", "c", "d"]]
    assert groups_of(steps, 1) == [["a"], ["b"], ["c"], ["d"], ["e"]]


def test_a_lane_without_a_member_stays_as_it_is_and_members_share_one_compilation(full, tmp_path):
    placement = programs(FULL, (2, 2, 2))
    count = placement.step.of(full[1]["short"])._cache_size
    before = count()
    state = train_group(placement, make_loader, {"short": SHARP["short"]}, tmp_path)
    assert count() == before == 1
    chex.assert_trees_all_equal(take_lane(state, 0), full[1]["short"])
    empty = take_lane(state, 1)
    assert empty["step"] == 0
    chex.assert_trees_all_equal(empty["params"], killed_run.start_weights())
    assert sorted(path.name for path in tmp_path.glob("losses*")) == ["losses_short.jsonl"]


# --- Resume -----------------------------------------------------------------------------------------------------------


def test_a_group_that_is_killed_goes_on_to_the_same_bits(full, tmp_path):
    def cut(limit):
        def make(name, *part):
            batches = iter(make_loader(name, *part))
            return killed_run.Interrupted(batches, limit if name == "long" else -1)

        return make

    seen = []
    for limit in (5, 3):  # from 0 in step 5 while both are trained; from 3 in step 6, when one of them has ended
        with pytest.raises(KeyboardInterrupt):
            run_full(tmp_path, make_loader=cut(limit))
    states = run_full(tmp_path, on_step=lambda index, losses: seen.append((index, sorted(losses))))
    assert seen == [(6, ["long"])]
    chex.assert_trees_all_equal(states, full[1])
    for name in MEMBERS:
        path = f"short/losses_{name}.jsonl"
        assert (tmp_path / path).read_bytes() == (full[0] / path).read_bytes()


def test_a_finished_group_is_read_and_not_repeated(full):
    chex.assert_trees_all_equal(run_full(full[0], make_loader=no_batches), full[1])


def test_another_group_in_the_directory_is_an_error(full):
    others = SHARP | {"long": SHARP["long"] | {"seed": 8}}
    with pytest.raises(ValueError, match=r"hyperparameters\.long\.seed: 6 there, 8 now"):
        run_full(full[0], others, make_loader=no_batches)


def test_positions_are_joined_by_lane():
    assert by_lane([{"0": 4, "1": 3}, {"1": 3, "2": 5}]) == {"0": 4, "1": 3, "2": 5}
    with pytest.raises(ValueError, match="the processes that loaded lane 1 stood at different positions"):
        by_lane([{"0": 4, "1": 3}, {"1": 4, "2": 5}])


# --- Bad input --------------------------------------------------------------------------------------------------------


def test_a_group_has_as_many_members_as_there_is_room_for(tmp_path):
    placement = Lanes(PLAIN, killed_run.start_weights(), mesh=mesh_of(1, 2, 1))
    with pytest.raises(ValueError, match=r'1 to 1 members, .* the axis "pool", not 2'):
        train_group(placement, make_loader, MEMBERS, tmp_path)
    assert not list(tmp_path.iterdir())


def test_meshes_and_shardings_that_do_not_fit(mesh):
    params = killed_run.start_weights()
    flat = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    with pytest.raises(ValueError, match=r"the mesh needs the axes 'pool' and 'data', and lacks \['pool'\]"):
        Lanes(PLAIN, params, mesh=flat)
    with pytest.raises(ValueError, match="the shardings are not all on the given mesh"):
        Lanes(PLAIN, params, mesh=mesh, shardings=placed_on(flat)["shardings"])
    over = jax.tree.map(lambda _: NamedSharding(mesh, P()), params)
    over["hidden"]["kernel"] = NamedSharding(mesh, P(None, ("data", "pool")))
    with pytest.raises(ValueError, match=r"no weight can be sharded over it: \{'hidden/kernel'"):
        Lanes(PLAIN, params, mesh=mesh, shardings=over)


def test_batches_that_end_or_differ_are_errors(tmp_path):
    options = {"placement": programs(FULL, (2, 2, 2)), "members": SHARP}

    def ends(name, *part):
        return killed_run.Interrupted(iter(make_loader(name, *part)), 2 if name == "long" else -1, StopIteration)

    with pytest.raises(ValueError, match="the batches of long ended after 2 of 7 steps"):
        run(tmp_path / "a", make_loader=ends, **options)
    with pytest.raises(ValueError, match="the loader's iterator of short, a list_iterator, cannot be resumed"):
        run(tmp_path / "b", make_loader=lambda *_: [{}], **options)
    with pytest.raises(ValueError, match=r"the batches of all members must have one size, not \[12, 24\]"):
        placement = Lanes(PLAIN, killed_run.start_weights(), mesh=mesh_of(2, 2, 2))
        placement.shares = {0: (0, 2), 1: (0, 1)}
        placement.place({0: next_batch("short"), 1: next_batch("long")})


def next_batch(name):
    return next(iter(make_loader(name)))


# --- Several processes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owners", "expected"),
    [
        ([[0, 0], [1, 1]], {0: {0: (0, 1)}, 1: {1: (0, 1)}}),
        ([[0, 0, 1, 1]], {0: {0: (0, 2)}, 1: {0: (1, 2)}}),
        ([[0, 0], [0, 1], [1, 1]], {0: {0: (0, 1), 1: (0, 2)}, 1: {1: (1, 2), 2: (0, 1)}}),
        ([[[0, 1], [0, 1]]], {0: {0: (0, 1)}, 1: {0: (0, 1)}}),  # both need the whole batch
        ([[[0, 1], [2, 3]]], {0: {0: (0, 2)}, 1: {0: (0, 2)}, 2: {0: (1, 2)}, 3: {0: (1, 2)}}),
    ],
)
def test_every_process_loads_what_its_devices_need(owners, expected):
    owners = np.array(owners)
    assert shares_of(owners.reshape(*owners.shape[:2], -1)) == expected


@pytest.mark.parametrize("owners", [[[[0], [0], [1]]], [[[0], [1], [0], [1]]], [[[0, 0], [0, 1], [1, 1]]]])
def test_processes_that_cannot_share_a_batch_are_an_error(owners):
    with pytest.raises(ValueError, match=r'the batches of lane 0 evenly: on "data" process 0 has \[0, .*process 1 has'):
        shares_of(np.array(owners))


def test_a_process_without_devices_on_the_mesh_is_an_error(monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with pytest.raises(ValueError, match=r"the mesh has no device of process 1, only of \[0\]"):
        lanes.lane_shares(mesh_of(2, 2, 2))


def test_two_processes_train_the_members_of_one(plain, run_both, tmp_path):
    script = HERE / "two_processes_lanes.py"
    printed = run_both(lambda index, port: [sys.executable, script, str(index), port, tmp_path], tmp_path, seconds=200)
    for process in range(2):
        found = np.load(tmp_path / f"states_{process}.npz")
        leaves = tree.flatten({name: state["params"] for name, state in plain.items()})
        assert set(found.files) == set(leaves)
        for name, leaf in leaves.items():  # to the bit: a sum of two gradients has one order alone
            np.testing.assert_array_equal(found[name], leaf)
    for name, one in MEMBERS.items():
        assert [line["step"] for line in losses(tmp_path / f"short/losses_{name}.jsonl")] == list(
            range(one["num_steps"])
        )
    together = tree.flatten(train_workers(workers=2))  # here on one device, in turn
    for process in range(2):
        found = np.load(tmp_path / f"workers_{process}.npz")
        for name, leaf in together.items():  # sums over three devices of a worker have another order
            np.testing.assert_allclose(found[name], leaf, rtol=1e-4, atol=1e-5)
    for process, shares in enumerate(("[(0, (0, 1)), (1, (0, 2))]", "[(1, (1, 2)), (2, (0, 1))]")):
        assert f"loads {shares}\n" in printed[process]
        assert "refused: the processes cannot share the batches of lane 0 evenly" in printed[process]
