"""Run the whole experiment, small, as users do; kill it; run it wrongly."""

import json
import pathlib
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

from soups import Pool, tree
from soups.cli.run import read_config
from soups.report import load_results
from soups.report.figures import PLANS
from soups.studies import finetune_and_soup

ROWS = {
    "start weights",
    "linear probe",
    "best member",
    "mean member",
    "worst member",
    "uniform soup",
    "greedy soup",
    "greedy soup, random order 1",
    "greedy soup, random order 2",
    "learned soup",
    "learned soup, per leaf",
    "WiSE-FT, α by held-out",
    "WiSE-FT, α = 0.5",
    "EMA of best member",
    "SWA of best member",
    "random head best member",
    "random head mean member",
    "random head uniform soup",
    "random head greedy soup",
    "SAM best member",
    "SAM mean member",
    "SAM uniform soup",
    "SAM greedy soup",
    "ensemble",
    "greedy ensemble",
    "distilled ensemble",
}


def main_rows(workdir):
    return {row["name"]: row for row in load_results(workdir)["rows"] if row["group"] == "main"}


def test_every_row_and_path_is_there(finished):
    workdir, printed = finished
    assert set(main_rows(workdir)) == ROWS
    table = (workdir / "table.csv").read_text()
    assert all(f"\n{name}," in table or f'\n"{name}",' in table for name in ROWS)
    for path in ("results.json", "report.html", "table.csv", "table.tex", "figures", "pool", "soups"):
        assert path in printed
        assert (workdir / path).exists()
    results = load_results(workdir)
    assert {curve["kind"] for curve in results["curves"]} == {"plane", "reliability"}
    assert set(results["pairs"][0]["values"]) == {"angle", "barrier", "interpolation_advantage", "ratio_error"}
    places = [row["of"] for row in results["rows"] if row["group"] == "curve"]
    assert [place["alpha"] for place in places if "alpha" in place] == [0.0, 0.5, 1.0]
    assert {place["models"] for place in places if "models" in place} == {1, 3, 5}
    assert all(len(member["losses"]) > 1 for member in results["members"]["0"])
    drawn = {path.stem for path in (workdir / "figures").glob("*.svg")}
    assert {"overview", "scatter", "by_split", "number_of_models", "wise_ft", "losses", "advantage"} <= drawn


def test_what_is_printed_begins_with_the_time_and_ends_with_what_was_seen(finished):
    _, printed = finished
    assert printed.startswith("This takes about 0.5 minutes on two idle cores.\nIt is small.\n")
    end = printed.partition("soups · digits")[2]
    assert "greedy soup" in end and "SWA" not in end and "per leaf" not in end  # rows that config.about names
    seen, _, rest = end.partition("Highlighted")[2].partition("Figure: ")
    assert "5 members were measured on" in seen and "On test (best member: " in seen and "On shift mean (" in seen
    command, *more = rest.partition("What to try next:\n")[2].splitlines()
    assert command.startswith("  bash small.sh --config.data_dir=") and "--workdir=" in command and not more
    assert command.split("#")[0].rstrip().endswith("--config.seeds=10")


def test_progress_has_rate_and_no_unknown_fields(finished):
    _, printed = finished
    for title, total in (("figures", len(PLANS)), ("greedy soups", 3)):
        assert f"{title}: {total}/{total} " in printed
    assert re.search(r"soups of the first members: (\d+)/\1 members, ", printed)
    for title in ("pre-training", "linear probe", "sweep", "SAM members", "distillation"):
        lines = [line for line in printed.splitlines() if line.startswith(f"{title}: ")]
        done, total = lines[-1].removeprefix(f"{title}: ").split()[0].split("/")
        assert done == total and f"{title}: {total}/{total} steps, " in lines[-1]
        assert "/s" in lines[-1] and not any("?" in line for line in lines)


