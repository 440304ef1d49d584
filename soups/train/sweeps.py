"""Train the members of a sweep from the same weights, one by one, as one program, over devices, or on lanes."""

import collections
import functools
import inspect
import itertools
import json
import math
import shutil
import urllib.parse
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xxhash
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from soups import state as state_files
from soups import tree
from soups.data import batch_indices
from soups.pool import Pool, digest
from soups.pool.pool import as_json
from soups.processes import on_first_process
from soups.progress import progress, say
from soups.train import checks
from soups.train.lanes import Lanes, groups_of
from soups.train.loop import Alone, prepared, run, training_of
from soups.train.sharding import on_devices
from soups.train.step import Training, init_state, training_step
from soups.train.trajectory import averages as averages_of

MODES = ("sequential", "map", "vmap", "sharded")


def sweep(
    loss: Callable[..., Any] | Training,
    params: tree.Tree,
    data: Any,
    members: Sequence[Mapping[str, Any]],
    pool: Pool | None = None,
    *,
    batch_size: int | None = None,
    names: Sequence[str] | None = None,
    base: str | None = None,
    mode: str | None = None,
    mesh: jax.sharding.Mesh | None = None,
    shardings: tree.Tree | None = None,
    members_per_program: int | None = None,
    save_every: int = 1000,
    averages: Mapping[str, Pool] | None = None,
    evaluate: Callable[[tree.Tree], Any] | None = None,
    on_member: Callable[[str, dict[str, Any]], None] = lambda name, result: None,
    **settings: Any,
) -> Mapping[str, tree.Tree]:
    """Train every member of a sweep from the same weights, and put each into a pool as soon as it is done.

        members = search.random(16, 0, learning_rate=search.log_uniform(1e-5, 1e-3), epochs=search.integers(4, 8))
        pool = soups.train.sweep(loss, start, data, members, soups.Pool("pool"), batch_size=64)
        soup = soups.uniform(pool)

    The steps of all members, the time to go and the losses are shown while it runs. The same call goes on after a kill,
    with the same bits. A member is known by the digest of what it is made from: settings (of functions their names and
    the plain values that they hold), hyper-parameters, batch size, start weights and data in memory. So a longer list,
    or another order, makes what is new alone.

    Args:
        loss, params, data, batch_size, settings: as of `soups.train.fit`; batches come from a function `data(index,
            count, ...)` to part `index` of `count` of a member's batches, resumable as there. It takes by name those
            hyper-parameters that it needs, which need not be numbers.
        members: hyper-parameters of each.
        pool: None keeps the members in memory.
        names: of the members; by default "member_00" and so on, as far as they are free.
        base: name or digest of the start weights, for the pool's records.
        mode: of data in memory, see `run_sweep`; by default "sharded" with a mesh, else "map". "sequential" takes
            the loop of `fit`, as batches do: as many members side by side as the mesh has lanes, with checkpoints
            beside the pool.
        mesh, shardings: see `run_sweep`, and for the loop `soups.train.lanes.Lanes`.
        members_per_program: how many members are made, and added, at once.
        save_every: steps from one checkpoint to the next.
        averages: pools for averages along the trajectories, by their names, such as {"ema": pool}.
        evaluate: from weights to the metrics (a mapping, or one number) that are kept with a member.
        on_member: called with the name and the result {"params", "averages", "losses"} of each member that was added.

    Returns:
        The members by name, in the order of the list: a view of the pool.

    Raises:
        ValueError: as `fit` and `run_sweep`; a name that is in the pool for a member made from something else.
        OSError: the disk is full or cannot be written to.
    """
    if mode is not None and not checks.is_arrays(data):
        raise ValueError(f"mode={mode!r} is of data in memory; batches are trained by one loop")
    plan = _Plan(training_of(loss, settings), params, data, members, pool, batch_size, names)
    if checks.is_arrays(data) and mode != "sequential":
        way = {"mode": mode or ("map" if mesh is None else "sharded"), "mesh": mesh}
        make = functools.partial(plan.by_programs, members_per_program=members_per_program, **way)
    else:
        make = functools.partial(plan.by_loops, mesh=mesh, shardings=shardings, save_every=save_every)
    done = sum(plan.steps[name] for name in plan.names if name not in plan.missing)
    with progress("sweep", sum(plan.steps.values()), "steps", done=done) as advance:
        counted = collections.Counter()

        def on_step(index, losses):
            counted.update(losses.keys())
            advance(len(losses))

        for name, result in make(on_step) if plan.missing else ():
            plan.add(name, result, averages or {}, evaluate, base)
            if uncounted := plan.steps[name] - counted[name]:
                advance(uncounted)
            say(f"{name}: loss {result['losses'][-1]:.4g} at the last of {plan.steps[name]} steps")
            on_member(name, result)
    return {name: plan.kept[name] for name in plan.names} if pool is None else pool.select(plan.names)


