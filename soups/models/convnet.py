"""Build small convolutional networks with BatchNorm, whose soups need their statistics re-estimated."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from soups.models.resnet import ConvNorm


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
    def __call__(self, images_BxHxWxC: jax.Array, train: bool = False) -> jax.Array:
        """Map images [B, H, W, C] of floats to logits [B, num_classes] in float32."""
        x = images_BxHxWxC
        for stage, width in enumerate(self.widths):
            for index in range(self.depth):
                stride = 2 if stage > 0 and index == 0 else 1
                fields = (width, stride, "batch", self.momentum, self.dtype)
                x = nn.relu(ConvNorm(*fields, name=f"stage_{stage}_{index}")(x, train))
        x_BxD = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="head")(x_BxD)
