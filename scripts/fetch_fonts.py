"""Fetch the font families of scripts/glyph_fonts.tsv with npm: fetch_fonts.py FOLDER [--printed FILE.npz].

Each is a package @fontsource/FAMILY of a fixed version, compared with the integrity in the list.
FOLDER gets the upright Latin font, regular and bold (or the first weight that there is), the
licence in licences/FAMILY.txt, and fonts.json, which says what came from where, with a digest of
each file. The same command goes on after an interruption, and fetches again what has changed since;
about 1 GB passes through.
"""

import argparse
import base64
import collections
import csv
import gzip
import hashlib
import io
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib

from soups import state
from soups.data.fonts import RECORD, changed_files, recorded
from soups.files import made_folder, replace_file
from soups.formats.mapping import hash_files
from soups.names import few
from soups.progress import counted
from soups.workers import as_done

LIST = pathlib.Path(__file__).with_name("glyph_fonts.tsv")
WEIGHTS = (400, 700)
#: the licences that are taken, with words that the licence of such a family has
LICENCES = {"OFL-1.1": "SIL Open Font License", "Apache-2.0": "Apache License", "UFL-1.0": "Ubuntu Font Licence"}
#: what a list has of each family, and as what: nothing else comes into a path or a command
FIELDS = {
    "family": r"[a-z0-9]+(-[a-z0-9]+)*",
    "version": r"\d+\.\d+\.\d+",
    "licence": r"[A-Za-z0-9.-]+",
    "category": r"[a-z-]+",
    "integrity": r"sha512-[A-Za-z0-9+/]{86}==",
}
AT_ONCE = 6
SECONDS = 600  # for one package
LARGEST = 256 << 20  # bytes of a package, packed or not; the families of the project have some megabytes


