"""Compare depthwise convolutions as sums of shifted images with XLA's grouped convolution, on the default device.

    python scripts/benchmarks/depthwise.py

Measured are all depthwise layers of EfficientNet-Lite0 at each image size, one after the other, and the gradients of
inputs and kernels. Both forms must agree within 1e-5. The ratio is that of grouped convolution to shifted sums: above 1
shifted sums are faster, which is what `soups.models.depthwise` takes on CPUs.
"""

import argparse
import functools
import sys

import _common
import jax
import jax.numpy as jnp
import numpy as np

from soups.models.architectures import architecture
from soups.models.depthwise import grouped_convolution, shifted_sum
from soups.models.efficientnet_lite import STEM

FORMS = {"shifted": shifted_sum, "grouped": grouped_convolution}
TOLERANCE = 1e-5


def main():
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 112], help="sides of the images")
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", default="runs/benchmarks/depthwise.json")
    options = parser.parse_args()
    rows = [one for size in options.sizes for one in compare(size, options)]
    drawn = [
        [
            f"{one['size']}, {one['what']}",
            one["shifted"]["median"],
            one["grouped"]["median"],
            one["ratio"],
            *one["range"],
        ]
        for one in rows
    ]
    _common.table(
        "Depthwise layers of EfficientNet-Lite0, seconds", ["pixels", *FORMS, "ratio", "lowest", "highest"], drawn
    )
    entry = {"benchmark": "depthwise", "what": __doc__.splitlines()[0], "rows": rows}
    _common.write(options.output, entry | {"settings": _common.settings(options), "machine": _common.machine()})


def compare(size, options):
    """Yield the rows of one image size: forward and gradient."""
    layers, rng = list(layers_of(size)), np.random.default_rng(0)
    inputs = [jnp.asarray(rng.normal(size=(options.batch, side, side, c)).astype(np.float32)) for side, c, *_ in layers]
    kernels = [jnp.asarray(rng.normal(size=(k, k, 1, c)).astype(np.float32)) for _, c, k, _ in layers]
    outer = [
        grouped_convolution(x, kernel, stride) for x, kernel, (*_, stride) in zip(inputs, kernels, layers, strict=True)
    ]
    for what in ("forward", "gradient"):
        runs = {name: [program(form, stride, what) for *_, stride in layers] for name, form in FORMS.items()}

        def all_layers(name, runs=runs):
            return [run(*given) for run, *given in zip(runs[name], inputs, kernels, outer, strict=True)]

        check(*map(all_layers, FORMS))
        seconds = _common.measure({name: functools.partial(all_layers, name) for name in FORMS}, options.repeats)
        ratios = [grouped / shifted for shifted, grouped in zip(*seconds.values(), strict=True)]
        row = {name: _common.summarize(times) for name, times in seconds.items()}
        row |= {"ratio": row["grouped"]["median"] / row["shifted"]["median"], "range": [min(ratios), max(ratios)]}
        yield {"size": size, "what": what} | row


def layers_of(size):
    """Yield the side, channels, size of the kernel and stride of each depthwise layer."""
    side, channels = -(-size // 2), STEM
    for stage in architecture("efficientnet-lite0").features.stages():
        for block in range(stage.blocks):
            stride = stage.stride if block == 0 else 1
            yield side, channels * stage.expansion, stage.size, stride
            side, channels = -(-side // stride), stage.width


def program(form, stride, what):
    """Return one layer as a compiled function of inputs, kernel and the outer gradient."""

    def run(x, kernel, outer):
        made, back = jax.vjp(lambda x, kernel: form(x, kernel, stride), x, kernel)
        return back(outer) if what == "gradient" else made

    return jax.jit(run)


def check(ours, theirs):
    """Stop if both forms do not compute the same."""
    for one, other in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        error = float(jnp.abs(one - other).max() / jnp.abs(other).max())
        if not error <= TOLERANCE:
            sys.exit(f"not the same convolution: relative error {error:.2g}")


if __name__ == "__main__":
    main()
