"""The numbers of the tables are those of NumPy, and they are written as they should be."""

import csv
import io
import math
import sys

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from soups import report
from soups.report import tables, words


@pytest.fixture
def results(results):
    return report.check(results)


def accuracies(results, name, split):
    """Return one accuracy for each seed, straight from the rows."""
    found = [row["metrics"] for row in results["rows"] if row["name"] == name and row["group"] == "main"]
    return np.array([metrics[split]["accuracy"] for metrics in found])


def row_of(results, name):
    return tables.row_named(report.rows_table(results), name)


def one_seed(results):
    return results | {"seeds": [0], "rows": [row for row in results["rows"] if row["seed"] == 0]}


def test_mean_and_sample_deviation_over_seeds(results):
    row = row_of(results, "learned soup")
    for split in ("held_out", "test", "shift_mean", "noise/4"):
        expected = accuracies(results, "learned soup", split)
        found = row.metrics[split]["accuracy"]
        assert found[:2] == pytest.approx((expected.mean(), expected.std(ddof=1)), rel=1e-12)
        assert found.values == tuple(expected)
    assert row.cost["selection"][:2] == (80_000, 0)
    assert row.classes["test"]["7"].mean == pytest.approx(
        np.mean([r["classes"]["test"]["7"] for r in results["rows"] if r["name"] == "learned soup"])
    )


def test_gain_is_paired_by_seed_with_the_interval_of_student(results):
    difference = accuracies(results, "greedy soup", "blur/2") - accuracies(results, "best member", "blur/2")
    gain = row_of(results, "greedy soup").gain["blur/2"]
    assert gain[:2] == pytest.approx((difference.mean(), difference.std(ddof=1)), rel=1e-9)
    low, high = stats.t.interval(0.95, 2, difference.mean(), stats.sem(difference))
    assert (gain.mean - gain.half, gain.mean + gain.half) == pytest.approx((low, high))
    # the spread of unpaired differences would be another one
    unpaired = math.hypot(*(accuracies(results, n, "blur/2").std(ddof=1) for n in ("greedy soup", "best member")))
    assert abs(gain.deviation - unpaired) > 1e-5


def test_with_one_seed_the_interval_comes_from_the_examples_that_differ(results):
    results = one_seed(results)
    gain = row_of(results, "greedy soup").gain["test"]
    won, lost = next(row["wins"]["test"] for row in results["rows"] if row["name"] == "greedy soup")
    differences = np.array([1] * won + [-1] * lost + [0] * (1000 - won - lost))
    assert gain.half == pytest.approx(1.96 * differences.std() / math.sqrt(1000))
    assert math.isnan(row_of(results, "greedy soup").gain["shift_mean"].half)  # nobody counted those
    assert math.isnan(gain.deviation)
    # of a mean over sets that may share their examples: as if they had all been drawn together
    counted = {split: [30 + place, 10] for place, split in enumerate(results["splits"]["shift_mean"]["mean_of"])}
    for row in results["rows"]:
        row["wins"] = counted
    differences = (np.repeat([1, -1, 0], [won, lost, 500 - won - lost]) for won, lost in counted.values())
    halves = [1.96 * found.std() / math.sqrt(500) for found in differences]
    assert row_of(results, "greedy soup").gain["shift_mean"].half == pytest.approx(np.mean(halves))


def test_gain_is_against_the_reference_of_the_same_place(results):
    rows = [row for row in results["rows"] if row["name"] in ("best member", "uniform soup") and row["group"] == "main"]
    other = [row | {"of": {"network": "b"}, "metrics": row["metrics"]} for row in rows]
    for row in other:
        if row["name"] == "best member":
            row["metrics"] = {split: {"accuracy": 0.25} for split in row["metrics"]}
    found = report.rows_table(results | {"rows": rows + other})
    assert [dict(row.of) for row in found] == [{}, {}, {"network": "b"}, {"network": "b"}]
    assert found[3].gain["test"].mean == pytest.approx(found[3].metrics["test"]["accuracy"].mean - 0.25)


