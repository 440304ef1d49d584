"""Make the tests strict: 8 CPU devices, no implicit promotion of dtypes or ranks, a persistent compilation cache."""

import gc
import importlib.util
import os
import pathlib
import signal
import socket
import subprocess
import time

import jax

ROOT = pathlib.Path(__file__).parents[1]

if not hasattr(jax, "enable_x64"):  # the oldest versions that we run on have it elsewhere
    from jax.experimental import enable_x64

    jax.enable_x64 = enable_x64

# Most of the time goes into compiling programs that run once; flags that are set are kept.
_QUICK = "--xla_backend_optimization_level=0"
if jax.__version_info__ < (0, 12):  # which does not know it any more
    _QUICK += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", _QUICK)

# All of this must stand before the backend starts: afterwards JAX ignores it without a word.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

import numpy as np
import pytest
from jax.sharding import AxisType

# whole runs and runs of several processes first: small files then fill the processes up to the end
_LONG = ("test_imagenet", "studies/", "two_processes", "train/", "test_sharded", "test_contract", "your_own")


def pytest_collection_modifyitems(items):
    """Order the files by how long they take, the longest first; within a file nothing moves."""

    def rank(item):
        path = item.path.as_posix()
        return next((place for place, part in enumerate(_LONG) if part in path), len(_LONG))

    items.sort(key=rank)


def pytest_sessionstart(session):
    """Refuse to run on fewer devices than the sharding tests are about."""
    # a shell that starts the tests in the background, or nohup, lets them and what they start ignore these
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    gc.set_threshold(100_000, 20, 100)  # compiled programs are millions of objects that stay
    if jax.default_backend() == "cpu" and len(jax.devices()) != 8:
        raise pytest.UsageError(f"the tests need 8 CPU devices, JAX started with {len(jax.devices())}")


@pytest.fixture(scope="session")
def mesh():
    """Return the mesh ("pool": 4, "data": 2) over the 8 devices."""
    return jax.make_mesh((4, 2), ("pool", "data"), axis_types=(AxisType.Auto,) * 2)


@pytest.fixture
def rng():
    """Return a NumPy generator with a fixed seed."""
    return np.random.default_rng(0)


@pytest.fixture
def undrawn(monkeypatch):
    """Leave the figures out of reports, whose drawing takes most of the time."""
    monkeypatch.setattr("soups.report.page.draw_all", lambda results: [])


@pytest.fixture(scope="session")
def quick_start():
    """Return the environment of a process that starts this library; its programs are compiled as those here."""
    return os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="session")
def run_both(quick_start):
    """Return a function that runs two processes of one JAX run, and gives what each of them printed.

    It is given a function from the index of a process and a free port to its command, and the code both must end with.
    One that fails would leave the other waiting for it: then both are killed.
    """

    def run(command, folder, seconds, code=0):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = str(free.getsockname()[1])
        logs, processes = [folder / f"log{index}.txt" for index in range(2)], []
        try:
            for index, log in enumerate(logs):
                with open(log, "w") as file:
                    output = {"stdout": file, "stderr": subprocess.STDOUT, "env": quick_start, "cwd": ROOT}
                    processes.append(subprocess.Popen(command(index, port), **output))
            deadline, codes = time.monotonic() + seconds, [None, None]
            while None in codes and set(codes) <= {None, code} and time.monotonic() < deadline:
                time.sleep(0.1)
                codes = [process.poll() for process in processes]
            assert codes == [code, code], [log.read_text()[-3000:] for log in logs]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        return [log.read_text() for log in logs]

    return run


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory):
    """Return a TFDS directory in which both sets of digits are prepared."""
    from soups.data import tfds_source

    path = tmp_path_factory.mktemp("tensorflow_datasets")
    for name in ("mnist_5k", "optdigits"):
        tfds_source(name, "train", data_dir=path)
    return path


@pytest.fixture(scope="session")
def miniature(tmp_path_factory):
    """Return a folder with a small ImageNet, its shifts and a pool of CLIPs; made once: copy what a test damages."""
    spec = importlib.util.spec_from_file_location("imagenet_miniature", ROOT / "tests" / "imagenet_miniature.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)  # here, for it brings the networks with it
    return module.shared_miniature(tmp_path_factory)


@pytest.fixture(scope="session")
def script():
    """Return a function from the name of a script of the project to its module."""

    def load(name):
        spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / "scripts" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
