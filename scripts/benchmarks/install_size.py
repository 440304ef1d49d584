"""Measure what an installation brings into an empty environment: packages and megabytes, beside mergekit's and optax's.

    python scripts/benchmarks/install_size.py                 # --only soups optax leaves out what takes minutes

Each is installed into a virtual environment of its own without pip, and nothing is compiled; what counts are the bytes
of the files. mergekit brings PyTorch, here its build for CPUs, which is the smallest: on Linux the build that pip takes
by default is for CUDA, with gigabytes of NVIDIA's packages.
"""

import argparse
import importlib.metadata
import os
import pathlib
import subprocess
import sys
import tempfile

import _common

ROOT = pathlib.Path(__file__).parents[2]
ALONE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # pip would look there too
INSTALLS = {
    "soups": ["{wheel}"],
    "soups[all]": ["{wheel}[all]"],
    "optax": ["optax"],
    "jax": ["jax"],
    "mergekit": ["mergekit==0.1.5", "torch==2.13.0"],
}


def main():
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        wheel = _wheel(pathlib.Path(folder))
        wheel_size = wheel.stat().st_size
        found = {name: _installed(name, wheel, pathlib.Path(folder)) for name in options.only}
    # rich would take what stands in brackets for a style
    rows = [
        [name.replace("[", r"\["), len(one["packages"]), one["bytes"] / 1e6, *_largest(one)]
        for name, one in found.items()
    ]
    print(f"The wheel of soups has {wheel_size / 1e6:.2f} MB.")
    _common.table("In an empty environment", ["pip install", "packages", "MB", "largest", "second", "third"], rows)
    machine = _common.machine()
    record = {"benchmark": "install_size", "what": __doc__.splitlines()[0], "machine": machine}
    _common.write(options.out, record | {"wheel_bytes": wheel_size, "results": found})


def _wheel(folder):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT]
    subprocess.run(command, check=True, env=ALONE)
    return next(folder.glob("*.whl"))


def _installed(name, wheel, folder):
    """Return the bytes of each package that is there after an installation, and of all."""
    place = folder / name
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    wanted = [word.format(wheel=wheel) for word in INSTALLS[name]]
    command = [sys.executable, "-m", "pip", "--python", place, "install", "--quiet", "--no-compile", *wanted]
    subprocess.run(command, check=True, env=ALONE)
    (site,) = place.glob("lib/python*/site-packages")
    packages = {one.name: _bytes(one) for one in importlib.metadata.distributions(path=[str(site)])}
    return {"requirements": INSTALLS[name], "bytes": sum(packages.values()), "packages": packages}


def _bytes(distribution):
    places = (distribution.locate_file(file) for file in distribution.files)
    return sum(place.stat().st_size for place in places if place.exists())


def _largest(found):
    order = sorted(found["packages"].items(), key=lambda pair: -pair[1])
    return [f"{name} {size / 1e6:.3g}" for name, size in order[:3]] + [""] * (3 - len(order))


def _options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=INSTALLS, default=list(INSTALLS), metavar="NAME")
    parser.add_argument("--out", default="runs/benchmarks/install_size.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
