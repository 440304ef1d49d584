"""Measure the processor time, user and system, of commands that have almost nothing to do: what starting costs.

    python scripts/benchmarks/start.py

Each command runs ten times, in turn with the others and with an interpreter that does nothing; the median counts. A
run before these is not counted: it compiles the modules, as the installation of a package does.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile

import _common
import numpy as np

from soups.formats import write_safetensors

GOAL = 0.5  # seconds


def main():
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        for name in "ab":  # 1 MB each
            leaves = {f"layer{index}.weight": rng.standard_normal((256, 256), np.float32) for index in range(4)}
            write_safetensors(os.path.join(folder, f"{name}.safetensors"), leaves)
        merge = ["merge", "--method", "linear", "--members", "a.safetensors", "b.safetensors", "--out"]
        commands = {
            "python -c pass": ["-c", "pass"],
            "soups merge --methods": ["-m", "soups", "merge", "--methods"],
            "soups merge of two files of 1 MB": ["-m", "soups", *merge],
        }
        seconds = {name: [] for name in commands}
        for number in range(options.repeats + 1):
            for name, words in commands.items():
                place = [f"out{number}"] if words[-1] == "--out" else []
                seconds[name].append(processor_seconds([sys.executable, *words, *place], folder))
    seconds = {name: found[1:] for name, found in seconds.items()}
    rows = [[name, statistics.median(found), min(found), max(found)] for name, found in seconds.items()]
    _common.table(f"Processor seconds; goal {GOAL}", ["command", "median", "least", "most"], rows)
    record = {"benchmark": "start", "what": __doc__.splitlines()[0], "goal": GOAL, "machine": _common.machine()}
    _common.write(
        options.out, record | {"results": {name: _common.summarize(found) for name, found in seconds.items()}}
    )


def processor_seconds(command, folder):
    """Return the seconds that the processor worked for a command, whatever else it did meanwhile."""
    kept = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": os.path.join(folder, "compiled")}
    process = subprocess.Popen(command, cwd=folder, env=os.environ | kept, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed with {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def _options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", default="runs/benchmarks/start.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
