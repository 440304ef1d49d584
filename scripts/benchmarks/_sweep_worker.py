"""Train members of a sweep in one way and put them into a pool: run by sweep.py, each time as a fresh process.

Arguments: the folder that sweep.py prepared, the way, the pool to make, and the members' indices. Says as one line of
JSON how many seconds the training took (compilation included), how many the saving, and, for a way that compiles once
for all members, how many the same training took once more.
"""

import dataclasses
import json
import pathlib
import sys
import time

import jax
import numpy as np

from soups import models
from soups.pool import Pool
from soups.train import Classification, Training, fit, training_step
from soups.train.loop import num_steps, prepared
from soups.train.programs import in_programs


def main():
    """Train, save, and train again."""
    folder, way, pool, *indices = sys.argv[1:]
    folder = pathlib.Path(folder)
    task = json.loads((folder / "task.json").read_text())
    data = dict(np.load(folder / "data.npz"))
    start = Pool(folder / "base")["start"]
    network = models.ViT(**task["model"])
    loss = Classification(models.train_apply_fn(network), network.num_classes)
    training = Training(loss=loss, clip_norm=task["clip_norm"])
    members = {int(index): task["members"][int(index)] for index in indices}
    repeated = way != "compiled each" and len(members) > 1
    results = train(way, training, start, data, list(members.values()) * (2 if repeated else 1), task["batch_size"])

    begin = time.perf_counter()
    trained = [next(results) for _ in members]
    seconds = {"training": time.perf_counter() - begin}
    begin = time.perf_counter()
    pool = Pool(pool)
    for index, params in zip(members, trained, strict=True):
        pool.add(f"member{index}", params, {"config": members[index]})
    seconds["saving"] = time.perf_counter() - begin
    seconds["saved"] = time.time()
    if repeated:
        begin = time.perf_counter()
        for _ in results:
            pass
        seconds["training again"] = time.perf_counter() - begin
    print(json.dumps(seconds))


def train(way, training, start, data, members, batch_size):
    """Return the weights of each member in turn."""
    if way == "compiled each":
        yield from (compile_and_train(training, start, data, member, batch_size) for member in members)
        return
    if way == "sequential":
        yield from (trained_alone(training, start, data, member, batch_size) for member in members)
        return
    axes = {"axis_types": (jax.sharding.AxisType.Auto,)}
    mesh = jax.make_mesh((jax.device_count(),), ("pool",), **axes) if way == "sharded" else None
    # half of the members are those of the second time, and one program makes either half
    size = max(1, len(members) // 2)
    data, known = prepared(training, start, data, dict(enumerate(members)), batch_size)
    options = {"mode": way, "mesh": mesh, "members_per_program": size, "reached": lambda *told: None}
    results = in_programs(training, start, data, known, known, batch_size=batch_size, **options)
    yield from (result["params"] for _, result in results)


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
