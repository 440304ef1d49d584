"""Compare every method that fusion-bench, sd-mecha and git-re-basin have too with theirs, on random models.

    python scripts/benchmarks/parity_peers.py [--peers NAME ...] [--venvs FOLDER] [--out FOLDER]

Each peer runs in a virtual environment of its own, which the first run makes; git-re-basin, which is no package, is
cloned and runs with this interpreter. A peer that cannot be installed is skipped with the reason. For each case
`peers/theirs_NAME.py` calls the peer and `peers/ours_NAME.py` soups, on the same models; elements are of size 1.

Equal means up to rounding: 1e-12 in float64 and, where either side computes a part in float32 whatever it gets, 2e-6
in float32. A case that differs says why, and mostly has "with it": ours with just that difference put in, which must
then be equal up to rounding. Where elements are drawn at random, means over many must be as expected, within four
standard deviations.
"""

import argparse
import importlib
import itertools
import os
import pathlib
import subprocess
import sys
import tempfile

import _common
import numpy as np
from peers import case, exchange

PEERS = ("fusion_bench", "sd_mecha", "git_re_basin")
DTYPES = ("float32", "float64")
TOLERANCE = {"float32": 2e-6, "float64": 1e-12}
DEVIATIONS = 4
HERE = pathlib.Path(__file__).parent / "peers"


class UnavailableError(Exception):
    """Say why a peer cannot be compared with here."""


def main():
    """Compare with each peer in turn, print its tables and write its record."""
    options, failed = _options(), []
    for name in options.peers:
        peer = importlib.import_module(f"peers.ours_{name}")
        try:
            python, environment = prepare(name, peer, pathlib.Path(options.venvs).absolute())
            models, theirs = ask(name, peer, python, environment)
        except UnavailableError as reason:
            print(f"{name}: skipped, {reason}", flush=True)
            continue
        rows = [compare(one, models, theirs) for one in peer.CASES]
        means = [compare_means(one, models["float32"], theirs["float32"]) for one in peer.STATISTICS]
        show(name, peer, rows, means)
        record = {"benchmark": f"parity_{name}", "what": __doc__.splitlines()[0], "version": peer.VERSION}
        record |= {"tolerance": TOLERANCE, "rows": rows, "means": means, "machine": _common.machine()}
        _common.write(pathlib.Path(options.out) / f"parity_{name}.json", record)
        failed += [f"{row['case']} ({name})" for row in [*rows, *means] if not row["as stated"]]
    if failed:
        sys.exit(f"not as stated: {', '.join(failed)}")


# --- The peers ---


def prepare(name, peer, folder):
    """Return the peer's interpreter and what it needs in its environment; install it if it is not there."""
    folder = folder / name
    if not peer.REQUIREMENTS:
        if not (folder / "src").exists():
            _run(["git", "clone", "-q", peer.SOURCE, str(folder)], "it cannot be cloned")
        _run(["git", "-C", str(folder), "checkout", "-q", peer.COMMIT], "it has another history")
        return sys.executable, {"PYTHONPATH": str(folder / "src")}
    python = folder / "bin" / "python"
    if not list(folder.glob(f"lib/python*/site-packages/{name}-{peer.VERSION}.dist-info")):
        _run([sys.executable, "-m", "venv", str(folder)], "there is no virtual environment")
        _run([str(python), "-m", "pip", "install", "-q", *peer.REQUIREMENTS], "it cannot be installed")
    return str(python), {}


def ask(name, peer, python, environment):
    """Return the models, and what the peer makes of them, by dtype."""
    dtypes = [dtype for dtype in DTYPES if any(dtype in one.dtypes for one in peer.CASES)]
    make_models = getattr(peer, "make_models", case.make_models)
    models = {dtype: make_models(dtype) for dtype in dtypes}
    with tempfile.TemporaryDirectory(prefix="parity_") as folder:
        files = {dtype: [f"{folder}/{dtype}_models.npz", f"{folder}/{dtype}_merged.npz"] for dtype in dtypes}
        for dtype, (source, _) in files.items():
            exchange.write(source, models[dtype])
        command = [python, str(HERE / f"theirs_{name}.py"), *itertools.chain(*files.values())]
        _run(command, "it does not run", os.environ | environment)
        return models, {dtype: exchange.read(target) for dtype, (_, target) in files.items()}


def _run(command, complaint, environment=None):
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    except OSError as error:
        raise UnavailableError(f"{complaint}: {error}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        raise UnavailableError(f"{complaint}: {lines[-1].strip()}")


# --- Comparing ---


def compare(one, models, theirs):
    """Return the row of one case."""
    found = {dtype: theirs[dtype][one.name] for dtype in one.dtypes}
    row = {"case": one.name, "float32": None, "float64": None, "elements": None, "why": one.why, "with it": None}
    if error := next((str(x["error"]) for x in found.values() if "error" in x), ""):
        return row | {"error": error, "as stated": bool(one.why) and one.changed is None}
    decisive = one.dtypes[-1]
    for dtype in one.dtypes:
        differences = _differences(one.ours(models[dtype]), found[dtype])
        row[dtype] = float(differences.max())
    row["elements"] = float((differences > TOLERANCE[decisive]).mean())
    if one.changed:
        row["with it"] = float(_differences(one.changed(models[decisive]), found[decisive]).max())
    equal, explained = (not x or x <= TOLERANCE[decisive] for x in (row[decisive], row["with it"]))
    return row | {"as stated": explained and equal != bool(one.why)}


def compare_means(one, models, theirs):
    """Return the row of one mean over random elements."""
    expected = {"ours": one.expected, "theirs": one.expected if one.theirs is None else one.theirs}
    found = {"ours": float(one.ours(models)), "theirs": float(theirs[one.name]["value"])}
    near = all(abs(found[side] - expected[side]) <= DEVIATIONS * one.deviation for side in expected)
    row = {"case": one.name, **found, "expected": expected, "deviation": float(one.deviation), "why": one.why}
    return row | {"as stated": near}


def _differences(ours, theirs):
    ours, theirs = exchange.flatten(ours), exchange.flatten(theirs)
    if set(ours) != set(theirs):
        raise ValueError(f"other arrays: {sorted(set(ours) ^ set(theirs))}")
    wide = np.float64
    return np.concatenate([np.abs(ours[name].astype(wide) - theirs[name].astype(wide)).ravel() for name in theirs])


def show(name, peer, rows, means):
    """Print the tables."""
    columns = ["case", "float32", "float64", "with it", "as stated"]
    cells = [[_cell(row[column]) for column in columns] for row in rows]
    _common.table(f"Largest difference from {name} {peer.VERSION}", columns, cells)
    for row in rows:
        if row["why"]:
            print(f"  {row['case']}: {row['why']}")
    if means:
        columns = ["case", "ours", "theirs", "deviation", "as stated"]
        _common.table(
            "Means over random elements", columns, [[_cell(row[column]) for column in columns] for row in means]
        )


def _cell(value):
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else value


def _options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS, help="with which peers")
    parser.add_argument("--venvs", default="runs/venvs", help="where the peers are installed")
    parser.add_argument("--out", default="runs/benchmarks", help="the folder of the records")
    return parser.parse_args()


if __name__ == "__main__":
    main()
