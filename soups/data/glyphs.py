"""Draw the characters of fonts as MNIST has its digits: a task to pre-train on, and printed digits as a shift."""

import collections
import dataclasses
import json
import os
import pathlib
import string
from collections.abc import Mapping

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import xxhash

from soups.data.dataset import Dataset, Task, decode
from soups.data.transforms import compose, resize, to_channels
from soups.names import few
from soups.progress import counted, say

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
_ALIKE = "cijklmopsuvwxyz"  # small letters that look like their capitals, as in EMNIST's "balanced"
#: digits, capitals, and the eleven small letters that look otherwise
CLASS_NAMES = tuple(character for character in CHARACTERS if character not in _ALIKE)
PRINTED = pathlib.Path(__file__).with_name("printed_digits.npz")  # made by `write_printed`

_SUFFIXES = (".otf", ".ttf", ".woff2")
_POINTS = 72  # at which glyphs are drawn before they are shrunk
_LARGEST = 400  # pixels of a glyph at that size; swashes of some fonts go on for ever
_LEAST_INK = 8  # white pixels
_NO_CHARACTER = "\uffff"  # which no font has: what is drawn for it is what stands for all that a font lacks


def glyphs_task(
    *, fonts: str | os.PathLike | None, image_size: int = 28, held_out: float = 0.05, test: float = 0.1
) -> Task:
    """Return the task to tell the characters 0-9, A-Z and a-z of fonts apart, in the 47 classes of EMNIST "balanced".

    `fonts` is a folder of .woff2, .ttf or .otf files, such as `scripts/fetch_fonts.py FOLDER` fills; the family of a
    file is its name up to the last "-". Each glyph is drawn white on black, its longer side 20/28 of the image, and
    moved so that its centre of mass is in the middle, as MNIST is; uint8 [N, image_size, image_size, 1], in the order
    of the files' names and of `CHARACTERS`.

    No family is in two splits. Where it goes depends on the digest of the first word of its name alone, so that
    relatives stay together, and other fonts in the folder change nothing: the shares `held_out` and `test` of all
    words go there. Glyphs that a font lacks, blank ones, and those that an earlier split (test, held-out, train) has
    to the byte are left out and counted, files that cannot be read are named.

    Raises:
        ValueError: no folder, no fonts in it, a split that gets no glyphs, shares that leave nothing to train on.
    """
    if not (held_out > 0 and test > 0 and held_out + test < 1):
        raise ValueError(f"held_out and test are shares above 0, together below 1, not {held_out} and {test}")
    drawn = _draw_all(_font_files(fonts), image_size)
    seen, parts = set(), {}
    for split in ("test", "held_out", "train"):
        own = [glyph for glyph in drawn.glyphs if _split_of(glyph.family, held_out, test) == split]
        fresh = [glyph for glyph in own if glyph.key not in seen]
        seen |= {glyph.key for glyph in own}
        drawn.left_out["that are in another split too"] += len(own) - len(fresh)
        if not fresh:
            families = len({glyph.family for glyph in drawn.glyphs})
            raise ValueError(f"none of the {families} families in {fonts} falls into {split}: more fonts are needed")
        images = np.stack([glyph.image for glyph in fresh])[..., None]
        parts[split] = Dataset(images, np.array([glyph.label for glyph in fresh], np.int32), CLASS_NAMES)
    say(drawn.said())
    return Task(name="glyphs", class_names=CLASS_NAMES, shifts={}, **parts)


def printed_digits(image_size: int = 28) -> Dataset:
    """Return digits of the font families that `glyphs_task` keeps for its test, as they come with the package."""
    with np.load(PRINTED) as kept:
        made = Dataset(kept["images"], kept["labels"], tuple(string.digits))
    return decode(made, compose(resize(image_size), to_channels(1)))


def write_printed(fonts: str | os.PathLike, path: str | os.PathLike = PRINTED) -> pathlib.Path:
    """Write the digits of the test split of `glyphs_task`, for `printed_digits`."""
    test = glyphs_task(fonts=fonts).test
    digits = test.take(np.flatnonzero(test.labels < len(string.digits)))
    np.savez_compressed(path, images=digits.images, labels=digits.labels)
    return pathlib.Path(path)


def class_of(character: str) -> str:
    """Return the class of a character: its own, or that of its capital where the two look alike."""
    return character.upper() if character in _ALIKE else character


