"""Make the report of a run again from its results: `soups report`, from a checkout."""

import sys

from soups.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]], prog="report.py"))
