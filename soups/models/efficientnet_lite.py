"""Build the EfficientNet-Lite family: small networks for images, of depthwise convolutions, without attention."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from soups.models.resnet import ConvNorm

STEM, TOP = 32, 1280  # channels, which no multiplier changes
EPSILON = 1e-3


class Stage(NamedTuple):
    """State the blocks of a stage at multipliers of 1."""

    width: int
    blocks: int
    size: int
    stride: int
    expansion: int


STAGES = (
    Stage(16, 1, 3, 1, 1),
    Stage(24, 2, 3, 2, 6),
    Stage(40, 2, 5, 2, 6),
    Stage(80, 3, 3, 2, 6),
    Stage(112, 3, 5, 1, 6),
    Stage(192, 4, 5, 2, 6),
    Stage(320, 1, 3, 1, 6),
)


class EfficientNetLite(nn.Module):
    """Classify images with inverted bottlenecks and ReLU6 (EfficientNet, Tan and Le, 2019, arXiv:1905.11946).

    EfficientNet-Lite, of TensorFlow's authors (2020), is that without squeeze and excitation. The width of a stage is
    `width_multiplier` times that of Lite0, rounded to a multiple of 8; its number of blocks is `depth_multiplier` times
    that, rounded up, but for the first and the last stage. Stem and last convolution are as wide in all. `momentum`:
    the share of the old BatchNorm statistics that training keeps. `dropout`: the share of features that it drops before
    the head. The head starts at zero; `num_classes=None` is a network without it, which gives the features. `remat`:
    the backward pass computes each block again instead of keeping what is inside. `begin`, `end`: a part of the
    network, with the same names: from the outputs of the stages before `begin`, and before `end` it stops. Parameters
    and statistics are float32; convolutions compute in `dtype`, BatchNorm and head in float32.
    """

    num_classes: int | None
    width_multiplier: float = 1.0
    depth_multiplier: float = 1.0
    momentum: float = 0.99
    dropout: float = 0.0
    dtype: Dtype = jnp.float32
    remat: bool = False
    begin: int = 0
    end: int | None = None

    num_stages = len(STAGES)

    def stages(self) -> list[Stage]:
        """Return the stages as the multipliers make them."""
        ends = (0, len(STAGES) - 1)
        return [
            stage._replace(
                width=rounded(stage.width * self.width_multiplier),
                blocks=stage.blocks if index in ends else math.ceil(stage.blocks * self.depth_multiplier),
            )
            for index, stage in enumerate(STAGES)
        ]

    @nn.compact
    def __call__(self, images_BxHxWxC: jax.Array, train: bool = False) -> jax.Array:
        """Map images [B, H, W, C] of floats to logits [B, num_classes], or features [B, 1280], in float32."""
        bottleneck = nn.remat(InvertedBottleneck, static_argnums=(2,)) if self.remat else InvertedBottleneck
        x = images_BxHxWxC
        if self.begin == 0:
            x = nn.relu6(_conv_norm(self, STEM, 3, 2, "stem")(x, train))
        for index, stage in list(enumerate(self.stages()))[self.begin : self.end]:
            for block in range(stage.blocks):
                stride = stage.stride if block == 0 else 1
                fields = (stage.width, stage.size, stride, stage.expansion, self.momentum, self.dtype)
                x = bottleneck(*fields, name=f"stage_{index}_{block}")(x, train)
        if self.end is not None:
            return x
        x = nn.relu6(_conv_norm(self, TOP, 1, 1, "top")(x, train))
        x_BxD = jnp.mean(x, axis=(1, 2))
        if self.num_classes is None:
            return x_BxD
        x_BxD = nn.Dropout(self.dropout, deterministic=not train)(x_BxD)
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="head")(x_BxD)


class InvertedBottleneck(nn.Module):
    """Widen the input, convolve each channel by itself, make it narrow again; add the input where shapes are equal."""

    width: int
    size: int
    stride: int
    expansion: int
    momentum: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, train: bool) -> jax.Array:
        """Map [B, H, W, C] to [B, ⌈H/stride⌉, ⌈W/stride⌉, width] in float32."""
        y, inside = x_BxHxWxC, self.expansion * x_BxHxWxC.shape[-1]
        if self.expansion > 1:
            y = nn.relu6(_conv_norm(self, inside, 1, 1, "expand")(y, train))
        y = nn.relu6(_conv_norm(self, inside, self.size, self.stride, "depthwise", depthwise=True)(y, train))
        y = _conv_norm(self, self.width, 1, 1, "project")(y, train)
        return x_BxHxWxC + y if x_BxHxWxC.shape == y.shape else y


def _conv_norm(of, width, size, stride, name, depthwise=False):
    options = {"size": size, "epsilon": EPSILON, "depthwise": depthwise}
    return ConvNorm(width, stride, "batch", of.momentum, of.dtype, **options, name=name)


def rounded(width: float) -> int:
    """Return the multiple of 8 that is nearest to a width, or the next one where that is less than nine tenths."""
    nearest = max(8, int(width + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * width else nearest
