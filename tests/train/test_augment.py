"""Test the transforms of training images against SciPy's resampling and NumPy."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from soups.train.augment import mixup, rand_augment

HEIGHT, WIDTH = 10, 14
GEOMETRIC = {"rotate": 0.6, "shear_x": 0.5, "shear_y": 0.5, "translate_x": 0.3, "translate_y": 0.3, "zoom": 0.4}
NUM_OPERATIONS = len(GEOMETRIC) + 3  # and identity, brightness, contrast

augment = jax.jit(rand_augment)


@pytest.fixture
def image(rng):
    """Return one smooth image, so that a position that is a little off changes little."""
    noise = rng.uniform(size=(HEIGHT, WIDTH, 1))
    return ndimage.gaussian_filter(noise, (1, 1, 0)).astype(np.float32)


# --- The oracle: an operation is (matrix from output to input, contrast, brightness) ---


def matrix(name, amount):
    """Return the map of (row, column), in pixels from the centre; shifts are fractions of the width."""
    result = np.eye(3)
    if name == "rotate":
        result[:2, :2] = [[math.cos(amount), math.sin(amount)], [-math.sin(amount), math.cos(amount)]]
    if name == "shear_x":
        result[1, 0] = amount
    if name == "shear_y":
        result[0, 1] = amount
    if name == "translate_x":
        result[1, 2] = amount * WIDTH
    if name == "translate_y":
        result[0, 2] = amount * WIDTH
    if name == "zoom":
        result[:2, :2] *= 1 + amount
    return result


def variants(magnitude):
    """Return all operations of a magnitude, with both signs."""
    share = magnitude / 20
    found = {"identity": (np.eye(3), 1.0, 0.0)}
    for sign in (-1, 1):
        for name, limit in GEOMETRIC.items():
            found[f"{name} {sign}"] = (matrix(name, sign * share * limit), 1.0, 0.0)
        found[f"brightness {sign}"] = (np.eye(3), 1.0, sign * share * 0.6)
        found[f"contrast {sign}"] = (np.eye(3), 1.0 + sign * share * 0.9, 0.0)
    return found


def applied(image, matrix, contrast, brightness, fill=0.0):
    """Resample once, then stretch around the mean, shift and clip."""
    centre = np.array([(HEIGHT - 1) / 2, (WIDTH - 1) / 2])
    offset = centre + matrix[:2, 2] - matrix[:2, :2] @ centre
    options = {"order": 1, "mode": "grid-constant", "cval": fill}
    warped = ndimage.affine_transform(image[..., 0].astype(np.float64), matrix[:2, :2], offset, **options)
    return np.clip((warped - warped.mean()) * contrast + warped.mean() + brightness, 0, 1)[..., None]


def copies(image, number):
    return jnp.broadcast_to(image, (number, *image.shape))


def nearest(images, candidates):
    """Return for each image the name of the closest candidate, and how far it is at most in a pixel."""
    names = list(candidates)
    distance = np.abs(np.asarray(images)[:, None] - np.stack(list(candidates.values()))[None]).max((2, 3, 4))
    return [names[index] for index in distance.argmin(1)], distance.min(1)


# --- Random operations ---


@pytest.mark.parametrize(("num_operations", "magnitude"), [(0, 20.0), (2, 0.0), (0, 0.0)])
def test_no_operations_or_no_magnitude_change_no_bit(image, num_operations, magnitude):
    images = copies(image, 8)
    np.testing.assert_array_equal(augment(jax.random.key(0), images, num_operations, magnitude), images)


@pytest.mark.parametrize(("magnitude", "fill"), [(20.0, 0.0), (7.0, 0.25)])
def test_one_operation_is_one_of_those_listed_each_as_often(image, magnitude, fill):
    number = 900
    images = augment(jax.random.key(1), copies(image, number), 1, magnitude, fill=fill)
    candidates = {name: applied(image, *operation, fill) for name, operation in variants(magnitude).items()}
    names, distance = nearest(images, candidates)
    assert distance.max() < 1e-5
    counts = {name: names.count(name) for name in candidates}
    expected = {name: number / NUM_OPERATIONS / (1 if name == "identity" else 2) for name in candidates}
    assert all(abs(counts[name] - expected[name]) < 5 * math.sqrt(expected[name]) for name in candidates)


def test_two_operations_are_resampled_once(image):
    operations = variants(12.0).values()
    candidates = {}
    for index, (first, second) in enumerate(itertools.product(operations, operations)):
        composed = (first[0] @ second[0], first[1] * second[1], first[2] + second[2])
        candidates[index] = applied(image, *composed)
    images = augment(jax.random.key(2), copies(image, 100), 2, 12.0)
    names, distance = nearest(images, candidates)
    assert distance.max() < 1e-5
    assert len(set(names)) > 50


def test_values_stay_between_zero_and_one(rng):
    images = jnp.asarray(rng.integers(0, 2, (256, HEIGHT, WIDTH, 3)), jnp.float32)
    made = np.asarray(augment(jax.random.key(3), images, 2, 20.0))
    assert made.min() == 0.0
    assert made.max() == 1.0
    assert made.shape == images.shape


def test_other_keys_augment_otherwise(image):
    images = copies(image, 8)
    first, again, other = (np.asarray(augment(jax.random.key(key), images, 2, 9.0)) for key in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.05


def test_strengths_may_be_traced_and_mapped(image):
    images, key = copies(image, 8), jax.random.key(4)
    numbers, magnitudes = jnp.array([0, 1, 2, 2]), jnp.array([9.0, 9.0, 0.0, 15.0])
    mapped = jax.jit(jax.vmap(rand_augment, in_axes=(None, None, 0, 0)))(key, images, numbers, magnitudes)
    for made, number, magnitude in zip(mapped, numbers, magnitudes, strict=True):
        np.testing.assert_allclose(made, augment(key, images, number, magnitude), atol=1e-6)


# --- Mixup ---


def mixed(rng, key, alpha):
    images = rng.uniform(size=(6, 4, 4, 1)).astype(np.float32)
    targets = np.eye(6, 3, dtype=np.float32)
    return images, targets, *map(np.asarray, jax.jit(mixup)(jax.random.key(key), images, targets, alpha))


def test_mixup_mixes_images_and_targets_alike(rng):
    images, targets, new_images, new_targets = mixed(rng, 0, 0.8)
    difference = images - images[::-1]
    share = float(((new_images - images[::-1]) * difference).sum() / (difference**2).sum())
    assert 0.5 <= share < 0.999
    np.testing.assert_allclose(new_images, share * images + (1 - share) * images[::-1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(new_targets, share * targets + (1 - share) * targets[::-1], rtol=1e-5, atol=1e-6)


def test_mixup_without_strength_changes_no_bit(rng):
    images, targets, new_images, new_targets = mixed(rng, 0, 0.0)
    np.testing.assert_array_equal(new_images, images)
    np.testing.assert_array_equal(new_targets, targets)


@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_mixup_draws_the_larger_share_of_a_beta(rng, alpha):
    keys = jax.random.split(jax.random.key(5), 2000)
    pair, labels = jnp.array([1.0, 0.0]).reshape(2, 1, 1, 1), jnp.eye(2)
    draw = jax.jit(jax.vmap(lambda key, alpha: mixup(key, pair, labels, alpha)[0][0, 0, 0, 0], in_axes=(0, None)))
    shares = np.asarray(draw(keys, alpha))
    drawn = rng.beta(alpha, alpha, 200_000)
    expected = np.maximum(drawn, 1 - drawn)
    assert shares.min() >= 0.5
    assert shares.max() <= 1.0
    assert abs(shares.mean() - expected.mean()) < 5 * expected.std() / math.sqrt(len(keys))
    assert abs(shares.std() - expected.std()) < 0.02
