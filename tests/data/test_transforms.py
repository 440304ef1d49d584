"""Transforms against Pillow itself and against formulas."""

import numpy as np
import PIL.Image
import pytest

from soups.data import center_crop, compose, resize, resize_shorter, to_channels
from soups.data.transforms import from_pil


def _image(rng, *shape):
    return rng.integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), [(50, 71), (71, 50), (301, 33), (20, 31), (24, 24)])
def test_evaluation_transform_is_pillows_bicubic_then_the_central_crop(rng, height, width):
    image = _image(rng, height, width, 3)
    ratio = 24 / min(height, width)
    new_height = 24 if height <= width else int(24 * height / width)
    new_width = 24 if width <= height else int(24 * width / height)
    assert ratio * height - 1 < new_height <= ratio * height + 1e-9
    resized = PIL.Image.fromarray(image).resize((new_width, new_height), PIL.Image.Resampling.BICUBIC)
    top, left = round((new_height - 24) / 2.0), round((new_width - 24) / 2.0)
    expected = np.asarray(resized.crop((left, top, left + 24, top + 24)))
    actual = compose(resize_shorter(24), center_crop(24), to_channels(3))(image)
    np.testing.assert_array_equal(actual, expected)


def test_shrinking_is_antialiased_and_enlarging_is_smooth(rng):
    noise = _image(rng, 64, 64, 1)
    assert resize(8)(noise).std() < 0.4 * noise.std()
    edge = np.zeros((8, 8, 1), np.uint8)
    edge[:, 4:] = 255
    large = resize(32, "bilinear")(edge)[16, :, 0].astype(int)
    assert (np.diff(large) >= 0).all() and len(set(large)) > 3


def test_resize_takes_height_and_width(rng):
    assert resize((5, 9))(_image(rng, 20, 30, 3)).shape == (5, 9, 3)
    assert resize((5, 9))(_image(rng, 20, 30, 1)).shape == (5, 9, 1)


def test_box_and_nearest_are_block_means_and_repeats(rng):
    image = _image(rng, 8, 8, 1)
    means = image.reshape(4, 2, 4, 2).mean((1, 3))
    assert np.abs(resize(4, "box")(image)[:, :, 0] - means).max() <= 1  # Pillow rounds after each axis
    np.testing.assert_array_equal(resize(16, "nearest")(image), image.repeat(2, 0).repeat(2, 1))


def test_channels(rng):
    gray, color = _image(rng, 4, 5, 1), _image(rng, 4, 5, 3)
    np.testing.assert_array_equal(to_channels(3)(gray), np.repeat(gray, 3, 2))
    np.testing.assert_array_equal(to_channels(1)(gray), gray)
    luma = color @ np.array([0.299, 0.587, 0.114])
    assert np.abs(to_channels(1)(color)[:, :, 0] - luma).max() < 1.01


def test_palettes_bilevel_and_alpha_become_rgb_or_gray(rng):
    color = PIL.Image.fromarray(_image(rng, 6, 7, 3))
    shapes = {mode: from_pil(color.convert(mode)).shape for mode in ("P", "RGBA", "CMYK", "L", "1", "LA")}
    assert shapes == {"P": (6, 7, 3), "RGBA": (6, 7, 3), "CMYK": (6, 7, 3)} | dict.fromkeys(("L", "1", "LA"), (6, 7, 1))


def test_errors(rng):
    with pytest.raises(ValueError, match=r"unknown resize method 'bicubik' .did you mean 'bicubic'"):
        resize(8, "bicubik")
    with pytest.raises(ValueError, match="7 x 9 image is too small for a central crop of 8 x 8"):
        center_crop(8)(_image(rng, 7, 9, 1))
    with pytest.raises(ValueError, match="1 or 3 channels, not 4"):
        to_channels(4)
    with pytest.raises(ValueError, match=r"must be uint8 .* not uint8 \[7, 9, 2\]"):
        resize(8)(_image(rng, 7, 9, 2))
    for size in ("8", (8,), (8, 8, 8), 8.0, None, (8, "8")):
        with pytest.raises(ValueError, match=r"a size must be a whole number of pixels, or two .height, width., not"):
            resize(size)
    for size in (0, -1, "8", 1.5):
        with pytest.raises(ValueError, match="the size of a crop must be"):
            center_crop(size)
    with pytest.raises(ValueError, match="more than 8 bits"):
        from_pil(PIL.Image.fromarray(np.zeros((4, 4), np.uint16)))
