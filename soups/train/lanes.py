"""Train several members side by side: lane g, the devices at place g of a mesh's axis "pool", trains its own."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from soups import tree
from soups.partition import axes_of, check_mesh
from soups.train.sharding import gathered, mesh_of_shardings, on_devices, state_shardings
from soups.train.step import Training, init_state, jit_step, training_step


class Lanes:
    """Place a group of members on the lanes of a mesh, one on each, and take their steps in lockstep.

    Every leaf of the state has a leading axis over the lanes: `take_lane` gives a member's part. Each member is the one
    trained alone with its batch cut as on its lane, up to float32 rounding; gradients stay within a lane. A member that
    has taken its steps stays as it is while the others go on, and so does a lane without a member: groups should have
    members of similar length, as those of `groups_of`. All groups of one `Lanes` share one compilation.

    Args:
        params: the start weights, arrays or jax.ShapeDtypeStructs.
        mesh: with the axes "pool" and "data", over which each batch is cut; several processes may share a lane. Else,
            and where processes cannot share the batches of a lane, there is a ValueError.
        shardings: of the weights of one member, from `param_shardings`; by default they are on all devices of its lane.
            Where there are several lanes, what is cut over "data" and "model" is cut to save memory alone: it is whole
            while it is used. What is cut over "model" alone stays so; nothing may be cut over "pool".
    """

    def __init__(self, training: Training, params: tree.Tree, *, mesh: Mesh, shardings: tree.Tree | None = None):
        self.training, self.mesh, self.count, self.shares = training, mesh, _lanes(mesh), lane_shares(mesh)
        if shardings is None:
            shardings = jax.tree.map(lambda _: NamedSharding(mesh, P()), params)
        mesh_of_shardings(shardings, mesh)
        specs = {name: sharding.spec for name, sharding in tree.flatten(shardings).items()}
        if over := {name: spec for name, spec in specs.items() if "pool" in axes_of(spec)}:
            raise ValueError(
                f'each place on the axis "pool" trains a member of its own, so no weight can be sharded over it: {over}'
            )
        self.shardings = jax.tree.map(
            lambda sharding: NamedSharding(mesh, P("pool", *sharding.spec)),
            state_shardings(training, params, shardings),
        )
        self._shardings = shardings
        self._of_lane, self._of_rows = NamedSharding(mesh, P("pool")), NamedSharding(mesh, P("pool", "data"))

    def on_lanes(self, members: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
        """Return the name and the hyper-parameters on each lane; where there is no member, no step is taken."""
        if not 1 <= len(members) <= self.count:
            places = f'one for each place on the axis "pool", not {len(members)}'
            raise ValueError(f"a group has 1 to {self.count} members, {places}")
        lanes = list(members.items())
        return lanes + [(lanes[-1][0], lanes[-1][1] | {"num_steps": 0})] * (self.count - len(lanes))

    def abstract(self, params: tree.Tree) -> tree.Tree:
        """Return the state as jax.ShapeDtypeStructs with shardings."""
        return jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct((self.count, *leaf.shape), leaf.dtype, sharding=where),
            self.abstract_one(params),
            self.shardings,
        )

    def abstract_one(self, params: tree.Tree) -> tree.Tree:
        """Return the state of one lane as jax.ShapeDtypeStructs."""
        return jax.eval_shape(self.first, params, self.training.example)

    def first(self, params: tree.Tree, values: Mapping[str, Any]) -> tree.Tree:
        """Return the first state of one lane."""
        return init_state(self.training, params, values)

    def begin(self, starts: Sequence[tree.Tree], values: Mapping[str, jax.Array]) -> tree.Tree:
        """Return the first state, from the start weights of all lanes, which every process holds."""

        def stacked(*leaves):
            if all(leaf is leaves[0] for leaf in leaves):  # needs no room for all lanes
                return np.broadcast_to(np.asarray(leaves[0]), (self.count, *leaves[0].shape))
            return np.stack([np.asarray(leaf) for leaf in leaves])

        stacked = jax.tree.map(stacked, *starts)
        return self._begin(on_devices(stacked, self.shardings["params"]), values)

    @functools.cached_property
    def _begin(self):
        return jax.jit(_on_each(self.first, self.mesh), out_shardings=self.shardings)

    @functools.cached_property
    def step(self):
        """Return the compiled step of all lanes, from state, batch and hyper-parameters to state and losses."""
        # XLA's partitioner aborts where a weight on several lanes is cut over both axes and gathered over one of them
        over = ("data",) if self.count == 1 else ("data", "model")
        training = gathered(self.training, self._shardings, over)

        return jit_step(
            _on_each(functools.partial(self.one_step, training), self.mesh),
            in_shardings=(self.shardings, self._of_rows, self._of_lane),
            out_shardings=(self.shardings, self._of_lane),
        )

    def one_step(self, training: Training, state: tree.Tree, batch: tree.Tree, values: Mapping[str, jax.Array]) -> Any:
        """Return the state of one lane and its loss after its step, if it has any left."""
        after, loss = training_step(training, state, batch, values)
        active = state["step"] < values["num_steps"]
        return jax.tree.map(lambda new, old: jnp.where(active, new, old), after, state), loss

    def values(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, jax.Array]:
        """Return the hyper-parameters of all lanes as the step takes them."""
        stacked = jax.tree.map(lambda *of_lanes: np.stack(of_lanes), *map(self.training.numbers, rows))
        return on_devices(stacked, self._of_lane)

    def place(self, parts: Mapping[int, tree.Tree]) -> tree.Tree:
        """Make the parts of this process, by lane, parts of a global batch [lanes, B, ...]."""
        return jax.tree.map(lambda *leaves: self._placed(dict(zip(parts, leaves, strict=True))), *parts.values())

    def _placed(self, parts):
        parts = {lane: np.asarray(part) for lane, part in parts.items()}
        sizes = {len(part) * self.shares[lane][1] for lane, part in parts.items()}
        if len(sizes) > 1:
            raise ValueError(f"the batches of all members must have one size, not {sorted(sizes)}")
        shape = (self.count, *sizes, *next(iter(parts.values())).shape[1:])
        if shape[1] % self.mesh.shape["data"]:
            raise ValueError(f'{self.mesh.shape["data"]} devices of "data" cannot share a batch of {shape[1]}')

        def shard(index):
            lane, (first, last, _) = index[0].start or 0, index[1].indices(shape[1])
            offset = self.shares[lane][0] * len(parts[lane])
            return parts[lane][None, first - offset : last - offset]

        return jax.make_array_from_callback(shape, self._of_rows, shard)

    def losses(self, loss: jax.Array) -> dict[int, float]:
        """Return the losses by lane, of those that this process has devices of."""
        return {shard.index[0].start or 0: np.asarray(shard.data).item() for shard in loss.addressable_shards}

    def writes(self, lane: int) -> bool:
        """Say whether this process writes the losses of a lane: the first that has devices of it does."""
        devices = np.take(self.mesh.devices, lane, axis=self.mesh.axis_names.index("pool"))
        return min(device.process_index for device in devices.flat) == jax.process_index()

    def only(self, state: tree.Tree) -> tree.Tree:
        """Return the state of the only member, without the axis of the lanes."""
        shardings = {part: self.shardings[part] for part in state}
        alone = jax.tree.map(lambda where: NamedSharding(where.mesh, P(*where.spec[1:])), shardings)
        return jax.jit(lambda state: jax.tree.map(lambda leaf: leaf[0], state), out_shardings=alone)(state)

    def take(self, state: tree.Tree, lane: int) -> tree.Tree:
        """Return `take_lane(state, lane)`."""
        return take_lane(state, lane)


def with_lanes(mesh: Mesh | None, shardings: tree.Tree | None) -> tuple[Mesh | None, tree.Tree | None]:
    """Return a mesh with an axis "pool", of one place where it has none, and shardings on it.

    A ValueError for shardings that are not all of that mesh, a mesh without "data" or with several places on "pool".
    """
    check_mesh(mesh)
    if shardings is not None:
        mesh = mesh_of_shardings(shardings, mesh)
    if mesh is None:
        return None, None
    if mesh.shape.get("pool", 1) > 1:
        raise ValueError(f'one member is trained on one place of the axis "pool", not on {mesh.shape["pool"]}')
    if "pool" not in mesh.axis_names:
        types = (AxisType.Auto, *mesh.axis_types)
        mesh = Mesh(mesh.devices[None], ("pool", *mesh.axis_names), axis_types=types)
    moved = None if shardings is None else jax.tree.map(lambda where: NamedSharding(mesh, where.spec), shardings)
    return mesh, moved


def groups_of(steps: Mapping[str, int], lanes: int) -> list[list[str]]:
    """Deal members, whose steps are given by name, into groups of `lanes` of similar length, each in the given order.

    The longest come together, then the next ones; the last group of these may be smaller. Groups stand in the order of
    their first members.
    """
    order = list(steps)
    ranked = sorted(order, key=lambda name: -steps[name])
    groups = [sorted(ranked[i : i + lanes], key=order.index) for i in range(0, len(ranked), lanes)]
    return sorted(groups, key=lambda group: order.index(group[0]))


def take_lane(stacked: tree.Tree, lane: int) -> tree.Tree:
    """Return one lane's part of arrays with a leading axis over the lanes, whole and on the host of every process.

    All processes must call it.
    """
    mesh = jax.tree.leaves(stacked)[0].sharding.mesh
    return jax.tree.map(np.asarray, _taken(stacked, np.int32(lane), mesh=mesh))


def lane_mesh(sizes: Mapping[str, int]) -> Mesh:
    """Make a mesh of all devices with these axes, the first of which is "pool"; errors are those of `lane_shares`.

    Of several places on "pool" each lies within one host where the sizes allow it.
    """
    types = (AxisType.Auto,) * len(sizes)
    if sizes["pool"] == 1:  # in the order of devices that exchanges within a member go fastest
        mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=types, devices=jax.devices())
    else:
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
        mesh = Mesh(np.array(devices).reshape(tuple(sizes.values())), tuple(sizes), axis_types=types)
    lane_shares(mesh)
    return mesh


def lane_shares(mesh: Mesh) -> dict[int, tuple[int, int]]:
    """Return for each lane that this process has devices of which part of its batches it loads: (index, parts).

    A ValueError for a mesh without "pool" and "data", or without devices of this process, and where the devices of a
    lane fall on the processes so that they would load parts of other sizes, or parts that overlap.
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
    """Return for each process and lane on it the part of a batch it loads, from the processes [pool, data, rest]."""
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


