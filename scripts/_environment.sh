# Sourced by the other scripts: makes a virtual environment with this project in it, once for each interpreter, and says
# so before, with what comes after it where a script has that in AFTER_SETUP.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON="${PYTHON:-python3}"
if ! command -v "$PYTHON" >/dev/null || ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  echo "error: soups needs Python 3.11 or newer; '$PYTHON' is not. Name one: PYTHON=python3.13 bash $0" >&2
  exit 2
fi

# One environment for each version of Python, made anew when the requirements change.
VENV=".venv/$("$PYTHON" -c 'import sys; print("py%d%d" % sys.version_info[:2])')"
STAMP="$VENV/requirements.stamp"
WANTED="$(cat requirements.txt pyproject.toml)"
if [ "$(cat "$STAMP" 2>/dev/null || true)" != "$WANTED" ]; then
  echo "First $VENV is set up: pip installs JAX and what else is needed, which takes a minute or more, once."
  [ -z "${AFTER_SETUP:-}" ] || echo "$AFTER_SETUP"
  rm -rf "$VENV"
  "$PYTHON" -m venv "$VENV"
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -e '.[all,dev]'
  printf '%s\n' "$WANTED" >"$STAMP"
fi
PATH="$PWD/$VENV/bin:$PATH"
