"""Build small convolutional networks with BatchNorm, whose soups need their statistics re-estimated."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype


class ConvNet(nn.Module):
    """Classify images with stages of 3x3 convolutions, BatchNorm and ReLU, then a mean over space and a head.

    `widths`: the channels of each stage; every stage after the first halves the image. `depth`: convolutions in one.
    `momentum`: the share of the old BatchNorm statistics that a training step keeps. The head starts at zero.
    Parameters and statistics are float32; convolutions compute in `dtype`, BatchNorm and head in float32.
    """

    num_classes: int
    widths: Sequence[int] = (16, 32, 64)
    depth: int = 1
    momentum: float = 0.9
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images_BxHxWxC, train: bool = False):
        """Map images [B, H, W, C] of floats to logits [B, num_classes] in float32."""
        x = images_BxHxWxC
        for stage, width in enumerate(self.widths):
            for index in range(self.depth):
                stride = 2 if stage > 0 and index == 0 else 1
                x = ConvBlock(width, stride, self.momentum, self.dtype, name=f"stage_{stage}_{index}")(x, train)
        x_BxD = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="head")(x_BxD)


class ConvBlock(nn.Module):
    """Apply a 3x3 convolution, BatchNorm and ReLU."""

    width: int
    stride: int
    momentum: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x_BxHxWxC, train: bool):
        """Map [B, H, W, C] to [B, H/stride, W/stride, width]; with `train`, normalise by the batch itself."""
        strides = (self.stride, self.stride)
        x = nn.Conv(self.width, (3, 3), strides=strides, use_bias=False, dtype=self.dtype, name="conv")(x_BxHxWxC)
        # the two-pass variance: E[x²] − E[x]² cancels in float32, and re-estimated statistics are to be exact
        norm = nn.BatchNorm(momentum=self.momentum, dtype=jnp.float32, use_fast_variance=False, name="norm")
        return nn.relu(norm(x.astype(jnp.float32), use_running_average=not train))
