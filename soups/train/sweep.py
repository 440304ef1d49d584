"""Sweep hyper-parameters: a sweep is a list of plain dicts, run one by one, as one program, or over devices."""

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from soups import tree
from soups.train.loop import complete, finetune, finetune_program, jit_step, member_indices, typed
from soups.train.step import Training
from soups.train.trajectory import averages

MODES = ("sequential", "map", "vmap", "sharded")


def grid(**choices: Sequence[Any]) -> list[dict[str, Any]]:
    """List all combinations of the choices, the last name changing fastest."""
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


def zipped(**choices: Sequence[Any]) -> list[dict[str, Any]]:
    """List the choices side by side: the first of each, the second of each, ...

    Raises:
        ValueError: they are not equally many.
    """
    if len({len(values) for values in choices.values()}) > 1:
        raise ValueError(f"zipped choices differ in number: { {name: len(v) for name, v in choices.items()} }")
    return [dict(zip(choices, values, strict=True)) for values in zip(*choices.values(), strict=True)]


def random(number: int, seed: int, /, **distributions: Callable[[np.random.Generator], Any]) -> list[dict[str, Any]]:
    """Draw `number` members; each hyper-parameter is a function of a NumPy generator.

    Member i depends on `seed` and i alone: a longer sweep begins with the members of a shorter one.
    """
    generators = [np.random.default_rng([seed, index]) for index in range(number)]
    return [{name: draw(generator) for name, draw in distributions.items()} for generator in generators]


def log_uniform(low: float, high: float) -> Callable[[np.random.Generator], float]:
    """Return a distribution whose logarithm is uniform between those of `low` and `high`."""
    return lambda generator: float(np.exp(generator.uniform(np.log(low), np.log(high))))


def uniform(low: float, high: float) -> Callable[[np.random.Generator], float]:
    """Return the uniform distribution on [low, high)."""
    return lambda generator: float(generator.uniform(low, high))


def integers(low: int, high: int) -> Callable[[np.random.Generator], int]:
    """Return the uniform distribution on the integers from `low` to `high`, both included."""
    return lambda generator: int(generator.integers(low, high + 1))


def zero_or(probability: float, distribution: Callable) -> Callable[[np.random.Generator], Any]:
    """Return zero with this probability, else a draw from `distribution`."""
    return lambda generator: distribution(generator) if generator.uniform() >= probability else 0


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
        data: "image" uint8 [N, H, W, C] and "label" int32 [N], or float targets [N, classes] as labels.
        members: hyper-parameters of each member; see `HYPERPARAMETERS`.
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
        ValueError: an unknown mode or hyper-parameter, a mesh without "pool", no members, a SAM radius without
            SAM or the reverse, images and labels that differ in number, labels of other classes, a batch larger than
            the data. All before any work.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    if mode == "sharded" and (mesh is None or "pool" not in mesh.axis_names):
        raise ValueError(f'mode "sharded" needs a mesh with an axis "pool", not {mesh}')
    members = [complete(member) for member in members]
    if not members:
        raise ValueError("a sweep needs at least one member")
    if wrong := [index for index, member in enumerate(members) if (member["sam_radius"] > 0) != training.sam]:
        raise ValueError(f"Training(sam={training.sam}) does not fit the sam_radius of members {wrong}")
    num_examples = _checked_length(data, training.num_classes)
    orders = [member_indices(member, num_examples, batch_size) for member in members]
    members = [member | {"num_steps": len(order)} for member, order in zip(members, orders, strict=True)]
    if mode == "sequential":
        return _one_by_one(training, params, data, members, orders, skip)
    size = members_per_program or len(members)
    return _programs(training, params, data, members, orders, mode, mesh, size, skip)


def _checked_length(data, num_classes):
    # inside a program an index out of bounds is clamped and a label out of bounds has no target: neither is an error
    lengths = {name: len(array) for name, array in data.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the data differ in number: {lengths}")
    labels = np.asarray(data["label"])
    if np.issubdtype(labels.dtype, np.floating):
        if labels.shape[1:] != (num_classes,):
            raise ValueError(f"targets must be [N, {num_classes}], not {list(labels.shape)}")
    elif labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(f"labels must be 0 to {num_classes - 1}, but they go from {labels.min()} to {labels.max()}")
    return lengths["label"]


def _one_by_one(training, params, data, members, orders, skip):
    step = jit_step(training)
    for index, (member, order) in enumerate(zip(members, orders, strict=True)):
        if index in skip:
            continue
        batches = ({name: array[rows] for name, array in data.items()} for rows in order)
        losses = []
        state = finetune(
            training, params, batches, member, step=step, on_step=lambda _, loss, to=losses: to.append(loss)
        )
        kept = averages(state, training.ema_decays)
        result = {"params": state["params"], "averages": kept, "losses": jnp.stack(losses)}
        yield index, jax.device_get(result)


def _programs(training, params, data, members, orders, mode, mesh, size, skip):
    lanes = mesh.shape["pool"] if mode == "sharded" else 1
    size = -(-size // lanes) * lanes  # every device takes equally many
    longest = max(map(len, orders))  # of all programs, so that they share one compilation
    program = _program(training, mode, mesh)
    params, data = _on_all(mesh, (params, dict(data)), P())
    for start in range(0, len(members), size):
        indices = list(range(start, min(start + size, len(members))))
        if all(index in skip for index in indices):
            continue
        # what is missing in the last program is filled up with members of no steps, whose results are dropped
        chosen = [*indices, *[None] * (size - len(indices))]
        chosen = _balance(chosen, [0 if index is None else len(orders[index]) for index in chosen], lanes)
        rows = [members[0] | {"num_steps": 0} if index is None else members[index] for index in chosen]
        order = np.stack([_padded(orders[index or 0], longest) for index in chosen])
        numbers = jax.tree.map(lambda *values: np.stack(values), *map(typed, rows))
        result_at = _fetched(program(params, *_on_all(mesh, (numbers, order), P("pool")), data))
        for index in indices:
            if index not in skip:
                result = result_at(chosen.index(index))
                yield index, result | {"losses": result["losses"][: len(orders[index])]}


def _on_all(mesh, arrays, spec):
    """Put arrays that every process holds on the devices of all of them; one process leaves that to its program."""
    if mesh is None or jax.process_count() == 1:
        return jax.tree.map(jnp.asarray, arrays)
    sharding = jax.sharding.NamedSharding(mesh, spec)

    def place(array):
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(place, arrays)


def _fetched(results):
    """Return the function from a place to the member that was made there, on the host of every process."""
    if all(leaf.is_fully_addressable for leaf in jax.tree.leaves(results)):
        results = jax.device_get(results)
        return lambda at: jax.tree.map(lambda leaf: leaf[at], results)
    everywhere = jax.sharding.NamedSharding(jax.tree.leaves(results)[0].sharding.mesh, P())
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
        run = finetune_program(training, data)
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

    run = finetune_program(training, data, constrain)
    return jax.vmap(run, in_axes=(None, 0, 0), spmd_axis_name=spmd_axis_name)(params, numbers, indices)


def _on(mesh, program):
    def run(*args):
        with jax.set_mesh(mesh):
            return program(*args)

    return run
