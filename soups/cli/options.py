"""Parse command lines: a mistake is a ValueError, and an unknown option says which one was probably meant."""

import argparse
import contextlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar

from soups.files import any_path, local_path
from soups.names import check_name, did_you_mean
from soups.stores import is_store

#: what every command takes, in any place: how much it says
VOLUME = {
    "quiet": (("-q", "--quiet"), "print only errors and what was made: paths, names"),
    "verbose": (("-v", "--verbose"), "also print the libraries' logs, and tracebacks"),
}
_SPELLINGS = {word: name for name, (words, _) in VOLUME.items() for word in words} | {"--debug": "verbose"}  # once so

_LIKE = 0.7  # so much of an option and of a slip of it is the same

HOSTS = (
    ("--coordinator", {"metavar": "HOST:PORT", "help": "address of the first of several hosts, or auto"}),
    ("--processes", {"type": int, "metavar": "N", "help": "how many hosts there are"}),
    ("--process", {"type": int, "metavar": "N", "help": "which of them this is, from 0"}),
)


class _Help(argparse.RawDescriptionHelpFormatter):
    def _split_lines(self, text, width):  # names such as clip-vit-b32 stay whole
        return textwrap.wrap(text, width, break_on_hyphens=False)


_OF_ARGPARSE = (  # what it says of wrong arguments, and what is said instead
    (r"^argument (\S+): invalid int value: ", r"\1 must be a whole number, not "),
    (r"^argument (\S+): invalid float value: ", r"\1 must be a number, not "),
    (r"^argument (\S+): expected (at least )?one argument$", r"\1 needs a value"),
    (r"^the following arguments are required: (.*)$", r"missing: \1 (see --help)"),
    (r"^argument ", ""),
)


