"""Every family of corruptions against a NumPy oracle of its formula."""

import math

import numpy as np
import pytest
import sklearn.datasets

from soups.data import CORRUPTIONS, SEVERITIES, array_source, corrupt, resize

SIDE = 28
NOT_RANDOM = {"scale", "blur", "pixelate", "contrast", "brightness"}


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (40, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture
def digits():
    pixels = np.rint(sklearn.datasets.load_digits().images[:30] * 255 / 16).astype(np.uint8)
    return np.stack([np.pad(resize(20)(image[..., None]), ((4, 4), (4, 4), (0, 0))) for image in pixels])


def _corrupted(images, family, severity, seed=3):
    source = array_source(images, np.arange(len(images)) % 2)
    result = corrupt(source, family, severity, seed)
    assert (result.labels == source.labels).all()
    return result.images


def _bilinear(image, matrix):
    """Sample one gray image at centre + M (position − centre), black outside, with explicit loops."""
    height, width = image.shape
    padded = np.pad(image, 1).astype(float)
    centre = np.array([(height - 1) / 2, (width - 1) / 2])
    out = np.zeros(image.shape)
    for row in range(height):
        for column in range(width):
            y, x = centre + matrix @ (np.array([row, column]) - centre)
            top, left = math.floor(y), math.floor(x)
            dy, dx = y - top, x - left
            if -1 <= top < height and -1 <= left < width:
                corners = padded[top + 1 : top + 3, left + 1 : left + 3]
                out[row, column] = np.array([1 - dy, dy]) @ corners @ np.array([1 - dx, dx])
    return out


def test_the_table_and_the_functions_have_the_same_families():
    assert list(CORRUPTIONS) == list(SEVERITIES)
    assert {"rotation", "noise", "blur", "translation", "contrast", "occlusion"} <= set(CORRUPTIONS)
    assert all(len(levels) == 5 for levels in SEVERITIES.values())


@pytest.mark.parametrize("family", list(CORRUPTIONS))
def test_every_family_is_deterministic_and_grows_with_severity(family, digits):
    before = digits.copy()
    results = [_corrupted(digits, family, severity) for severity in range(1, 6)]
    np.testing.assert_array_equal(digits, before)
    distances = [np.abs(result.astype(float) - digits).mean() for result in results]
    assert 0 < distances[0] < distances[-1]
    if family != "pixelate":  # there a coarse grid that divides the side may fit better than a finer one
        assert distances == sorted(distances)
    assert all(result.dtype == np.uint8 and result.shape == digits.shape for result in results)
    np.testing.assert_array_equal(_corrupted(digits, family, 3), results[2])
    if family not in NOT_RANDOM:
        assert (_corrupted(digits, family, 3, seed=4) != results[2]).any()


@pytest.mark.parametrize("family", list(CORRUPTIONS))
def test_other_shapes_and_more_images_than_a_block(family, rng):
    images = rng.integers(0, 256, (1030, 5, 8, 1), dtype=np.uint8)
    result = _corrupted(images, family, 2)
    assert result.shape == images.shape
    if family in NOT_RANDOM:
        np.testing.assert_array_equal(result[1024:], _corrupted(images[1024:], family, 2))


def test_every_severity_has_draws_of_its_own():
    gray = np.full((20, SIDE, SIDE, 1), 128, np.uint8)
    first, second = (_corrupted(gray, "noise", severity).ravel().astype(float) for severity in (1, 2))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05


@pytest.mark.parametrize("family", ["rotation", "scale", "shear"])
def test_geometry_is_bilinear_sampling(family, rng):
    images = rng.integers(0, 256, (12, 9, 11, 1), dtype=np.uint8)
    level = SEVERITIES[family][1]
    angle = math.radians(level)
    candidates = {
        "rotation": [
            np.array([[math.cos(sign * angle), -math.sin(sign * angle)], [math.sin(sign * angle), math.cos(angle)]])
            for sign in (1, -1)
        ],
        "scale": [np.eye(2) / level],
        "shear": [np.array([[1, 0], [sign * level, 1]]) for sign in (1, -1)],
    }[family]
    used = set()
    for image, result in zip(images, _corrupted(images, family, 2), strict=True):
        gaps = [np.abs(_bilinear(image[..., 0], matrix) - result[..., 0]).max() for matrix in candidates]
        assert min(gaps) <= 0.51  # rounding to uint8
        used.add(int(np.argmin(gaps)))
    assert used == set(range(len(candidates)))  # either way


@pytest.mark.parametrize("severity", [1, 5])
def test_translation_is_an_exact_shift(severity, images):
    pixels = max(1, round(SEVERITIES["translation"][severity - 1] * SIDE))
    used = set()
    for image, result in zip(images, _corrupted(images, "translation", severity), strict=True):
        padded = np.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)))
        matches = [
            (down, right)
            for down in (-pixels, pixels)
            for right in (-pixels, pixels)
            if (padded[pixels - down :][:SIDE, pixels - right :][:, :SIDE] == result).all()
        ]
        assert len(matches) == 1
        used.update(matches)
    assert len(used) == 4


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_noise_has_its_standard_deviation(severity):
    gray = np.full((50, SIDE, SIDE, 1), 128, np.uint8)
    values = _corrupted(gray, "noise", severity).astype(int) - 128
    sigma = 255 * SEVERITIES["noise"][severity - 1]
    for share in (0.4, 0.8):  # where nothing is clipped, the distribution is the normal one, rounded
        bound = int(share * sigma)
        expected = math.erf((bound + 0.5) / sigma / math.sqrt(2))
        assert abs((np.abs(values) <= bound).mean() - expected) < 0.01
    assert abs((values > 0).mean() - (values < 0).mean()) < 0.01
    if severity == 1:
        assert abs(values.std() / sigma - 1) < 0.01


