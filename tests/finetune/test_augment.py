import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from soups.finetune import augment
from soups.finetune.augment import mixup, rand_augment

IMAGES = ndimage.gaussian_filter(np.random.default_rng(0).random((6, 15, 15, 1)), (0, 1.5, 1.5, 0)).astype(np.float32)
KEY = jax.random.key(0)


@pytest.mark.parametrize(("operations", "magnitude"), [(0, 20.0), (2, 0.0)])
def test_nothing_to_do_is_the_identity(operations, magnitude):
    np.testing.assert_array_equal(rand_augment(KEY, jnp.asarray(IMAGES), operations, magnitude), IMAGES)


def warp(**amounts):
    """Sample all images with one geometric operation."""
    amount = {name: jnp.zeros(len(IMAGES)) for name in augment._GEOMETRIC}
    amount |= {name: jnp.full(len(IMAGES), value) for name, value in amounts.items()}
    return np.asarray(augment._warp(jnp.asarray(IMAGES), augment._affine(amount), 0.0))


def scipy_warp(matrix, shift=(0.0, 0.0)):
    """Sample with scipy: output (row, column), from the centre, comes from matrix @ it + shift."""
    centre = np.array([7.0, 7.0])
    offset = centre - np.asarray(matrix) @ centre + np.asarray(shift)
    images = [
        ndimage.affine_transform(
            image[..., 0].astype(np.float64), matrix, offset, order=1, mode="grid-constant", cval=0.0
        )
        for image in IMAGES
    ]
    return np.stack(images)[..., None]


@pytest.mark.parametrize(
    ("amounts", "matrix", "shift"),
    [
        ({"rotate": 0.4}, [[np.cos(0.4), np.sin(0.4)], [-np.sin(0.4), np.cos(0.4)]], (0, 0)),
        ({"shear_x": 0.3}, [[1, 0], [0.3, 1]], (0, 0)),
        ({"shear_y": 0.3}, [[1, 0.3], [0, 1]], (0, 0)),
        ({"translate_x": 0.2}, [[1, 0], [0, 1]], (0, 3)),  # a fifth of 15 pixels
        ({"translate_y": -0.2}, [[1, 0], [0, 1]], (-3, 0)),
        ({"zoom": 0.25}, [[1.25, 0], [0, 1.25]], (0, 0)),
    ],
    ids=["rotate", "shear_x", "shear_y", "translate_x", "translate_y", "zoom"],
)
def test_each_geometric_operation_equals_scipy(amounts, matrix, shift):
    np.testing.assert_allclose(warp(**amounts), scipy_warp(matrix, shift), atol=2e-5)


def test_results_stay_in_range_and_depend_on_the_key():
    a, b = (np.asarray(rand_augment(jax.random.key(k), jnp.asarray(IMAGES), 2, 20.0)) for k in (0, 1))
    for images in (a, b):
        assert images.shape == IMAGES.shape
        assert images.min() >= 0.0 and images.max() <= 1.0
    assert np.abs(a - b).max() > 0.05


def test_more_magnitude_changes_more():
    images = np.tile(IMAGES, (20, 1, 1, 1))
    small, large = (
        np.abs(np.asarray(rand_augment(KEY, jnp.asarray(images), 1, m)) - images).mean() for m in (4.0, 20.0)
    )
    assert 0 < small < large


def test_strength_may_be_traced_and_mapped():
    def one(key, operations, magnitude):
        return rand_augment(key, jnp.asarray(IMAGES), operations, magnitude)

    operations, magnitudes = jnp.int32([0, 1, 2]), jnp.float32([5.0, 10.0, 20.0])
    keys = jax.random.split(KEY, 3)
    together = jax.jit(jax.vmap(one))(keys, operations, magnitudes)
    for index in range(3):
        alone = one(keys[index], int(operations[index]), float(magnitudes[index]))
        np.testing.assert_allclose(together[index], alone, atol=1e-5)


def test_mixup_mixes_images_and_targets_alike():
    targets = np.eye(6, dtype=np.float32)
    images, mixed = (np.asarray(x) for x in mixup(KEY, jnp.asarray(IMAGES), jnp.asarray(targets), 0.8))
    weight = mixed[0, 0]
    assert 0.5 <= weight < 1.0
    np.testing.assert_allclose(mixed, weight * targets + (1 - weight) * targets[::-1], rtol=1e-6)
    np.testing.assert_allclose(images, weight * IMAGES + (1 - weight) * IMAGES[::-1], rtol=1e-5)


def test_mixup_of_zero_changes_nothing():
    targets = np.eye(6, dtype=np.float32)
    images, mixed = mixup(KEY, jnp.asarray(IMAGES), jnp.asarray(targets), 0.0)
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(mixed, targets)
