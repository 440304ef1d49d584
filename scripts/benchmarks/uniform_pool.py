"""Time a uniform soup of a pool, every byte verified, against Orbax alone restoring the members.

python scripts/benchmarks/uniform_pool.py [--dir DIR] [--members 8] [--megabytes 350] [--out FILE]

Orbax restores the members one after the other to one device, without averaging and without noticing a flipped bit.
Memory is measured in a process of its own: anonymous pages (its own, not those of mapped files) at the peak over what
they were before, in sizes of a member.
"""

import argparse
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import _common
import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

import soups.tree
from soups.pool import Pool

_RESTORE = "Orbax restores the members"


def main():
    """Make the members, measure, print a table and write JSON."""
    options = _options()
    if options.memory_of:
        print(*_peak_memory(Pool(options.memory_of)))
        return
    directory = pathlib.Path(tempfile.mkdtemp(prefix="uniform_pool_", dir=options.dir))
    try:
        record = _benchmark(directory, options)
    finally:
        shutil.rmtree(directory)
    _print(record)
    _common.write(options.out, record)


def _benchmark(directory, options):
    pool, defaults = _make_members(directory, options)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), pool.structure)
    own = [pool.path / pool.record(name)["path"] for name in pool]
    seconds = _common.measure(
        {
            "soup, verified": lambda: soups.uniform(pool),
            "soup, verified, put on the device": lambda: jax.device_put(soups.uniform(pool), device),
            _RESTORE: lambda: _restore_all(own, like),
            "Orbax restores them in its default format": lambda: _restore_all(defaults, like),
        },
        repeats=options.repeats,
    )
    command = [sys.executable, __file__, "--memory-of", str(pool.path)]
    before, peak = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    member = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pool.structure))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "benchmark": "uniform_pool",
        "what": f"uniform soup of {options.members} members of {member / 1e6:.0f} MB from disk (warm page cache)",
        "results": {
            "seconds": {name: _common.summarize(times) for name, times in seconds.items()},
            "ratio when put on the device": medians["soup, verified, put on the device"] / medians[_RESTORE],
            "peak private memory in members": (peak - before) / member,
        },
        "ratio": medians["soup, verified"] / medians[_RESTORE],
        "goal": "ratio <= 0.5, peak private memory <= 2 members",
        "repeats": options.repeats,
        "machine": _common.machine(),
    }


def _make_members(directory, options):
    rng = np.random.default_rng(0)
    pool, defaults = Pool(directory / "pool"), []
    for index in range(options.members):
        params = _vit(rng, options.megabytes * 1e6 / 350e6)
        pool.add(f"member{index}", params)
        defaults.append(directory / f"default{index}")
        ocp.save(defaults[-1], params)
    return pool, defaults


def _vit(rng, scale):
    # ViT-B/32, about 350 MB of float32 in 200 leaves; `scale` shrinks the width
    width = max(8, round(768 * scale**0.5))
    block = {f"norm{i}": {"scale": (width,), "bias": (width,)} for i in range(2)}
    block |= {name: {"kernel": (width, width), "bias": (width,)} for name in ("query", "key", "value", "out")}
    block |= {"up": {"kernel": (width, 4 * width), "bias": (4 * width,)}}
    block |= {"down": {"kernel": (4 * width, width), "bias": (width,)}}
    shapes = {f"block{i:02}": block for i in range(12)}
    shapes |= {"embed": {"kernel": (3072, width), "bias": (width,)}, "positions": (50, width), "class_token": (width,)}
    shapes |= {"norm": {"scale": (width,), "bias": (width,)}, "head": {"kernel": (width, 1000), "bias": (1000,)}}
    return jax.tree.map(
        lambda shape: rng.standard_normal(shape, np.float32), shapes, is_leaf=lambda node: isinstance(node, tuple)
    )


def _restore_all(directories, like):
    for directory in directories:
        jax.block_until_ready(ocp.load(directory, like))


def _peak_memory(pool):
    """Return the bytes of private memory before the soup and at its peak."""
    before, samples, done = _anonymous(), [], threading.Event()

    def sample():
        while not done.is_set():
            samples.append(_anonymous())
            time.sleep(0.002)

    sampler = threading.Thread(target=sample)
    sampler.start()
    soup = soups.uniform(pool)
    samples.append(_anonymous())
    done.set()
    sampler.join()
    del soup
    return before, max(samples)


def _anonymous():
    lines = pathlib.Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))


def _print(record):
    results = record["results"]
    rows = [
        [name, times["median"], f"{times['min']:.2f}-{times['max']:.2f}"] for name, times in results["seconds"].items()
    ]
    _common.table(record["what"], ["", "seconds", "min-max"], rows)
    print(f"soup / Orbax: {record['ratio']:.2f}; put on the device: {results['ratio when put on the device']:.2f}")
    print(f"peak private memory: {results['peak private memory in members']:.2f} members")
    print(f"goal: {record['goal']}")


def _options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dir", help="where the members are made for the time of the run (6 GB); a temporary directory"
    )
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--megabytes", type=float, default=350, help="size of a member")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", default="runs/benchmarks/uniform_pool.json")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
