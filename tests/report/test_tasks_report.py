"""The tables, figures and page of a multi-task experiment show what is in its results."""

import base64
import copy
import html.parser
import io
import re

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from soups.report import style
from soups.report.tasks import draw
from soups.report.tasks.page import tasks_page, tasks_summary
from soups.report.tasks.results import check_tasks_results, masks_of, row_of, tasks_rows
from soups.report.tasks.tables import print_tasks_table, ranked
from soups.report.tasks.write import write_tasks_report

TASKS = ("parity", "loops")
# name, family, accuracies on the tasks, seconds, trunks stored
ROWS = [
    ("base with the members' heads", "baselines", (0.6, 0.5), 0.0, 1),
    ("individual members", "baselines", (0.9, 0.8), 20.0, 2),
    ("multi-task learning", "baselines", (0.85, 0.85), 30.0, 1),
    ("uniform soup", "averages", (0.7, 0.6), 0.1, 1),
    ("TIES <b>", "task vectors", (0.55, 0.5), 0.2, 1),
    ("Localize-and-Stitch", "masks", (0.8, 0.7), 4.0, 1),
    ("EMR", "trunk for each task", (0.88, 0.8), 0.3, 3),
]


def row(seed, name, family, accuracies, seconds, dense):
    test = {task: value - 0.02 * seed for task, value in zip(TASKS, accuracies, strict=True)}
    members = {task: value - 0.02 * seed for task, value in zip(TASKS, ROWS[1][2], strict=True)}
    cost = {"seconds": seconds + seed, "bytes": 4000 * dense, "labelled": 0, "unlabelled": 64}
    made = {
        "seed": seed,
        "name": name,
        "family": family,
        "held_out": test,
        "test": test,
        "mean": sum(test.values()) / 2,
        "normalised": sum(test[task] / members[task] for task in TASKS) / 2,
        "cost": cost,
    }
    if family != "baselines":
        made |= {"setting": {"density": 0.2}, "method": name}
        cost |= {"search_seconds": 9.0, "search_points": 3}
    if family == "masks":
        jaccard = {
            "parity": {"parity": 1.0, "loops": 0.2 + 0.1 * seed},
            "loops": {"parity": 0.2 + 0.1 * seed, "loops": 1},
        }
        made["masks"] = {"percent": {"parity": 10.0, "loops": 20.0 + seed}, "jaccard": jaccard}
        made["masks"]["alone"] = {"parity": 0.8, "loops": 0.6 + 0.1 * seed}
    return made


@pytest.fixture
def results():
    return {
        "schema": "soups.tasks/1",
        "experiment": "digits_tasks",
        "created": "2025-01-02T03:04:05+00:00",
        "config": {"seeds": 2},
        "versions": {"soups": "0.1.0"},
        "device": "cpu x2",
        "seeds": [0, 1],
        "tasks": {task: {"classes": ["no", "yes"], "train": 64, "held_out": 40, "test": 50} for task in TASKS},
        "trunk": {"parameters": 1000, "bytes": 4000},
        "skipped": {"SLERP": "merges exactly 2 members, here are 8"},
        "rows": [row(seed, *given) for seed in (0, 1) for given in ROWS],
        "timings": {"0": {"members": 20.0}},
    }


