"""The page stands alone, escapes what it shows, and is the same every time."""

import base64
import html
import html.parser
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from soups import report
from soups.report import figures
from soups.report import page as page_module
from soups.report import results as files
from soups.report.page import page
from soups.report.words import sentences

ROOT = pathlib.Path(__file__).parents[2]
VOID = {"meta", "link", "img", "br"}
BROWSERS = ("chromium", "chromium-headless-shell", "google-chrome")


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


def test_page_holds_every_figure_and_the_table(reported):
    results, directory, paths = reported
    text = (directory / "report.html").read_text(encoding="utf-8")
    reader = read(text)
    embedded = {reference.partition(",")[0]: [] for reference in reader.references}
    for reference in reader.references:
        kind, _, content = reference.partition(",")
        embedded[kind].append(base64.b64decode(content) if content else b"")
    svgs = [path.read_bytes() for path in paths if path.suffix == ".svg"]
    assert embedded["data:image/svg+xml;base64"] == svgs and len(svgs) == 11
    assert embedded["data:text/csv;base64"] == [(directory / "table.csv").read_bytes()]
    assert embedded["data:text/x-tex;base64"] == [(directory / "table.tex").read_bytes()]
    # it opens with one figure and three sentences
    opening = text[text.index("<main>") : text.index("<section>")]
    assert opening.count("<figure") == 1 and 'id="figure-overview"' in opening
    for sentence in sentences(report.check(results)):
        assert html.escape(sentence).replace(" %", "\u00a0%") in opening


def half(values):
    """Return half of the 95 % interval of the mean of three seeds."""
    return stats.t.ppf(0.975, 2) * stats.sem(values)


def tables_of(directory):
    return read((directory / "report.html").read_text(encoding="utf-8")).tables


def test_numbers_of_the_main_table(reported):
    results, directory, _ = reported
    heads, *rows = tables_of(directory)[0]
    cells = {row[0]: dict(zip(heads, row, strict=True)) for row in rows}
    for name in ("linear probe", "greedy soup", "logit ensemble"):
        metrics = [r["metrics"]["test"] for r in results["rows"] if r["name"] == name and r["group"] == "main"]
        accuracy, nll = (np.array([m[key] for m in metrics]) for key in ("accuracy", "nll"))
        assert cells[name]["test %"] == f"{100 * accuracy.mean():.2f} ±{100 * half(accuracy):.2f}"
        assert cells[name]["NLL"] == f"{nll.mean():.3f} ±{half(nll):.3f}"
    assert cells["logit ensemble"]["passes"] == "23"
    assert re.fullmatch(r"\+0\.\d\d \[.0\.\d\d, \+\d\.\d\d\]", cells["greedy soup"]["test gain"])
    assert len(rows) == len({r["name"] for r in results["rows"] if r["group"] == "main"})


def test_tables_of_every_shift_and_every_class(reported):
    results, directory, _ = reported
    shifts, classes = tables_of(directory)[1:3]
    assert shifts[0] == ["name", *(f"{name} %" for name in results["splits"]["shift_mean"]["mean_of"]), "shift mean %"]
    values = [r["metrics"]["blur/4"]["accuracy"] for r in results["rows"] if r["name"] == "SWA"]
    row = next(row for row in shifts if row[0] == "SWA")
    assert row[shifts[0].index("blur/4 %")] == f"{100 * np.mean(values):.2f} ±{100 * half(values):.2f}"
    values = [r["classes"]["test"]["3"] for r in results["rows"] if r["name"] == "SWA"]
    row = next(row for row in classes if row[0] == "SWA")
    assert row[classes[0].index("3")] == f"{100 * np.mean(values):.1f} ±{100 * half(values):.1f}"


def test_members_have_as_many_digits_as_rows(results):
    results["metric"] = "nll"  # which is no percentage
    seed = str(results["seeds"][0])
    values = {
        row["name"]: row["metrics"]["test"]["nll"]
        for row in results["rows"]
        if row["group"] == "member" and str(row["seed"]) == seed
    }
    tables = read(page(report.check(results), [])).tables
    heads, *rows = next(table for table in tables if "in greedy soup" in table[0])
    shown = {row[0]: row[heads.index("test")] for row in rows if row[0] in values}
    assert shown == {name: f"{values[name]:.3f}" for name in shown} and len(shown) > 20


EVIL = '<script>alert("1")</script>'


def spoiled(found):
    """Replace every text in results by a script, in names too, and keep what the schema fixes."""
    fixed = {"main", "member", "curve", "test", "shift", "held_out", "plane", "reliability", "accuracy", "higher"}
    if isinstance(found, dict):
        names = {"metrics", "rows", "seed", "splits", *files._SHAPE, *files._ROW, *files._MEMBER, *files._PAIR, *fixed}
        names |= {key.removesuffix("?") for key in names} | {"x", "y", "bins", "points", "confidence", "count", "role"}
        names |= {"mean_of", "examples", "angle", "barrier", "0", "1", "2", "nll", "brier", "ece", "ece_equal_width"}
        return {key if key in names else key + EVIL: spoiled(value) for key, value in found.items()}
    if isinstance(found, list):
        return [spoiled(value) for value in found]
    return found + EVIL if isinstance(found, str) and found not in fixed else found


