"""Augment images on the host: every function maps (uint8 [H, W, C], NumPy generator) to uint8 [H', W', C].

What is drawn depends on the generator alone; `soups.data.batches.loader` makes one for each example of each epoch.
Mixup works on whole batches and is done on the device, in `soups.train`.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import numpy as np

from soups.arguments import check_within
from soups.data.transforms import RandomTransform as RandomTransform
from soups.data.transforms import compose, from_pil, resize, to_channels, to_pil
from soups.lazy import extra
from soups.names import check_name

with extra("data"):
    from PIL import Image, ImageEnhance, ImageOps

MINIMAL = "minimal"  # of `augmentation`


compose_random = compose


def random_resized_crop(
    size: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    method: str = "bicubic",
) -> RandomTransform:
    """Cut a random part of the image and resize it to `size` x `size` pixels: the part is `random_box`'s.

    Raises:
        ValueError: a range that does not satisfy 0 < low <= high; a scale above 1; an unknown method of `resize`.

    Szegedy et al., 2014 (arXiv 1409.4842), in the form of torchvision and timm; WiSE-FT has scale=(0.9, 1.0).
    """
    for name, (low, high) in {"scale": scale, "ratio": ratio}.items():
        if not 0 < low <= high:
            raise ValueError(f"{name} must be a range (low, high) with 0 < low <= high, not ({low}, {high})")
    if scale[1] > 1:
        raise ValueError(f"scale is a share of the image's area and at most 1, but it goes up to {scale[1]}")
    to_size = resize(size, method)

    def apply(image, rng):
        top, left, height, width = random_box(*image.shape[:2], scale, ratio, rng)
        return to_size(image[top : top + height, left : left + width])  # cut first: no pixel outside has a part in it

    return apply


def random_box(height: int, width: int, scale, ratio, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw a part (top, left, height, width) of an image of height x width pixels.

    Its area is U(scale) of the image's, its aspect ratio (width to height) exp U(log ratio), its place uniform. After
    ten draws that do not fit it is the largest central one whose aspect ratio is allowed.
    """
    for _ in range(10):
        area = rng.uniform(*scale) * (height * width)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        box_height, box_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < box_height <= height and 0 < box_width <= width:
            top = int(rng.integers(height - box_height + 1))
            return top, int(rng.integers(width - box_width + 1)), box_height, box_width
    box_height = min(height, max(1, round(width / ratio[0])))
    box_width = min(width, max(1, round(height * ratio[1])))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def random_flip() -> RandomTransform:
    """Mirror every second image, left to right."""
    return lambda image, rng: image[:, ::-1] if rng.random() < 0.5 else image


def color_jitter(brightness: float, contrast: float, saturation: float, hue: float) -> RandomTransform:
    """Change the colours of an RGB image by four random amounts, one after the other in a random order.

    The factors of brightness, contrast and saturation are U(1 - x, 1 + x), and the hue turns by U(-hue, hue) of a whole
    circle, in whole steps of 1/255, rounded towards none.

    Raises:
        ValueError: an amount outside 0..1, a hue outside 0..0.5. When it is applied: an image that is not RGB.

    The operations are those of torchvision on Pillow's images.
    """
    for name, amount in {"brightness": brightness, "contrast": contrast, "saturation": saturation}.items():
        check_within(name, amount, "[0, 1]")
    check_within("hue", hue, "[0, 0.5]")
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    amounts = np.array([brightness, contrast, saturation, hue])
    middles = np.array([1.0, 1.0, 1.0, 0.0])

    def apply(image, rng):
        picture = to_pil(_rgb(image, "color_jitter"))
        order, drawn = rng.permutation(4), rng.uniform(middles - amounts, middles + amounts)
        for kind in order:
            picture = enhancers[kind](picture).enhance(drawn[kind]) if kind < 3 else _turned(picture, drawn[kind])
        return from_pil(picture)

    return apply


