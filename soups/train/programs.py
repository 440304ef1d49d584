"""Train many members by programs of many steps: one after the other, in lockstep, or side by side on devices."""

import collections
import contextlib
import functools
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from soups import tree
from soups.data import batch_indices
from soups.train.lanes import groups_of
from soups.train.sharding import on_devices
from soups.train.step import Training, init_state, matched, training_step
from soups.train.trajectory import averages

MODES = ("map", "vmap", "sharded")
_ROOM = 64  # programs have room for a multiple of so many steps
_PARTS = 20  # of a training, after each of which it is known how far it is
_AHEAD = 4  # parts that the devices are given before the first of them is done


def in_programs(
    training: Training,
    params: tree.Tree,
    data: tree.Tree,
    members: Mapping[str, Mapping[str, Any]],
    wanted: Collection[str],
    *,
    batch_size: int,
    mode: str,
    mesh: Mesh | None,
    members_per_program: int | None,
    reached: Callable[[str, int, float], None],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and {"params", "averages", "losses" [num_steps]} of each member that is wanted, on the host.

    Those that are not wanted change no bit of the others. While the caller keeps what it was given, the next members
    train. `data`, `members`: from `soups.train.loop.prepared`. `reached` is called with a name, the number of steps
    that the member has taken, and the loss of the last one.
    """
    length = len(jax.tree.leaves(data)[0])
    # of all programs, and mostly of the next sweep, so that they share one compilation
    room = -(-max(member["num_steps"] for member in members.values()) // _ROOM) * _ROOM
    fixed = _unmoved(training, params, data, members, batch_size) if mode == "vmap" else None
    key = mode, mesh, None if fixed is None else (jax.tree.structure(fixed), *jax.tree.leaves(fixed))
    run = training.programs.setdefault(key, _program(training, mode, mesh, fixed))
    params, data = _on_all(mesh, (params, data), P())
    same = None if fixed is None else jax.device_get(tree.split_by(fixed, params)[0])

    def row(name, steps):
        order = batch_indices(length, batch_size, steps, int(members[name]["seed"]))
        return training.numbers(members[name] | {"num_steps": steps}), np.pad(order, ((0, room - steps), (0, 0)))

    before = iter(())
    for group in _groups(members, wanted, mode, mesh, members_per_program):
        rows = jax.tree.map(lambda *values: np.stack(values), *itertools.starmap(row, group))
        parts = run(params, data, _on_all(mesh, rows, P("pool")), max(steps for _, steps in group))
        begun = next(parts)
        yield from before
        for until, made in itertools.chain([begun], parts):
            for place, curve in _known(made["losses"]):
                name, steps = group[place]
                if steps:
                    reached(name, min(until, steps), float(curve[min(until, steps) - 1]))
        before = _results(training, group, same, **made)
    yield from before


def _groups(members, wanted, mode, mesh, size) -> list[list[tuple[str, int]]]:
    """Return who trains together, and for how many steps: none of those that are not wanted, or only fill a place."""
    wanted = set(wanted)
    every = {name: member["num_steps"] if name in wanted else 0 for name, member in members.items()}
    if mode == "vmap":  # each keeps its place, for at another one a program may round otherwise
        size = size or len(every)
        groups = [list(every)[start : start + size] for start in range(0, len(every), size)]
    else:
        size = mesh.shape["pool"] if mode == "sharded" else 1
        groups = groups_of({name: every[name] for name in every if name in wanted}, size)
    filled = [[(name, every[name]) for name in group] for group in groups if not wanted.isdisjoint(group)]
    return [group + [(group[0][0], 0)] * (size - len(group)) for group in filled]


def _on_all(mesh, arrays, spec):
    """Put arrays that every process holds on the devices of all of them; one process leaves that to its program."""
    if mesh is None or jax.process_count() == 1:
        return jax.device_put(arrays)  # asarray compiles a program for each shape
    return on_devices(arrays, NamedSharding(mesh, spec))


def _known(losses):
    """Yield the place and the losses of each member that this process has devices of."""
    for shard in losses.addressable_shards:
        yield from enumerate(np.asarray(shard.data), shard.index[0].start or 0)


def _results(training, group, same, state, losses):
    """Yield the name and the result of each member that took steps, on the host of every process.

    `same`: the weights that no member has of its own, or None.
    """
    made = {"params": state["params"], "averages": averages(state, training.ema_decays), "losses": losses}
    result_at = _fetched(made)
    for place, (name, steps) in enumerate(group):
        if steps:
            result = result_at(place)
            if same is not None:
                result |= {"params": tree.combine(result["params"], same)}
            yield name, result | {"losses": result["losses"][:steps]}


def _fetched(results):
    """Return the function from a place to the member that was made there, on the host of every process."""
    if all(leaf.is_fully_addressable for leaf in jax.tree.leaves(results)):
        results = jax.device_get(results)
        return lambda at: jax.tree.map(lambda leaf: leaf[at], results)
    everywhere = NamedSharding(jax.tree.leaves(results)[0].sharding.mesh, P())
    member = jax.jit(lambda results, at: jax.tree.map(lambda leaf: leaf[at], results), out_shardings=everywhere)
    return lambda at: jax.device_get(member(results, np.int32(at)))  # one at a time: a host may not hold them all


def _unmoved(training, params, data, members, batch_size):
    """Return which weights a step hands on as they are, a tree of booleans, or None if it moves all of them.

    Side by side, all members share them: a frozen base is there once, however many members have changes of their own.
    """
    rates = jax.tree.leaves(matched(training, params)[0])
    if all(rates):
        return None
    numbers = training.numbers(next(iter(members.values())))

    def rows(array):
        return jax.ShapeDtypeStruct((batch_size, *array.shape[1:]), jax.dtypes.canonicalize_dtype(array.dtype))

    batch = jax.tree.map(rows, data)
    state = jax.eval_shape(functools.partial(init_state, training), params, numbers)

    def moved(state, batch):
        return training_step(training, state, batch, numbers)[0]["params"]

    places = jax.tree.structure(state).unflatten(range(len(jax.tree.leaves(state))))
    traced = jax.make_jaxpr(moved)(state, batch).jaxpr
    given = [traced.invars[place] for place in jax.tree.leaves(places["params"])]
    same = [new is old and not rate for new, old, rate in zip(traced.outvars, given, rates, strict=True)]
    return jax.tree.structure(params).unflatten(same) if any(same) else None


def _program(training, mode, mesh, fixed=None):
    """Return a function that trains a group, and yields how far it came, {"state", "losses" [places, steps]}.

    It is some parts ahead of what it yields, whose state is gone, but for the last one. `fixed`: see `_unmoved`.
    """
    spec = P("data") if mode == "sharded" and mesh.shape.get("data", 1) > 1 else None
    begin = jax.jit(_of_all(mode, mesh, functools.partial(_begin, training, fixed)))
    go_on = jax.jit(_of_all(mode, mesh, functools.partial(_go_on, training, spec, fixed)), donate_argnums=1)
    within = functools.partial(jax.set_mesh, mesh) if mode == "sharded" else contextlib.nullcontext

    def run(params, data, rows, last):
        with within():
            carry = begin(params, (), rows)
        shared = None if fixed is None else tree.split_by(fixed, params)[0]
        part, ahead = -(-last // _PARTS), collections.deque()
        for until in range(part, last + part, part):
            with within():
                carry, losses = go_on((data, _on_all(mesh, np.int32(until), P()), shared), carry, rows)
            ahead.append((until, {"state": carry[0], "losses": losses}))
            if len(ahead) == _AHEAD:
                yield ahead.popleft()
        yield from ahead

    return run


def _of_all(mode, mesh, function):
    """Return a function of one member, of what all share, its carry and its row, as one of all places of a group."""

    def alone(shared, carry, row):
        results = function(shared, *jax.tree.map(lambda leaf: jnp.squeeze(leaf, 0), (carry, row)))
        return jax.tree.map(lambda leaf: leaf[None], results)

    if mode == "map":
        return alone
    if mode == "vmap":
        return jax.vmap(function, in_axes=(None, 0, 0))
    if mesh.shape.get("data", 1) == 1:
        # each device goes through its own member, however many steps it has
        specs = {"in_specs": (P(), P("pool"), P("pool")), "out_specs": P("pool"), "axis_names": {"pool"}}
        return jax.shard_map(alone, mesh=mesh, check_vma=False, **specs)

    # devices that share a batch exchange gradients, which they can only do if all take their steps at the same time
    def together(shared, carry, rows):
        carry, rows = jax.lax.with_sharding_constraint((carry, rows), P("pool"))
        results = jax.vmap(function, in_axes=(None, 0, 0), spmd_axis_name="pool")(shared, carry, rows)
        return jax.lax.with_sharding_constraint(results, P("pool"))

    return together


# --- A member's training, traceable: it may be mapped, and every member then takes its own number of steps ---


def _begin(training, fixed, params, carry, row):
    """Return the state before the first step, and room for the losses of as many steps as the order [steps, B] has."""
    numbers, order = row
    return _own(fixed, init_state(training, params, numbers)), jnp.zeros(order.shape[0], jnp.float32)


def _own(fixed, state):
    """Leave out the weights that all members share."""
    return state if fixed is None else state | {"params": tree.split_by(fixed, state["params"])[1]}


def _go_on(training, batch_spec, fixed, shared, carry, row):
    """Take the steps up to `until`, or to a member's last; give the losses twice, for the state is donated."""
    (data, until, same), (numbers, order) = shared, row

    def body(carry):
        state, losses = carry
        if fixed is not None:
            state = state | {"params": tree.combine(state["params"], same)}
        index = state["step"]
        batch = jax.tree.map(lambda array: array[order[index]], data)
        if batch_spec is not None:
            batch = jax.lax.with_sharding_constraint(batch, batch_spec)
        state, loss = training_step(training, state, batch, numbers)
        return _own(fixed, state), losses.at[index].set(loss)

    last = jnp.minimum(until, jnp.asarray(numbers["num_steps"], jnp.int32))
    carry = jax.lax.while_loop(lambda carry: carry[0]["step"] < last, body, carry)
    return carry, carry[1]
