"""Make the report of a run again, from its results file alone."""

import pathlib

from soups.files import replace_file
from soups.report.figures import PLANS, draw_all
from soups.report.page import page
from soups.report.results import load_results


def write_report(directory) -> list[pathlib.Path]:
    """Make `report.html` and `figures/*.png` in a directory that holds `results.json`; list what was written.

    Figures of an earlier report whose data are gone are removed. Each file is written under another name and renamed,
    so a report that is open in a browser is never half of one. The same results give the same bytes on one machine.

    Raises:
        FileNotFoundError, ValueError: as `load_results`.
        OSError: as `soups.files.replace_file`.
    """
    directory = pathlib.Path(directory)
    results = load_results(directory)
    drawn = draw_all(results)
    figures = directory / "figures"
    figures.mkdir(exist_ok=True)
    for name in {plan.name for plan in PLANS} - {figure.name for figure in drawn}:
        (figures / f"{name}.png").unlink(missing_ok=True)
    paths = [replace_file(figures / f"{figure.name}.png", figure.png) for figure in drawn]
    return [replace_file(directory / "report.html", page(results, drawn)), *paths]
