"""Characters of fonts as a task: the classes, how glyphs are drawn, which family goes where, and what is said."""

import pathlib
import shutil
import string

import matplotlib
import numpy as np
import PIL.ImageFont
import pytest
import xxhash
from fontTools import subset  # which matplotlib needs

from soups.data import Dataset, check_disjoint, glyphs, glyphs_task, printed_digits

SHIPPED = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf"
# from here on the families are named so that their words fall into each split
WORDS = [f"word{number}" for number in range(40)]


def place_of(family):
    return xxhash.xxh3_64_intdigest(family.split("-")[0].encode()) / 2**64


def word_in(low, high):
    return next(word for word in WORDS if low <= place_of(word) < high)


@pytest.fixture(scope="module")
def fonts(tmp_path_factory):
    """Give a folder with fonts that matplotlib brings along, as families of all three splits."""
    folder = tmp_path_factory.mktemp("fonts")
    test, held_out, train = word_in(0, 0.3), word_in(0.3, 0.6), word_in(0.6, 1)
    for name, of in {
        f"{test}-one-400.ttf": "DejaVuSans.ttf",
        f"{test}-two-400.ttf": "cmr10.ttf",
        f"{held_out}-400.ttf": "DejaVuSerif.ttf",
        f"{train}-400.ttf": "DejaVuSansMono.ttf",
        f"{train}-700.ttf": "DejaVuSansMono-Bold.ttf",
        f"{train}-copy-400.ttf": "DejaVuSans.ttf",
        f"{train}-symbols-400.ttf": "STIXSizFiveSymReg.ttf",
    }.items():
        shutil.copy(SHIPPED / of, folder / name)
    digits = [SHIPPED / "DejaVuSerif-Bold.ttf", "--text=0123456789", "--notdef-outline"]
    subset.main([*map(str, digits), f"--output-file={folder / train}-digits-400.ttf"])
    (folder / f"{train}-broken-400.ttf").write_bytes(b"no font")
    (folder / "fonts.json").write_text('{"families": [{"licence": "b"}, {"licence": "a"}, {"licence": "b"}]}')
    return folder


@pytest.fixture(scope="module")
def task(fonts):
    """Give the task of these fonts."""
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
    assert "1 files that cannot be read: " in said and "broken-400.ttf (unknown file format)" in said


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
        shutil.copy(SHIPPED / "DejaVuSerif-Bold.ttf", tmp_path / "more" / f"{word}-other-400.ttf")
    again = glyphs_task(fonts=tmp_path / "more", held_out=0.3, test=0.3)
    before = {image.tobytes() for image in task.test.images}
    assert before <= {image.tobytes() for image in again.test.images}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fonts": None}, "fonts must be a folder of font files: scripts/fetch_fonts.py FOLDER downloads"),
        ({"fonts": "nowhere"}, "nowhere: no such folder; scripts/fetch_fonts.py FOLDER downloads"),
        ({"fonts": "."}, "no fonts in it; scripts/fetch_fonts.py FOLDER downloads"),
        ({"test": 0.0}, "held_out and test are shares above 0, together below 1, not 0.05 and 0.0"),
        ({"test": 1e-9}, "none of the 6 families in .* falls into test: more fonts are needed"),
    ],
)
def test_what_cannot_be_a_task_is_said(fonts, tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        glyphs_task(**{"fonts": fonts} | changes)


def test_licences_are_counted(fonts, tmp_path):
    assert glyphs.font_licences(fonts) == {"a": 1, "b": 2}
    assert glyphs.font_licences(tmp_path) == {}


def test_printed_digits_are_those_of_the_test_families(fonts, tmp_path, monkeypatch):
    small = tmp_path / "small"
    small.mkdir()
    names = {word_in(0, 0.1): "DejaVuSans.ttf", word_in(0.1, 0.15): "cmr10.ttf", word_in(0.2, 1): "DejaVuSerif.ttf"}
    for word, of in names.items():
        shutil.copy(SHIPPED / of, small / f"{word}-400.ttf")
    monkeypatch.setattr(glyphs, "PRINTED", glyphs.write_printed(small, tmp_path / "printed.npz"))
    made = printed_digits()
    assert made.class_names == tuple("0123456789") and made.labels.tolist() == list(range(10))
    font = PIL.ImageFont.truetype(SHIPPED / "DejaVuSans.ttf", 72)
    for label, image in zip(made.labels, made.images, strict=True):
        np.testing.assert_array_equal(image[..., 0], glyphs.draw(font, str(label)))


def test_the_printed_digits_of_the_package():
    made = printed_digits()
    assert made.images.shape[1:] == (28, 28, 1) and len(made) > 1000
    counts = np.bincount(made.labels, minlength=10)
    assert counts.min() > 0.9 * counts.max()
    assert printed_digits(14).images.shape == (len(made), 14, 14, 1)
