"""Random transforms against what timm 1.0.31 does with the same draws, and against the distributions they promise."""

import collections
import colorsys
import zlib

import numpy as np
import PIL.Image
import pytest

from soups.data import random_transforms, resize
from soups.data.random_transforms import (
    INCREASING_OPERATIONS,
    OPERATIONS,
    color_jitter,
    compose_random,
    domainbed_augmentation,
    rand_augment,
    random_box,
    random_flip,
    random_grayscale,
    random_resized_crop,
)

BILINEAR, BICUBIC = PIL.Image.Resampling.BILINEAR, PIL.Image.Resampling.BICUBIC
RATIO = (3 / 4, 4 / 3)


def _image(rng, *shape):
    return rng.integers(0, 256, shape, dtype=np.uint8)


# --- Crop and flip ----------------------------------------------------------------------------------------------------

# what timm's crop gives with the draws of default_rng(row number); the last five after ten draws that do not fit
TIMM_BOXES = [
    ((375, 500), (0.08, 1.0), (35, 302, 171, 129)),
    ((500, 375), (0.08, 1.0), (7, 1, 282, 366)),
    ((224, 224), (0.9, 1.0), (0, 0, 224, 224)),
    ((10, 300), (0.08, 1.0), (0, 143, 10, 13)),
    ((300, 10), (0.9, 1.0), (143, 0, 13, 10)),
    ((31, 40), (1.0, 1.0), (0, 0, 31, 40)),
    ((97, 100), (1.0, 1.0), (0, 0, 97, 100)),
    ((60, 100), (1.0, 1.0), (0, 10, 60, 80)),
]


@pytest.mark.parametrize("row", range(len(TIMM_BOXES)))
def test_boxes_are_timms(row):
    size, scale, box = TIMM_BOXES[row]
    assert random_box(*size, scale, RATIO, np.random.default_rng(row)) == box


def test_boxes_have_the_promised_distribution(rng):
    boxes = np.array([random_box(1000, 1000, (0.08, 0.5), RATIO, rng) for _ in range(4000)])
    tops, lefts, heights, widths = boxes.T
    assert (
        (tops >= 0).all() and (tops + heights <= 1000).all() and (lefts >= 0).all() and (lefts + widths <= 1000).all()
    )
    places = np.linspace(0.05, 0.95, 19)
    # (value − low) / (high − low) is uniform; 0.03 is a Kolmogorov-Smirnov distance of p < 0.002
    for share in (
        (heights * widths / 1e6 - 0.08) / 0.42,
        (np.log(widths / heights) - np.log(RATIO[0])) / np.log(RATIO[1] / RATIO[0]),
        tops / (1000 - heights),
        lefts / (1000 - widths),
    ):
        np.testing.assert_allclose(np.quantile(share, places), places, atol=0.03)


def test_the_crop_is_the_resized_box(rng):
    image = _image(rng, 40, 50, 3)
    top, left, height, width = random_box(40, 50, (0.08, 1.0), RATIO, np.random.default_rng(3))
    picture = PIL.Image.fromarray(image).crop((left, top, left + width, top + height)).resize((24, 24), BICUBIC)
    np.testing.assert_array_equal(random_resized_crop(24)(image, np.random.default_rng(3)), np.asarray(picture))


def test_the_crop_of_all_is_the_image_resized_also_gray(rng):
    image = _image(rng, 40, 40, 1)
    whole = random_resized_crop(24, scale=(1, 1), ratio=(1, 1), method="box")
    np.testing.assert_array_equal(whole(image, rng), resize(24, "box")(image))


def test_every_second_image_is_mirrored(rng):
    image = _image(rng, 3, 4, 1)
    mirrored = PIL.Image.fromarray(image[..., 0]).transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
    flips = [random_flip()(image, rng)[..., 0] for _ in range(1000)]
    count = sum(np.array_equal(flip, mirrored) for flip in flips)
    assert count + sum(np.array_equal(flip, image[..., 0]) for flip in flips) == 1000
    assert 440 < count < 560  # within 3.8 standard deviations


def test_composed_transforms_draw_one_after_the_other(rng):
    image, crop, flip = _image(rng, 40, 50, 3), random_resized_crop(16), random_flip()
    for seed in range(4):
        draws = np.random.default_rng(seed)
        expected = flip(crop(image, draws), draws)
        np.testing.assert_array_equal(compose_random(crop, flip)(image, np.random.default_rng(seed)), expected)