class Parser(argparse.ArgumentParser):
    """Parse options that are written in full, with "-" or "_" between their words.

    Unless `add_help` is false it has the options that all commands have. Of the description, such as a docstring, lines
    that begin with "soups" are commands.
    """

    _asked: ClassVar[list[argparse.ArgumentParser] | None] = None

    def __init__(self, *, add_help: bool = True, description: str = "", **settings):
        super().__init__(
            allow_abbrev=False,
            formatter_class=_Help,
            add_help=False,
            description=re.sub("^soups ", "  soups ", inspect.cleandoc(description), flags=re.MULTILINE),
            **settings,
        )
        if not add_help:
            return
        own = {"dest": argparse.SUPPRESS, "default": argparse.SUPPRESS}
        self.add_argument("-h", "--help", action="help", help="print this text", **own)
        for words, text in VOLUME.values():
            self.add_argument(*words, action="store_true", help=text, **own)

    def print_help(self, file=None):
        """Print the help, or be what `asked_for_help` returns."""
        if Parser._asked is None:
            super().print_help(file)
        else:
            Parser._asked.append(self)

    @property
    def known(self) -> list[str]:
        """List the options that there are, those of commands too."""
        own = list(self._option_string_actions)
        commands = [action.choices for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        return own + [name for choices in commands for parser in choices.values() for name in parser.known]

    def _check_value(self, action, value):
        """Raise a ValueError that says what was probably meant in the place of a choice that there is not."""
        if action.choices is not None and value not in action.choices:
            kind = "/".join(action.option_strings)
            check_name(value, action.choices, f"value of {kind}" if kind else str(action.metavar).lower())

    def error(self, message):
        """Raise a ValueError instead of leaving, in the words of the other errors."""
        if message.endswith("required: COMMAND"):
            (commands,) = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
            raise ValueError(f"a command is needed; there are: {', '.join(commands.choices)} (see {self.prog} --help)")
        for pattern, words in _OF_ARGPARSE:
            message = re.sub(pattern, words, message)
        raise ValueError(message)

    def parse(self, words: list[str], hint: str = "", gone: Mapping[str, str] | None = None) -> argparse.Namespace:
        """Return the options; `gone`: what is said of options that there were."""
        words = [_plain(word) for word in words]
        for spellings in _given_once(self):
            given = [name for name in _options(words) if name in spellings]
            if len(given) > 1:
                raise ValueError(f"{given[-1]} is given {len(given)} times: give it once, with all of its values")
        # before the parser, which would first miss what a mistyped option gives
        self._check_known([word for word in _options(words) if word not in self.known], hint, gone or {})
        options, rest = self.parse_known_args(words)
        self._check_known(_options(rest), hint, {})  # those of other commands
        if rest:
            raise ValueError(f"{rest[0]!r} does not belong to any option")
        return options

    def _check_known(self, unknown, hint, gone):
        if unknown:
            said = gone.get(unknown[0])
            said = f"; {said}" if said else meant(unknown[0], self.known) or hint
            raise ValueError(f"unknown option {unknown[0]}{said}")


def asked_for_help(command: Callable, words: list[str], run) -> Parser:
    """Return the parser of a command, which for these words and --help would print its help."""
    Parser._asked = asked = []
    try:
        with contextlib.suppress(SystemExit):
            command([*words, "--help"], run)
        return asked[0]
    finally:
        Parser._asked = None


def _options(words):
    """List the names of the options among words; "--" ends them."""
    end = words.index("--") if "--" in words else len(words)
    return [word.partition("=")[0] for word in words[:end] if word.startswith("-") and word != "-"]


def _given_once(parser):
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _given_once(command)
        elif action.nargs != 0 and not isinstance(action, argparse._AppendAction):
            yield action.option_strings


def split_volume(words: Sequence[str]) -> tuple[list[str], dict[str, bool]]:
    """Return the words without those that say how much is printed, and what they say; "--" ends options.

    A ValueError for two that exclude each other.
    """
    end = words.index("--") if "--" in words else len(words)
    asked = {_SPELLINGS[word] for word in words[:end] if word in _SPELLINGS}
    if len(asked) > 1:
        raise ValueError("--quiet and --verbose exclude each other: give one of them")
    rest = [word for word in words[:end] if word not in _SPELLINGS]
    if {"-h", "--help", "help"} & set(rest[:1] + _options(rest)):  # which is what was asked for
        asked.clear()
    return [*rest, *words[end:]], {name: name in asked for name in VOLUME}


def option_of(setting: str) -> str:
    """Return the option that gives a setting."""
    return f"--{setting.replace('_', '-')}"


def meant(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean --x?)" for the known option that is most like a word, or nothing if none is.

    The dashes, which all options share, do not make two alike, nor does what follows a dot.
    """
    hint = did_you_mean(word.lstrip("-").partition(".")[0], {name[2:] for name in known if name[:2] == "--"}, _LIKE)
    return hint.replace("mean '", "mean --").replace("'", "")


def path_argument(text: str) -> str:
    """Return a word of a command line that can be a path of this machine."""
    return _checked(local_path, text)


def place_argument(text: str) -> str:
    """Return a word of a command line that can be a path of this machine or of an object store."""
    model, mark, adapter = text.rpartition("+")
    if mark and model and is_store(adapter):  # MODEL+LORA
        place_argument(model)
        _checked(any_path, adapter)
        return text
    return _checked(any_path if is_store(text) else local_path, text)


def _checked(check, text):
    try:
        check(text)
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
        raise ValueError(f"--process must be a number from 0 to --processes - 1, not {options.process}")
    if not options.coordinator:
        return
    if options.coordinator != "auto" and not re.fullmatch(r".+:\d{1,5}", options.coordinator):
        raise ValueError(f"--coordinator must be HOST:PORT, or auto, not {options.coordinator!r}")
    import jax

    several = () if options.coordinator == "auto" else (options.coordinator, options.processes, options.process)
    try:
        jax.distributed.initialize(*several)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"--coordinator {options.coordinator}: {str(error).splitlines()[0]}") from error
