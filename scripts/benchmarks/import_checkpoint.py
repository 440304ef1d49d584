"""Compare the time to import a checkpoint in the released format, 456 MB, with the time to copy its file.

    python scripts/benchmarks/import_checkpoint.py --torch-python PATH/bin/python

PyTorch writes the file, in an environment of its own, and loads it for comparison. What is imported is 353 MB: the text
tower's tensors are left out. "to the device" has every weight transposed and in JAX's memory; "into a pool" has it on
disk as the pool keeps it, with digests, and stands beside a copy that is on disk too. All read from the system's cache.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import _common
import jax

from soups.models.import_weights import import_weights
from soups.pool import Pool

MAKER = pathlib.Path(__file__).parent / "peers" / "make_clip_files.py"
LOADER = "import sys, time, torch; torch.load(sys.argv[1], weights_only=True)\nfor _ in sys.stdin: " + (
    "start = time.perf_counter(); torch.load(sys.argv[1], weights_only=True); "
    "print(time.perf_counter() - start, flush=True)"
)
GOAL = 1.2


def main():
    """Run the benchmark."""
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.scratch, prefix="import_") as folder:
        folder = pathlib.Path(folder)
        subprocess.run([options.torch_python, str(MAKER), str(folder), "1"], check=True)
        file = folder / "file_0.pt"
        callables = tasks(file, folder)
        _common.measure(callables, 1)  # warm
        seconds = {name: _common.summarize(x) for name, x in _common.measure(callables, options.repeats).items()}
        seconds["torch.load"] = _common.summarize(torch_seconds(options.torch_python, file, options.repeats))
        report(seconds, file.stat().st_size, options.output)


def tasks(file, folder):
    """Return what is timed, by name."""

    def copy(on_disk):
        with open(shutil.copyfile(file, folder / "copy"), "rb+") as copied:
            if on_disk:
                os.fsync(copied.fileno())

    def into_pool():
        shutil.rmtree(folder / "pool", ignore_errors=True)
        Pool(folder / "pool").add("member", import_weights(file, "clip-vit-b32"), {})

    return {
        "copy": lambda: copy(False),
        "copy, on disk": lambda: copy(True),
        "import, mapped": lambda: import_weights(file, "clip-vit-b32"),
        "import, to the device": lambda: jax.device_put(import_weights(file, "clip-vit-b32")),
        "import, into a pool": into_pool,
    }


def torch_seconds(python, file, repeats):
    """Time torch.load in its own interpreter."""
    done = subprocess.run([python, "-c", LOADER, str(file)], input="again\n" * repeats, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"PyTorch cannot load the file: {done.stderr}")
    return [float(line) for line in done.stdout.split()]


def report(seconds, size, output):
    """Print the table, with each time as a multiple of its copy's, and write the record."""
    beside = {"import, into a pool": "copy, on disk"}
    ratios = {name: x["median"] / seconds[beside.get(name, "copy")]["median"] for name, x in seconds.items()}
    rows = [[name, x["median"], x["min"], x["max"], ratios[name]] for name, x in seconds.items()]
    title = f"Import of a file of {size / 1e6:.0f} MB (goal: at most {GOAL} of the copy)"
    _common.table(title, ["", "median s", "min", "max", "of its copy"], rows)
    record = {"benchmark": "import_checkpoint", "what": __doc__.splitlines()[0], "bytes": size, "goal": GOAL}
    record |= {"seconds": seconds, "of its copy": ratios, "machine": _common.machine()}
    _common.write(output, record)


def _options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", required=True, help="interpreter with PyTorch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scratch", help="folder for the files")
    parser.add_argument("--output", default="runs/benchmarks/import_checkpoint.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
