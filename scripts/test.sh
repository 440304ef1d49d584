#!/usr/bin/env bash
# Set up, check lint and format, and run the whole test suite in two processes. Extra arguments go to pytest.
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
ruff check .
ruff format --check .
exec python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder "$@"