def test_impulse_noise_blackens_and_whitens_its_share(images):
    gray = np.full((50, SIDE, SIDE, 1), 100, np.uint8)
    for severity, share in enumerate(SEVERITIES["impulse_noise"], 1):
        result = _corrupted(gray, "impulse_noise", severity)
        assert set(np.unique(result)) == {0, 100, 255}
        assert abs((result == 0).mean() - share / 2) < 0.01
        assert abs((result == 255).mean() - share / 2) < 0.01


def test_blur_of_a_point_is_a_gaussian():
    point = np.zeros((2, 41, 41, 1), np.uint8)
    point[:, 20, 20] = 255
    sigma = SEVERITIES["blur"][1] * 41
    distance = np.arange(41) - 20
    kernel = np.exp(-(distance**2) / (2 * sigma**2))
    kernel *= np.abs(distance) <= int(4 * sigma + 0.5)
    kernel /= kernel.sum()
    expected = 255 * np.outer(kernel, kernel)
    assert np.abs(_corrupted(point, "blur", 2)[1, ..., 0] - expected).max() <= 0.51


def test_blur_mixes_neither_channels_nor_images():
    images = np.zeros((2, 16, 16, 3), np.uint8)
    images[1, 5:9, 5:9, 2] = 200
    result = _corrupted(images, "blur", 5)
    assert result[1, ..., 2].any()
    assert not result[0].any() and not result[1, ..., :2].any()


def test_pixelate_makes_blocks(rng):
    images = rng.integers(0, 256, (3, 20, 20, 1), dtype=np.uint8)
    result = _corrupted(images, "pixelate", 1)  # 0.5: blocks of 2 x 2
    means = images.reshape(3, 10, 2, 10, 2).mean((2, 4))
    assert np.abs(result[:, ::2, ::2, 0] - means).max() <= 1  # Pillow rounds after each axis
    np.testing.assert_array_equal(result, result[:, ::2, ::2].repeat(2, 1).repeat(2, 2))


def test_contrast_and_brightness_are_their_formulas(images):
    for severity in (1, 4):
        mean = images.astype(float).mean((1, 2), keepdims=True)
        expected = mean + SEVERITIES["contrast"][severity - 1] * (images - mean)
        assert np.abs(_corrupted(images, "contrast", severity) - expected).max() <= 0.51
        expected = np.minimum(images + 255 * SEVERITIES["brightness"][severity - 1], 255)
        assert np.abs(_corrupted(images, "brightness", severity) - expected).max() <= 0.51


def test_occlusion_is_one_gray_square_inside_the_image():
    images = np.full((60, SIDE, SIDE, 3), 7, np.uint8)
    side = round(SEVERITIES["occlusion"][2] * SIDE)
    corners = set()
    for result in _corrupted(images, "occlusion", 3):
        rows, columns = np.nonzero((result == 128).all(-1))
        assert len(rows) == side**2 and (result == 7).sum() == 3 * (SIDE**2 - side**2)
        assert (np.ptp(rows), np.ptp(columns)) == (side - 1, side - 1)
        corners.add((rows[0], columns[0]))
    assert len(corners) > 30


def test_unknown_families_and_severities(images):
    with pytest.raises(ValueError, match=r"unknown family of corruptions 'rotatoin' .did you mean 'rotation'"):
        _corrupted(images, "rotatoin", 1)
    for severity in (0, 6, 2.5, "3"):
        with pytest.raises(ValueError, match="severity of 'noise' must be 1, 2, 3, 4 or 5"):
            _corrupted(images, "noise", severity)
    with pytest.raises(ValueError, match="severity of 'blur'"):
        CORRUPTIONS["blur"](images, 0, None)
