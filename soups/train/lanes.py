"""Fine-tune several members side by side: lane g, the devices at place g of a mesh's axis "pool", trains its own."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from soups import tree
from soups.partition import axes_of
from soups.processes import on_first_process
from soups.train import loop
from soups.train._resuming import (
    LossLog,
    MemberBatches,
    checked,
    claim,
    described,
    mesh_of_shardings,
    numbers,
    resume,
)
from soups.train.sharding import gathered, state_shardings
from soups.train.step import Training, init_state, training_step


class LanePrograms(NamedTuple):
    """Hold what all groups of members share, from `lane_programs`: the first state, the step, the state's shardings."""

    begin: Callable
    step: Callable
    shardings: tree.Tree


def finetune_lanes(
    training: Training,
    params: tree.Tree,
    make_loader: Callable[[str, int, int], Iterable[Mapping[str, Any]]],
    members: Mapping[str, Mapping[str, Any]],
    directory,
    *,
    mesh: Mesh,
    save_every: int,
    shardings: tree.Tree | None = None,
    programs: LanePrograms | None = None,
    on_step: Callable[[int, dict[str, float]], None] = lambda index, losses: None,
) -> dict[str, Any]:
    """Fine-tune a group of members in lockstep, one on each lane, and give their final states as one.

    Every leaf of the state has a leading axis over the lanes: `take_lane` gives a member's part. Each member is that of
    `finetune_resumable` with its batch cut as on its lane, up to float32 rounding; gradients stay within a lane. A
    member that has taken its steps stays as it is while the others go on, and so does a lane without a member: groups
    should have members of similar length, as those of `groups_of`. What is on disk and how it resumes is that of
    `finetune_resumable`, with a file "losses_NAME.jsonl" for each member.

    Args:
        training: what is fixed at compile time.
        params: the start weights of all, held by every process; a finished or resumed run uses only their names, shapes
            and dtypes.
        make_loader: gives from a member's name, the index of a part and the number of parts an iterable over that part
            of each of its batches, as `soups.data.loader` does with `process_index` and `process_count`.
        members: the hyper-parameters of each by name, as for `finetune_resumable`; the first is on lane 0.
        directory: of this group alone.
        mesh: with the axes "pool" and "data", over which each batch is cut; several processes may share a lane.
        save_every: steps from one checkpoint to the next; the last step is always kept.
        shardings: of the weights of one member, from `param_shardings`; by default they are on all devices of its lane.
            Where there are several lanes, what is cut over "data" and "model" is cut to save memory alone: it is whole
            while it is used. What is cut over "model" alone stays so.
        programs: from `lane_programs`, so that several groups share one compilation.
        on_step: called one step late with the index of each step and the losses of those members that took it and of
            which this process has devices.

    Raises:
        ValueError: no members, or more than lanes; a mesh without the axes, or on which processes cannot share the
            batches of a lane; shardings of another mesh or over "pool"; parts of batches that differ in size; and what
            `finetune_resumable` says of its arguments.
        OSError: the directory cannot be written.
    """
    directory, count = pathlib.Path(directory).absolute(), _lanes(mesh)
    if not 1 <= len(members) <= count:
        raise ValueError(f'a group has 1 to {count} members, one for each place on the axis "pool", not {len(members)}')
    members = {name: checked(hyperparameters, save_every) for name, hyperparameters in members.items()}
    shares, names = lane_shares(mesh), list(members)
    programs = programs or lane_programs(training, params, mesh=mesh, shardings=shardings)
    given = {f"{name}.{key}": value for name in names for key, value in numbers(members[name]).items()}
    on_first_process(lambda: claim(directory, described(training, params, given)))
    rows = _on_lanes(members, count)
    values = _placed(jax.tree.map(lambda *of_lanes: np.stack(of_lanes), *map(loop.typed, rows)), mesh)
    steps, place = [row["num_steps"] for row in rows], _batch_placer(mesh, shares)

    def batches_from(first, position):
        return _Batches(make_loader, [*names, *[names[-1]] * (count - len(names))], steps, shares, first, position)

    def read(index, losses):
        here = {shard.index[0].start or 0: shard.data for shard in losses.addressable_shards}
        taken = {lane: name for lane, name in enumerate(names) if lane in here and index < steps[lane]}
        return {name: np.asarray(here[lane]).item() for lane, name in taken.items()}

    own = [name for lane, name in enumerate(names) if _writes(mesh, lane)]
    return resume(
        directory,
        max(steps),
        save_every,
        abstract=_abstract_state(training, params, count, programs.shardings),
        begin=lambda: programs.begin(_start(params, count, programs.shardings["params"])),
        batches_from=batches_from,
        take=lambda state, batches: programs.step(state, place(batches), values),
        log_from=lambda first: LossLog({name: losses_path(directory, name) for name in own}, first, read, on_step),
        choose=_by_lane,
    )


