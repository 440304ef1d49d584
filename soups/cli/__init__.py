"""Return `soups merge`, `soups pool` and `soups run` to the shell; what one needs is imported when it is chosen."""

import argparse
import gc
import importlib
import os
import sys

from soups.cli.show import complain
from soups.cli.stopping import Run, guarded
from soups.names import did_you_mean

COMMANDS = {
    "merge": "merge checkpoints into one, in the memory of a few blocks",
    "pool": "list, show, verify, add, import and remove the members of a pool",
    "run": "run a study: train members, cook soups from them, and report",
}


def main(arguments: list[str] | None = None, *, prog: str | None = None) -> int:
    """Run a command, the first of the arguments, and return its exit code.

    The code is 0; 1 if something was verified and is not as it should be; 2 if the command cannot be done; 128 + the
    number of the signal that stopped it. What went wrong is one message behind `prog`, "soups COMMAND" by default.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # a terminal may lack the letters of a name; a pipe's reader should not wait for the end
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
    if prog is None and (not arguments or arguments[0] not in COMMANDS):
        return _without_command(arguments)
    run = Run(prog or f"soups {arguments[0]}")

    def command():
        if arguments[0] != "run":  # whose cycles hold the arrays of what was trained
            # modules and headers of large models are many objects without cycles: a fifth of the time went into looking
            gc.set_threshold(200_000)
            # tensors are worked on side by side; BLAS's own threads would wait for work in a loop, a third of the start
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        return importlib.import_module(f"soups.cli.{arguments[0]}").main(arguments[1:], run)

    return guarded(command, run)


def _without_command(arguments):
    import soups

    parser = argparse.ArgumentParser(
        prog="soups",
        description="Average and merge the weights of fine-tuned networks.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="commands:\n" + "\n".join(f"  {name:<8}{what}" for name, what in COMMANDS.items()),
    )
    parser.add_argument("--version", action="version", version=f"soups {soups.__version__}")
    parser.add_argument("command", metavar="COMMAND", nargs="?", help="one of those below; soups COMMAND --help")
    given = parser.parse_known_args(arguments[:1])[0].command or (arguments[0] if arguments else "")
    wrong = f"unknown command {given!r}{did_you_mean(given, COMMANDS)}" if given else "a command is needed"
    complain("soups", f"{wrong}; there are: {', '.join(COMMANDS)} (see soups --help)")
    return 2
