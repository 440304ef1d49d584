"""End a command by one line and an exit code, whatever ends it: an error, a signal, lack of memory, a closed pipe."""

import contextlib
import dataclasses
import errno
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import TextIO

from soups.__main__ import ENDING
from soups.cli.show import complain, printable, printable_lines, say
from soups.cli.witness import Witness, witnessed
from soups.lazy import MissingExtraError
from soups.progress import is_first

SIGPIPE = 13  # which Windows does not name
GRACE = 2.0  # seconds that threads have to end by themselves


@dataclasses.dataclass
class Run:
    """Hold what is known of the command that runs, and how much it says."""

    prog: str  #: its name, before what it complains of
    go_on: str = ""  #: how to go on with it when it is stopped now
    signal: int = 0  #: the number of the signal that stopped it, or 0
    ended: bool = False  #: what ended it was printed
    less_memory: str = "fewer --threads need less"
    leader: str = ""  #: the process of several whose end aborts all others
    quiet: bool = False  #: only errors are printed, and what `made` is given
    verbose: bool = False  #: the log of libraries and tracebacks are printed too
    out: TextIO | None = None  #: where `made` prints while all else is quiet
    alone: bool = False  #: the process is for this command, and ends with it
    exhausted: bool = False  #: lack of memory ended it
    witness: Witness | None = None  #: says what ended the command where that leaves it no time

    def __setattr__(self, name: str, value: object) -> None:
        """Set a field; the witness hears of what it would say."""
        super().__setattr__(name, value)
        if self.witness and name in ("go_on", "leader", "less_memory", "witness"):
            self.witness.note(printable(self.less_memory), printable(self.go_on), printable(self.leader))

    def made(self, *results) -> None:
        """Print results, such as paths, one in a line, where nothing else that the command prints is seen."""
        if self.quiet and is_first():
            for result in results:
                say(result, file=self.out)

    @contextlib.contextmanager
    def seen(self) -> Iterator[None]:
        """Have a witness, if the process is for this command alone."""
        if not self.alone:
            yield
            return
        with witnessed(self.prog, self.verbose) as self.witness:
            yield

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Print as much as was asked for: what is printed in here goes nowhere, or logs are printed beside it."""
        with contextlib.ExitStack() as stack:
            if self.quiet:
                self.out = sys.stdout
                nowhere = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(contextlib.redirect_stdout(nowhere))
            if self.verbose:
                stack.enter_context(_logs())
            yield

    def end(self, what: str) -> None:
        """Print what ended the command and how to go on with it."""
        if not self.ended:
            self.ended = True
            self.complain("; ".join(filter(None, [what, self.go_on])))

    def complain(self, text) -> None:
        """Print what is wrong as `soups.cli.show.complain`; the witness does it where there is one."""
        last_words = printable_lines(f"{self.prog}: {text}")
        if not (self.witness and self.witness.last_words(last_words, quiet=self.exhausted)):
            complain(self.prog, text)


class Stopped(KeyboardInterrupt):
    """Say that a signal stopped the command."""


def guarded(command: Callable[[], int], run: Run) -> int:
    """Call a command and return its exit code: its own; that of an error, which is printed; 128 + a signal's number.

    That of an error is 2, unless it has an `exit_code`, as those of checks that failed have.

    SIGINT, SIGTERM and SIGHUP end it, and the process: what its threads still do two seconds later, or at a second
    signal, is cut off.
    """
    with run.seen():
        return _guarded(command, run)


def _guarded(command, run):
    try:
        with _listening(run):
            with run.heard():
                code = command()
            sys.stdout.flush()  # a closed pipe is found here and not when the interpreter ends
        return code
    except BrokenPipeError:
        # who reads has gone; the interpreter would complain when it writes the rest at its end
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + SIGPIPE
    except (Stopped, ValueError, KeyError, OSError, MemoryError, RuntimeError, ImportError) as error:
        fault = isinstance(error, RuntimeError | ImportError) and not isinstance(error, MissingExtraError)
        if fault and not run.signal and not _lacks_memory(error):
            raise  # of the program itself
        if run.verbose:
            traceback.print_exc()
        return _told(error, run)


def _told(error, run) -> int:
    """Print what ended the command, and return its exit code."""
    if run.signal:  # in Python 3.11 another error is raised from what comes while a class is made
        run.end("stopped")
        return 128 + run.signal
    if _lacks_memory(error):
        run.exhausted, what = True, str(error).partition("\n")[0]
        run.end(f"out of memory{f' ({what})' if what else ''}, {run.less_memory}")
    elif isinstance(error, ChildProcessError):
        run.end(f"{error}; {run.less_memory}")
    else:
        run.complain(_words(error))
    return getattr(error, "exit_code", 2)


def _words(error):
    """Return what an error says, without the number that Python puts before the words of a system's."""
    if isinstance(error, KeyError) and error.args:
        return error.args[0]
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename is not None else error.strerror
    return error


@contextlib.contextmanager
def _logs():
    import logging

    from absl import logging as absl_logging

    handler, root, absl_level = logging.StreamHandler(), logging.getLogger(), absl_logging.get_verbosity()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    absl_logging.set_verbosity(absl_logging.INFO)
    try:
        yield
    finally:
        absl_logging.set_verbosity(absl_level)
        root.setLevel(level)
        root.removeHandler(handler)


def _lacks_memory(error):
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    # the words of devices, of threads, and of the system that loads a library
    words = "RESOURCE_EXHAUSTED|can't start new thread|failed to map segment|annot allocate memory"
    return isinstance(error, RuntimeError | ImportError) and re.search(words, str(error)) is not None


@contextlib.contextmanager
def _listening(run: Run) -> Iterator[None]:
    """Raise Stopped at the first signal; at the second the process ends as it would without this program."""
    late = threading.Timer(GRACE, lambda: (run.end("stopped"), os._exit(128 + run.signal)))
    late.daemon = True

    def stop(number, _):
        run.signal = number
        if run.witness:  # which can say it at once, whatever this process is doing
            run.end("stopped")
        for again in before:
            signal.signal(again, signal.SIG_DFL)
        late.start()
        raise Stopped

    in_charge = threading.current_thread() is threading.main_thread()
    # what is ignored, as behind nohup, stays so
    ending = ENDING if in_charge else ()
    numbers = [number for number in ending if signal.getsignal(number) != signal.SIG_IGN]
    before, hook = {number: signal.signal(number, stop) for number in numbers}, sys.unraisablehook
    # where nothing can be raised, as while garbage is collected, the timer ends it
    sys.unraisablehook = lambda found: None if isinstance(found.exc_value, Stopped) else hook(found)
    try:
        yield
    finally:
        if not run.signal:  # else threads go on, and what was to be quiet of them stays so
            sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if run.signal else handler)
