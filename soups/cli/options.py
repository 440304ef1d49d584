"""Parse command lines: a mistake is a ValueError, and an unknown option says which one was probably meant."""

import argparse
import re
from collections.abc import Mapping

from soups.files import local_path
from soups.names import did_you_mean

HOSTS = (
    ("--coordinator", {"metavar": "HOST:PORT", "help": "of the first of several hosts, or auto"}),
    ("--processes", {"type": int, "metavar": "N", "help": "how many hosts there are"}),
    ("--process", {"type": int, "metavar": "N", "help": "which of them this is, from 0"}),
)


class Parser(argparse.ArgumentParser):
    """Parse options that are written in full, with "-" or "_" between their words."""

    def __init__(self, **settings):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    @property
    def known(self) -> list[str]:
        """List the options that there are, those of commands too."""
        own = list(self._option_string_actions)
        commands = [action.choices for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        return own + [name for choices in commands for parser in choices.values() for name in parser.known]

    def error(self, message):
        """Raise a ValueError instead of leaving."""
        raise ValueError(message)

    def parse(self, words: list[str], hint: str = "", gone: Mapping[str, str] | None = None) -> argparse.Namespace:
        """Return the options; `gone`: what is said of options that there were."""
        words = [_plain(word) for word in words]
        for spellings in _given_once(self):
            given = [name for word in words if (name := word.partition("=")[0]) in spellings]
            if len(given) > 1:
                raise ValueError(f"{given[-1]} is given {len(given)} times: give it once, with all of its values")
        options, rest = self.parse_known_args(words)
        if unknown := [word.partition("=")[0] for word in rest if word.startswith("-")]:
            said = (gone or {}).get(unknown[0])
            said = f"; {said}" if said else did_you_mean(unknown[0], self.known).replace("'", "") + hint
            raise ValueError(f"unknown option {unknown[0]}{said}")
        if rest:
            raise ValueError(f"{rest[0]!r} belongs to no option")
        return options


def _given_once(parser):
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _given_once(command)
        elif action.nargs != 0 and not isinstance(action, argparse._AppendAction):
            yield action.option_strings


def path_argument(text: str) -> str:
    """Return a word of a command line that can be a path of this machine."""
    try:
        local_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _plain(word):
    """Return an option with "-" between its words, and a number as argparse takes it for a value."""
    if word.startswith("--"):
        name, equals, value = word.partition("=")
        return name.replace("_", "-") + equals + value
    try:
        return f" {word}" if word.startswith("-") and float(word) is not None else word
    except ValueError:
        return word


def connect(options: argparse.Namespace) -> None:
    """Join the other hosts, if the options `HOSTS` name any."""
    if (options.processes is None) != (options.process is None):
        raise ValueError("--processes and --process go together: how many there are, and which of them this is")
    if options.coordinator != "auto" and (options.coordinator is None) != (options.processes is None):
        raise ValueError("several hosts need --coordinator HOST:PORT, --processes and --process")
    if options.process is not None and not 0 <= options.process < options.processes:
        raise ValueError(f"--process is a number from 0 to --processes - 1, not {options.process}")
    if not options.coordinator:
        return
    if options.coordinator != "auto" and not re.fullmatch(r".+:\d{1,5}", options.coordinator):
        raise ValueError(f"--coordinator is HOST:PORT, or auto, not {options.coordinator!r}")
    import jax

    several = () if options.coordinator == "auto" else (options.coordinator, options.processes, options.process)
    try:
        jax.distributed.initialize(*several)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"--coordinator {options.coordinator}: {str(error).splitlines()[0]}") from error
