"""Make an image classifier from a CLIP and the names of classes: `soups zero-shot`, from a checkout."""

import sys

from soups.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["zero-shot", *sys.argv[1:]], prog="zero_shot.py"))