class _Plan:
    """Know of each member of a sweep its name, its steps, what it is made from, and whether it is there."""

    def __init__(self, training, params, data, members, pool, batch_size, names):
        if not members:
            raise ValueError("a sweep needs at least one member")
        taken = _taken(data)
        self._own = [{n: one[n] for n in one if n not in taken or n in training.hyperparameters} for one in members]
        data, known = prepared(training, params, data, dict(enumerate(self._own)), batch_size)
        self._training, self._params, self._data, self._batch_size = training, params, data, batch_size
        identities = _identities(training, params, data, members, known, batch_size)
        self.names, self._pool, self.kept = _names(pool, names, identities), pool, {} if pool is None else pool
        self.missing = {name: None for name in self.names if name not in self.kept}
        self._known = dict(zip(self.names, known.values(), strict=True))
        self.steps = {name: member["num_steps"] for name, member in self._known.items()}
        self._metadata = {
            name: {"config": dict(member), "identity": identity}
            for name, member, identity in zip(self.names, members, identities, strict=True)
        }
        self._of_data = {name: _of(taken, member) for name, member in zip(self.names, members, strict=True)}

    def by_programs(self, on_step, **options):
        """Yield the name and the result of each missing member, many of which are one program."""
        skip = {index for index, name in enumerate(self.names) if name not in self.missing}
        options |= {"batch_size": self._batch_size, "skip": skip}
        for index, result in run_sweep(self._training, self._params, self._data, self._own, **options):
            yield self.names[index], result

    def by_loops(self, on_step, mesh, shardings, save_every):
        """Yield the name and the result of each missing member, as many trained at once as there are lanes."""
        training, params, data = self._training, self._params, self._data
        placement = Alone(training) if mesh is None else Lanes(training, params, mesh=mesh, shardings=shardings)
        feed = data if checks.is_arrays(data) else lambda name, *part: data(*part, **self._of_data[name])
        beside = None if self._pool is None else self._pool.path.with_name(f"{self._pool.path.name}.training")
        options = {"batch_size": self._batch_size, "save_every": save_every, "on_step": on_step}
        for group in _groups(self.steps, self.missing, placement.count, beside):
            place = None if beside is None else on_first_process(lambda group=group: _begin(beside, group))
            own = {name: self._known[name] for name in group}
            state, losses = run(placement, params, own, feed, directory=place, **options)
            for lane, name in enumerate(group):
                if name in self.missing:
                    one = placement.take(state, lane)
                    averaged = averages_of(one, training.ema_decays)
                    known = np.asarray(losses.get(name) or [math.nan], np.float32)  # other processes have theirs
                    yield name, {"params": one["params"], "averages": averaged, "losses": known}
            if place is not None:
                on_first_process(lambda place=place: shutil.rmtree(place, ignore_errors=True))
        if beside is not None:
            on_first_process(lambda: shutil.rmtree(beside, ignore_errors=True))  # what killed sweeps left

    def add(self, name, result, averages, evaluate, base):
        """Put a member where it is kept, after its averages."""
        losses, weights = result["losses"], result["params"]
        metadata = self._metadata[name] | {"final_loss": float(losses[-1]) if np.isfinite(losses[-1]) else None}
        for kind, average in averages.items():
            if name not in average:
                average.add(name, tree.cast_like(result["averages"][kind], weights), metadata, base=base)
        if self._pool is None:
            self.kept[name] = weights
        else:
            self._pool.add(name, weights, metadata, metrics=_measured(evaluate, weights), base=base)


def _taken(data):
    """Return the names of the hyper-parameters that a function for batches takes."""
    if checks.is_arrays(data):
        return []
    if not callable(data):
        raise ValueError("the batches of the members come from a function data(index, count, ...), not one iterable")
    return list(inspect.signature(data).parameters)[2:]


def _of(names, member):
    return {name: member[name] for name in names if name in member}


def _measured(evaluate, params):
    found = {} if evaluate is None else evaluate(params)
    return found if isinstance(found, Mapping) else {"score": float(found)}


