"""Time whole merge commands against mergekit's, on the same files.

    python scripts/benchmarks/merge.py [--size small|large] [--methods ties ...] [--repeats 3] [--out FILE]

Inputs: "small", 8 fine-tunes and a base of 88 million float32 parameters (353 MB each); "large", 2 and a base of 1.1
billion bfloat16 parameters (2.2 GB each). Both programs get the same recipe file and run as commands of their own, one
after the other, with warm page caches; slow methods of the peer run once. The seconds hold the start of the
interpreter and all imports. "plain copy" reads the inputs of linear and writes its output with no more than is needed,
in a process that has started already: it is compared with the time of our merge itself, without start and imports.

Private memory is the peak of what belongs to the processes alone, without mapped files, as the kernel counts it.
mergekit is installed into --peer, a virtual environment of its own.
"""

import argparse
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import _common
import _mergekit
import ml_dtypes
import numpy as np
import yaml

from soups.formats import write_safetensors

MERGE = pathlib.Path(__file__).parents[1] / "merge.py"
GOALS = {
    "linear": 0.2,
    "slerp": 0.5,
    "model_stock": 0.5,
    "task_arithmetic": 0.5,
    "karcher": 0.2,
    "ties": 0.05,
    "dare_ties": 0.1,
    "della": 0.1,
    "breadcrumbs": 0.1,
    "sce": 0.1,
}
LARGE_GOALS = {"linear": 0.35}  # of large models, where they are others
ONCE = ("karcher", "ties", "della", "breadcrumbs")  # the peer takes a minute or more
NO_BASE = ("linear", "karcher")
PLAIN_GOAL, MEMORY_GOAL = 1.3, 1500


def main():
    """Make the inputs, let the programs take turns, print and write."""
    options = _options()
    programs = _mergekit.install(options.peer)
    with tempfile.TemporaryDirectory(prefix="merge_", dir=options.scratch) as folder:
        folder = pathlib.Path(folder)
        base, members = make_models(folder, options.size)
        results = {}
        for method in options.methods:
            recipe = folder / f"{method}.yml"
            recipe.write_text(yaml.safe_dump(recipe_of(method, base, members, options.size)))
            copied = members if method == "linear" else None
            results[method] = compare(method, recipe, folder, programs, options.repeats, copied)
            print(method, {name: entry for name, entry in results[method].items() if "ratio" in name}, flush=True)
    report(results, options)


def make_models(folder, size):
    """Write the base and its fine-tunes; give the paths."""
    shapes = vision_shapes() if size == "small" else language_shapes()
    dtype = np.dtype(np.float32) if size == "small" else np.dtype(ml_dtypes.bfloat16)
    rng = np.random.default_rng(0)
    base = {name: 0.02 * rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    paths = []
    for name in ["base"] + [f"member{index}" for index in range(8 if size == "small" else 2)]:
        tensors = {
            leaf: (
                array if name == "base" else array + 0.002 * rng.standard_normal(array.shape, dtype=np.float32)
            ).astype(dtype)
            for leaf, array in base.items()
        }
        paths.append(str(write_safetensors(folder / f"{name}.safetensors", tensors, {"format": "pt"})))
    return paths[0], paths[1:]


def vision_shapes():
    """Return the shapes of a ViT-B/32."""
    shapes = {"conv_proj.weight": (768, 3072), "position": (50, 768), "head.weight": (1000, 768)}
    for layer in range(12):
        shapes |= _block(f"layers.{layer}.", 768, 3072)
    return shapes


def language_shapes():
    """Return the shapes of a language model of 1.1 billion parameters."""
    shapes = {"embed.weight": (32000, 2048), "lm_head.weight": (32000, 2048), "norm.weight": (2048,)}
    for layer in range(22):
        prefix = f"layers.{layer}."
        shapes |= {prefix + f"{name}.weight": (2048, 2048) for name in ("q", "o")}
        shapes |= {prefix + f"{name}.weight": (256, 2048) for name in ("k", "v")}
        shapes |= {prefix + f"{name}.weight": (5632, 2048) for name in ("gate", "up")}
        shapes |= {
            prefix + "down.weight": (2048, 5632),
            prefix + "norm1.weight": (2048,),
            prefix + "norm2.weight": (2048,),
        }
    return shapes


def _block(prefix, width, hidden):
    matrices = {"qkv": (3 * width, width), "out": (width, width), "fc1": (hidden, width), "fc2": (width, hidden)}
    shapes = {f"{prefix}{name}.weight": shape for name, shape in matrices.items()}
    shapes |= {f"{prefix}{name}.bias": shape[:1] for name, shape in matrices.items()}
    return shapes | {f"{prefix}norm{index}.weight": (width,) for index in (1, 2)}


def recipe_of(method, base, members, size):
    """Return the recipe that both programs run."""
    settings = {
        "linear": {"weight": 1.0 / len(members)},
        "task_arithmetic": {"weight": 0.3},
        "ties": {"weight": 1.0, "density": 0.5},
        "dare_ties": {"weight": 1.0, "density": 0.5},
        "della": {"weight": 1.0, "density": 0.5, "epsilon": 0.15},
        "breadcrumbs": {"weight": 0.3, "density": 0.5, "gamma": 0.01},
    }
    of_merge = {"slerp": {"t": 0.3}, "sce": {"select_topk": 0.5}}
    members = members[:1] if method == "slerp" else members
    recipe = {"merge_method": method, "dtype": "float32" if size == "small" else "bfloat16"}
    recipe["models"] = [{"model": model, "parameters": settings.get(method, {})} for model in members]
    if method not in NO_BASE:
        recipe["base_model"] = base
    if method == "slerp":
        recipe["models"].insert(0, {"model": base})
    return recipe | {"parameters": of_merge.get(method, {})}


def compare(method, recipe, folder, programs, repeats, copied=None):
    """Run both commands, and plain code that reads `copied`, in turn; give seconds, ratios, our peak of private MB."""
    ours, theirs, inside, memory, plain = [], [], [], [], []
    for number in range(repeats):
        out = folder / "out"
        seconds, peak, text = run([sys.executable, str(MERGE), str(recipe), str(out)], out)
        ours.append(seconds)
        memory.append(peak)
        inside.append(float(re.search(r"wrote .* in ([\d.]+) s", text)[1]))
        if number == 0 or method not in ONCE:
            theirs.append(run(_mergekit.command(programs, recipe, out), out)[0])
        if copied:
            shutil.rmtree(out)
            plain.append(plain_copy(copied, folder))
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=False)]
    return {
        "soups": _common.summarize(ours),
        "mergekit": _common.summarize(theirs),
        "ratios": [a / b for a, b in pairs],
        "merge itself": _common.summarize(inside),
        "private MB": max(memory),
        "plain copy": plain,
        "ratios to plain copy": [a / b for a, b in zip(inside, plain, strict=False)],
    }


