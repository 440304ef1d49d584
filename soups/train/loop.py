"""Train: one loop, for one member or several side by side, that goes on where it was killed."""

import contextlib
import dataclasses
import json
import logging
import math
import pathlib
import time
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from soups import presence, tree
from soups import state as state_files
from soups.files import PathLike, append, local_path, made_folder, replace_file
from soups.names import check_name, few
from soups.pool import digest
from soups.processes import on_all_processes, on_first_process
from soups.train import checks
from soups.train.checkpoints import restore_state, save_state
from soups.train.feeds import LaneBatches, by_lane, feed_of
from soups.train.lanes import Lanes, with_lanes
from soups.train.preemption import noticing
from soups.train.step import FIELDS, Training
from soups.train.trajectory import averages

logger = logging.getLogger("soups")


def fit(
    loss: Callable[..., Any] | Training,
    params: tree.Tree,
    data: Any,
    *,
    steps: int | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
    directory: PathLike | None = None,
    save_every: int = 1000,
    mesh: jax.sharding.Mesh | None = None,
    shardings: tree.Tree | None = None,
    on_step: Callable[[int, float], None] = lambda index, loss: None,
    on_checkpoint: Callable[[int, Mapping[str, Any]], None] = lambda step, made: None,
    **settings: Any,
) -> dict[str, Any]:
    """Train weights by any loss, and go on where a run in `directory` was killed, to the bit.

        def loss(params, batch, key):
            return jnp.mean((model.apply(params, batch["x"])[:, 0] - batch["y"]) ** 2)

        made = soups.train.fit(loss, params, {"x": x, "y": y}, batch_size=64, epochs=5, optimizer=optax.adam(1e-3))

    A directory keeps the last two checkpoints (`soups.train.checkpoints`), "losses.jsonl" with a line {"step", "loss"}
    for each step (null where the loss is not finite), and "run.json", what the run was begun with. At SIGTERM the step
    is finished and kept before the process ends. With several JAX processes all of them must call it, with a directory
    that all can reach; where one is told to end, all keep the same step and end.

    Args:
        loss: `loss(params, batch, key)`, or a `soups.train.Training`, whose docstring says what a loss may be.
        params: the start weights, any pytree; not donated. A run that goes on needs only names, shapes and dtypes.
        data: a pytree of arrays in memory with one row for each example (a tuple or a mapping of them, not a list), or
            a `soups.data.Dataset`, which is {"image", "label"}; or an iterable of batches, such as `soups.data.loader`.
            With a directory its iterator has `get_state` (JSON) and `set_state`; with several processes each gives its
            part of every batch.
        steps, epochs, batch_size: how long to train. Steps are needed for batches without a length; a batch size
            for arrays alone.
        hyperparameters: "seed", "warmup_fraction", and what loss and optimizer take by name.
        directory: of this run alone.
        save_every: steps from one checkpoint to the next; the last step is always kept.
        mesh: shards each batch over its axis "data"; the weights are then on every device, or lie by `shardings`.
        shardings: of the weights, from `param_shardings`; optimizer state and averages lie alike.
        on_step: called with the index and the loss of each step, one step late.
        on_checkpoint: called after every `save_every` steps, and after the last one, with the number of steps taken and
            {"params", "averages"}: to validate them, or to keep a copy, for the next step takes their memory. A run
            that goes on calls it for what is left.
        settings: the other fields of `Training`, such as optimizer, learning_rate_rules or ema_decay.

    Returns:
        {"params", "averages" by name, "losses" float32 [steps]}; weights and averages lie on the devices, as trained.
        A warning says that they or the last loss hold NaN or infinity.

    Raises:
        ValueError: settings, hyper-parameters, weights or data that `soups.train.checks` refuses; a directory whose run
            has other settings, weights or data (all differences are listed), or whose checkpoints or files are damaged;
            shardings for another mesh; several processes without a mesh; batches that cannot be resumed, or that end
            too early.
        OSError: the directory cannot be written.
    """
    training, data = training_of(loss, settings), checks.opened(data)
    if callable(data):
        raise ValueError("data must be arrays, or an iterable of batches, not a function, which only a sweep takes")
    given = checks.length(hyperparameters, steps, epochs)
    checks.callbacks(on_step=(on_step, "index, loss"), on_checkpoint=(on_checkpoint, "step, made"))
    if jax.process_count() > 1 and mesh is None and (directory is not None or not checks.is_arrays(data)):
        raise ValueError(f"{jax.process_count()} processes need a mesh to train one member together")
    data, members = prepared(training, params, data, {"": given}, batch_size)
    mesh, shardings = with_lanes(mesh, shardings)
    placement = Alone(training) if mesh is None else Lanes(training, params, mesh=mesh, shardings=shardings)
    options = {"batch_size": batch_size, "directory": directory, "save_every": save_every}
    options["on_step"] = lambda index, losses: on_step(index, losses[""])
    options["on_checkpoint"] = lambda step, state: on_checkpoint(step, _made(training, placement.only(state)))
    state, losses = run(placement, params, members, data, **options)
    state, losses = placement.only(state), np.asarray(losses.get("", ()), np.float32)
    if (bad := checks.not_finite(state["params"])) or not np.isfinite(losses[-1:]).all():
        where = f"NaN or infinity in {few(bad)}" if bad else f"the last loss is {losses[-1]}"
        logger.warning("the training diverged: %s", where)
    return _made(training, state) | {"losses": losses}