def losses_path(directory, name: str) -> pathlib.Path:
    """Name the file with a member's losses."""
    return pathlib.Path(directory) / f"losses_{name}.jsonl"


def groups_of(steps: Mapping[str, int], lanes: int) -> list[list[str]]:
    """Deal members, whose steps are given by name, into groups of `lanes` of similar length, each in the given order.

    The longest come together, then the next ones; the last group of these may be smaller. Groups stand in the order of
    their first members.
    """
    order = list(steps)
    ranked = sorted(order, key=lambda name: -steps[name])
    groups = [sorted(ranked[i : i + lanes], key=order.index) for i in range(0, len(ranked), lanes)]
    return sorted(groups, key=lambda group: order.index(group[0]))


def lane_programs(
    training: Training, params: tree.Tree, *, mesh: Mesh, shardings: tree.Tree | None = None
) -> LanePrograms:
    """Return the programs of all runs of `finetune_lanes` with these arguments, compiled when they are first used.

    Raises:
        ValueError: a mesh without "pool" and "data", shardings of another mesh or over "pool".
    """
    _lanes(mesh)
    if shardings is None:
        shardings = jax.tree.map(lambda _: NamedSharding(mesh, P()), params)
    mesh_of_shardings(shardings, mesh)
    specs = {name: sharding.spec for name, sharding in tree.flatten(shardings).items()}
    if over := {name: spec for name, spec in specs.items() if "pool" in axes_of(spec)}:
        raise ValueError(f'each place on the axis "pool" has its own member, so no weight can be cut over it: {over}')
    of_state = jax.tree.map(
        lambda sharding: NamedSharding(mesh, P("pool", *sharding.spec)), state_shardings(training, params, shardings)
    )
    # XLA's partitioner aborts where a weight on several lanes is cut over both axes and gathered over one of them
    over = ("data",) if mesh.shape["pool"] == 1 else ("data", "model")
    training = dataclasses.replace(training, train_apply=gathered(training.train_apply, shardings, over))
    of_lane, of_rows = NamedSharding(mesh, P("pool")), NamedSharding(mesh, P("pool", "data"))

    def step(state, batch, hyperparameters):
        after, loss = training_step(training, state, batch, hyperparameters)
        active = state["step"] < hyperparameters["num_steps"]
        return jax.tree.map(lambda new, old: jnp.where(active, new, old), after, state), loss

    return LanePrograms(
        jax.jit(_on_each(lambda params: init_state(training, params), mesh), out_shardings=of_state),
        jax.jit(
            _on_each(step, mesh),
            donate_argnums=0,
            in_shardings=(of_state, {"image": of_rows, "label": of_rows}, of_lane),
            out_shardings=(of_state, of_lane),
            compiler_options=loop._cpu_options(),
        ),
        of_state,
    )


def take_lane(stacked: tree.Tree, lane: int) -> tree.Tree:
    """Return one lane's part of arrays with a leading axis over the lanes, whole and on the host of every process.

    All processes must call it.
    """
    mesh = jax.tree.leaves(stacked)[0].sharding.mesh
    return jax.tree.map(np.asarray, _taken(stacked, np.int32(lane), mesh=mesh))


def lane_shares(mesh: Mesh) -> dict[int, tuple[int, int]]:
    """Return for each lane that this process has devices of which part of its batches it loads: (index, parts).

    Raises:
        ValueError: a mesh without the axes "pool" and "data", or without devices of this process; the devices of a lane
            fall on the processes so that they would load parts of other sizes, or parts that overlap.
    """
    _lanes(mesh)
    order = ["pool", "data", *(axis for axis in mesh.axis_names if axis not in ("pool", "data"))]
    devices = mesh.devices.transpose([mesh.axis_names.index(axis) for axis in order])
    owners = np.vectorize(lambda device: device.process_index)(devices)
    shares = shares_of(owners.reshape(*owners.shape[:2], -1))
    if jax.process_index() not in shares:
        raise ValueError(f"the mesh has no device of process {jax.process_index()}, only of {sorted(shares)}")
    return shares[jax.process_index()]


def shares_of(owners: np.ndarray) -> dict[int, dict[int, tuple[int, int]]]:
    """Return for each process and each lane on it the part of a batch it loads, from the processes [pool, data, rest].

    Raises:
        ValueError: what `lane_shares` says of the devices of a lane.
    """
    found = {int(process): {} for process in np.unique(owners)}
    for lane, rows in enumerate(owners):
        places = {int(p): tuple(np.flatnonzero((rows == p).any(1)).tolist()) for p in np.unique(rows)}
        parts = sorted(set(places.values()))
        if [place for part in parts for place in part] != list(range(len(rows))) or len(set(map(len, parts))) > 1:
            have = ", ".join(f"process {process} has {list(part)}" for process, part in places.items())
            raise ValueError(f'the processes cannot share the batches of lane {lane} evenly: on "data" {have}')
        for process, part in places.items():
            found[process][lane] = parts.index(part), len(parts)
    return found


