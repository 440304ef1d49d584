"""Time the evaluator on many small networks and splits against the sum of their forward passes.

    python scripts/benchmarks/evaluate.py [--members 24] [--splits 14] [--examples 300] [--repeats 5] [--out FILE]

The forward passes are those of plain JAX: one compiled function, inputs that lie on the device, nothing fetched. The
evaluator also fetches the logits and computes accuracy, NLL, Brier score and both calibration errors of each split; a
third run keeps the logits on disk as well, and a fourth reads them from there. They take turns network by network.
Beside the wall clock stands the time of the processor, which other programs do not lengthen.
"""

import argparse
import collections
import pathlib
import resource
import tempfile
import time

import _common
import jax
import jax.numpy as jnp
import numpy as np

from soups import models
from soups.evaluate import Evaluator, LogitCache

GOAL = 1.2
BATCH = 500
MODEL = models.ViT(num_classes=10, patch_size=7, width=64, depth=3, mlp_dim=128, num_heads=4)  # that of configs/digits
APPLY = models.apply_fn(MODEL)
FORWARD = jax.jit(lambda params, batch: APPLY(params, batch.astype(jnp.float32) / 255))


def main():
    """Make networks and splits, evaluate in turns, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=24)
    parser.add_argument("--splits", type=int, default=14)
    parser.add_argument("--examples", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", default="runs/benchmarks/evaluate.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="evaluate_") as folder:
        report(_compare(pathlib.Path(folder), options), options)


def _compare(folder, options):
    rng = np.random.default_rng(0)
    shape = (options.splits, options.examples, 28, 28, 1)
    images, labels = rng.integers(0, 256, shape, np.uint8), rng.integers(0, 10, shape[:2])
    start = jax.device_get(models.init(MODEL, jax.random.key(0), shape[2:]))
    members = [
        jax.tree.map(lambda leaf: leaf + 0.02 * rng.standard_normal(leaf.shape, np.float32), start)
        for _ in range(options.members)
    ]
    splits = {f"split {number}": pair for number, pair in enumerate(zip(images, labels, strict=True))}
    found = collections.defaultdict(list)
    _round(members[:1], images, splits, folder / "compiled")
    for number in range(options.repeats):
        for kind, seconds in _round(members, images, splits, folder / str(number)).items():
            found[kind].append(seconds)
        shown = ", ".join(f"{kind[0]} {seconds[-1]:.1f} s" for kind, seconds in found.items() if kind[1] == "user")
        print(f"round {number + 1} of {options.repeats}, user time: {shown}", flush=True)
    return found


def _round(members, images, splits, folder):
    """Return the seconds of each scheme, by its name and "wall" or "user", for all members, one after the other."""
    schemes = {
        "forward passes": _forward(images),
        "evaluator": _evaluator(splits),
        "evaluator, to disk": _evaluator(splits, folder),
        "evaluator, from disk": _evaluator(splits, folder),
    }
    seconds = collections.Counter()
    for params in members:
        for name, scheme in schemes.items():
            wall, user = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_utime
            scheme(params)
            seconds[name, "wall"] += time.perf_counter() - wall
            seconds[name, "user"] += resource.getrusage(resource.RUSAGE_SELF).ru_utime - user
    return seconds


def _forward(images):
    batches = [jnp.asarray(split[start : start + BATCH]) for split in images for start in range(0, len(split), BATCH)]

    def run(params):
        placed = jax.device_put(params)
        for batch in batches:
            jax.block_until_ready(FORWARD(placed, batch))

    return run


def _evaluator(splits, folder=None):
    cache = None if folder is None else LogitCache(folder)
    evaluators = [
        Evaluator(APPLY, split, batch_size=BATCH, cache=cache, key=cache and name) for name, split in splits.items()
    ]

    def run(params):
        for evaluate in evaluators:
            evaluate(params)

    return run


def report(seconds, options):
    """Print the table and write the JSON."""
    summaries = {f"{name}, {kind}": _common.summarize(times) for (name, kind), times in seconds.items()}
    ratios = {}
    for (name, kind), times in seconds.items():  # within a round: the machine is the same
        pairs = zip(times, seconds["forward passes", kind], strict=True)
        ratios[f"{name}, {kind}"] = _common.summarize([ours / passes for ours, passes in pairs])
    rows = [[name, s["median"], s["min"], s["max"], ratios[name]["median"]] for name, s in summaries.items()]
    title = f"{options.members} networks on {options.splits} splits of {options.examples} examples"
    _common.table(title, ["", "median s", "min", "max", "to forward passes"], rows)
    for kind in ("wall", "user"):
        low, middle, high = (ratios[f"evaluator, {kind}"][name] for name in ("min", "median", "max"))
        print(f"evaluator to forward passes, {kind} {middle:.3f} [{low:.3f}-{high:.3f}], goal {GOAL}")
    record = {
        "benchmark": "evaluate",
        "what": __doc__.splitlines()[0],
        "results": summaries,
        "ratios": ratios,
        "goal": GOAL,
        "settings": {**_common.settings(options), "batch": BATCH},
        "machine": _common.machine(),
    }
    _common.write(options.out, record)


if __name__ == "__main__":
    main()
