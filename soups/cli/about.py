"""Say before a run how long it takes and what it will show, and after it what is next: the section "about"."""

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from soups.files import PathLike, any_path
from soups.names import did_you_mean

#: `shows`: one sentence; `minutes`: of one seed on two idle cores; `rows`: the names of those that the terminal shows;
#: `command`: what runs the config, without changes; `next`: lines on what to try after it
FIELDS = ("shows", "minutes", "rows", "command", "next")
_MANY = 10  # seeds that are proposed after one


def check(config: Mapping[str, Any]) -> None:
    """Raise a ValueError for a section "about" that has other fields, or values of another kind."""
    about = config.get("about", {})
    if not isinstance(about, Mapping):
        raise ValueError(f"config.about must be a section, not {about!r:.200}")
    for name in about.keys() - set(FIELDS):
        raise ValueError(f"config.about.{name} is unknown{did_you_mean(name, FIELDS)}: it has {', '.join(FIELDS)}")
    kinds = {"shows": str, "command": str, "minutes": int | float, "rows": list | tuple, "next": list | tuple}
    for name, found in about.items():
        wrong = not isinstance(found, kinds[name])
        if name == "minutes":
            wrong = wrong or isinstance(found, bool) or not 0 < found < math.inf
        if wrong or (name in ("rows", "next") and not all(isinstance(one, str) for one in found)):
            raise ValueError(f"config.about.{name} cannot be {found!r:.200}")
    try:
        shlex.split(about.get("command", ""))
    except ValueError as error:
        raise ValueError(f"config.about.command cannot be {about['command']!r:.200}: {error}") from None


def opening(config: Mapping[str, Any]) -> list[str]:
    """Return a sentence on the time and one on what is shown, as far as the config says them."""
    about, seeds = config.get("about", {}), _seeds(config) or 1
    said = []
    if "minutes" in about:
        minutes = seeds * about["minutes"]
        time = f"{minutes:.0f} minutes" if minutes >= 10 else f"{minutes:.2g} minute{'s' * (minutes != 1)}"
        time = time if minutes < 120 else f"{minutes / 60:.1f} hours"
        kept = "; what is finished is not repeated" if seeds > 1 else ""
        said.append(f"This takes about {time} on two idle cores{f' for {seeds} seeds' if seeds > 1 else ''}{kept}.")
    return [*said, about["shows"]] if "shows" in about else said


def closing(config: Mapping[str, Any], changes: Sequence[str] = ()) -> list[str]:
    """Return what to try next; `changes`: the words after the command, which a run of more seeds has too."""
    about, seeds = config.get("about", {}), _seeds(config)
    lines = list(about.get("next", ()))
    if "command" in about and seeds is not None and seeds < _MANY:
        changes = [word for word in changes if not word.startswith("--config.seeds=")]
        command = shlex.join([*shlex.split(about["command"]), *changes, f"--config.seeds={_MANY}"])
        lines.insert(0, f"{command}   # {_MANY} seeds, for intervals; keeps what is made")
    return ["", "What to try next:", *(f"  {line}" for line in lines)] if lines else []


def report_of(workdir: PathLike) -> str:
    """Return the path of the report of a run, or of its folder where a study of a user's own has written none."""
    page = any_path(workdir) / "report.html"
    return str(page if page.exists() else workdir)


def _seeds(config):
    """Return the number of seeds; None where a config has none to change, or what its study will refuse."""
    seeds = config.get("seeds")
    return seeds if isinstance(seeds, int) and not isinstance(seeds, bool) and seeds >= 1 else None
