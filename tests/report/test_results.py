"""Results are read completely, or refused with everything that is wrong in them."""

import copy
import json
import math
import re
import textwrap

import pytest

import soups
from soups import report
from soups.report import results as files


def change(results, place, value):
    """Set what lies at a place of nested objects and lists, or delete it."""
    *path, last = place
    for key in path:
        results = results[key]
    if value is KeyError:
        del results[last]
    else:
        results[last] = value


def test_reads_a_directory_and_a_file_alike(results, write_results):
    directory = write_results(results)
    found = report.load_results(directory)
    assert found == report.load_results(directory / "results.json")
    assert {name: found[name] for name in results} == json.loads(json.dumps(results))


def test_optional_sections_may_be_missing(results, write_results):
    for name in ("members", "curves", "pairs", "histories", "timings"):
        del results[name]
    loaded = report.load_results(write_results(results))
    assert loaded["curves"] == [] and loaded["members"] == {} and loaded["reference"] == "best member"


def test_every_missing_key_is_listed_once_with_its_places(results, write_results):
    results["version"] = results.pop("versions")
    del results["splits"]["held_out"]["role"]
    for row in results["rows"][:6]:
        del row["kind"]
    with pytest.raises(ValueError) as error:
        report.load_results(write_results(results))
    message = str(error.value)
    assert "versions is missing (did you misspell it as 'version'?)" in message
    assert "role is missing in 1 place: splits.held_out" in message
    assert "kind is missing in 6 places: 'member_000' (seed 0), " in message and "and 2 more" in message
    assert message.count("\n") == 3


@pytest.mark.parametrize("split", ["test", "blur/2"])
def test_every_row_has_the_main_metric_on_every_split(results, split):
    for row in results["rows"]:
        row["metrics"].get(split, {}).pop("accuracy", None)
    number = sum(row["group"] != "curve" for row in results["rows"])
    with pytest.raises(ValueError, match=rf"metrics.{split}.accuracy is missing in {number} place"):
        report.check(results)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("rows", 0, "group"), "mian", "group 'mian' is not one of main, member, curve"),
        (("rows", 1, "seed"), 7, "seed 7 is not in seeds"),
        (("rows", 1, "metrics", "tset"), {}, "metrics.tset: there is no such split"),
        (("rows", 1, "metrics", "test", "fid"), 0.5, "'fid' is unknown: say there whether higher or lower is better"),
        (("rows", 1, "metrics", "test", "nll"), "low", "must be a number or null, not str"),
        (("rows", 1, "metrics", "test", "nll"), True, "must be a number or null, not True"),
        (("rows", 1, "metrics", "test", "nll"), math.inf, "must be a number or null, not inf"),
        (("rows", 1, "metrics", "test", "nll"), 1e300, r"must be a number or null, not 1e\+300"),
        (("rows", 1, "ingredients", "member_001"), None, "must be a number, not null"),
        (("rows", 1, "wins"), {"test": [1]}, "wins must be pairs of integers"),
        (("rows", 1, "of"), {"models": "many"}, r"of\.models must be a number"),
        (("rows", 1, "of"), {"network": [1]}, "must be a text or a number, not list"),
        (("rows", 1), [], r"must be an object, not list in 1 place: rows\[1\]"),
        (("rows",), {"a": 1}, r"must be a list, not dict in 1 place: rows"),
        (("seeds",), "<script>", r"must be a list, not str in 1 place: seeds"),
        (("seeds",), ["<script>"], r"must be an integer, not str in 1 place: seeds\[0\]"),
        (("seeds",), [], "there must be at least one"),
        (("splits",), [], "must be an object, not list"),
        (("splits", "test", "role"), "tset", "role 'tset' is not one of test, shift, held_out, train"),
        (("splits", "test", "role"), "shift", 'no split has the role "test"'),
        (
            ("splits", "shift_mean", "mean_of"),
            ["shift_mean"],
            "'shift_mean', which is not a split, or is itself a mean",
        ),
        (("metrics",), {"mse": {"title": "MSE", "better": "less"}}, 'must be "higher" or "lower", not \'less\''),
        (("metric",), "fid", "'fid' is unknown"),
        (("experiment",), None, "must be a text, not null"),
        (("members", "0", 3), {"name": 1}, "must be a text, not 1"),
        (("histories", "0"), [], "must be an object, not list"),
        (("curves", 0, "seed"), 9, "seed 9 is not in seeds"),
        (("curves", 0, "values"), [[0.1]], "values must be 23 lists of 25 numbers"),
        (("curves", 0, "points", "start"), [0.0], "points must be pairs of numbers"),
        (("curves", 0, "x", 1), -9.0, "x and y must be ascending numbers"),
        (("curves", 1, "bins"), KeyError, "bins is missing"),
        (("pairs", 0, "path"), {"test": {"nll": [0.1]}}, "path must have a value for each of lambdas"),
        (("pairs", 0, "seed"), 9, "seed 9 is not in seeds"),
        (("pairs", 0, "values", "angle"), "wide", "must be a number or null, not str"),
    ],
)
def test_what_contradicts_the_schema_is_named(results, place, value, message):
    change(results, place, value)
    with pytest.raises(ValueError, match=message):
        report.check(results)


