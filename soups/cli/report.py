"""Make the report of a run again, from its results alone.

soups report runs/digits

DIR is the folder of a run, which holds results.json. Its table and its claims
are printed, and report.html, tables as CSV and LaTeX and the figures are
written beside it.
"""

import os

from soups.cli.options import Parser, place_argument
from soups.cli.show import say
from soups.lazy import report


def main(arguments: list[str], run) -> int:
    """Print the table, write the report, and return the exit code."""
    directory = parser(run.prog).parse(arguments).directory
    if os.path.isfile(directory):
        raise NotADirectoryError(f"{directory} is a file: give the folder that holds results.json")
    report.print_table(report.load_results(directory))
    paths = report.write_report(directory)
    say("\n".join(map(str, paths)))
    run.made(*paths)
    return 0


def parser(prog: str) -> Parser:
    """Return the parser of the options."""
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument("directory", metavar="DIR", type=place_argument, help="the folder that holds results.json")
    return parser
