"""Test pools on object stores with real requests: members are there whole or not at all, whoever is killed."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from store_servers import send

import soups
from soups import leases, stores
from soups.pool import PoolCorruptionError
from soups.pool.claims import claimed
from soups.stores import store_path

PARAMS = {"a": {"w": np.arange(12, dtype=np.float32).reshape(3, 4)}, "n": np.arange(3), "s": np.float32(2)}
CHILD = """
import sys, numpy as np, soups
from soups import leases
leases.SECONDS = 2.5
pool = soups.Pool(sys.argv[1])
print("begin", flush=True)
sys.stdin.readline()
for name in sys.argv[2:]:
    try:
        pool.add(name, {"w": np.full(4, len(name), np.float32)})
        print("added", name, flush=True)
    except ValueError as error:
        print("not", name, error, flush=True)
"""


def child(*arguments):
    """Start a process that adds members as soon as a line is sent to it."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "begin\n"
    return process


def go(process):
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write("\n")
        process.stdin.flush()


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def test_a_pool_on_a_store_is_that_of_a_folder(either, proxy, tmp_path):
    pool = soups.Pool(either)
    assert len(pool) == 0
    record = pool.add("one", PARAMS, {"lr": 0.1}, files={"config.json": "{}"})
    pool.add("two", jax.tree.map(lambda leaf: leaf + np.ones_like(leaf), PARAMS), metrics={"accuracy": 0.5})
    other = soups.Pool(either, must_exist=True)
    assert other.names == ["one", "two"] and other.record("one") == record and len(other.usable) == 2
    equal(other["one"], PARAMS)
    assert other.tensors("one").kept()["config.json"].read_text() == "{}"
    assert other.verify() == {"one": [], "two": []}
    with pytest.raises(ValueError, match="already has a member 'one'"):
        other.add("one", PARAMS)
    other.update_metrics("one", {"accuracy": 1.0})
    assert pool.refresh() is False and pool.metrics("one") == {"accuracy": 1.0}
    # the objects are the files of a pool in a either
    for path in store_path(either).sizes():
        place = tmp_path / path.relative_to(store_path(either))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())
    local = soups.Pool(tmp_path)
    assert local.names == ["one", "two"] and local.verify() == {"one": [], "two": []}
    equal(local["two"], other["two"])
    pool.remove("one")
    assert soups.Pool(either).names == ["two"] and pool.sweep_orphans() == []
    # no request lists more than the pool
    name = either.rpartition("/")[2]
    listings = [request for request in proxy.seen if "list-type=2" in request]
    assert listings and all(f"prefix={name}%2F" in request for request in listings)


def test_leaves_go_straight_into_shardings(folder):
    pool, mesh = soups.Pool(folder), jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.sharding.NamedSharding(mesh, jax.P("x"))
    values = np.arange(8, dtype=np.float32).reshape(4, 2)
    pool.add("a", {"w": jax.device_put(values, sharded)})
    np.testing.assert_array_equal(pool["a"]["w"], values)
    restored = pool.load("a", like={"w": jax.ShapeDtypeStruct((4, 2), np.float32, sharding=sharded)})
    assert restored["w"].sharding == sharded
    np.testing.assert_array_equal(restored["w"], values)


def test_what_is_not_what_was_written_is_an_error_that_names_it(folder):
    pool = soups.Pool(folder)
    pool.add("one", PARAMS)
    (place,) = [path for path in store_path(folder).sizes() if path.parent.name == "a.w" and path.name == "0.0"]
    content = bytearray(place.read_bytes())
    content[5] ^= 1
    place.write_bytes(bytes(content))
    with pytest.raises(PoolCorruptionError, match=r"a\.w/0\.0 \(leaf a/w\) does not have the bytes"):
        pool["one"]
    place.unlink()
    assert [problem for problem in pool.verify()["one"] if "a.w/0.0 (leaf a/w) is missing" in problem]
    with pytest.raises(PoolCorruptionError, match="is missing"):
        pool["one"]


@pytest.mark.parametrize("at", ["/state/", ".lock", "/records/"])
def test_a_member_whose_writer_is_killed_is_not_there(at, proxy, folder):
    pool = soups.Pool(folder)
    pool.add("before", {"w": np.zeros(4, np.float32)})
    with child(folder, "killed") as process:

        def kill(method, path):
            if at in path and method == "PUT":
                process.kill()
                return True
            return False

        proxy.fails = kill
        go(process)
    proxy.mend()
    assert process.returncode == -signal.SIGKILL
    assert soups.Pool(folder).names == ["before"]
    pool.add("killed", {"w": np.ones(4, np.float32)})
    assert soups.Pool(folder).names == ["before", "killed"]
    strays = [name for name in pool.verify() if name not in pool]
    assert strays and all(name.startswith("members/killed-") for name in strays)
    assert pool.sweep_orphans() == strays
    assert pool.verify() == {"before": [], "killed": []}


