"""Show what of the differences from mergekit in bfloat16 is the rounding of its intermediate results.

    python scripts/benchmarks/parity_rounding.py [--peer VENV] [--out FILE]

The bfloat16 models and the recipes of `parity.py`, with float32 arithmetic and bfloat16 output in both programs: what
still differs is decided by the last bit of float32, or by magnitudes that tie at a threshold. The table has the largest
difference of an element of size 1 and the share of elements that differ.
"""

import argparse
import pathlib
import tempfile

import _common
import _mergekit
import parity


def main():
    """Run all recipes over bare tensors through both programs and print the differences."""
    options, rows = _options(), []
    programs = _mergekit.install(options.peer)
    with tempfile.TemporaryDirectory(prefix="parity_") as folder:
        folder = pathlib.Path(folder)
        for name, recipe in parity.tensor_cases(parity.make_models(folder / "models", "bfloat16")).items():
            settings = {"dtype": "float32", "out_dtype": "bfloat16"}
            difference, share = parity.compare(recipe | settings, folder, programs)
            rows.append({"case": name, "difference": difference, "elements": share})
            print(name, difference, share, flush=True)
    _common.table(
        "bfloat16 files, float32 arithmetic", ["case", "difference", "elements"], [[*r.values()] for r in rows]
    )
    record = {"benchmark": "parity_rounding", "what": __doc__.splitlines()[0], "rows": rows}
    _common.write(options.out, record | {"version": _mergekit.VERSION, "machine": _common.machine()})


def _options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", default="runs/venvs/mergekit", help="where mergekit is installed")
    parser.add_argument("--out", default="runs/benchmarks/parity_rounding.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