# --- RandAugment ------------------------------------------------------------------------------------------------------

# CRC-32 of what timm's operations make of `_pattern()`: magnitude 3, bilinear; −7, bicubic; 10, bicubic
TIMM_OPERATIONS = {
    "auto_contrast": (2567894710, 2567894710, 2567894710),
    "equalize": (33332986, 33332986, 33332986),
    "invert": (167242236, 167242236, 167242236),
    "rotate": (2446361168, 1954097044, 2859962152),
    "posterize": (3209717534, 644667689, 2291349249),
    "solarize": (4103568989, 2888007089, 1070041547),
    "solarize_add": (2763506031, 1272457053, 1487608222),
    "color": (2299620533, 1715060111, 3963864654),
    "contrast": (2567519947, 1583328913, 735956276),
    "brightness": (488581972, 373954734, 3327854488),
    "sharpness": (2787181146, 1281517097, 1007449641),
    "shear_x": (1208593718, 3843853419, 664271175),
    "shear_y": (2481923034, 1762137088, 4202585619),
    "translate_x": (3685874948, 2530253648, 1959872662),
    "translate_y": (3536499994, 674520575, 1272043206),
}
TIMM_INCREASING_OPERATIONS = TIMM_OPERATIONS | {
    "posterize": (2771695115, 644667689, 2962361072),
    "solarize": (1582890544, 1746529585, 167242236),
    "color": (330384833, 2836273485, 3963864654),
    "contrast": (1553890403, 1062477701, 735956276),
    "brightness": (978954064, 2454790936, 3327854488),
    "sharpness": (1148107278, 6536218, 1007449641),
}


def _pattern():
    rows, columns, channels = np.ogrid[:24, :32, :3]
    return ((rows * rows * 7 + columns * 31 + rows * columns + channels * 57) % 200 + 20).astype(np.uint8)


def _check_operations(operations, expected):
    picture = PIL.Image.fromarray(_pattern())
    for name, operation in operations.items():
        for (level, sign, resample), crc in zip(
            [(0.3, 1, BILINEAR), (0.7, -1, BICUBIC), (1.0, 1, BICUBIC)], expected[name], strict=True
        ):
            result = operation(picture, level, sign, resample=resample, fillcolor=(123, 117, 104))
            assert zlib.crc32(np.asarray(result).tobytes()) == crc, (name, level, sign)
    assert set(operations) == set(expected)


def test_operations_are_timms():
    _check_operations(OPERATIONS, TIMM_OPERATIONS)
    _check_operations(INCREASING_OPERATIONS, TIMM_INCREASING_OPERATIONS)


def test_posterize_leaves_no_bits_at_low_levels_and_all_at_double_the_highest():
    picture = PIL.Image.fromarray(_pattern())
    for operations, level in ((OPERATIONS, 0.2), (INCREASING_OPERATIONS, 1.5)):
        assert not np.asarray(operations["posterize"](picture, level, 1)).any()
    np.testing.assert_array_equal(OPERATIONS["posterize"](picture, 2.0, 1), _pattern())


@pytest.fixture
def applied(monkeypatch):
    """List what RandAugment applies, (name, level, sign, resample, fillcolor), while images stay as they are."""
    calls = []

    def record(name):
        def operation(picture, level, sign, *, resample, fillcolor):
            calls.append((name, level, sign, resample, fillcolor))
            return picture

        return operation

    for table in ("OPERATIONS", "INCREASING_OPERATIONS"):
        monkeypatch.setattr(random_transforms, table, {name: record(f"{table}: {name}") for name in OPERATIONS})
    return calls


def test_a_policy_draws_operations_signs_and_interpolations_evenly(rng, applied):
    transform = rand_augment("rand-m9-n3", fill=(1, 2, 3))
    for _ in range(2000):
        transform(_pattern(), rng)
    assert abs(len(applied) - 3000) < 150  # each of 6000 with probability 1/2: 3.9 standard deviations
    names, levels, signs, interpolations, fills = (collections.Counter(values) for values in zip(*applied, strict=True))
    assert set(names) == {f"OPERATIONS: {name}" for name in OPERATIONS}
    expected = len(applied) / len(OPERATIONS)
    assert sum((count - expected) ** 2 / expected for count in names.values()) < 36.1  # chi², 14 degrees, p = 0.001
    assert abs(signs[1] - signs[-1]) < 220 and set(signs) == {1, -1}
    assert abs(interpolations[BILINEAR] - interpolations[BICUBIC]) < 220
    assert set(levels) == {0.9} and set(fills) == {(1, 2, 3)}


