"""Build residual networks of bottlenecks for large images, such as ResNet-50, as torchvision does."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from soups.models.resnet import ConvNorm

EXPANSION = 4  # the channels that leave a bottleneck, for each one inside


class BottleneckResNet(nn.Module):
    """Classify images with bottlenecks of 1x1, 3x3 and 1x1 convolutions (He et al., 2015, arXiv:1512.03385).

    `blocks`: the bottlenecks of each stage, (3, 4, 6, 3) is ResNet-50. Stage s is `width` · 2ˢ channels wide inside and
    four times that outside; every stage after the first halves the image, in its 3x3 convolution ("v1.5"). The stem is
    a 7x7 convolution and a maximum over 3x3, each of stride 2. `momentum`: the share of the old BatchNorm statistics
    that a training step keeps. `dropout`: the share of features that training drops before the head. The head starts at
    zero; `num_classes=None` is a network without it, which gives the features. `remat`: the backward pass computes each
    block again instead of keeping what is inside. `begin`, `end`: a part of the network, with the same names: from the
    outputs of the stages before `begin`, and before `end` it stops. Parameters and statistics are float32; convolutions
    compute in `dtype`, BatchNorm and head in float32.
    """

    num_classes: int | None
    blocks: Sequence[int] = (3, 4, 6, 3)
    width: int = 64
    momentum: float = 0.9
    dropout: float = 0.0
    dtype: Dtype = jnp.float32
    remat: bool = False
    begin: int = 0
    end: int | None = None

    @property
    def num_stages(self) -> int:
        """Return the number of stages."""
        return len(self.blocks)

    @nn.compact
    def __call__(self, images_BxHxWxC: jax.Array, train: bool = False) -> jax.Array:
        """Map images [B, H, W, C] of floats to logits [B, num_classes], or features [B, D], in float32."""
        bottleneck = nn.remat(Bottleneck, static_argnums=(2,)) if self.remat else Bottleneck
        x = images_BxHxWxC
        if self.begin == 0:
            x = nn.relu(_conv_norm(self, self.width, 7, 2, "stem")(x, train))
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, count in list(enumerate(self.blocks))[self.begin : self.end]:
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                fields = (self.width * 2**stage, stride, self.momentum, self.dtype)
                x = bottleneck(*fields, name=f"stage_{stage}_{index}")(x, train)
        if self.end is not None:
            return x
        x_BxD = jnp.mean(x, axis=(1, 2))
        if self.num_classes is None:
            return x_BxD
        x_BxD = nn.Dropout(self.dropout, deterministic=not train)(x_BxD)
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="head")(x_BxD)


class Bottleneck(nn.Module):
    """Add three convolutions to their input, which a fourth one adapts where its shape is another; then ReLU."""

    width: int
    stride: int
    momentum: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, train: bool) -> jax.Array:
        """Map [B, H, W, C] to [B, H/stride, W/stride, 4 · width] in float32."""
        y = nn.relu(_conv_norm(self, self.width, 1, 1, "first")(x_BxHxWxC, train))
        y = nn.relu(_conv_norm(self, self.width, 3, self.stride, "second")(y, train))
        y = _conv_norm(self, EXPANSION * self.width, 1, 1, "third")(y, train)
        if x_BxHxWxC.shape != y.shape:
            x_BxHxWxC = _conv_norm(self, y.shape[-1], 1, self.stride, "shortcut")(x_BxHxWxC, train)
        return nn.relu(x_BxHxWxC + y)


def _conv_norm(of, width, size, stride, name):
    # padded on both sides alike, as torch does
    return ConvNorm(width, stride, "batch", of.momentum, of.dtype, size, size // 2, name=name)
