"""Check names that a user gives against the names that exist."""

import difflib
from collections.abc import Iterable


def check_name(name: str, known: Iterable[str], kind: str) -> str:
    """Give `name` back if it is among the known names of this `kind`.

    Raises:
        ValueError: it is not; the message has the closest name, and all of them where they are few.
    """
    known = list(known)
    if name in known:
        return name
    # a list of hundreds of names would hide the message
    choices = f"; there are: {', '.join(sorted(known))}" if len(known) <= 20 else ""
    raise ValueError(f"unknown {kind} {name!r}{did_you_mean(name, known)}{choices}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Give " (did you mean 'x'?)" for the known name that is most like `name`, or nothing if none is."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
