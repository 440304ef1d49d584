"""Parse command lines: a mistake is a ValueError, and an unknown option says which one was probably meant."""

import argparse

from soups.files import local_path
from soups.names import did_you_mean


class Parser(argparse.ArgumentParser):
    """Parse options that are written in full.

    `known`: the options that there are.
    """

    def __init__(self, **settings):
        self.known: list[str] = []
        super().__init__(allow_abbrev=False, **settings)

    def add_argument(self, *names, **settings):
        """Add an argument as argparse does."""
        self.known += [name for name in names if name.startswith("-")]
        return super().add_argument(*names, **settings)

    def error(self, message):
        """Raise a ValueError instead of leaving."""
        raise ValueError(message)

    def parse(self, words: list[str], hint: str = "") -> argparse.Namespace:
        """Return the options.

        Raises:
            ValueError: a word that is no option or value of one; `hint` is said of an unknown option.
        """
        options, rest = self.parse_known_args([_number(word) for word in words])
        if unknown := [word.partition("=")[0] for word in rest if word.startswith("-")]:
            close = did_you_mean(unknown[0], self.known).replace("'", "")
            raise ValueError(f"unknown option {unknown[0]}{close}{hint}")
        if rest:
            raise ValueError(f"{rest[0]!r} belongs to no option")
        return options


def path_argument(text: str) -> str:
    """Return a word of a command line that can be a path of this machine."""
    try:
        local_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _number(word):
    # argparse takes -1e-3 for an option; with a space before it, it is a value and still a number
    try:
        return f" {word}" if word.startswith("-") and float(word) is not None else word
    except ValueError:
        return word
