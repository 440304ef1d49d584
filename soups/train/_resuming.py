"""Take the steps of a run that may be killed at any of them: the loop, and what of it is kept on disk."""

import contextlib
import json
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from soups import tree
from soups.files import replace_file
from soups.processes import on_all_processes
from soups.train.checkpoints import restore_state, save_state
from soups.train.loop import complete, typed
from soups.train.step import Training


def resume(
    directory: pathlib.Path,
    total: int,
    save_every: int,
    *,
    abstract: tree.Tree,
    begin: Callable[[], tree.Tree],
    batches_from: Callable[[int, Any], Any],
    take: Callable[[tree.Tree, Any], tuple[tree.Tree, Any]],
    log_from: Callable[[int], "LossLog"],
    choose: Callable[[list[Any]], Any] | None = None,
) -> tree.Tree:
    """Take the steps that a run has left and give its last state.

    Args:
        directory: of the checkpoints.
        total: steps of the whole run.
        save_every: steps from one checkpoint to the next; the last step is always kept.
        abstract: the state as jax.ShapeDtypeStructs with shardings.
        begin: gives the state before the first step.
        batches_from: gives, from the steps that were taken and the position after them (None: the start), an iterator
            with `get_state` and `close`.
        take: one step, from state and batch to state and loss.
        log_from: gives the log of losses from the steps that were taken.
        choose: as of `restore_state`.

    Raises:
        ValueError, OSError: as the functions it is given, `restore_state` and `save_state`.
    """
    kept = restore_state(directory, abstract, choose)
    first, state, position = kept or (0, begin(), None)
    log = log_from(first)
    if first == total:
        return state
    with contextlib.closing(batches_from(first, position)) as batches:
        # DO NOT CHANGE THE ORDER OF OPERATIONS: what is kept after a step is all that the next one depends on.
        for index in range(first, total):
            state, loss = take(state, next(batches))
            log.add(index, loss)
            if (index + 1) % save_every == 0 or index + 1 == total:
                log.flush()
                save_state(directory, index + 1, state, batches.get_state())
    return state


def checked(hyperparameters: Mapping[str, Any], save_every: int) -> dict[str, Any]:
    """Complete the hyper-parameters of a run.

    Raises:
        ValueError: what `complete` says of them, no "num_steps", no steps between two checkpoints.
    """
    if "num_steps" not in hyperparameters:
        raise ValueError('the hyper-parameters need "num_steps": see soups.train.loop.num_steps')
    if save_every < 1:
        raise ValueError(f"save_every must be at least 1, not {save_every}")
    given = {name: value for name, value in hyperparameters.items() if name != "num_steps"}
    return complete(given) | {"num_steps": int(hyperparameters["num_steps"])}


def described(training: Training, params: tree.Tree, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Say in plain JSON what a run is begun with; functions are left out, they have no value to compare."""
    settings = {name: value for name, value in vars(training).items() if not callable(value)}
    weights = {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in tree.flatten(params).items()}
    return {"training": settings, "hyperparameters": hyperparameters, "weights": weights}


def numbers(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return hyper-parameters as a step sees them, in plain JSON."""
    return {name: value.item() for name, value in typed(hyperparameters).items()}


def claim(directory: pathlib.Path, description: Mapping[str, Mapping[str, Any]]) -> None:
    """Write "run.json", or see that it says the same.

    Raises:
        ValueError: the directory holds a run that was begun otherwise; all differences are listed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path, description = directory / "run.json", json.loads(json.dumps(description))
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


class MemberBatches:
    """Return the batches of a member until its last step, and from then on the last one again and again.

    Raises:
        ValueError: a loader that cannot be resumed; from the iterator: fewer batches than steps.
    """

    def __init__(self, loader: Iterable, num_steps: int, taken: int, position: Any, whose: str = ""):
        self._batches, self._num_steps, self._taken, self._whose = iter(loader), num_steps, taken, whose
        self._last = self._end = None
        self._open = True
        if not (hasattr(self._batches, "get_state") and hasattr(self._batches, "set_state")):
            kind = type(self._batches).__name__
            raise ValueError(
                f"the loader's iterator{whose}, a {kind}, cannot be resumed: it needs get_state and set_state"
            )
        if position is not None and taken < num_steps:
            self._batches.set_state(position)

    def __next__(self):
        if self._last is None or self._taken < self._num_steps:
            self._last = next(self._batches, None)
            if self._last is None:
                raise ValueError(f"the batches{self._whose} ended after {self._taken} of {self._num_steps} steps")
            self._taken += 1
            if self._taken >= self._num_steps:  # nothing needs to be read ahead while other members go on
                self._end = {"position": self._batches.get_state()}
                self.close()
        return self._last

    def get_state(self):
        """Say where the loader stands."""
        return self._batches.get_state() if self._end is None else self._end["position"]

    def close(self):
        """Let the loader end what it reads ahead."""
        if self._open and hasattr(self._batches, "close"):
            self._batches.close()
        self._open = False


class LossLog:
    """Write a line for each step, when its loss is known; what was written after the last checkpoint is cut off.

    Args:
        paths: the files that this process writes, by member.
        first: steps that were taken.
        read: gives, from the index of a step and what `add` was given, the losses by member.
        on_step: called with the index and the losses by member, one step late.
    """

    def __init__(self, paths: Mapping[str, pathlib.Path], first: int, read: Callable, on_step: Callable):
        self._paths, self._read, self._on_step, self._waiting = paths, read, on_step, None
        on_all_processes(lambda: [_cut(path, first) for path in paths.values()])

    def add(self, index, loss):
        """Write the loss of the step before, so that this one may still be computing."""
        self.flush()
        self._waiting = index, loss

    def flush(self):
        """Wait for the last loss and write it."""
        if self._waiting is None:
            return
        (index, loss), self._waiting = self._waiting, None
        losses = self._read(index, loss)
        for member in self._paths.keys() & losses.keys():
            line = {"step": index, "loss": losses[member] if math.isfinite(losses[member]) else None}
            with self._paths[member].open("a") as file:
                file.write(json.dumps(line) + "\n")
        self._on_step(index, losses)


def _cut(path, first):
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    # only the last line can be torn, and it is of a step that is taken again
    replace_file(path, "".join(line for line in lines if line.endswith("\n") and json.loads(line)["step"] < first))


def mesh_of_shardings(shardings: tree.Tree, mesh: jax.sharding.Mesh | None) -> jax.sharding.Mesh:
    """Return the mesh of shardings.

    Raises:
        ValueError: they are not all of one, or of another than `mesh`.
    """
    meshes = {leaf.mesh for leaf in jax.tree.leaves(shardings)}
    if len(meshes | ({mesh} - {None})) > 1:
        raise ValueError(f"the shardings are not all of the mesh: {', '.join(map(str, meshes))} and {mesh}")
    return meshes.pop()
