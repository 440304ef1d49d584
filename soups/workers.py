"""Call a function for many items side by side: in threads, or in forked processes where that is safe."""

import concurrent.futures
import contextlib
import itertools
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator

import numpy as np

NUMBER = max(2, min(8, os.cpu_count() or 2))


def in_threads(function: Callable, items: Iterable, number: int = NUMBER) -> list:
    """Return `function` of each item, several at a time; the first error ends all."""
    done = as_done(lambda pair: (pair[0], function(pair[1])), enumerate(items), number)
    return [result for _, result in sorted(done, key=lambda pair: pair[0])]


def as_done(function: Callable, items: Iterable, number: int = NUMBER, *, fork: bool = False) -> Iterator:
    """Yield `function` of each item when it is done, from `number` threads; the first error ends all.

    `fork`: from forked processes if `may_fork()`, which do not wait for each other between calls of NumPy. Items,
    results and errors are pickled; whatever else the function changes is changed in its process alone.

    Raises:
        ChildProcessError: a process was killed, as the kernel does when memory is short.
    """
    return (_in_processes if fork and may_fork() else _in_threads)(function, items, number)


def may_fork() -> bool:
    """Say whether a fork is safe: on Linux, where no other thread could hold a lock."""
    theirs = {"jax", "obstore", "tensorstore"} & sys.modules.keys()  # they start threads that Python does not count
    return sys.platform == "linux" and not theirs and threading.active_count() == 1


def _in_threads(function, items, number):
    with concurrent.futures.ThreadPoolExecutor(number) as pool:  # NumPy lets go of the interpreter during its work
        futures = [pool.submit(_without_warnings, function, item) for item in items]
        try:
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _without_warnings(function, item):
    with np.errstate(all="ignore"):  # a setting of the thread; what is not finite is an error with a name
        return function(item)


def _in_processes(function, items, number):
    import multiprocessing.connection  # not for merges that fork nothing: it takes long

    context, items, workers = multiprocessing.get_context("fork"), iter(items), {}
    try:
        for item in itertools.islice(items, number):
            ours, theirs = context.Pipe()
            workers[ours] = context.Process(target=_work, args=(function, theirs, [*workers, ours]))
            workers[ours].start()
            theirs.close()
            ours.send(item)
        busy = set(workers)
        while busy:
            for pipe in multiprocessing.connection.wait(busy):
                yield _received(pipe)
                busy.discard(pipe)
                for item in itertools.islice(items, 1):
                    pipe.send(item)
                    busy.add(pipe)
    finally:
        for process in workers.values():
            if process.pid:
                process.kill()
                process.join()


def _received(pipe):
    try:
        result, error = pipe.recv()
    except (EOFError, OSError):
        raise ChildProcessError("a process of this merge was killed, perhaps because memory ran out") from None
    if error is not None:
        raise error
    return result


def _work(function, pipe, inherited):
    """Answer each item that comes, until the process that asks has ended."""
    # they go to all processes; the first one ends the others
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()
    for end in inherited:
        end.close()
    with contextlib.suppress(EOFError, OSError):
        while True:
            item = pipe.recv()
            try:
                answer = _without_warnings(function, item), None
            except Exception as error:
                error.add_note(traceback.format_exc())
                answer = None, error
            pipe.send(answer)


def end_with_parent() -> None:
    """Let the kernel kill this process, which was forked, when the one that forked it ends."""
    import ctypes

    set_death_signal = 1
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
