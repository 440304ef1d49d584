"""Test that two processes run the experiment together, and find what one process finds."""

import json
import socket
import subprocess
import time

import pytest

from soups import Pool
from soups.report import load_results


@pytest.fixture(scope="module")
def together(start, tmp_path_factory):
    """Give the directory of a run by two processes, and what each printed."""
    folder = tmp_path_factory.mktemp("together")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = [f"--coordinator=localhost:{port}", "--processes=2"]
    logs, processes = [folder / f"log{index}.txt" for index in range(2)], []
    try:
        for index, log in enumerate(logs):
            with log.open("w") as file:
                options = {"stdout": file, "stderr": subprocess.STDOUT}
                processes.append(start(folder / "run", *flags, f"--process={index}", **options))
        deadline, codes = time.monotonic() + 300, [None, None]
        # one that fails would leave the other waiting for it
        while None in codes and not any(codes) and time.monotonic() < deadline:
            time.sleep(0.1)
            codes = [process.poll() for process in processes]
        assert codes == [0, 0], [log.read_text()[-3000:] for log in logs]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return folder / "run", [log.read_text() for log in logs]


def test_two_processes_find_what_one_finds(finished, together):
    alone, (workdir, _) = finished[0], together
    there, here = ({row["name"]: row for row in load_results(path)["rows"]} for path in (alone, workdir))
    assert here.keys() == there.keys()
    for name, row in here.items():
        # equal to the bit where this was written; another machine may add up in another order
        expected = there[name]["metrics"]
        assert row["metrics"]["test"]["nll"] == pytest.approx(expected["test"]["nll"], rel=1e-5), name
        assert row["num_ingredients"] == there[name]["num_ingredients"], name
    assert all(problems == [] for problems in Pool(workdir / "pool").verify().values())


def test_the_first_process_alone_prints_and_writes(together):
    workdir, printed = together
    assert "sweep: 5/5 members" in printed[0] and "greedy soup" in printed[0]
    assert "sweep" not in printed[1] and "greedy soup" not in printed[1]
    assert json.loads((workdir / "results.json").read_text())["device"].endswith("x4")
