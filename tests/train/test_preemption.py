"""Tell a run to end: it keeps the step that it takes, on one process and on two, and goes on from there to the bit."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import preempted_run
import pytest

from soups.train import fit

WORKER = pathlib.Path(__file__).with_name("preempted_run.py")


def begun(log, process):
    """Wait until a process has taken some steps."""
    deadline = time.monotonic() + 100
    while sum(line.isdecimal() for line in log.read_text().split("\n")) < 3:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return str(free.getsockname()[1])


def kept(folder):
    """Return the steps of the checkpoints of a run that was told to end."""
    return sorted(int(path.name.removeprefix("step_")) for path in folder.glob("step_*"))


def same(made, expected):
    jax.tree.map(np.testing.assert_array_equal, made["params"], expected["params"])
    np.testing.assert_array_equal(made["losses"], expected["losses"])


@contextlib.contextmanager
def two_processes(environment, place):
    """Return two processes of a run that has begun, and where each of them prints."""
    port, logs, processes = free_port(), [], []
    try:
        for index in range(2):
            logs.append(place / f"log{index}")
            words = [sys.executable, WORKER, place / "run", str(index), "2", port]
            with open(logs[-1], "w") as out:
                processes.append(subprocess.Popen(words, env=environment, stdout=out, stderr=subprocess.STDOUT))
        begun(logs[0], processes[0])
        yield processes, logs
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_dies_ends_the_other_which_names_it(quick_start, tmp_path, killed):
    with two_processes(quick_start, tmp_path) as (processes, logs):
        processes[killed].kill()
        code = processes[1 - killed].wait(timeout=60)
        told = logs[1 - killed].read_text()
        if killed == 0:  # JAX does not live without it, and aborts: the command's witness then says who it was
            assert code == -signal.SIGABRT and "another task died" in told, told
        else:
            assert code == 2 and f"lost process 1 on {os.uname().nodename} (pid {processes[1].pid}) died" in told, told


def test_two_processes_keep_the_same_step_where_one_is_told_to_end(quick_start, tmp_path):
    folder = tmp_path / "run"
    with two_processes(quick_start, tmp_path) as (processes, logs):
        processes[1].send_signal(signal.SIGTERM)
        codes = [process.wait(timeout=30) for process in processes]
        assert codes == [-signal.SIGTERM] * 2, [log.read_text() for log in logs]
    (step,) = kept(folder)
    assert 3 <= step < preempted_run.STEPS
    whole = preempted_run.train(tmp_path / "whole", jax.devices()[:4])
    made = preempted_run.train(folder, jax.devices()[:4])  # one process with the devices of both
    for name, leaf in made["params"].items():  # gradients may be added up in another order
        np.testing.assert_allclose(leaf, whole["params"][name], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(made["losses"], whole["losses"], rtol=1e-4)


def run_until(folder, step):
    """Train, and be told to end at a step."""

    def on_step(index, loss):
        if index == step:
            signal.raise_signal(signal.SIGTERM)

    return preempted_run.train(folder, jax.devices()[:2], on_step)


class Ended(Exception):
    pass


def test_one_process_keeps_the_step_and_goes_on_to_the_bit(tmp_path):
    def end(number, frame):
        raise Ended

    before = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(Ended):
            run_until(tmp_path / "run", 7)
        assert kept(tmp_path / "run") == [9]  # a loss is known one step late
        assert signal.getsignal(signal.SIGTERM) is end
        whole = preempted_run.train(tmp_path / "whole", jax.devices()[:2])
        same(preempted_run.train(tmp_path / "run", jax.devices()[:2]), whole)
        with pytest.raises(Ended):  # at the last step, after which there is none to end at
            run_until(tmp_path / "last", preempted_run.STEPS - 1)
        assert kept(tmp_path / "last") == [preempted_run.STEPS]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_handler_that_returns_lets_the_run_go_on(tmp_path):
    heard, before = [], signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *_: heard.append(True))
    try:
        run_until(tmp_path / "run", 5)
        assert heard == [True] and kept(tmp_path / "run") == [7, preempted_run.STEPS]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_without_a_directory_it_ends_as_ever():
    def at_once(number, frame):
        raise Ended

    before = signal.signal(signal.SIGTERM, at_once)
    try:
        with pytest.raises(Ended):
            step = lambda index, loss: signal.raise_signal(signal.SIGTERM)  # noqa: E731
            fit(
                preempted_run.loss,
                {"a": np.ones((6, 8), np.float32), "b": np.ones((8, 2), np.float32)},
                preempted_run.data(),
                steps=3,
                batch_size=8,
                on_step=step,
            )
    finally:
        signal.signal(signal.SIGTERM, before)