def random_grayscale(probability: float = 0.1) -> RandomTransform:
    """Take the colours from some RGB images, and leave three equal channels; a ValueError for one that is not RGB."""
    check_within("probability", probability, "[0, 1]")
    gray = compose(to_channels(1), to_channels(3))
    return lambda image, rng: gray(image) if rng.random() < probability else _rgb(image, "random_grayscale")


def domainbed_augmentation(image_size: int) -> RandomTransform:
    """Return what DomainBed does to the images of training domains.

    A crop of 70 to 100 % is resized to `image_size` pixels, half of the images are mirrored, brightness, contrast,
    saturation (factors 0.7 to 1.3) and hue (up to 0.3) are changed, and a tenth becomes gray.

    Gulrajani and Lopez-Paz, 2020 (arXiv 2007.01434).
    """
    crop = random_resized_crop(image_size, scale=(0.7, 1.0), method="bilinear")
    return compose_random(crop, random_flip(), color_jitter(0.3, 0.3, 0.3, 0.3), random_grayscale())


def _rgb(image, what):
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"{what} needs RGB images, not {list(image.shape)}: put to_channels(3) before it")
    return image


def _turned(picture, share):
    """Turn the hues of a picture by a share of the circle."""
    hue, saturation, value = picture.convert("HSV").split()
    turned = hue.point([(level + int(share * 255)) % 256 for level in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


Operation = Callable[..., Image.Image]  # (RGB picture, level 0..1, sign -1 or 1, resample=, fillcolor=)


def rand_augment(policy: str, fill: tuple[int, int, int] = (128, 128, 128)) -> RandomTransform:
    """Apply some random operations to an RGB image, as a policy in timm's language says: "rand-m9-n2-mstd0.5".

    n (2) operations are drawn with replacement from the 15 of `OPERATIONS`; each is applied with probability p (0.5) at
    level m / 10. m (10) gets Gaussian noise of standard deviation mstd (0; above 100: it is uniform in 0..m) and is
    clipped to 0..mmax (10): without mmax "rand-m20-n2" is "rand-m10-n2". inc1 takes `INCREASING_OPERATIONS`, each of
    which changes more at higher levels; without it some change less. n0 leaves the image alone. Signs are drawn, and so
    is bilinear or bicubic interpolation; `fill` is what comes in from outside.

    Raises:
        ValueError: a policy that does not start with "rand"; a setting that is unknown or repeated, or whose value is
            not a number in its range. When it is applied: an image that is not RGB.

    Cubuk et al., 2019 (arXiv 1909.13719); operations, levels and the language are those of timm 1.0.
    """
    settings = _parse(policy)
    operations = list((INCREASING_OPERATIONS if settings.inc else OPERATIONS).values())
    if settings.n == 0:
        return lambda image, rng: image

    def apply(image, rng):
        picture = to_pil(_rgb(image, "RandAugment"))
        for chosen in rng.integers(len(operations), size=settings.n):
            if rng.random() < settings.p:
                drawn = rng.uniform(0, settings.m) if settings.mstd > 100 else rng.normal(settings.m, settings.mstd)
                level, sign = min(max(drawn, 0), settings.mmax) / 10, 1 if rng.random() < 0.5 else -1
                resample = _INTERPOLATIONS[rng.integers(2)]
                picture = operations[chosen](picture, level, sign, resample=resample, fillcolor=fill)
        return from_pil(picture)

    return apply


_INTERPOLATIONS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)


@dataclasses.dataclass(frozen=True)
class _Policy:
    m: float = 10
    n: int = 2
    p: float = 0.5
    mstd: float = 0
    mmax: float = 10
    inc: int = 0


def _parse(policy):
    first, *sections = policy.split("-")
    check_name(first, ["rand"], f"kind of policy in {policy!r}:")
    found = {}
    for section in sections:
        key = section.rstrip(".0123456789")
        check_name(key, _Policy.__dataclass_fields__, f"setting of RandAugment in {policy!r}:")
        if key in found:
            raise ValueError(f"RandAugment {policy!r} sets {key!r} twice")
        found[key] = _number(policy, key, section.removeprefix(key))
    return _Policy(**found)


def _number(policy, key, digits):
    whole = key in ("n", "inc")
    if not (digits if whole else digits.replace(".", "", 1)).isdecimal():
        raise ValueError(f"RandAugment {policy!r}: {key!r} needs a {'whole ' * whole}number after it, not {digits!r}")
    number = int(digits) if whole else float(digits)
    if key in ("p", "inc") and number > 1:
        raise ValueError(f"RandAugment {policy!r}: {key!r} must be {'0 or 1' if whole else 'in 0..1'}, not {digits}")
    return number


def _rotate(picture, level, sign, **pixels):
    return picture.rotate(sign * (30 * level), **pixels)  # degrees


def _affine(largest, matrix, picture, level, sign, **pixels):
    data = matrix(sign * (largest * level), *picture.size)
    return picture.transform(picture.size, Image.Transform.AFFINE, data, **pixels)


def _posterize(increasing, picture, level, sign, **pixels):
    bits = 4 - int(level * 4) if increasing else int(level * 4)
    dropped = 8 - min(max(bits, 0), 8)  # of 8: all of them makes a black image, which Pillow's posterize refuses
    return picture.point([value >> dropped << dropped for value in range(256)] * 3)


def _solarize(increasing, picture, level, sign, **pixels):
    threshold = min(256, int(level * 256))
    return ImageOps.solarize(picture, 256 - threshold if increasing else threshold)


def _solarize_add(picture, level, sign, **pixels):
    add = min(128, int(level * 110))
    return picture.point([min(255, value + add) if value < 128 else value for value in range(256)] * 3)


def _enhance(kind, increasing, picture, level, sign, **pixels):
    factor = max(0.1, 1 + sign * (0.9 * level)) if increasing else 1.8 * level + 0.1  # 1 changes nothing
    return kind(picture).enhance(factor)


def _plain(function, picture, level, sign, **pixels):
    return function(picture)


def _operations(increasing: bool) -> dict[str, Operation]:
    return {
        "auto_contrast": partial(_plain, ImageOps.autocontrast),
        "equalize": partial(_plain, ImageOps.equalize),
        "invert": partial(_plain, ImageOps.invert),
        "rotate": _rotate,
        "posterize": partial(_posterize, increasing),
        "solarize": partial(_solarize, increasing),
        "solarize_add": _solarize_add,
        "color": partial(_enhance, ImageEnhance.Color, increasing),
        "contrast": partial(_enhance, ImageEnhance.Contrast, increasing),
        "brightness": partial(_enhance, ImageEnhance.Brightness, increasing),
        "sharpness": partial(_enhance, ImageEnhance.Sharpness, increasing),
        "shear_x": partial(_affine, 0.3, lambda amount, width, height: (1, amount, 0, 0, 1, 0)),
        "shear_y": partial(_affine, 0.3, lambda amount, width, height: (1, 0, 0, amount, 1, 0)),
        "translate_x": partial(_affine, 0.45, lambda amount, width, height: (1, 0, amount * width, 0, 1, 0)),
        "translate_y": partial(_affine, 0.45, lambda amount, width, height: (1, 0, 0, 0, 1, amount * height)),
    }


OPERATIONS = _operations(increasing=False)
INCREASING_OPERATIONS = _operations(increasing=True)


def augmentation(name: str, image_size: int) -> RandomTransform:
    """Return the random transform of training images: "minimal" crops 90 to 100 %, a policy as timm's augments.

    A policy of `rand_augment`, such as "rand-m9-n2", comes after a random crop of 8 to 100 % and a flip.
    """
    if name == MINIMAL:
        return random_resized_crop(image_size, scale=(0.9, 1.0))
    return compose_random(random_resized_crop(image_size), random_flip(), rand_augment(name))
