"""Measure images a second, the share of the matrix peak and the device memory of evaluating and training CLIP ViTs.

    python scripts/benchmarks/vit_throughput.py [--archs clip-vit-b32 clip-vit-b16] [--batch 512] [--dtype bfloat16]

For an accelerator; a CPU takes its place with --batch 8, and its peak is not known. Images are on the device before the
clock starts. A forward pass counts twice its multiply-adds, written out below from the sizes of the network; a step of
training three forward passes, recomputation not counted (MFU). The peak is what the vendor's data sheet says of dense
bfloat16 products; "of matmul" is the share of what a product of two large matrices reaches here, in the same dtype.
"""

import argparse

import _common
import jax
import jax.numpy as jnp
import numpy as np

from soups.models.architectures import architecture
from soups.train import Classification, Training
from soups.train.published import DECAY_ALL, MODEL_SOUPS

CLASSES, STEPS, GOAL = 1000, 10, 0.5
# dense bfloat16 products of one chip in TFLOP/s, as the data sheets of NVIDIA and Google say; by the start of the name
PEAKS = {"NVIDIA H200": 989.0, "NVIDIA H100": 989.0, "NVIDIA A100": 312.0, "NVIDIA L4": 121.0}
PEAKS |= {"TPU v4": 275.0, "TPU v5 lite": 197.0, "TPU v5p": 459.0, "TPU v6 lite": 918.0}


def main():
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", nargs="+", default=["clip-vit-b32", "clip-vit-b16"])
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", default="runs/benchmarks/vit_throughput.json")
    options = parser.parse_args()
    kind = jax.devices()[0].device_kind
    peak = next((peak for name, peak in PEAKS.items() if kind.startswith(name)), None)
    reached = matmul_rate(options.dtype, options.repeats)
    rows = [measured(name, task, options) for name in options.archs for task in (evaluation, training)]
    for row in rows:
        row |= {"MFU": row["TFLOP/s"] / peak if peak else None, "of matmul": row["TFLOP/s"] / reached}
    report(rows, kind, peak, reached, options)


def forward_flops(arch) -> float:
    """Count the operations of one image's forward pass: twice the multiply-adds of its matrix products."""
    network = arch.features
    patches = (arch.image_size // network.patch_size) ** 2
    tokens, width = patches + 1, network.width
    block = tokens * width * (4 * width + 2 * network.mlp_dim) + 2 * tokens**2 * width
    ends = patches * 3 * network.patch_size**2 * width + width * arch.feature_dim + arch.feature_dim * CLASSES
    return 2.0 * (network.depth * block + ends)


def evaluation(arch, images, labels, dtype):
    """Return a function that runs the forward pass some times over, and its compiled program."""
    apply_fn = arch.apply_fn(CLASSES, dtype=dtype)
    forward = jax.jit(lambda params, images: apply_fn(params, images.astype(jnp.float32) / 255.0).argmax(-1))
    params = jax.device_put(drawn(arch))
    program = forward.lower(params, images).compile()
    return lambda: [program(params, images) for _ in range(STEPS)], program, 1


def training(arch, images, labels, dtype):
    """Return a function that takes some steps of the published recipe, and its compiled program."""
    apply_fn = arch.train_apply_fn(CLASSES, dtype=dtype)
    settings = Training(loss=Classification(apply_fn, CLASSES), clip_norm=1.0, decay_rules=DECAY_ALL)
    numbers = settings.numbers(settings.hyperparameters | MODEL_SOUPS | {"num_steps": 10_000})
    state = settings.begin(drawn(arch), numbers)
    batch = {"image": images, "label": labels}
    program = settings.step.lower(state, batch, numbers).compile()

    def steps():
        nonlocal state
        for _ in range(STEPS):
            state, loss = program(state, batch, numbers)
        return loss

    return steps, program, 3


def drawn(arch):
    """Draw weights of a sensible size."""
    generator = np.random.default_rng(0)
    draw = lambda leaf: (0.02 * generator.standard_normal(leaf.shape)).astype(leaf.dtype)  # noqa: E731
    return jax.tree.map(draw, arch.abstract(CLASSES))


def measured(name, task, options) -> dict:
    """Measure one network at one task."""
    arch, generator = architecture(name), np.random.default_rng(1)
    images = generator.integers(0, 256, (options.batch, arch.image_size, arch.image_size, 3), np.uint8)
    labels = generator.integers(0, CLASSES, options.batch, np.int32)
    run, program, passes = task(arch, jax.device_put(images), jax.device_put(labels), jnp.dtype(options.dtype))
    jax.block_until_ready(run())
    seconds = _common.summarize(_common.measure({name: run}, options.repeats)[name])
    rate, memory = STEPS * options.batch / seconds["median"], program.memory_analysis()
    row = {"network": name, "task": task.__name__, "images/s": rate}
    row["TFLOP/s"] = rate * passes * forward_flops(arch) / 1e12
    sizes = (memory.temp_size_in_bytes, memory.argument_size_in_bytes, memory.output_size_in_bytes)
    row["memory GB"] = (sum(sizes) - memory.alias_size_in_bytes) / 1e9
    return row | {"seconds": seconds}


def matmul_rate(dtype, repeats) -> float:
    """Measure the TFLOP/s of a product of two square matrices."""
    size = 1024 if jax.default_backend() == "cpu" else 8192
    matrix = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a, b: a @ b)
    run = lambda: [product(matrix, matrix) for _ in range(STEPS)]  # noqa: E731
    jax.block_until_ready(run())
    return STEPS * 2e-12 * size**3 / min(_common.measure({"matmul": run}, repeats)["matmul"])


def report(rows, kind, peak, reached, options):
    """Print the table and write the record."""
    heads = ["network", "task", "images/s", "TFLOP/s", "MFU", "of matmul", "memory GB"]
    shown = [[row[head] for head in heads] for row in rows]
    _common.table(f"{kind}, {options.dtype}, batch {options.batch}; goal: {GOAL} of the peak", heads, shown)
    record = {"benchmark": "vit_throughput", "what": __doc__.splitlines()[0], "device": kind, "goal": GOAL}
    record |= {"peak": peak, "matmul": reached, "batch": options.batch, "dtype": options.dtype, "rows": rows}
    _common.write(options.out, record | {"machine": _common.machine()})


if __name__ == "__main__":
    main()