def main(arguments: list[str] | None = None) -> int:
    """Fetch what is missing, and give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", help="the folder to fill")
    parser.add_argument("--list", metavar="FILE.tsv", default=LIST, help="the families; default: those of the project")
    parser.add_argument("--printed", metavar="FILE.npz", help="write the digits of held-back families there as well")
    options = parser.parse_args(arguments)
    try:
        failed = fetch(pathlib.Path(options.folder), listed(options.list))
        if failed:
            raise ValueError(f"{len(failed)} families did not come, give the command again: {few(failed, 5)}")
        if options.printed:
            from soups.data.glyphs import write_printed

            path = write_printed(options.folder, options.printed)
            print(f"{path}: XXH3 {hash_files(path)}")
    except (ValueError, OSError) as error:
        print(f"fetch_fonts.py: {error}", file=sys.stderr)
        return 2
    return 0


def listed(path: str | pathlib.Path) -> list[dict[str, str]]:
    """Return the families of a list; a ValueError for a line that is none, or a licence that is not taken."""
    with open(path, newline="") as file:
        try:
            reader = csv.DictReader(file, delimiter="\t", strict=True)
            columns, families = reader.fieldnames or (), list(reader)
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{path} is no list of families: {error}") from error
    if sorted(columns) != sorted(FIELDS):
        raise ValueError(f"{path}: the columns must be {', '.join(FIELDS)}, not {few(columns, 8) or 'none'}")
    for line, one in enumerate(families, start=2):
        wrong = [name for name in FIELDS if not re.fullmatch(FIELDS[name], one[name] or "", re.ASCII)]
        if wrong or None in one:
            raise ValueError(f"{path}: line {line} has no {wrong[0] if wrong else 'end'} as it must be: {one!r:.300}")
    if other := [f"{one['family']} ({one['licence']})" for one in families if one["licence"] not in LICENCES]:
        raise ValueError(f"{path}: licences must be {', '.join(LICENCES)}, not those of {few(other, 5)}")
    if twice := [name for name, count in collections.Counter(one["family"] for one in families).items() if count > 1]:
        raise ValueError(f"{path}: families appear twice: {few(twice, 5)}")
    return families


def fetch(folder: pathlib.Path, families: list[dict[str, str]]) -> list[str]:
    """Fetch the families that are not in a folder as they came, and say of each that did not come why.

    Files of no family of the list stay where they are, and are not drawn.
    """
    if (npm := shutil.which("npm")) is None:
        raise FileNotFoundError("npm, which fetches the fonts, is not installed: it comes with Node.js")
    made_folder(folder / "licences")
    npm, there = os.path.abspath(npm), {one["family"]: one for one in recorded(folder)}
    done = {one["family"]: there[one["family"]] for one in families if _is_there(folder, one, there)}
    _note(folder, done)
    missing, failed = [one for one in families if one["family"] not in done], []
    results = as_done(lambda one: _fetched(npm, folder, one), missing, AT_ONCE)
    for found in counted(results, "fetching fonts", len(missing), "families"):
        if isinstance(found, str):
            failed.append(found)
            continue
        done[found["family"]] = found
        _note(folder, done)
    return sorted(failed)


def _note(folder, done):
    state.write(folder / RECORD, {"families": [done[name] for name in sorted(done)]})


def _is_there(folder, one, there):
    known = there.get(one["family"], {})
    return one.items() <= known.items() and not changed_files(folder, known["files"])


def _fetched(npm, folder, one):
    """Return the record of a family that has come, or the text that says why it has not."""
    try:
        package = _packed(npm, f"@fontsource/{one['family']}@{one['version']}")
        if (found := f"sha512-{base64.b64encode(hashlib.sha512(package).digest()).decode()}") != one["integrity"]:
            raise ValueError(f"its integrity is {found}, not {one['integrity']}")
        files = _unpacked(package, one)
        paths = {name: replace_file(folder / name, content) for name, content in files.items()}
        return one | {"files": {name: hash_files(path) for name, path in paths.items()}}
    except (ValueError, OSError, EOFError, tarfile.TarError, zlib.error) as error:
        return f"{one['family']}: {error}"


def _packed(npm, package):
    """Return the bytes of a package, as npm's own settings and cache give it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", "--silent", "--ignore-scripts", "--pack-destination", folder, package]
        options = {"capture_output": True, "text": True, "errors": "replace", "stdin": subprocess.DEVNULL}
        try:
            process = subprocess.run(command, cwd=folder, timeout=SECONDS, **options)
        except subprocess.TimeoutExpired:
            raise ValueError(f"npm pack {package} was not done after {SECONDS} seconds") from None
        files = list(pathlib.Path(folder).glob("*.tgz"))
        if process.returncode or len(files) != 1:
            lines = (process.stderr + process.stdout).strip().splitlines() or ["it says nothing"]
            raise ValueError(f"npm pack {package} failed: {' '.join(lines)[:500]}")
        if (size := files[0].stat().st_size) > LARGEST:
            raise ValueError(f"the package has {size:,} bytes, more than {LARGEST:,}")
        return files[0].read_bytes()


def _unpacked(package, one):
    """Return the files to keep by their names; nothing in the package says where anything is written."""
    fonts, licence = {}, None
    font = re.compile(rf"package/files/{re.escape(one['family'])}-latin-(\d{{1,4}})-normal\.woff2", re.ASCII)
    with gzip.open(io.BytesIO(package)) as file:
        plain = file.read(LARGEST + 1)
    if len(plain) > LARGEST:
        raise ValueError(f"the package unpacks to more than {LARGEST:,} bytes")
    with tarfile.open(fileobj=io.BytesIO(plain), mode="r:") as archive:
        for member in archive:
            found = font.fullmatch(member.name)
            if not found and member.name != "package/LICENSE":
                continue
            if not member.isfile():
                raise ValueError(f"its {member.name} is no file")
            content = archive.extractfile(member).read()
            if len(content) != member.size:
                raise ValueError(f"its {member.name} ends early")
            if found:
                fonts[int(found[1])] = content
            else:
                licence = content
    if LICENCES[one["licence"]].lower() not in (licence or b"").decode(errors="replace").lower():
        raise ValueError(f"its LICENSE is not {one['licence']}")
    if not fonts:
        raise ValueError("it has no upright Latin font")
    kept = [weight for weight in WEIGHTS if weight in fonts] or sorted(fonts)[:1]
    named = {f"{one['family']}-{weight}.woff2": fonts[weight] for weight in kept}
    return {f"licences/{one['family']}.txt": licence} | named


if __name__ == "__main__":
    sys.exit(main())
