"""Let a run that is told to end (SIGTERM) keep its state before it does, on one process or several."""

import contextlib
import itertools
import signal
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

_calls = itertools.count()  # of this process: JAX finds the step at which all stop by numbers that only grow


class Notice:
    """Know whether this process, or another one of the run, was told to end."""

    def __init__(self):
        """Have no notice yet."""
        self.given = False

    def given_at_this_step(self) -> bool:
        """Say whether the run ends here; all processes must ask after each step, and hear it at the same one."""
        if jax.process_count() > 1 and jax.config.jax_enable_preemption_service:
            self.given = multihost_utils.reached_preemption_sync_point(next(_calls))
        return self.given

    def end(self) -> None:
        """End as the signal would have ended the process; go on where a handler of the program returns."""
        self.given = False
        if jax.process_count() > 1:  # JAX took the place of what Python did at the signal
            if threading.current_thread() is not threading.main_thread():
                raise SystemExit(128 + signal.SIGTERM)
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)


@contextlib.contextmanager
def noticing(wanted: bool) -> Iterator[Notice]:
    """Take note of SIGTERM, where it is `wanted`, instead of ending at once; a second one ends the process at once."""
    notice = Notice()
    before = signal.getsignal(signal.SIGTERM)
    alone = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
    if not (wanted and alone) or before in (signal.SIG_IGN, None):
        notice.given_at_this_step = notice.given_at_this_step if wanted and not alone else (lambda: False)
        yield notice
        return

    def take(number, frame):
        signal.signal(signal.SIGTERM, before)
        notice.given = True

    signal.signal(signal.SIGTERM, take)
    try:
        yield notice
    finally:
        signal.signal(signal.SIGTERM, before)
        if notice.given:  # it came while the last step was taken, or an error ends the run
            notice.end()
