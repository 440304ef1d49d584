"""See that freed memory is kept, by the pages that the system must clear for the next array."""

import subprocess
import sys

import pytest

from soups.allocator import freed_memory_kept

_COUNT = """
import contextlib, resource, sys
import numpy as np
from soups.allocator import freed_memory_kept

with freed_memory_kept() if sys.argv[1] == "kept" else contextlib.nullcontext():
    np.empty(48 * 2**20, np.uint8).fill(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(48 * 2**20, np.uint8).fill(1)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def cleared_pages(how):
    """Count the page faults of a second array after a first one was freed."""
    return int(subprocess.run([sys.executable, "-c", _COUNT, how], capture_output=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone is asked to keep memory")
def test_a_second_array_takes_the_pages_of_the_first():
    assert cleared_pages("kept") < cleared_pages("as usual") / 2


def test_nothing_is_done_where_the_allocator_is_another(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    with freed_memory_kept():
        pass
