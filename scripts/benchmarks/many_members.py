"""Measure how the time of a merge in memory grows with the number of small members.

    python scripts/benchmarks/many_members.py [--few 100] [--many 1000] [--elements 2000] [--repeats 5] [--out FILE]

The ratio of both times is 10 for ten times as many members where the cost grows with the work. `ties` may be 1.5 times
that; the methods of angles and distances need all pairs, which are a matrix product.
"""

import argparse

import _common
import numpy as np

import soups

METHODS = {
    "ties": lambda members, base: soups.ties(members, base=base),
    "karcher": lambda members, base: soups.karcher(members),
    "model_stock": lambda members, base: soups.model_stock(members, base=base),
    "uniform": lambda members, base: soups.uniform(members),
    "geometric_median": lambda members, base: soups.geometric_median(members),
}


def main():
    """Time both numbers of members in turns, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", type=int, default=100)
    parser.add_argument("--many", type=int, default=1000)
    parser.add_argument("--elements", type=int, default=2000, help="of a member")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", default="many_members.json")
    options = parser.parse_args()
    rng, numbers = np.random.default_rng(0), (options.few, options.many)
    base, *members = (_member(rng, options.elements) for _ in range(options.many + 1))
    calls = {
        (name, number): lambda merge=merge, number=number: merge(members[:number], base)
        for name, merge in METHODS.items()
        for number in numbers
    }
    seconds = {key: _common.summarize(times) for key, times in _common.measure(calls, options.repeats).items()}
    rows = [
        [name, *(seconds[name, number]["median"] for number in numbers), _ratio(seconds, name, numbers)]
        for name in METHODS
    ]
    columns = ["method", *(f"{number} members, s" for number in numbers), "ratio"]
    _common.table(f"{options.elements} numbers a member", columns, rows)
    results = {
        name: {str(number): seconds[name, number] for number in numbers} | {"ratio": _ratio(seconds, name, numbers)}
        for name in METHODS
    }
    _common.write(options.out, {"machine": _common.machine(), "options": _common.settings(options), "results": results})


def _member(rng, elements):
    kernel = 3 * elements // 4
    return {
        "kernel": rng.normal(size=kernel).astype(np.float32),
        "bias": rng.normal(size=elements - kernel).astype(np.float32),
    }


def _ratio(seconds, name, numbers):
    few, many = (seconds[name, number]["min"] for number in numbers)
    return many / few


if __name__ == "__main__":
    main()
