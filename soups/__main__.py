"""Let `python -m soups` be the command `soups`."""

import sys

from soups.cli import main

sys.exit(main())
