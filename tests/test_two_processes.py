import importlib.util
import os
import pathlib
import socket
import subprocess
import sys

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
    environment = os.environ | {"PYTHONPATH": str(WORKER.parents[1])}
    processes = [
        subprocess.Popen(
            [sys.executable, WORKER, str(index), port, folder], env=environment, stderr=subprocess.PIPE, text=True
        )
        for index in range(2)
    ]
    try:
        for process in processes:
            errors = process.communicate(timeout=150)[1]
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in processes:
            process.kill()


def test_two_processes_fine_tune_keep_and_soup_as_one(tmp_path):
    run_both(tmp_path)
    source, start = worker.make_data()
    alone = {f"member_{m['seed']}": worker.fine_tune(m, start, source, lambda batch: batch) for m in worker.MEMBERS}
    pool = soups.Pool(tmp_path / "pool")
    assert pool.verify() == {name: [] for name in alone}
    for name, params in alone.items():
        for leaf, expected in soups.tree.flatten(params).items():
            # float32 rounding in another order of summation, enlarged by Adam
            np.testing.assert_allclose(soups.tree.flatten(pool[name])[leaf], np.asarray(expected), atol=1e-4)
    evaluate = Evaluator(models.apply_fn(worker.MODEL), source)
    soup = soups.greedy(pool, evaluate, metric="nll", mode="min")
    for index in range(2):
        there = np.load(tmp_path / f"soup{index}.npz")
        assert list(there["ingredients"]) == list(soup.ingredients)
        np.testing.assert_allclose(there["score"], soup.score, rtol=1e-5)
        for leaf, expected in soups.tree.flatten(jax.device_get(soup.params)).items():
            np.testing.assert_allclose(there[leaf.replace("/", ".")], expected, atol=1e-6)
