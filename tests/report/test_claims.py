"""A claim is seen where the interval of its difference over the seeds says so, and nowhere else."""

import csv
import io
import math

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from soups import report
from soups.report.claims import claim_table, claims


def claimed(results, **differences):
    """Return results with claims: a list of differences of seeds by title, with a unit after a bar."""
    entries = []
    for name, values in differences.items():
        title, _, unit = name.partition("|")
        entries += [
            {"seed": seed, "title": title, "value": value} | ({"unit": unit} if unit else {})
            for seed, value in enumerate(values)
        ]
    return report.check(results | {"claims": entries})


def test_the_mean_and_its_interval_are_those_of_scipy(results, rng):
    values = rng.normal(0.012, 0.01, 3)
    (claim,) = claims(claimed(results, **{"A > B": values.tolist()}))
    low, high = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
    assert (claim.found.mean - claim.found.half, claim.found.mean + claim.found.half) == pytest.approx((low, high))
    shown = " ".join(f"{100 * number:+.2f}".replace("-", "−") for number in (values.mean(), low, high)).split()
    assert claim.text == f"{shown[0]} [{shown[1]}, {shown[2]}] points"


@pytest.mark.parametrize("sign", [1, -1])
def test_the_verdict_is_that_of_a_t_test(results, rng, sign):
    """The interval excludes 0 where a two-sided test at 5 % refuses a mean of 0."""
    found = set()
    for shift in (0.0, 0.5, 1.0, 2.0, 4.0, 8.0):
        values = sign * (shift + rng.normal(size=3))
        (claim,) = claims(claimed(results, **{"A > B|correlation": values.tolist()}))
        test = stats.ttest_1samp(values, 0.0)
        expected = "not decided" if test.pvalue > 0.05 else "seen" if test.statistic > 0 else "not seen"
        assert claim.verdict == expected
        found.add(expected)
    assert found == {"not decided", "seen" if sign > 0 else "not seen"}


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.01, 0.01, 0.01], "seen"),
        ([0.0, 0.0, 0.0], "not seen"),
        ([-0.01, -0.01, -0.01], "not seen"),
        ([0.9], "not decided"),
        ([-0.9], "not decided"),
        ([0.0], "not decided"),
        ([0.01, 0.012, None], "not decided"),
    ],
)
def test_the_verdict_without_spread_of_one_seed_and_without_a_number(results, values, verdict):
    (claim,) = claims(claimed(results, **{"A > B": values}))
    assert claim.verdict == verdict and len(claim.found.values) == len(values)
    assert claim.text == ("– points" if None in values else f"{100 * np.mean(values):+.2f} points".replace("-", "−")
                          .replace("+0.00", "0.00"))  # fmt: skip


TOLD = {
    "ratatouille > soup": [0.010, 0.012, 0.014],
    "diversity tells the gain|correlation": [0.4, 0.5, 0.6],
    "soup > ERM": [0.01, -0.02, 0.0],
    "ERM > soup": [-0.03, -0.031, -0.032],
}


def test_a_table_on_the_page_on_the_terminal_and_as_csv(results, write_results, undrawn):
    results = claimed(results, **TOLD)
    half = stats.t.ppf(0.975, 2) * stats.sem([0.4, 0.5, 0.6])
    rows = [[cell.text for cell in row] for row in claim_table(results).rows]
    assert rows[1] == [
        "diversity tells the gain",
        f"+0.500 [+{0.5 - half:.3f}, +{0.5 + half:.3f}] correlation",
        "3",
        "seen",
    ]
    assert [row[3] for row in rows] == ["seen", "seen", "not decided", "not seen"]

    directory = write_results(results)
    assert {directory / "claims.csv", directory / "claims.tex"} <= set(report.write_report(directory))
    page = (directory / "report.html").read_text(encoding="utf-8")
    section = page.partition('id="claims"')[2].partition("</section>")[0]
    assert "ratatouille &gt; soup" in section and section.count("not decided") == 3 and 'class="plus text"' in section
    (row, *_) = csv.DictReader(io.StringIO((directory / "claims.csv").read_text()))
    assert float(row["difference"]) == pytest.approx(0.012)
    expected = stats.t.ppf(0.975, 2) * stats.sem(TOLD["ratatouille > soup"])
    assert float(row["difference, half of the 95 % interval"]) == pytest.approx(expected)

    stream = io.StringIO()
    report.print_table(results, Console(file=stream, width=200))
    printed = stream.getvalue().partition("Claims")[2].splitlines()
    for row in rows:
        assert any(all(text in line for text in row) for line in printed)


def test_a_narrow_terminal_wraps_titles_and_leaves_nothing_out(results):
    title = "the uniform model ratatouille is better than the uniform soup of the same number of members " * 2
    stream = io.StringIO()
    report.print_table(claimed(results, **{title: [0.01, 0.012, 0.011]}), Console(file=stream, width=80))
    printed = stream.getvalue().partition("Claims")[2]
    assert max(map(len, printed.splitlines())) <= 80
    assert set(title.split()) <= set(printed.split()) and "+1.10 [+0.85, +1.35] points" in printed
    assert " seen" in printed


def test_one_sentence_counts_them(results):
    before = report.sentences(report.check(results))
    assert report.sentences(claimed(results, **TOLD)) == [
        *before,
        "Of 4 claims: 2 seen, 1 not seen, 1 not decided.",
    ]
    assert report.sentences(claimed(results, **{"A > B": [0.1]}))[-1] == "Of 1 claim: 1 not decided."


def test_results_without_claims_have_no_table_of_them(results, write_results, undrawn):
    directory = write_results(claimed(results, **TOLD))
    report.write_report(directory)
    write_results({name: found for name, found in results.items() if name != "claims"})
    report.write_report(directory)
    assert not (directory / "claims.csv").exists() and not (directory / "claims.tex").exists()
    assert 'id="claims"' not in (directory / "report.html").read_text(encoding="utf-8")
    assert claim_table(report.check(results)) is None


CLAIM = {"seed": 0, "title": "A > B", "value": 0.1}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([CLAIM | {"seed": 9}], r"seed 9 is not in seeds in 1 place: the claim 'A > B'"),
        ([CLAIM, CLAIM], r"the same claim appears twice in 1 place: the claim 'A > B' \(seed 0\)"),
        ([CLAIM, CLAIM | {"seed": 1, "unit": "correlation"}], r"unit must be the same in all seeds"),
        ([CLAIM | {"value": "much"}], r"must be a number or null, not str in 1 place: claims\[0\]\.value"),
        ([CLAIM | {"value": math.inf}], "must be a number or null, not inf"),
        ([{"seed": 0, "value": 0.1}], r"title is missing in 1 place: claims\[0\]"),
        ({"A > B": 0.1}, r"must be a list, not dict in 1 place: claims"),
    ],
)
def test_what_is_wrong_in_claims_is_named(results, entries, message):
    with pytest.raises(ValueError, match=message):
        report.check(results | {"claims": entries})
