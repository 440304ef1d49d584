"""Compare BERT, RoBERTa, MiniLM, DeBERTa-v3, T5 and ALIGN with transformers, from files that it wrote.

    python scripts/benchmarks/parity_encoders.py [--peers PYTHON] [--sizes small real] [--record FOLDER]

As `parity_models.py` does with networks of images, in an environment of its own: logits of classifiers with a pooler,
logits of the vocabulary at every token, and means of tokens, for texts of different lengths. At most 1e-5 of the
largest output is equal. `--record` keeps the small folders and outputs, for the tests.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import _common
import numpy as np
import parity_models
from peers import ours_encoders

REQUIREMENTS = ("torch==2.13.0", "transformers==5.24.0", "sentencepiece==0.2.3", "protobuf==7.36.2")
THEIRS = pathlib.Path(__file__).parent / "peers" / "theirs_encoders.py"


def main():
    """Run the comparisons, print the table and write the record."""
    options = _options()
    python = options.peers or parity_models.install(pathlib.Path(options.venv).absolute(), REQUIREMENTS)
    rows = []
    for size in options.sizes:
        cases = ours_encoders.small_cases() if size == "small" else ours_encoders.real_cases()
        for case in cases:  # large files come and go one by one
            with tempfile.TemporaryDirectory(prefix="parity_", dir=options.scratch) as folder:
                folder = pathlib.Path(folder)
                versions = ask(python, folder, case)
                rows.append(parity_models.compare(folder, case, size))
                if options.record and size == "small":
                    parity_models.record(folder, pathlib.Path(options.record), [case])
    columns = ["peer", "architecture", "size", "error", "ours to float64", "theirs to float64", "equal"]
    _common.table("Largest relative error of outputs", columns, [[row[name] for name in columns] for row in rows])
    entry = {"benchmark": "parity_encoders", "what": __doc__.splitlines()[0], "tolerance": parity_models.TOLERANCE}
    _common.write(options.output, entry | {"rows": rows, "peers": versions, "machine": _common.machine()})
    if failed := [f"{row['peer']} {row['architecture']}" for row in rows if not row["equal"]]:
        sys.exit(f"not equal: {', '.join(failed)}")


def ask(python, folder, case):
    """Let the peer write its files and outputs; give its versions."""
    np.save(folder / f"{case.name}.inputs.npy", case.inputs())
    (folder / "cases.json").write_text(json.dumps([case.described(folder)]))
    subprocess.run([python, str(THEIRS), str(folder), str(folder / "cases.json")], check=True)
    return json.loads((folder / "versions.json").read_text())


def _options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", help="interpreter of an environment that has them")
    parser.add_argument("--venv", default="runs/venvs/encoders", help="else where they are installed")
    parser.add_argument("--sizes", nargs="+", choices=("small", "real"), default=["small", "real"])
    parser.add_argument("--record", help="folder for the files of the small networks")
    parser.add_argument("--scratch", help="folder for large files while they are compared")
    parser.add_argument("--output", default="runs/benchmarks/parity_encoders.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