def _identities(training, params, data, members, known, batch_size):
    """Return the digest of all that each member is made from."""
    arrays = {"data": data} if checks.is_arrays(data) else {}
    common = {
        "training": checks.described(training),
        "start": digest({"start": params}),
        "data": digest(arrays) if arrays else checks.described(data),
        "batch_size": batch_size,
    }
    found = []
    for index, member in enumerate(members):
        own = as_json({**member, **{name: float(value) for name, value in known[index].items()}}, "hyper-parameters")
        found.append(xxhash.xxh3_128_hexdigest(json.dumps({**common, "member": own}, sort_keys=True).encode()))
    if len(set(found)) < len(found):
        same = [index for index, one in enumerate(found) if found.count(one) > 1]
        raise ValueError(f"members {same} are the same as others: give them seeds of their own")
    return found


def _names(pool, names, identities):
    """Return the names of the members: in the pool they are known by what they are made from."""
    there = {} if pool is None else {pool.record(name)["metadata"].get("identity"): name for name in pool}
    if names is None:
        free = (f"member_{n:02d}" for n in itertools.count() if pool is None or f"member_{n:02d}" not in pool)
        return [there.get(identity) or next(free) for identity in identities]
    if len(names) != len(identities):
        raise ValueError(f"{len(identities)} members need {len(identities)} names, but {len(names)} were given")
    pairs = zip(names, identities, strict=True)
    if wrong := [name for name, one in pairs if pool is not None and name in pool and there.get(one) != name]:
        raise ValueError(
            f"{pool} has {', '.join(wrong)} already, made from something else: take other names or a new pool"
        )
    return list(names)


def _groups(steps, missing, count, beside):
    """Return the groups that are left; first those that were killed before all of their members were kept."""
    begun = [] if beside is None else on_first_process(lambda: _begun(beside))
    begun = [group for group in begun if set(group) <= steps.keys() and set(group) & missing.keys()]
    rest = missing.keys() - set(itertools.chain(*begun))
    return begun + groups_of({name: steps[name] for name in missing if name in rest}, count)


def _begun(beside):
    return [state_files.read(path, {"members": list})["members"] for path in sorted(beside.glob("*/group.json"))]


def _begin(beside, group):
    place = beside / f"group_{urllib.parse.quote(group[0], safe='')}"
    place.mkdir(parents=True, exist_ok=True)
    state_files.write(place / "group.json", {"members": group})
    return str(place)


