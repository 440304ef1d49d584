"""Run the whole training of many members as one program: one after the other, in lockstep, or over devices."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from soups import tree
from soups.data import batch_indices
from soups.train.sharding import on_devices
from soups.train.step import Training, init_state, training_step
from soups.train.trajectory import averages

MODES = ("map", "vmap", "sharded")
_ROOM = 64  # programs have room for a multiple of so many steps
_CHUNKS = 20  # parts of a program on one device, after each of which it is known how far it is


def in_programs(
    training: Training,
    params: tree.Tree,
    data: tree.Tree,
    members: Mapping[str, Mapping[str, Any]],
    wanted: Iterable[str],
    *,
    batch_size: int,
    mode: str,
    mesh: Mesh | None,
    members_per_program: int | None,
    reached: Callable[[str, int], None],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and {"params", "averages", "losses" [num_steps]} of each member that is wanted, on the host.

    A program is that of all its members, also of those that are not wanted, so that these change no bit of the others;
    if none of them is wanted, it is not run. `data`, `members`: from `soups.train.loop.prepared`. `reached` is called
    with a name, the number of steps that the member has taken, and the loss of the last one.
    """
    lanes = mesh.shape["pool"] if mode == "sharded" else 1
    names, wanted, length = list(members), set(wanted), len(jax.tree.leaves(data)[0])
    orders = {
        name: batch_indices(length, batch_size, one["num_steps"], int(one["seed"])) for name, one in members.items()
    }
    size = -(-(members_per_program or len(names)) // lanes) * lanes  # every device takes equally many
    # of all programs, and mostly of the next sweep, so that they share one compilation
    longest = -(-max(map(len, orders.values())) // _ROOM) * _ROOM
    program = training.programs.setdefault((mode, mesh), _program(training, mode, mesh))
    params, data = _on_all(mesh, (params, data), P())
    for start in range(0, len(names), size):
        group = names[start : start + size]
        if wanted.isdisjoint(group):
            continue
        # what is missing in the last program is filled up with members of no steps, whose results are dropped
        chosen = [*group, *[None] * (size - len(group))]
        chosen = _balance(chosen, [0 if name is None else len(orders[name]) for name in chosen], lanes)
        rows = [members[names[0]] | {"num_steps": 0} if name is None else members[name] for name in chosen]
        taken = [orders[names[0] if name is None else name] for name in chosen]
        order = np.stack([np.pad(one, ((0, longest - len(one)), (0, 0))) for one in taken])
        numbers = jax.tree.map(lambda *values: np.stack(values), *map(training.numbers, rows))

        def report(until, losses, chosen=chosen):
            for name, curve in zip(chosen, losses, strict=True):
                if name is not None:
                    steps = min(until, len(orders[name]))
                    reached(name, steps, float(curve[steps - 1]))

        result_at = _fetched(program(params, *_on_all(mesh, (numbers, order), P("pool")), data, report))
        for name in group:
            if name in wanted:
                result = result_at(chosen.index(name))
                yield name, result | {"losses": result["losses"][: len(orders[name])]}


def _on_all(mesh, arrays, spec):
    """Put arrays that every process holds on the devices of all of them; one process leaves that to its program."""
    if mesh is None or jax.process_count() == 1:
        return jax.device_put(arrays)  # asarray compiles a program for each shape
    return on_devices(arrays, NamedSharding(mesh, spec))


def _fetched(results):
    """Return the function from a place to the member that was made there, on the host of every process."""
    if all(leaf.is_fully_addressable for leaf in jax.tree.leaves(results)):
        results = jax.device_get(results)
        return lambda at: jax.tree.map(lambda leaf: leaf[at], results)
    everywhere = NamedSharding(jax.tree.leaves(results)[0].sharding.mesh, P())
    member = jax.jit(lambda results, at: jax.tree.map(lambda leaf: leaf[at], results), out_shardings=everywhere)
    return lambda at: jax.device_get(member(results, np.int32(at)))  # one at a time: a host may not hold them all


def _balance(items, costs, lanes):
    """Deal items to lanes of equal length, back and forth from the most expensive, and join the lanes."""
    ranked = sorted(range(len(items)), key=lambda i: -costs[i])
    rounds = [ranked[start : start + lanes] for start in range(0, len(ranked), lanes)]
    dealt = [row if number % 2 == 0 else row[::-1] for number, row in enumerate(rounds)]
    return [items[row[lane]] for lane in range(lanes) for row in dealt]


def _program(training, mode, mesh):
    if mode == "map":
        return _in_chunks(training, _in_turn)
    if mode == "vmap":
        return _in_chunks(training, jax.vmap)
    if mesh.shape.get("data", 1) == 1:
        # each device goes through its own members, however many steps they have
        def alone(params, numbers, order, data):
            return _in_turn(functools.partial(_whole, training, params, data))(numbers, order)

        specs = {"in_specs": (P(), P("pool"), P("pool"), P()), "out_specs": P("pool"), "axis_names": {"pool"}}
        return _on(mesh, jax.jit(jax.shard_map(alone, mesh=mesh, check_vma=False, **specs)))

    # devices that share a batch exchange gradients, which they can only do if all take their steps at the same time
    def together(params, numbers, order, data):
        numbers, order = jax.lax.with_sharding_constraint((numbers, order), P("pool"))
        whole = functools.partial(_whole, training, params, data, batch_spec=P("data"))
        results = jax.vmap(whole, spmd_axis_name="pool")(numbers, order)
        return jax.lax.with_sharding_constraint(results, P("pool"))

    return _on(mesh, jax.jit(together))


def _on(mesh, program):
    def run(params, numbers, order, data, report):
        with jax.set_mesh(mesh):
            return program(params, numbers, order, data)

    return run


def _in_turn(function):
    return lambda *rows: jax.lax.map(lambda row: function(*row), rows)


def _in_chunks(training, each):
    """Return a program that stops on its way to say how many steps its members have taken."""
    begin = jax.jit(lambda params, *rows: each(functools.partial(_begin, training, params))(*rows))
    go_on = jax.jit(
        lambda data, until, *rows: each(functools.partial(_go_on, training, data, until))(*rows), donate_argnums=2
    )
    end = jax.jit(each(functools.partial(_end, training)))

    def run(params, numbers, order, data, report):
        carry, last = begin(params, numbers, order), int(np.max(numbers["num_steps"]))
        chunk = -(-last // _CHUNKS)
        for until in range(chunk, last + chunk, chunk):
            carry = jax.block_until_ready(go_on(data, np.int32(until), carry, numbers, order))
            report(until, jax.device_get(carry[1]))
        return end(*carry)

    return run


# --- A member's training, traceable: it may be mapped, and every member then takes its own number of steps ---


def _whole(training, params, data, numbers, order, batch_spec=None):
    carry = _begin(training, params, numbers, order)
    return _end(training, *_go_on(training, data, numbers["num_steps"], carry, numbers, order, batch_spec))


def _begin(training, params, numbers, order):
    """Return the state before the first step, and room for the losses of as many steps as `order` [steps, B] has."""
    return init_state(training, params, numbers), jnp.zeros(order.shape[0], jnp.float32)


def _go_on(training, data, until, carry, numbers, order, batch_spec=None):
    """Take the steps up to `until`, or to a member's last."""

    def body(carry):
        state, losses = carry
        index = state["step"]
        batch = jax.tree.map(lambda array: array[order[index]], data)
        if batch_spec is not None:
            batch = jax.lax.with_sharding_constraint(batch, batch_spec)
        state, loss = training_step(training, state, batch, numbers)
        return state, losses.at[index].set(loss)

    last = jnp.minimum(until, jnp.asarray(numbers["num_steps"], jnp.int32))
    return jax.lax.while_loop(lambda carry: carry[0]["step"] < last, body, carry)


def _end(training, state, losses):
    """Return what is kept of a member; losses past its last step are zero."""
    return {"params": state["params"], "averages": averages(state, training.ema_decays), "losses": losses}
