"""List, show, verify, add, import, export and remove the members of a pool: `soups pool`, from a checkout."""

import sys

from soups.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["pool", *sys.argv[1:]], prog="pool.py"))
