"""Say in one line what ended a command, also where it cannot say it itself: SIGKILL, or an abort in a library.

A process that is forked at the start waits for the end of the command, which a pipe tells it. The command stays the
process that the shell has started: its signals, its place in a job, its exit code and what it leaves are its own. The
witness has a session of its own, so that no signal of a terminal is for it, and ends with the command. It prints the
command's last words too: a library may abort before the command has printed them, or after.
"""

import contextlib
import faulthandler
import os
import re
import select
import signal
import sys
from collections.abc import Iterator

KILLED = b"was killed, most likely for lack of memory"
ABORTED = b"was aborted by a library, most likely for lack of memory"
LED = b"was aborted by JAX, most likely because %s, which leads all others, has ended"
CRASHED = b"crashed in a library; --verbose says where"
_NOTE, _BYE, _LAST_WORDS, _QUIETLY = b"N", b"B", b"L", b"Q"  # what a message begins with
_KEPT = 1 << 16  # bytes of what libraries say that are kept


class Witness:
    """Hold the ends of the pipes to the process that waits."""

    def __init__(self, prog: str, verbose: bool):
        notes, self._notes = os.pipe()
        words = self._words = None
        if not verbose and _memory_is_limited():
            words, self._words = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                os.close(self._notes)
                if self._words is not None:
                    os.close(self._words)
                _wait(notes, words, prog, verbose)
            finally:
                os._exit(0)
        os.close(notes)
        if words is not None:
            os.close(words)
            self._take_words()
        if not faulthandler.is_enabled():
            faulthandler.enable(self._notes, all_threads=False)
        os.register_at_fork(after_in_child=self._forget)

    def _take_words(self):
        """Let the witness have what libraries write to the standard error; Python writes where it did."""
        self._stderr, kept = sys.stderr, os.dup(2)
        settings = {"encoding": sys.stderr.encoding, "errors": "backslashreplace", "buffering": 1}
        sys.stderr = open(kept, "w", **settings)  # noqa: SIM115
        os.dup2(self._words, 2)
        os.close(self._words)

    def note(self, less_memory: str, go_on: str, leader: str = "") -> None:
        """Tell the witness what needs less memory, how to go on, and who leads several processes; all are printable."""
        self._tell(_NOTE + f"{leader}\n{less_memory}\n{go_on}".encode()[: select.PIPE_BUF - 3])

    def last_words(self, text: str, quiet: bool = False) -> bool:
        """Have a printable text printed when the command ends, however it does; `quiet`: what libraries say is not.

        Return whether there is a witness to do it.
        """
        encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
        return self._tell((_QUIETLY if quiet else _LAST_WORDS) + text.encode(encoding, "backslashreplace") + b"\n")

    def leave(self) -> None:
        """Let the witness go, and wait until it has printed what it has to."""
        if self._notes is None:
            return
        self._tell(_BYE)
        self._forget()
        with contextlib.suppress(ChildProcessError):  # somebody has waited for all children
            os.waitpid(self._pid, 0)
        if self._words is not None:
            os.dup2(sys.stderr.fileno(), 2)
            sys.stderr = self._stderr

    def _tell(self, message):
        if self._notes is None:
            return False
        message = b"\0" + message + b"\0"
        try:
            while message:
                message = message[os.write(self._notes, message) :]
        except OSError:  # it may have been killed
            return False
        return True

    def _forget(self):
        """Close the pipe, in a fork too: else its end would not be that of the command."""
        if self._notes is not None:
            faulthandler.disable()
            os.close(self._notes)
            self._notes = None


@contextlib.contextmanager
def witnessed(prog: str, verbose: bool) -> Iterator[Witness | None]:
    """Have a witness inside; None where the system has no fork, or no process left."""
    try:
        witness = Witness(prog, verbose) if hasattr(os, "fork") else None
    except OSError:
        witness = None
    try:
        yield witness
    finally:
        if witness:
            witness.leave()


def _memory_is_limited():
    """Say whether memory may be refused, as below `ulimit -v`: then libraries abort where they would be killed."""
    import resource

    return any(
        resource.getrlimit(kind)[0] != resource.RLIM_INFINITY for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    )


def _wait(notes, words, prog, verbose):
    """Wait for the end of the command, and say what it did not."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    os.setsid()
    for number in (0, 1):  # what reads from them should see the end
        with contextlib.suppress(OSError):
            os.close(number)
    heard, told = b"", b""
    pipes = [notes] if words is None else [notes, words]
    while notes in pipes:
        for pipe in select.select(pipes, [], [])[0]:
            said = os.read(pipe, 1 << 16)
            if not said:
                pipes.remove(pipe)
            elif pipe == notes:
                told += said
            else:
                heard = (heard + said)[-_KEPT:]
    while words in pipes and select.select([words], [], [], 0)[0] and (said := os.read(words, 1 << 16)):
        heard = (heard + said)[-_KEPT:]
    told = told.split(b"\0")
    dump, messages = b"".join(told[0::2]), told[1::2]
    said = {message[:1]: message[1:] for message in messages}  # the last of each kind
    if not said.keys() & {_BYE, _LAST_WORDS, _QUIETLY}:
        if verbose:
            os.write(2, dump)
        os.write(2, prog.encode() + b": " + _guess(dump, said.get(_NOTE, b"")) + b"\n")
        return
    if _QUIETLY not in said:
        os.write(2, heard)
    os.write(2, said.get(_QUIETLY, said.get(_LAST_WORDS, b"")))


def _guess(dump, note):
    """Return what ended a command that has not said it."""
    leader, less_memory, go_on = [*note.split(b"\n", 2), b"", b"", b""][:3]
    what = _what(dump)
    if leader and what == ABORTED:
        return b"; ".join(filter(None, [LED % leader, go_on]))
    return b"; ".join(filter(None, [what if what == CRASHED else b", ".join(filter(None, [what, less_memory])), go_on]))


def _what(dump):
    """Return what the dump of Python's handler of faults says; there is none after SIGKILL."""
    fault = re.search(rb"Fatal Python error: ([^\n]*)", dump)
    return KILLED if fault is None else ABORTED if fault[1] == b"Aborted" else CRASHED
