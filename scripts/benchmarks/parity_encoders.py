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
import tempfile

import numpy as np
import parity_models
from peers import ours_encoders

REQUIREMENTS = ("torch==2.13.0", "transformers==5.24.0", "sentencepiece==0.2.3", "protobuf==7.36.2")


def main():
    """Compare the encoders."""
    compare("parity_encoders", __doc__, REQUIREMENTS, ours_encoders, "theirs_encoders.py")


def compare(benchmark, what, requirements, ours, theirs):
    """Run the comparisons, print the table and write the record; `ours` has the cases, the script `theirs` the peer."""
    options = _options(benchmark, what)
    python = options.peers or parity_models.install(pathlib.Path(options.venv).absolute(), requirements)
    rows = []
    for size in options.sizes:
        for case in ours.small_cases() if size == "small" else ours.real_cases():  # large files come and go one by one
            with tempfile.TemporaryDirectory(prefix="parity_", dir=options.scratch) as folder:
                folder = pathlib.Path(folder)
                versions = ask(python, folder, case, theirs)
                rows.append(parity_models.compare(folder, case, size))
                if options.record and size == "small":
                    parity_models.record(folder, pathlib.Path(options.record), [case])
    parity_models.report(benchmark, what, rows, versions, options.output)


def ask(python, folder, case, theirs):
    """Let the peer write its files and outputs; give its versions."""
    np.save(folder / f"{case.name}.inputs.npy", case.inputs())
    (folder / "cases.json").write_text(json.dumps([case.described(folder)]))
    script = pathlib.Path(__file__).parent / "peers" / theirs
    subprocess.run([python, str(script), str(folder), str(folder / "cases.json")], check=True)
    return json.loads((folder / "versions.json").read_text())


def _options(benchmark, what):
    parser = argparse.ArgumentParser(description=what.splitlines()[0])
    parser.add_argument("--peers", help="interpreter of an environment that has them")
    parser.add_argument("--venv", default=f"runs/venvs/{benchmark.removeprefix('parity_')}", help="else where they are")
    parser.add_argument("--sizes", nargs="+", choices=("small", "real"), default=["small", "real"])
    parser.add_argument("--record", help="folder for the files of the small networks")
    parser.add_argument("--scratch", help="folder for large files while they are compared")
    parser.add_argument("--output", default=f"runs/benchmarks/{benchmark}.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
