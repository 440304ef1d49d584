"""Read what scripts/fetch_fonts.py has noted of the fonts in a folder, and find the files to draw."""

import collections
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from soups import state
from soups.files import local_path
from soups.formats.mapping import hash_files
from soups.names import few

RECORD = "fonts.json"
HOW = "scripts/fetch_fonts.py FOLDER downloads openly licensed ones"
_SUFFIXES = (".otf", ".ttf", ".woff2")


def font_files(fonts: str | os.PathLike | None) -> tuple[list[pathlib.Path], int]:
    """Return the font files of a folder and those below it, in the order of their names, and how many are left out.

    Where there is a fonts.json they are those that it has; others are left out.

    Raises:
        ValueError: a URL, no such folder, no fonts in it, a damaged fonts.json, or files that are missing or differ
            from what it records.
    """
    if fonts is None:
        raise ValueError(f"fonts must be a folder of font files: {HOW}, and config.task.fonts names it")
    folder = local_path(fonts)
    found = folder.rglob("*") if folder.is_dir() else ()
    # by their parts, for paths themselves ignore case on some systems
    fits = [path for path in found if path.suffix.lower() in _SUFFIXES and path.is_file()]
    files = sorted(fits, key=lambda path: path.relative_to(folder).parts)
    if not files:
        raise ValueError(f"{folder}: {'no fonts in it' if folder.is_dir() else 'no such folder'}; {HOW}")
    if not (folder / RECORD).exists():
        return files, 0
    noted = {name: digest for one in recorded(folder) for name, digest in one["files"].items()}
    if changed := changed_files(folder, noted):
        raise ValueError(
            f"{folder}: {len(changed)} files are missing or differ from {RECORD}; run scripts/fetch_fonts.py again: "
            f"{few(changed, 5)}"
        )
    listed = [path for path in files if path.relative_to(folder).as_posix() in noted]
    if not listed:
        raise ValueError(f"{folder}: {RECORD} lists none of the fonts in it; {HOW}")
    return listed, len(files) - len(listed)


def changed_files(folder: pathlib.Path, noted: Mapping[str, str]) -> list[str]:
    """Return the names of files that are not there, or have another XXH3 (128 bits) than the one noted."""
    places = {name: folder / name for name in noted}
    return [name for name, place in places.items() if not place.is_file() or hash_files(place) != noted[name]]


def recorded(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """Return the families that fonts.json has: the line of the list of each, and "files", names with their XXH3.

    Nothing where there is no such file; a ValueError for one that is damaged or of another kind.
    """
    path = pathlib.Path(folder) / RECORD
    if not path.exists():
        return []
    families = state.read(path, {"families": list})["families"]
    for one in families:
        if not (isinstance(one, dict) and isinstance(one.get("files"), dict) and {"family", "licence"} <= one.keys()):
            raise ValueError(
                f"{path}: a family must have a name, a licence and files with their digests, not {one!r:.200}"
            )
    return families


def font_licences(fonts: str | os.PathLike) -> dict[str, int]:
    """Count the families in a folder that `scripts/fetch_fonts.py` filled by their licence; none in another folder."""
    return dict(sorted(collections.Counter(one["licence"] for one in recorded(fonts)).items()))
