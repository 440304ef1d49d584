"""Choose JAX's settings for a run of experiments, but never those that the user has chosen."""

import os
from collections.abc import Mapping
from typing import Any


def preferred(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of `jax.config` to set, without those that the environment has, as in JAX_NUM_CPU_DEVICES=2."""
    settings = {
        "jax_compilation_cache_dir": os.path.abspath(".cache/jax"),
        "jax_persistent_cache_min_compile_time_secs": 0.5,
        # one device for each core lets a sweep train that many members side by side; accelerators come before them
        "jax_num_cpu_devices": os.cpu_count(),
    }
    if "xla_force_host_platform_device_count" in environ.get("XLA_FLAGS", ""):
        del settings["jax_num_cpu_devices"]
    return {name: value for name, value in settings.items() if name.upper() not in environ}
