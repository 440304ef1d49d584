"""Carry out the merges of mergekit's own tests and examples with both programs, and compare what comes out.

    python scripts/benchmarks/parity_mergekit_tests.py CHECKOUT [--peer VENV] [--record FOLDER] [--out FILE]

CHECKOUT is a copy of mergekit's repository, of which tests/ and examples/ are used. Its tests run in the peer's own
environment; a plugin keeps the recipe of every merge and what mergekit made of it, once as it stands and once with
dtype float32. Then `soups merge` does the same merges from the same recipes. The examples are merged with small random
models in the place of those that they name.

A merge is *equal* if no element differs by more than rounding in float32, 2e-6 of the largest, or if both refuse it;
*explained* if it is so with dtype float32 or float64, if the method draws random numbers, or if other tensors or names
are written, which is said; *refused* if soups alone refuses it.
"""

import argparse
import collections
import contextlib
import io
import os
import pathlib
import shutil
import subprocess
import sys

import _common
import _mergekit
import numpy as np
import parity
import yaml

import soups.cli
from soups.formats import open_checkpoint

TESTS = ("test_basic_merges", "test_tokenizer", "test_chat_template")
RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")
RENAMED = "mergekit writes the names of transformers 5, soups those that are stored"
SMALL = parity.TOLERANCE["float32"]
WIDER = {
    "float32": "mergekit rounds every step to {}",
    "float64": "mergekit rounds every step to {}, and float32 decides which elements lie above a threshold",
}
LAYERS = 40  # the examples cut that many
PLUGIN = """
import os, pathlib, shutil
import mergekit.merge

record, real, count = pathlib.Path(os.environ["RECORD"]), mergekit.merge.run_merge, iter(range(1000))

def run_merge(config, out_path, options, **further):
    folder = record / f"{next(count):03d}"
    folder.mkdir()
    (folder / "test").write_text(os.environ["PYTEST_CURRENT_TEST"].split(" ")[0])
    (folder / "recipe.yml").write_text(config.to_yaml())
    exact = config.model_copy(deep=True)
    try:
        real(config, out_path, options, **further)
    except Exception as error:
        (folder / "error").write_text(f"{type(error).__name__}: {error}")
        raise
    shutil.copytree(out_path, folder / "out")
    if exact.dtype not in (None, "float32"):
        exact.dtype = "float32"
        real(exact, str(folder / "out_float32"), options, **further)

mergekit.merge.run_merge = run_merge
"""
MERGES = """
import pathlib, sys, yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions

for recipe, out in zip(sys.argv[1::2], sys.argv[2::2]):
    config = MergeConfiguration.model_validate(yaml.safe_load(pathlib.Path(recipe).read_text()))
    run_merge(config, out, MergeOptions())
"""


def main():
    """Record mergekit's merges, do them again, and print the table."""
    options = _options()
    programs = _mergekit.install(options.peer)
    rows, record = [], pathlib.Path(options.record).absolute()
    if not record.exists():
        record.mkdir(parents=True)
        run_tests(options.checkout, programs, record, TESTS)
        run_examples(options.checkout, programs, record)
    for case in sorted(path for path in record.iterdir() if (path / "recipe.yml").exists()):
        rows.append(compare(case, programs))
        print(*rows[-1].values(), flush=True)
    counts = collections.Counter((row["file"], row["status"]) for row in rows)
    _common.table("Merges", ["file", "status", "merges"], [[*key, number] for key, number in sorted(counts.items())])
    what = {"benchmark": "parity_mergekit_tests", "what": __doc__.splitlines()[0], "mergekit": _mergekit.VERSION}
    ran = (record / "tests").read_text()
    _common.write(options.out, what | {"tests": ran, "rows": rows, "machine": _common.machine()})
    if wrong := [f"{row['file']} {row['case']}" for row in rows if row["status"] == "differs"]:
        sys.exit(f"differ by more than is explained: {', '.join(wrong)}")


