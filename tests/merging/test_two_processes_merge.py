"""Test that two processes of four devices merge a pool as one process does, each reading its own shards."""

import json
import pathlib
import sys

import jax
import numpy as np
import pytest

from soups.merging.run import merge_to_orbax
from soups.plugins import load_plugin
from soups.pool import load_checkpoint

WORKER = pathlib.Path(__file__).with_name("two_processes_merge.py")
worker = load_plugin(WORKER)


@pytest.fixture(scope="module")
def folder(run_both, tmp_path_factory):
    """Return the folder in which both processes have worked."""
    folder = tmp_path_factory.mktemp("two_processes_merge")
    run_both(lambda index, port: [sys.executable, WORKER, str(index), port, folder], folder, seconds=150)
    return folder


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """Return the pool of the members in one process, none of them sharded."""
    pool = worker.soups.Pool(tmp_path_factory.mktemp("one_process") / "pool")
    for seed, name in enumerate(worker.MEMBERS):
        leaves = worker.make_member(seed)
        pool.add(name, {"layer": {leaf[6:]: leaves.pop(leaf) for leaf in list(leaves) if "/" in leaf}, **leaves})
    return pool


def streamed(method, members, out):
    merge_to_orbax(worker.make_plan(method, lambda name: f"{members.path}:{name}"), out)
    return load_checkpoint(out), json.loads((out / "merge.json").read_text())


def near(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        # devices compute in float32, the host in float64: 1e-6 is 16 roundings of the largest element
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-6 * np.abs(y).max())


@pytest.mark.parametrize("method", worker.METHODS)
def test_as_one_process(method, folder, members, tmp_path):
    expected, record = streamed(method, members, tmp_path / "out")
    near(load_checkpoint(folder / method), expected)
    made = json.loads((folder / method / "merge.json").read_text())
    digests = [[entry["digest"] for entry in one["inputs"].values()] for one in (made, record)]
    assert digests[0] == digests[1]


def test_the_other_process_s_shards_are_not_even_there(folder, members, tmp_path):
    for index in range(2):  # or the next line would prove nothing
        assert len(list((folder / f"pool{index}").glob("members/*/state/layer.kernel/*.0"))) == 4 * 4
    near(load_checkpoint(folder / "alone"), streamed("ties", members, tmp_path / "out")[0])


@pytest.mark.parametrize("process", [0, 1])
def test_each_process_reads_its_own_shards(process, folder):
    read = json.loads((folder / f"read{process}.json").read_text())
    kernel, half, whole, steps = 4 * 64 * 32, 4 * 6, 4 * 5, 8 * 3
    # what counts steps comes from the first member alone where there are several
    assert sum(read["ties"]) == 4 * (kernel // 2 + half // 2 + whole) + steps
    assert sum(read["linear"]) == 3 * (kernel // 2 + half // 2 + whole) + steps
    assert sum(read["tsv_merge"]) == 4 * (kernel + half + whole) + steps  # singular vectors need whole leaves
    assert sum(read["foreign"]) == 3 * (kernel // 2 + half // 2 + whole + steps)


def test_checkpoints_of_other_programs_are_read_in_shards(folder):
    shards = {}
    for index in range(2):
        shards |= {int(start): shard for start, shard in np.load(folder / f"foreign{index}.npz").items()}
    assert sorted(shards) == list(range(0, 64, 8))
    kernel = np.concatenate([shards[start] for start in sorted(shards)])
    near({"kernel": kernel}, {"kernel": worker.make_member(0)["layer/kernel"]})


def test_a_damaged_shard_of_one_process_is_an_error_on_both(folder):
    errors = [json.loads((folder / f"read{index}.json").read_text())["error"] for index in range(2)]
    assert errors[0].startswith("ValueError: on process 1: member 'b' is corrupted")
    assert errors[1].startswith("PoolCorruptionError: member 'b' is corrupted")
    assert all("layer.kernel/6.0 (leaf layer/kernel)" in error for error in errors)
    assert not (folder / "corrupt").exists()
