"""Make the report of any experiment again, from its results file alone."""

import os
import pathlib
from collections.abc import Mapping

from soups.report import imagenet, rebasin, results, tasks
from soups.report.imagenet.page import write_imagenet_report
from soups.report.imagenet.tables import print_imagenet_table
from soups.report.rebasin.page import write_rebasin_report
from soups.report.rebasin.tables import print_rebasin_table
from soups.report.tables import print_table
from soups.report.tasks.tables import print_tasks_table
from soups.report.tasks.write import write_tasks_report
from soups.report.write import write_report


def report_again(directory: str | os.PathLike) -> list[pathlib.Path]:
    """Print the table of a run, make its report.html and figures anew, and list them.

    Raises:
        FileNotFoundError: no results.json in the directory.
        ValueError: a schema that no experiment has, or results that are not complete.
        OSError: as `soups.files.replace_file`.
    """
    found = results.read_json(directory)
    schema = found.get("schema") if isinstance(found, Mapping) else None
    if schema == tasks.results.SCHEMA:
        paths = write_tasks_report(found, directory)
        print_tasks_table(found)
    elif schema == rebasin.tables.SCHEMA:
        paths = write_rebasin_report(found, directory)
        print_rebasin_table(found)
    elif schema == imagenet.results.SCHEMA:
        paths = write_imagenet_report(found, directory)
        print_imagenet_table(found)
    else:
        paths = write_report(directory)
        print_table(results.load_results(directory))
    return [pathlib.Path(path) for path in paths]