def test_every_text_of_a_file_is_escaped(results):
    results = spoiled(report.check(results)) | {
        "schema": results["schema"],
        "notes": [EVIL],
        "facts": {EVIL: {EVIL: EVIL}},
    }
    results["reference"] = "best member" + EVIL
    text = page(report.check(results), [])
    assert "<script>alert" not in text and text.count("<script>") == 1
    assert text.count("&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;") > 500
    read(text)


def test_sections_without_data_are_left_out(results):
    results |= {"members": {}, "histories": {}, "timings": {}, "curves": [], "pairs": []}
    results["splits"] = {name: results["splits"][name] for name in ("held_out", "test")}
    results["rows"] = [row for row in results["rows"] if row["group"] == "main"]
    for row in results["rows"]:
        row["metrics"] = {name: row["metrics"][name] for name in results["splits"]}
        row.pop("classes")
    reader = read(page(report.check(results), []))
    assert {"results", "run"} == set(reader.ids)


def test_notes_are_shown(results):
    assert "The greedy soup won." in page(report.check(results | {"notes": ["The greedy soup won."]}), [])


def test_a_configuration_that_is_nested_deeply(results):
    config = {}
    for _ in range(200):
        config = {"a": config}
    assert "a.a.a" in page(report.check(results | {"config": config}), [])


def test_the_same_results_give_the_same_bytes_and_stale_figures_go(reported, write_results, monkeypatch):
    results, directory, _ = reported
    monkeypatch.setattr(page_module, "PLANS", dict.fromkeys(["loss_plane", "reliability", "wise_ft"]))
    monkeypatch.setattr(figures, "PLANS", {name: figures.PLANS[name] for name in ("overview", "loss_plane", "wise_ft")})
    again = write_results(results)
    (again / "figures").mkdir()
    for name in ("mine.png", "reliability.png", "reliability.svg"):
        (again / "figures" / name).write_bytes(b"kept")
    written = report.write_report(again)
    assert len(written) == 1 + 2 * 3 + 2
    for path in written[1:]:
        assert path.read_bytes() == (directory / path.relative_to(again)).read_bytes()
    left = {path.name for path in (again / "figures").iterdir()}
    assert left == {path.name for path in written if path.parent.name == "figures"} | {"mine.png"}


def run_script(*arguments):
    command = [sys.executable, str(ROOT / "scripts" / "report.py"), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, encoding="utf-8")


def test_script_makes_the_report_again(results, write_results):
    rows = [row for row in results["rows"] if row["group"] == "main"][:8]
    splits = {name: results["splits"][name] for name in ("held_out", "test")}
    for row in rows:
        row["metrics"] = {name: row["metrics"][name] for name in splits}
    results |= {"rows": rows, "splits": splits, "members": {}, "curves": [], "pairs": []}
    done = run_script(write_results(results))
    assert done.returncode == 0, done.stderr
    assert "greedy soup" in done.stdout and "report.html" in done.stdout


@pytest.mark.parametrize(("arguments", "message"), [((), "missing: DIR"), (("x",), "no results file at x")])
def test_script_says_what_is_wrong_in_one_line(arguments, message):
    done = run_script(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("report.py: ") and message in done.stderr and done.stderr.count("\n") == 1


PROBE = """
const table = document.querySelector("table.sortable"), say = (text) => { document.title += "|" + text; };
const column = [...table.tHead.rows[0].cells].findIndex((cell) => cell.innerText.startsWith("test %"));
const values = () => [...table.tBodies[0].rows].map((row) => parseFloat(row.cells[column].dataset.v));
const click = () => table.tHead.rows[0].cells[column].querySelector("button").click();
const sorted = (sign) => values().every((value, i, all) => !i || sign * (all[i - 1] - value) >= 0);
click(); say("down " + sorted(1));
click(); say("up " + sorted(-1));
say("figures " + [...document.images].every((image) => image.complete && image.naturalWidth > 300));
say("hover " + table.querySelectorAll("td[title]").length);
HTMLAnchorElement.prototype.click = function () { say(this.download + " " + this.href.slice(0, 22)); };
document.querySelectorAll("#figure-overview button").forEach((button) => button.click());
"""


def test_the_page_works_in_a_browser(reported, tmp_path):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    _, directory, _ = reported
    text = (directory / "report.html").read_text(encoding="utf-8")
    watch = "<script>document.title = ''; onerror = (message) => { document.title += '|error ' + message; };</script>"
    probe = f"<script>addEventListener('load', () => {{ {PROBE} }});</script></body>"
    (tmp_path / "report.html").write_text(text.replace("</head>", f"{watch}</head>").replace("</body>", probe))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000", "--dump-dom"]
    options += ["--proxy-server=127.0.0.1:9", f"--user-data-dir={tmp_path}/profile"]  # no way out to any server
    command = [browser, *options, f"file://{tmp_path}/report.html"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, encoding="utf-8")
    title = re.search("<title>(.*?)</title>", done.stdout).group(1)
    said = title.split("|")[1:]
    assert said[:3] == ["down true", "up true", "figures true"], done.stderr
    assert int(said[3].removeprefix("hover ")) > 100
    assert said[4:] == ["overview.svg data:image/svg+xml;bas", "overview.png data:image/png;base64,"]
