"""Test that two processes run the experiment together, and find what one process finds."""

import json
import re
import sys

import pytest

from soups import Pool
from soups.report import load_results


@pytest.fixture(scope="module")
def together(command, run_both, tmp_path_factory):
    """Return the directory of a run by two processes, and what each printed."""
    folder = tmp_path_factory.mktemp("together")

    def process(index, port):
        hosts = (f"--coordinator=localhost:{port}", "--processes=2", f"--process={index}")
        return command(folder / "run", *hosts, config="few_steps_config")

    return folder / "run", run_both(process, folder, seconds=300)


def test_two_processes_find_what_one_finds(finished, together):
    alone, (workdir, _) = finished[0], together
    rows = (load_results(path)["rows"] for path in (alone, workdir))
    there, here = ({row["name"]: row for row in found if row["group"] != "curve"} for found in rows)
    assert here.keys() < there.keys() and here.keys() >= {"greedy soup", "learned soup", "distilled ensemble"}
    for name, row in here.items():
        # equal to the bit where this was written; another machine may add up in another order
        expected = there[name]["metrics"]
        assert row["metrics"]["test"]["nll"] == pytest.approx(expected["test"]["nll"], rel=1e-5), name
        assert row["num_ingredients"] == there[name]["num_ingredients"], name
    assert all(problems == [] for problems in Pool(workdir / "pool").verify().values())


def test_the_first_process_alone_prints_and_writes(together):
    workdir, printed = together
    assert re.search(r"sweep: (\d+)/\1 ", printed[0]) and "greedy soup" in printed[0]
    assert "sweep" not in printed[1] and "greedy soup" not in printed[1]
    assert json.loads((workdir / "results.json").read_text())["device"].endswith("x4")


def test_an_experiment_of_one_process_refuses_several(run_both, tmp_path):
    def process(index, port):
        script = [sys.executable, "scripts/run.py", "--config=configs/rebasin.py", f"--workdir={tmp_path / 'run'}"]
        return [*script, f"--coordinator=localhost:{port}", "--processes=2", f"--process={index}"]

    several = "finetune_and_soup, imagenet_finetune, imagenet_soups"
    for printed in run_both(process, tmp_path, seconds=100, code=2):
        assert f"run.py: rebasin runs in one process; in several run {several}\n" in printed
        assert "Traceback" not in printed
    assert not (tmp_path / "run").exists()
