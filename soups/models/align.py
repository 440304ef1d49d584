"""Build ALIGN's image tower, an EfficientNet with squeeze and excitation, and compare images with texts."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jax.sharding import PartitionSpec as P
from numpy.typing import ArrayLike

from soups.models.efficientnet_lite import EPSILON, STAGES, STEM, Stage, rounded
from soups.models.resnet import ConvNorm

#: for `soups.train.param_shardings`: the widest convolutions are cut over "model", all else is whole
SHARDING_RULES = (
    (r".*/(expand|project)/conv/kernel", P(None, None, None, "model")),
    (r".*", P()),
)


class AlignImageTower(nn.Module):
    """Encode images as ALIGN does (Jia et al., 2021, arXiv:2102.05918), by an EfficientNet (1905.11946) without a top.

    Width and depth are those of EfficientNet-B0 times the multipliers, all stages rounded up; B7 has 2.0 and 3.1. As in
    the released network, convolutions of stride 2 are padded for images of even length whatever their length is: there
    is less before than after. `symmetric`: numbers of blocks that pad alike on both sides instead. The first block of a
    stage has no shortcut. Features are the mean of the last stage, with `normalize` of length 1. The head starts at
    zero; `num_classes=None` is a network without it, which gives the features. `momentum`: the share of the old
    BatchNorm statistics that training keeps. `drop_connect`: the share of its output that training drops of the last
    block, of the others in proportion to their place. Parameters and statistics are float32; convolutions compute in
    `dtype`, BatchNorm and head in float32. `remat`: the backward pass computes each block again.

    The names of the weights: stem, stage_S_B/{expand, depthwise, project}, each with conv/kernel and norm, and
    stage_S_B/excite/{reduce, expand}/{kernel, bias}.
    """

    num_classes: int | None
    width_multiplier: float = 2.0
    depth_multiplier: float = 3.1
    squeeze: float = 0.25
    symmetric: tuple[int, ...] = ()
    normalize: bool = True
    momentum: float = 0.99
    drop_connect: float = 0.0
    dtype: Dtype = jnp.float32
    remat: bool = False
    plan: tuple[Stage, ...] = STAGES

    def stages(self) -> list[Stage]:
        """Return the stages as the multipliers make them."""
        return [
            stage._replace(
                width=rounded(stage.width * self.width_multiplier),
                blocks=math.ceil(stage.blocks * self.depth_multiplier),
            )
            for stage in self.plan
        ]

    @property
    def feature_dim(self) -> int:
        """Return the length of the features."""
        return self.stages()[-1].width

    @nn.compact
    def __call__(self, images_BxHxWxC: jax.Array, train: bool = False) -> jax.Array:
        """Map images [B, H, W, C] of floats to logits [B, num_classes], or features [B, D], in float32."""
        block = nn.remat(SqueezeBlock, static_argnums=(2,)) if self.remat else SqueezeBlock
        stem = {"padding": ((0, 1), (0, 1)), "epsilon": EPSILON}
        stem_width = rounded(STEM * self.width_multiplier)
        x = ConvNorm(stem_width, 2, "batch", self.momentum, self.dtype, **stem, name="stem")(images_BxHxWxC, train)
        x, number, total = nn.silu(x), 0, sum(stage.blocks for stage in self.stages())
        for index, stage in enumerate(self.stages()):
            for place in range(stage.blocks):
                own = stage._replace(stride=stage.stride if place == 0 else 1)
                fields = (own, self.squeeze, number in self.symmetric, place > 0, self.drop_connect * number / total)
                x = block(*fields, self.momentum, self.dtype, name=f"stage_{index}_{place}")(x, train)
                number += 1
        x_BxD = jnp.mean(x, axis=(1, 2))
        if self.normalize:
            x_BxD = x_BxD / jnp.linalg.norm(x_BxD, axis=-1, keepdims=True)
        if self.num_classes is None:
            return x_BxD
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="head")(x_BxD)


class SqueezeBlock(nn.Module):
    """Widen the input, convolve each channel, weigh the channels by their means, make it narrow, add the input."""

    stage: Stage
    squeeze: float
    symmetric: bool
    shortcut: bool
    drop: float
    momentum: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, train: bool) -> jax.Array:
        """Map [B, H, W, C] to [B, H', W', width] in float32."""
        width, _, size, stride, expansion = self.stage
        narrow = x_BxHxWxC.shape[-1]

        def conv_norm(width, size, stride, name, **options):
            fields = (width, stride, "batch", self.momentum, self.dtype, size)
            return ConvNorm(*fields, epsilon=EPSILON, **options, name=name)

        y = x_BxHxWxC
        if expansion > 1:
            y = nn.silu(conv_norm(expansion * narrow, 1, 1, "expand")(y, train))
        padding = (size // 2 - (stride > 1 and not self.symmetric), size // 2)
        y = nn.silu(conv_norm(y.shape[-1], size, stride, "depthwise", depthwise=True, padding=(padding,) * 2)(y, train))
        y = y * SqueezeExcite(max(1, int(narrow * self.squeeze)), name="excite")(y)
        y = conv_norm(width, 1, 1, "project")(y, train)
        if not self.shortcut:
            return y
        return x_BxHxWxC + nn.Dropout(self.drop, deterministic=not train)(y)


class SqueezeExcite(nn.Module):
    """Return each channel a weight from 0 to 1, by two dense layers on the means of all."""

    width: int

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """Map [B, H, W, C] to [B, 1, 1, C]."""
        means_BxC = jnp.mean(x_BxHxWxC, axis=(1, 2))
        hidden = nn.silu(nn.Dense(self.width, name="reduce")(means_BxC))
        return nn.sigmoid(nn.Dense(x_BxHxWxC.shape[-1], name="expand")(hidden))[:, None, None]


class Similarity(NamedTuple):
    """Hold the logits of images [B] with texts [C]: `per_image` [B, C], and `per_text` [C, B]."""

    per_image: jax.Array
    per_text: jax.Array


def similarity(image_features: ArrayLike, text_features: ArrayLike, temperature: ArrayLike) -> Similarity:
    """Compare features of images [B, D] with those of texts [C, D]: cosines divided by the temperature."""
    images_BxD, texts_CxD = (_unit(jnp.asarray(one, jnp.float32)) for one in (image_features, text_features))
    logits_BxC = jnp.einsum("bd,cd->bc", images_BxD, texts_CxD, precision=jax.lax.Precision.HIGHEST) / temperature
    return Similarity(logits_BxC, logits_BxC.T)


def _unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
