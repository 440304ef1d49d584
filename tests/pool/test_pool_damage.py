"""Test that a pool notices every flipped bit and survives what happens to files: full disks, kills, other processes."""

import contextlib
import os
import pathlib
import re
import resource
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import soups
from soups import engine
from soups.pool import Pool, PoolCorruptionError

ROOT = pathlib.Path(__file__).parents[2]


def _params(seed, size=40):
    rng = np.random.default_rng(seed)
    return {"a": {"w": rng.standard_normal((size, 8), np.float32)}, "b": rng.standard_normal(5, np.float32)}


def _same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


# --- Flipped bits -----------------------------------------------------------------------------------------------------


@pytest.fixture
def pool(tmp_path, mesh):
    """Return a pool of two members, one of them with a leaf in several shards and a big one in one file."""
    pool = Pool(tmp_path / "pool")
    shards = NamedSharding(mesh, P("pool", "data"))
    for seed in range(2):
        w = jax.device_put(_params(seed)["a"]["w"], shards) if seed else _params(seed)["a"]["w"]
        big = np.random.default_rng(seed).standard_normal(100_000).astype(np.float32)
        pool.add(f"m{seed}", {"a": {"w": w}, "big": big, "copied": np.arange(3)})
    return pool


@contextlib.contextmanager
def _flipped(path, position, bit):
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[position] ^= 1 << bit
    path.write_bytes(damaged)
    yield
    path.write_bytes(content)


def _readers(pool):
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one), pool.structure)
    whole = engine.Recipe(lambda part, _: part.leaves[0], unit="leaf")
    return {
        "getitem": lambda: pool["m1"],
        "load": lambda: pool.load("m1", like=like),
        "merge": lambda: soups.uniform(pool),
        "merge whole leaves": lambda: engine.merge(whole, pool),
    }


@pytest.fixture
def x64():
    """Let JAX hold the integers as NumPy makes them."""
    with jax.enable_x64(True):
        yield


def test_one_flipped_bit_in_any_file_is_detected_and_named(pool, rng, x64):
    record = pool.record("m1")
    directory = pool.path / record["path"]
    readers = _readers(pool)
    assert len(record["files"]) == len([path for path in directory.rglob("*") if path.is_file()]) > 14
    for file in record["files"]:
        size = (directory / file).stat().st_size
        for position in {0, size - 1, int(rng.integers(0, size))} if size else ():
            with _flipped(directory / file, position, int(rng.integers(8))):
                for reader in readers.values():
                    with pytest.raises(PoolCorruptionError, match=rf"(?s)member 'm1'.*{re.escape(file)}"):
                        reader()
                assert [bool(problems) for problems in pool.verify().values()] == [False, True]
    for reader in readers.values():
        reader()


@pytest.mark.parametrize("damage", ["missing", "truncated", "longer"])
def test_a_file_of_another_length_is_detected_and_its_leaf_named(pool, damage, x64):
    path = pool.path / pool.record("m1")["path"] / "state/big/0"
    content = path.read_bytes()
    path.write_bytes(content[:-4] if damage == "truncated" else content + b"\0")
    if damage == "missing":
        path.unlink()
    for reader in _readers(pool).values():
        with pytest.raises(PoolCorruptionError, match=r"member 'm1'.* state/big/0 \(leaf big\)"):
            reader()


def test_a_flip_that_the_recipe_stumbles_over_is_reported_as_corruption(pool):
    path = pool.path / pool.record("m1")["path"] / "state/big/0"

    def picky(part, _):
        if part.leaves[1].dtype == np.float32 and np.abs(part.leaves[1]).max() > 1e6:
            raise ZeroDivisionError
        return part.leaves[0]

    with _flipped(path, 3, 6), pytest.raises(PoolCorruptionError, match=r"'m1'(?s:.*)leaf big"):
        engine.merge(engine.Recipe(picky), pool)


