"""Run the study of fine-tuned encoders as starts, small; check what ranks them; run it wrongly."""

import numpy as np
import pytest
from small_texts import MARKS, small_config, write_tasks

from soups import Pool
from soups.report import load_results
from soups.studies import rank_bases


def small(data_dir, **changes):
    config = small_config("rank_bases", data_dir)
    config["target"] = {"examples": 12, "steps": 2, "learning_rate": 1e-2}
    return config | {"probe_task": "moods"} | changes


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Return a folder with the tasks and encoders."""
    return write_tasks(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    """Return a finished run."""
    workdir = tmp_path_factory.mktemp("run") / "bases"
    rank_bases.run(small(data_dir), workdir)
    return workdir


def test_each_task_is_a_start_for_all_others(finished):
    results = load_results(finished)
    main = {row["name"]: row["metrics"] for row in results["rows"] if row["group"] == "main"}
    assert list(main) == [
        *("pre-trained start", "fusing all", "inter-training, mean", "inter-training, best on held-out"),
        *("inter-training, best on the other targets", "inter-training, best by the probe"),
        "fusing half, best on the other targets",
    ]
    starts = {
        (row["of"]["start"], row["of"]["target"]): row["metrics"]["test"]["accuracy"]
        for row in results["rows"]
        if row["group"] == "curve"
    }
    pairs = {(start, target) for start in MARKS for target in MARKS if start != target}
    assert set(starts) == pairs | {("pre-trained", target) for target in MARKS}
    for target in MARKS:
        mean = np.mean([starts[start, target] for start in MARKS if start != target])
        assert main["inter-training, mean"][target]["accuracy"] == pytest.approx(mean)
    assert len(Pool(finished / "pool")) == len(MARKS)
    assert results["facts"]["Tasks"]["films"]["train"] == 12


def test_claims_follow_from_the_rows(finished):
    results = load_results(finished)
    test = {row["name"]: row["metrics"]["test"]["accuracy"] for row in results["rows"] if row["group"] == "main"}
    claims = {claim["title"]: claim for claim in results["claims"]}
    found = claims["fusing all > pre-trained start"]["value"]
    assert found == pytest.approx(test["fusing all"] - test["pre-trained start"])
    assert {claim.get("unit") for claim in claims.values()} <= {None, "rank correlation"}


def test_a_start_lacks_its_own_target_which_the_means_fill():
    start, target = {"a": 0.1, "b": 0.2, "c": 0.4}, {"a": 0.3, "b": 0.5, "c": 0.0}
    whole = {t: {s: start[s] + target[t] for s in start} for t in target}
    there = {t: {s: value for s, value in row.items() if s != t} for t, row in whole.items()}
    for t, row in rank_bases.filled(there).items():
        assert row == pytest.approx(whole[t])


def test_rank_correlation_of_probes_with_mean_gains():
    matrix = np.array([[0.1, 0.3], [0.0, 0.1], [0.5, 0.5]])
    assert rank_bases.spearman([0.6, 0.5, 0.9], matrix) == pytest.approx(1.0)
    assert rank_bases.spearman([0.6, 0.9, 0.5], matrix) == pytest.approx(-1.0)
    with pytest.raises(ValueError, match="all starts are equal"):
        rank_bases.spearman([0.5, 0.5, 0.5], matrix)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probe_task": "film"}, r"unknown config.probe_task 'film' \(did you mean 'films'\?\)"),
        ({"tasks": ["films", "moods"]}, "config.tasks must name at least three"),
    ],
)
def test_configs_that_cannot_run_are_errors(data_dir, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        rank_bases.run(small(data_dir, **changes), tmp_path / "run")
