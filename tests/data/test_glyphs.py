"""Characters of fonts as a task: the classes, how glyphs are drawn, which family goes where, and what is said."""

import csv
import os
import pathlib
import shutil
import string

import matplotlib
import numpy as np
import PIL.ImageFont
import pytest
import xxhash
from fontTools.fontBuilder import FontBuilder  # which matplotlib needs
from fontTools.pens.ttGlyphPen import TTGlyphPen

from soups import state
from soups.data import Dataset, check_disjoint, glyphs, glyphs_task, printed_digits

ROOT = pathlib.Path(__file__).parents[2]
SHIPPED = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf"
# from here on the families are named so that their words fall into each split
WORDS = [f"word{number}" for number in range(40)]


def place_of(family):
    return xxhash.xxh3_64_intdigest(family.split("-")[0].encode()) / 2**64


def word_in(low, high):
    return next(word for word in WORDS if low <= place_of(word) < high)


def make_font(path, seed, characters=glyphs.CHARACTERS, lacking=True):
    """Write a font of squares that the seed draws; a box stands for what it lacks, or nothing."""
    rng, names = np.random.default_rng(seed), {character: f"glyph{ord(character)}" for character in characters}

    def drawn(squares):
        pen = TTGlyphPen(None)
        for row, column in squares:
            corners = [(column + across, row + up) for across, up in ((0, 0), (0, 1), (1, 1), (1, 0))]
            pen.moveTo((100 * corners[0][0], 100 * corners[0][1]))
            for across, up in corners[1:]:
                pen.lineTo((100 * across, 100 * up))
            pen.closePath()
        return pen.glyph()

    every = np.argwhere(np.ones((7, 7)))
    box = [place for place in every if 0 in place or 6 in place]
    shapes = {".notdef": drawn(box * lacking)}
    shapes |= {name: drawn(rng.permutation(every)[:24]) for name in names.values()}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(list(shapes))
    builder.setupCharacterMap({ord(character): name for character, name in names.items()})
    builder.setupGlyf(shapes)
    builder.setupHorizontalMetrics(dict.fromkeys(shapes, (800, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


def note(folder, files):
    """Write a fonts.json of one family with these files as they are, of the licence "a"."""
    digests = {name: xxhash.xxh3_128_hexdigest((folder / name).read_bytes()) for name in files}
    state.write(folder / "fonts.json", {"families": [{"family": "one", "licence": "a", "files": digests}]})


@pytest.fixture(scope="module")
def fonts(tmp_path_factory):
    """Return a folder with fonts of squares, as families of all three splits."""
    folder = tmp_path_factory.mktemp("fonts")
    test, held_out, train = word_in(0, 0.3), word_in(0.3, 0.6), word_in(0.6, 1)
    names = [f"{test}-one-400", f"{test}-two-400", f"{held_out}-400", f"{train}-400", f"{train}-700"]
    for seed, name in enumerate([*names, f"{train}-digits-400", f"{train}-symbols-400"]):
        kept = string.digits if "digits" in name else "!" if "symbols" in name else glyphs.CHARACTERS
        make_font(folder / f"{name}.ttf", seed, kept, lacking="symbols" not in name)
    shutil.copy(folder / f"{test}-one-400.ttf", folder / f"{train}-copy-400.ttf")
    (folder / f"{train}-broken-400.ttf").write_bytes(b"no font")
    return folder


@pytest.fixture(scope="module")
def task(fonts):
    """Return the task of these fonts."""
    return glyphs_task(fonts=fonts, held_out=0.3, test=0.3)


def test_classes_are_those_of_emnist_balanced():
    assert len(glyphs.CLASS_NAMES) == 47 and glyphs.CLASS_NAMES[:10] == tuple("0123456789")
    # Cohen et al., 2017, arXiv 1702.05373: what EMNIST "balanced" keeps of the small letters
    assert glyphs.CLASS_NAMES[10:] == (*string.ascii_uppercase, *"abdefghnqrt")
    assert {glyphs.class_of(character) for character in glyphs.CHARACTERS} == set(glyphs.CLASS_NAMES)
    assert (glyphs.class_of("c"), glyphs.class_of("a"), glyphs.class_of("7")) == ("C", "a", "7")


def test_a_task_has_the_glyphs_of_its_families(task):
    for split in (task.train, task.held_out, task.test):
        assert isinstance(split, Dataset) and split.images.shape[1:] == (28, 28, 1)
        assert split.images.dtype == np.uint8 and split.class_names == glyphs.CLASS_NAMES
    check_disjoint(train=task.train, held_out=task.held_out, test=task.test)
    assert len(task.test) == 2 * 62 and len(task.held_out) == 62  # two families, and one
    assert np.bincount(task.held_out.labels).tolist() == [1] * 10 + [1 + (c.lower() in "cijklmopsuvwxyz") for c in
                                                                    string.ascii_uppercase] + [1] * 11  # fmt: skip
    # two weights of one family, and ten digits of another; the copy of a test font has nothing new
    assert len(task.train) == 2 * 62 + 10 and np.all(task.train.labels[-10:] == np.arange(10))


def test_what_is_left_out_is_said(fonts, capsys):
    glyphs_task(fonts=fonts, held_out=0.3, test=0.3)
    said = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("glyphs: "))
    assert said.startswith("glyphs: 382 of 6 font families in 9 files; left out: ")
    assert "62 glyphs that are blank or boundless" in said and "52 glyphs that their fonts lack" in said
    assert "62 glyphs that are in another split too" in said
    assert "1 files that cannot be read: " in said and "broken-400.ttf (" in said


def test_a_glyph_is_centred_by_mass_and_fills_20_of_28_pixels():
    font = PIL.ImageFont.truetype(SHIPPED / "DejaVuSans.ttf", 72)
    for size in (28, 56):
        for character in "0L7mQ":
            image = glyphs.draw(font, character, size).astype(float)
            rows, columns = np.nonzero(image.sum(1))[0], np.nonzero(image.sum(0))[0]
            sides = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
            assert max(sides) == size * 20 // 28
            centre = [(image.sum(1 - axis) * np.arange(size)).sum() / image.sum() for axis in (0, 1)]
            np.testing.assert_allclose(centre, (size - 1) / 2, atol=0.5001)
    assert glyphs.draw(font, " ") is None


def test_glyphs_are_upright():
    font = PIL.ImageFont.truetype(SHIPPED / "DejaVuSans.ttf", 72)
    seven = glyphs.draw(font, "7") > 0
    rows = np.flatnonzero(seven.any(1))
    assert seven[rows[1]].sum() > 2 * seven[rows[-2]].sum()  # the bar is above
    assert glyphs.draw(font, "L")[14:, :14].sum() > glyphs.draw(font, "L")[:14, 14:].sum()


def test_other_fonts_do_not_move_a_family(fonts, task, tmp_path):
    shutil.copytree(fonts, tmp_path / "more")
    for word in WORDS[:5]:
        make_font(tmp_path / "more" / f"{word}-other-400.ttf", seed=9)
    again = glyphs_task(fonts=tmp_path / "more", held_out=0.3, test=0.3)
    before = {image.tobytes() for image in task.test.images}
    assert before <= {image.tobytes() for image in again.test.images}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fonts": None}, "fonts must be a folder of font files: scripts/fetch_fonts.py FOLDER downloads"),
        ({"fonts": "nowhere"}, "nowhere: no such folder; scripts/fetch_fonts.py FOLDER downloads"),
        ({"fonts": "gs://bucket/fonts"}, "'gs://bucket/fonts' is a URL: give a local path"),
        ({"fonts": "."}, "no fonts in it; scripts/fetch_fonts.py FOLDER downloads"),
        ({"test": 0.0}, "held_out and test must be shares above 0 that add up to less than 1, not 0.05 and 0.0"),
        ({"image_size": 0}, "image_size must be a whole number, at least 8, not 0"),
        ({"image_size": 28.0}, "image_size must be a whole number, at least 8, not 28.0"),
        ({"test": 1e-9}, "none of the 6 families in .* falls into test: more fonts are needed"),
    ],
)
def test_what_cannot_be_a_task_is_said(fonts, tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        glyphs_task(**{"fonts": fonts} | changes)


def test_licences_are_counted(task, tmp_path):
    families = [{"family": name, "licence": licence, "files": {}} for name, licence in zip("xyz", "bab", strict=True)]
    state.write(tmp_path / "fonts.json", {"families": families})
    assert glyphs.font_licences(tmp_path) == {"a": 1, "b": 2}
    assert task.facts == {"licences_of_fonts": {}}  # of a folder without fonts.json


def test_only_what_fonts_json_has_is_drawn(fonts, task, tmp_path, capsys):
    shutil.copytree(fonts, tmp_path / "more")
    note(tmp_path / "more", [path.name for path in fonts.iterdir()])
    make_font(tmp_path / "more" / f"{word_in(0, 0.3)}-stray-400.ttf", seed=9)
    again = glyphs_task(fonts=tmp_path / "more", held_out=0.3, test=0.3)
    for split in ("train", "held_out", "test"):
        np.testing.assert_array_equal(getattr(again, split).images, getattr(task, split).images)
    assert "; 1 font files are not drawn, because fonts.json does not list them" in capsys.readouterr().out
    assert again.facts == {"licences_of_fonts": {"a": 1}}


def test_files_that_are_not_as_fonts_json_has_them_are_refused(fonts, tmp_path):
    folder = tmp_path / "more"
    shutil.copytree(fonts, folder)
    first, second = sorted(path.name for path in fonts.iterdir())[:2]
    note(folder, [first, second])
    (folder / first).write_bytes((folder / first).read_bytes()[:-9])
    (folder / second).unlink()
    with pytest.raises(ValueError, match=f"2 files are missing or differ from fonts.json; .*: {first}, {second}$"):
        glyphs_task(fonts=folder)
    note(folder, [])
    with pytest.raises(ValueError, match=r"fonts.json lists none of the fonts in it"):
        glyphs_task(fonts=folder)
    (folder / "fonts.json").write_text('{"families": [')
    with pytest.raises(ValueError, match=r"fonts.json does not have the bytes that were written"):
        glyphs_task(fonts=folder)
    state.write(folder / "fonts.json", {"families": [{"family": "one", "licence": "a", "files": ["one.ttf"]}]})
    with pytest.raises(
        ValueError, match=r"fonts.json: a family must have a name, a licence and files with their digests"
    ):
        glyphs_task(fonts=folder)


def test_what_is_no_file_is_no_font(fonts, task, tmp_path):
    shutil.copytree(fonts, tmp_path / "more")
    os.mkfifo(tmp_path / "more" / "pipe.ttf")  # which would be waited for
    (tmp_path / "more" / "folder.ttf").mkdir()
    again = glyphs_task(fonts=tmp_path / "more", held_out=0.3, test=0.3)
    np.testing.assert_array_equal(again.train.images, task.train.images)


def test_a_font_that_wants_all_memory_is_named(fonts, task, monkeypatch, capsys):
    def opened(path, *more, **options):
        if "broken" in path.name:
            raise MemoryError
        return truetype(path, *more, **options)

    truetype = PIL.ImageFont.truetype
    monkeypatch.setattr(PIL.ImageFont, "truetype", opened)
    again = glyphs_task(fonts=fonts, held_out=0.3, test=0.3)
    np.testing.assert_array_equal(again.train.images, task.train.images)
    assert "broken-400.ttf (MemoryError)" in capsys.readouterr().out


def test_relatives_are_of_one_word_however_their_files_are_named():
    for name in ("roboto", "roboto-mono", "Roboto", "RobotoMono", "Roboto Mono", "Roboto_Condensed", "Roboto[wght]"):
        assert glyphs.first_word(name) == "roboto"
    with open(ROOT / "scripts" / "glyph_fonts.tsv", newline="") as file:
        families = [one["family"] for one in csv.DictReader(file, delimiter="\t")]
    assert [glyphs.first_word(family) for family in families] == [family.split("-")[0] for family in families]


def test_printed_digits_are_those_of_the_test_families(fonts, tmp_path, monkeypatch):
    small = tmp_path / "small"
    small.mkdir()
    words = word_in(0, 0.1), word_in(0.1, 0.15), word_in(0.2, 1)
    for seed, word in enumerate(words):
        make_font(small / f"{word}-400.ttf", seed)
    path = glyphs.write_printed(small, tmp_path / "printed")
    assert path == tmp_path / "printed" and [one.name for one in tmp_path.iterdir() if one.is_file()] == ["printed"]
    monkeypatch.setattr(glyphs, "PRINTED", path)
    with pytest.raises(ValueError, match=r"printed is damaged: its XXH3 is .*; install the package again"):
        printed_digits()
    monkeypatch.setattr(glyphs, "PRINTED_DIGEST", xxhash.xxh3_128_hexdigest(path.read_bytes()))
    made = printed_digits()
    assert made.class_names == tuple("0123456789") and made.labels.tolist() == list(range(10))
    font = PIL.ImageFont.truetype(small / f"{words[0]}-400.ttf", 72)
    for label, image in zip(made.labels, made.images, strict=True):
        np.testing.assert_array_equal(image[..., 0], glyphs.draw(font, str(label)))


def test_the_printed_digits_of_the_package():
    made = printed_digits()
    assert made.images.shape == (1589, 28, 28, 1)  # as docs/glyphs.md has it
    assert np.bincount(made.labels).tolist() == [159, 159, 159, 159, 159, 159, 159, 158, 159, 159]
    assert printed_digits(14).images.shape == (len(made), 14, 14, 1)
