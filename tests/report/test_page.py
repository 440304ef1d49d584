"""The page stands alone, escapes what it shows, and is the same every time."""

import base64
import html.parser
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from soups import report
from soups.report.page import page

ROOT = pathlib.Path(__file__).parents[2]
VOID = {"meta", "link", "img", "br"}


class Reader(html.parser.HTMLParser):
    """Collect the cells of all tables and every reference, and check that tags are closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.references, self.tables, self.ids = [], [], [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.references += [attributes[key] for key in ("src", "href") if key in attributes]
        self.ids += [attributes["id"]] if "id" in attributes else []
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID and not tag.startswith("polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data


def read(text):
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def test_page_refers_to_nothing_outside(reported):
    _, directory, _ = reported
    text = (directory / "report.html").read_text(encoding="utf-8")
    reader = read(text)
    assert all(reference.startswith(("data:", "#")) for reference in reader.references)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[^\"]*", "", text))
    anchors = [reference[1:] for reference in reader.references if reference.startswith("#")]
    assert anchors and set(anchors) <= set(reader.ids)


def test_page_holds_every_figure_file(reported):
    _, directory, paths = reported
    reader = read((directory / "report.html").read_text(encoding="utf-8"))
    images = [base64.b64decode(r.partition(",")[2]) for r in reader.references if r.startswith("data:image/png")]
    assert images == [path.read_bytes() for path in paths if path.suffix == ".png"]
    assert len(images) == 8


def test_numbers_of_the_main_table(reported):
    results, directory, _ = reported
    heads, *rows = read((directory / "report.html").read_text(encoding="utf-8")).tables[0]
    cells = {row[0]: dict(zip(heads, row, strict=True)) for row in rows}
    for name in ("linear probe", "greedy soup", "logit ensemble"):
        metrics = [r["metrics"]["test"] for r in results["rows"] if r["name"] == name and r["group"] == "main"]
        accuracy, nll = (np.array([m[key] for m in metrics]) for key in ("accuracy", "nll"))
        assert cells[name]["test %"] == f"{100 * accuracy.mean():.2f} ±{100 * accuracy.std(ddof=1):.2f}"
        assert cells[name]["NLL"] == f"{nll.mean():.3f} ±{nll.std(ddof=1):.3f}"
    assert cells["logit ensemble"]["passes"] == "23"
    assert len(rows) == len({r["name"] for r in results["rows"] if r["group"] == "main"})


def test_shift_table_has_every_shift(reported):
    results, directory, _ = reported
    table = read((directory / "report.html").read_text(encoding="utf-8")).tables[1]
    assert table[0] == ["name", *results["splits"]["shifts"], "mean"]
    values = [r["metrics"]["shifts"]["blur/4"]["accuracy"] for r in results["rows"] if r["name"] == "SWA"]
    row = next(row for row in table if row[0] == "SWA")
    assert row[table[0].index("blur/4")] == f"{100 * np.mean(values):.1f} ±{100 * np.std(values, ddof=1):.1f}"


def test_texts_are_escaped(results):
    evil = '<script>alert("1")</script>'
    results |= {"conclusions": [evil], "experiment": evil, "device": evil}
    results["config"] = {evil: {evil: evil}}
    results["histories"] = {"0": {evil: [{"member": evil, "score": 0.5}], "losses": [3.0, 2.0, 1.0]}}
    results["seeds"][1] = evil  # a file may hold any text there
    for section in ("pool", "curves", "histories", "timings"):
        results[section][evil] = results[section].get("1", {})
    results["histories"][evil] = {"losses": [3.0, 2.0]}
    for row in results["rows"]:
        row["name"] += evil
        row["seed"] = evil if row["seed"] == 1 else row["seed"]
    for member in results["pool"]["0"]:
        member["config"]["optimizer"] = evil
        member["digest"] = evil
    text = page(results, [])
    assert "<script>alert" not in text and text.count("<script>") == 1
    assert "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;" in text
    read(text)


def test_sections_without_data_are_left_out(results):
    results |= {"pool": {}, "histories": {}, "timings": {}, "curves": {}, "conclusions": []}
    results["splits"]["shifts"] = {}
    for row in results["rows"]:
        row["metrics"]["shifts"] = {}
    reader = read(page(results, []))
    assert not {"members", "selection", "shifts", "figures"} & set(reader.ids)
    assert {"results", "calibration", "run"} <= set(reader.ids)


def test_conclusions_are_shown(results):
    assert "<li>The greedy soup won.</li>" in page(results | {"conclusions": ["The greedy soup won."]}, [])


def test_the_same_results_give_the_same_bytes_and_stale_figures_go(reported, write_results):
    results, directory, paths = reported
    again = write_results(results)
    (again / "figures").mkdir()
    (again / "figures" / "mine.png").write_bytes(b"kept")
    assert [path.name for path in report.write_report(again)] == [path.name for path in paths]
    for path in paths:
        assert (again / path.relative_to(directory)).read_bytes() == path.read_bytes()
    results = {**results, "curves": {}}
    write_results(results)
    written = report.write_report(again)
    left = {path.name for path in (again / "figures").iterdir()}
    assert left == {path.name for path in written if path.suffix == ".png"} | {"mine.png"}


def run_script(*arguments):
    command = [sys.executable, str(ROOT / "scripts" / "report.py"), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, encoding="utf-8")


def test_script_makes_the_report_again(results, write_results):
    results = {**results, "curves": {}}
    done = run_script(write_results(results))
    assert done.returncode == 0, done.stderr
    assert "greedy soup" in done.stdout and "report.html" in done.stdout.splitlines()[-3]


@pytest.mark.parametrize("arguments", [(), ("nowhere",)])
def test_script_says_what_is_wrong_without_a_traceback(arguments):
    done = run_script(*arguments)
    assert done.returncode != 0
    assert "results.json" in done.stdout + done.stderr and "Traceback" not in done.stderr
