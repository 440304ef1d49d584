"""Look at processes that tests have started, and at what these have started."""

import pathlib
import time


def await_end(pid: int, seconds: float = 20) -> None:
    """Wait until a process has ended, though its parent may not have asked for it; an AssertionError if it goes on."""
    deadline = time.monotonic() + seconds
    while _runs(pid):
        assert time.monotonic() < deadline, f"process {pid} goes on"
        time.sleep(0.02)


def _runs(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