def _lanes(mesh):
    check_mesh(mesh)
    if missing := {"pool", "data"} - set(mesh.axis_names):
        raise ValueError(f"the mesh needs the axes 'pool' and 'data', and lacks {sorted(missing)}")
    return mesh.shape["pool"]


def _on_each(function, mesh):
    """Run a function on each lane by itself, so that no exchange can cross lanes; the other axes are left to XLA."""

    def of_lane(*args):
        results = function(*jax.tree.map(lambda leaf: jnp.squeeze(leaf, 0), args))
        return jax.tree.map(lambda leaf: leaf[None], results)

    over = {"in_specs": P("pool"), "out_specs": P("pool"), "axis_names": {"pool"}}
    return jax.shard_map(of_lane, mesh=mesh, check_vma=False, **over)


@functools.partial(jax.jit, static_argnames="mesh")
def _taken(stacked, lane, *, mesh):
    def take(leaf):
        # added up as bits: every device has what the lane's own devices have, and none needs room for all lanes
        bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))
        own = (jnp.arange(len(bits)) == lane).reshape(-1, *[1] * (bits.ndim - 1))
        chosen = jnp.sum(jnp.where(own, bits, jnp.zeros_like(bits)), axis=0, dtype=bits.dtype)
        return jax.lax.bitcast_convert_type(chosen, leaf.dtype)

    return jax.lax.with_sharding_constraint(jax.tree.map(take, stacked), NamedSharding(mesh, P()))
