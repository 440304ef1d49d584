"""Fetch fonts with an npm that packs what the test gives it: what is kept, what is refused, and going on."""

import base64
import hashlib
import io
import os
import pathlib
import re
import shlex
import stat
import sys
import tarfile

import pytest
import xxhash

from soups import state

ROOT = pathlib.Path(__file__).parents[1]
OTHER = f"sha512-{'A' * 86}=="
OFL = b"Copyright 2020\nThis Font Software is licensed under the SIL Open Font License, Version 1.1.\n"
NPM = """
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
def fetch_fonts(script):
    """Return the module of the script."""
    return script("fetch_fonts")


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Return the folder of packages from which the npm of the test packs."""
    folder, programs = tmp_path / "store", tmp_path / "programs"
    folder.mkdir()
    programs.mkdir()
    npm = programs / "npm"
    (programs / "npm.py").write_text(NPM.format(store=str(folder)))
    # by the shell, for an interpreter after "#!" must have a short path without blanks
    npm.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(programs / "npm.py"))} "$@"\n')
    npm.chmod(npm.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return folder


def packed(store, family, weights=(300, 400, 700), kind=tarfile.REGTYPE, cut=None):
    """Put a package into the store and return its line of the list; `kind` is that of its first font's member."""
    files = {f"files/{family}-latin-{weight}-normal.woff2": f"{family} {weight}".encode() for weight in weights}
    files |= {
        f"files/{family}-latin-ext-400-normal.woff2": b"other",
        f"files/{family}-latin-400-italic.woff2": b"other",
    }
    with tarfile.open(store / f"{family}.tgz", "w:gz") as archive:
        for name, content in (files | {"LICENSE": OFL, "../outside": b"evil"}).items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            if name == next(iter(files)) and kind != tarfile.REGTYPE:
                member.type, member.size, member.linkname = kind, 0, "package/LICENSE"
            archive.addfile(member, io.BytesIO(content))
    (store / f"{family}.tgz").write_bytes((store / f"{family}.tgz").read_bytes()[:cut])
    digest = hashlib.sha512((store / f"{family}.tgz").read_bytes()).digest()
    line = {"family": family, "version": "5.0.0", "licence": "OFL-1.1", "category": "serif"}
    return line | {"integrity": f"sha512-{base64.b64encode(digest).decode()}"}


def listing(path, *lines):
    rows = ["\t".join(lines[0]), *("\t".join(line.values()) for line in lines)]
    path.write_text("\n".join(rows) + "\n")
    return f"--list={path}"


def test_fonts_licences_and_a_record_are_kept(fetch_fonts, store, tmp_path):
    lines = [packed(store, "one"), packed(store, "two", weights=(200, 300))]
    listed = listing(tmp_path / "list.tsv", *lines)
    assert fetch_fonts.main([str(tmp_path / "fonts"), listed]) == 0
    files = {path.relative_to(tmp_path / "fonts").as_posix() for path in (tmp_path / "fonts").rglob("*.*")}
    fonts = {"one-400.woff2", "one-700.woff2", "two-200.woff2"}
    assert files == fonts | {"fonts.json", "licences/one.txt", "licences/two.txt"}
    assert (tmp_path / "fonts" / "one-700.woff2").read_bytes() == b"one 700"
    assert (tmp_path / "fonts" / "licences" / "two.txt").read_bytes() == OFL
    record = state.read(tmp_path / "fonts" / "fonts.json")["families"]
    assert [{name: value for name, value in one.items() if name != "files"} for one in record] == lines
    digests = {name: digest for one in record for name, digest in one["files"].items()}
    assert digests.keys() == files - {"fonts.json"} and digests["one-700.woff2"] == xxhash.xxh3_128_hexdigest(
        b"one 700"
    )
    assert sorted((store / "asked").read_text().split()) == ["@fontsource/one@5.0.0", "@fontsource/two@5.0.0"]


def test_the_same_command_fetches_what_is_missing(fetch_fonts, store, tmp_path):
    listed = listing(tmp_path / "list.tsv", packed(store, "one"), packed(store, "two"))
    (store / "two.tgz").rename(store / "later")
    assert fetch_fonts.main([str(tmp_path / "fonts"), listed]) == 2
    (store / "later").rename(store / "two.tgz")
    (store / "asked").unlink()
    assert fetch_fonts.main([str(tmp_path / "fonts"), listed]) == 0
    assert (store / "asked").read_text() == "@fontsource/two@5.0.0\n"
    (store / "asked").unlink()
    (tmp_path / "fonts" / "one-400.woff2").unlink()
    (tmp_path / "fonts" / "two-400.woff2").write_bytes(b"two")  # cut off
    assert fetch_fonts.main([str(tmp_path / "fonts"), listed]) == 0
    assert sorted((store / "asked").read_text().split()) == ["@fontsource/one@5.0.0", "@fontsource/two@5.0.0"]
    assert [(tmp_path / "fonts" / f"{name}-400.woff2").read_bytes() for name in ("one", "two")] == [
        b"one 400",
        b"two 400",
    ]
    assert fetch_fonts.main([str(tmp_path / "fonts"), listed]) == 0
    assert len((store / "asked").read_text().split()) == 2


def test_the_record_has_the_families_of_the_list_alone(fetch_fonts, store, tmp_path):
    lines = [packed(store, "one"), packed(store, "two")]
    assert fetch_fonts.main([str(tmp_path / "fonts"), listing(tmp_path / "list.tsv", *lines)]) == 0
    assert fetch_fonts.main([str(tmp_path / "fonts"), listing(tmp_path / "list.tsv", lines[1])]) == 0
    assert [one["family"] for one in state.read(tmp_path / "fonts" / "fonts.json")["families"]] == ["two"]
    assert (tmp_path / "fonts" / "one-400.woff2").exists()  # who wants it may have it


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"integrity": OTHER}, "one: its integrity is sha512-.*, not sha512-AAAA"),
        ({"licence": "Apache-2.0"}, "one: its LICENSE is not Apache-2.0"),
        ({"licence": "MIT"}, r"licences must be OFL-1.1, Apache-2.0, UFL-1.0, not those of one \(MIT\)"),
        ({"family": "none"}, "none: npm pack @fontsource/none@5.0.0 failed: npm error 404 not found"),
        ({"family": "../../x"}, r"list.tsv: line 2 has no family as it must be: .*\.\./\.\./x"),
        ({"family": "one@npm:other"}, "line 2 has no family as it must be"),
        ({"version": "5.0.0 --registry=elsewhere"}, "line 2 has no version as it must be"),
        ({"version": "latest"}, "line 2 has no version as it must be"),
        ({"integrity": "sha512-AAAA"}, "line 2 has no integrity as it must be"),
        ({"integrity": f"{OTHER}\tmore"}, "line 2 has no end as it must be"),
    ],
)
def test_what_is_not_what_the_list_says_is_refused(fetch_fonts, store, tmp_path, capsys, changes, message):
    listed = listing(tmp_path / "list.tsv", packed(store, "one") | changes)
    assert fetch_fonts.main([str(tmp_path / "fonts"), listed]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not list(tmp_path.glob("fonts/*.woff2"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "list.tsv: the columns must be family, version, licence, category, integrity, not none"),
        ("family\tversion\none\t5.0.0\n", "the columns must be .*, not family, version$"),
        ("family\tversion\tlicence\tcategory\tintegrity\none\n", "line 2 has no version as it must be"),
        ("\udc80", "list.tsv is no list of families: .*decode"),
    ],
)
def test_a_list_that_is_none_is_refused(fetch_fonts, store, tmp_path, capsys, text, message):
    (tmp_path / "list.tsv").write_text(text, errors="surrogateescape")
    assert fetch_fonts.main([str(tmp_path / "fonts"), f"--list={tmp_path / 'list.tsv'}"]) == 2
    assert re.search(message, capsys.readouterr().err.strip())


