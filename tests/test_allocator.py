"""See that freed memory is kept, by the pages that the system must clear for the next array."""

import os
import subprocess
import sys

import pytest

from soups.allocator import _BY_USERS, keep_freed_memory

_COUNT = """
import resource, sys, threading
from soups import allocator

if sys.argv[1]:
    getattr(allocator, sys.argv[1])()

def count():
    size = int(sys.argv[2]) * 2**20
    bytearray(b"1") * size
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(b"1") * size
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=count)
thread.start()
thread.join()
"""
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone is asked to keep memory")


def cleared_pages(function, megabytes, **environ):
    """Count the page faults of a second array of a thread after a first one was freed."""
    environ = {name: value for name, value in os.environ.items() if name not in _BY_USERS} | environ
    command = [sys.executable, "-c", _COUNT, function, str(megabytes)]
    return int(subprocess.run(command, capture_output=True, check=True, env=environ).stdout)


@linux
@pytest.mark.parametrize(("function", "megabytes"), [("keep_freed_memory", 48), ("keep_freed_blocks", 4)])
def test_a_second_array_takes_the_pages_of_the_first(function, megabytes):
    assert cleared_pages(function, megabytes) < cleared_pages("", megabytes) / 2


@linux
def test_what_the_user_sets_of_the_allocator_stays():
    usual = cleared_pages("", 48)
    assert cleared_pages("keep_freed_memory", 48, MALLOC_TRIM_THRESHOLD_="131072") > usual / 2


def test_nothing_is_done_where_the_allocator_is_another(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    keep_freed_memory()
