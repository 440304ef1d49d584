"""Merge checkpoints into one: `soups merge`, from a checkout."""

import sys

from soups.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["merge", *sys.argv[1:]], prog="merge.py"))
