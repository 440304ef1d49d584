"""Build residual networks for small images, such as ResNet-20 for CIFAR, with LayerNorm or BatchNorm."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from soups.models.depthwise import DepthwiseConv, depthwise
from soups.names import check_name

NORMS = ("layer", "batch")


class ResNet(nn.Module):
    """Classify small images with stages of residual blocks of two 3x3 convolutions (He et al., 2015, arXiv:1512.03385).

    `blocks`: the blocks of each stage, (3, 3, 3) is ResNet-20. Stage s has 16 · 2ˢ · `width_multiplier` channels; every
    stage after the first halves the image, its shortcut is then a 3x3 convolution. `norm`: "layer" over the channels,
    as in Git Re-Basin (2022, arXiv:2209.04836), so that there is no state to re-estimate after averaging, or "batch".
    `momentum`: the share of the old BatchNorm statistics that a training step keeps. The head starts at zero.
    Parameters and statistics are float32; convolutions compute in `dtype`, norms and head in float32.
    """

    num_classes: int
    blocks: Sequence[int] = (3, 3, 3)
    width_multiplier: float = 1.0
    norm: str = "layer"
    momentum: float = 0.9
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images_BxHxWxC: jax.Array, train: bool = False) -> jax.Array:
        """Map images [B, H, W, C] of floats to logits [B, num_classes] in float32."""
        width = round(16 * self.width_multiplier)
        if width < 1:
            raise ValueError(f"width_multiplier {self.width_multiplier} leaves none of 16 channels: give at least 1/16")
        check_name(self.norm, NORMS, "norm")
        x = ConvNorm(width, 1, self.norm, self.momentum, self.dtype, name="stem")(images_BxHxWxC, train)
        x = nn.relu(x)
        for stage, count in enumerate(self.blocks):
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                fields = (width * 2**stage, stride, self.norm, self.momentum, self.dtype)
                x = ResidualBlock(*fields, name=f"stage_{stage}_{index}")(x, train)
        x_BxD = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.num_classes, dtype=jnp.float32, kernel_init=nn.initializers.zeros, name="head")(x_BxD)


class ResidualBlock(nn.Module):
    """Add two convolutions to their input, which a third one adapts where the image is halved; then ReLU."""

    width: int
    stride: int
    norm: str
    momentum: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, train: bool) -> jax.Array:
        """Map [B, H, W, C] to [B, H/stride, W/stride, width] in float32."""
        rest = (self.norm, self.momentum, self.dtype)
        y = nn.relu(ConvNorm(self.width, self.stride, *rest, name="first")(x_BxHxWxC, train))
        y = ConvNorm(self.width, 1, *rest, name="second")(y, train)
        if self.stride > 1:
            x_BxHxWxC = ConvNorm(self.width, self.stride, *rest, name="shortcut")(x_BxHxWxC, train)
        return nn.relu(x_BxHxWxC + y)


class ConvNorm(nn.Module):
    """Apply a square convolution without bias and a norm, "layer" or "batch"; `epsilon` is that of "batch".

    `frozen`, of "batch": normalise by the statistics that are there, whether in training or not, and the convolution
    has the factors of channels in its kernel. That is the same function, whose gradients cost less on a CPU: what
    normalising reads and the sums of its gradient over all places are not needed.
    """

    width: int
    stride: int
    norm: str
    momentum: float
    dtype: Dtype
    size: int = 3
    padding: str | int | tuple[tuple[int, int], tuple[int, int]] = "SAME"
    epsilon: float = 1e-5
    depthwise: bool = False
    frozen: bool = False

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, train: bool) -> jax.Array:
        """Map [B, H, W, C] to [B, H/stride, W/stride, width] in float32."""
        if self.frozen:
            return self._folded(x_BxHxWxC)
        if self.depthwise:
            conv = DepthwiseConv(self.size, self.stride, self.dtype, self.padding, name="conv")
        else:
            options = {"strides": self.stride, "padding": self.padding, "use_bias": False, "dtype": self.dtype}
            options |= {"conv_general_dilated": _convolution}
            conv = nn.Conv(self.width, (self.size, self.size), **options, name="conv")
        x = conv(x_BxHxWxC).astype(jnp.float32)
        # two-pass variances: E[x²] − E[x]² cancels in float32
        if self.norm == "layer":
            return nn.LayerNorm(dtype=jnp.float32, use_fast_variance=False, name="norm")(x)
        options = {"momentum": self.momentum, "epsilon": self.epsilon, "dtype": jnp.float32}
        return nn.BatchNorm(**options, use_fast_variance=False, name="norm")(x, use_running_average=not train)

    def _folded(self, x):
        weights, statistics = self.variables["params"], self.variables["batch_stats"]["norm"]
        factor = weights["norm"]["scale"] * jax.lax.rsqrt(statistics["var"] + self.epsilon)
        shift = weights["norm"]["bias"] - statistics["mean"] * factor
        factor, shift = (jnp.expand_dims(one, (0, 1, 2)) for one in (factor, shift))
        # the barrier, or XLA multiplies again at each place
        kernel, shift = jax.lax.optimization_barrier((weights["conv"]["kernel"] * factor, shift))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if self.depthwise:
            x = depthwise(x, kernel, self.stride, self.padding)
        else:
            padding = [(self.padding, self.padding)] * 2 if isinstance(self.padding, int) else self.padding
            x = _convolution(x, kernel, (self.stride, self.stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return x.astype(jnp.float32) + shift


def _convolution(x, kernel, strides, padding, **options):
    """Convolve; with a kernel of one place, [1, 1, D, C], by a product of matrices, which is faster on CPUs."""
    if kernel.shape[:2] != (1, 1) or padding not in ("SAME", [(0, 0)] * 2):
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)
    rows, columns = strides
    x = x[:, ::rows, ::columns]
    product = jnp.matmul(x.reshape(-1, x.shape[-1]), kernel[0, 0], precision=options.get("precision"))
    return product.reshape(*x.shape[:-1], -1)