def test_pairs_share_their_places(results):
    for pair, lambdas in zip(results["pairs"], ([0.0, 1.0], [0.0, 0.5, 1.0]), strict=False):
        pair["lambdas"] = lambdas
    with pytest.raises(ValueError, match="lambdas must be the same in all"):
        report.check(results)


def test_the_same_row_twice(results):
    worst = next(row for row in results["rows"] if row["name"] == "worst member")
    results["rows"].append(copy.deepcopy(worst))
    with pytest.raises(ValueError, match=r"the same row appears twice in 1 place: 'worst member' \(seed 0\)"):
        report.check(results)
    results["rows"][-1]["of"] = {"network": "another"}
    report.check(results)


@pytest.mark.parametrize("name", ["results", "tasks", "rebasin", "imagenet"])
def test_results_of_an_earlier_version_are_refused_with_what_to_do(results, write_results, name):
    results["schema"] = f"soups.{name}/1"
    path = write_results(results) / "results.json"
    for content in (path.read_text(), json.dumps(results, indent=1)):  # with a checksum, and from before there was one
        path.write_text(content)
        with pytest.raises(ValueError, match=rf"schema 'soups.{name}/1'.*reads 'soups.results/2'; .*another workdir"):
            report.load_results(path)


def test_the_least_that_is_documented_gets_a_report(tmp_path):
    example = textwrap.dedent(re.search(r"(?:\n    .+)+\n", files.__doc__)[0])
    exec(example, vars(files) | {"soups": soups, "workdir": tmp_path, "write_report": report.write_report})
    text = (tmp_path / "report.html").read_text(encoding="utf-8").replace("\u00a0", " ")
    seen = "On test (best member: 90.00 %), in points: uniform soup +1.00; higher is better, and no interval is known."
    assert seen in text
    assert [path.name for path in sorted((tmp_path / "figures").iterdir())] == ["overview.png", "overview.svg"]


def test_another_schema(results):
    with pytest.raises(ValueError, match=r"has schema '\[1\]', but this version of soups reads 'soups.results/2'$"):
        report.check(results | {"schema": [1]})


def test_damaged_and_no_file(results, write_results, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no results file at .*run the study first"):
        report.load_results(tmp_path)
    path = write_results(results) / "results.json"
    content = path.read_bytes()
    for place in range(0, len(content), len(content) // 20):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ValueError, match=rf"{path} does not have the bytes that were written"):
            report.load_results(tmp_path)
    with pytest.raises(ValueError, match="results must hold a JSON object, not a list"):
        report.check([])


def test_null_is_not_a_number(results):
    row = results["rows"][0]
    row["metrics"]["test"]["accuracy"] = None
    assert math.isnan(files.value(row, "test", "accuracy"))
    assert math.isnan(files.value(row, "nowhere", "accuracy"))
    assert files.value(row, "rotation/2", "nll") == row["metrics"]["rotation/2"]["nll"]


def test_a_role_is_represented_by_the_mean_over_its_splits(results):
    assert files.summary_splits(results) == {"test": "test", "shift": "shift_mean", "held_out": "held_out"}
    del results["splits"]["shift_mean"]
    assert files.summary_splits(results)["shift"] == "rotation/2"