def test_uniform_soup_is_the_mean_of_the_pool(finished):
    workdir, _ = finished
    pool, soups = Pool(workdir / "pool"), Pool(workdir / "soups")
    members = [pool[name] for name in pool if "member" in name]
    assert len(members) == 5
    for name, leaf in tree.flatten(soups["seed0_uniform_soup"]).items():
        expected = np.mean([tree.flatten(member)[name].astype(np.float64) for member in members], axis=0)
        np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-6)


def test_greedy_soup_is_no_worse_than_the_best_member_on_held_out(finished):
    rows = main_rows(finished[0])
    held_out = {name: rows[name]["metrics"]["held_out"]["accuracy"] for name in rows}
    assert held_out["greedy soup"] >= held_out["best member"] >= held_out["mean member"] >= held_out["worst member"]


def test_costs_are_forward_passes(finished):
    rows = main_rows(finished[0])
    assert rows["uniform soup"]["cost"] == {"inference": 1, "selection": 0, "training": 0}
    assert rows["greedy soup"]["cost"]["selection"] == 100 * (5 + 4)  # each member alone, then each candidate
    assert rows["ensemble"]["cost"]["inference"] == 5
    assert rows["WiSE-FT, α by held-out"]["cost"]["selection"] == 3 * 100


def test_wins_and_classes_are_counted_on_the_test_split(finished):
    rows = main_rows(finished[0])
    accuracy = {name: row["metrics"]["test"]["accuracy"] for name, row in rows.items()}
    for name in ("uniform soup", "greedy soup", "ensemble", "distilled ensemble"):
        won, lost = rows[name]["wins"]["test"]
        assert won - lost == round(100 * (accuracy[name] - accuracy["best member"])), name
        assert 0 <= min(rows[name]["classes"]["test"].values()) <= accuracy[name]


def test_a_soup_records_what_it_was_made_from(finished):
    workdir, _ = finished
    record = Pool(workdir / "soups").record("seed0_greedy_soup")["metadata"]
    pool = Pool(workdir / "pool")
    assert record["digests"] == {name: pool.digest(name) for name in record["ingredients"]}


def test_pool_knows_config_metrics_and_base_of_each_member(finished):
    workdir, _ = finished
    record = Pool(workdir / "pool").record("seed0_member_00")
    assert {"learning_rate", "weight_decay", "mixup", "seed"} <= set(record["metadata"]["config"])
    assert {"held_out", "test", "shift_mean"} <= set(record["metrics"])
    assert record["base"] == Pool(workdir / "bases").digest("seed0_probe")


