"""Make distribution shifts: families of corruptions with five severities, in the manner of ImageNet-C.

Every family is a function (images uint8 [N, H, W, C], severity 1..5, rng) -> uint8 of the same shape. Lengths are
fractions of the image's height, so one table serves images of every size. The idea and several values are from
Hendrycks and Dietterich, 2019 (arXiv 1903.12261).
"""

import dataclasses
import zlib

import numpy as np
import scipy  # its parts are imported when they are used

from soups.data.dataset import Dataset
from soups.data.transforms import compose, resize
from soups.names import check_name

#: what the severities 1 to 5 of each family of corruptions mean
SEVERITIES = {
    "rotation": (10, 20, 30, 40, 50),  # degrees, either way
    "translation": (0.04, 0.08, 0.12, 0.16, 0.20),  # of the height, in whole pixels, along both axes, either way
    "scale": (0.9, 0.8, 0.7, 0.6, 0.5),  # size of the content; the border is black
    "shear": (0.15, 0.30, 0.45, 0.60, 0.75),  # horizontal pixels per row, either way
    "noise": (0.08, 0.16, 0.26, 0.38, 0.50),  # standard deviation of Gaussian noise, white being 1
    "impulse_noise": (0.03, 0.06, 0.12, 0.20, 0.30),  # share of the values that become black or white
    "blur": (0.02, 0.035, 0.05, 0.065, 0.08),  # standard deviation of a Gaussian, of the height
    "pixelate": (0.5, 0.4, 0.35, 0.3, 0.25),  # size of the small image, of the height and the width
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),  # what stays of the distance to the image's mean
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),  # added, white being 1
    "occlusion": (0.2, 0.275, 0.35, 0.425, 0.5),  # side of a gray square inside the image, of the height
}

_BLOCK = 1024  # images corrupted at once: bounds the memory, and is fixed because the random draws depend on it


def corrupt(dataset: Dataset, family: str, severity: int, seed: int) -> Dataset:
    """Corrupt all images of a dataset; every (seed, family, severity) has random draws of its own."""
    check_corruption(family, severity)
    rng = np.random.default_rng([seed, zlib.crc32(family.encode()), severity])
    blocks = (dataset.images[start : start + _BLOCK] for start in range(0, len(dataset), _BLOCK))
    images = np.concatenate([CORRUPTIONS[family](block, severity, rng) for block in blocks])
    return dataclasses.replace(dataset, images=images)


def check_corruption(family: str, severity: int) -> None:
    """Raise a ValueError for a family that does not exist or a severity other than 1..5."""
    check_name(family, SEVERITIES, "family of corruptions")
    if severity not in range(1, 6):
        raise ValueError(f"the severity of {family!r} must be 1, 2, 3, 4 or 5, not {severity!r}")


def rotation(images, severity, rng):
    """Rotate about the centre, each image either way."""
    radians = np.deg2rad(_level("rotation", severity)) * _signs(rng, len(images))
    cosine, sine = np.cos(radians), np.sin(radians)
    return _warp(images, np.stack([np.stack([cosine, -sine], 1), np.stack([sine, cosine], 1)], 1))


def translation(images, severity, rng):
    """Move along both axes by the same number of whole pixels, at least one, each axis either way."""
    count, height, width, _ = images.shape
    pixels = max(1, round(_level("translation", severity) * height))
    rows = np.arange(height) - pixels * _signs(rng, count)[:, None]
    columns = np.arange(width) - pixels * _signs(rng, count)[:, None]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    moved = images[np.arange(count)[:, None, None], rows[:, :, None] % height, columns[:, None, :] % width]
    return np.where(inside[..., None], moved, np.uint8(0))


def scale(images, severity, rng):
    """Shrink the content about the centre."""
    return _warp(images, np.broadcast_to(np.eye(2) / _level("scale", severity), (len(images), 2, 2)))


def shear(images, severity, rng):
    """Move each row sideways in proportion to its distance from the middle row, each image either way."""
    matrices = np.broadcast_to(np.eye(2), (len(images), 2, 2)).copy()
    matrices[:, 1, 0] = _level("shear", severity) * _signs(rng, len(images))
    return _warp(images, matrices)


def noise(images, severity, rng):
    """Add Gaussian noise to every value."""
    return _to_uint8(images + 255 * _level("noise", severity) * rng.standard_normal(images.shape, np.float32))


def impulse_noise(images, severity, rng):
    """Make some values black and as many white."""
    draw = rng.random(images.shape, np.float32)
    share = _level("impulse_noise", severity)
    return np.where(draw < share, np.where(draw < share / 2, np.uint8(0), np.uint8(255)), images)


def blur(images, severity, rng):
    """Convolve with a Gaussian; the border is continued."""
    sigma = _level("blur", severity) * images.shape[1]
    return _to_uint8(scipy.ndimage.gaussian_filter(images.astype(np.float32), (0, sigma, sigma, 0), mode="nearest"))


def pixelate(images, severity, rng):
    """Shrink by averaging boxes, then enlarge without interpolation."""
    height, width = images.shape[1:3]
    share = _level("pixelate", severity)
    small = max(1, round(share * height)), max(1, round(share * width))
    transform = compose(resize(small, "box"), resize((height, width), "nearest"))
    return np.stack([transform(image) for image in images])


def contrast(images, severity, rng):
    """Pull every value towards the mean of its image and channel: mean + c (x − mean)."""
    mean = images.mean((1, 2), keepdims=True, dtype=np.float32)
    return _to_uint8(mean + _level("contrast", severity) * (images - mean))


def brightness(images, severity, rng):
    """Add a constant."""
    return _to_uint8(images + np.float32(255 * _level("brightness", severity)))


def occlusion(images, severity, rng):
    """Cover a square at a random place inside the image with mid-gray."""
    count, height, width, _ = images.shape
    side = min(max(1, round(_level("occlusion", severity) * height)), width)
    top = rng.integers(0, height - side + 1, (count, 1, 1))
    left = rng.integers(0, width - side + 1, (count, 1, 1))
    rows, columns = np.arange(height)[:, None], np.arange(width)
    covered = (top <= rows) & (rows < top + side) & (left <= columns) & (columns < left + side)
    return np.where(covered[..., None], np.uint8(128), images)


_FAMILIES = (rotation, translation, scale, shear, noise, impulse_noise, blur, pixelate, contrast, brightness, occlusion)
#: families of corruptions: functions of images, a severity and a generator
CORRUPTIONS = {function.__name__: function for function in _FAMILIES}


def _level(family, severity):
    check_corruption(family, severity)
    return SEVERITIES[family][severity - 1]


def _signs(rng, count):
    return 2 * rng.integers(0, 2, count) - 1


def _warp(images, matrices):
    """Sample each image bilinearly at centre + M (position − centre), with black pixels outside."""
    centre = np.array([(images.shape[1] - 1) / 2, (images.shape[2] - 1) / 2, 0])
    warped = np.empty(images.shape, np.float32)
    for image, matrix, out in zip(images, matrices, warped, strict=True):
        full = np.eye(3)  # the third axis is the channels', left alone
        full[:2, :2] = matrix
        options = {"output": out, "order": 1, "mode": "grid-constant"}
        scipy.ndimage.affine_transform(image.astype(np.float32), full, centre - full @ centre, **options)
    return _to_uint8(warped)


def _to_uint8(values):
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
