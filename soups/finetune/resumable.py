"""Fine-tune at size: streamed batches, sharded weights, and a run that goes on where it was killed."""

import contextlib
import json
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from soups import tree
from soups.files import replace_file
from soups.finetune.checkpoints import restore_state, save_state
from soups.finetune.loop import complete, jit_step, typed
from soups.finetune.sharding import batch_placer, place, state_shardings, step_shardings
from soups.finetune.step import Training, init_state
from soups.processes import on_first_process


def finetune_resumable(
    training: Training,
    params: tree.Tree,
    make_loader: Callable[[int], Iterable[Mapping[str, Any]]],
    hyperparameters: Mapping[str, Any],
    directory,
    *,
    save_every: int,
    mesh: Mesh | None = None,
    shardings: tree.Tree | None = None,
    step: Callable | None = None,
    on_step: Callable[[int, float], None] = lambda index, loss: None,
) -> dict[str, Any]:
    """Fine-tune one member and give its final state; the same call goes on with a run that was killed, to the bit.

    The directory holds the last two checkpoints (`soups.finetune.checkpoints`), "losses.jsonl" with a line {"step",
    "loss"} for each step (null where the loss is not finite), and "run.json", what the run was begun with. Averages
    are in the state: `soups.finetune.trajectory.averages`. With several JAX processes all of them must call it, with a
    directory that all can reach.

    Args:
        training: what is fixed at compile time.
        params: the start weights, not donated; a finished or resumed run uses only their names, shapes and dtypes.
        make_loader: gives from the seed of the hyper-parameters an iterable of "num_steps" or more batches, such as
            `soups.data.loader`, whose iterator has `get_state` (JSON) and `set_state`; with several processes each
            gives its part of every batch.
        hyperparameters: as for `training_step`, with "num_steps".
        directory: of this run alone.
        save_every: steps from one checkpoint to the next; the last step is always kept.
        mesh: shards each batch over its axis "data"; the weights are then on every device, or lie by `shardings`.
        shardings: of the weights, from `param_shardings`; optimizer state and averages lie alike.
        step: from `shared_step`, so that several members share one compilation.
        on_step: called with the index and the loss of each step, one step late.

    Raises:
        ValueError: an unknown hyper-parameter, no "num_steps", a directory of a run with other settings or weights
            (all differences are listed), damaged checkpoints, shardings of another mesh, several processes without a
            mesh, a loader that cannot be resumed, or fewer batches than steps.
        OSError: the directory cannot be written.
    """
    directory = pathlib.Path(directory).absolute()
    hyperparameters = _checked(hyperparameters, save_every)
    mesh, shardings = _placement(params, mesh, shardings)
    on_first_process(lambda: _claim(directory, _described(training, params, hyperparameters)))
    kept = restore_state(directory, _abstract_state(training, params, shardings))
    first, state, position = kept or (0, _first_state(training, params, shardings), None)
    total = int(hyperparameters["num_steps"])
    log = _LossLog(directory / "losses.jsonl", first, on_step)
    if first == total:
        return state
    step = step or shared_step(training, params, mesh=mesh, shardings=shardings)
    numbers = typed(hyperparameters)
    place_batch = batch_placer(mesh) if mesh is not None else lambda batch: {n: batch[n] for n in ("image", "label")}
    with _iterating(make_loader, hyperparameters, position) as batches:
        # DO NOT CHANGE THE ORDER OF OPERATIONS: what is kept after a step is all that the next one depends on.
        for index in range(first, total):
            batch = next(batches, None)
            if batch is None:
                raise ValueError(f"the batches ended after {index} of {total} steps")
            state, loss = step(state, place_batch(batch), numbers)
            log.add(index, loss)
            if (index + 1) % save_every == 0 or index + 1 == total:
                log.flush()
                save_state(directory, index + 1, state, batches.get_state())
    return state


def shared_step(
    training: Training, params: tree.Tree, *, mesh: Mesh | None = None, shardings: tree.Tree | None = None
) -> Callable:
    """Give the step of all runs of `finetune_resumable` with these arguments, compiled when it is first taken.

    Raises:
        ValueError: shardings of another mesh, several processes without a mesh.
    """
    _, shardings = _placement(params, mesh, shardings)
    return jit_step(training, None if shardings is None else step_shardings(training, params, shardings))


