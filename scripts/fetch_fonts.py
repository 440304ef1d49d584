"""Fetch the font families of scripts/glyph_fonts.tsv with npm: fetch_fonts.py FOLDER [--printed FILE.npz].

Each is a package @fontsource/FAMILY of a fixed version, compared with the integrity in the list.
FOLDER gets the upright Latin font, regular and bold (or the first weight that there is), the
licence in licences/FAMILY.txt, and fonts.json, which says what came from where. The same command
goes on after an interruption; about 1 GB passes through.
"""

import argparse
import base64
import csv
import hashlib
import io
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile

from soups.files import made_folder, replace_file
from soups.names import few
from soups.progress import counted
from soups.workers import as_done

LIST = pathlib.Path(__file__).with_name("glyph_fonts.tsv")
WEIGHTS = (400, 700)
#: the licences that are taken, with words that the licence of such a family has
LICENCES = {"OFL-1.1": "SIL Open Font License", "Apache-2.0": "Apache License", "UFL-1.0": "Ubuntu Font Licence"}
AT_ONCE = 6


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

            print(write_printed(options.folder, options.printed))
    except (ValueError, OSError) as error:
        print(f"fetch_fonts.py: {error}", file=sys.stderr)
        return 2
    return 0


def listed(path: str | pathlib.Path) -> list[dict[str, str]]:
    """Return the families of a list; a ValueError for a licence that is not taken."""
    with open(path, newline="") as file:
        families = list(csv.DictReader(file, delimiter="\t"))
    if other := [f"{one['family']} ({one['licence']})" for one in families if one["licence"] not in LICENCES]:
        raise ValueError(f"{path}: licences must be {', '.join(LICENCES)}, not those of {few(other, 5)}")
    return families


def fetch(folder: pathlib.Path, families: list[dict[str, str]]) -> list[str]:
    """Fetch the families that are not in a folder yet, and say of each that did not come why."""
    if shutil.which("npm") is None:
        raise FileNotFoundError("npm, which fetches the fonts, is not installed: it comes with Node.js")
    made_folder(folder / "licences")
    record = folder / "fonts.json"
    there = {one["family"]: one for one in json.loads(record.read_text())["families"]} if record.exists() else {}
    done = {one["family"]: there[one["family"]] for one in families if _is_there(folder, one, there)}
    missing, failed = [one for one in families if one["family"] not in done], []
    results = as_done(lambda one: _fetched(folder, one), missing, AT_ONCE)
    for found in counted(results, "fetching fonts", len(missing), "families"):
        if isinstance(found, str):
            failed.append(found)
            continue
        done[found["family"]] = found
        replace_file(record, json.dumps({"families": [done[name] for name in sorted(done)]}, indent=1) + "\n")
    return sorted(failed)


def _is_there(folder, one, there):
    known = there.get(one["family"], {})
    return one.items() <= known.items() and all((folder / name).exists() for name in known["files"])


def _fetched(folder, one):
    """Return the record of a family that has come, or the text that says why it has not."""
    try:
        package = _packed(f"@fontsource/{one['family']}@{one['version']}")
        if (found := f"sha512-{base64.b64encode(hashlib.sha512(package).digest()).decode()}") != one["integrity"]:
            raise ValueError(f"its integrity is {found}, not {one['integrity']}")
        files = _unpacked(package, one)
        for name, content in files.items():
            replace_file(folder / name, content)
        return one | {"files": list(files)}
    except (ValueError, OSError, KeyError, tarfile.TarError) as error:
        return f"{one['family']}: {error}"


def _packed(package):
    """Return the bytes of a package, as npm's own settings and cache give it."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", "--ignore-scripts", "--pack-destination", folder, package]
        process = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=folder)
        files = list(pathlib.Path(folder).glob("*.tgz"))
        if process.returncode or len(files) != 1:
            lines = (process.stderr + process.stdout).strip().splitlines() or ["it says nothing"]
            raise ValueError(f"npm pack {package} failed: {' '.join(lines)[:500]}")
        return files[0].read_bytes()


def _unpacked(package, one):
    """Return the files to keep by their names; nothing in the package says where anything is written."""
    family, fonts = one["family"], {}
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        for name in archive.getnames():
            if found := re.fullmatch(rf"package/files/{re.escape(family)}-latin-(\d+)-normal\.woff2", name):
                fonts[int(found[1])] = archive.extractfile(name).read()
        licence = archive.extractfile("package/LICENSE").read()
    if LICENCES[one["licence"]].lower() not in licence.decode(errors="replace").lower():
        raise ValueError(f"its LICENSE is not {one['licence']}")
    if not fonts:
        raise ValueError("it has no upright Latin font")
    kept = [weight for weight in WEIGHTS if weight in fonts] or sorted(fonts)[:1]
    return {f"licences/{family}.txt": licence} | {f"{family}-{weight}.woff2": fonts[weight] for weight in kept}


if __name__ == "__main__":
    sys.exit(main())