def _made(training, state):
    return {"params": state["params"], "averages": averages(state, training.ema_decays)}


def training_of(loss: Callable[..., Any] | Training, settings: Mapping[str, Any]) -> Training:
    """Return what `fit` and `sweep` are given as a Training; a ValueError for a setting that it has not."""
    for name in settings:
        check_name(name, FIELDS, "setting, which a hyper-parameter of members is not,")
    if not isinstance(loss, Training):
        return Training(loss=loss, **settings)
    return dataclasses.replace(loss, **settings) if settings else loss


def num_steps(hyperparameters: Mapping[str, Any], num_examples: int, batch_size: int) -> int:
    """Count the steps of a member: epochs times examples over batch size, rounded up."""
    steps = hyperparameters["epochs"] * num_examples / batch_size
    if steps >= 2**31:
        raise ValueError(f"{hyperparameters['epochs']} epochs are {steps:.3g} steps, more than can be counted")
    return math.ceil(steps)


def prepared(
    training: Training, params: tree.Tree, data: Any, members: Mapping[str, Mapping[str, Any]], batch_size: int | None
) -> tuple[Any, dict[str, dict[str, Any]]]:
    """Return data as a run takes them and the whole hyper-parameters of all members, with "num_steps".

    A ValueError is what `soups.train.checks` says of settings, weights and data, or that steps are not known.
    """
    completed = {name: checks.hyperparameters(training, given) for name, given in members.items()}
    optional = getattr(training.loss, "optional", ())
    if not any(member[name] for member in completed.values() for name in optional):
        completed = {who: {n: v for n, v in one.items() if n not in optional} for who, one in completed.items()}
    checks.weights(training, params, completed.values())
    if in_memory := checks.is_arrays(data):
        data = checks.arrays(training, data, batch_size, completed.values())
    checks.finite(params, data)
    if in_memory:
        count, size = len(jax.tree.leaves(data)[0]), batch_size
    elif all(member["num_steps"] for member in completed.values()):
        return data, completed
    elif not callable(data) and hasattr(data, "__len__"):  # as often as it takes
        count, size, batches = len(data), 1, data
        data = (batch for _ in iter(int, 1) for batch in batches)
    else:
        raise ValueError("batches that have no length need a number of steps (num_steps)")
    steps = {name: member["num_steps"] or num_steps(member, count, size) for name, member in completed.items()}
    return data, {name: member | {"num_steps": int(steps[name])} for name, member in completed.items()}


def run(
    placement: "Alone | Lanes",
    params: tree.Tree,
    members: Mapping[str, Mapping[str, Any]],
    data: Any,
    *,
    batch_size: int | None = None,
    directory=None,
    save_every: int = 1000,
    on_step: Callable[[int, dict[str, float]], None] = lambda index, losses: None,
    on_checkpoint: Callable[[int, Mapping[str, Any]], None] = lambda step, state: None,
    starts: Mapping[str, tree.Tree] | None = None,
) -> tuple[tree.Tree, dict[str, list[float]]]:
    """Take the steps that a group of members has left, and return their last state (not the optimizer's) and losses.

    `members`, `data`: from `prepared`; there is at most one member for each lane. `starts`: start weights of those
    members that do not start from `params`, alike in names, shapes and dtypes. What is on disk is that of `fit`, with a
    file "losses_NAME.jsonl" for each member that has a name. Losses are those of the lanes of which this process
    has devices; `on_step` is called with those of the members that took the step. Errors are those of `fit`.
    """
    training, total = placement.training, max(member["num_steps"] for member in members.values())
    checks.number("save_every", save_every)
    lanes = placement.on_lanes(members)
    feed, kept = feed_of(training, data, members, batch_size), None
    if directory is not None:
        directory = local_path(directory).absolute()
        on_first_process(lambda: _claim(directory, _description(placement, params, starts or {}, members, data)))
        kept = restore_state(directory, placement.abstract(params))
    values = placement.values([member for _, member in lanes])
    if kept is None:
        checks.held(params)
        kept = 0, placement.begin([(starts or {}).get(name, params) for name, _ in lanes], values), None
    first, state, position = kept
    log = LossLog(directory, members, placement, first, on_step)
    if first == total:
        return _outcome(state), log.losses
    position = None if position is None else by_lane(position)
    batches = LaneBatches(training, feed, lanes, placement.shares, first, position, directory is not None)
    with contextlib.closing(batches), noticing(directory is not None) as notice:
        # DO NOT CHANGE THE ORDER OF OPERATIONS: what is kept after a step is all that the next one depends on.
        for index in range(first, total):
            begun = time.monotonic()
            batch = next(batches)
            presence.fed(time.monotonic() - begun)
            state, loss = placement.step(state, placement.place(batch), values)
            log.add(index, loss)
            told, due = notice.given_at_this_step(), (index + 1) % save_every == 0 or index + 1 == total
            if due or told:
                log.flush()
            if due:
                on_checkpoint(index + 1, state)
            if directory is not None and (due or told):
                save_state(directory, index + 1, state, batches.get_state())
            if told:
                notice.end()
        log.flush()
    return _outcome(state), log.losses


