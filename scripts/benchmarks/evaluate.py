"""Time the evaluator on many small networks and splits against the sum of their forward passes.

    python scripts/benchmarks/evaluate.py [--members 24] [--splits 14] [--examples 1500] [--repeats 5] [--out FILE]

The forward passes are those of plain JAX: one compiled function, inputs that lie on the device, nothing fetched. The
evaluator also fetches the logits and computes accuracy, NLL, Brier score and both calibration errors of each split; a
third run keeps the logits on disk as well, and a fourth reads them from there.
"""

import argparse
import pathlib
import tempfile

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


def main():
    """Make networks and splits, evaluate in turns, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=24)
    parser.add_argument("--splits", type=int, default=14)
    parser.add_argument("--examples", type=int, default=1500)
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
    empty = (folder / str(number) for number in range(options.repeats + 1))
    schemes = {
        "forward passes": _forward(members, images),
        "evaluator": _evaluator(members, splits),
        "evaluator, to disk": lambda: _evaluator(members, splits, next(empty))(),
        "evaluator, from disk": _evaluator(members, splits, folder / "0"),
    }
    for scheme in schemes.values():
        scheme()  # compile, and fill the folder that is read
    return _common.measure(schemes, options.repeats)


def _forward(members, images):
    forward = jax.jit(lambda params, batch: APPLY(params, batch.astype(jnp.float32) / 255))
    batches = [jnp.asarray(split[start : start + BATCH]) for split in images for start in range(0, len(split), BATCH)]
    placed = jax.device_put(members)

    def run():
        for params in placed:
            for batch in batches:
                jax.block_until_ready(forward(params, batch))

    return run


def _evaluator(members, splits, folder=None):
    cache = None if folder is None else LogitCache(folder)
    evaluators = [
        Evaluator(APPLY, split, batch_size=BATCH, cache=cache, key=cache and name) for name, split in splits.items()
    ]

    def run():
        for params in members:
            for evaluate in evaluators:
                evaluate(params)

    return run


def report(seconds, options):
    """Print the table and write the JSON."""
    summaries = {name: _common.summarize(times) for name, times in seconds.items()}
    forward = summaries["forward passes"]["median"]
    rows = [[name, s["median"], s["min"], s["max"], s["median"] / forward] for name, s in summaries.items()]
    title = f"{options.members} networks on {options.splits} splits of {options.examples} examples"
    _common.table(title, ["", "median s", "min", "max", "to forward passes"], rows)
    pairs = zip(seconds["evaluator"], seconds["forward passes"], strict=True)
    ratios = _common.summarize([ours / passes for ours, passes in pairs])  # within a round: the machine is the same
    print(f"evaluator to forward passes {ratios['median']:.3f} [{ratios['min']:.3f}-{ratios['max']:.3f}], goal {GOAL}")
    record = {
        "benchmark": "evaluate",
        "what": __doc__.splitlines()[0],
        "results": summaries,
        "ratio": ratios,
        "goal": GOAL,
        "settings": {**vars(options), "batch": BATCH},
        "machine": _common.machine(),
    }
    _common.write(options.out, record)


if __name__ == "__main__":
    main()
