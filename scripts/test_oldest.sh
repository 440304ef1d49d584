#!/usr/bin/env bash
# Install the core alone, each package in the oldest version that pyproject.toml allows, and run tests of it there, with
# Python 3.11, which later versions of Python have no such old packages for. Extra arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if ! python3.11 -c "" 2>/dev/null; then
  echo "left out: tests on the oldest versions, which need python3.11"
  exit 0
fi

VENV=".venv/oldest"
OLDEST="$(python3.11 -c '
import re, tomllib
for line in tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]:
    print(re.sub(">=([^,]*),.*", r"==\1", line))
')"
rm -rf "$VENV"
python3.11 -m venv "$VENV"
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check . $OLDEST "pytest>=8.3" "pytest-xdist>=3.6"
# not as a module of Python, which would find the package here and not the installed one
exec "$VENV/bin/pytest" --numprocesses 2 --dist loadfile "$@" tests/test_tree.py tests/test_engine.py \
  tests/formats/test_{safetensors,torch_file,npz,gguf,folder,orbax}.py tests/merging/test_{run,merge_cli}.py \
  tests/pool/test_{pool,pool_merge,pool_damage}.py tests/recipes/test_{averages,task_vectors,evolve,greedy}.py
