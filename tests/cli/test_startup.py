"""Test what a merge on the host does not import: half a second of JAX, and more that is not used."""

import subprocess
import sys

import numpy as np
import pytest

from soups.formats import write_safetensors

HEAVY = ["jax", "flax", "optax", "orbax", "tensorstore", "scipy", "rich", "absl", "etils", "grain", "PIL"]
HEAVY += ["soups.pool", "soups.merging.sharded", *(f"soups.formats.{kind}" for kind in ("orbax", "torch_file", "gguf"))]
RUN = f"""
import os
import sys
from soups.cli import main
code = main(sys.argv[1:])
loaded = sorted(set({HEAVY}) & set(sys.modules))
if sys.platform == "linux" and "--methods" in sys.argv:  # BLAS would start threads that wait in a loop
    assert len(os.listdir("/proc/self/task")) == 1
sys.exit(f"exit code {{code}}, imported: {{', '.join(loaded)}}" if code or loaded else 0)
"""
SHOWN = f"""
import sys
from soups.cli.show import advance
with advance("merging", 3e8) as progress:
    progress(3 * 10**8)
sys.exit(f"imported: {{sorted(set({HEAVY}) & set(sys.modules))}}" if set({HEAVY}) & set(sys.modules) else 0)
"""
MEMBERS = ["--members", "a.safetensors", "b.safetensors", "--out", "out"]
BASE = ["--base", "base.safetensors", *MEMBERS]


@pytest.mark.parametrize(
    "words",
    [
        ["--methods"],
        ["--method", "linear", *MEMBERS],
        ["--method", "ties", *BASE],
        ["--method", "dare", *BASE],
        ["--method", "della", *BASE],
        ["--method", "breadcrumbs", *BASE],
        ["--method", "sce", *BASE],
        ["--method", "karcher", *MEMBERS],
        ["--method", "model_stock", *BASE],
        ["--method", "tsv_merge", *BASE],
        ["recipe.yml", "out"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_merge_on_the_host_imports_what_it_uses(quick_start, tmp_path, words):
    rng = np.random.default_rng(0)
    for name in ("a", "b", "base"):
        leaves = {"w": rng.normal(size=(8, 8)).astype(np.float32), "bias": rng.normal(size=8).astype(np.float32)}
        write_safetensors(tmp_path / f"{name}.safetensors", leaves)
    (tmp_path / "recipe.yml").write_text(
        "merge_method: dare_ties\nbase_model: base.safetensors\nparameters: {weight: 0.5, density: 0.5}\n"
        "models: [{model: a.safetensors}, {model: b.safetensors}]\n"
    )
    for arguments in [words, ["--verify", "out"]] if "out" in words else [words]:
        command = [sys.executable, "-c", RUN, "merge", *arguments]
        done = subprocess.run(command, env=quick_start, cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_the_progress_of_a_large_merge_imports_nothing_of_it_either(quick_start):
    done = subprocess.run([sys.executable, "-c", SHOWN], env=quick_start, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("merging: 300/300 MB")