def run(command, out):
    """Return the wall seconds of a command, its peak of private memory in MB, and what it printed."""
    shutil.rmtree(out, ignore_errors=True)
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    peak = [0.0]
    watcher = threading.Thread(target=_watch, args=(process.pid, peak))
    watcher.start()
    text, _ = process.communicate()
    seconds = time.perf_counter() - begin
    watcher.join()
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{text[-2000:]}")
    return seconds, peak[0], text


def _watch(pid, peak):
    while private := sum(_private(own) for own in [pid, *_children(pid)]):
        peak[0] = max(peak[0], private / 1000)
        time.sleep(0.02)


def _children(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []


def _private(pid):
    """Return the private kilobytes of a process, 0 when it has ended."""
    try:
        found = re.search(r"RssAnon:\s+(\d+) kB", pathlib.Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) if found else 0


def plain_copy(members, folder):
    """Return the seconds that it takes to read all members and write one file of their size."""
    out = folder / "copy"
    begin = time.perf_counter()
    size = os.path.getsize(members[0])
    block = 2**22
    maps = [np.memmap(member, np.uint8, "r") for member in members]
    with open(out, "wb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, size)
        for start in range(0, size, block):
            for array in maps:
                array[start : start + block].view(np.uint8).max()  # touches every byte
            file.write(maps[0][start : start + block].data)
        os.fsync(file.fileno())
    seconds = time.perf_counter() - begin
    out.unlink()
    return seconds


def report(results, options):
    """Print the table and write the JSON."""
    rows, goals = [], GOALS | (LARGE_GOALS if options.size == "large" else {})
    for method, found in results.items():
        ratios = found["ratios"]
        median = sorted(ratios)[len(ratios) // 2]
        spread = f" ({min(ratios):.2f}-{max(ratios):.2f})" if len(ratios) > 1 else ""
        rows.append(
            [
                method,
                found["soups"]["median"],
                found["mergekit"]["median"],
                f"{median:.3f}{spread}",
                goals[method],
                found["merge itself"]["median"],
                f"{found['private MB']:.0f}",
            ]
        )
    columns = ["method", "soups, s", "mergekit, s", "ratio", "goal", "merge itself, s", "private MB"]
    _common.table(f"Merging, {options.size} models", columns, rows)
    record = {
        "benchmark": "merge",
        "what": __doc__.splitlines()[0],
        "size": options.size,
        "results": results,
        "goals": goals,
        "memory goal, MB": MEMORY_GOAL,
        "machine": _common.machine(),
    }
    if "linear" in results:
        found = results["linear"]
        record |= {"plain goal": PLAIN_GOAL}
        print(
            f"linear itself takes {statistics.median(found['ratios to plain copy']):.2f} of the time of a plain copy "
            f"({statistics.median(found['plain copy']):.2f} s); goal {PLAIN_GOAL}"
        )
    _common.write(options.out, record)


def _options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("small", "large"), default="small")
    parser.add_argument("--methods", nargs="+", default=list(GOALS), choices=list(GOALS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer", default="runs/venvs/mergekit", help="where mergekit is installed")
    parser.add_argument("--scratch", help="a folder with room for 4 (large: 10) GB")
    parser.add_argument("--out", default="runs/benchmarks/merge.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
