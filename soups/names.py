"""Check names that a user gives against the names that exist, and say how two sets of names differ."""

import bisect
import functools
import itertools
import re
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Sequence

MOST = 20  # names or lines of a message; more would hide what it says
LEGEND = "- what is missing, + what is extra, ~ what differs"  #: of the signs before such lines
_LONG = 200  # characters; a name from a file may have any number
_CUTS = 4  # modules around the one that others have


def check_name(name: str, known: Iterable[str], kind: str) -> str:
    """Return `name` if it is among the known names of this `kind`.

    If not, a ValueError has the closest name, and all of them where they are few.
    """
    known = known if isinstance(known, Collection) else list(known)
    if isinstance(name, Hashable) and name in known:
        return name
    choices = f"; there are: {', '.join(sorted(map(str, known)))}" if len(known) <= MOST else ""
    raise ValueError(f"unknown {kind} {name!r:.200}{did_you_mean(name, known)}{choices}")


def pattern(regex: str, what: str) -> re.Pattern[str]:
    """Return a regular expression that a user gives, compiled; a ValueError says `what` is none."""
    try:
        compiled = re.compile(regex)
        compiled.fullmatch("")  # one of bytes matches no text
        return compiled
    except (re.error, TypeError, RecursionError, OverflowError) as error:
        raise ValueError(f"{what} must be a regular expression, not {regex!r:.200}: {error}") from error


def did_you_mean(name: str, known: Iterable[str], like: float = 0.6) -> str:
    """Return " (did you mean 'x'?)" for the known name that is most like `name`, or nothing if none is.

    Of many names only those are compared that begin or end most like it. `like`: the least part of the letters of two
    names that are the same, as difflib counts them.
    """
    return _Closest(known).hint(str(name), like)


def closest(name: str, known: Iterable[str], like: float = 0.6) -> str | None:
    """Return the known name that `did_you_mean` says, or None."""
    return _Closest(known).closest(str(name), like)


def differences(missing: Iterable[str], extra: Iterable[str], label: str = "", known: Iterable[str] = ()) -> list[str]:
    """List the lines "  - label: x is missing" and "  + label: y is extra", each with the name that may be meant.

    `known`: names that are not missing, but may be meant by those that are extra. Names that differ only in how they
    begin, or only in how they end, are one line "  ~ label: ..." together. The cost grows with the number of names.
    """
    missing, extra, lines = list(missing), list(extra), []
    where = f"{label}: " if label else ""
    for split, verb in ((_from_front, "begin"), (_from_back, "end")):
        for (old, new), pairs in _renamed(missing, extra, split).items():
            wanted, found = pairs[0]
            how = f"{verb} with {shown(new)!r}" if new else f"do not {verb} with {shown(old)!r}"
            how += f" instead of {shown(old)!r}" if new and old else ""
            lines.append(f"  ~ {where}{len(pairs)} names {how}, such as {shown(found)} for {shown(wanted)}")
            gone = {name for pair in pairs for name in pair}
            missing, extra = ([name for name in names if name not in gone] for names in (missing, extra))
    meant = {"-": _Closest(extra), "+": _Closest([*missing, *known])}
    rest = [("-", name, "missing") for name in missing] + [("+", name, "extra") for name in extra]
    for at, (sign, name, what) in enumerate(rest):
        hint = meant[sign].hint(name) if at < MOST else ""
        lines.append(f"  {sign} {where}{shown(name)} is {what}{hint}")
    return lines


def beginnings(missing: Iterable[str], extra: Iterable[str]) -> list[tuple[str, str]]:
    """Return how missing names begin and how extra ones do in their place, where `differences` says so in one line."""
    return list(_renamed(list(missing), list(extra), _from_front))


def bounded(lines: Sequence[str], most: int = MOST) -> str:
    """Join the lines of a message, and count those beyond the first ones."""
    more = [f"  ... and {len(lines) - most} more"] if len(lines) > most else []
    return "\n".join([*lines[:most], *more])


def refuse(what: str, problems: Iterable[str], kind: type[ValueError] = ValueError) -> None:
    """Raise a ValueError that says what is wrong and lists the problems, unless there is none."""
    if lines := [f"  {problem}" for problem in problems]:
        raise kind(f"{what}:\n{bounded(lines)}")


def few(items: Iterable[str], most: int = MOST) -> str:
    """Join items for a message, and count those beyond the first ones."""
    items = list(items)
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def count_of(count: int, thing: str) -> str:
    """Return a number of things as it is said: "1 row", "1,200 rows"."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def shown(name: str) -> str:
    """Return a name as it may stand in a message: what is no printable text is escaped, what is long is cut."""
    text = name if len(name) <= _LONG else f"{name[:_LONG]}..."
    return text if text.isprintable() else ascii(text)[1:-1]


class _Closest:
    """Find the name most like another; what is no text, or too long to be mistyped, is not meant."""

    def __init__(self, known):
        self.known = [name for name in known if isinstance(name, str) and len(name) <= _LONG]

    @functools.cached_property
    def _orders(self):
        # a slip of the pen leaves the begin or the end of a name as it is
        return [(key, sorted(self.known, key=key)) for key in (str, lambda name: name[::-1])]

    def hint(self, name, like=0.6):
        close = self.closest(name, like)
        return "" if close is None else f" (did you mean {shown(close)!r}?)"

    def closest(self, name, like):
        if len(name) > _LONG:
            return None
        if same := [other for other in self.known if other.casefold() == name.casefold()]:
            return same[0]
        candidates = self.known
        if len(candidates) > 4 * MOST:
            places = [(bisect.bisect(ordered, key(name), key=key), ordered) for key, ordered in self._orders]
            candidates = {other for at, ordered in places for other in ordered[max(at - MOST // 2, 0) : at + MOST // 2]}
        import difflib  # nothing needs it until there is a mistake

        return next(iter(difflib.get_close_matches(name, sorted(candidates), n=1, cutoff=like)), None)


def _from_front(name):
    """Return the ways to cut a name at a separator: (how it begins, the rest), the longest rest first."""
    mark = _separator(name)
    rests = [name, *name.split(mark, _CUTS)[1:]]
    for at in range(len(rests) - 2, 0, -1):
        rests[at] += mark + rests[at + 1]
    return [(name[: len(name) - len(rest)], rest) for rest in rests if rest]


def _from_back(name):
    mark = _separator(name)
    *rests, _ = itertools.accumulate(name.rsplit(mark, _CUTS), lambda begin, part: begin + mark + part)
    return [(name[len(rest) :], rest) for rest in (name, *reversed(rests)) if rest]


def _separator(name):
    return "/" if "/" in name else "."


def _renamed(missing, extra, split):
    """Return {(part of the missing names, that of the extra ones): [pairs of names]} where three or more are alike."""
    rests = defaultdict(list)
    for name in missing if extra else ():
        for part, rest in split(name):
            rests[rest].append((part, name))
    pairs = defaultdict(list)
    for name in extra if missing else ():
        for part, rest in split(name):
            if len(meant := rests.get(rest, ())) == 1:
                pairs[meant[0][0], part].append((meant[0][1], name))
                break
    return {parts: found for parts, found in pairs.items() if len(found) > 2}