def run_tests(checkout, programs, record, names):
    """Run test files in the peer's environment, with every merge recorded, and pytest's last line."""
    subprocess.run([str(programs / "pip"), "install", "-q", "pytest"], check=True)
    folder = record / "checkout"
    shutil.copytree(checkout / "tests", folder / "tests")
    (folder / "soups_record.py").write_text(PLUGIN)
    files = [f"tests/{name}.py" for name in names]
    command = [str(programs / "python"), "-m", "pytest", "-q", "-p", "soups_record", "-p", "no:cacheprovider"]
    command += ["--basetemp", str(record / "models"), *files]
    environment = os.environ | {"RECORD": str(record), "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if not list(record.glob("*/recipe.yml")):
        raise RuntimeError(f"mergekit's tests made no merge: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    (record / "tests").write_text(done.stdout.strip().splitlines()[-1])


def run_examples(checkout, programs, record):
    """Merge each example with small models of the same names."""
    made, cases = parity.make_models(record / "small", "float32", LAYERS), []
    for path in sorted((checkout / "examples").glob("*.yml")):
        unused = iter(made.values())
        models = collections.defaultdict(lambda unused=unused: str(next(unused)))
        recipe = with_models(yaml.safe_load(path.read_text()), models)
        case = record / f"example_{path.stem}"
        case.mkdir()
        (case / "test").write_text(f"examples::{path.name}")
        (case / "recipe.yml").write_text(yaml.safe_dump(recipe))
        cases += [case / "recipe.yml", case / "out"]
    run_peer(programs, cases)


def with_models(value, models):
    """Return a recipe with a path in the place of each model's name."""
    if isinstance(value, list):
        return [with_models(item, models) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: models[item] if key in ("model", "base_model") else with_models(item, models)
        for key, item in value.items()
    }


def compare(case, programs):
    """Do a recorded merge again and return a row of the table."""
    file, _, test = (case / "test").read_text().rpartition("/")[2].partition("::")
    recipe = yaml.safe_load((case / "recipe.yml").read_text())
    row = {"file": file, "case": test.rpartition("::")[2], "method": recipe["merge_method"], "status": "equal"}
    row |= {"difference": None, "float32": None, "float64": None, "why": ""}
    refusal = merge(case / "recipe.yml", case / "ours")
    if (case / "error").exists():
        theirs = (case / "error").read_text().splitlines()[0]
        why = f"both refuse; mergekit: {theirs}" if refusal else f"mergekit refuses: {theirs}"
        return row | {"status": "equal" if refusal else "explained", "why": why}
    if refusal:
        return row | {"status": "refused", "why": refusal}
    row["difference"], why = difference(case / "out", case / "ours")
    if row["difference"] is None or row["difference"] > SMALL:
        reason = explain(case, recipe, row, programs) if row["difference"] else ""
        return row | {"status": "explained" if reason else "differs", "why": "; ".join([*why, reason])}
    return row | {"status": "explained" if why else "equal", "why": "; ".join(why)}


def explain(case, recipe, row, programs):
    """Return why a merge differs, if it is equal in a wider dtype or draws random numbers."""
    if recipe["merge_method"] in RANDOM:
        return "other random numbers"
    for dtype, reason in WIDER.items():
        exact, theirs = case / f"{dtype}.yml", case / f"out_{dtype}"
        exact.write_text(yaml.safe_dump(recipe | {"dtype": dtype}))
        if not theirs.exists():
            run_peer(programs, [exact, theirs])
        merge(exact, case / f"ours_{dtype}")
        row[dtype], _ = difference(theirs, case / f"ours_{dtype}")
        if row[dtype] <= SMALL:
            return reason.format(recipe["dtype"])
    return ""


def run_peer(programs, cases):
    """Merge recipes with mergekit: paths of a recipe and of its output by turns."""
    subprocess.run([str(programs / "python"), "-c", MERGES, *map(str, cases)], check=True, capture_output=True)


def merge(recipe, out):
    """Run `soups merge`; return what it said if it refused."""
    shutil.rmtree(out, ignore_errors=True)  # of an earlier comparison
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        code = soups.cli.main(["merge", str(recipe), str(out)])
    if code not in (0, 2):
        raise RuntimeError(f"{recipe.read_text()}\n{said.getvalue()}")
    return said.getvalue().strip() if code else ""


def difference(theirs, ours):
    """Return the largest difference relative to the largest element, and in words what else differs."""
    one, other = open_checkpoint(theirs), open_checkpoint(ours)
    names, stored = ({_plain(name): name for name in folder.leaves} for folder in (one, other))
    if extra := set(names) - set(stored):
        return None, [f"soups leaves out {len(extra)} tensors, such as {min(extra)}"]
    missing = sorted(stored[name] for name in set(stored) - set(names))
    why = [f"mergekit leaves out {len(missing)} tensors of the models, such as {missing[0]}"] if missing else []
    why += [RENAMED] if any(stored[name] != names[name] for name in names) else []
    rows = parity.rows_of_their_tokens(theirs, ours)
    worst = largest = 0.0
    for name in names:
        arrays = one.read(names[name]), other.read(stored[name])
        expected, found = (np.asarray(array).astype(np.float64) for array in arrays)
        found = found[rows] if rows and name in ("embed_tokens.weight", "lm_head.weight") else found
        if expected.shape != found.shape:
            return None, [*why, f"{name} has shape {found.shape} instead of {expected.shape}"]
        worst = max(worst, float(np.abs(expected - found).max(initial=0)))
        largest = max(largest, float(np.abs(expected).max(initial=0)))
    return worst / (largest or 1.0), why


def _plain(name):
    return ".".join(part for part in name.split(".") if part not in ("model", "language_model"))


def _options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=pathlib.Path, help="a copy of mergekit's repository")
    parser.add_argument("--peer", default="runs/venvs/mergekit", help="where mergekit is installed")
    parser.add_argument("--record", default="runs/parity_mergekit_tests", help="mergekit's merges; made if not there")
    parser.add_argument("--out", default="runs/benchmarks/parity_mergekit_tests.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
