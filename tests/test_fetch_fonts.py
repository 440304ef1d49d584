"""Fetch fonts with an npm that packs what the test gives it: what is kept, what is refused, and going on."""

import base64
import hashlib
import importlib.util
import io
import json
import os
import pathlib
import re
import stat
import sys
import tarfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
OFL = b"Copyright 2020\nThis Font Software is licensed under the SIL Open Font License, Version 1.1.\n"
NPM = """#!{python}
import pathlib, shutil, sys
folder, package = sys.argv[-2:]
family = package.removeprefix("@fontsource/").partition("@")[0]
place = pathlib.Path({store!r}) / (family + ".tgz")
with open(pathlib.Path({store!r}) / "asked", "a") as asked:
    print(package, file=asked)
if not place.exists():
    sys.exit("npm error 404 not found: " + package)
shutil.copy(place, folder)
"""


@pytest.fixture(scope="module")
def script():
    """Give the module of the script."""
    spec = importlib.util.spec_from_file_location("fetch_fonts", ROOT / "scripts" / "fetch_fonts.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Give the folder of packages from which the npm of the test packs."""
    folder, programs = tmp_path / "store", tmp_path / "programs"
    folder.mkdir()
    programs.mkdir()
    npm = programs / "npm"
    npm.write_text(NPM.format(python=sys.executable, store=str(folder)))
    npm.chmod(npm.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return folder


def packed(store, family, weights=(300, 400, 700)):
    """Put a package into the store and return its line of the list."""
    files = {f"files/{family}-latin-{weight}-normal.woff2": f"{family} {weight}".encode() for weight in weights}
    files |= {
        f"files/{family}-latin-ext-400-normal.woff2": b"other",
        f"files/{family}-latin-400-italic.woff2": b"other",
    }
    with tarfile.open(store / f"{family}.tgz", "w:gz") as archive:
        for name, content in (files | {"LICENSE": OFL, "../outside": b"evil"}).items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    digest = hashlib.sha512((store / f"{family}.tgz").read_bytes()).digest()
    line = {"family": family, "version": "5.0.0", "licence": "OFL-1.1", "category": "serif"}
    return line | {"integrity": f"sha512-{base64.b64encode(digest).decode()}"}


def listing(path, *lines):
    rows = ["\t".join(lines[0]), *("\t".join(line.values()) for line in lines)]
    path.write_text("\n".join(rows) + "\n")
    return f"--list={path}"


def test_fonts_licences_and_a_record_are_kept(script, store, tmp_path):
    lines = [packed(store, "one"), packed(store, "two", weights=(200, 300))]
    listed = listing(tmp_path / "list.tsv", *lines)
    assert script.main([str(tmp_path / "fonts"), listed]) == 0
    files = {path.relative_to(tmp_path / "fonts").as_posix() for path in (tmp_path / "fonts").rglob("*.*")}
    fonts = {"one-400.woff2", "one-700.woff2", "two-200.woff2"}
    assert files == fonts | {"fonts.json", "licences/one.txt", "licences/two.txt"}
    assert (tmp_path / "fonts" / "one-700.woff2").read_bytes() == b"one 700"
    assert (tmp_path / "fonts" / "licences" / "two.txt").read_bytes() == OFL
    record = json.loads((tmp_path / "fonts" / "fonts.json").read_text())["families"]
    assert [{name: value for name, value in one.items() if name != "files"} for one in record] == lines
    assert sorted((store / "asked").read_text().split()) == ["@fontsource/one@5.0.0", "@fontsource/two@5.0.0"]


def test_the_same_command_fetches_what_is_missing(script, store, tmp_path):
    listed = listing(tmp_path / "list.tsv", packed(store, "one"), packed(store, "two"))
    (store / "two.tgz").rename(store / "later")
    assert script.main([str(tmp_path / "fonts"), listed]) == 2
    (store / "later").rename(store / "two.tgz")
    (store / "asked").unlink()
    assert script.main([str(tmp_path / "fonts"), listed]) == 0
    assert (store / "asked").read_text() == "@fontsource/two@5.0.0\n"
    (tmp_path / "fonts" / "one-400.woff2").unlink()
    assert script.main([str(tmp_path / "fonts"), listed]) == 0
    assert (tmp_path / "fonts" / "one-400.woff2").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"integrity": "sha512-AAAA"}, "one: its integrity is sha512-.*, not sha512-AAAA"),
        ({"licence": "Apache-2.0"}, "one: its LICENSE is not Apache-2.0"),
        ({"licence": "MIT"}, r"licences must be OFL-1.1, Apache-2.0, UFL-1.0, not those of one \(MIT\)"),
        ({"family": "none"}, "none: npm pack @fontsource/none@5.0.0 failed: npm error 404 not found"),
    ],
)
def test_what_is_not_what_the_list_says_is_refused(script, store, tmp_path, capsys, changes, message):
    listed = listing(tmp_path / "list.tsv", packed(store, "one") | changes)
    assert script.main([str(tmp_path / "fonts"), listed]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not list(tmp_path.glob("fonts/*.woff2"))


def test_npm_is_needed(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert script.main([str(tmp_path / "fonts")]) == 2
    assert "npm, which fetches the fonts, is not installed: it comes with Node.js" in capsys.readouterr().err


def test_the_list_of_the_project(script):
    families = script.listed(script.LIST)
    names = [one["family"] for one in families]
    assert len(names) > 900 and names == sorted(set(names))
    assert all(one["integrity"].startswith("sha512-") and len(one["integrity"]) == 95 for one in families)
    assert {one["category"] for one in families} == {"serif", "sans-serif", "display", "handwriting", "monospace"}
