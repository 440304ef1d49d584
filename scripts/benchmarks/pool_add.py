"""Compare adding to a pool of 2,000 members with adding to one of 10: the cost should not grow with the pool.

    python scripts/benchmarks/pool_add.py

The members are tiny, so that what is timed is the pool's own work. The two pools take turns; each is left with the
number of members that it had. Opening the large pool is timed beside it.
"""

import argparse
import pathlib
import tempfile
import time

import _common
import numpy as np

from soups.pool import Pool

SIZES = (10, 2000)
GOAL = 1.5


def main():
    """Run the benchmark."""
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.scratch, prefix="pool_add_") as folder:
        pools = {}
        for size in SIZES:
            pools[size] = Pool(pathlib.Path(folder) / str(size))
            start = time.perf_counter()
            for number in range(size - 1):
                pools[size].add(f"member-{number}", _member(number), {"seed": number})
            print(f"a pool of {size - 1}: {time.perf_counter() - start:.1f} s", flush=True)
        seconds = _seconds(pools, options.repeats)
    ratio = seconds[f"add number {SIZES[1]}"]["median"] / seconds[f"add number {SIZES[0]}"]["median"]
    rows = [[name, 1e3 * times["median"], 1e3 * times["min"], 1e3 * times["max"]] for name, times in seconds.items()]
    _common.table("seconds of a small pool and of a large one", ["", "median ms", "min ms", "max ms"], rows)
    print(f"ratio {ratio:.3g}, goal at most {GOAL}")
    record = {"machine": _common.machine(), "goal": GOAL, "ratio": ratio, "seconds": seconds}
    _common.write(options.output, record)


def _seconds(pools, repeats):
    taken = {f"add number {size}": [] for size in pools} | {f"open a pool of {SIZES[1]}": []}
    for repeat in range(repeats):
        for size, pool in pools.items():
            start = time.perf_counter()
            pool.add("new", _member(-1 - repeat), {"seed": -1 - repeat})
            taken[f"add number {size}"].append(time.perf_counter() - start)
            pool.remove("new")
        start = time.perf_counter()
        Pool(pools[SIZES[1]].path)
        taken[f"open a pool of {SIZES[1]}"].append(time.perf_counter() - start)
    return {name: _common.summarize(times) for name, times in taken.items()}


def _member(seed):
    rng = np.random.default_rng(abs(seed))
    return {"dense": {"kernel": rng.standard_normal((4, 4), np.float32), "bias": np.zeros(4, np.float32)}}


def _options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--scratch", help="a directory for the pools; default: the system's")
    parser.add_argument("--output", default="runs/benchmarks/pool_add.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