class Reader(html.parser.HTMLParser):
    """Collect the cells of all tables and every reference."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.references, self.inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.references += [value for key, value in attributes if key in ("src", "href")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.tables[-1][-1][-1] += data


def test_rows_are_aggregated_over_seeds(results):
    uniform = row_of(tasks_rows(results), "uniform soup")
    scores = [(0.7 / 0.9 + 0.6 / 0.8) / 2, (0.68 / 0.88 + 0.58 / 0.78) / 2]
    assert uniform["normalised"].mean == pytest.approx(np.mean(scores))
    assert uniform["normalised"].deviation == pytest.approx(np.std(scores, ddof=1))
    assert uniform["accuracy"]["loops"].mean == pytest.approx(0.59)
    assert uniform["score"]["loops"].mean == pytest.approx((0.6 / 0.8 + 0.58 / 0.78) / 2)
    assert uniform["cost"]["seconds"].mean == pytest.approx(0.6)


def test_baselines_come_first_then_the_highest_score(results):
    assert [found["name"] for found in ranked(tasks_rows(results))] == [
        "base with the members' heads",
        "individual members",
        "multi-task learning",
        "EMR",
        "Localize-and-Stitch",
        "uniform soup",
        "TIES <b>",
    ]


def test_masks_are_averaged_over_seeds(results):
    found = masks_of(results)
    assert list(found) == ["Localize-and-Stitch"]
    assert found["Localize-and-Stitch"]["percent"]["loops"].mean == pytest.approx(20.5)
    assert found["Localize-and-Stitch"]["alone"]["loops"].mean == pytest.approx(0.65)
    np.testing.assert_allclose(found["Localize-and-Stitch"]["jaccard"], [[1, 0.25], [0.25, 1]])


def test_summary_names_what_did_not_help(results):
    text = " ".join(tasks_summary(results))
    # EMR stores three trunks, so it is not among those that are compared
    assert "Localize-and-Stitch has the highest normalised score" in text
    assert "no merged trunk reaches it" in text
    assert "of no help: TIES <b>" in text
    results["rows"][5]["normalised"] = results["rows"][12]["normalised"] = 2.0
    assert "it is below Localize-and-Stitch" in " ".join(tasks_summary(results))


def test_terminal_table(results):
    console = Console(file=io.StringIO(), width=40)
    print_tasks_table(results, console)
    lines = console.file.getvalue().splitlines()
    (line,) = [line.split() for line in lines if "EMR" in line]
    assert line == ["EMR", "98.88", "±0.02", "83.00", "±1.41", "0.80", "±0.71", "3×", "0", "64", "9.0", "±0.0", "3"]


def test_page_stands_alone_and_escapes(results):
    with style.look():
        figures = draw.draw_tasks(results)
    text = tasks_page(results, figures)
    reader = Reader(text)
    assert all(reference.startswith(("data:", "#")) for reference in reader.references)
    assert not re.search(r"https?:|<b>", re.sub(r"base64,[^\"]*", "", text))
    main = {cells[0]: cells[1:] for cells in reader.tables[0]}
    assert main["TIES <b>"][0] == "task vectors"
    assert main["multi-task learning"][1].startswith("100.")
    assert "SLERP: merges exactly 2 members, here are 8" in text
    overlaps = next(table for table in reader.tables if table[0][1] == "size %")
    assert overlaps[1] == ["parity", "10.00 ±0.00", "80.00 ±0.00", "", "0.250"]
    assert text == tasks_page(results, figures)


def test_report_is_written_and_old_figures_go(results, tmp_path):
    paths = write_tasks_report(results, tmp_path)
    names = [path.removeprefix(f"{tmp_path}/") for path in paths]
    assert names == ["report.html", "figures/tasks.png", "figures/tasks_by_task.png", "figures/tasks_masks.png"]
    page = (tmp_path / "report.html").read_text()
    for name in names[1:]:
        content = (tmp_path / name).read_bytes()
        assert base64.b64encode(content).decode() in page
        assert Image.open(io.BytesIO(content)).width >= 1400
    for found in results["rows"]:
        found.pop("masks", None)
    assert len(write_tasks_report(results, tmp_path)) == 3
    assert not (tmp_path / "figures" / "tasks_masks.png").exists()


def test_one_seed_has_no_spread(results):
    results |= {"seeds": [0], "rows": results["rows"][: len(ROWS)]}
    assert "±" not in tasks_page(results, [])


def test_points_and_lines_of_the_figure(results):
    figure = draw.scores(results)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()][::-1] == [
        "base with the members' heads",
        "multi-task learning",
        "EMR",
        "Localize-and-Stitch",
        "uniform soup",
        "TIES <b>",
    ]
    drawn = sorted(float(line.get_xdata()[0]) for line in axes.lines if len(line.get_xdata()) == 2)
    rows = tasks_rows(results)
    names = ("base with the members' heads", "individual members", "multi-task learning")
    assert drawn == pytest.approx(sorted(100 * row_of(rows, name)["normalised"].mean for name in names))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda results: results.update(schema="soups.results/1"), "schema 'soups.results/1', but 'soups.tasks/1'"),
        (lambda results: results.pop("trunk"), "trunk is missing"),
        (lambda results: results["rows"][3].pop("normalised"), r"rows\[3\]\.normalised is missing"),
        (lambda results: results["rows"][3]["test"].pop("loops"), r"rows\[3\]\.test lacks loops"),
        (lambda results: results["rows"].pop(1), "seed 0 has no row 'individual members'"),
    ],
    ids=["schema", "key", "key of a row", "task", "members"],
)
def test_incomplete_results(results, tmp_path, change, message):
    results = copy.deepcopy(results)
    change(results)
    with pytest.raises(ValueError, match=message):
        write_tasks_report(results, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_results_that_are_no_object():
    with pytest.raises(ValueError, match="must be a JSON object, not a list"):
        check_tasks_results([])