def test_a_family_stands_once_in_a_list(fetch_fonts, store, tmp_path, capsys):
    line = packed(store, "one")
    assert fetch_fonts.main([str(tmp_path / "fonts"), listing(tmp_path / "list.tsv", line, line)]) == 2
    assert "families appear twice: one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "message"),
    [
        ({"kind": tarfile.DIRTYPE}, "one: its package/files/one-latin-300-normal.woff2 is no file"),
        ({"kind": tarfile.SYMTYPE}, "one: its package/files/one-latin-300-normal.woff2 is no file"),
        ({"kind": tarfile.LNKTYPE}, "one: its package/files/one-latin-300-normal.woff2 is no file"),
        ({"kind": tarfile.FIFOTYPE}, "one: its package/files/one-latin-300-normal.woff2 is no file"),
        ({"cut": 60}, "one: Compressed file ended before"),
        ({"cut": 0}, "one: its LICENSE is not OFL-1.1|one: .*empty"),
        ({"weights": ()}, "one: it has no upright Latin font"),
    ],
)
def test_a_package_that_is_no_font_is_refused(fetch_fonts, store, tmp_path, capsys, package, message):
    listed = listing(tmp_path / "list.tsv", packed(store, "one", **package))
    assert fetch_fonts.main([str(tmp_path / "fonts"), listed]) == 2
    assert re.search(message, error := capsys.readouterr().err), error
    assert not list(tmp_path.glob("fonts/*.woff2"))


