"""Train the members of a sweep from the same weights, and put each where it is kept when it is done."""

import collections
import contextlib
import functools
import inspect
import itertools
import json
import math
import pathlib
import shutil
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import xxhash

from soups import arguments, tree
from soups import state as state_files
from soups.files import locked
from soups.names import check_name, few
from soups.partition import check_mesh
from soups.pool import Pool, digest
from soups.pool.making import making
from soups.pool.pool import as_json, facts
from soups.processes import is_first, on_all_processes, on_first_process
from soups.progress import progress, say
from soups.recipes._scores import number
from soups.train import checks
from soups.train.lanes import Lanes, groups_of
from soups.train.loop import Alone, prepared, run, training_of
from soups.train.programs import MODES, in_programs
from soups.train.step import Training
from soups.train.trajectory import averages as averages_of
from soups.train.trajectory import kinds_of

_LOSSES = 50  # of a member's curve, in its record
_DIVERGED = "diverged, and no soup will take it"


def sweep(
    loss: Callable[..., Any] | Training,
    params: tree.Tree,
    data: Any,
    members: Iterable[Mapping[str, Any]],
    pool: Pool | None = None,
    *,
    batch_size: int | None = None,
    names: Sequence[str] | None = None,
    base: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    mode: str | None = None,
    mesh: jax.sharding.Mesh | None = None,
    shardings: tree.Tree | None = None,
    members_per_program: int | None = None,
    save_every: int = 1000,
    averages: Mapping[str, Pool] | None = None,
    evaluate: Callable[[tree.Tree], Any] | None = None,
    on_member: Callable[[str, dict[str, Any]], None] = lambda name, result: None,
    what: str = "sweep",
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

    All modes make the same members; only float32 rounding may differ, since XLA fuses them differently. With several
    JAX processes all of them must call it, with the same arguments: "sharded" spreads the members over the devices of
    all; in "map" and "vmap" each process computes the same on its own first device.

    Args:
        loss, params, data, batch_size, settings: as of `soups.train.fit`; batches come from a function `data(index,
            count, ...)` to part `index` of `count` of a member's batches, resumable as there. It takes by name those
            hyper-parameters that it needs, which need not be numbers.
        members: hyper-parameters of each.
        pool: None keeps the members in memory.
        names: of the members; by default "member_00" and so on, as far as they are free.
        base: name or digest of the start weights, for the pool's records.
        metadata: what else a record says, beside "config" (the hyper-parameters) and "losses" (the means over up to 50
            equal parts of the training).
        mode: of data in memory. "map" trains one member after the other, each by programs of many steps (best on a
            CPU); "vmap" many in lockstep (best when one member does not fill an accelerator); "sharded" one on each
            place of the axis "pool" of `mesh`, each batch over its axis "data". While some are put into the pool, the
            next ones train. "sequential" takes the loop of `fit`, as batches do: as many members side by side as the
            mesh has lanes, with checkpoints beside the pool. By default "sharded" with a mesh, else "map".
        mesh, shardings: see `mode`, and for the loop `soups.train.lanes.Lanes`.
        members_per_program: how many "vmap" trains in lockstep; by default all. No other mode takes it.
        save_every: steps from one checkpoint to the next.
        averages: pools for averages along the trajectories, by their names, such as {"ema": pool}.
        evaluate: from weights to the metrics (a mapping, or one number) that are kept with a member, and with each of
            its averages; weights that are not finite have none.
        on_member: called with the name and the result {"params", "averages", "losses"} of each member that was added.
        what: title of what is shown.

    Returns:
        The members by name, in the order of the list, on the host: NumPy arrays, or a view of the pool.

    Raises:
        ValueError: as `fit`; an unknown mode; mode "sharded" with a mesh that has no axis "pool"; `members_per_program`
            in a mode other than "vmap"; no members; names, metadata, a base, averages or functions that would fail in
            the end; a name that the pool already has, for a member made from something else.
        BlockingIOError: another sweep is training members for one of the pools.
        OSError: the disk is full or cannot be written to.
    """
    data, members = checks.opened(data), _listed(members)
    mode = _mode(mode, mesh, checks.is_arrays(data))
    members_per_program = _lockstep(members_per_program, mode)
    training = training_of(loss, settings)
    pools = _pools(pool, averages, training)
    checks.callbacks(evaluate=(evaluate, "params"), on_member=(on_member, "name, result"))
    names = _given_names(names, members)
    for name in names or ["a"]:
        facts(name, metadata, None, base)  # refuses now what no record could hold in the end
    make_plan = functools.partial(_Plan, training, params, data, members, pool, batch_size, names)
    plan = make_plan()
    with _held(pools.values() if plan.missing else ()):
        if plan.missing and any([one.refresh() for one in pools.values()]):  # since they were opened others have added
            plan = make_plan()
        if names is None:  # else the caller tells them apart, and a name of what was made otherwise is an error
            plan.say_others()
        if mode == "sequential":
            make = functools.partial(plan.by_loops, mesh=mesh, shardings=shardings, save_every=save_every)
        else:
            make = functools.partial(plan.by_programs, mode=mode, mesh=mesh, members_per_program=members_per_program)
        taken = dict.fromkeys(plan.missing, 0)
        done = sum(steps for name, steps in plan.steps.items() if name not in plan.missing)
        with progress(what, sum(plan.steps.values()), "steps", done=done) as advance, _told(plan, taken, pool) as tell:

            def reached(name, steps, loss=math.nan):
                tell(name, steps, loss)
                if steps > taken.get(name, steps):
                    advance(steps - taken[name], "" if math.isnan(loss) else f"loss {loss:.4g} of {name}")
                    taken[name] = steps

            for name, result in make(reached) if taken else ():
                shown = plan.add(name, result, averages or {}, evaluate, base, metadata or {})
                reached(name, plan.steps[name], float(result["losses"][-1]))
                say(f"{name}: {shown}")
                on_member(name, result)
    return {name: plan.kept[name] for name in plan.names} if pool is None else pool.select(plan.names)


def _pools(pool, averages, training):
    """Return all pools by what they are called."""
    if not isinstance(averages, Mapping | None):
        raise ValueError(f"averages must be a mapping from their names to pools, not {averages!r:.200}")
    pools = ({} if pool is None else {"pool": pool}) | {f"averages[{n!r}]": one for n, one in (averages or {}).items()}
    for name, one in pools.items():
        if not isinstance(one, Pool):
            raise ValueError(f"{name} must be a pool: give soups.Pool({str(one)!r:.200})")
    for name in averages or {}:
        if not (known := kinds_of(training)):
            raise ValueError(f"averages[{name!r}] needs a setting that averages: ema_decay, swa_start or ema_decays")
        check_name(name, known, "average")
    if len({str(one.path) for one in pools.values()}) < len(pools):
        raise ValueError(f"{', '.join(pools)} must be different pools, because a member has the same name in each")
    return pools


def _given_names(names, members):
    """Return the names of members as a list, or None; a ValueError if they are not one for each."""
    if names is None:
        return None
    if isinstance(names, str | bytes) or not isinstance(names, Iterable):
        raise ValueError(f"names must be a list with one for each member, not {names!r:.200}")
    names = list(names)
    if len(names) != len(members):
        raise ValueError(f"{len(members)} members need {len(members)} names, but {len(names)} were given")
    if twice := [name for name, times in collections.Counter(names).items() if times > 1]:
        raise ValueError(f"several members would have one name: {few(twice)}")
    return names


def _listed(members):
    several = isinstance(members, Iterable) and not isinstance(members, str | bytes | Mapping)
    listed = list(members) if several else [None]
    if wrong := [one for one in listed if not isinstance(one, Mapping)]:
        given = members if wrong == [None] else wrong[0]
        raise ValueError(
            f"members must be a list of dicts, one for each member, such as [{{}}, {{}}], not {given!r:.200}"
        )
    return listed


@contextlib.contextmanager
def _held(pools):
    """Hold the pools of a sweep, so that no other trains for what it could not add in the end (a BlockingIOError)."""
    with contextlib.ExitStack() as stack:
        for path in sorted({pool.path for pool in pools}):
            lock = path.with_name(f".{path.name}.sweep.lock")
            on_first_process(lambda path=path, lock=lock: [None, stack.enter_context(locked(path, lock, "sweep"))][0])
        yield


@contextlib.contextmanager
def _told(plan, missing, pool):
    """Tell those who watch a pool which members the first process makes, and how far they are."""
    if pool is None or not missing or not is_first():
        yield lambda *reached: None
        return
    with making(pool.path, plan.steps) as maker:

        def tell(name, steps, loss):
            if name in missing and name not in maker.members and steps < plan.steps[name]:
                maker.begin(name)
            maker.note(name, steps, plan.steps[name], None if math.isnan(loss) else loss)
            if steps >= plan.steps[name]:
                maker.finish(name)

        yield tell


def _mode(mode, mesh, in_memory):
    if mode is not None and not in_memory:
        raise ValueError(f"mode={mode!r} needs data in memory; batches are trained by one loop")
    check_mesh(mesh)
    mode = mode or ("sequential" if not in_memory else "map" if mesh is None else "sharded")
    check_name(mode, ("sequential", *MODES), "mode")
    if mode == "sharded" and (mesh is None or "pool" not in mesh.axis_names):
        raise ValueError(f'mode "sharded" needs a mesh with an axis "pool", not {mesh}')
    return mode


def _lockstep(members_per_program, mode):
    if members_per_program is None:
        return None
    if mode != "vmap":
        raise ValueError(f'members_per_program is for mode "vmap", but the mode is {mode!r}: leave it out')
    return arguments.check_within("members_per_program", members_per_program, "[1, inf)", whole=True)


class _Plan:
    """Know of each member of a sweep its name, its steps, what it is made from, and whether it is there."""

    def __init__(self, training, params, data, members, pool, batch_size, names):
        if not members:
            raise ValueError("a sweep needs at least one member")
        of_data = _taken(data)
        own = [{n: one[n] for n in one if n not in of_data or n in training.hyperparameters} for one in members]
        data, known = prepared(training, params, data, dict(enumerate(own)), batch_size)
        self._training, self._params, self._data, self._batch_size = training, params, data, batch_size
        self._setup, identities = _identities(training, params, data, members, known, batch_size)
        self.names, self._pool, self.kept = _names(pool, names, identities), pool, {} if pool is None else pool
        self.missing = {name: None for name in self.names if name not in self.kept}
        self._known = dict(zip(self.names, known.values(), strict=True))
        self.steps = {name: member["num_steps"] for name, member in self._known.items()}
        self._metadata = {
            name: {"config": dict(member), "setup": self._setup, "identity": identity}
            for name, member, identity in zip(self.names, members, identities, strict=True)
        }
        own = [{n: one[n] for n in of_data if n in one} for one in members]
        self._of_data = dict(zip(self.names, own, strict=True))

    def say_others(self):
        """Say whether the pool holds members of another sweep, with which these would be one soup."""
        setups = [] if self._pool is None else [self._pool.record(n)["metadata"].get("setup") for n in self._pool]
        if others := sum(setup not in (None, self._setup) for setup in setups):
            what = "members made with other data, start weights, loss, optimizer or batch size"
            say(f"pool {self._pool.path} also holds {others} {what}")

    def by_programs(self, reached, **options):
        """Yield the name and the result of each missing member, trained by programs of many steps."""
        options |= {"batch_size": self._batch_size, "reached": reached}
        return in_programs(self._training, self._params, self._data, self._known, self.missing, **options)

    def by_loops(self, reached, mesh, shardings, save_every):
        """Yield the name and the result of each missing member, as many trained at once as there are lanes."""
        training, params, data = self._training, self._params, self._data
        placement = Alone(training) if mesh is None else Lanes(training, params, mesh=mesh, shardings=shardings)
        feed = data if checks.is_arrays(data) else lambda name, *part: data(*part, **self._of_data[name])
        # states of training lie beside a pool of this machine; with one on a store, what was not added begins anew
        near = self._pool is not None and isinstance(self._pool.path, pathlib.Path)
        beside = self._pool.path.with_name(f"{self._pool.path.name}.training") if near else None

        def on_step(index, losses):
            for name, loss in losses.items():
                reached(name, index + 1, loss)

        options = {"batch_size": self._batch_size, "save_every": save_every, "on_step": on_step}
        for group in _groups(self.steps, self.missing, placement.count, beside):
            place = None if beside is None else on_first_process(lambda group=group: _begin(beside, group))
            own = {name: self._known[name] for name in group}
            state, losses = run(placement, params, own, feed, directory=place, **options)
            everywhere = on_all_processes(lambda losses=losses: losses)  # each knows those of its own lanes
            for lane, name in enumerate(group):
                if name in self.missing:
                    one = placement.take(state, lane)
                    averaged = averages_of(one, training.ema_decays)
                    known = np.asarray(max((of.get(name, []) for of in everywhere), key=len), np.float32)
                    yield name, {"params": one["params"], "averages": averaged, "losses": known}
            if place is not None:
                on_first_process(lambda place=place: shutil.rmtree(place, ignore_errors=True))
        if beside is not None:
            on_first_process(lambda: shutil.rmtree(beside, ignore_errors=True))  # what killed sweeps left

    def add(self, name, result, averages, evaluate, base, metadata):
        """Put a member where it is kept, after its averages, and say how good it is."""
        losses, weights = result["losses"], result["params"]
        metadata = {**metadata, **self._metadata[name], "losses": _curve(losses)}
        shown = [f"loss {losses[-1]:.4g} at the last of {self.steps[name]} steps"]
        for kind, pool in averages.items():
            averaged = tree.cast_like(result["averages"][kind], weights)
            shown += _added(pool, name, averaged, metadata | {"average": kind}, evaluate, base, f"{kind} ")
        if self._pool is None:
            self.kept[name] = weights
            shown += [_DIVERGED] if checks.not_finite(weights) else []
        else:
            shown += _added(self._pool, name, weights, metadata, evaluate, base)
        return ", ".join(shown)


def _added(pool, name, params, metadata, evaluate, base, prefix=""):
    """Put weights into a pool, if they are not there, and return what is to be shown of them."""
    if name not in pool:
        measured = {} if evaluate is None or not tree.all_finite(params) else evaluate(params)
        wrong = "evaluate must return a number, or metrics by name, not"
        metrics = measured if isinstance(measured, Mapping) else {"score": number(measured, wrong)}
        pool.add(name, params, metadata, metrics=metrics, base=base)
    record = pool.record(name)
    shown = [f"{prefix}{metric} {value:.4g}" for metric, value in record["metrics"].items() if np.ndim(value) == 0]
    return shown if record["status"] == "ok" else [*shown, f"{prefix}{_DIVERGED}"]


def _curve(losses):
    """Return the mean losses of so many equal parts; null where one is not finite."""
    parts = np.array_split(np.asarray(losses, np.float64), min(_LOSSES, len(losses)))
    return [float(mean) if math.isfinite(mean := part.mean()) else None for part in parts]


def _taken(data):
    """Return the names of the hyper-parameters that a function for batches takes."""
    if checks.is_arrays(data):
        return []
    if not callable(data):
        raise ValueError(
            "a sweep needs a function data(index, count, ...) that returns batches, not one iterable for all members"
        )
    return list(inspect.signature(data).parameters)[2:]


def _identities(training, params, data, members, known, batch_size):
    """Return the digest of what all members are made from, and of all that each is."""
    arrays = {"data": data} if checks.is_arrays(data) else {}
    common = {
        "training": checks.described(training),
        "start": digest({"start": params}),
        "data": digest(arrays) if arrays else checks.described(data),
        "batch_size": batch_size if batch_size is None else int(batch_size),
    }
    found = []
    for index, member in enumerate(members):
        own = as_json({**member, **{name: float(value) for name, value in known[index].items()}}, "hyper-parameters")
        found.append(xxhash.xxh3_128_hexdigest(json.dumps({**common, "member": own}, sort_keys=True).encode()))
    if len(set(found)) < len(found):
        same = [index for index, one in enumerate(found) if found.count(one) > 1]
        raise ValueError(f"members {same} are the same as others: give them different seeds")
    return xxhash.xxh3_128_hexdigest(json.dumps(common, sort_keys=True).encode()), found


def _names(pool, names, identities):
    """Return the names of the members: in the pool they are known by what they are made from."""
    there = {} if pool is None else {pool.record(name)["metadata"].get("identity"): name for name in pool}
    if names is None:
        free = (f"member_{n:02d}" for n in itertools.count() if pool is None or f"member_{n:02d}" not in pool)
        return [there.get(identity) or next(free) for identity in identities]
    pairs = zip(names, identities, strict=True)
    if wrong := [name for name, one in pairs if pool is not None and name in pool and there.get(one) != name]:
        made = f"already has {', '.join(wrong)}, made from something else"
        raise ValueError(f"{pool} {made}: choose other names or another pool")
    return names


def _groups(steps, missing, count, beside):
    """Return the groups that are left; first those that were killed before all of their members were kept."""

    def read():
        return [state_files.read(path, {"members": list})["members"] for path in sorted(beside.glob("*/group.json"))]

    begun = [] if beside is None else on_first_process(read)
    begun = [group for group in begun if set(group) <= steps.keys() and set(group) & missing.keys()]
    rest = missing.keys() - set(itertools.chain(*begun))
    return begun + groups_of({name: steps[name] for name in missing if name in rest}, count)


def _begin(beside, group):
    place = beside / f"group_{urllib.parse.quote(group[0], safe='')}"
    place.mkdir(parents=True, exist_ok=True)
    state_files.write(place / "group.json", {"members": group})
    return str(place)
