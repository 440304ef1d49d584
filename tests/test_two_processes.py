"""Test that two processes fine-tune, keep and soup as one does."""

import importlib.util
import os
import pathlib
import socket
import subprocess
import sys
import time

import jax
import numpy as np

import soups
from soups import models
from soups.evaluate import Evaluator

WORKER = pathlib.Path(__file__).with_name("two_processes.py")
spec = importlib.util.spec_from_file_location("two_processes", WORKER)
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)


def run_both(folder):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    fast = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # to compile, not to run
    environment = os.environ | {"PYTHONPATH": str(WORKER.parents[1]), "XLA_FLAGS": fast}
    logs = [folder / f"log{index}.txt" for index in range(2)]
    processes = []
    try:
        for index, log in enumerate(logs):
            command = [sys.executable, WORKER, str(index), port, folder]
            with open(log, "w") as file:
                processes.append(subprocess.Popen(command, env=environment, stderr=file))
        deadline = time.monotonic() + 150
        codes = [None, None]
        # one that fails would leave the other waiting for it
        while None in codes and not any(codes) and time.monotonic() < deadline:
            time.sleep(0.1)
            codes = [process.poll() for process in processes]
        assert codes == [0, 0], [log.read_text()[-3000:] for log in logs]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_two_processes_fine_tune_keep_and_soup_as_one(tmp_path):
    run_both(tmp_path)
    source, start = worker.make_data()
    alone = {f"member_{m['seed']}": worker.fine_tune(m, start, source, lambda batch: batch) for m in worker.MEMBERS}
    pool = soups.Pool(tmp_path / "pool")
    assert pool.verify() == {name: [] for name in alone}
    for name, params in alone.items():
        for leaf, expected in soups.tree.flatten(params).items():
            # float32 rounding in another order of summation
            np.testing.assert_allclose(soups.tree.flatten(pool[name])[leaf], np.asarray(expected), rtol=1e-5, atol=1e-6)
    evaluate = Evaluator(models.apply_fn(worker.MODEL), source)
    soup = soups.greedy(pool, evaluate, metric="nll", mode="min")
    for index in range(2):
        there = np.load(tmp_path / f"soup{index}.npz")
        assert list(there["ingredients"]) == list(soup.ingredients)
        np.testing.assert_allclose(there["score"], soup.score, rtol=1e-5)
        for leaf, expected in soups.tree.flatten(jax.device_get(soup.params)).items():
            np.testing.assert_allclose(there[leaf.replace("/", ".")], expected, atol=1e-6)