def test_order_and_names_are_those_of_the_file(results):
    names = list(dict.fromkeys(row["name"] for row in results["rows"] if row["group"] == "main"))
    assert [row.name for row in report.rows_table(results)] == names


def test_one_seed_has_no_deviation(results):
    found = row_of(one_seed(results), "EMA").metrics["test"]["accuracy"]
    assert math.isnan(found.deviation) and math.isnan(found.half)
    assert "±" not in tables.format_spread(found)


def test_a_row_that_some_seeds_lack_says_so(results):
    results["rows"] = [row for row in results["rows"] if row["name"] != "SWA" or row["seed"] != 2]
    row = row_of(results, "SWA")
    assert row.seeds == (0, 1)
    assert tables.name_cell(results, row).text == "SWA (2 of 3 seeds)"


def test_best_in_each_direction_and_ties(results):
    rows = report.rows_table(results)
    means = {row.name: row.metrics["test"]["nll"].mean for row in rows}
    assert tables.best_of(results, rows, "test", "nll")[0].name == min(means, key=means.get)
    assert tables.best_of(results, [rows[0], rows[0]], "test") == [rows[0], rows[0]]
    own = results | {"metrics": {"accuracy": {"title": "error", "better": "lower"}}}
    assert tables.best_of(own, rows, "test")[0].name == "start weights"


@pytest.mark.parametrize(
    ("spread", "scale", "digits", "sign", "text"),
    [
        ((0.97123, 0.0011, (0.97,), 0.0011 / 1.96), 100, 2, "", "97.12 ±0.11"),
        ((0.5, math.nan), 100, 1, "", "50.0"),
        ((-1.234, 0.7, (), 0.5 / 1.96), 1, 2, "+", "−1.23 ±0.50"),
        ((-1.234, 0.7), 1, 2, "+", "−1.23"),
        ((0.001, math.nan), 1, 2, "+", "0.00"),
        ((-0.001, math.nan), 1, 2, "+", "0.00"),
        ((math.nan, math.nan), 1, 2, "", "–"),
        ((12345.0, math.nan), 1, 0, "", "12,345"),
    ],
)
def test_numbers_for_people(spread, scale, digits, sign, text):
    assert tables.format_spread(tables.Spread(*spread), scale, digits, sign) == text


def test_counts_sizes_and_gains_for_people():
    assert tables.format_count(tables.Spread(7.0, 0.0)) == "7"
    assert tables.format_count(tables.spread([6.0, 7.0])) == "6.5 ±6.4"  # 12.706 of one degree of freedom, times 1/2
    assert [tables.format_bytes(tables.Spread(n, 0.0)) for n in (12, 4_500, 86_600_000)] == [
        "12 B",
        "4.5 kB",
        "86.6 MB",
    ]
    accuracy = report.results.METRICS["accuracy"]
    half = 4.303 * 0.002 / math.sqrt(3)  # Student's t of two degrees of freedom
    text = tables.format_gain(tables.spread([0.004, 0.006, 0.008]), accuracy)
    assert text == f"+0.60 [+{100 * (0.006 - half):.2f}, +{100 * (0.006 + half):.2f}]"
    assert tables.format_gain(tables.Spread(-0.004, math.nan), accuracy) == "−0.40"


# --- The table in all its forms ---------------------------------------------------------------------------------------


def printed(results, names=(), **options):
    stream = io.StringIO()
    report.print_table(results, Console(file=stream, **options), names)
    return stream.getvalue()


def test_terminal_table_holds_every_row_and_number(results):
    text = printed(results, width=300)
    test = accuracies(results, "uniform soup", "test")
    line = next(line for line in text.splitlines() if "uniform soup" in line and "SAM" not in line)
    assert f"{100 * test.mean():.2f} ±{100 * stats.t.ppf(0.975, 2) * stats.sem(test):.2f}" in line
    assert all(row["name"] in text for row in results["rows"] if row["group"] == "main")
    assert "training" in text and "Too narrow" not in text
    assert "[red]" in printed(results | {"notes": ["[red]"]})  # no markup of the console


