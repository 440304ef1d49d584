"""Build the encoders of texts: BERT, RoBERTa, DeBERTa and their kin."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jax.sharding import PartitionSpec as P

from soups.models.disentangled import DisentangledEncoder
from soups.models.text_inputs import checked_inputs
from soups.models.vit import ACTIVATIONS, Encoder
from soups.names import check_name

POOL_TYPES = ("tok", "mean", None)
POOLER_ACTIVATIONS = {"tanh": nn.tanh, **ACTIVATIONS}
#: for `soups.train.param_shardings`: heads, hidden layers and embeddings are cut over "model", all else is whole
SHARDING_RULES = (
    (r".*/(query|key|value)/kernel", P(None, "model", None)),
    (r".*/(query|key|value)/bias", P("model", None)),
    (r".*/MultiHeadDotProductAttention_0/out/kernel", P("model", None, None)),
    (r".*/MlpBlock_0/Dense_0/kernel", P(None, "model")),
    (r".*/MlpBlock_0/Dense_0/bias", P("model")),
    (r".*/MlpBlock_0/Dense_1/kernel", P("model", None)),
    (r"token_embedding/embedding", P(None, "model")),  # few numbers divide a vocabulary
    (r".*", P()),
)
INPUTS = ("tokens", "mask", "segments")


class TextEncoder(nn.Module):
    """Encode or classify texts as BERT does (Devlin et al., 2018, arXiv:1810.04805), RoBERTa, or DeBERTa-v3.

        encoder = architecture("bert-base-uncased").model(2, dropout=0.1)
        tokenize = text_tokenizer("bert-base-uncased", "bert-base-uncased")
        logits = apply_fn(encoder)(params, tokenize(["a text", "another one"]))

    `pool_type`: "tok" reads the first token, "mean" averages the tokens of the mask, None gives all of them, [B, T, D].
    `representation_size`: the width of a layer before the head ("pre_logits"), which BERT calls its pooler, with the
    function `pooler_activation`; None for no such layer. The head starts at zero; `num_classes=None` is a network
    without it, which gives the features. `mlm`: instead of a head a layer "mlm" gives the logits of the vocabulary for
    every token, whose matrix is that of the embeddings. `projection_size`: the width of a dense layer "projection" of
    the features.

    `num_segments`: 2 where the first and the second text of a pair are told apart, 0 for a network without segments.
    `position_offset`: the rows of "position_embedding" before that of the first token; with an offset, as in RoBERTa
    (Liu et al., 2019, arXiv:1907.11692), positions count the tokens of the mask alone. `buckets`: there are no
    positions at the input, but blocks that attend to content and to relative positions apart, as in DeBERTa-v3, see
    `soups.models.disentangled`; None for those of BERT. `dropout`: the share that training drops of embeddings,
    attention, the outputs of both halves of a block, and pooled features. Parameters are float32; the blocks' matrix
    products are in `dtype`, norms, pooling and heads in float32. `remat`: the backward pass computes each block again
    instead of keeping what is inside.

    The names of the weights: token_embedding, position_embedding, segment_embedding (each with "embedding"),
    embedding_norm, Transformer/encoderblock_N as in `soups.models.ViT`, with `buckets` Transformer/relative_embedding
    and relative_norm, pre_logits, mlm, projection, head. `SHARDING_RULES` are for those that are to be cut over several
    devices.
    """

    num_classes: int | None
    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    vocabulary_size: int
    context_length: int = 512
    num_segments: int = 2
    pool_type: str | None = "tok"
    representation_size: int | None = None
    mlm: bool = False
    dropout: float = 0.0
    dtype: Dtype = jnp.float32
    activation: str = "gelu"
    norm_epsilon: float = 1e-12
    position_offset: int = 0
    remat: bool = False
    buckets: int | None = None
    pooler_activation: str = "tanh"
    projection_size: int | None = None

    @nn.compact
    def __call__(self, inputs: Mapping[str, jax.Array], train: bool = False) -> jax.Array:
        """Map {"tokens": integers [B, T], "mask": booleans [B, T]} to logits [B, num_classes] in float32.

        Tokens where the mask is False are padding, which no other token sees. "segments", integers [B, T], are 0 where
        they are not given. Without classes the result is features [B, D], or [B, T, D] without pooling, with `mlm`
        logits [B, T, vocabulary_size]. A ValueError for other inputs, and for more than `context_length` tokens.
        """
        tokens_BxT, mask_BxT, segments_BxT = self._checked(inputs)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        embedding = functools.partial(nn.Embed, features=self.width, embedding_init=nn.initializers.normal(0.02))
        tokens = embedding(self.vocabulary_size, name="token_embedding")
        x_BxTxD = tokens(tokens_BxT)
        if self.buckets is None:
            positions = embedding(self.context_length + self.position_offset, name="position_embedding")
            x_BxTxD += positions(self._positions(mask_BxT))
        if self.num_segments:
            x_BxTxD += embedding(self.num_segments, name="segment_embedding")(segments_BxT)
        x_BxTxD = drop(nn.LayerNorm(epsilon=self.norm_epsilon, name="embedding_norm")(x_BxTxD))
        x_BxTxD = self._blocks()(x_BxTxD, train, mask_BxT)
        if self.mlm:
            return MaskedLanguageHead(self.activation, self.norm_epsilon, name="mlm")(x_BxTxD, tokens.embedding)
        x = self._pool(x_BxTxD, mask_BxT)
        if self.representation_size is not None:
            x = POOLER_ACTIVATIONS[self.pooler_activation](nn.Dense(self.representation_size, name="pre_logits")(x))
        if self.projection_size is not None:
            x = nn.Dense(self.projection_size, name="projection")(x)
        if self.num_classes is None:
            return x
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="head")(drop(x))

    def _blocks(self):
        fields = (self.dropout, self.dtype, self.activation, self.norm_epsilon)
        sizes = (self.depth, self.mlp_dim, self.num_heads)
        if self.buckets is not None:
            sizes += (self.buckets, self.context_length)
            return DisentangledEncoder(*sizes, *fields, self.remat, name="Transformer")
        options = {"remat": self.remat, "post_norm": True, "attention_dropout": self.dropout}
        return Encoder(*sizes, *fields, **options, name="Transformer")

    def _positions(self, mask_BxT):
        if self.position_offset:
            counted = jnp.where(mask_BxT, jnp.cumsum(mask_BxT, axis=1, dtype=jnp.int32), 0)
            return counted + (self.position_offset - 1)
        return jnp.broadcast_to(jnp.arange(mask_BxT.shape[1], dtype=jnp.int32)[None], mask_BxT.shape)

    def _pool(self, x_BxTxD, mask_BxT):
        if self.pool_type == "mean":
            counted_BxT = mask_BxT.astype(jnp.float32)
            shares_BxT = counted_BxT / jnp.maximum(counted_BxT.sum(axis=1, keepdims=True), 1.0)
            return jnp.einsum("btd,bt->bd", x_BxTxD, shares_BxT, precision=jax.lax.Precision.HIGHEST)
        return x_BxTxD if self.pool_type is None else x_BxTxD[:, 0]

    def _checked(self, inputs):
        tokens, mask, segments = checked_inputs(inputs, INPUTS, self.context_length, "a text encoder")
        segments = jnp.zeros(tokens.shape, jnp.int32) if segments is None else segments
        check_name(self.pool_type, POOL_TYPES, "pool_type")
        check_name(self.activation, ACTIVATIONS, "activation")
        check_name(self.pooler_activation, POOLER_ACTIVATIONS, "pooler_activation")
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} does not divide into {self.num_heads} heads")
        if self.mlm and self.num_classes is not None:
            raise ValueError("a masked language model gives logits of its vocabulary: leave out mlm, or the classes")
        return tokens, mask, segments


class MaskedLanguageHead(nn.Module):
    """Turn tokens into logits of a vocabulary: a dense layer, a norm, and the matrix of the embeddings with a bias."""

    activation: str
    norm_epsilon: float

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array, embedding_VxD: jax.Array | None) -> jax.Array:
        """Map tokens [B, T, D] to logits [B, T, V] in float32, or without the matrix to what it multiplies."""
        x_BxTxD = ACTIVATIONS[self.activation](nn.Dense(x_BxTxD.shape[-1], name="dense")(x_BxTxD))
        x_BxTxD = nn.LayerNorm(epsilon=self.norm_epsilon, name="norm")(x_BxTxD)
        if embedding_VxD is None:
            return x_BxTxD
        bias_V = self.param("bias", nn.initializers.zeros, embedding_VxD.shape[:1])
        return jnp.einsum("btd,vd->btv", x_BxTxD, embedding_VxD) + bias_V[None, None]
