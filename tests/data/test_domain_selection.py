"""Selection and tables against the vectors of DomainBed's own tests (b93c22a), and records that are none."""

import json
import re

import numpy as np
import pytest

from soups.data.domain_selection import (
    cell,
    leave_one_domain_out,
    oracle,
    read_records,
    selected_accuracy,
    tables,
    training_domain_validation,
)


def _record(step, *environments, seed=0, trial=0, algorithm="ERM", dataset="VLCS"):
    """Make a record from (in, out, whether it is a test domain) of each environment."""
    tests = [place for place, (_, _, is_test) in enumerate(environments) if is_test]
    arguments = {"dataset": dataset, "algorithm": algorithm, "test_envs": tests}
    record = {"step": step, "args": arguments | {"hparams_seed": seed, "trial_seed": trial}}
    for place, (inside, outside, _) in enumerate(environments):
        record |= {f"env{place}_in_acc": inside, f"env{place}_out_acc": outside}
    return record


T, F = True, False


def test_training_domains_choose_the_step():
    first = _record(0, (0.1, 0.2, T), (0.5, 0.6, F), (0.6, 0.7, F))
    second = _record(1, (0.3, 0.4, T), (0.6, 0.7, F), (0.7, 0.8, F))
    assert training_domain_validation([first, second], 0) == pytest.approx((0.75, 0.3), rel=1e-15)
    assert training_domain_validation([second, first], 0).test == 0.3
    tied = _record(2, (0.9, 0.4, T), (0.8, 0.8, F), (0.7, 0.7, F))
    assert training_domain_validation([second, tied], 0).test == 0.3  # of equal steps the first
    assert training_domain_validation([], 0) is None
    assert training_domain_validation([first], 1) is None
    assert training_domain_validation([_record(0, (0.1, 0.2, T), (0.5, 0.6, T), (0.6, 0.7, F))], 0) is None


def test_a_step_that_is_no_number_is_never_better():
    broken = _record(0, (0.1, 0.2, T), (0.5, float("nan"), F))
    good = _record(1, (0.3, 0.4, T), (0.6, 0.1, F))
    assert training_domain_validation([broken, good], 0) == (0.1, 0.3)


def test_the_oracle_takes_the_last_step_even_if_it_is_worse():
    better, worse = _record(0, (0.75, 0.70, T)), _record(1, (0.65, 0.60, T))
    assert oracle([better, worse], 0) == oracle([worse, better], 0) == (0.60, 0.65)
    assert oracle([_record(0, (0.75, 0.70, T)), _record(1, (0.85, 0.80, T))], 0) == (0.80, 0.85)
    assert oracle([], 0) is None


def test_leaving_one_domain_out_is_a_mean_over_runs_without_it():
    alone = _record(0, (0.1, 0.0, T), (0.0, 0.0, F), (0.0, 0.0, F))
    first = _record(0, (0.0, 0.0, T), (0.5, 0.0, T), (0.0, 0.0, F))
    second = _record(0, (0.0, 0.0, T), (0.0, 0.0, F), (0.6, 0.0, T))
    assert leave_one_domain_out([alone, first, second], 0) == pytest.approx((0.55, 0.1), rel=1e-15)
    assert leave_one_domain_out([alone, first], 0) is None
    assert leave_one_domain_out([first, second], 0) is None
    later = _record(7, (0.2, 0.0, T), (0.0, 0.0, F), (0.0, 0.0, F))  # without the runs that say how good it is
    unrelated = _record(0, (0.9, 0.9, F), (0.9, 0.9, T), (0.9, 0.9, T))
    assert leave_one_domain_out([alone, first, second, later, unrelated], 0).test == 0.1


def test_the_best_run_is_reported_and_of_equal_ones_that_of_the_largest_seed():
    def run(seed, held_out, test):
        return _record(0, (test, 0.0, T), (0.0, held_out, F), seed=seed)

    def select(*runs):
        return selected_accuracy(runs, 0, training_domain_validation)

    assert select(run(0, 0.8, 0.7), run(1, 0.5, 0.9)) == 0.7
    assert select(run(10, 0.8, 0.1), run(2, 0.8, 0.2), run(9, 0.8, 0.3)) == 0.1  # seeds are numbers, not words
    assert select() is None


