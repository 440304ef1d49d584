"""Test that a run leaves alone what the user has set."""

import os

import jax
import pytest

from soups.cli.run import preferred

ALL = {"jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs", "jax_num_cpu_devices"}


def test_what_nobody_has_set_is_set():
    found = preferred({"XLA_FLAGS": "--xla_cpu_max_isa=AVX2", "HOME": "/"})
    assert found.keys() == ALL and found["jax_num_cpu_devices"] == os.cpu_count()
    assert all(name in jax.config.values for name in found)


@pytest.mark.parametrize(
    ("environ", "theirs"),
    [
        ({"XLA_FLAGS": "--xla_cpu_max_isa=AVX2 --xla_force_host_platform_device_count=3"}, "jax_num_cpu_devices"),
        ({"JAX_NUM_CPU_DEVICES": "2"}, "jax_num_cpu_devices"),
        ({"JAX_COMPILATION_CACHE_DIR": "/tmp/x"}, "jax_compilation_cache_dir"),
        ({"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}, "jax_persistent_cache_min_compile_time_secs"),
    ],
)
def test_what_the_user_has_set_stays(environ, theirs):
    assert preferred(environ).keys() == ALL - {theirs}
