"""Be the command `soups`, also as `python -m soups`."""

import os
import signal
import sys

ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has two


def main(arguments: list[str] | None = None, *, prog: str | None = None) -> int:
    """Run the command and return its exit code; a signal ends it in one line from the first import on."""
    for number in ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)
    from soups.cli import main as command

    return command(arguments, prog=prog, alone=True)


def _stop(number, _):
    try:
        os.write(2, b"soups: stopped\n")
    finally:  # the terminal may be what has gone
        os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
