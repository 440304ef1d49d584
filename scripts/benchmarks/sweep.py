"""Time a sweep of 16 members as one program against separate runs, in one process and in 16 processes.

    python scripts/benchmarks/sweep.py [--members 16] [--epochs 4 8] [--repeats 3] [--slow-repeats 1] [--out FILE]

The task, the network and the ranges of the hyper-parameters are those of configs/digits.py, but for the epochs; the
start weights are random, which costs the same. All contenders must give the same members, but for rounding.

"from start to pool" is the wall time of fresh processes from their start until the last member is in the pool: it holds
the imports, the compilation and the saving. Every contender begins with an empty compilation cache, which is on as in
scripts/run.py, so most of the 16 processes find their program there. As many processes as there are cores run at a
time, each held to one core where that is possible: alone on a core it is faster than with its threads over all of them.
"training alone" is the same training once more in the same process, with everything compiled.

A ratio is a contender's time over that of the one program with a member on every device, both of the same round. The
rounds alternate; contenders that take minutes are in the first `--slow-repeats` only.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import queue
import runpy
import statistics
import subprocess
import sys
import tempfile
import time

# the contenders' processes need the accelerator's memory
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import _common
import jax
import numpy as np

from soups import models, tree
from soups.data import digits_task
from soups.experiments.members import sweep_members
from soups.pool import Pool

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count()))
WORKER = pathlib.Path(__file__).with_name("_sweep_worker.py")
CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "digits.py"
GOALS = {"16 jit runs in one process, one compiled step": 1.2, "16 processes, one per core at a time": 3.0}
TOLERANCE = 1e-3  # of the distance between member and start


@dataclasses.dataclass(frozen=True)
class Contender:
    """Say how a sweep is made; `at_a_time` processes of one member each, or one process for all (None)."""

    way: str
    devices: int = 1
    at_a_time: int | None = None
    cached: bool = True
    slow: bool = False


OURS = "one program, members over the devices"
CONTENDERS = {
    OURS: Contender("sharded", devices=len(CORES)),
    "one program, lax.map": Contender("map"),
    "one program, vmap": Contender("vmap"),
    "16 jit runs in one process, one compiled step": Contender("sequential"),
    "16 jit runs in one process, each compiled": Contender("compiled each", slow=True),
    "16 processes, one per core at a time": Contender("map", at_a_time=len(CORES), slow=True),
    "16 processes, one per core at a time, no cache": Contender("map", at_a_time=len(CORES), cached=False, slow=True),
    "16 processes, one after the other": Contender("map", at_a_time=1, slow=True),
}


def main():
    """Prepare, let the contenders take turns, compare what they made, print and write."""
    options = _options()
    jax.config.update("jax_num_cpu_devices", len(CORES))
    with tempfile.TemporaryDirectory(prefix="sweep_") as folder:
        folder = pathlib.Path(folder)
        start = prepare(folder, options)
        rounds = []
        for number in range(options.repeats):
            taking_part = {n: c for n, c in CONTENDERS.items() if number < options.slow_repeats or not c.slow}
            rounds.append(
                {n: run(c, folder, f"{number}-{i}", options.members) for i, (n, c) in enumerate(taking_part.items())}
            )
        difference = largest_difference(folder, start)
    if not difference < TOLERANCE:
        sys.exit(f"the contenders made other members: they differ by {difference:.2g} of their distance from the start")
    report(rounds, difference, options)