def test_cells_have_domainbeds_standard_error():
    assert cell([0.1, 0.2, 0.3]) == "20.0 +/- 4.7"
    assert cell([]) == "X"
    values = [0.5, 0.75]
    assert cell(values) == f"{np.mean(values) * 100:.1f} +/- {np.std(values) / 2**0.5 * 100:.1f}"


def _sweep():
    """Make two trials of two runs on PACS-like sets of three domains, of which the last is never a test domain."""
    records = []
    for trial in (0, 1):
        for seed, quality in ((0, 0.5), (1, 0.6)):
            for tests in ((0,), (1,), (0, 1)):
                environments = [(quality + place / 10 + trial / 50, quality, place in tests) for place in range(3)]
                records.append(_record(300, *environments, seed=seed, trial=trial, dataset="mine"))
    return records


def test_tables_have_a_row_for_each_algorithm_and_an_x_where_nothing_was_run():
    seen = tables([*_sweep(), _record(0, (0.5, 0.5, T), (0.5, 0.5, F), (0.5, 0.5, F), algorithm="ABC", dataset="mine")])
    lines = seen.splitlines()
    assert lines[0] == "Total records: 13"
    title = lines.index("-------- Dataset: mine, model selection method: training-domain validation set")
    assert [line.split("  ")[0] for line in lines[title + 1 : title + 4]] == ["Algorithm", "ERM", "ABC"]
    columns = [re.split(r" {2,}", line) for line in lines[title + 1 : title + 4]]
    assert columns[0] == ["Algorithm", "0", "1", "2", "Avg"]
    assert columns[1] == ["ERM", "61.0 +/- 0.7", "71.0 +/- 0.7", "X", "X"]
    assert columns[2] == ["ABC", "50.0 +/- 0.0", "X", "X", "X"]
    averages = lines.index("-------- Averages, model selection method: training-domain validation set")
    assert re.split(r" {2,}", lines[averages + 2]) == ["ERM", "66.0 +/- 0.7", "66.0"]
    left_out = lines.index("-------- Dataset: mine, model selection method: leave-one-domain-out cross-validation")
    assert re.split(r" {2,}", lines[left_out + 2]) == ["ERM", "X", "X", "X", "X"]


def _write(folder, records):
    folder.mkdir(parents=True)
    (folder / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_known_sets_have_their_environments_in_the_table(tmp_path, script, capsys):
    for number in range(4):
        environments = [(0.5 + number / 10, 0.5, place == number) for place in range(4)]
        _write(tmp_path / f"run{number}", [_record(0, *environments), _record(300, *environments)])
    (tmp_path / "notes").mkdir()
    (tmp_path / "sweep.txt").write_text("no run")
    collect = script("domainbed_collect")
    assert collect.main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Total records: 8"
    assert re.split(r" {2,}", lines[3]) == ["Algorithm", "C", "L", "S", "V", "Avg"]
    row = ["ERM", "50.0 +/- 0.0", "60.0 +/- 0.0", "70.0 +/- 0.0", "80.0 +/- 0.0", "65.0"]
    assert re.split(r" {2,}", lines[4]) == row
    assert "\n".join(lines) + "\n" == tables(read_records(tmp_path))


def test_what_is_no_folder_of_runs_is_an_error_of_one_line(tmp_path, script, capsys):
    collect = script("domainbed_collect")
    cases = {
        "nowhere": "no such folder of runs",
        "empty": "no records: a run is a folder in it with a file results.jsonl",
    }
    (tmp_path / "empty").mkdir()
    for name, text in (("cut", '{"step": 300, "env0_in'), ("other", '{"step": 1}'), ("list", "[1]")):
        _write(tmp_path / name / "run", [_record(0, (0.5, 0.5, T))])
        with open(tmp_path / name / "run" / "results.jsonl", "a") as file:
            file.write(text)
        cases[name] = f"results.jsonl: line 2 is not the record of a run: {text!r}"
    for name, says in cases.items():
        assert collect.main([str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("domainbed_collect.py: ") and error.endswith(f"{says}\n") and error.count("\n") == 1
