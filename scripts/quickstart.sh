#!/usr/bin/env bash
# Set up and run the default experiment; finished work is not repeated. Extra arguments go to scripts/run.py.
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
exec python scripts/run.py --config configs/digits.py "$@"