def test_verify_reports_files_that_do_not_belong(pool):
    (pool.path / pool.record("m0")["path"] / "state" / "extra").write_text("")
    assert pool.verify(["m0"]) == {"m0": ["state/extra"]}
    assert pool.verify(["m1"]) == {"m1": []}


@pytest.mark.parametrize("pattern", ["manifest.json", "records/*m1*.json"])
def test_a_flipped_bit_in_the_manifest_or_a_record_is_detected(pool, rng, pattern):
    (path,) = pool.path.glob(pattern)
    size = path.stat().st_size
    for position in [0, 15, 46, size - 1, *rng.integers(0, size, 20).tolist()]:
        with (
            _flipped(path, position, int(rng.integers(8))),
            pytest.raises(PoolCorruptionError, match=rf"{path.name} does not have the bytes"),
        ):
            Pool(pool.path)
    assert Pool(pool.path).names == ["m0", "m1"]


# --- Disks ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _largest_file(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def _small_disk(path):
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", path], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def _check_that_add_fails(pool, size):
    before = sorted(path for path in pool.path.rglob("*") if path.is_file())
    with pytest.raises(OSError, match=r"cannot add member 'new' to the pool") as error:
        pool.add("new", _params(1, size))
    assert str(pool.path) in str(error.value)
    assert sorted(path for path in pool.path.rglob("*") if path.is_file()) == before
    assert Pool(pool.path).verify() == {"old": []}


# Orbax leaves the coroutines of a failed save behind
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_is_an_error_wherever_it_strikes_and_leaves_nothing(tmp_path):
    disk = tmp_path / "disk"
    with _small_disk(disk):
        pool = Pool(disk / "pool")
        pool.add("old", _params(0))
        pages = 0
        while "new" not in pool:
            _fill(disk, leave=pages * 4096)
            with contextlib.suppress(OSError):
                pool.add("new", _params(1))
                continue
            _check_that_add_fails(pool, 40)
            pages += 1
        assert pages > 4  # it failed at the leaves, at the small files after them and at the manifest
        assert _same(Pool(pool.path)["new"], _params(1))


def _fill(disk, leave):
    (disk / "ballast").write_bytes(b"")
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "ballast").write_bytes(b"\0" * (free - leave))


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_file_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path):
    pool = Pool(tmp_path / "pool")
    pool.add("old", _params(0, 4000))
    with _largest_file(100_000):
        _check_that_add_fails(pool, 4000)
    with _largest_file(1_000), pytest.raises(OSError, match="cannot change the pool"):
        pool.update_metrics("old", {"held_out": 0.5})
    assert pool.metrics("old") == Pool(pool.path).metrics("old") == {}


def test_a_place_that_cannot_be_written_is_an_error_at_once(tmp_path):
    pool = Pool("/proc/pool")
    with pytest.raises(OSError, match=r"cannot add member 'a' to the pool /proc/pool"):
        pool.add("a", _params(0))
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=r"a pool is a directory, but .*/file is a file"):
        Pool(tmp_path / "file" / "pool")


def test_a_pool_on_a_read_only_disk_can_be_read_but_not_changed(tmp_path):
    disk = tmp_path / "disk"
    with _small_disk(disk):
        pool = Pool(disk / "pool")
        pool.add("old", _params(0))
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        _check_that_add_fails(pool, 40)
        with pytest.raises(OSError, match="cannot change the pool"):
            pool.remove("old")
        assert _same(Pool(disk / "pool")["old"], _params(0))


# --- Other processes --------------------------------------------------------------------------------------------------

_PRELUDE = """
import os, signal, sys, time
import numpy as np
from soups.pool import Pool
def params(seed, size=40):
    rng = np.random.default_rng(seed)
    return {"a": {"w": rng.standard_normal((size, 8), np.float32)}, "b": rng.standard_normal(5, np.float32)}
path = sys.argv[1]
"""
_ADD_FOUR_TWICE = """
from orbax.checkpoint import v1  # once for both
child = os.fork()
by = "x" if child else "y"
for i in range(4):
    Pool(path).add(f"{by}-{i}", params(i), {"by": by})
if not child:
    os._exit(0)
sys.exit(os.waitpid(child, 0)[1])
"""

