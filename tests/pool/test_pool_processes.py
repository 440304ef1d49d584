"""Test that several JAX processes write one pool together."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from soups.pool import Pool, digest

ROOT = pathlib.Path(__file__).parents[2]

_WORKER = """
import sys
import jax
import numpy as np
jax.config.update("jax_num_cpu_devices", 2)
process, port, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)
import pathlib
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from soups.pool import Pool, save_soup
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
rows = NamedSharding(mesh, P("data"))
w = np.arange(24, dtype=np.float32).reshape(8, 3)
pool = Pool(pathlib.Path(path) / "pool")
for name in ("first", "second"):
    sharded = jax.make_array_from_process_local_data(rows, w[4 * process : 4 * process + 4])
    local = jax.device_put(np.ones(3, np.float32), jax.local_devices()[0])
    record = pool.add(name, {"sharded": sharded, "local": local, "host": np.arange(2)}, {"seed": 1})
    assert pool.record(name) == record and record["metadata"] == {"seed": 1}
for name, error in (("first", "already has a member"), ("", "printable")):
    try:
        pool.add(name, {"sharded": sharded, "local": local, "host": np.arange(2)})
    except ValueError as caught:
        assert error in str(caught), caught
    else:
        raise SystemExit("nothing was raised")
like = {"sharded": jax.ShapeDtypeStruct((8, 3), np.float32, sharding=rows)}
like |= {"local": jax.ShapeDtypeStruct((3,), np.float32, sharding=NamedSharding(mesh, P()))}
like |= {"host": jax.ShapeDtypeStruct((2,), np.int64, sharding=NamedSharding(mesh, P()))}
with jax.enable_x64(True):
    loaded = pool.load("first", like=like)
assert loaded["sharded"].sharding == rows
assert all(np.array_equal(np.asarray(s.data), w[s.index]) for s in loaded["sharded"].addressable_shards)
whole = {"sharded": sharded, "local": local, "host": np.arange(2)}
assert save_soup(pathlib.Path(path) / "soup", whole, pool=pool) == pathlib.Path(path) / "soup"
try:
    save_soup(pathlib.Path(path) / "soup", whole)
except OSError as caught:
    assert "exists" in str(caught), caught
else:
    raise SystemExit("nothing was raised")
"""


def test_two_processes_add_one_member_together(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    workers = [
        subprocess.Popen([sys.executable, "-c", _WORKER, str(i), str(port), tmp_path], env=environment)
        for i in range(2)
    ]
    try:
        codes = [worker.wait(timeout=60) for worker in workers]
    except subprocess.TimeoutExpired:
        pytest.fail("the processes wait for each other")
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert codes == [0, 0]
    pool = Pool(tmp_path / "pool")
    w = np.arange(24, dtype=np.float32).reshape(8, 3)
    expected = {"sharded": w, "local": np.ones(3, np.float32), "host": np.arange(2)}
    assert pool.verify() == {"first": [], "second": []}
    assert jax.tree.map(np.array_equal, pool["second"], expected) == {"sharded": True, "local": True, "host": True}
    assert pool.digest("first") == digest(expected)
    record = json.loads((tmp_path / "soup" / "soup.json").read_text())
    assert (record["digest"], list(record["ingredients"])) == (digest(expected), ["first", "second"])
    assert sorted(os.listdir(tmp_path)) == ["pool", "soup"]