def _outcome(state):
    return {part: value for part, value in state.items() if part != "optimizer"}  # which may be most of it


class Alone:
    """Place one member on one device: the plain case of `soups.train.lanes.Lanes`, with the same methods."""

    def __init__(self, training: Training):
        self.training, self.count, self.shares = training, 1, {0: (0, 1)}
        self.step = training.step

    def on_lanes(self, members):
        return list(members.items())

    def abstract(self, params):
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        state = self.training.abstract_state(params)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), state)

    def begin(self, starts, values):
        return self.training.begin(starts[0], values)

    def values(self, rows):
        return self.training.numbers(rows[0])

    def place(self, parts):
        return parts[0]

    def losses(self, loss):
        return {0: float(loss)}

    def writes(self, lane):
        return True

    def only(self, state):
        return state

    def take(self, state, lane):
        return jax.device_get(state)


def losses_path(directory, name: str) -> pathlib.Path:
    """Name the file with a member's losses."""
    return pathlib.Path(directory) / f"losses{'_' if name else ''}{urllib.parse.quote(name, safe='')}.jsonl"


class LossLog:
    """Keep each loss when it is known, and write it; what was written after the last checkpoint is cut off."""

    def __init__(self, directory, members, placement, first, on_step):
        self._members, self._placement, self._on_step, self._waiting = members, placement, on_step, None
        names = {} if directory is None else {name: losses_path(directory, name) for name in members}
        self._paths = {name: path for at, (name, path) in enumerate(names.items()) if placement.writes(at)}
        if names:
            on_all_processes(lambda: [_cut(path, first) for path in self._paths.values()])
        known = {name: [line["loss"] for line in _lines(path)] for name, path in names.items()}
        self.losses = {name: [math.nan if loss is None else loss for loss in losses] for name, losses in known.items()}

    def add(self, index, loss):
        """Write the loss of the step before, so that this one may still be computing."""
        self.flush()
        self._waiting = index, loss

    def flush(self):
        """Wait for the last loss and write it."""
        if self._waiting is None:
            return
        (index, loss), self._waiting = self._waiting, None
        here = self._placement.losses(loss)
        losses = {
            name: here[lane]
            for lane, (name, member) in enumerate(self._members.items())
            if lane in here and index < member["num_steps"]
        }
        for name, value in losses.items():
            self.losses.setdefault(name, []).append(value)
            if name in self._paths:
                line = {"step": index, "loss": value if math.isfinite(value) else None}
                append(self._paths[name], state_files.sealed_line(line))
        self._on_step(index, losses)


def _lines(path):
    # only the last line can be torn, and it is of a step that is taken again
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [state_files.unsealed_line(line, f"line {number} of {path}") for number, line in enumerate(lines, 1)]


def _cut(path, first):
    replace_file(path, b"".join(state_files.sealed_line(line) for line in _lines(path) if line["step"] < first))


def _description(placement, params, starts, members, data):
    """Say in plain JSON what a run is begun with."""
    training = placement.training
    numbers = {name: training.numbers(member) for name, member in members.items()}
    dot = {name: f"{name}." if name else "" for name in members}
    weights = {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in tree.flatten(params).items()}
    contents = {"start": params} | {f"start of {name}": start for name, start in starts.items()}
    contents |= {"data": data} if checks.is_arrays(data) else {}
    return {
        "training": checks.described(training) | getattr(placement, "described", {}),
        "hyperparameters": {f"{dot[n]}{key}": value.item() for n, row in numbers.items() for key, value in row.items()},
        "weights": weights,
        "digest": {name: digest({name: content}) for name, content in contents.items()},
    }


def _claim(directory: pathlib.Path, description: Mapping[str, Mapping[str, Any]]) -> None:
    """Write "run.json", or see that it says the same; a ValueError lists all differences."""
    made_folder(directory)
    path, description = directory / "run.json", json.loads(json.dumps(description))
    if not path.exists():
        state_files.write(path, description)
        return
    there = state_files.read(path, dict.fromkeys(description, dict))
    lines = [
        f"  {section}.{name}: {there[section].get(name, '(absent)')!s:.300} there, "
        f"{here.get(name, '(absent)')!s:.300} now"
        for section, here in description.items()
        for name in sorted(there[section].keys() | here.keys())
        if there[section].get(name) != here.get(name)
    ]
    if lines:
        lines = [f"{directory} holds a run that was begun with something else:", *lines, "Use another directory."]
        raise ValueError("\n".join(lines))