def test_what_is_damaged_in_a_package_is_said(fetch_fonts, store, tmp_path, capsys):
    (store / "one.tgz").write_bytes(b"\x1f\x8b\x08" + bytes(7) + b"\xff" * 99)  # no stream of zlib
    digest = base64.b64encode(hashlib.sha512((store / "one.tgz").read_bytes()).digest()).decode()
    listed = listing(tmp_path / "list.tsv", {**packed(tmp_path, "one"), "integrity": f"sha512-{digest}"})
    assert fetch_fonts.main([str(tmp_path / "fonts"), listed]) == 2
    assert "one: Error -3 while decompressing data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("largest", "message"), [(100, "has .* bytes, more than 100"), (4000, "unpacks to more than 4,000")]
)
def test_a_package_has_a_largest_size(fetch_fonts, store, tmp_path, capsys, monkeypatch, largest, message):
    monkeypatch.setattr(fetch_fonts, "LARGEST", largest)
    assert fetch_fonts.main([str(tmp_path / "fonts"), listing(tmp_path / "list.tsv", packed(store, "one"))]) == 2
    assert re.search(f"one: the package {message}", capsys.readouterr().err)


def test_a_damaged_record_is_said(fetch_fonts, store, tmp_path, capsys):
    listed = listing(tmp_path / "list.tsv", packed(store, "one"))
    assert fetch_fonts.main([str(tmp_path / "fonts"), listed]) == 0
    record = tmp_path / "fonts" / "fonts.json"
    record.write_bytes(record.read_bytes()[:-20])
    assert fetch_fonts.main([str(tmp_path / "fonts"), listed]) == 2
    assert "fonts.json does not have the bytes that were written: it is damaged" in capsys.readouterr().err


def test_npm_is_not_waited_for_for_ever(fetch_fonts, store, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fetch_fonts, "SECONDS", 0.2)
    (tmp_path / "programs" / "npm").write_text("#!/bin/sh\nexec sleep 60\n")
    assert fetch_fonts.main([str(tmp_path / "fonts"), listing(tmp_path / "list.tsv", packed(store, "one"))]) == 2
    assert "one: npm pack @fontsource/one@5.0.0 was not done after 0.2 seconds" in capsys.readouterr().err


def test_npm_is_the_one_that_was_found(fetch_fonts, store, tmp_path, monkeypatch):
    """A PATH may have relative folders, and npm is called in another one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"programs{os.pathsep}{os.environ['PATH'].partition(os.pathsep)[2]}")
    assert fetch_fonts.main(["fonts", listing(tmp_path / "list.tsv", packed(store, "one"))]) == 0


def test_npm_is_needed(fetch_fonts, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fetch_fonts.main([str(tmp_path / "fonts")]) == 2
    assert "npm, which fetches the fonts, is not installed: it comes with Node.js" in capsys.readouterr().err


def test_the_list_of_the_project(fetch_fonts):
    families = fetch_fonts.listed(fetch_fonts.LIST)
    names = [one["family"] for one in families]
    assert len(names) > 900 and names == sorted(set(names))
    assert all(one["integrity"].startswith("sha512-") and len(one["integrity"]) == 95 for one in families)
    assert {one["category"] for one in families} == {"serif", "sans-serif", "display", "handwriting", "monospace"}
