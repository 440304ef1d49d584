"""Train in JAX while PyTorch waits in a process beside, and the other way round, from the same weights."""

import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import _common
import jax
import numpy as np

from soups import tree
from soups.train import Training
from soups.train.loop import prepared

COLUMNS = ("soups steps/s", "lowest", "highest", "torch steps/s", "ratio", "lowest", "highest")


def how(script: str, packages: str = "torch==2.13.0 numpy") -> str:
    """Return how to make the environment that a benchmark needs."""
    return f"""This benchmark needs the interpreter of an environment with PyTorch:
    python -m venv torch-venv
    torch-venv/bin/pip install {packages}
    python scripts/benchmarks/{script} --torch-python torch-venv/bin/python"""


@contextlib.contextmanager
def torch_process(
    python: str, batch: Mapping[str, np.ndarray], params: tree.Tree, worker: str, settings: Mapping[str, Any]
) -> Iterator[tuple[Callable, dict[str, Any]]]:
    """Start a worker beside; give a function that lets one of its tasks take some steps, and what it said first."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "start.npz"
        leaves = {name: np.asarray(leaf) for name, leaf in tree.flatten(params).items()}
        np.savez(file, images=batch["image"], labels=batch["label"], settings=json.dumps(settings), **leaves)
        command = [python, pathlib.Path(__file__).with_name(worker), file]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, **pipes, text=True, bufsize=1) as process:
            first = process.stdout.readline()
            if not first:
                sys.exit("PyTorch did not start.")

            def run(name, steps):
                process.stdin.write(f"{name} {steps}\n")
                if process.stdout.readline().strip() != "done":
                    sys.exit(f"PyTorch failed at {name!r}")

            yield run, json.loads(first)
            process.stdin.close()


def trainer(training: Training, params: tree.Tree, batch: Mapping[str, np.ndarray], chosen: Mapping[str, float]):
    """Return a function that takes some steps of the library's training step and gives their losses.

    There are so many steps that the learning rate stays at its peak, as PyTorch's does.
    """
    chosen = {**chosen, "warmup_fraction": 0.0, "num_steps": 10**7}
    _, members = prepared(training, params, batch, {"": chosen}, len(batch["label"]))  # as `fit` takes them
    hyperparameters = training.numbers(members[""])
    state, batch = training.begin(params, hyperparameters), jax.device_put(batch)

    def run(steps):
        nonlocal state
        losses = []
        for _ in range(steps):
            state, loss = training.step(state, batch, hyperparameters)
            losses.append(loss)
        return np.asarray(jax.device_get(losses))

    return run


def check_losses(run: Callable, theirs: Mapping[str, list[float]]) -> None:
    """Take the first steps, and stop if their losses differ: then it is not the same training step."""
    ours = run(len(next(iter(theirs.values()))))
    for name, losses in theirs.items():
        if not np.allclose(ours, losses, rtol=1e-4):
            sys.exit(f"not the same training step: losses {ours.tolist()} of soups, {losses} of {name}")


def against_fastest(task: str, run: Callable, torch_run: Callable, said: Mapping[str, Any], options) -> dict[str, Any]:
    """Try each of PyTorch's variants twice, then let blocks of steps of soups and of the fastest take turns."""
    theirs = {name: lambda name=name: torch_run(f"{task}, {name}", options.steps) for name in said["losses"]}
    tried = {name: min(times) for name, times in _common.measure(theirs, 2).items()}
    best = min(tried, key=tried.get)
    callables = {"soups": lambda: run(options.steps), best: theirs[best]}
    _common.measure(callables, 1)  # warm
    seconds = _common.measure(callables, options.repeats)
    # of each round, so that a machine that gets busier changes both of its sides
    ratios = [there / here for here, there in zip(seconds["soups"], seconds[best], strict=True)]
    summaries = {name: _common.summarize(times) for name, times in seconds.items()}
    found = {"steps": options.steps, "seconds": summaries, "tried": tried, "against": best}
    return found | {"ratio": float(np.median(ratios)), "ratios": ratios}


def rates(found: Mapping[str, Any]) -> list[float]:
    """Return what stands below `COLUMNS`."""
    steps, ours, theirs = found["steps"], found["seconds"]["soups"], found["seconds"][found["against"]]
    speeds = [steps / ours["median"], steps / ours["max"], steps / ours["min"], steps / theirs["median"]]
    return [*speeds, found["ratio"], min(found["ratios"]), max(found["ratios"])]
