"""Find files that come with the package, and see that they are whole."""

import os
import pathlib

from soups.formats.mapping import hash_files
from soups.names import did_you_mean

_HERE = pathlib.Path(__file__).parent


def shipped(path: str | os.PathLike, digest: str) -> pathlib.Path:
    """Return the path of a file of the package, whose XXH3 (128 bits, hexadecimal) is this one.

    A ValueError for a file of another digest, a FileNotFoundError for none.
    """
    path = pathlib.Path(path)
    if (found := hash_files(path)) != digest:
        raise ValueError(f"{path} is damaged: its XXH3 is {found}, not {digest}; install the package again")
    return path


def configs() -> dict[str, pathlib.Path]:
    """Return the configs of the package by their names, such as "digits" and "imagenet/clip_vit_b32_soups"."""
    inside, beside = _HERE / "configs", _HERE.parent / "configs"  # in a wheel; in a clone of the repository
    folder = inside if inside.is_dir() else beside
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.py"))}


def config_file(given: str) -> str:
    """Return the path of a config, where the name of one of the package's stands for its own.

    A ValueError for what is neither a file nor such a name, and has no suffix, which a file would have.
    """
    known = configs()
    if pathlib.Path(given).suffix or os.path.isfile(given):
        return given
    if given not in known:
        raise ValueError(
            f"--config: no file at {given}, and no config of the package has this name{did_you_mean(given, known)}; "
            f"there are: {', '.join(known)}"
        )
    return str(known[given])