def test_a_short_table_holds_the_rows_that_are_named_and_what_matters(results):
    text = printed(results, width=300, names=["greedy soup", "best member", "no such row"])
    assert [line.split()[0] for line in text.splitlines() if " soup" in line[:12] or "member" in line[:12]] == [
        "best",
        "greedy",
    ]
    assert (
        "shift mean gain" in text
        and "passes" in text
        and not any(head in text for head in ("held-out", "NLL", "train"))
    )
    assert "uniform soup" in printed(results, width=300, names=["no such row"])


def test_narrow_terminal_names_the_columns_it_leaves_out(results):
    text = printed(results, width=80, force_terminal=True, color_system=None)
    assert max(map(len, text.splitlines())) <= 80
    assert "Too narrow for" in " ".join(text.split()) and "greedy soup, random order 3" in text and "…" not in text


def test_what_is_no_terminal_has_every_row_in_one_line(results, monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    report.print_table(results)
    text = capsys.readouterr().out
    assert "Too narrow" not in text and "…" not in text
    heads = next(line for line in text.splitlines() if "shift mean" in line)
    row = next(line for line in text.splitlines() if "greedy soup, random order 3 " in line)
    assert len(row.split("  ")) > 9 and all(head in heads for head in ("NLL", "held-out", "training"))
    monkeypatch.setenv("COLUMNS", "80")
    report.print_table(results)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_a_notebook_gets_plain_text_that_it_need_not_wrap(results, monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    report.print_table(results)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 110 and "\x1b" not in text and "greedy soup, random order 3" in text


def test_table_without_a_reference_has_no_gain(results):
    keep = ("uniform soup", "linear probe")
    results["rows"] = [row for row in results["rows"] if row["name"] in keep]
    assert row_of(results, "uniform soup").gain == {}
    assert not any("gain" in head for head in tables.main_table(results).heads)


def test_only_rows_of_one_network_stand_out(results):
    table = tables.main_table(results)
    column = table.heads.index("test %")
    best = [row[0].text for row in table.rows if row[column].look == "best"]
    means = {row.name: row.metrics["test"]["accuracy"].mean for row in report.rows_table(results)}
    alone = [name for name in means if "logit" not in name and name not in ("greedy ensemble", "mean member")]
    assert best == [max(alone, key=means.get)] and max(means, key=means.get) not in best


def test_a_number_says_its_seeds_and_its_interval(results):
    table = tables.main_table(results)
    row = next(row for row in table.rows if row[0].text == "EMA")
    cell = row[table.heads.index("test %")]
    for seed, found in enumerate(accuracies(results, "EMA", "test")):
        assert f"seed {seed}: {100 * found:.2f}" in cell.hover
    assert "95 % interval" in cell.hover
    gains = 100 * (accuracies(results, "EMA", "test") - accuracies(results, "best member", "test"))
    each = ", ".join(f"{gain:+.2f}".replace("-", "−") for gain in gains)
    hover = row[table.heads.index("test gain")].hover
    assert hover == f"better in {(gains > 0).sum()} of 3 seeds: {each}".replace("+0.00", "0.00")


def test_csv_has_unrounded_numbers_with_their_intervals(results):
    rows = list(csv.DictReader(io.StringIO(tables.to_csv(tables.main_table(results)))))
    found = next(row for row in rows if row["name"] == "greedy soup")
    expected = accuracies(results, "greedy soup", "test")
    assert float(found["test %"]) == pytest.approx(expected.mean(), rel=1e-9)
    assert float(found["test %, deviation"]) == pytest.approx(expected.std(ddof=1), rel=1e-9)
    half = stats.t.ppf(0.975, 2) * stats.sem(expected)
    assert float(found["test %, half of the 95 % interval"]) == pytest.approx(half, rel=1e-9)


def test_latex_escapes_what_latex_would_read(results):
    for row in results["rows"]:
        row["name"] = row["name"].replace("EMA", "EMA_50% & \\x^2 {#1} ~$")
    text = tables.to_latex(tables.main_table(results))
    assert "EMA\\_50\\% \\& \\textbackslash{}x\\textasciicircum{}2 \\{\\#1\\} \\textasciitilde{}\\$" in text
    assert text.count(" \\\\\n") == 1 + len(report.rows_table(results))
    assert "\\textbf{" in text and "$\\pm$" in text and "±" not in text and "−" not in text


def test_published_numbers_stand_beside(results):
    results = one_seed(results)
    row = next(row for row in results["rows"] if row["name"] == "EMA")
    ours, shift = row["metrics"]["test"]["accuracy"], row["metrics"]["shift_mean"]["accuracy"]
    row["published"] = {
        "test": {"value": ours - 0.003, "exact": True, "tolerance": 2},
        "shift_mean": {"value": shift + 0.0014, "exact": False},
    }
    table = tables.main_table(results)
    cells = dict(zip(table.heads, next(r for r in table.rows if r[0].text == "EMA"), strict=True))
    assert cells["test %"].beside == "+3!" and "up to 2" in cells["test %"].hover
    assert cells["shift mean %"].beside == "−0.14p"
    row["published"]["test"]["tolerance"] = 3
    assert "+3!" not in printed(results) and "+3" in printed(results)


def test_means_over_seeds_stand_beside_published_numbers_in_points(results):
    rows = [row for row in results["rows"] if row["name"] == "EMA"]
    for row in rows:
        row["published"] = {"test": {"value": 0.5, "exact": True, "tolerance": 2}}
    table = tables.main_table(results)
    cells = dict(zip(table.heads, next(r for r in table.rows if r[0].text == "EMA"), strict=True))
    mean = np.mean([row["metrics"]["test"]["accuracy"] for row in rows])
    assert len(rows) > 1 and cells["test %"].beside == f"{100 * (mean - 0.5):+.2f}p"


def test_pairs_are_averaged_by_what_they_are_of(results):
    assert tables.pair_table(results | {"pairs": []}) is None
    single = tables.pair_table(results)
    assert single.heads[:2] == ["a", "b"] and len(single.rows) == 45
    pairs = [pair | {"of": {"matching": "weight"}} for pair in results["pairs"]]
    (row,) = tables.pair_table(results | {"pairs": pairs}).rows
    angles = [pair["values"]["angle"] for pair in pairs]
    assert row[1].text == f"{np.mean(angles):.1f} ±{np.std(angles, ddof=1):.1f}"


def test_a_gain_is_good_in_the_direction_of_its_metric():
    for better, looks in (("lower", ["plus", "minus", ""]), ("higher", ["minus", "plus", ""])):
        gains = [tables.Spread(mean, math.nan, (mean,), error=0.01) for mean in (-0.5, 0.5, 0.01)]
        metric = report.results.Metric("MSE", better)
        assert [tables._gain_cell(gain, metric).look for gain in gains] == looks


def test_where_less_is_better_a_difference_is_called_a_change(results):
    results = one_seed(results)
    results["metrics"] = results["metrics"] | {"loss": {"title": "loss", "better": "lower"}}
    for row in results["rows"]:
        row.pop("wins", None)  # which an interval of one seed would come from
        for found in row["metrics"].values():
            found["loss"] = 1 - found["accuracy"]
    results["metric"] = "loss"
    table = tables.main_table(results)
    assert "test change" in table.heads and not any("gain" in head for head in table.heads)
    assert "Change: difference from the best member of the same seed; lower is better" in table.note
    said = " ".join(report.sentences(results))
    assert "lower is better, and no interval is known" in said and "clearly" not in said


# --- Sentences --------------------------------------------------------------------------------------------------------


def renamed(results, names):
    """Return results whose rows have other names."""
    rows = [row | {"name": names.get(row["name"], row["name"])} for row in results["rows"]]
    return report.check(results | {"rows": rows})


def test_three_sentences_compare_the_rows_that_were_chosen_before(results):
    said = words.sentences(results)
    assert len(said) == 3
    assert said[0] == (
        "23 members were measured on 4,500 examples of 8 test sets, with 3 seeds; intervals (95 %) are those of "
        "Student's t."
    )
    for split, text in zip(("test", "shift_mean"), said[1:], strict=True):
        for name in ("uniform soup", "greedy soup", "learned soup"):
            gains = 100 * (accuracies(results, name, split) - accuracies(results, "best member", split))
            low, high = stats.t.interval(0.95, 2, gains.mean(), stats.sem(gains))
            shown = " ".join(f"{name} {gains.mean():+.2f} [{low:+.2f}, {high:+.2f}]".replace("-", "−").split())
            assert shown in text and low > 0
        assert ": uniform soup +" in text and text.endswith(" are better.")
        assert "different" not in text and "worse" not in text


def test_members_are_counted_of_which_the_soups_are(results):
    beside = [row | {"name": f"beside {row['name']}"} for row in results["rows"] if row["group"] == "member"]
    results["rows"] += beside  # as members from a random head, which have soups of their own
    assert words.sentences(results)[0].startswith("23 members were measured on ")
    assert words.sentences(results | {"members": {}})[0].startswith("46 members were measured on ")  # nobody says which


def test_sentences_are_true_where_soups_lose_and_where_nothing_is_clear(results):
    for row in results["rows"]:
        if row["group"] == "main" and row["name"] == "best member":
            best = row["metrics"]
        if row["group"] == "main" and row["name"] in ("uniform soup", "greedy soup"):
            lost = {"uniform soup": 0.05 + 0.001 * row["seed"], "greedy soup": 0.01 * (row["seed"] - 1)}[row["name"]]
            row["metrics"] = {split: one | {"accuracy": best[split]["accuracy"] - lost} for split, one in best.items()}
    for text in words.sentences(results)[1:]:
        assert (
            ": learned soup +" in text
            and "] is better; greedy soup 0.00 [−2.48, +2.48] is not clearly different;" in text
        )
        assert "; uniform soup −5.10 [" in text and text.endswith("] is worse.")


def test_with_one_seed_the_sampling_error_is_named(results):
    said = words.sentences(one_seed(results))
    level = accuracies(one_seed(results), "best member", "test")[0]
    half = 196 * math.sqrt(level * (1 - level) / 1000)
    assert f"the sampling of the examples alone (±{half:.1f} points for an accuracy on test)" in said[0]
    assert said[1].endswith(" are not clearly different.") and ": uniform soup " in said[1]  # 20 examples against 15


def test_without_the_usual_soups_the_best_in_hindsight_is_named(results):
    results = renamed(results, {name: f"my {name}" for name in ("uniform soup", "greedy soup", "learned soup")})
    said = words.sentences(results)
    assert len(said) == 3 and all(len(text) < 170 for text in said)
    rows = [row for row in report.rows_table(results) if row.kind in ("soup", "interpolation", "trajectory")]
    best = max(rows, key=lambda row: row.metrics["shift_mean"]["accuracy"].mean)
    gain = best.gain["shift_mean"]
    level = 100 * best.metrics["shift_mean"]["accuracy"].mean
    assert said[2].startswith(
        f"On shift mean the best soup in hindsight is {best.name}: {level:.2f} %, +{100 * gain.mean:.2f} points"
    )
    assert f"(95 % interval {100 * (gain.mean - gain.half):+.2f} to {100 * (gain.mean + gain.half):+.2f})" in said[2]


def test_without_shifts_the_choice_of_the_held_out_split_is_said(results):
    results["splits"] = {name: split for name, split in results["splits"].items() if split["role"] != "shift"}
    rows = [row for row in report.rows_table(results) if row.alone]
    chosen = max(rows, key=lambda row: row.metrics["held_out"]["accuracy"].mean)
    assert words.sentences(results)[2].startswith(f"Held-out data alone would choose {chosen.name}: ")
