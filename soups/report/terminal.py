"""Print the tables of results on the terminal, as wide as it is."""

from collections.abc import Collection, Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as TerminalTable
from rich.text import Text

from soups.progress import terminal_width
from soups.report.claims import claim_table
from soups.report.tables import main_table

_ENDLESS = 10**4  # characters; wider than any table


def print_table(results: Mapping, console: Console | None = None, names: Collection[str] = ()) -> None:
    """Print the main rows, or a short table of some, and the claims: see `main_table` and `claim_table`.

    Where it is narrow the last columns are left out, and the caption names them; a pipe has room for all.
    """
    # in a notebook, too, it is text
    console = console or Console(width=terminal_width() or _ENDLESS, force_jupyter=False)
    table = main_table(results, names)
    kept = len(table.heads)
    title = f"soups · {results['experiment']}"
    drawn = _drawn(title, table, kept)
    while kept > 3 and _width(console, drawn) > console.width:
        kept -= 1
        drawn = _drawn(title, table, kept)
    with console.capture() as text:
        console.print(drawn)
        if claimed := claim_table(results):
            console.print()
            console.print(_drawn("Claims", claimed, len(claimed.heads), wrapped=True))
        for note in results["notes"]:
            console.print(Text(note))
    console.file.write(text.get())  # a console would end the process where the pipe that it writes to is closed


def _width(console, drawn):
    return Measurement.get(console, console.options.update(width=1000), drawn).maximum


def _drawn(title, table, kept, wrapped=False):
    left_out = f" Too narrow for {', '.join(table.heads[kept:])}: see report.html." if kept < len(table.heads) else ""
    drawn = TerminalTable(
        title=Text(title, style="bold"), caption=Text(table.note + left_out), box=SIMPLE_HEAD, pad_edge=False
    )
    drawn.title_justify = drawn.caption_justify = "left"
    for index, head in enumerate(table.heads[:kept]):
        is_text = bool(table.rows) and isinstance(table.rows[0][index].value, str)
        drawn.add_column(Text(head), justify="left" if is_text else "right", no_wrap=index > 0 or not wrapped)
    for row in table.rows:
        cells = (Text(f"{c.text} {c.beside}".strip(), "bold green" if c.look == "best" else "") for c in row[:kept])
        drawn.add_row(*cells)
    return drawn
