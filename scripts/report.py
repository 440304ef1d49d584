"""Make the report of a run again from its results: python scripts/report.py DIR, where DIR holds results.json."""

import sys

from absl import app

from soups import report


def main(argv):
    """Print the table, make report.html and figures, and print their paths."""
    if len(argv) != 2:
        raise app.UsageError("give one directory that holds results.json, e.g. python scripts/report.py runs/digits")
    try:
        report.print_table(report.load_results(argv[1]))
        paths = report.write_report(argv[1])
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    print("\n".join(map(str, paths)))


if __name__ == "__main__":
    app.run(main)
