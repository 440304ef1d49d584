"""Run a study from a config: `soups run`, from a checkout; python scripts/run.py --config configs/digits.py."""

import sys

from soups.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]], prog="run.py"))