def font_licences(fonts: str | os.PathLike) -> Mapping[str, int]:
    """Count the families in a folder that `scripts/fetch_fonts.py` filled by their licence; none in another folder."""
    record = pathlib.Path(fonts) / "fonts.json"
    families = json.loads(record.read_text())["families"] if record.exists() else []
    return dict(sorted(collections.Counter(one["licence"] for one in families).items()))


def draw(font: PIL.ImageFont.FreeTypeFont, character: str, image_size: int = 28) -> np.ndarray | None:
    """Draw a character as uint8 [image_size, image_size], centred by mass; None for next to nothing, or no end."""
    left, top, right, bottom = font.getbbox(character)
    width, height = right - left, bottom - top
    if not (3 <= width <= _LARGEST and 3 <= height <= _LARGEST):
        return None
    image = PIL.Image.new("L", (width + 4, height + 4))
    PIL.ImageDraw.Draw(image).text((2 - left, 2 - top), character, font=font, fill=255)
    image = image.crop(image.getbbox())
    scale = round(image_size * 20 / 28) / max(image.size)
    size = [max(1, round(side * scale)) for side in image.size]
    method = PIL.Image.Resampling.BOX if scale < 1 else PIL.Image.Resampling.BILINEAR
    inked = np.asarray(image.resize(size, method))
    mass = inked.sum(dtype=np.int64)
    if mass < 255 * _LEAST_INK:
        return None
    places = []
    for axis in (0, 1):
        centre = float((inked.sum(1 - axis, dtype=np.int64) * np.arange(inked.shape[axis])).sum() / mass)
        places.append(min(max(round((image_size - 1) / 2 - centre), 0), image_size - inked.shape[axis]))
    whole = np.zeros((image_size, image_size), np.uint8)
    whole[places[0] : places[0] + inked.shape[0], places[1] : places[1] + inked.shape[1]] = inked
    return whole


@dataclasses.dataclass(frozen=True, eq=False)
class _Glyph:
    family: str
    label: int
    image: np.ndarray

    @property
    def key(self):
        return self.label, self.image.tobytes()


@dataclasses.dataclass
class _Drawn:
    files: int
    glyphs: list[_Glyph]
    left_out: collections.Counter
    unreadable: list[str]

    def said(self) -> str:
        """Say what was drawn, and what was not."""
        families = len({glyph.family for glyph in self.glyphs})
        more = [f"{count:,} glyphs {why}" for why, count in self.left_out.items() if count]
        more += [f"{len(self.unreadable)} files that cannot be read: {few(self.unreadable, 3)}"] * bool(self.unreadable)
        text = f"glyphs: {len(self.glyphs):,} of {families:,} font families in {self.files:,} files"
        return f"{text}; left out: {', '.join(more)}" if more else text


def _font_files(fonts):
    how = "scripts/fetch_fonts.py FOLDER downloads openly licensed ones"
    if fonts is None:
        raise ValueError(f"fonts must be a folder of font files: {how}, and config.task.fonts names it")
    folder = pathlib.Path(fonts)
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES) if folder.is_dir() else []
    if not files:
        raise ValueError(f"{folder}: {'no fonts in it' if folder.is_dir() else 'no such folder'}; {how}")
    return files


def _draw_all(files, image_size) -> _Drawn:
    drawn = _Drawn(len(files), [], collections.Counter(), [])
    for path in counted(files, "drawing glyphs", len(files), "files"):
        try:
            found, left_out = _draw_file(path, image_size)
        except (OSError, ValueError) as error:  # as FreeType says it
            drawn.unreadable.append(f"{path.name} ({error})")
        else:
            drawn.glyphs += found
            drawn.left_out.update(left_out)
    return drawn


def _draw_file(path, image_size):
    font = PIL.ImageFont.truetype(path, _POINTS, layout_engine=PIL.ImageFont.Layout.BASIC)
    family = path.stem.rpartition("-")[0] or path.stem
    lacking, found, left_out = draw(font, _NO_CHARACTER, image_size), [], collections.Counter()
    for character in CHARACTERS:
        image = draw(font, character, image_size)
        if image is None:
            left_out["that are blank or boundless"] += 1
        elif lacking is not None and np.array_equal(image, lacking):
            left_out["that their fonts lack"] += 1
        else:
            found.append(_Glyph(family, CLASS_NAMES.index(class_of(character)), image))
    return found, left_out


def _split_of(family, held_out, test):
    place = xxhash.xxh3_64_intdigest(family.split("-")[0].encode()) / 2**64
    return "test" if place < test else "held_out" if place < test + held_out else "train"
