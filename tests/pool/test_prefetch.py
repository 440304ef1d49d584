"""Members read ahead of need: once each while there is room, the bits of the files, errors where they belong."""

import shutil
import threading
import time
import weakref
from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest

import soups
from soups.pool import prefetch
from soups.pool.prefetch import kept_dtype, prefetched

TIMEOUT = 20


class Files(dict):
    """Stand in for members in files: every reading is counted and can be waited for."""

    def __init__(self, count=6, size=100):
        rng = np.random.default_rng(0)
        super().__init__({f"m{i}": {"w": rng.normal(size=size).astype(np.float32)} for i in range(count)})
        self.reads = Counter()
        self.was_read = {name: threading.Event() for name in self}
        self.broken = set()
        self.last = {}

    def __getitem__(self, name):
        if name not in self:
            raise KeyError(name)
        self.reads[name] += 1
        self.was_read[name].set()
        if name in self.broken:
            raise OSError(f"{name} cannot be read")
        array = super().__getitem__(name)["w"].copy()
        self.last[name] = weakref.ref(array)
        return {"w": array}


def test_two_passes_read_each_member_once():
    files = Files()
    members = prefetched(files)
    assert list(members) == list(files)
    for order in (list(files), sorted(files, reverse=True)):
        for name in order:
            np.testing.assert_array_equal(members[name]["w"], dict.__getitem__(files, name)["w"])
    assert files.reads == dict.fromkeys(files, 1)


def test_the_next_in_order_are_read_before_they_are_asked_for():
    files = Files()
    members = prefetched(files, ["m4", "m1", "m3", "m0"], ahead=2)
    assert not files.reads
    members["m4"]
    assert files.was_read["m1"].wait(TIMEOUT)
    assert files.was_read["m3"].wait(TIMEOUT)
    assert sorted(files.reads) == ["m1", "m3", "m4"]
    members["m1"]
    assert files.was_read["m0"].wait(TIMEOUT)
    members["m2"]  # not in the order: read when asked for
    assert files.reads == dict.fromkeys(["m0", "m1", "m2", "m3", "m4"], 1)


def test_nothing_is_read_ahead_if_so_asked():
    files = Files()
    members = prefetched(files, ahead=0)
    members["m0"]
    time.sleep(0.05)
    assert files.reads == {"m0": 1}


def test_members_beyond_the_room_are_read_again():
    files = Files(count=4, size=100)
    members = prefetched(files, keep_bytes=2 * 400)
    for _ in range(3):
        for name in files:
            members[name]
    # the read-ahead at the end of a pass reaches nothing, and none is read twice within one
    assert files.reads == {"m0": 1, "m1": 1, "m2": 3, "m3": 3}


def test_bfloat16_takes_half_the_room_and_is_given_as_float32():
    files = Files(count=4)
    members = prefetched(files, keep_bytes=4 * 200, dtype="bfloat16")
    for _ in range(2):
        for name in files:
            given, exact = members[name]["w"], dict.__getitem__(files, name)["w"]
            assert given.dtype == np.float32
            np.testing.assert_array_equal(given, exact.astype(jnp.bfloat16).astype(np.float32))
    assert files.reads == dict.fromkeys(files, 1)