def test_a_living_writer_is_not_swept_away(proxy, folder):
    pool = soups.Pool(folder)
    with child(folder, "slow") as process:
        proxy.fails = lambda method, path: time.sleep(6) if "/state/" in path else False
        go(process)
        while not any("/state/" in request for request in proxy.seen):
            time.sleep(0.05)
        time.sleep(4.6)
        assert pool.sweep_orphans() == []
        assert process.stdout.read() == "added slow\n"
    assert soups.Pool(folder).verify() == {"slow": []}


def test_of_two_writers_of_a_name_one_wins(either):
    names = "same", "a", "b"
    with child(either, *names[:2]) as one, child(either, names[0], names[2]) as other:
        go(one)
        go(other)
        said = [process.stdout.read() for process in (one, other)]
    assert sorted(line.split()[0] for text in said for line in text.splitlines() if " same" in line) == ["added", "not"]
    pool = soups.Pool(either)
    assert sorted(pool.names) == sorted(names) and pool.verify() == {name: [] for name in pool.names}


def test_a_store_that_fails_now_and_then_is_asked_again(proxy, folder):
    failed = set()

    def once(method, path):
        place = (method, path.partition("?")[0])
        return place not in failed and not failed.add(place)

    proxy.fails = once
    pool = soups.Pool(folder)
    pool.add("one", PARAMS)
    failed.clear()
    equal(soups.Pool(folder)["one"], PARAMS)
    assert len(failed) > 5


def test_a_store_that_is_slow_is_waited_for(proxy, folder):
    proxy.seconds = 0.1
    soups.Pool(folder).add("one", {"w": np.ones(2, np.float32)})
    assert soups.Pool(folder).names == ["one"]


def test_a_store_that_fails_for_good_is_one_sentence(proxy, folder, monkeypatch):
    monkeypatch.setattr(stores, "RETRIES", 2)
    stores._store.cache_clear()
    proxy.fails = lambda method, path: True
    with pytest.raises(OSError, match=r"it answered 503 Service Unavailable, also in 2 more tries: '.*manif"):
        soups.Pool(folder)
    assert len(proxy.seen) == 3


def test_wrong_credentials_are_one_sentence(proxy, folder, monkeypatch):
    send(f"http://{proxy.behind}/moto-api/reset-auth", "POST", b"0")
    try:
        with pytest.raises(
            PermissionError, match=r"refuses these credentials \(InvalidAccessKeyId\): set AWS_ACC"
        ) as e:
            soups.Pool(folder)
        assert "\n" not in str(e.value)
    finally:
        send(f"http://{proxy.behind}/moto-api/reset-auth", "POST", b"inf")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    stores._store.cache_clear()
    with pytest.raises(PermissionError, match="no credentials were found: set AWS_ACCESS_KEY_ID"):
        soups.Pool(folder)


@pytest.mark.parametrize("root", ["s3", "gs"])
def test_a_bucket_that_is_not_there_is_one_sentence(root, proxy):
    with pytest.raises(FileNotFoundError, match=f"there is no such bucket: '{root}://nobucket'"):
        soups.Pool(f"{root}://nobucket/pool").add("a", PARAMS)
    with pytest.raises(FileNotFoundError, match="there is no pool at"):
        soups.Pool(f"{root}://bucket/nothing", must_exist=True)


@pytest.mark.parametrize("url", ["s3://", "gs:///pool", "s3://B/pool", "s3://bucket/a//b", "s3://bucket/../b"])
def test_urls_that_name_no_place(url, proxy):
    with pytest.raises(ValueError, match=r"does not name a bucket|has an empty part"):
        soups.Pool(url)


def test_members_are_claimed_by_one_process(either):
    pool = soups.Pool(either)
    with claimed(pool, ["a", "b"]) as first, claimed(soups.Pool(either), ["a", "b"]) as second:
        assert (first, second) == (["a"], ["b"])
        with claimed(pool, ["a", "b"], 2) as third:
            assert third == []
    with claimed(pool, ["a", "b"], 2) as free:
        assert free == ["a", "b"]


def test_a_lease_that_is_not_renewed_is_taken_and_its_holder_knows(either, monkeypatch):
    place = store_path(either) / "lease"
    monkeypatch.setattr(leases.Lease, "_renewing", lambda self: None)  # as one of a machine that stands still
    lost = leases.take(place, "the pool", "process")
    with pytest.raises(BlockingIOError, match=r"process is writing to the pool: process \d+ on .*ends in 2.5 s"):
        leases.take(place, "the pool", "process")
    second = leases.take(place, "the pool", "process", wait=True)
    with pytest.raises(BlockingIOError, match="could not be renewed"):
        lost.check()
    lost.end()
    assert place.is_file()
    second.end()
    assert not place.is_file()


def test_without_the_client_it_is_one_sentence(tmp_path):
    code = "import sys; sys.modules['obstore'] = None; import soups; soups.Pool('s3://bucket/pool')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(pathlib.Path(soups.__file__).parents[1])},
    )
    assert 'MissingExtraError: obstore is not installed: pip install "soups[stores]"' in done.stderr
    assert os.listdir(tmp_path) == []
