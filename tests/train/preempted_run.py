"""Train on a mesh over the devices of several processes, slowly: FOLDER [ID COUNT PORT]; see test_preemption.py."""

import os
import pathlib
import sys
import time

import jax
import numpy as np
import optax
from jax.sharding import AxisType

from soups import presence
from soups.train import fit

STEPS = 40


def loss(params, batch, key):
    """Return the error of a network of two layers with dropout."""
    hidden = jax.numpy.tanh(batch["x"] @ params["a"])
    hidden = hidden * jax.random.bernoulli(key, 0.9, hidden.shape).astype(np.float32)
    return jax.numpy.mean((hidden @ params["b"] - batch["y"]) ** 2)


def data():
    """Return 24 examples, so that epochs end within batches."""
    rng = np.random.default_rng(0)
    return {"x": rng.normal(size=(24, 6)).astype(np.float32), "y": rng.normal(size=(24, 2)).astype(np.float32)}


def train(folder, devices, on_step=lambda index, loss: None):
    """Train to the end, or go on."""
    rng = np.random.default_rng(1)
    start = {"a": rng.normal(size=(6, 8)).astype(np.float32), "b": rng.normal(size=(8, 2)).astype(np.float32)}
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    options = {"steps": STEPS, "batch_size": 16, "hyperparameters": {"learning_rate": 0.05}, "optimizer": adam}
    return fit(loss, start, data(), directory=folder, mesh=mesh, on_step=on_step, **options)


def adam(learning_rate=0.1):
    """Return Adam, whose state is kept too."""
    return optax.adam(learning_rate)


def main():
    """Do what each process does."""
    folder, rest = pathlib.Path(sys.argv[1]), sys.argv[2:]
    jax.config.update("jax_num_cpu_devices", 2)
    if rest:
        process, count, port = rest
        jax.distributed.initialize(f"localhost:{port}", num_processes=int(count), process_id=int(process))

    def on_step(index, loss):
        print(index, flush=True)
        time.sleep(0.1)

    def lost(who):
        print(f"lost {who}", flush=True)
        os._exit(2)

    with presence.watched(folder / ".processes", lost):
        made = train(folder, jax.devices(), on_step)
    if jax.process_index() == 0:
        np.savez(folder / "made.npz", **{name: np.asarray(leaf) for name, leaf in made["params"].items()})


if __name__ == "__main__":
    main()
