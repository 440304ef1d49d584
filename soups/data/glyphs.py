"""Draw the characters of fonts as MNIST has its digits: a task to pre-train on, and printed digits as a shift."""

import collections
import dataclasses
import io
import os
import pathlib
import re
import string

import numpy as np
import xxhash

from soups.data.dataset import Dataset, Task, decode
from soups.data.fonts import font_files, font_licences
from soups.data.transforms import compose, resize, to_channels
from soups.files import replace_file
from soups.lazy import extra
from soups.names import few
from soups.progress import counted, say
from soups.shipped import shipped

with extra("data"):
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
_ALIKE = "cijklmopsuvwxyz"  # small letters that look like their capitals, as in EMNIST's "balanced"
#: digits, capitals, and the eleven small letters that look otherwise
CLASS_NAMES = tuple(character for character in CHARACTERS if character not in _ALIKE)
PRINTED = pathlib.Path(__file__).with_name("printed_digits.npz")  # made by `write_printed`
PRINTED_DIGEST = "6dca30c18131269b6e3d45190be9b062"  # XXH3 (128 bits) of that file

_POINTS = 72  # at which glyphs are drawn before they are shrunk
_LARGEST = 400  # pixels of a glyph at that size; swashes of some fonts go on for ever
_LEAST_INK = 8  # white pixels
_LEAST_SIZE = 8  # pixels of an image's side, below which no characters are left
_NO_CHARACTER = "\uffff"  # which no font has: what is drawn for it is what stands for all that a font lacks


def glyphs_task(
    *, fonts: str | os.PathLike | None, image_size: int = 28, held_out: float = 0.05, test: float = 0.1
) -> Task:
    """Return the task to tell the characters 0-9, A-Z and a-z of fonts apart, in the 47 classes of EMNIST "balanced".

    `fonts` is a folder of .woff2, .ttf or .otf files, such as `scripts/fetch_fonts.py FOLDER` fills; the family of a
    file is its name up to the last "-". Each glyph is drawn white on black, its longer side 20/28 of the image, and
    moved so that its centre of mass is in the middle, as MNIST is; uint8 [N, image_size, image_size, 1], in the order
    of the files' names and of `CHARACTERS`. Where there is a fonts.json only the files that it has are drawn.

    No family is in two splits. Where it goes depends on the digest of the first word of its name alone, so that
    relatives stay together, and other fonts in the folder change nothing: the shares `held_out` and `test` of all
    words go there. A word ends at "-", "_", a blank or "[", or before a capital after a small letter, and is taken in
    small letters: roboto-mono-400, RobotoMono-Regular and Roboto[wght] are of one word. Glyphs that a font lacks,
    blank ones, and those that an earlier split (test, held-out, train) has to the byte are left out and counted, files
    that cannot be read are named.

    Raises:
        ValueError: no such folder, or no fonts in it; a split that gets no glyphs; shares that leave nothing to train
            on; an image size below 8 pixels; files that are missing or differ from what fonts.json records.
    """
    if not isinstance(image_size, int | np.integer) or image_size < _LEAST_SIZE:
        raise ValueError(f"image_size must be a whole number, at least {_LEAST_SIZE}, not {image_size!r:.200}")
    if not (held_out > 0 and test > 0 and held_out + test < 1):
        raise ValueError(
            f"held_out and test must be shares above 0 that add up to less than 1, not {held_out} and {test}"
        )
    files, others = font_files(fonts)
    drawn = _draw_all(files, image_size)
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
    say(drawn.said() + f"; {others} font files are not drawn, because fonts.json does not list them" * bool(others))
    facts = {"licences_of_fonts": font_licences(fonts)}
    return Task(name="glyphs", class_names=CLASS_NAMES, shifts={}, facts=facts, **parts)


def printed_digits(image_size: int = 28) -> Dataset:
    """Return digits of the font families that `glyphs_task` keeps for its test, as they come with the package.

    A ValueError if their file is damaged, a FileNotFoundError if it is not there.
    """
    with np.load(shipped(PRINTED, PRINTED_DIGEST)) as kept:
        made = Dataset(kept["images"], kept["labels"], tuple(string.digits))
    return decode(made, compose(resize(image_size), to_channels(1)))


def write_printed(fonts: str | os.PathLike, path: str | os.PathLike = PRINTED) -> pathlib.Path:
    """Write the digits of the test split of `glyphs_task`, for `printed_digits`."""
    test = glyphs_task(fonts=fonts).test
    digits = test.take(np.flatnonzero(test.labels < len(string.digits)))
    content = io.BytesIO()
    np.savez_compressed(content, images=digits.images, labels=digits.labels)
    return replace_file(path, content.getvalue())


def class_of(character: str) -> str:
    """Return the class of a character: its own, or that of its capital where the two look alike."""
    return character.upper() if character in _ALIKE else character


def first_word(family: str) -> str:
    """Return the first word of a family's name in small letters: relatives begin with the same."""
    return re.split(r"[-_ \[]|(?<=[a-z0-9])(?=[A-Z])", family)[0].lower()


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


def _draw_all(files, image_size) -> _Drawn:
    drawn = _Drawn(len(files), [], collections.Counter(), [])
    for path in counted(files, "drawing glyphs", len(files), "files"):
        try:
            found, left_out = _draw_file(path, image_size)
        except (OSError, ValueError, MemoryError) as error:  # as FreeType says it
            drawn.unreadable.append(f"{path.name} ({str(error) or type(error).__name__})")
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
    place = xxhash.xxh3_64_intdigest(first_word(family).encode()) / 2**64
    return "test" if place < test else "held_out" if place < test + held_out else "train"
