"""Compare logits with those of open_clip, transformers, timm, torchvision and more, from files that each of them wrote.

    python scripts/benchmarks/parity_models.py [--peers PYTHON] [--sizes small real] [--record FOLDER]

The peers run in an environment of their own, which the first run makes. Each draws random weights, writes them as it
always does and computes the logits in float32 and in float64; soups imports the file, without torch, and computes the
same. The error is the largest difference of a logit, divided by the largest logit; at most 1e-5 is equal. The last
column is the peer's own rounding, float32 against float64. The evaluation transform is compared with that of CLIP's
program, Pillow's bicubic by torchvision. The trained EfficientNet-Lite0 is the file that a package ships. `--record`
keeps the small files and logits, for the tests.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import _common
import numpy as np
from peers import ours_models

TOLERANCE, PIXEL_TOLERANCE = 1e-5, 1
THEIRS = pathlib.Path(__file__).parent / "peers" / "theirs_models.py"


def main():
    """Run the comparisons, print the tables and write the record."""
    options = _options()
    python = options.peers or install(pathlib.Path(options.venv).absolute())
    rows = []
    for size in options.sizes:
        cases = ours_models.small_cases() if size == "small" else ours_models.real_cases()
        # large files come and go one by one
        for group in [cases] if size == "small" else [[case] for case in cases]:
            with tempfile.TemporaryDirectory(prefix="parity_", dir=options.scratch) as folder:
                folder = pathlib.Path(folder)
                pixels, versions = ask(python, folder, group)
                rows += [compare(folder, case, size) for case in group]
                if options.record and size == "small":
                    record(folder, pathlib.Path(options.record), group)
    report("parity_models", __doc__, rows, versions, options.output, pixels)


def install(folder, requirements=ours_models.REQUIREMENTS):
    """Return the interpreter of an environment with the peers; make it if it is not there."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *requirements], check=True)
    return str(python)


def ask(python, folder, cases):
    """Let the peers write their files and logits; give the pixels' differences and the peers' versions."""
    for case in cases:
        np.save(folder / f"{case.name}.inputs.npy", case.inputs())
        if case.kind == "AugReg by timm":
            ours_models.write_augreg(folder / case.name, case)
    (folder / "cases.json").write_text(json.dumps([case.described(folder) for case in cases]))
    images = ours_models.draw_images()
    np.savez(folder / "images.npz", **images)
    subprocess.run([python, str(THEIRS), str(folder), str(folder / "cases.json")], check=True)
    pixels = {}
    with np.load(folder / "transformed.npz") as theirs:
        for name, image in images.items():
            pixels[name] = int(np.abs(ours_models.transformed(image).astype(int) - theirs[name].astype(int)).max())
    return pixels, json.loads((folder / "versions.json").read_text())


def compare(folder, case, size):
    """Return the row of one case."""
    with np.load(folder / f"{case.name}.logits.npz") as theirs:
        found = case.ours(folder / case.name, theirs["inputs"])
        error = _relative(found, theirs["float32"])
        row = {"peer": case.kind, "architecture": case.arch.name, "size": size, "error": error}
        row |= {"ours to float64": _relative(found, theirs["float64"])}
        row |= {"theirs to float64": _relative(theirs["float32"], theirs["float64"])}
    print(row, flush=True)
    return row | {"equal": error <= TOLERANCE}


def record(folder, target, cases):
    """Keep the files of small networks and what the peer computed."""
    target.mkdir(parents=True, exist_ok=True)
    for case in cases:
        # the weights of a text are those of the images too, and a package has its own
        weights = [] if case.of_text or case.trained else [folder / case.name]
        for source in (folder / f"{case.name}.logits.npz", *weights):
            if source.is_dir():
                shutil.copytree(source, target / source.name, dirs_exist_ok=True)
            else:
                shutil.copyfile(source, target / source.name)


def report(benchmark, what, rows, versions, output, pixels=None):
    """Print the tables, write the record, and fail where something is not equal; `pixels`: differences by image."""
    columns = ["peer", "architecture", "size", "error", "ours to float64", "theirs to float64", "equal"]
    _common.table("Largest relative error of outputs", columns, [[row[name] for name in columns] for row in rows])
    entry = {"benchmark": benchmark, "what": what.splitlines()[0], "tolerance": TOLERANCE, "rows": rows}
    if pixels is not None:
        title = "Largest difference of a pixel, in 1/255"
        _common.table(title, ["image", "difference"], [list(item) for item in pixels.items()])
        entry |= {"pixel_tolerance": PIXEL_TOLERANCE, "pixels": pixels}
    _common.write(output, entry | {"peers": versions, "machine": _common.machine()})
    failed = [f"{row['peer']} {row['architecture']}" for row in rows if not row["equal"]]
    failed += [f"image {name}" for name, found in (pixels or {}).items() if found > PIXEL_TOLERANCE]
    if failed:
        sys.exit(f"not equal: {', '.join(failed)}")


def _relative(found, expected):
    return float(np.abs(found.astype(np.float64) - expected).max() / np.abs(expected).max())


def _options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", help="interpreter of an environment that has them")
    parser.add_argument("--venv", default="runs/venvs/models", help="else where they are installed")
    parser.add_argument("--sizes", nargs="+", choices=("small", "real"), default=["small", "real"])
    parser.add_argument("--record", help="folder for the files of the small networks")
    parser.add_argument("--scratch", help="folder for large files while they are compared")
    parser.add_argument("--output", default="runs/benchmarks/parity_models.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
