"""Build residual networks of bottlenecks for large images, such as ResNet-50, as torchvision does."""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

EXPANSION = 4  # the channels that leave a bottleneck, for each one inside


class BottleneckResNet(nn.Module):
    """Classify images with bottlenecks of 1x1, 3x3 and 1x1 convolutions (He et al., 2015, arXiv:1512.03385).

    `blocks`: the bottlenecks of each stage, (3, 4, 6, 3) is ResNet-50. Stage s is `width` · 2ˢ channels wide inside and
    four times that outside; every stage after the first halves the image, in its 3x3 convolution ("v1.5"). The stem is
    a 7x7 convolution and a maximum over 3x3, each of stride 2. `momentum`: the share of the old BatchNorm statistics
    that a training step keeps. The head starts at zero; `num_classes=None` is a network without it, which gives the
    features. `remat`: the backward pass computes each block again instead of keeping what is inside. Parameters and
    statistics are float32; convolutions compute in `dtype`, BatchNorm and head in float32.
    """

    num_classes: int | None
    blocks: Sequence[int] = (3, 4, 6, 3)
    width: int = 64
    momentum: float = 0.9
    dtype: Dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images_BxHxWxC, train: bool = False):
        """Map images [B, H, W, C] of floats to logits [B, num_classes], or features [B, D], in float32."""
        bottleneck = nn.remat(Bottleneck, static_argnums=(2,)) if self.remat else Bottleneck
        stem = ConvNorm(self.width, 7, 2, self.momentum, self.dtype, name="stem")
        x = nn.relu(stem(images_BxHxWxC, train))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, count in enumerate(self.blocks):
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                fields = (self.width * 2**stage, stride, self.momentum, self.dtype)
                x = bottleneck(*fields, name=f"stage_{stage}_{index}")(x, train)
        x_BxD = jnp.mean(x, axis=(1, 2))
        if self.num_classes is None:
            return x_BxD
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="head")(x_BxD)


class Bottleneck(nn.Module):
    """Add three convolutions to their input, which a fourth one adapts where its shape is another; then ReLU."""

    width: int
    stride: int
    momentum: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x_BxHxWxC, train: bool):
        """Map [B, H, W, C] to [B, H/stride, W/stride, 4 · width] in float32."""
        conv_norm = functools.partial(ConvNorm, momentum=self.momentum, dtype=self.dtype)
        y = nn.relu(conv_norm(self.width, 1, 1, name="first")(x_BxHxWxC, train))
        y = nn.relu(conv_norm(self.width, 3, self.stride, name="second")(y, train))
        y = conv_norm(EXPANSION * self.width, 1, 1, name="third")(y, train)
        if x_BxHxWxC.shape != y.shape:
            x_BxHxWxC = conv_norm(y.shape[-1], 1, self.stride, name="shortcut")(x_BxHxWxC, train)
        return nn.relu(x_BxHxWxC + y)


class ConvNorm(nn.Module):
    """Apply a square convolution without bias, padded on both sides alike, and BatchNorm."""

    width: int
    size: int
    stride: int
    momentum: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x_BxHxWxC, train: bool):
        """Map [B, H, W, C] to [B, H/stride, W/stride, width] in float32."""
        side = self.size // 2
        x = nn.Conv(
            self.width,
            (self.size, self.size),
            strides=(self.stride, self.stride),
            padding=((side, side), (side, side)),
            use_bias=False,
            dtype=self.dtype,
            name="conv",
        )(x_BxHxWxC)
        # the two-pass variance: E[x²] − E[x]² cancels in float32
        norm = nn.BatchNorm(momentum=self.momentum, dtype=jnp.float32, use_fast_variance=False, name="norm")
        return norm(x.astype(jnp.float32), use_running_average=not train)
