"""All that trains, measures and merges works in a process with JAX_ENABLE_X64=1, and keeps the weights' dtypes."""

import pathlib
import subprocess
import sys

import jax

PROGRAM = pathlib.Path(__file__).with_name("x64_smoke.py")


def test_all_works_in_double_precision(quick_start):
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    environment = quick_start | cache | {"JAX_ENABLE_X64": "1", "JAX_NUM_CPU_DEVICES": "2"}
    done = subprocess.run([sys.executable, str(PROGRAM)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr[-3000:]
    assert done.stdout.count(" works\n") == 8
