"""Train members of a sweep in one way and put them into a pool: run by sweep.py, each time as a fresh process.

Arguments: the folder that sweep.py prepared, the way, the pool to make, and the members' indices. Says as one line of
JSON how many seconds the training (compilation included) and the saving took, and, for a way that compiles once for all
members, how many the same training took once more.
"""

import dataclasses
import json
import pathlib
import sys
import time

import jax
import numpy as np

from soups import models
from soups.allocator import keep_freed_memory
from soups.pool import Pool
from soups.train import Classification, Training, fit, training_step
from soups.train.loop import num_steps, prepared
from soups.train.programs import in_programs


def main():
    """Train, save, and train again."""
    folder, way, pool, *indices = sys.argv[1:]
    if way == "sharded":
        keep_freed_memory()  # as `soups run` does
    folder = pathlib.Path(folder)
    task = json.loads((folder / "task.json").read_text())
    data = dict(np.load(folder / "data.npz"))
    start = Pool(folder / "base")["start"]
    network = models.ViT(**task["model"])
    loss = Classification(models.train_apply_fn(network), network.num_classes)
    training = Training(loss=loss, clip_norm=task["clip_norm"])
    members = {int(index): task["members"][int(index)] for index in indices}
    begin = time.perf_counter()
    pool = Pool(pool)
    for index, params in train(way, training, start, data, members, task["batch_size"]):
        pool.add(f"member{index}", params, {"config": members[index]})
    seconds = {"training and saving": time.perf_counter() - begin, "saved": time.time()}
    if way != "compiled each" and len(members) > 1:
        begin = time.perf_counter()
        for _ in train(way, training, start, data, members, task["batch_size"]):
            pass
        seconds["training again"] = time.perf_counter() - begin
    print(json.dumps(seconds))


def train(way, training, start, data, members, batch_size):
    """Yield the index and the weights of each member when it is trained."""
    if way in ("sequential", "compiled each"):
        alone = trained_alone if way == "sequential" else compile_and_train
        yield from ((index, alone(training, start, data, member, batch_size)) for index, member in members.items())
        return
    axes = {"axis_types": (jax.sharding.AxisType.Auto,)}
    mesh = jax.make_mesh((jax.device_count(),), ("pool",), **axes) if way == "sharded" else None
    data, known = prepared(training, start, data, members, batch_size)
    options = {"mode": way, "mesh": mesh, "members_per_program": None, "reached": lambda *told: None}
    results = in_programs(training, start, data, known, known, batch_size=batch_size, **options)
    yield from ((index, result["params"]) for index, result in results)


def compile_and_train(training, start, data, member, batch_size):
    """Train as a script does that is started with its hyper-parameters: they are constants of its compiled step."""
    own = dataclasses.replace(training)
    known = own.hyperparameters | member
    known["num_steps"] = num_steps(known, len(data["label"]), batch_size)
    step = jax.jit(lambda state, batch: training_step(own, state, batch, known), donate_argnums=0)
    vars(own)["step"] = lambda state, batch, _: step(state, batch)
    return trained_alone(own, start, data, member, batch_size)


def trained_alone(training, start, data, member, batch_size):
    """Return the weights that the step-by-step loop makes."""
    return jax.device_get(fit(training, start, data, batch_size=batch_size, hyperparameters=member)["params"])


if __name__ == "__main__":
    main()
