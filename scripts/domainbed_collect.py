"""Print the tables of runs that DomainBed's scripts wrote: domainbed_collect.py FOLDER.

FOLDER has a folder for each run with its results.jsonl, as domainbed.scripts.sweep leaves it. On DomainBed's own
conformance set, domainbed/misc/test_sweep_data, this prints its test_sweep_results.txt, to the digit:

    diff -b <(python scripts/domainbed_collect.py test_sweep_data) test_sweep_results.txt
"""

import argparse
import sys

from soups.data.domain_selection import read_records, tables


def main(arguments: list[str] | None = None) -> int:
    """Print the tables and give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", help="the folder of runs")
    options = parser.parse_args(arguments)
    try:
        print(tables(read_records(options.folder)), end="")
    except (ValueError, OSError) as error:
        print(f"domainbed_collect.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
