"""Write the logits of a network for all images of a folder: `soups predict`, from a checkout."""

import sys

from soups.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]], prog="predict.py"))
