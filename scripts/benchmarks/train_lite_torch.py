"""Compare the steps per second of fine-tuning EfficientNet-Lite0 with those of PyTorch on the same CPU.

    python scripts/benchmarks/train_lite_torch.py --torch-python PATH/bin/python

BatchNorm's statistics are frozen, all weights are trained by Adam, as DomainBed does, and memory that a step frees is
kept, as by `soups run`. PyTorch runs beside, as a process that waits while JAX is timed: eagerly with
channels first and last, and compiled. Both start from the trained weights of the extra "recycling" and must give the
same losses for the first steps. Each of PyTorch's is tried twice; then blocks of steps of soups and of the fastest take
turns. The record is written after each case. Run it on a quiet machine.
"""

import argparse
import itertools
import sys

import _common
import jax
import numpy as np
from _beside_torch import COLUMNS, against_fastest, check_losses, how, rates, torch_process, trainer

from soups import models
from soups.allocator import keep_freed_memory
from soups.models.architectures import architecture
from soups.models.efficientnet_lite import STEM, TOP
from soups.train import Classification, Training

WORKER = "_torch_lite.py"
CLASSES, LEARNING_RATE, GOAL = 7, 5e-5, 1.0


def main():
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", help="interpreter with PyTorch")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 112], help="sides of the images")
    parser.add_argument("--batches", type=int, nargs="+", default=[24, 48], help="images in a batch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="in each block")
    parser.add_argument("--output", default="runs/benchmarks/train_lite_torch.json")
    options = parser.parse_args()
    keep_freed_memory()  # as `soups run` does
    if not options.torch_python:
        sys.exit(how("train_lite_torch.py"))
    entry = {"benchmark": "train_lite_torch", "what": __doc__.splitlines()[0], "goal": GOAL, "cases": []}
    entry |= {"settings": settings(), "machine": _common.machine()}
    for batch, size in itertools.product(options.batches, options.sizes):
        entry["cases"].append(case(size, batch, options))
        _common.write(options.output, entry)
        title = f"Training step of EfficientNet-Lite0, float32, goal {GOAL}"
        rows = [[f"{one['size']}, {one['batch']}", *rates(one)] for one in entry["cases"]]
        _common.table(title, ["pixels, batch", *COLUMNS], rows)


def settings():
    """Return what PyTorch needs to know of the network and its training."""
    arch = architecture("efficientnet-lite0")
    sizes = {"stages": [list(stage) for stage in arch.features.stages()], "stem": STEM, "top": TOP}
    return sizes | {
        "mean": arch.mean[0],
        "std": arch.std[0],
        "num_classes": CLASSES,
        "learning_rate": LEARNING_RATE,
    }


def case(size, count, options):
    """Return what was measured of batches of so many images of one size."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, size, size, 3)).astype(np.uint8)
    batch = {"image": images, "label": rng.integers(0, CLASSES, count).astype(np.int32)}
    params = models.import_weights(models.efficientnet_lite0_file(), "efficientnet-lite0")
    params = models.replace_head(params, jax.random.key(1), CLASSES, zero=False)
    run = jax_trainer(batch, params)
    with torch_process(options.torch_python, batch, params, WORKER, settings()) as (torch_run, said):
        check_losses(run, said["losses"])
        found = against_fastest("train", run, torch_run, said, options)
    return {"size": size, "batch": count, **found, "torch": {"version": said["version"], "failed": said["failed"]}}


def jax_trainer(batch, params):
    """Return a function that takes some steps of the library's training step and gives their losses."""
    arch = architecture("efficientnet-lite0")
    training = Training(loss=Classification(arch.train_apply_fn(CLASSES, frozen_statistics=True), CLASSES))
    return trainer(training, params, batch, {"learning_rate": LEARNING_RATE})


if __name__ == "__main__":
    main()
