"""Build Vision Transformers whose parameters bear the names and shapes of big_vision's.

So released big_vision checkpoints load by name (`soups.models.load_big_vision`); other fields make the networks of
CLIP, timm and Hugging Face (`soups.models.architectures`). Nothing here is a convolution: the patches are cut by a
reshape and embedded by a matrix product, which stays fast under `jax.vmap` over members.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from soups.names import check_name, did_you_mean

# width, depth, mlp_dim, num_heads: Zhai et al., "Scaling Vision Transformers" (2021), arXiv:2106.04560, table 2
SIZES = {
    "mu": (32, 1, 128, 2),
    "Ti": (192, 12, 768, 3),
    "S": (384, 12, 1536, 6),
    "M": (512, 12, 2048, 8),
    "B": (768, 12, 3072, 12),
    "L": (1024, 24, 4096, 16),
    "So400m": (1152, 27, 4304, 16),
    "H": (1280, 32, 5120, 16),
    "g": (1408, 40, 6144, 16),
    "g-opt": (1536, 40, 6144, 16),
    "G": (1664, 48, 8192, 16),
    "G-opt": (1536, 48, 8192, 16),
    "e": (1792, 56, 15360, 16),
}
POOL_TYPES = ("gap", "tok", "map")
ACTIVATIONS = {
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
    "gelu": functools.partial(nn.gelu, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "silu": nn.silu,
}


class MlpBlock(nn.Module):
    """Apply two dense layers with a GELU of some form between them to every token."""

    mlp_dim: int
    dropout: float = 0.0
    dtype: Dtype = jnp.float32
    activation: str = "gelu_tanh"

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array, train: bool = False) -> jax.Array:
        """Map tokens [B, T, D] to [B, T, D]."""
        drawn = {"kernel_init": nn.initializers.xavier_uniform(), "bias_init": nn.initializers.normal(stddev=1e-6)}
        dense = functools.partial(nn.Dense, dtype=self.dtype, **drawn)
        hidden = ACTIVATIONS[self.activation](dense(self.mlp_dim)(x_BxTxD))
        hidden = nn.Dropout(self.dropout)(hidden, deterministic=not train)
        return dense(x_BxTxD.shape[-1])(hidden)


class MultiHeadDotProductAttention(nn.Module):
    """Attend with several heads, with `causal` to no later token; the softmax is in float32.

    `dropout`: the share of the attention that training drops.
    """

    num_heads: int
    dtype: Dtype = jnp.float32
    causal: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        queries_BxQxD: jax.Array,
        inputs_BxTxD: jax.Array,
        train: bool = False,
        mask_BxT: jax.Array | None = None,
    ) -> jax.Array:
        """Map queries [B, Q, D] and inputs [B, T, D] to [B, Q, D]; inputs where the mask is False are not seen."""
        width = inputs_BxTxD.shape[-1]
        dense = functools.partial(nn.DenseGeneral, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform())
        heads = (self.num_heads, width // self.num_heads)
        query = dense(heads, name="query")(queries_BxQxD)
        key = dense(heads, name="key")(inputs_BxTxD)
        value = dense(heads, name="value")(inputs_BxTxD)
        query = query * heads[1] ** -0.5
        scores_BxHxQxT = jnp.einsum("bqhe,bthe->bhqt", query, key, preferred_element_type=jnp.float32)
        if self.causal:
            seen = jnp.tri(*scores_BxHxQxT.shape[2:], dtype=bool)[None, None]
            scores_BxHxQxT = jnp.where(seen, scores_BxHxQxT, -jnp.inf)
        if mask_BxT is not None:  # finite, so that a row without any input is no NaN
            scores_BxHxQxT = jnp.where(mask_BxT[:, None, None], scores_BxHxQxT, jnp.finfo(jnp.float32).min)
        shares_BxHxQxT = nn.softmax(scores_BxHxQxT).astype(self.dtype)
        shares_BxHxQxT = nn.Dropout(self.dropout)(shares_BxHxQxT, deterministic=not train)
        mixed_BxQxHxE = jnp.einsum("bhqt,bthe->bqhe", shares_BxHxQxT, value)
        return dense(width, axis=(-2, -1), name="out")(mixed_BxQxHxE)


class EncoderBlock(nn.Module):
    """Add attention, then an MLP, each to the normalised tokens; with `post_norm` each sum is normalised instead.

    `dropout` is that of both outputs, and without `post_norm` of the MLP's hidden layer; `attention_dropout` that of
    the attention.
    """

    mlp_dim: int
    num_heads: int
    dropout: float = 0.0
    dtype: Dtype = jnp.float32
    activation: str = "gelu_tanh"
    norm_epsilon: float = 1e-6
    causal: bool = False
    post_norm: bool = False
    attention_dropout: float = 0.0

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array, train: bool = False, mask_BxT: jax.Array | None = None) -> jax.Array:
        """Map tokens [B, T, D] to [B, T, D]; those where the mask is False are not seen by the others."""
        attention = MultiHeadDotProductAttention(self.num_heads, self.dtype, self.causal, self.attention_dropout)
        mlp = MlpBlock(self.mlp_dim, 0.0 if self.post_norm else self.dropout, self.dtype, self.activation)
        norm = functools.partial(nn.LayerNorm, epsilon=self.norm_epsilon, dtype=jnp.float32)

        def added(x, part, norm):
            drop = nn.Dropout(self.dropout, deterministic=not train)
            if self.post_norm:
                return norm(x.astype(jnp.float32) + drop(part(x)).astype(jnp.float32))
            return x + drop(part(norm(x.astype(jnp.float32))))

        x_BxTxD = added(x_BxTxD, lambda y: attention(y, y, train, mask_BxT), norm(name="LayerNorm_0"))
        return added(x_BxTxD, lambda y: mlp(y, train), norm(name="LayerNorm_1"))


class Encoder(nn.Module):
    """Apply `depth` blocks and a final LayerNorm, which is in float32; blocks of `post_norm` end with one themselves.

    `causal`: no token sees a later one. `remat`: the backward pass computes each block again instead of keeping it.
    """

    depth: int
    mlp_dim: int
    num_heads: int
    dropout: float = 0.0
    dtype: Dtype = jnp.float32
    activation: str = "gelu_tanh"
    norm_epsilon: float = 1e-6
    causal: bool = False
    remat: bool = False
    post_norm: bool = False
    attention_dropout: float = 0.0

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array, train: bool = False, mask_BxT: jax.Array | None = None) -> jax.Array:
        """Map tokens [B, T, D] to [B, T, D] in float32; those where the mask is False are not seen by the others."""
        block = nn.remat(EncoderBlock, static_argnums=(2,)) if self.remat else EncoderBlock
        fields = (self.mlp_dim, self.num_heads, self.dropout, self.dtype, self.activation, self.norm_epsilon)
        fields += (self.causal, self.post_norm, self.attention_dropout)
        for index in range(self.depth):
            x_BxTxD = block(*fields, name=f"encoderblock_{index}")(x_BxTxD, train, mask_BxT)
        if self.post_norm:
            return x_BxTxD.astype(jnp.float32)
        norm = nn.LayerNorm(epsilon=self.norm_epsilon, dtype=jnp.float32, name="encoder_norm")
        return norm(x_BxTxD.astype(jnp.float32))


class MAPHead(nn.Module):
    """Pool tokens by attention with one learned query (Zhai et al., 2021, arXiv:2106.04560)."""

    mlp_dim: int
    num_heads: int
    activation: str = "gelu_tanh"
    norm_epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        """Map tokens [B, T, D] to [B, D]."""
        batch, _, width = x_BxTxD.shape
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, width))
        x = MultiHeadDotProductAttention(self.num_heads)(jnp.tile(probe, (batch, 1, 1)), x_BxTxD)
        y = nn.LayerNorm(epsilon=self.norm_epsilon, name="LayerNorm_0")(x)
        x = x + MlpBlock(self.mlp_dim, activation=self.activation)(y)
        return x[:, 0]


class ViT(nn.Module):
    """Classify images with a Vision Transformer (Dosovitskiy et al., 2020, arXiv:2010.11929).

    Parameters are float32; the blocks' matrix products are in `dtype`, norms, pooling and head in float32. `pool_type`:
    "gap" averages the tokens, "tok" reads a class token, "map" pools by attention. `representation_size`: the width of
    a tanh layer before the head ("pre_logits"), None for no such layer. The head starts at zero; `num_classes=None` is
    a network without it, which gives the features.

    CLIP (Radford et al., 2021, arXiv:2103.00020) has a `pre_norm` before the blocks, no `embedding_bias`, a matrix
    "projection" of `projection_size` columns after pooling, and `normalize`: features of length 1. `activation`:
    "gelu_tanh", "gelu" (exact) or "quick_gelu", x / (1 + exp(−1.702 x)). `remat`: the backward pass computes each block
    again instead of keeping what is inside.
    """

    num_classes: int | None
    patch_size: int
    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    pool_type: str = "gap"
    representation_size: int | None = None
    dropout: float = 0.0
    dtype: Dtype = jnp.float32
    activation: str = "gelu_tanh"
    norm_epsilon: float = 1e-6
    pre_norm: bool = False
    embedding_bias: bool = True
    projection_size: int | None = None
    normalize: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, images_BxHxWxC: jax.Array, train: bool = False) -> jax.Array:
        """Map images [B, H, W, C] of floats to logits [B, num_classes], or features [B, D], in float32."""
        self._check(images_BxHxWxC.shape)
        fields = (self.mlp_dim, self.num_heads, self.dropout, self.dtype, self.activation, self.norm_epsilon)
        encoder = Encoder(self.depth, *fields, remat=self.remat, name="Transformer")
        x_BxD = self._pool(encoder(self._embed(images_BxHxWxC, train), train))
        if self.representation_size is not None:
            x_BxD = nn.tanh(nn.Dense(self.representation_size, name="pre_logits")(x_BxD))
        if self.projection_size is not None:
            x_BxD = nn.Dense(self.projection_size, use_bias=False, name="projection")(x_BxD)
        if self.normalize:
            x_BxD = x_BxD / jnp.linalg.norm(x_BxD, axis=-1, keepdims=True)
        if self.num_classes is None:
            return x_BxD
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="head")(x_BxD)

    def _embed(self, images_BxHxWxC, train):
        options = {"axis": (-3, -2, -1), "use_bias": self.embedding_bias, "dtype": self.dtype}
        x = nn.DenseGeneral(self.width, **options, name="embedding")(patches(images_BxHxWxC, self.patch_size))
        batch, tokens, width = x.shape
        position = self.param("pos_embedding", nn.initializers.normal(width**-0.5), (1, tokens, width))
        x = x + position.astype(self.dtype)
        if self.pool_type == "tok":
            token = self.param("cls", nn.initializers.zeros, (1, 1, width))
            x = jnp.concatenate([jnp.tile(token.astype(self.dtype), (batch, 1, 1)), x], axis=1)
        if self.pre_norm:
            norm = nn.LayerNorm(epsilon=self.norm_epsilon, dtype=jnp.float32, name="pre_norm")
            x = norm(x.astype(jnp.float32)).astype(self.dtype)
        return nn.Dropout(self.dropout)(x, deterministic=not train)

    def _pool(self, x_BxTxD):
        if self.pool_type == "map":
            fields = (self.mlp_dim, self.num_heads, self.activation, self.norm_epsilon)
            return MAPHead(*fields, name="MAPHead_0")(x_BxTxD)
        return x_BxTxD[:, 0] if self.pool_type == "tok" else jnp.mean(x_BxTxD, axis=1)

    def _check(self, shape):
        if len(shape) != 4:
            raise ValueError(f"images must be [B, H, W, C], but their shape is {shape}")
        if shape[1] % self.patch_size or shape[2] % self.patch_size:
            raise ValueError(f"images of {shape[1]}x{shape[2]} do not divide into patches of {self.patch_size}")
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} does not divide into {self.num_heads} heads")
        check_name(self.pool_type, POOL_TYPES, "pool_type")
        check_name(self.activation, ACTIVATIONS, "activation")


def patches(images_BxHxWxC, size: int):
    """Cut images [B, H, W, C] into patches [B, H/size · W/size, size, size, C], row by row."""
    batch, height, width, channels = images_BxHxWxC.shape
    rows, columns = height // size, width // size
    grid = images_BxHxWxC.reshape(batch, rows, size, columns, size, channels).swapaxes(2, 3)
    return grid.reshape(batch, rows * columns, size, size, channels)


def vit(name: str, *, num_classes: int | None, **fields: Any) -> ViT:
    """Make a ViT of a published size: "S/16", "B/32", "L/14", ..., that is size / patch size.

    `fields` are those of `ViT`: pool_type, dropout, dtype, ... An unknown size is a ValueError.
    """
    size, _, patch = name.partition("/")
    if size not in SIZES or not patch.isdecimal():
        hint = "" if size in SIZES else did_you_mean(f"{size}/16", [f"{known}/16" for known in SIZES])
        raise ValueError(f"no ViT is named {name!r}{hint}: give one of {', '.join(SIZES)}, '/' and a patch size")
    width, depth, mlp_dim, num_heads = SIZES[size]
    shape = {"width": width, "depth": depth, "mlp_dim": mlp_dim, "num_heads": num_heads}
    return ViT(num_classes=num_classes, patch_size=int(patch), **{**shape, **fields})
