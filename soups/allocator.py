"""Keep the memory that computations free and need again at once."""

import contextlib
import ctypes
from collections.abc import Iterator

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # parameters of glibc's mallopt
_KEPT = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1}
# where glibc itself arrives when arrays of tens of megabytes come and go; it adapts no more once anything was set
_USUAL = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 2**25, _TRIM_THRESHOLD: 2**26}


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep what is freed for the next allocation, instead of giving it back to the system; without glibc do nothing.

    XLA allocates the temporaries of each step anew on a CPU. By default glibc maps large ones from the system each
    time, which clears every page: a third of the processor time of a step of a small convolutional network. The process
    holds its peak until the context ends.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # another C library, or Windows
        yield
        return
    for parameter, value in _KEPT.items():
        mallopt(parameter, value)
    try:
        yield
    finally:
        for parameter, value in _USUAL.items():
            mallopt(parameter, value)