def killed_when(reached, process, limit=200):
    """Kill a run with SIGKILL once `reached()` holds."""
    try:
        deadline = time.monotonic() + limit
        while not reached():
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline, "the run did not get there in time"
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_kill_9_and_the_same_command_give_the_same_rows_to_the_bit(finished, start, run, tmp_path):
    whole, _ = finished
    workdir = tmp_path / "killed"

    def steps_of_greedy():
        journals = (workdir / "journals").glob("seed0_greedy_soup-*.jsonl")
        return sum(journal.read_text().count("\n") for journal in journals)

    moments = [
        lambda: len(Pool(workdir / "pool")) > 0,  # while the pool fills
        lambda: steps_of_greedy() >= 3,  # in the middle of the greedy soup
    ]
    for reached in moments:
        killed_when(reached, start(workdir, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        pool = Pool(workdir / "pool")
        for name in pool:
            assert pool.verify([name]) == {name: []}  # whole members only
    process = run(workdir)
    assert process.returncode == 0, process.stderr[-3000:]
    there, here = (json.loads((path / "results.json").read_text()) for path in (whole, workdir))
    for part in ("rows", "curves", "pairs", "histories", "members"):
        assert here[part] == there[part]
    assert all(problems == [] for problems in Pool(workdir / "pool").verify().values())


def test_what_may_change_repeats_what_depends_on_it_and_nothing_else(finished, run, tmp_path):
    workdir = tmp_path / "other"
    shutil.copytree(finished[0], workdir)
    stages = {path: path.stat().st_mtime_ns for path in (workdir / "stages").iterdir()}
    process = run(workdir, "--config.figures.plane_points=4", "--config.random_head.members=3")
    assert process.returncode == 0, process.stderr[-3000:]
    changed = {path.stem for path in stages if path.stat().st_mtime_ns != stages[path]}
    assert changed == {"seed0_plane", "seed0_random_head_soups"}
    assert [main_rows(one)["random head uniform soup"]["num_ingredients"] for one in (finished[0], workdir)] == [2, 3]
    plane = next(curve for curve in load_results(workdir)["curves"] if curve["kind"] == "plane")
    assert len(plane["x"]) == 4
    assert run(workdir, "--config.sweep.members=6").returncode == 2


def test_finished_work_is_not_repeated(finished, digits_dir, tmp_path, undrawn, capsys):
    workdir = tmp_path / "again"
    shutil.copytree(finished[0], workdir)
    stages = {path: path.stat().st_mtime_ns for path in (workdir / "stages").iterdir()}
    small = pathlib.Path(__file__).with_name("small_config.py")
    finetune_and_soup.run(read_config(str(small), [f"--config.data_dir={digits_dir}"]), workdir)
    printed = capsys.readouterr().out
    assert "sweep" not in printed and "linear probe\n" not in printed
    assert {path: path.stat().st_mtime_ns for path in (workdir / "stages").iterdir()} == stages
    before, after = load_results(finished[0]), load_results(workdir)
    assert {name for name in before if before[name] != after[name]} <= {"created", "device", "timings"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.sweep.membres=3"], "did you mean --config.sweep.members?"),
        (["--config.sweep.members=6"], "sweep.members: 5 there, 6 now"),
        (["--config.task.num_train=6000", "--workdir={fresh}"], "only 4900"),
        (["--workdir=/proc/soups"], "cannot be written"),
        (["--config.sweep.learning_rate=(1e20, 1e21)", "--workdir={fresh}"], "only 0 of 5 members are finite: lower"),
        (["--config.study=finetune_or_soup"], "did you mean 'finetune_and_soup'?"),
        (["--process=0"], "--processes and --process go together"),
        (["--processes=2", "--process=0"], "need --coordinator HOST:PORT"),
        (["--coordinator=localhost:1"], "several hosts need --coordinator HOST:PORT"),
    ],
    ids=[
        "misspelt field",
        "another config",
        "more images than there are",
        "unwritable",
        "all diverged",
        "unknown study",
        "one process of how many",
        "processes without coordinator",
        "coordinator without processes",
    ],
)
def test_what_users_do_wrong_is_one_clear_error(finished, run, tmp_path, flags, message):
    workdir, _ = finished
    words = [flag.format(fresh=tmp_path / "fresh") for flag in flags]
    places = [word.removeprefix("--workdir=") for word in words if word.startswith("--workdir=")]
    flags = [word for word in words if not word.startswith("--workdir=")]
    process = run(*places, *flags, config="few_steps_config") if places else run(workdir, *flags)
    assert process.returncode != 0
    assert message in process.stderr
    assert "Traceback" not in process.stderr
    assert process.stderr.startswith("run.py: ")


def test_members_that_diverge_stay_in_the_pool_and_out_of_the_soups(run, tmp_path):
    # some of the members get a learning rate with which they overflow
    flags = ["--config.sweep.learning_rate=(1e-3, 1e10)", "--config.sweep.members=8"]
    process = run(tmp_path / "diverged", *flags, config="few_steps_config")
    assert process.returncode == 0, process.stderr[-3000:]
    pool = Pool(tmp_path / "diverged" / "pool")
    diverged = [name for name in pool if pool.record(name)["status"] == "non-finite"]
    assert diverged
    said = [
        line for line in process.stdout.splitlines() if line.startswith("diverged, and left out of every selection")
    ]
    assert all(name in "".join(said) for name in diverged)
    soups = Pool(tmp_path / "diverged" / "soups")
    assert not set(diverged) & set(soups.record("seed0_uniform_soup")["metadata"]["ingredients"])