def test_magnitudes_are_clipped_noisy_or_uniform(rng, applied):
    def levels(policy):
        applied.clear()
        for _ in range(500):
            rand_augment(policy)(_pattern(), rng)
        return np.array([level for _, level, *_ in applied])

    assert set(levels("rand-m20-n2-p1")) == {1.0} and len(applied) == 1000
    assert set(levels("rand-m20-n2-p1-mmax30")) == {2.0}
    noisy = levels("rand-m5-n2-p1-mstd0.5")
    assert abs(noisy.mean() - 0.5) < 0.006 and abs(noisy.std() - 0.05) < 0.004
    clipped = levels("rand-m10-mstd1-p1")
    assert clipped.max() == 1.0 and 0.4 < (clipped == 1.0).mean() < 0.6
    uniform = levels("rand-m8-p1-mstd101")
    np.testing.assert_allclose(np.quantile(uniform, [0.1, 0.5, 0.9]), [0.08, 0.4, 0.72], atol=0.06)
    assert levels("rand-p0.1").size < 160  # 100 of 1000 expected
    assert set(levels("rand")) == {1.0} and 400 < len(applied) < 600  # m10, n2, p0.5
    assert levels("rand-inc1").size and all(name.startswith("INCREASING") for name, *_ in applied)


def test_a_policy_applies_one_operation_to_the_result_of_the_last():
    changed = 0
    for seed in range(20):
        image = _pattern()
        result = rand_augment("rand-m9-n2-mstd0.5-inc1")(image, np.random.default_rng(seed))
        assert result.shape == image.shape and result.dtype == np.uint8
        changed += not np.array_equal(result, image)
        np.testing.assert_array_equal(image, _pattern())  # the image given is not written to
    assert 8 < changed < 20  # 3 of 4 expected, less what a level or a sign leaves alone


def test_no_operations_leave_the_image_alone(rng):
    image = _image(rng, 3, 4, 1)
    assert rand_augment("rand-m7-n0")(image, rng) is image


def test_errors(rng):
    for policy, message in {
        "rnad-m9": "unknown kind of policy in 'rnad-m9': 'rnad' .did you mean 'rand'",
        "rand-mstdd0.5": "unknown setting of RandAugment in .*: 'mstdd' .did you mean 'mstd'.*; there are: inc, m, ",
        "rand-m9-tweights": "unknown setting of RandAugment in 'rand-m9-tweights': 'tweights'",
        "rand-m9-": "unknown setting of RandAugment in 'rand-m9-': ''",
        "rand-m9-m9": "RandAugment 'rand-m9-m9' sets 'm' twice",
        "rand-m": "'m' needs a number after it, not ''",
        "rand-m1.2.3": "'m' needs a number after it, not '1.2.3'",
        "rand-n1.5": "'n' needs a whole number after it, not '1.5'",
        "rand-p1.5": "'p' must be in 0..1, not 1.5",
        "rand-inc2": "'inc' must be 0 or 1, not 2",
    }.items():
        with pytest.raises(ValueError, match=message):
            rand_augment(policy)
    with pytest.raises(ValueError, match=r"RandAugment needs RGB images, not \[3, 4, 1\]: put to_channels\(3\)"):
        rand_augment("rand-m9-n2")(_image(rng, 3, 4, 1), rng)
    with pytest.raises(ValueError, match=r"scale must be a range .* not \(0, 1\)"):
        random_resized_crop(8, scale=(0, 1))
    with pytest.raises(ValueError, match=r"ratio must be a range .* not \(2, 1\)"):
        random_resized_crop(8, ratio=(2, 1))
    with pytest.raises(ValueError, match=r"scale is a share .* at most 1, but it goes up to 1.5"):
        random_resized_crop(8, scale=(0.5, 1.5))
    with pytest.raises(ValueError, match="unknown resize method 'bicubik'"):
        random_resized_crop(8, method="bicubik")


# --- DomainBed's augmentation -----------------------------------------------------------------------------------------


class _Drawn:
    """Stand for a generator whose draws are known."""

    def __init__(self, order, amounts):
        self.order, self.amounts = np.array(order), np.array(amounts)

    def permutation(self, count):
        return self.order[:count]

    def uniform(self, low, high):
        assert (self.amounts >= low).all() and (self.amounts <= high).all()
        return self.amounts


