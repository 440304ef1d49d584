"""Measure how many bytes a second every merging method moves on the device, beside a copy on the same device.

    python scripts/benchmarks/merge_device.py [--elements N] [--members 8] [--dtype float32] [--methods ties ...]
        [--repeats 5] [--out FILE]

Members and base are on the default JAX device before the clock starts. Each method is one jitted program that gets the
base's buffers for its result (donated, where a method has a base) and is waited for; what it moves is counted as every
element of members and base read once and the result written once, however often it really reads them. "copy" is a
jitted copy of members and base to the same device, each byte read and written. The contenders take turns, and the
first, compiling call does not count. Where JAX has no accelerator, the CPU stands for the device, and the output says
so. Methods of whole matrices take at most 4,194,304 elements: their singular value decompositions grow faster than the
bytes.
"""

import argparse
import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable

import _common
import jax
import jax.numpy as jnp

import soups
from soups.recipes.differences import arcee_fusion, nearswap

LEAVES = 4
MATRICES = ("tsv_merge", "iso_c", "wudi")
MATRIX_ELEMENTS = 2**22


@dataclasses.dataclass(frozen=True)
class Method:
    """State a method: `call` takes members and base; how many members (None: all); whether the base is read."""

    call: Callable
    members: int | None = None
    base: bool = True


def _of_base(function, members=None, **settings):
    return Method(lambda trees, base: function(trees, base=base, **settings), members)


METHODS = {
    "uniform": Method(lambda trees, base: soups.uniform(trees), base=False),
    "slerp": Method(lambda trees, base: soups.tree.slerp(base, trees[0], 0.3), 1),
    "wise_ft": Method(lambda trees, base: soups.wise_ft(trees[0], base=base, alpha=0.5), 1),
    "task_arithmetic": _of_base(soups.task_arithmetic),
    "ties": _of_base(soups.ties),
    "ties per leaf": _of_base(soups.ties, scope="leaf"),
    "dare": _of_base(soups.dare),
    "dare with election": _of_base(soups.dare, elect=True),
    "della": _of_base(soups.della),
    "breadcrumbs": _of_base(soups.breadcrumbs),
    "sce": _of_base(soups.sce, select_topk=0.5),
    "consensus": _of_base(soups.consensus),
    "pcb": _of_base(soups.pcb),
    "magmax": _of_base(soups.magmax),
    "ram": _of_base(soups.ram),
    "ram_plus": _of_base(soups.ram_plus),
    "model_stock": _of_base(soups.model_stock),
    "nuslerp": Method(lambda trees, base: soups.nuslerp(trees), 2, base=False),
    "multislerp": _of_base(soups.multislerp),
    "karcher": Method(lambda trees, base: soups.karcher(trees), base=False),
    "geometric_median": Method(lambda trees, base: soups.geometric_median(trees), base=False),
    "nearswap": _of_base(nearswap, 1),
    "arcee_fusion": _of_base(arcee_fusion, 1),
    "tsv_merge": _of_base(soups.tsv_merge),
    "iso_c": _of_base(soups.iso_c),
    "wudi": _of_base(soups.wudi, steps=10),
}


def main():
    """Measure the methods one after the other, each in turns with the copy; print and write."""
    options = _options()
    accelerator = jax.default_backend() != "cpu"
    if not accelerator:
        print("JAX has no accelerator here: the CPU stands for the device")
    results = {}
    for name in options.methods:
        elements = min(options.elements, MATRIX_ELEMENTS) if name in MATRICES else options.elements
        results[name] = measure(METHODS[name], *make_models(elements, options.members, options.dtype), options.repeats)
        print(f"{name}: {results[name]['GB/s']:.3g} GB/s, {results[name]['share of copy']:.3f} of a copy", flush=True)
    report(results, accelerator, options)


@functools.lru_cache(maxsize=1)
def make_models(elements, members, dtype):
    """Return members and base on the device: trees of square matrices."""
    side = max(1, math.isqrt(elements // LEAVES))

    def tree(key, scale):
        keys = jax.random.split(key, LEAVES)
        return {f"layer_{i}": scale * jax.random.normal(k, (side, side), jnp.float32) for i, k in enumerate(keys)}

    @jax.jit
    def moved(base, key):
        return jax.tree.map(lambda start, step: (start + step).astype(dtype), base, tree(key, 0.002))

    base = jax.jit(tree)(jax.random.key(0), 0.02)
    trees = [moved(base, jax.random.key(1 + index)) for index in range(members)]
    return jax.block_until_ready((trees, jax.tree.map(lambda leaf: leaf.astype(dtype), base)))


def measure(method, members, base, repeats):
    """Return seconds of a method and of the copy, in turns, and the bytes that each moves."""
    members = members[: method.members]
    inputs = [members, base] if method.base else [members]
    copy = jax.jit(lambda trees: jax.tree.map(jnp.copy, trees))
    merge = jax.jit(method.call, donate_argnums=(1,) if method.base else ())
    read, written = (sum(leaf.nbytes for leaf in jax.tree.leaves(trees)) for trees in (inputs, base))
    seconds = {"method": [], "copy": []}
    for repeat in range(repeats + 1):
        own = jax.block_until_ready(copy(base))  # the method takes its buffers
        for contender, function, arguments in (("method", merge, (members, own)), ("copy", copy, (inputs,))):
            begin = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            if repeat:
                seconds[contender].append(time.perf_counter() - begin)
    rates = {
        "GB/s": (read + written) / statistics.median(seconds["method"]) / 1e9,
        "GB/s of copy": 2 * read / statistics.median(seconds["copy"]) / 1e9,
    }
    return {
        **rates,
        "share of copy": rates["GB/s"] / rates["GB/s of copy"],
        "bytes": read + written,
        "seconds": _common.summarize(seconds["method"]),
        "seconds of copy": _common.summarize(seconds["copy"]),
    }


def report(results, accelerator, options):
    """Print the table and write the JSON."""
    rows = [
        [
            name,
            found["GB/s"],
            found["bytes"] / found["seconds"]["max"] / 1e9,
            found["bytes"] / found["seconds"]["min"] / 1e9,
            found["GB/s of copy"],
            f"{found['share of copy']:.3f}",
        ]
        for name, found in results.items()
    ]
    device = jax.devices()[0].device_kind
    _common.table(
        f"Merging {options.members} members of {options.elements:,} {options.dtype} on {device}",
        ["method", "GB/s", "slowest", "fastest", "copy, GB/s", "share of copy"],
        rows,
    )
    record = {
        "benchmark": "merge_device",
        "what": __doc__.splitlines()[0],
        "accelerator": accelerator,
        "elements": options.elements,
        "members": options.members,
        "dtype": options.dtype,
        "results": results,
        "machine": _common.machine(),
    }
    _common.write(options.out, record)


def _options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=int, default=2**27, help="of each member")
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", default="runs/benchmarks/merge_device.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
