"""Results files are read completely or refused with everything that is wrong in them."""

import math

import pytest

from soups import report
from soups.report import results as files


def test_reads_a_directory_and_a_file_alike(results, write_results):
    directory = write_results(results)
    assert (
        report.load_results(directory)
        == report.load_results(directory / "results.json")
        == results | {"conclusions": []}
    )


def test_optional_sections_may_be_missing(results, write_results):
    for name in ("pool", "curves", "histories", "timings"):
        del results[name]
    loaded = report.load_results(write_results(results))
    assert loaded["curves"] == {} and loaded["conclusions"] == []


def test_every_missing_key_is_listed(results, write_results):
    results["version"] = results.pop("versions")
    del results["splits"]["held_out"]
    greedy = next(row for row in results["rows"] if row["name"] == "greedy soup")
    del greedy["metrics"]["test"]["nll"]
    for row in results["rows"]:
        del row["metrics"]["shifts"]["blur/2"]
    with pytest.raises(ValueError) as error:
        report.load_results(write_results(results))
    message = str(error.value)
    assert "versions is missing (did you misspell it as 'version'?)" in message
    assert "splits.held_out is missing" in message
    assert "metrics.test.nll is missing in 1 row(s): 'greedy soup' (seed 0)" in message
    assert f"metrics.shifts.blur/2 is missing in {len(results['rows'])} row(s)" in message
    assert message.count("\n") == 4


def test_contradictions_are_listed(results, write_results):
    results["rows"].append(dict(results["rows"][-1]))
    results["rows"][0]["group"] = "mian"
    results["rows"][1]["seed"] = 7
    with pytest.raises(ValueError, match=r"(?s)group 'mian' is none of.*seed 7 is not in.*appear twice: 'distilled"):
        report.load_results(write_results(results))


def test_another_version_of_the_schema(results, write_results):
    results["schema"] = "soups.results/2"
    with pytest.raises(
        ValueError, match=r"schema 'soups.results/2', but this version of soups reads 'soups.results/1'"
    ):
        report.load_results(write_results(results))


def test_sections_of_another_type(results, write_results):
    results["rows"] = {"a": 1}
    results["splits"] = []
    with pytest.raises(ValueError, match=r"(?s)splits must be an object, not list.*rows must be a list, not dict"):
        report.load_results(write_results(results))


def test_damaged_and_no_file(results, write_results, tmp_path):
    with pytest.raises(FileNotFoundError, match="no results file"):
        report.load_results(tmp_path)
    path = write_results(results) / "results.json"
    content = path.read_bytes()
    for place in range(0, len(content), len(content) // 20):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ValueError, match=rf"{path} does not have the bytes that were written"):
            report.load_results(tmp_path)


def test_null_is_not_a_number(results):
    row = results["rows"][0]
    row["metrics"]["test"]["accuracy"] = None
    assert math.isnan(files.value(row, "test"))
    assert files.value(row, "rotation/2", "nll") == row["metrics"]["shifts"]["rotation/2"]["nll"]


def test_best_member_without_its_row_is_the_highest_on_held_out(results):
    results["rows"] = [row for row in results["rows"] if row["name"] != "best member"]
    members = [row for row in results["rows"] if row["seed"] == 1 and row["group"] == "member"]
    highest = max(row["metrics"]["held_out"]["accuracy"] for row in members)
    assert files.best_member(results, 1)["metrics"]["held_out"]["accuracy"] == highest
