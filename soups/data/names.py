"""Check names that a user gives against the names that exist."""

import difflib
from collections.abc import Iterable


def check_name(name: str, known: Iterable[str], kind: str) -> None:
    """Raise a ValueError with a suggestion if `name` is not among the known names of this `kind`."""
    known = sorted(known)
    if name in known:
        return
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    # a list of hundreds of names would hide the message
    choices = f" (there are: {', '.join(known)})" if len(known) <= 20 else ""
    raise ValueError(f"unknown {kind} {name!r}{hint}{choices}")
