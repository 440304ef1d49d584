"""Compare the images per second of the training step with those of the same network in PyTorch on the same CPU.

    python scripts/benchmarks/train_step_torch.py --torch-python PATH/bin/python

PyTorch lives in an environment of its own and runs beside, as a process that waits while JAX is timed. Both start from
the same weights and must give the same losses for the first steps; then blocks of steps take turns. PyTorch runs
eagerly, with two forms of its optimizer, and compiled; the ratio is to the fastest of them. Run it on a quiet machine:
the threads of both wait for each other, so a neighbour on one core costs more than its share.
"""

import argparse
import sys

import _common
import jax
import numpy as np
from _beside_torch import check_losses, how, torch_process, trainer

from soups import models
from soups.allocator import keep_freed_memory
from soups.train import Classification, Training

NETWORK = {"patch_size": 7, "width": 64, "depth": 3, "mlp_dim": 128, "num_heads": 4, "num_classes": 10}
SETTINGS = NETWORK | {
    "image_size": 28,
    "batch_size": 128,
    "learning_rate": 1e-3,
    "weight_decay": 0.1,
    "label_smoothing": 0.1,
    "clip_norm": 1.0,
}
WORKER = "_torch_vit.py"
GOAL = 1.0


def main():
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", help="interpreter with PyTorch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100, help="in each block")
    parser.add_argument("--output", default="runs/benchmarks/train_step_torch.json")
    options = parser.parse_args()
    if not options.torch_python:
        sys.exit(how("train_step_torch.py"))
    keep_freed_memory()  # as `soups run` does
    batch, params = make_batch(), make_weights()
    run = jax_trainer(batch, params)
    with torch_process(options.torch_python, batch, params, WORKER, SETTINGS) as (torch_run, torch_says):
        check_losses(run, torch_says["losses"])
        callables = {"soups": lambda: run(options.steps)}
        callables |= {
            name: lambda name=name: torch_run(f"train, {name}", options.steps) for name in torch_says["losses"]
        }
        _common.measure(callables, 1)  # warm
        seconds = _common.measure(callables, options.repeats)
    report(seconds, torch_says, options)


def make_batch():
    """Return one batch of random bytes and labels."""
    rng = np.random.default_rng(0)
    side, size = SETTINGS["image_size"], SETTINGS["batch_size"]
    images = rng.integers(0, 256, (size, side, side, 1)).astype(np.uint8)
    return {"image": images, "label": rng.integers(0, SETTINGS["num_classes"], size).astype(np.int32)}


def make_weights():
    """Return start weights with a head that is not zero, so that the first loss already tests every layer."""
    start = models.init(models.ViT(**NETWORK), jax.random.key(0), (SETTINGS["image_size"],) * 2 + (1,))
    return models.replace_head(start, jax.random.key(1), SETTINGS["num_classes"], zero=False)


def jax_trainer(batch, params):
    """Return a function that takes some steps of the library's training step and gives their losses."""
    training = Training(
        loss=Classification(models.train_apply_fn(models.ViT(**NETWORK)), SETTINGS["num_classes"]),
        clip_norm=SETTINGS["clip_norm"],
    )
    chosen = {name: SETTINGS[name] for name in ("learning_rate", "weight_decay", "label_smoothing")}
    return trainer(training, params, batch, chosen)


def report(seconds, torch_says, options):
    """Print the table and write the JSON."""
    images = options.steps * SETTINGS["batch_size"]
    summaries = {name: _common.summarize(times) for name, times in seconds.items()}
    rates = {name: images / summary["median"] for name, summary in summaries.items()}
    best = max((name for name in rates if name != "soups"), key=rates.get)
    ratio = rates["soups"] / rates[best]
    rows = [
        [name, rate, images / summaries[name]["max"], images / summaries[name]["min"], rate / rates[best]]
        for name, rate in rates.items()
    ]
    title = f"Training step, ViT {SETTINGS['width']}x{SETTINGS['depth']}, batch {SETTINGS['batch_size']}, float32"
    _common.table(title, ["", "images/s", "lowest", "highest", "to best torch"], rows)
    for name, reason in torch_says["failed"].items():
        print(f"{name} did not run here: {reason}")
    print(f"ratio to {best} (torch {torch_says['version']}): {ratio:.2f}, goal {GOAL}")
    _common.write(
        options.output,
        {
            "benchmark": "train_step_torch",
            "machine": _common.machine(),
            "torch": {"version": torch_says["version"], "failed": torch_says["failed"]},
            "settings": SETTINGS | {"steps": options.steps, "repeats": options.repeats},
            "seconds": summaries,
            "images_per_second": rates,
            "ratio": ratio,
            "against": best,
            "goal": GOAL,
        },
    )


if __name__ == "__main__":
    main()
