"""Test that a soup is written whole or not at all, with the record of what went into it."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import soups
from soups.files import locked
from soups.pool import Pool, digest, load_checkpoint, save_soup
from soups.recipes import Soup


@pytest.fixture
def pool(tmp_path):
    """Return a pool of three members."""
    pool = Pool(tmp_path / "pool")
    for seed in range(3):
        pool.add(f"m{seed}", _params(seed), metrics={"held_out": seed / 4}, base="start")
    return pool


def _params(seed):
    rng = np.random.default_rng(seed)
    return {"a": {"w": rng.standard_normal((4, 3), np.float32)}, "b": rng.standard_normal(5, np.float32)}


def _soup(pool, **fields):
    return Soup(
        params=_params(7),
        recipe={"name": "greedy", "accept": "gt", "order": np.array([1, 0])},
        ingredients={"m0": 0.75, "m2": 0.25},
        history=[{"member": "m0", "score": np.float32(0.5)}],
        **{"score": 0.5, "digests": {name: pool.digest(name) for name in ("m0", "m2")}, **fields},
    )


def _same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_soup_is_written_with_its_record(pool, tmp_path):
    out = tmp_path / "soups" / "first"
    assert save_soup(out, _soup(pool), pool=pool) == out
    _same(load_checkpoint(out), _params(7))
    assert os.listdir(tmp_path / "soups") == ["first"]
    record = json.loads((out / "soup.json").read_text())
    assert record["recipe"] == {"name": "greedy", "accept": "gt", "order": [1, 0]}
    assert record["ingredients"] == {
        name: {"weight": weight, "digest": digest(_params(seed)), "metrics": {"held_out": seed / 4}}
        for name, weight, seed in (("m0", 0.75, 0), ("m2", 0.25, 2))
    }
    assert (record["score"], record["history"], record["base"]) == (0.5, [{"member": "m0", "score": 0.5}], "start")
    assert record["digest"] == digest(_params(7))
    assert record["leaves"]["a/w"]["shape"] == [4, 3]
    assert record["versions"]["numpy"] == np.__version__


def test_a_tree_is_written_with_what_the_pool_says(pool, tmp_path):
    save_soup(tmp_path / "one", [_params(1), None], pool=pool.select(["m1", "m0"]))
    record = json.loads((tmp_path / "one" / "soup.json").read_text())
    assert list(record["ingredients"]) == ["m1", "m0"]
    assert record["ingredients"]["m1"] == {
        "weight": None,
        "digest": digest(_params(1)),
        "metrics": {"held_out": 0.25},
    }
    assert list(record["leaves"]) == ["0/a/w", "0/b"]
    save_soup(tmp_path / "two", _params(1))
    assert json.loads((tmp_path / "two" / "soup.json").read_text())["ingredients"] == {}


def test_a_soup_of_other_members_is_refused(pool, tmp_path):
    soup = _soup(pool, digests={"m0": "0" * 32})
    with pytest.raises(ValueError, match="'m0' has other weights in"):
        save_soup(tmp_path / "soup", soup, pool=pool)
    with pytest.raises(ValueError, match="'m2' is not a member of"):
        save_soup(tmp_path / "soup", _soup(pool), pool=pool.select(["m0"]))
    with pytest.raises(ValueError, match="the soup cannot be stored"):
        save_soup(tmp_path / "soup", {"a": 1.0})
    with pytest.raises(ValueError, match="is a URL"):
        save_soup("gs://bucket/soup", _params(0))
    assert os.listdir(tmp_path) == ["pool"]


def test_nothing_is_written_over(pool, tmp_path):
    save_soup(tmp_path / "soup", _params(0))
    (tmp_path / "link").symlink_to("nowhere")
    before = sorted(tmp_path.rglob("*"))
    for name in ("soup", "pool", "link"):
        with pytest.raises(FileExistsError, match=f"{name} exists"):
            save_soup(tmp_path / name, _params(1))
    with locked(tmp_path / "other"), pytest.raises(BlockingIOError, match=r"is writing to .*other"):
        save_soup(tmp_path / "other", _params(1))
    assert sorted(tmp_path.rglob("*")) == before


_SAVE = """
import sys
import numpy as np
from soups.pool import _describe, save_soup
describe = _describe.describe
def slow(*arguments):
    print("now", flush=True)
    sys.stdin.read()
    return describe(*arguments)
_describe.describe = slow
save_soup(sys.argv[1], {"a": np.ones(3)})
"""


def test_what_a_killed_process_left_is_swept_by_the_next(tmp_path):
    root = os.path.dirname(os.path.dirname(soups.__file__))
    saver = subprocess.Popen(
        [sys.executable, "-c", _SAVE, tmp_path / "so[u]p"],
        env={**os.environ, "PYTHONPATH": root, "JAX_PLATFORMS": "cpu"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert saver.stdout.readline() == b"now\n"
    saver.send_signal(signal.SIGKILL)
    saver.communicate()
    assert [name for name in os.listdir(tmp_path) if name.endswith(".unfinished")]
    (tmp_path / f".other-{time.time_ns()}.unfinished").mkdir()
    save_soup(tmp_path / "so[u]p", _params(0))
    assert sorted(name[:7] for name in os.listdir(tmp_path)) == [".other-", "so[u]p"]


def test_the_old_function_says_what_took_its_place(pool):
    with pytest.raises(TypeError, match=r"soups\.pool\.save_soup"):
        soups.merge(pool, soups.uniform, "out")
