"""The numbers of the tables are those of NumPy, and they are written as they should be."""

import io
import math

import numpy as np
import pytest
from rich.console import Console

from soups import report
from soups.report import summary, tables


def accuracies(results, name, split):
    """Give one accuracy for each seed, straight from the rows."""
    found = [row["metrics"] for row in results["rows"] if row["name"] == name and row["group"] == "main"]
    return np.array([(m["shifts"].get(split) or m.get(split))["accuracy"] for m in found])


def row_of(results, name):
    return next(row for row in report.rows_table(results) if row["name"] == name)


def test_mean_and_sample_deviation_over_seeds(results):
    row = row_of(results, "learned soup")
    for split in ("held_out", "test", "shift_mean"):
        expected = accuracies(results, "learned soup", split)
        assert row[split]["accuracy"] == pytest.approx((expected.mean(), expected.std(ddof=1)), rel=1e-12)
    expected = accuracies(results, "learned soup", "noise/4")
    assert row["shifts"]["noise/4"]["accuracy"] == pytest.approx((expected.mean(), expected.std(ddof=1)), rel=1e-12)
    assert row["cost"]["selection"] == (80_000, 0)


def test_gain_is_paired_by_seed(results):
    difference = 100 * (accuracies(results, "greedy soup", "blur/2") - accuracies(results, "best member", "blur/2"))
    gain = row_of(results, "greedy soup")["gain"]["blur/2"]
    assert gain == pytest.approx((difference.mean(), difference.std(ddof=1)), rel=1e-9)
    # the spread of unpaired differences would be another one
    unpaired = 100 * math.hypot(*(accuracies(results, n, "blur/2").std(ddof=1) for n in ("greedy soup", "best member")))
    assert abs(gain.deviation - unpaired) > 1e-3


def test_order_and_names_are_those_of_the_file(results):
    names = list(dict.fromkeys(row["name"] for row in results["rows"] if row["group"] == "main"))
    assert [row["name"] for row in report.rows_table(results)] == names


def test_one_seed_has_no_deviation(results):
    results["rows"] = [row for row in results["rows"] if row["seed"] == 0]
    results["seeds"] = [0]
    found = row_of(results, "EMA")["test"]["accuracy"]
    assert math.isnan(found.deviation)
    assert "±" not in tables.format_percent(found)


def test_a_row_that_some_seeds_lack_says_so(results):
    results["rows"] = [row for row in results["rows"] if row["name"] != "SWA" or row["seed"] != 2]
    row = row_of(results, "SWA")
    assert row["seeds"] == [0, 1]
    assert tables.row_label(row, results) == "SWA (2 of 3 seeds)"


def test_best_in_each_direction_and_ties(results):
    rows = report.rows_table(results)
    means = {row["name"]: row["test"]["nll"].mean for row in rows}
    assert tables.best_of(rows, "test", "nll")["name"] == min(means, key=means.get)
    twins = [{**rows[0], "name": name} for name in ("a", "b")]
    assert [row["name"] for row in tables.all_best(twins, "test")] == ["a", "b"]


@pytest.mark.parametrize(
    ("spread", "scale", "digits", "sign", "text"),
    [
        ((0.97123, 0.0011), 100, 2, "", "97.12 ±0.11"),
        ((0.5, math.nan), 100, 1, "", "50.0"),
        ((-1.234, 0.5), 1, 2, "+", "−1.23 ±0.50"),
        ((0.001, math.nan), 1, 2, "+", "0.00"),
        ((-0.001, math.nan), 1, 2, "+", "0.00"),
        ((math.nan, math.nan), 1, 2, "", "–"),
        ((12345.0, math.nan), 1, 0, "", "12,345"),
    ],
)
def test_numbers_for_people(spread, scale, digits, sign, text):
    assert tables.format_spread(tables.Spread(*spread), scale, digits, sign) == text


def test_counts_for_people():
    assert tables.format_count(tables.Spread(7.0, 0.0)) == "7"
    assert tables.format_count(tables.Spread(6.5, 0.7)) == "6.5 ±0.7"


def printed(results, **options):
    stream = io.StringIO()
    report.print_table(results, Console(file=stream, **options))
    return stream.getvalue()


def test_terminal_table_holds_every_row_and_number(results):
    text = printed(results)
    test = accuracies(results, "uniform soup", "test")
    line = next(line for line in text.splitlines() if "uniform soup" in line and "SAM" not in line)
    assert f"{100 * test.mean():.2f} ±{100 * test.std(ddof=1):.2f}" in line
    assert all(row["name"] in text for row in results["rows"] if row["group"] == "main")
    assert "training" in text and "too narrow" not in text


def test_narrow_terminal_names_the_columns_it_leaves_out(results):
    text = printed(results, width=80, force_terminal=True, color_system=None)
    assert max(map(len, text.splitlines())) <= 80
    assert "too narrow for" in " ".join(text.split()) and "greedy soup, random order 3" in text and "…" not in text


def test_table_without_members_has_no_gain(results):
    keep = ("uniform soup", "linear probe")
    results["rows"] = [row for row in results["rows"] if row["name"] in keep]
    assert row_of(results, "uniform soup")["gain"] == {}
    assert "gain  " not in printed(results)


# --- Summary ----------------------------------------------------------------------------------------------------------


def test_summary_names_the_best_and_its_gain(results):
    text = " ".join(summary.summary(results | {"conclusions": []}))
    rows = [row for row in report.rows_table(results) if row["kind"] == "soup"]
    best = max(rows, key=lambda row: row["shift_mean"]["accuracy"].mean)
    assert f"{best['name']} with {tables.format_percent(best['shift_mean']['accuracy'])} %" in text
    assert "All 8 soups are above the best member" in text
    assert "standard deviation over 3 seeds" in text


def test_summary_is_honest_where_soups_do_not_help(results):
    for row in results["rows"]:
        if row["kind"] == "soup":
            row["metrics"]["test"]["accuracy"] -= 0.02
        if row["name"] == "uniform soup":
            row["metrics"]["shift_mean"]["accuracy"] -= 0.1
        if row["kind"] == "soup":
            row["metrics"]["shifts"]["optdigits"]["accuracy"] -= 0.2
    text = " ".join(summary.summary(results))
    assert "Soups did not help on the test set: none of the 8 is above the best member." in text
    assert "Not every soup helped on the mean of the shifts; not above the best member: uniform soup (−" in text
    assert "on 12 of 13; it is not on optdigits (−" in text


def test_summary_says_when_a_gain_is_within_the_spread(results):
    level = iter((0.004, -0.002, 0.0))
    for row in results["rows"]:
        if row["name"] == "best member":
            best = row["metrics"]["test"]["accuracy"]
        if row["kind"] == "soup":
            row["metrics"]["test"]["accuracy"] = best - 0.05
        if row["name"] == "greedy soup":
            row["metrics"]["test"]["accuracy"] = best + next(level)
    assert "less than the spread over seeds" in " ".join(summary.summary(results))


def test_summary_of_one_seed_says_that_the_spread_is_unknown(results):
    results["rows"] = [row for row in results["rows"] if row["seed"] == 0]
    results["seeds"] = [0]
    assert "with one seed the spread over runs is not known" in summary.summary(results)[-1]
