"""Read files of images: by the decoders that their kind names, upright, in bounded memory, each fault with its file."""

import contextlib
import contextvars
import io
import os
import threading
from collections.abc import Iterable, Iterator

import numpy as np

from soups.data.transforms import from_pil
from soups.lazy import MissingExtraError, pillow
from soups.stores import StorePath

# Any of these may bear the name of another: an image of ImageNet is a PNG called .JPEG. None starts another program.
_COMMON = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
_BY_EXTENSION = {".pgm": ("PPM",), ".ppm": ("PPM",), ".tif": ("TIFF",), ".tiff": ("TIFF",)}
EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp", *_BY_EXTENSION})

_ORIENTATION = 0x0112  # of EXIF: how the camera was held, and from 2 on how the image is turned back
_TURNS = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")
_UPRIGHT = dict(enumerate(_TURNS, start=2))
_BYTES_PER_PIXEL = 12  # at the peak: Pillow's four, its copy as bytes, the array
_AT_ONCE = 1 << 30  # bytes of images that are being decoded; one that is larger is decoded alone


class UnreadableImage(ValueError):
    """Say that a file is no image, a broken one, or one that a transform cannot take."""


def read_image(file, where: str, *, upright: bool = True) -> np.ndarray:
    """Decode a file, given by its path or opened, as uint8 [H, W, C]; `where` begins a message.

    Gray and RGB stay as they are, all others become RGB, or gray. `upright` turns what a camera that was held otherwise
    took, as EXIF says, and as every viewer does. Of many threads only so many decode at once as 1 GiB has room for.

    Raises:
        UnreadableImage: a file that is not an image of the kinds in `EXTENSIONS`, is broken, has more than 8 bits per
            channel, or has more pixels than Pillow accepts (179 million).
    """
    extension = os.path.splitext(str(file))[1].lower() if isinstance(file, (str, os.PathLike, StorePath)) else ""
    file = io.BytesIO(file.read_bytes()) if isinstance(file, StorePath) else file
    try:
        with memory_held(), pillow.open(file, formats=(*_COMMON, *_BY_EXTENSION.get(extension, ()))) as image:
            _reserve(image.width * image.height * _BYTES_PER_PIXEL)
            return from_pil(_turned(image) if upright else image)
    except (MemoryError, MissingExtraError):
        raise
    except Exception as error:  # broken files make Pillow raise errors of many kinds, SyntaxError among them
        raise UnreadableImage(f"{where}: cannot be read as an image ({error})") from error


def text_names(folder, names: Iterable[str]) -> list[str]:
    """Return the names of files in a folder, sorted; a ValueError for one that no record could hold (not UTF-8)."""
    names = sorted(names)
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{folder}: the name {os.fsencode(name)!r} is not UTF-8: rename it") from None
    return names


def is_image(name: str) -> bool:
    """Say whether a file has the name of an image and is not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


@contextlib.contextmanager
def memory_held() -> Iterator[None]:
    """Let what `read_image` decodes within count as being decoded until the end, for it is still to be transformed."""
    global _taken
    if _HELD.get() is not None:
        yield
        return
    sizes = []
    token = _HELD.set(sizes)
    try:
        yield
    finally:
        _HELD.reset(token)
        with _CHANGED:
            _taken -= sum(sizes)
            _CHANGED.notify_all()


def _turned(image):
    image.load()  # a TIFF is turned by this, and a PNG may say it at its end
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # broken notes of a camera make no image unreadable
        return image
    return image.transpose(pillow.Transpose[_UPRIGHT[orientation]]) if orientation in _UPRIGHT else image


_HELD = contextvars.ContextVar("held", default=None)  # bytes of the images that are held here
_CHANGED = threading.Condition()
_taken = 0


def _reserve(size):
    global _taken
    sizes = _HELD.get()
    with _CHANGED:
        # who holds some already waits for no more, or two could wait for each other
        _CHANGED.wait_for(lambda: sizes or not _taken or _taken + size <= _AT_ONCE)
        _taken += size
    sizes.append(size)