def run_sweep(
    training: Training,
    params: tree.Tree,
    data: Mapping[str, np.ndarray],
    members: Sequence[Mapping[str, Any]],
    *,
    batch_size: int,
    mode: str = "map",
    mesh: jax.sharding.Mesh | None = None,
    members_per_program: int | None = None,
    skip: Collection[int] = (),
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Fine-tune every member of a sweep from the same weights, and give (index, result) as they are ready.

    All modes compute the same members; only float32 rounding may differ, since XLA fuses them differently. With several
    JAX processes all of them must call it, with the same arguments: "sharded" spreads the members over the devices of
    all and gives each result to all; in the other modes each process computes the same on its own first device.

    Args:
        training: what the members have in common.
        params: the start weights.
        data: a pytree of arrays in memory with one row for each example.
        members: hyper-parameters of each member.
        batch_size: examples in each step.
        mode: "sequential" runs one jitted step after the other; "map" makes many members one program that runs one
            after the other (best on a CPU); "vmap" runs them in lockstep (best when one member does not fill an
            accelerator); "sharded" spreads them over the axis "pool" of `mesh`, and each batch over its axis "data".
        mesh: for "sharded".
        members_per_program: how many members one run of the program makes; default all.
        skip: indices of members that are not wanted; a program is run unless all of its members are skipped.

    Returns:
        Pairs of a member's index and {"params", "averages", "losses" [num_steps]}, on the host.

    Raises:
        ValueError: an unknown mode, a mesh without "pool", no members, and what the door says of settings, weights,
            hyper-parameters and data (`soups.train.checks`). All before any work.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    if mode == "sharded" and (mesh is None or "pool" not in mesh.axis_names):
        raise ValueError(f'mode "sharded" needs a mesh with an axis "pool", not {mesh}')
    if not members:
        raise ValueError("a sweep needs at least one member")
    data, known = prepared(training, params, data, dict(enumerate(members)), batch_size)
    members = list(known.values())
    if mode == "sequential":
        return _one_by_one(training, params, data, members, batch_size, skip)
    length = len(jax.tree.leaves(data)[0])
    orders = [batch_indices(length, batch_size, one["num_steps"], int(one["seed"])) for one in members]
    size = members_per_program or len(members)
    return _programs(training, params, data, members, orders, mode, mesh, size, skip)


def _one_by_one(training, params, data, members, batch_size, skip):
    placement = Alone(training)
    for index, member in enumerate(members):
        if index in skip:
            continue
        state, losses = run(placement, params, {"": member}, data, batch_size=batch_size)
        kept = averages_of(state, training.ema_decays)
        result = {"params": state["params"], "averages": kept, "losses": np.asarray(losses[""], np.float32)}
        yield index, jax.device_get(result)


def _programs(training, params, data, members, orders, mode, mesh, size, skip):
    lanes = mesh.shape["pool"] if mode == "sharded" else 1
    size = -(-size // lanes) * lanes  # every device takes equally many
    longest = max(map(len, orders))  # of all programs, so that they share one compilation
    program = _program(training, mode, mesh)
    params, data = _on_all(mesh, (params, data), P())
    for start in range(0, len(members), size):
        indices = list(range(start, min(start + size, len(members))))
        if all(index in skip for index in indices):
            continue
        # what is missing in the last program is filled up with members of no steps, whose results are dropped
        chosen = [*indices, *[None] * (size - len(indices))]
        chosen = _balance(chosen, [0 if index is None else len(orders[index]) for index in chosen], lanes)
        rows = [members[0] | {"num_steps": 0} if index is None else members[index] for index in chosen]
        order = np.stack([_padded(orders[index or 0], longest) for index in chosen])
        numbers = jax.tree.map(lambda *values: np.stack(values), *map(training.numbers, rows))
        result_at = _fetched(program(params, *_on_all(mesh, (numbers, order), P("pool")), data))
        for index in indices:
            if index not in skip:
                result = result_at(chosen.index(index))
                yield index, result | {"losses": result["losses"][: len(orders[index])]}


def _on_all(mesh, arrays, spec):
    """Put arrays that every process holds on the devices of all of them; one process leaves that to its program."""
    if mesh is None or jax.process_count() == 1:
        return jax.tree.map(jnp.asarray, arrays)
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


def _padded(order, length):
    return np.pad(order, ((0, length - len(order)), (0, 0)))


def _program(training, mode, mesh):
    def in_turn(params, numbers, indices, data):
        run = _whole_run(training, data)
        return jax.lax.map(lambda member: run(params, *member), (numbers, indices))

    if mode == "map":
        return jax.jit(in_turn)
    if mode == "vmap":
        return jax.jit(lambda *args: _in_lockstep(training, *args))
    if mesh.shape.get("data", 1) == 1:
        # each device goes through its own members, however many steps they have
        specs = {"in_specs": (P(), P("pool"), P("pool"), P()), "out_specs": P("pool"), "axis_names": {"pool"}}
        return _on(mesh, jax.jit(jax.shard_map(in_turn, mesh=mesh, check_vma=False, **specs)))

    # devices that share a batch exchange gradients, which they can only do if all take their steps at the same time
    def together(params, numbers, indices, data):
        numbers, indices = jax.lax.with_sharding_constraint((numbers, indices), P("pool"))
        results = _in_lockstep(training, params, numbers, indices, data, spmd_axis_name="pool", batch_spec=P("data"))
        return jax.lax.with_sharding_constraint(results, P("pool"))

    return _on(mesh, jax.jit(together))


def _in_lockstep(training, params, numbers, indices, data, *, spmd_axis_name=None, batch_spec=None):
    def constrain(batch):
        return batch if batch_spec is None else jax.lax.with_sharding_constraint(batch, batch_spec)

    run = _whole_run(training, data, constrain)
    return jax.vmap(run, in_axes=(None, 0, 0), spmd_axis_name=spmd_axis_name)(params, numbers, indices)


def _on(mesh, program):
    def run(*args):
        with jax.set_mesh(mesh):
            return program(*args)

    return run


def _whole_run(training: Training, data: tree.Tree, constrain=lambda batch: batch):
    """Return a function that runs a whole training as one traceable program.

    The function takes weights, hyper-parameters and batch indices [max_steps, B] into the data, and gives {"params",
    "averages", "losses" [max_steps]}; losses past the last step are zero. It may be mapped: every member then runs its
    own number of steps.
    """

    def run(params, hyperparameters, indices):
        def body(carry):
            state, losses = carry
            index = state["step"]
            batch = constrain(jax.tree.map(lambda array: array[indices[index]], data))
            state, loss = training_step(training, state, batch, hyperparameters)
            return state, losses.at[index].set(loss)

        carry = (init_state(training, params, hyperparameters), jnp.zeros(indices.shape[0], jnp.float32))
        last = jnp.asarray(hyperparameters["num_steps"], jnp.int32)
        state, losses = jax.lax.while_loop(lambda carry: carry[0]["step"] < last, body, carry)
        return {"params": state["params"], "averages": averages_of(state, training.ema_decays), "losses": losses}

    return run
