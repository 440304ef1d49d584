"""Fine-tune at size: streamed batches, sharded weights, and a run that goes on where it was killed."""

import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from soups import tree
from soups.processes import on_first_process
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
from soups.train.loop import jit_step, typed
from soups.train.sharding import batch_placer, place, state_shardings, step_shardings
from soups.train.step import Training, init_state


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

    The directory holds the last two checkpoints (`soups.train.checkpoints`), "losses.jsonl" with a line {"step",
    "loss"} for each step (null where the loss is not finite), and "run.json", what the run was begun with. Averages
    are in the state: `soups.train.trajectory.averages`. With several JAX processes all of them must call it, with a
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
    hyperparameters = checked(hyperparameters, save_every)
    mesh, shardings = _placement(params, mesh, shardings)
    description = described(training, params, numbers(hyperparameters))
    on_first_process(lambda: claim(directory, description))
    step, values = step or shared_step(training, params, mesh=mesh, shardings=shardings), typed(hyperparameters)
    place_batch = batch_placer(mesh) if mesh is not None else lambda batch: {n: batch[n] for n in ("image", "label")}
    total, paths = hyperparameters["num_steps"], {"": directory / "losses.jsonl"} if jax.process_index() == 0 else {}

    def batches_from(first, position):
        return MemberBatches(make_loader(int(hyperparameters["seed"])), total, first, position)

    def log_from(first):
        return LossLog(
            paths, first, lambda index, loss: {"": float(loss)}, lambda index, losses: on_step(index, losses[""])
        )

    return resume(
        directory,
        total,
        save_every,
        abstract=_abstract_state(training, params, shardings),
        begin=lambda: _first_state(training, params, shardings),
        batches_from=batches_from,
        take=lambda state, batch: step(state, place_batch(batch), values),
        log_from=log_from,
    )


def shared_step(
    training: Training, params: tree.Tree, *, mesh: Mesh | None = None, shardings: tree.Tree | None = None
) -> Callable:
    """Return the step of all runs of `finetune_resumable` with these arguments, compiled when it is first taken.

    Raises:
        ValueError: shardings of another mesh, several processes without a mesh.
    """
    _, shardings = _placement(params, mesh, shardings)
    return jit_step(training, None if shardings is None else step_shardings(training, params, shardings))


def _placement(params, mesh, shardings):
    if shardings is not None:
        return mesh_of_shardings(shardings, mesh), shardings
    if mesh is not None:
        return mesh, jax.tree.map(lambda _: NamedSharding(mesh, P()), params)
    if jax.process_count() > 1:
        raise ValueError(f"{jax.process_count()} processes need a mesh to train one member together")
    return None, None


def _first_state(training, params, shardings):
    if shardings is None:
        return training.begin(params)
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