class _Batches:
    """Return the parts of the batches that this process loads, by lane."""

    def __init__(self, make_loader, names, steps, shares, first, position):
        with contextlib.ExitStack() as stack:
            self._lanes = {}
            for lane, share in shares.items():
                loader = make_loader(names[lane], *share)
                own = None if position is None else position[str(lane)]
                # a lane without a member needs a batch too: the first one of another member
                of_lane = MemberBatches(loader, steps[lane], first, own, f" of {names[lane]}")
                self._lanes[lane] = stack.enter_context(contextlib.closing(of_lane))
            self._stack = stack.pop_all()

    def __next__(self):
        return {lane: next(batches) for lane, batches in self._lanes.items()}

    def get_state(self):
        return {str(lane): batches.get_state() for lane, batches in self._lanes.items()}

    def close(self):
        self._stack.close()


def _by_lane(positions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join the positions of the lanes that each process had."""
    joined = {lane: position for process in positions for lane, position in process.items()}
    for process in positions:
        if other := [lane for lane, position in process.items() if position != joined[lane]]:
            raise ValueError(f"the processes that loaded lane {other[0]} stood at different positions")
    return joined


def _lanes(mesh):
    if missing := {"pool", "data"} - set(mesh.axis_names):
        raise ValueError(
            f"the mesh needs the axes 'pool' and 'data', and lacks {', '.join(map(repr, sorted(missing)))}"
        )
    return mesh.shape["pool"]


def _on_lanes(members, count):
    """Return hyper-parameters for every lane; where there is no member, no step is taken."""
    rows = list(members.values())
    return rows + [rows[-1] | {"num_steps": 0}] * (count - len(rows))


def _on_each(function, mesh):
    """Run a function on each lane by itself, so that no exchange can cross lanes; the other axes are left to XLA."""

    def of_lane(*args):
        results = function(*jax.tree.map(lambda leaf: jnp.squeeze(leaf, 0), args))
        return jax.tree.map(lambda leaf: leaf[None], results)

    over = {"in_specs": P("pool"), "out_specs": P("pool"), "axis_names": {"pool"}}
    return jax.shard_map(of_lane, mesh=mesh, check_vma=False, **over)


def _start(params, count, shardings):
    """Put the start weights on every lane."""

    def put(leaf, sharding):
        stacked = np.broadcast_to(np.asarray(leaf), (count, *leaf.shape))
        return jax.make_array_from_callback(stacked.shape, sharding, lambda index: stacked[index])

    return jax.tree.map(put, params, shardings)


def _placed(arrays, mesh):
    of_lane = NamedSharding(mesh, P("pool"))
    return jax.tree.map(
        lambda array: jax.make_array_from_callback(array.shape, of_lane, lambda index: array[index]), arrays
    )


def _abstract_state(training, params, count, shardings):
    state = jax.eval_shape(lambda params: init_state(training, params), params)
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype, sharding=where), state, shardings
    )


def _batch_placer(mesh, shares):
    """Return a function that makes the parts of this process parts of global batches [lanes, B, ...]."""
    sharding = NamedSharding(mesh, P("pool", "data"))

    def place(parts, name):
        parts = {lane: np.asarray(batch[name]) for lane, batch in parts.items()}
        sizes = {len(part) * shares[lane][1] for lane, part in parts.items()}
        if len(sizes) > 1:
            raise ValueError(f"the batches of all members must have one size, not {sorted(sizes)}")
        shape = (mesh.shape["pool"], *sizes, *next(iter(parts.values())).shape[1:])

        def shard(index):
            lane, (first, last, _) = index[0].start or 0, index[1].indices(shape[1])
            offset = shares[lane][0] * len(parts[lane])
            return parts[lane][None, first - offset : last - offset]

        return jax.make_array_from_callback(shape, sharding, shard)

    return lambda parts: {name: place(parts, name) for name in ("image", "label")}


def _writes(mesh, lane):
    """Say whether this process writes the losses of a lane: the first that has devices of it does."""
    devices = np.take(mesh.devices, lane, axis=mesh.axis_names.index("pool"))
    return min(device.process_index for device in devices.flat) == jax.process_index()


@functools.partial(jax.jit, static_argnames="mesh")
def _taken(stacked, lane, *, mesh):
    def take(leaf):
        # added up as bits: every device has what the lane's own devices have, and none needs room for all lanes
        bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))
        own = (jnp.arange(len(bits)) == lane).reshape(-1, *[1] * (bits.ndim - 1))
        chosen = jnp.sum(jnp.where(own, bits, jnp.zeros_like(bits)), axis=0, dtype=bits.dtype)
        return jax.lax.bitcast_convert_type(chosen, leaf.dtype)

    return jax.lax.with_sharding_constraint(jax.tree.map(take, stacked), NamedSharding(mesh, P()))