LUMA = (0.299, 0.587, 0.114)
ORACLES = {
    0: lambda pixels, factor: pixels * factor,
    1: lambda pixels, factor: np.rint((pixels @ LUMA).mean()) * (1 - factor) + pixels * factor,
    2: lambda pixels, factor: (pixels @ LUMA)[..., None] * (1 - factor) + pixels * factor,
}


@pytest.mark.parametrize("kind", ORACLES)
@pytest.mark.parametrize("factor", [0.7, 1.0, 1.3])
def test_brightness_contrast_and_saturation_blend_with_black_with_the_mean_and_with_gray(rng, kind, factor):
    image, amounts = _image(rng, 9, 8, 3), [1.0, 1.0, 1.0, 0.0]
    amounts[kind] = factor
    seen = color_jitter(0.3, 0.3, 0.3, 0.3)(image, _Drawn([kind], amounts))
    expected = np.clip(ORACLES[kind](image.astype(np.float64), factor), 0, 255)
    np.testing.assert_allclose(seen.astype(np.float64), expected, atol=1.5)  # Pillow rounds the gray, then the blend


@pytest.mark.parametrize("share", [-0.3, -0.1, 0.0, 0.25, 0.3])
def test_hues_turn_by_a_share_of_the_circle(share):
    image = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [90, 90, 90]]], np.uint8)
    seen = color_jitter(0, 0, 0, 0.5)(image, _Drawn([3], [1, 1, 1, share]))
    for before, after in zip(image[0], seen[0], strict=True):
        hue, *rest = colorsys.rgb_to_hsv(*before / 255)
        expected = colorsys.hsv_to_rgb((hue + share) % 1, *rest)
        np.testing.assert_allclose(after / 255, expected, atol=6 * 1.5 / 255)  # 256 hues, of which a colour has 6 edges


def test_colours_change_in_the_order_and_by_the_amounts_drawn(rng):
    image, jitter = _image(rng, 6, 6, 3), color_jitter(0.3, 0.3, 0.3, 0.3)
    amounts = [0.7, 1.3, 0.8, 0.2]
    one_by_one = image
    for kind in (2, 0, 3, 1):
        single = [1.0, 1.0, 1.0, 0.0]
        single[kind] = amounts[kind]
        one_by_one = jitter(one_by_one, _Drawn([kind], single))
    np.testing.assert_array_equal(jitter(image, _Drawn([2, 0, 3, 1], amounts)), one_by_one)
    np.testing.assert_array_equal(color_jitter(0, 0, 0, 0)(image[:, :1] * 0 + 128, rng), image[:, :1] * 0 + 128)


def test_a_tenth_of_the_images_becomes_gray(rng):
    image = _image(rng, 4, 5, 3)
    seen = [random_grayscale()(image, rng) for _ in range(2000)]
    gray = np.asarray(PIL.Image.fromarray(image).convert("L"))[..., None].repeat(3, 2)
    count = sum(np.array_equal(one, gray) for one in seen)
    assert count + sum(np.array_equal(one, image) for one in seen) == 2000
    assert 146 < count < 254  # within 4 standard deviations


def test_domainbeds_augmentation_crops_bilinearly_mirrors_and_changes_colours():
    image = _pattern()
    for seed in range(5):
        rng = np.random.default_rng(seed)
        expected = random_resized_crop(16, (0.7, 1.0), method="bilinear")(image, rng)
        for step in (random_flip(), color_jitter(0.3, 0.3, 0.3, 0.3), random_grayscale(0.1)):
            expected = step(expected, rng)
        seen = domainbed_augmentation(16)(image, np.random.default_rng(seed))
        np.testing.assert_array_equal(seen, expected)


def test_colours_of_what_is_not_rgb_and_odd_amounts_are_refused(rng):
    for change in (color_jitter(0.3, 0.3, 0.3, 0.3), random_grayscale(0.0)):
        with pytest.raises(ValueError, match=r"needs RGB images, not \[4, 4, 1\]"):
            change(_image(rng, 4, 4, 1), rng)
    with pytest.raises(ValueError, match=r"contrast must be in \[0, 1\], not 2"):
        color_jitter(0.3, 2, 0.3, 0.3)
    with pytest.raises(ValueError, match=r"hue must be in \[0, 0.5\], not 0.6"):
        color_jitter(0.3, 0.3, 0.3, 0.6)
    with pytest.raises(ValueError, match=r"probability must be in \[0, 1\], not 1.5"):
        random_grayscale(1.5)