# Each trial is a fork, made before JAX has started any thread, that is killed a little later than the one before.
_KILL = """
from orbax.checkpoint import v1  # once, and not in each fork
def trial(name, delay=None):
    ready, tell = os.pipe()
    child = os.fork()
    if not child:
        pool = Pool(path)
        os.write(tell, b"1")
        pool.add(name, params(int(name), 4000))
        os._exit(0)
    os.read(ready, 1)
    start = time.perf_counter()
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return time.perf_counter() - start
duration = trial("0")
for i in range(1, 11):
    trial(str(i), duration * i / 9)
"""


def _python(code, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen([sys.executable, "-c", _PRELUDE + code, *map(str, arguments)], env=environment)


def test_processes_that_add_at_once_lose_nothing_and_readers_see_whole_pools(tmp_path):
    path = tmp_path / "pool"
    adders = _python(_ADD_FOUR_TWICE, path)
    seen = [[]]
    while adders.poll() is None:
        pool = Pool(path)
        assert pool.names[: len(seen[-1])] == seen[-1]
        if pool.names != seen[-1]:
            assert all(_same(pool[name], _params(int(name[2:]))) for name in pool.names[len(seen[-1]) :])
            assert pool.verify(pool.names) == {name: [] for name in pool.names}
            seen.append(pool.names)
        time.sleep(0.02)  # else the readers take the processor that the adders need
    assert adders.returncode == 0
    assert sorted(Pool(path)) == [f"{by}-{i}" for by in "xy" for i in range(4)]
    assert Pool(path).verify() == {name: [] for name in Pool(path)}


def test_a_killed_adder_leaves_only_whole_members(tmp_path):
    path = tmp_path / "pool"
    assert _python(_KILL, path).wait() == 0
    pool = Pool(path)
    missing = [str(i) for i in range(11) if str(i) not in pool]
    assert "0" in pool
    assert missing  # a kill at a ninth of the time comes before the end
    assert all(_same(pool[name], _params(int(name), 4000)) for name in pool)
    problems = pool.verify()
    orphans = [name for name, found in problems.items() if found]
    assert all(orphan.startswith("members/") for orphan in orphans)
    for name in missing:
        pool.add(name, _params(int(name), 4000))
    assert sorted(pool.sweep_orphans()) == sorted(orphans)
    assert Pool(path).verify() == {name: [] for name in pool}
    assert len(pool) == 11


def test_sweeping_spares_what_is_being_added(tmp_path):
    pool = Pool(tmp_path / "pool")
    pool.add("whole", _params(0))
    with open(tmp_path / "other.py", "w") as file:
        file.write(_PRELUDE)
        file.write(
            "from soups.pool import _manifest\n"
            "import pathlib\n"
            "with _manifest.reserved(pathlib.Path(path), 'slow') as directory:\n"
            "    (pathlib.Path(path) / (directory + '.orbax-checkpoint-tmp')).mkdir()\n"
            "    print(directory, flush=True)\n"
            "    sys.stdin.read()\n"
            "    os._exit(0)\n"
        )
    adder = subprocess.Popen(
        [sys.executable, tmp_path / "other.py", pool.path],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    directory = adder.stdout.readline().strip()
    assert pool.verify() == {"whole": []}
    assert pool.sweep_orphans() == []
    adder.communicate()  # ends it without cleaning up, as a kill does
    unfinished = [f"{directory}.adding", f"{directory}.orbax-checkpoint-tmp"]
    assert sorted(set(pool.verify()) - {"whole"}) == unfinished
    assert sorted(pool.sweep_orphans()) == unfinished
    assert pool.verify() == {"whole": []}
