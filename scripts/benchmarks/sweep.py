"""Time a sweep of 16 members as one program against separate runs, in one process and in 16 processes.

    python scripts/benchmarks/sweep.py [--members 16] [--epochs 4 8] [--repeats 3] [--slow-repeats 1] [--out FILE]

The task is 1,000 images of MNIST, the network a small ViT (`MODEL`) with ranges of hyper-parameters (`SWEEP`); the
start weights are random, which costs the same. All contenders must give the same members, but for rounding.

"from start to pool" is the wall time of fresh processes from their start until the last member is in the pool: it holds
the imports, the compilation and the saving. As many processes as there are cores run at a time: once as JAX comes, and
once with a compilation cache that they share and each held to one core where that is possible, which is faster than
with its threads over all of them. The other contenders have a compilation cache too, as scripts/run.py does; every
contender begins with an empty one. "training alone" is the same training once more in the same process, with everything
compiled.

A ratio is a contender's time over that of the one program with a member on every device, both of the same round. The
rounds alternate; contenders that take minutes are in the first `--slow-repeats` only.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import queue
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

# the contenders' processes need the accelerator's memory
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import _common
import jax
import numpy as np

from soups import models, tree
from soups.data import digits_task
from soups.pool import Pool
from soups.studies.finetune_and_soup import sweep_members

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count()))
WORKER = pathlib.Path(__file__).with_name("_sweep_worker.py")
TASK = {"target": "mnist_5k", "image_size": 28, "num_train": 1000}
MODEL = {"patch_size": 7, "width": 64, "depth": 3, "mlp_dim": 128, "num_heads": 4, "pool_type": "gap"}
SWEEP = {
    "learning_rate": (5e-4, 2e-3),
    "weight_decay": (1e-4, 1e-1),
    "label_smoothing": (0.0, 0.25),
    "mixup": (0.0, 0.9),
    "augment_operations": (0, 2),
    "augment_magnitude": (0.0, 20.0),
}
GOALS = {
    "separate jit runs, each compiled": 1.2,
    "separate jit runs, one compiled step": 1.2,
    "a process each": 3.0,
    "a process each, a core and a cache": 3.0,
}
TOLERANCE = 1e-3  # of the distance between member and start


@dataclasses.dataclass(frozen=True)
class Contender:
    """Say how a sweep is made; `at_a_time` processes of one member each, or one process for all (None)."""

    way: str
    devices: int = 1
    at_a_time: int | None = None
    cached: bool = True
    slow: bool = False


OURS = "one program, all devices"
CONTENDERS = {
    OURS: Contender("sharded", devices=len(CORES)),
    "one program, one device": Contender("map", slow=True),
    "one program, vmap": Contender("vmap", slow=True),
    "separate jit runs, one compiled step": Contender("sequential"),
    "separate jit runs, each compiled": Contender("compiled each", slow=True),
    # step by step, because a whole fine-tuning as one program depends on its number of steps: the cache would miss
    "a process each": Contender("sequential", at_a_time=len(CORES), cached=False, slow=True),
    "a process each, a core and a cache": Contender("sequential", at_a_time=len(CORES), slow=True),
}


def main():
    """Prepare, let the contenders take turns, compare what they made, print and write."""
    options = _options()
    jax.config.update("jax_num_cpu_devices", len(CORES))
    with tempfile.TemporaryDirectory(prefix="sweep_") as folder:
        folder = pathlib.Path(folder)
        start = prepare(folder, options)
        rounds = []
        for number in range(options.repeats):
            taking_part = {n: c for n, c in CONTENDERS.items() if number < options.slow_repeats or not c.slow}
            rounds.append(
                {n: run(c, folder, f"{number}-{i}", options.members) for i, (n, c) in enumerate(taking_part.items())}
            )
        difference = largest_difference(folder, start)
    if not difference < TOLERANCE:
        sys.exit(f"the contenders made other members: they differ by {difference:.2g} of their distance from the start")
    report(rounds, difference, options)


def prepare(folder, options):
    """Write the task for the workers: data, start weights, hyper-parameters; give the start weights."""
    task, _ = digits_task(**TASK, num_held_out=10, num_test=10, natural_shift_size=10, shifts={})
    np.savez(folder / "data.npz", image=task.train.images, label=task.train.labels)
    network = MODEL | {"num_classes": len(task.class_names)}
    start = models.init(models.ViT(**network), jax.random.key(0), task.train.images.shape[1:])
    Pool(folder / "base").add("start", start)
    sweep = SWEEP | {"members": options.members, "epochs": tuple(options.epochs)}
    written = {
        "model": network,
        "clip_norm": 1.0,
        "members": sweep_members(sweep, 0),
        "batch_size": 64,
    }
    (folder / "task.json").write_text(json.dumps(written))
    return start


def run(contender, folder, label, members):
    """Let a contender make the sweep in fresh processes; give its seconds from start to pool, and of training again."""
    pool, cache = folder / f"pool-{label}", folder / f"cache-{label}"
    groups = [[str(index)] for index in range(members)]
    if contender.at_a_time is None:
        groups = [[index for (index,) in groups]]
    cores = queue.SimpleQueue()
    for core in CORES:
        cores.put(core)

    def work(indices):
        core = cores.get()
        alone = contender.at_a_time and contender.cached and shutil.which("taskset")
        pinned = ["taskset", "-c", str(core)] if alone else []
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(contender.devices)}
        if contender.cached:
            environment |= {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        command = [*pinned, sys.executable, str(WORKER), str(folder), contender.way, str(pool), *indices]
        process = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        cores.put(core)
        return json.loads(process.stdout.splitlines()[-1])

    begin = time.time()
    with concurrent.futures.ThreadPoolExecutor(contender.at_a_time or 1) as workers:
        says = list(workers.map(work, groups))
    return {"whole": max(said["saved"] for said in says) - begin, "training again": says[0].get("training again")}


def largest_difference(folder, start):
    """Return the largest distance of a member from the same member of the first contender, to how far it went."""
    pools = [Pool(path) for path in sorted(folder.glob("pool-*"))]
    differences = []
    for name in pools[0]:
        first = pools[0][name]
        moved = tree.norm(tree.sub(first, jax.device_get(start)))
        differences += [float(tree.norm(tree.sub(pool[name], first)) / moved) for pool in pools[1:]]
    return max(differences)


def report(rounds, difference, options):
    """Print the table and write the JSON."""
    results, rows = {}, []
    for name in CONTENDERS:
        row = [name]
        for measure in ("whole", "training again"):
            pairs = [(r[name][measure], r[OURS][measure]) for r in rounds if name in r and r[name][measure] is not None]
            if not pairs:
                row += ["", ""]
                continue
            seconds, ratios = [theirs for theirs, _ in pairs], [theirs / ours for theirs, ours in pairs]
            results.setdefault(name, {})[measure] = _common.summarize(seconds) | {"ratios": ratios}
            spread = f" ({min(ratios):.2f}-{max(ratios):.2f})" if len(ratios) > 1 else ""
            row += [statistics.median(seconds), f"{statistics.median(ratios):.2f}{spread}"]
        rows.append(row)
    title = f"Sweep of {options.members} members, {options.epochs[0]} to {options.epochs[1]} epochs"
    _common.table(title, ["", "from start to pool, s", "ratio", "training alone, s", "ratio"], rows)
    print(f"members differ by at most {difference:.1g} of their distance from the start")
    ratios = {name: statistics.median(results[name]["whole"]["ratios"]) for name in GOALS}
    for name, ratio in ratios.items():
        print(f"{name}: ratio {ratio:.2f}, goal {GOALS[name]}")
    record = {
        "benchmark": "sweep",
        "what": __doc__.splitlines()[0],
        "results": results,
        "ratio": ratios,
        "goal": GOALS,
        "largest_difference": difference,
        "repeats": len(rounds),
        "settings": {"members": options.members, "epochs": options.epochs},
        "machine": _common.machine(),
    }
    _common.write(options.out, record)


def _options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--epochs", type=int, nargs=2, default=[4, 8], metavar=("LOW", "HIGH"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--slow-repeats", type=int, default=1, help="rounds with the contenders that take minutes")
    parser.add_argument("--out", default="runs/benchmarks/sweep.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
