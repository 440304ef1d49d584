"""Test that two processes fine-tune, keep and soup as one does."""

import pathlib
import sys

import jax
import numpy as np

import soups
from soups import models
from soups.evaluate import Evaluator
from soups.plugins import load_plugin

WORKER = pathlib.Path(__file__).with_name("two_processes.py")
worker = load_plugin(WORKER)


def test_two_processes_fine_tune_keep_and_soup_as_one(run_both, tmp_path):
    run_both(lambda index, port: [sys.executable, WORKER, str(index), port, tmp_path], tmp_path, seconds=150)
    source, start = worker.make_data()
    alone = {f"member_{m['seed']}": worker.fine_tune(m, start, source) for m in worker.MEMBERS}
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
