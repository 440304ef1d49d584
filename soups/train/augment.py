"""Transform training images on the device, with strengths that may be traced."""

import jax
import jax.numpy as jnp

MAX_OPERATIONS = 2
MAX_MAGNITUDE = 20.0

# what an operation does at magnitude 20; the sign is drawn for each image
_GEOMETRIC = {"rotate": 0.6, "shear_x": 0.5, "shear_y": 0.5, "translate_x": 0.3, "translate_y": 0.3, "zoom": 0.4}
_PHOTOMETRIC = {"brightness": 0.6, "contrast": 0.9}
OPERATIONS = ("identity", *_GEOMETRIC, *_PHOTOMETRIC)


def rand_augment(key: jax.Array, images: jax.Array, num_operations, magnitude, *, fill: float = 0.0) -> jax.Array:
    """Apply `num_operations` (0 to 2) random operations of one `magnitude` (0 to 20; both may be traced) to each image.

    Each of the operations in `OPERATIONS` is drawn with equal probability for each image: rotation (radians), shear,
    translation (fraction of the width) and zoom, which are composed and sampled once with bilinear interpolation, then
    brightness and contrast. All grow linearly to their largest at magnitude 20. `images`: float [B, H, W, C] in [0, 1];
    `fill`: what comes in from outside.

    Cubuk et al., "RandAugment", 2019, arXiv 1909.13719; here without the operations that need a histogram.
    """
    num_operations = jnp.asarray(num_operations, jnp.int32)
    magnitude = jnp.asarray(magnitude, jnp.float32)
    active = (num_operations > 0) & (magnitude > 0)  # members without augmentation do not pay for it
    return jax.lax.cond(active, _augmented, lambda *_: images, key, images, num_operations, magnitude, fill)


def mixup(key: jax.Array, images: jax.Array, targets: jax.Array, alpha) -> tuple[jax.Array, jax.Array]:
    """Mix each example with the one at the mirrored place of the batch.

    x ← λ x + (1 − λ) x', the targets alike, with one λ ~ Beta(α, α) for the batch, taken at least 1/2; α = 0 mixes
    nothing. `images` float [B, H, W, C], `targets` float [B, classes]; `alpha` may be traced.

    Zhang et al., "mixup: beyond empirical risk minimization", 2017, arXiv 1710.09412.
    """
    alpha = jnp.asarray(alpha, jnp.float32)
    drawn = jax.random.beta(key, jnp.maximum(alpha, 1e-3), jnp.maximum(alpha, 1e-3), dtype=jnp.float32)
    weight = jnp.where(alpha > 0, jnp.maximum(drawn, 1.0 - drawn), 1.0)
    return tuple(weight * x + (1.0 - weight) * x[::-1] for x in (images, targets))


def _augmented(key, images, num_operations, magnitude, fill):
    batch = images.shape[0]
    matrix = jnp.broadcast_to(jnp.eye(3, dtype=jnp.float32), (batch, 3, 3))
    gain, offset = jnp.ones(batch, jnp.float32), jnp.zeros(batch, jnp.float32)
    for slot in range(MAX_OPERATIONS):
        choice_key, sign_key = jax.random.split(jax.random.fold_in(key, slot))
        choice = jax.random.randint(choice_key, (batch,), 0, len(OPERATIONS), jnp.int32)
        # the probability's dtype decides which bits are drawn: they are the same in double precision
        positive = jax.random.bernoulli(sign_key, jnp.float32(0.5), (batch,))
        sign = jnp.where(positive, jnp.float32(1.0), jnp.float32(-1.0))
        active = jnp.asarray(slot < num_operations, jnp.float32)
        level = sign * active * magnitude / MAX_MAGNITUDE
        amount = {name: jnp.where(choice == index, level, 0.0) for index, name in enumerate(OPERATIONS)}
        affine = _affine({name: limit * amount[name] for name, limit in _GEOMETRIC.items()})
        matrix = jnp.matmul(affine, matrix, precision="highest")  # positions need all bits, also on accelerators
        gain = gain * (1.0 + _PHOTOMETRIC["contrast"] * amount["contrast"])
        offset = offset + _PHOTOMETRIC["brightness"] * amount["brightness"]
    warped = _warp(images, matrix, fill)
    average = warped.mean((1, 2, 3), keepdims=True)
    columns = (batch, 1, 1, 1)
    return jnp.clip((warped - average) * gain.reshape(columns) + average + offset.reshape(columns), 0.0, 1.0)


def _affine(amount):
    """Build the matrices [B, 3, 3] from output to input coordinates, in units of the image's width, centred."""
    cos, sin = jnp.cos(amount["rotate"]), jnp.sin(amount["rotate"])
    zoom = 1.0 + amount["zoom"]
    zero, one = jnp.zeros_like(cos), jnp.ones_like(cos)
    rows = [
        [zoom * cos, -sin + amount["shear_x"], amount["translate_x"]],
        [sin + amount["shear_y"], zoom * cos, amount["translate_y"]],
        [zero, zero, one],
    ]
    return jnp.stack([jnp.stack(row, -1) for row in rows], -2)


def _warp(images, matrix, fill):
    _, height, width, _ = images.shape
    rows, columns = jnp.arange(height, dtype=jnp.float32), jnp.arange(width, dtype=jnp.float32)
    y, x = jnp.meshgrid(rows - (height - 1) / 2, columns - (width - 1) / 2, indexing="ij")
    points = jnp.stack([x.ravel() / width, y.ravel() / width, jnp.ones(height * width, jnp.float32)])
    source = jnp.matmul(matrix[:, :2], points[None], precision="highest") * width
    column, row = source[:, 0] + (width - 1) / 2, source[:, 1] + (height - 1) / 2
    return jax.vmap(_bilinear, in_axes=(0, 0, 0, None))(images, row, column, fill)


def _bilinear(image, row, column, fill):
    """Sample one image [H, W, C] at float positions; one pixel of `fill` stands around it."""
    height, width, channels = image.shape
    padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)), constant_values=fill).reshape(-1, channels)
    row, column = jnp.clip(row + 1.0, 0.0, height + 1.0), jnp.clip(column + 1.0, 0.0, width + 1.0)
    top, left = jnp.minimum(jnp.floor(row), float(height)), jnp.minimum(jnp.floor(column), float(width))
    down, right = (row - top)[:, None], (column - left)[:, None]
    corner = (top * (width + 2) + left).astype(jnp.int32)
    upper = padded[corner] * (1.0 - right) + padded[corner + 1] * right
    lower = padded[corner + width + 2] * (1.0 - right) + padded[corner + width + 3] * right
    return (upper * (1.0 - down) + lower * down).reshape(image.shape)
