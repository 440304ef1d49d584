"""Attend to content and to relative positions apart, as DeBERTa does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import Dtype

from soups.models.vit import MlpBlock


class DisentangledEncoder(nn.Module):
    """Apply `depth` blocks that share embeddings of relative positions (DeBERTa-v3, He et al., 2021, 2111.09543).

    Each block adds attention, then an MLP, and normalises each sum. `buckets`: positions so many apart or more share
    the last of as many embeddings on either side; those at less than half of it have one each. `context_length`: the
    distance that the last bucket begins to hold. `remat`: the backward pass computes each block again.

    The weights are named as those of `soups.models.vit.Encoder`, with relative_embedding and relative_norm besides.
    """

    depth: int
    mlp_dim: int
    num_heads: int
    buckets: int
    context_length: int
    dropout: float = 0.0
    dtype: Dtype = jnp.float32
    activation: str = "gelu"
    norm_epsilon: float = 1e-7
    remat: bool = False

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array, train: bool, mask_BxT: jax.Array) -> jax.Array:
        """Map tokens [B, T, D] to [B, T, D] in float32; those where the mask is False are not seen by the others."""
        width, length = x_BxTxD.shape[-1], x_BxTxD.shape[1]
        rows = nn.Embed(2 * self.buckets, width, embedding_init=nn.initializers.normal(0.02), name="relative_embedding")
        norm = nn.LayerNorm(epsilon=self.norm_epsilon, dtype=jnp.float32, name="relative_norm")
        relative_RxD = norm(rows.embedding)
        places_TxT = relative_places(length, self.buckets, self.context_length)
        block = nn.remat(DisentangledBlock, static_argnums=(2,)) if self.remat else DisentangledBlock
        fields = (self.mlp_dim, self.num_heads, self.dropout, self.dtype, self.activation, self.norm_epsilon)
        for index in range(self.depth):
            name = f"encoderblock_{index}"
            x_BxTxD = block(*fields, name=name)(x_BxTxD, train, mask_BxT, relative_RxD, places_TxT)
        return x_BxTxD.astype(jnp.float32)


class DisentangledBlock(nn.Module):
    """Add attention, then an MLP, and normalise each sum."""

    mlp_dim: int
    num_heads: int
    dropout: float
    dtype: Dtype
    activation: str
    norm_epsilon: float

    @nn.compact
    def __call__(
        self, x_BxTxD: jax.Array, train: bool, mask_BxT: jax.Array, relative_RxD: jax.Array, places_TxT: jax.Array
    ) -> jax.Array:
        """Map tokens [B, T, D] to [B, T, D]."""
        attention = DisentangledAttention(
            self.num_heads, self.dropout, self.dtype, name="MultiHeadDotProductAttention_0"
        )
        norm = functools.partial(nn.LayerNorm, epsilon=self.norm_epsilon, dtype=jnp.float32)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        mixed_BxTxD = drop(attention(x_BxTxD, train, mask_BxT, relative_RxD, places_TxT))
        x_BxTxD = norm(name="LayerNorm_0")(x_BxTxD + mixed_BxTxD.astype(jnp.float32))
        hidden_BxTxD = drop(MlpBlock(self.mlp_dim, 0.0, self.dtype, self.activation)(x_BxTxD, train))
        return norm(name="LayerNorm_1")(x_BxTxD + hidden_BxTxD.astype(jnp.float32))


class DisentangledAttention(nn.Module):
    """Attend with several heads by content and position; the softmax is in float32.

    The score of token q for k is (Qq·Kk + Qq·Kr(q−k) + Kk·Qr(q−k)) / √(3 d), in which the embeddings r of relative
    positions go through the same matrices as the tokens. `dropout`: the share that training drops of the attention and
    of these embeddings.
    """

    num_heads: int
    dropout: float
    dtype: Dtype

    @nn.compact
    def __call__(
        self, x_BxTxD: jax.Array, train: bool, mask_BxT: jax.Array, relative_RxD: jax.Array, places_TxT: jax.Array
    ) -> jax.Array:
        """Map tokens [B, T, D] to [B, T, D]; those where the mask is False are not seen."""
        width, drop = x_BxTxD.shape[-1], nn.Dropout(self.dropout, deterministic=not train)
        dense = functools.partial(nn.DenseGeneral, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform())
        heads = (self.num_heads, width // self.num_heads)
        queries, keys = dense(heads, name="query"), dense(heads, name="key")
        relative_RxD = drop(relative_RxD)
        scale = (3 * heads[1]) ** -0.5
        query_BxTxHxE, key_BxTxHxE = queries(x_BxTxD) * scale, keys(x_BxTxD)
        product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        scores_BxHxQxT = product("bqhe,bthe->bhqt", query_BxTxHxE, key_BxTxHxE)
        by_key = product("bqhe,rhe->bhqr", query_BxTxHxE, keys(relative_RxD))
        by_query = product("bthe,rhe->bhtr", key_BxTxHxE, queries(relative_RxD) * scale)
        scores_BxHxQxT += _at(by_key, places_TxT) + _at(by_query, places_TxT.T).swapaxes(2, 3)
        # finite, so that a row without any input is no NaN
        scores_BxHxQxT = jnp.where(mask_BxT[:, None, None], scores_BxHxQxT, jnp.finfo(jnp.float32).min)
        shares_BxHxQxT = drop(nn.softmax(scores_BxHxQxT).astype(self.dtype))
        value_BxTxHxE = dense(heads, name="value")(x_BxTxD)
        mixed_BxQxHxE = jnp.einsum("bhqt,bthe->bqhe", shares_BxHxQxT, value_BxTxHxE)
        return dense(width, axis=(-2, -1), name="out")(mixed_BxQxHxE)


def _at(scores_BxHxTxR, places_TxT):
    """Return for each token and other token the score of their relative position."""
    return jnp.take_along_axis(scores_BxHxTxR, places_TxT[None, None], axis=-1)


def relative_places(length: int, buckets: int, context_length: int) -> np.ndarray:
    """Return the rows [T, T] of the embeddings of relative positions, for queries and keys at distance q − k.

    With m = buckets / 2 a distance d has bucket d up to m, and beyond sign(d) (m + ⌈(m − 1) log(|d| / m) /
    log((context_length − 1) / m)⌉); row = bucket + buckets, from 0 to 2 buckets − 1.
    """
    distance, middle = np.arange(length)[:, None] - np.arange(length)[None], buckets // 2
    far = np.maximum(np.abs(distance), middle).astype(np.float32) / np.float32(middle)
    steps = np.log(far) / np.log(np.float32((context_length - 1) / middle)) * (middle - 1)
    bucket = np.where(np.abs(distance) <= middle, distance, np.sign(distance) * (np.ceil(steps) + middle))
    return np.clip(bucket + buckets, 0, 2 * buckets - 1).astype(np.int32)
