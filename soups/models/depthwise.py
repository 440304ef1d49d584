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


def shifted_sum(x_BxHxWxC: jax.Array, kernel: jax.Array, stride: int = 1, padding: Padding = "SAME") -> jax.Array:
    """Return what `depthwise` does as a sum of size² shifted images, each times its weights."""
    size = kernel.shape[0]
    if isinstance(padding, str):
        padding = tuple(_same(length, size, stride) for length in x_BxHxWxC.shape[1:3])
    padded = jnp.pad(x_BxHxWxC, ((0, 0), *padding, (0, 0)))
    rows, columns = ((length - size) // stride + 1 for length in padded.shape[1:3])

    def image(i, j):
        last = (i + stride * (rows - 1) + 1, j + stride * (columns - 1) + 1)
        return padded[:, i : last[0] : stride, j : last[1] : stride]

    places = [(i, j) for i in range(size) for j in range(size)]
    return functools.reduce(operator.add, (image(i, j) * kernel[i : i + 1, j : j + 1] for i, j in places))


def grouped_convolution(
    x_BxHxWxC: jax.Array, kernel: jax.Array, stride: int = 1, padding: Padding = "SAME"
) -> jax.Array:
    """Return what `depthwise` does by XLA's convolution, with a group for each channel."""
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": x_BxHxWxC.shape[-1]}
    return jax.lax.conv_general_dilated(x_BxHxWxC, kernel, (stride, stride), padding, **options)


def _same(length, size, stride):
    """Return how many zeros come before and after, where the output shall be ⌈length/stride⌉ long."""
    total = max((-(-length // stride) - 1) * stride + size - length, 0)
    return total // 2, total - total // 2
