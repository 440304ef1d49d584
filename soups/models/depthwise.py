"""Convolve every channel by itself, on each platform in the way that is fast there."""

import functools
import operator

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

#: "SAME", or the zeros before and after, of rows and of columns
Padding = str | int | tuple[tuple[int, int], tuple[int, int]]


class DepthwiseConv(nn.Module):
    """Apply a square convolution without bias to each channel by itself, padded as TensorFlow's SAME unless told.

    The kernel is [size, size, 1, C], as `flax.linen.Conv` has it with as many groups as channels.
    """

    size: int
    stride: int = 1
    dtype: Dtype = jnp.float32
    padding: Padding = "SAME"

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """Map [B, H, W, C] to [B, ⌈H/stride⌉, ⌈W/stride⌉, C], as SAME has it, in `dtype`."""
        shape = (self.size, self.size, 1, x_BxHxWxC.shape[-1])
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        return depthwise(x_BxHxWxC.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.padding)


def depthwise(x_BxHxWxC: jax.Array, kernel: jax.Array, stride: int = 1, padding: Padding = "SAME") -> jax.Array:
    """Return each channel convolved with its kernel of [size, size, 1, C].

    `padding`: TensorFlow's SAME, or how many zeros come before and after, of rows and of columns. On CPUs it is
    `shifted_sum`, elsewhere `grouped_convolution`, by the platform that the program is compiled for: see
    scripts/benchmarks/depthwise.py.
    """
    padding = ((padding, padding),) * 2 if isinstance(padding, int) else padding
    forms = {"cpu": shifted_sum, "default": grouped_convolution}
    forms = {platform: functools.partial(form, stride=stride, padding=padding) for platform, form in forms.items()}
    return jax.lax.platform_dependent(x_BxHxWxC, kernel, **forms)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def shifted_sum(x_BxHxWxC: jax.Array, kernel: jax.Array, stride: int = 1, padding: Padding = "SAME") -> jax.Array:
    """Return what `depthwise` does as a sum of size² shifted images, each times its weights.

    It has no forward-mode derivative: its gradients are sums of shifted images too.
    """
    size = len(kernel)
    images = _shifted(x_BxHxWxC, size, stride, _sides(x_BxHxWxC, kernel, stride, padding))
    weights = [kernel[i : i + 1, j : j + 1] for i in range(size) for j in range(size)]
    return functools.reduce(operator.add, map(operator.mul, images, weights))


def _forward(x, kernel, stride, padding):
    return shifted_sum(x, kernel, stride, padding), (x, kernel)


def _backward(stride, padding, kept, outer):
    # without the barriers XLA computes again, for each shifted image, what comes before and after the convolution
    (x, outer), kernel = jax.lax.optimization_barrier((kept[0], outer)), kept[1]
    size, sides = len(kernel), _sides(x, kernel, stride, padding)
    before = [size - 1 - first for first, _ in sides]
    whole = [stride * (length - 1) + 1 for length in outer.shape[1:3]]  # with stride - 1 zeros between any two
    after = [length + size - 1 - sum(pair) for length, *pair in zip(x.shape[1:3], before, whole, strict=True)]
    places = [(*pair, stride - 1) for pair in zip(before, after, strict=True)]
    spread = jax.lax.pad(outer, jnp.zeros((), outer.dtype), ((0, 0, 0), *places, (0, 0, 0)))
    inputs = shifted_sum(spread, kernel[::-1, ::-1], 1, ((0, 0), (0, 0)))
    weights = _sums(_shifted(x, size, stride, sides), outer).reshape(kernel.shape)
    return jax.lax.optimization_barrier((inputs, weights))


shifted_sum.defvjp(_forward, _backward)


def _sums(images, outer):
    """Return the sum of each image times `outer` over batch, rows and columns, [len(images), C].

    Rows are added one by one, then columns: that is one vectorized loop over channels, where XLA's reduction writes the
    products first and is four times slower.
    """
    rows = [_added([image[:, row] * outer[:, row] for row in range(outer.shape[1])]) for image in images]
    rows = jax.lax.optimization_barrier(rows)
    return jnp.sum(jnp.stack([_added([row[:, column] for column in range(outer.shape[2])]) for row in rows]), 1)


def _added(terms):
    return functools.reduce(operator.add, terms)


def _shifted(x, size, stride, sides):
    """Return the images, padded, that begin at each place of a kernel."""
    padded = jnp.pad(x, ((0, 0), *sides, (0, 0)))
    rows, columns = (stride * ((length - size) // stride) + 1 for length in padded.shape[1:3])
    return [padded[:, i : i + rows : stride, j : j + columns : stride] for i in range(size) for j in range(size)]


def grouped_convolution(
    x_BxHxWxC: jax.Array, kernel: jax.Array, stride: int = 1, padding: Padding = "SAME"
) -> jax.Array:
    """Return what `depthwise` does by XLA's convolution, with a group for each channel."""
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": x_BxHxWxC.shape[-1]}
    return jax.lax.conv_general_dilated(x_BxHxWxC, kernel, (stride, stride), padding, **options)


def _sides(x, kernel, stride, padding):
    if isinstance(padding, str):
        return tuple(_same(length, len(kernel), stride) for length in x.shape[1:3])
    return padding


def _same(length, size, stride):
    """Return how many zeros come before and after, where the output shall be ⌈length/stride⌉ long."""
    total = max((-(-length // stride) - 1) * stride + size - length, 0)
    return total // 2, total - total // 2
