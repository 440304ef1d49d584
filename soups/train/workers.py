"""Train one set of weights by several workers that seldom exchange them: lo-fi, local SGD, DiLoCo."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from soups import tree
from soups.arguments import check_within
from soups.files import PathLike
from soups.train import checks
from soups.train.lanes import Lanes
from soups.train.loop import prepared, run, training_of
from soups.train.sharding import shardings_like
from soups.train.step import STATISTICS, Training, init_state, matched

_AXIS = "pool"  # over which workers are averaged, on a mesh and on one device


@dataclasses.dataclass(frozen=True)
class Exchange:
    """Say when workers exchange their weights, and what they go on from.

        Exchange()                                                            # lo-fi: once, after the last step
        Exchange(every=50)                                                    # local SGD: all go on from the average
        Exchange(every=50, outer=optax.sgd(0.7, momentum=0.9, nesterov=True)) # DiLoCo

    Attributes:
        every: steps from one exchange to the next; there is always one after the last step.
        outer: an optax transformation whose gradient is where the workers began, minus the average of where they are,
            of the trained weights; None: they go on from the average. BatchNorm statistics are averaged.

    Wortsman et al., "lo-fi: distributed fine-tuning without communication", 2022, arXiv 2210.11948; Stich, "Local SGD
    converges fast and communicates little", 2018, arXiv 1805.09767; Douillard et al., "DiLoCo: distributed
    low-communication training of language models", 2023, arXiv 2311.08105.
    """

    every: int | None = None
    outer: optax.GradientTransformation | None = None

    def __post_init__(self):
        """See that both are what they should be, or raise a ValueError."""
        if self.every is not None:
            check_within("every", self.every, "[1, inf)", whole=True)
        if self.outer is not None and not checks.is_transformation(self.outer):
            raise ValueError(f"outer must be an optax transformation, not a {type(self.outer).__name__}")

    def due(self, step: Any, num_steps: Any) -> Any:
        """Say whether weights are exchanged after so many steps of so many; both may be traced."""
        last = step == num_steps
        return last if self.every is None else last | (step % self.every == 0)

    def count(self, num_steps: int) -> int:
        """Count the exchanges of a run."""
        return 1 if self.every is None else -(-num_steps // self.every)

    def begin(self, training: Training, params: tree.Tree) -> dict[str, Any]:
        """Return what the state has beside that of a worker: nothing without an outer optimizer."""
        if self.outer is None:
            return {}
        trained, _, _ = _parts(training, params)
        with jax.numpy_dtype_promotion("standard"):
            return {"outer": {"start": jax.tree.map(jnp.copy, trained), "optimizer": self.outer.init(trained)}}

    def apply(self, training: Training, params: tree.Tree, outer: Any) -> tuple[tree.Tree, Any]:
        """Return weights and the outer state after an exchange with the workers over the named axis "pool"."""
        trained, statistics, rest = _parts(training, params)
        average, statistics = (tree.cast_like(_mean(part), part) for part in (trained, statistics))
        if self.outer is None:
            return tree.combine(average, statistics, rest), outer
        start = outer["start"]
        with jax.numpy_dtype_promotion("standard"):
            moves = jax.tree.map(jnp.subtract, start, average)
            updates, optimizer = self.outer.update(moves, outer["optimizer"], start)
            moved = optax.apply_updates(start, updates)
        outer = {"start": jax.tree.map(jnp.copy, moved), "optimizer": optimizer}
        return tree.combine(moved, statistics, rest), outer


def _mean(part):
    return jax.tree.map(lambda leaf: jax.lax.pmean(leaf, _AXIS), tree.widen(part))


def _parts(training, params):
    """Split weights into those that are trained, the statistics, and what stays as it is."""
    rates, _ = matched(training, params)
    trained, rest = tree.split_by(rates, params)
    moving = tree.map_with_names(lambda name, leaf: STATISTICS in name.split("/") and tree.is_float(leaf), rest)
    return trained, *tree.split_by(moving, rest)


def fit_workers(
    loss: Callable[..., Any] | Training,
    params: tree.Tree,
    data: Any,
    workers: int | None = None,
    *,
    exchange: Exchange = Exchange(),
    steps: int | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
    directory: PathLike | None = None,
    save_every: int = 1000,
    mesh: Mesh | None = None,
    shardings: tree.Tree | None = None,
    on_step: Callable[[int, dict[str, float]], None] = lambda index, losses: None,
    **settings: Any,
) -> tree.Tree:
    """Train weights by several workers from one start, each on batches of its own, that seldom exchange them.

        made = soups.train.fit_workers(loss, params, {"x": x, "y": y}, 4, batch_size=64, epochs=5)  # lo-fi
        made = soups.train.fit_workers(loss, params, data, mesh=lane_mesh({"pool": 8, "data": 4}), ...)

    Without a mesh the workers are on one device and take turns, which shows what they would find. On a mesh there is
    one for each place on its axis "pool", whose devices share its batches and its weights as in `fit`; several JAX
    processes call it together, and between two exchanges nothing crosses from one worker to another. To keep each
    worker's weights, as an ensemble needs them, train them by `sweep` with different seeds and average the pool.

    Args:
        loss, params, data, steps, epochs, batch_size, hyperparameters, directory, save_every, shardings, settings: as
            of `fit`. Worker i shuffles arrays by the seed plus i; other data are a function
            `data(worker, index, count)` to part `index` of `count` of its batches.
        workers: how many, where there is no mesh.
        exchange: when they exchange weights, and how; by default once, after the last step.
        mesh: with the axes "pool" and "data", from `soups.train.lanes.lane_mesh`.
        on_step: called with the index and the loss of each worker of this process, one step late.

    Returns:
        The weights after the last exchange, on the host.

    Raises:
        ValueError: as `fit`; neither workers nor a mesh, or both.
        OSError: the directory cannot be written.
    """
    if (mesh is None) == (workers is None):
        raise ValueError('give either a number of workers, or a mesh with one on each place of its axis "pool"')
    if not isinstance(exchange, Exchange):
        raise ValueError(f"exchange must be a soups.train.Exchange, not {exchange!r:.200}")
    checks.callbacks(on_step=(on_step, "index, losses"))
    training, given = training_of(loss, settings), checks.length(hyperparameters, steps, epochs)
    if mesh is None:
        placement = InTurn(training, workers, exchange)
    else:
        placement = WorkerLanes(training, params, exchange, mesh=mesh, shardings=shardings)
    seed = given.get("seed", 0)
    checks.number("seed", seed)
    own = {f"worker_{index}": given | {"seed": seed + index} for index in range(placement.count)}
    data, members = prepared(training, params, checks.opened(data), own, batch_size)
    feed = data if checks.is_arrays(data) else lambda name, *part: data(int(name.removeprefix("worker_")), *part)
    options = {"batch_size": batch_size, "directory": directory, "save_every": save_every, "on_step": on_step}
    state, _ = run(placement, params, members, feed, **options)
    return placement.take(state, 0)["params"]


# --- Where workers are ------------------------------------------------------------------------------------------------


class WorkerLanes(Lanes):
    """Place a worker on each lane of a mesh: `Lanes` that exchange their weights, which is all that crosses them."""

    def __init__(
        self,
        training: Training,
        params: tree.Tree,
        exchange: Exchange,
        *,
        mesh: Mesh,
        shardings: tree.Tree | None = None,
    ):
        super().__init__(training, params, mesh=mesh, shardings=shardings)
        self.exchange = exchange
        like = shardings_like(self.abstract_one(params), params, self._shardings)
        self.shardings = jax.tree.map(lambda where: NamedSharding(mesh, P(_AXIS, *where.spec)), like)

    @property
    def described(self) -> dict[str, Any]:
        """Return what of it a run is begun with."""
        return {"exchange": checks.described(self.exchange)}

    def first(self, params, values):
        """Return the first state of a worker."""
        return init_state(self.training, params, values) | self.exchange.begin(self.training, params)

    def one_step(self, training, state, batch, values):
        """Take the step of a worker, and exchange its weights where that is due."""
        own, outer = _without(state, "outer"), state.get("outer", {})
        after, loss = super().one_step(training, own, batch, values)

        def exchanged(params, outer):
            return self.exchange.apply(self.training, params, outer)

        due = self.exchange.due(after["step"], values["num_steps"]) & (after["step"] > own["step"])
        params, outer = jax.lax.cond(due, exchanged, lambda *both: both, after["params"], outer)
        return after | {"params": params} | ({"outer": outer} if outer else {}), loss


class InTurn:
    """Place several workers on one device, where they take their steps one after the other: as `WorkerLanes`."""

    def __init__(self, training: Training, count: int, exchange: Exchange):
        self.training, self.exchange = training, exchange
        self.count = int(check_within("workers", count, "[1, inf)", whole=True))
        self.shares = dict.fromkeys(range(self.count), (0, 1))

    @property
    def described(self) -> dict[str, Any]:
        """Return what of it a run is begun with."""
        return {"exchange": checks.described(self.exchange)}

    def on_lanes(self, members):
        return list(members.items())

    def abstract(self, params):
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        one = self.training.abstract_state(params)
        state = {part: [value] * self.count for part, value in one.items()}
        state |= jax.eval_shape(functools.partial(self.exchange.begin, self.training), params)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), state)

    def begin(self, starts, values):
        states = [self.training.begin(*both) for both in zip(starts, values, strict=True)]
        state = {part: [one[part] for one in states] for part in states[0]}
        return state | jax.jit(functools.partial(self.exchange.begin, self.training))(starts[0])

    def step(self, state, batches, values):
        """Take a step of every worker, and exchange their weights where that is due."""
        own, outer = _without(state, "outer"), state.get("outer", {})
        found, losses = {part: [] for part in own}, []
        for lane in range(self.count):
            one = {part: of[lane] for part, of in own.items()}
            one, loss = self.training.step(one, batches[lane], values[lane])
            losses.append(loss)
            for part, value in one.items():
                found[part].append(value)
        if self.exchange.due(int(found["step"][0]), int(values[0]["num_steps"])):
            params, outer = self._exchanged(found["params"], outer)
            found["params"] = list(params)
        return found | ({"outer": outer} if outer else {}), losses

    @functools.cached_property
    def _exchanged(self):
        def exchanged(workers, outer):
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *workers)
            outer = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (self.count, *leaf.shape)), outer)
            apply = functools.partial(self.exchange.apply, self.training)
            stacked, outer = jax.vmap(apply, axis_name=_AXIS)(stacked, outer)
            each = [jax.tree.map(lambda leaf, lane=lane: leaf[lane], stacked) for lane in range(self.count)]
            return each, jax.tree.map(lambda leaf: leaf[0], outer)

        return jax.jit(exchanged)

    def values(self, rows):
        return [self.training.numbers(row) for row in rows]

    def place(self, parts):
        return [parts[lane] for lane in range(self.count)]

    def losses(self, losses):
        return {lane: float(loss) for lane, loss in enumerate(losses)}

    def writes(self, lane):
        return True

    def take(self, state, lane):
        return jax.device_get({part: value[lane] for part, value in _without(state, "outer").items()})


def _without(state, part):
    return {name: value for name, value in state.items() if name != part}