def _checked(hyperparameters, save_every):
    if "num_steps" not in hyperparameters:
        raise ValueError('the hyper-parameters need "num_steps": see soups.finetune.loop.num_steps')
    if save_every < 1:
        raise ValueError(f"save_every must be at least 1, not {save_every}")
    given = {name: value for name, value in hyperparameters.items() if name != "num_steps"}
    return complete(given) | {"num_steps": int(hyperparameters["num_steps"])}


def _placement(params, mesh, shardings):
    if shardings is not None:
        meshes = {leaf.mesh for leaf in jax.tree.leaves(shardings)}
        if len(meshes | ({mesh} - {None})) > 1:
            raise ValueError(f"the shardings are not all of the mesh: {', '.join(map(str, meshes))} and {mesh}")
        return meshes.pop(), shardings
    if mesh is not None:
        return mesh, jax.tree.map(lambda _: NamedSharding(mesh, P()), params)
    if jax.process_count() > 1:
        raise ValueError(f"{jax.process_count()} processes need a mesh to train one member together")
    return None, None


def _first_state(training, params, shardings):
    if shardings is None:
        return jax.jit(lambda params: init_state(training, params))(params)
    of_state = state_shardings(training, params, shardings)
    return jax.jit(lambda params: init_state(training, params), out_shardings=of_state)(place(params, shardings))


def _abstract_state(training, params, shardings):
    state = jax.eval_shape(lambda params: init_state(training, params), params)
    if shardings is None:
        here = SingleDeviceSharding(jax.local_devices()[0])
        of_state = jax.tree.map(lambda _: here, state)
    else:
        of_state = state_shardings(training, params, shardings)
    return jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), state, of_state)


@contextlib.contextmanager
def _iterating(make_loader, hyperparameters, position):
    batches = iter(make_loader(int(hyperparameters["seed"])))
    if not (hasattr(batches, "get_state") and hasattr(batches, "set_state")):
        raise ValueError(
            f"the loader's iterator, a {type(batches).__name__}, cannot be resumed: it needs get_state and set_state"
        )
    if position is not None:
        batches.set_state(position)
    try:
        yield batches
    finally:
        if hasattr(batches, "close"):
            batches.close()


def _described(training, params, hyperparameters):
    """Say in plain JSON what a run was begun with; functions are left out, they have no value to compare."""
    settings = {name: value for name, value in vars(training).items() if not callable(value)}
    weights = {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in tree.flatten(params).items()}
    numbers = {name: value.item() for name, value in typed(hyperparameters).items()}
    return json.loads(json.dumps({"training": settings, "hyperparameters": numbers, "weights": weights}))


def _claim(directory, description):
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "run.json"
    if not path.exists():
        replace_file(path, json.dumps(description, indent=1))
        return
    there = json.loads(path.read_text())
    lines = [
        f"  {section}.{name}: {there[section].get(name, '(absent)')} there, {here.get(name, '(absent)')} now"
        for section, here in description.items()
        for name in sorted(there[section].keys() | here.keys())
        if there[section].get(name) != here.get(name)
    ]
    if lines:
        raise ValueError(
            f"{directory} holds a run that was begun otherwise:\n" + "\n".join(lines) + "\nUse another directory."
        )


class _LossLog:
    """Write a line for each step, when its loss is known; what was written after the last checkpoint is cut off."""

    def __init__(self, path, first, on_step):
        self._path, self._on_step, self._waiting = path, on_step, None
        on_first_process(lambda: _cut(path, first))

    def add(self, index, loss):
        """Write the loss of the step before, so that this one may still be computing."""
        self.flush()
        self._waiting = index, loss

    def flush(self):
        """Wait for the last loss and write it."""
        if self._waiting is None:
            return
        (index, loss), self._waiting = self._waiting, None
        loss = float(loss)
        if jax.process_index() == 0:
            with self._path.open("a") as file:
                file.write(json.dumps({"step": index, "loss": loss if math.isfinite(loss) else None}) + "\n")
        self._on_step(index, loss)


def _cut(path, first):
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    # only the last line can be torn, and it is of a step that is taken again
    replace_file(path, "".join(line for line in lines if line.endswith("\n") and json.loads(line)["step"] < first))
