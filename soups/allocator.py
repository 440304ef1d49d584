"""Keep the memory that is freed and needed again at once."""

import ctypes
import os
from importlib.util import find_spec

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -2, -3, -4, -8  # parameters of glibc's mallopt
_BY_USERS = ("GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_")


def keep_freed_memory() -> None:
    """Let this process keep what computations on CPUs free, until it ends; call it before JAX computes anything.

    XLA allocates the temporaries of each step anew on a CPU, in threads of its own. By default glibc maps large ones
    from the system each time and gives back what lies in arenas of threads, and the system clears every page again:
    half of the processor time of a step of a small convolutional network. So there is one arena, which keeps all.
    Nothing is done where JAX has a plugin for accelerators, where the environment sets the allocator, and without
    glibc.
    """
    from importlib.metadata import entry_points  # not for merges: it takes long

    accelerated = entry_points(group="jax_plugins") or find_spec("libtpu")
    if not accelerated and not any(name in os.environ for name in _BY_USERS):
        _tell_glibc({_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1})


def keep_freed_blocks() -> None:
    """Let this process keep up to 256 MB of what merges free, and map only what is larger than 8 MB.

    By default glibc gives the memory of every freed block back to the kernel, which then clears it page by page for the
    next one: ten times the cost of the arithmetic.
    """
    _tell_glibc({_TRIM_THRESHOLD: 2**28, _TOP_PAD: 2**26, _MMAP_THRESHOLD: 2**23})


def _tell_glibc(parameters):
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # another C library, or Windows, does as it likes
        return
    for parameter, value in parameters.items():
        mallopt(parameter, value)
