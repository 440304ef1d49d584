"""Make the tests strict: 8 CPU devices, no implicit promotion of dtypes or ranks, a persistent compilation cache."""

import pathlib

import jax

# All of this must stand before the backend starts: afterwards JAX ignores it without a word.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(__file__).parents[1] / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

import numpy as np
import pytest
from jax.sharding import AxisType


def pytest_sessionstart(session):
    """Refuse to run on fewer devices than the sharding tests are about."""
    if jax.default_backend() == "cpu" and len(jax.devices()) != 8:
        raise pytest.UsageError(f"the tests need 8 CPU devices, JAX started with {len(jax.devices())}")


@pytest.fixture(scope="session")
def mesh():
    """Give the mesh ("pool": 4, "data": 2) over the 8 devices."""
    return jax.make_mesh((4, 2), ("pool", "data"), axis_types=(AxisType.Auto,) * 2)


@pytest.fixture
def rng():
    """Give a NumPy generator with a fixed seed."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory):
    """Give a TFDS directory in which both sets of digits are prepared."""
    from soups.data import tfds_source

    path = tmp_path_factory.mktemp("tensorflow_datasets")
    for name in ("mnist_5k", "optdigits"):
        tfds_source(name, "train", data_dir=path)
    return path
