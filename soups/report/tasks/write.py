"""Make the report of a multi-task experiment from its results."""

import os
import pathlib
from collections.abc import Mapping

from soups.files import replace_file
from soups.report.tasks.draw import draw_tasks
from soups.report.tasks.page import tasks_page
from soups.report.tasks.results import check_tasks_results


def write_tasks_report(results: Mapping, directory: str | os.PathLike) -> list[str]:
    """Make `report.html` and `figures/tasks*.png` from results of schema `soups.tasks/1`; list what was written.

    Raises:
        ValueError: results of another schema, or keys that are missing; all of them are listed.
        OSError: as `soups.files.replace_file`.
    """
    check_tasks_results(results)
    directory = pathlib.Path(directory)
    figures = directory / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    drawn = draw_tasks(results)
    for old in {path.name for path in figures.glob("tasks*.png")} - {f"{figure.name}.png" for figure in drawn}:
        (figures / old).unlink()
    paths = [replace_file(figures / f"{figure.name}.png", figure.png) for figure in drawn]
    return [str(path) for path in (replace_file(directory / "report.html", tasks_page(results, drawn)), *paths)]
