"""Show text, tables, sizes and progress on any terminal or pipe; what comes from files is never printed raw."""

import contextlib
import math
import re
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence

from soups.progress import progress, terminal_width

SUFFIXES = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


def printable(value) -> str:
    """Return the text of anything with what would steer a terminal, or is no letter, as an escape such as \\x1b."""
    text = str(value)
    return text if text.isprintable() else "".join(map(_escape, text))


def _escape(letter):
    if letter.isprintable():
        return letter
    if "\udc80" <= letter <= "\udcff":  # a byte of a file's name that is not UTF-8
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape", "surrogatepass").decode("ascii")


def say(text, file=None) -> None:
    """Print a text, each of its lines made printable."""
    print(printable_lines(text), file=file)


def printable_lines(text) -> str:
    """Return a text with each of its lines made printable."""
    return "\n".join(map(printable, str(text).split("\n")))


def tell(sentence) -> None:
    """Print a sentence as `say`, in lines no wider than the terminal, and in one line where there is none."""
    say("\n".join(wrapped(printable(sentence))))


def wrapped(text: str, indent: int = 0) -> list[str]:
    """Return the lines of a text that a terminal shows behind an indentation, long words whole; else one line."""
    width = terminal_width()
    if width is None:
        return [text]
    return textwrap.wrap(text, max(20, width - indent), break_on_hyphens=False, break_long_words=False) or [""]


def complain(prog: str, text) -> None:
    """Print what is wrong as `say`, to the standard error."""
    with contextlib.suppress(OSError):  # the terminal may be what has gone
        say(f"{prog}: {text}", file=sys.stderr)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence], right: Sequence[str] = ()) -> None:
    """Print rows under the names of their columns.

    On a terminal nothing is wider than it, and long cells go on in further lines; elsewhere a row is one line.
    """
    cells = [[printable(cell) for cell in row] for row in [columns, *rows]]
    width = terminal_width() or math.inf
    widths = [min(width, max(map(len, column))) for column in zip(*cells, strict=True)]
    while sum(widths) + 2 * (len(widths) - 1) > width and max(widths) > 1:
        widths[widths.index(max(widths))] -= 1
    tell(title)
    for number, row in enumerate(cells):
        _print_row(row, widths, [name in right for name in columns])
        if number == 0:
            print("  ".join("-" * width for width in widths).rstrip())


def _print_row(row, widths, right):
    lines = [
        [cell] if len(cell) <= width else textwrap.wrap(cell, width, break_on_hyphens=False)
        for cell, width in zip(row, widths, strict=True)
    ]
    for line in range(max(map(len, lines))):
        parts = [cell[line] if line < len(cell) else "" for cell in lines]
        aligned = [
            part.rjust(width) if to_right else part.ljust(width)
            for part, width, to_right in zip(parts, widths, right, strict=True)
        ]
        print("  ".join(aligned).rstrip())


def amount(number: float) -> str:
    """Return a number of bytes in three digits."""
    unit = next((unit for unit in reversed(SUFFIXES) if number >= SUFFIXES[unit]), "B")
    return f"{number / SUFFIXES[unit]:.3g} {unit}"


def size_of(record) -> tuple[int, int]:
    """Count the parameters and the bytes of a member."""
    import numpy as np  # after the command has said how many threads it may start

    numbers = [(math.prod(leaf["shape"]), np.dtype(leaf["dtype"]).itemsize) for leaf in record["leaves"].values()]
    return sum(count for count, _ in numbers), sum(count * itemsize for count, itemsize in numbers)


def parse_size(text: str) -> int:
    """Return the bytes of a text such as 2GB."""
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([kMGT]?B)?", text.strip(), re.IGNORECASE | re.ASCII)
    if not found:
        raise ValueError(f"{text.strip()!r} is not a size; 2GB is one, with {', '.join(SUFFIXES)}")
    factors = {suffix.upper(): factor for suffix, factor in SUFFIXES.items()}
    return int(float(found[1]) * factors[(found[2] or "B").upper()])


@contextlib.contextmanager
def advance(what: str, total: float) -> Iterator[Callable[[int], None]]:
    """Show bytes as megabytes, from any thread, in steps that a person can read."""
    if total < 1e8:  # what is done at once needs no bar
        yield lambda number: None
        return
    lock, done, shown = threading.Lock(), 0, 0
    with progress(what, round(total / 1e6), "MB") as report:

        def add(number):
            nonlocal done, shown
            with lock:
                done += number
                if done - shown * 1e6 >= total / 20 or done == total:
                    report(round(done / 1e6) - shown)
                    shown = round(done / 1e6)

        yield add