def test_members_are_also_given_as_they_are_kept():
    files = Files()
    rounded, exact = prefetched(files, dtype="bfloat16"), prefetched(files)
    assert rounded.as_kept("m1")["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(rounded.as_kept("m1")["w"], rounded["m1"]["w"].astype(jnp.bfloat16))
    assert exact.as_kept("m1")["w"] is exact["m1"]["w"]


@pytest.mark.parametrize(
    ("free", "chosen"), [(4096, "float32"), (4095, "bfloat16"), (2048, "bfloat16"), (2047, "float32")]
)
def test_the_dtype_is_what_memory_allows(free, chosen, monkeypatch):
    monkeypatch.setattr(prefetch, "_free_bytes", lambda: free)
    member = {"w": np.zeros(128, np.float32), "n": np.zeros(1000, np.int32)}  # integers are never rounded
    assert kept_dtype([member] * 4) == chosen
    with pytest.raises(ValueError, match="no members"):
        kept_dtype([])


def test_rounded_members_do_not_pass_for_those_of_the_pool(tmp_path):
    pool = soups.Pool(tmp_path)
    pool.add("m", {"w": np.float32([1.001])})
    assert prefetched(pool).digest("m") == pool.digest("m")
    rounded = prefetched(pool, dtype="bfloat16")
    assert soups.greedy(rounded, lambda params: 0.0).digests == {}


def test_integers_and_narrow_floats_are_not_rounded():
    member = {"n": np.int32([2**20 + 1]), "half": np.float16([1.0009765625]), "w": np.float32([1.0009765625])}
    given = prefetched([member], dtype=jnp.bfloat16)["0"]
    assert given["n"][0] == 2**20 + 1
    assert given["half"][0] == member["half"][0]
    assert given["w"][0] == 1.0


def test_mapped_files_are_copied_into_memory(tmp_path):
    stored = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.save(tmp_path / "w.npy", stored)
    mapped = np.load(tmp_path / "w.npy", mmap_mode="r")
    given = prefetched({"a": {"w": mapped.T}})["a"]["w"]
    np.testing.assert_array_equal(given, stored.T)
    assert given.flags.owndata
    assert given.flags.f_contiguous  # as the view: transposing is left to the device
    assert not given.flags.writeable


def test_an_error_arrives_where_the_member_is_asked_for_and_only_there():
    files = Files()
    files.broken.add("m1")
    members = prefetched(files)
    members["m0"]
    assert files.was_read["m1"].wait(TIMEOUT)
    with pytest.raises(OSError, match="m1 cannot be read"):
        members["m1"]
    members["m2"]
    files.broken.clear()
    np.testing.assert_array_equal(members["m1"]["w"], dict.__getitem__(files, "m1")["w"])
    assert files.reads["m1"] == 2
    with pytest.raises(KeyError, match="m99"):
        members["m99"]


def test_what_was_read_ahead_in_vain_is_let_go():
    files = Files(count=10)
    members = prefetched(files, ahead=1, keep_bytes=0)
    members["m0"]
    assert files.was_read["m1"].wait(TIMEOUT)
    end = time.monotonic() + TIMEOUT
    while files.last["m1"]() is not None and time.monotonic() < end:
        members["m8"]
    assert files.last["m1"]() is None


def test_many_threads_share_one_reading():
    files, found = Files(count=8), []
    members = prefetched(files, ahead=8)
    threads = [
        threading.Thread(target=lambda name=name: found.append(members[name])) for name in list(files) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 24
    assert files.reads == dict.fromkeys(files, 1)


def test_a_pool_gives_the_same_greedy_soup_and_need_not_stay(tmp_path, caplog):
    pool, rng = soups.Pool(tmp_path / "pool"), np.random.default_rng(1)
    for index in range(4):
        pool.add(f"m{index}", {"a": {"w": rng.normal(size=5).astype(np.float32)}})
    pool.add("diverged", {"a": {"w": np.full(5, np.nan, np.float32)}})

    def evaluate(params):
        return -float(np.sum(np.asarray(params["a"]["w"], np.float64) ** 2))

    expected = soups.greedy(pool, evaluate)
    members = prefetched(pool)
    assert "diverged" in caplog.text
    found = soups.greedy(members, evaluate)
    assert found.record() == expected.record()
    assert found.digests == {name: pool.digest(name) for name in found.ingredients}
    shutil.rmtree(tmp_path / "pool")
    np.testing.assert_array_equal(soups.greedy(members, evaluate).params["a"]["w"], expected.params["a"]["w"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": ["m0", "mm1"]}, "unknown member 'mm1' .did you mean 'm1'"),
        ({"ahead": -1}, "at least 0, not -1"),
        ({"keep_bytes": -5}, "at least 0, not 2 and -5"),
    ],
)
def test_wrong_options_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        prefetched(Files(), **options)
    with pytest.raises(ValueError, match="no members"):
        prefetched({})
