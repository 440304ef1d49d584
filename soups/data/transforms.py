"""Transform images on the host while they are decoded: every function maps uint8 [H, W, C] to uint8 [H', W', C']."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from soups.arguments import check_within
from soups.lazy import pillow
from soups.names import check_name

if TYPE_CHECKING:
    from PIL.Image import Image

Transform = Callable[[np.ndarray], np.ndarray]
RandomTransform = Callable[[np.ndarray, np.random.Generator], np.ndarray]

MAX_PIXELS = 1 << 26  # of a resized image: what is long and thin would otherwise take any memory
_METHODS = ("bicubic", "bilinear", "box", "nearest")


def compose(*transforms: Transform) -> Transform:
    """Chain transforms, the first given is applied first; random ones all draw from the same generator."""

    def apply(image, *rng):
        for transform in transforms:
            image = transform(image, *rng)
        return image

    return apply


def resize(size: int | tuple[int, int], method: str = "bicubic") -> Transform:
    """Resize to `size` pixels, a side or (height, width), with Pillow: antialiased when it shrinks.

    `method`: "bicubic", "bilinear", "box" or "nearest".

    Raises:
        ValueError: an unknown method; a size of no pixels, or of more than MAX_PIXELS. When it is applied: an image
            that is empty, or does not have 1 or 3 channels.
    """
    check_name(method, _METHODS, "resize method")
    sides = (size, size) if isinstance(size, int | np.integer) else size
    if not isinstance(sides, tuple | list) or [isinstance(s, int | np.integer) for s in sides] != [True, True]:
        raise ValueError(f"a size must be a whole number of pixels, or two (height, width), not {size!r:.100}")
    height, width = map(int, sides)
    if min(height, width) < 1 or height * width > MAX_PIXELS:
        raise ValueError(f"a size must have 1 to {MAX_PIXELS:,} pixels, not {height} x {width}")
    resampling = pillow.Resampling[method.upper()]
    return lambda image: from_pil(to_pil(image).resize((width, height), resampling))


def resize_shorter(size: int, method: str = "bicubic") -> Transform:
    """Resize so that the shorter side has `size` pixels and the aspect ratio stays; the longer side is rounded down.

    `compose(resize_shorter(224), center_crop(224), to_channels(3))` is the evaluation transform of CLIP's models.

    Raises:
        ValueError: as `resize`. When it is applied, also an image so long and thin that the result would have more than
            MAX_PIXELS.
    """
    resize(size, method)  # checks both now

    def apply(image):
        height, width = image.shape[:2]
        shorter = min(height, width)
        fitting = (size * height // shorter, size * width // shorter) if shorter else (size, size)
        if fitting[0] * fitting[1] > MAX_PIXELS:
            raise ValueError(f"a {height} x {width} image is too long and thin to be resized to {size} pixels")
        return resize(fitting, method)(image)

    return apply


def center_crop(size: int) -> Transform:
    """Cut the central square of `size` pixels; half a pixel is rounded to the even neighbour.

    An image that is smaller than the crop is a ValueError, and so is a size that is no whole number of pixels.
    """
    size = check_within("the size of a crop", size, "[1, inf)", whole=True)

    def apply(image):
        height, width = image.shape[:2]
        if min(height, width) < size:
            raise ValueError(f"{height} x {width} image is too small for a central crop of {size} x {size}: resize it")
        top, left = round((height - size) / 2), round((width - size) / 2)
        return image[top : top + size, left : left + size]

    return apply


def to_channels(channels: int) -> Transform:
    """Make all images gray (1: the luma of ITU-R 601) or all of them RGB (3: gray repeated)."""
    if channels not in (1, 3):
        raise ValueError(f"images have 1 or 3 channels, not {channels!r}")
    return lambda image: from_pil(to_pil(image).convert("L" if channels == 1 else "RGB"))


def to_pil(image: np.ndarray) -> Image:
    """Return a uint8 array [H, W, 1] or [H, W, 3] as a Pillow image."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ValueError(f"an image must be uint8 [H, W, 1] or [H, W, 3], not {image.dtype} {list(image.shape)}")
    if not image.size:
        raise ValueError(f"an image of shape {list(image.shape)} has no pixels")
    return pillow.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def from_pil(image: Image) -> np.ndarray:
    """Return a Pillow image as uint8 [H, W, C]: gray and RGB as they are, palettes, CMYK and alpha as RGB or gray.

    More than 8 bits per channel are a ValueError.
    """
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"images of more than 8 bits per channel (mode {image.mode!r}) are not read: convert them")
    if image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels
