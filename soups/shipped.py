"""See that a file that comes with the package is whole."""

import os
import pathlib

from soups.formats.mapping import hash_files


def shipped(path: str | os.PathLike, digest: str) -> pathlib.Path:
    """Return the path of a file of the package, whose XXH3 (128 bits, hexadecimal) is this one.

    A ValueError for a file of another digest, a FileNotFoundError for none.
    """
    path = pathlib.Path(path)
    if (found := hash_files(path)) != digest:
        raise ValueError(f"{path} is damaged: its XXH3 is {found}, not {digest}; install the package again")
    return path
