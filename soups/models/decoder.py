"""Build decoders of texts, which foretell the next token: GPT-2, and Llama with its kin."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import Dtype
from jax.sharding import PartitionSpec as P

from soups.models.text_inputs import checked_inputs
from soups.models.vit import ACTIVATIONS
from soups.names import check_name

#: for `soups.train.param_shardings`: heads, hidden layers, embeddings (their width, for few numbers divide GPT-2's
#: vocabulary) and an own matrix of logits are cut over "model", all else is whole
SHARDING_RULES = (
    (r".*/(query|key|value)/kernel", P(None, "model", None)),
    (r".*/MultiHeadDotProductAttention_0/out/kernel", P("model", None, None)),
    (r".*/MlpBlock_0/(Dense_0|gate)/kernel", P(None, "model")),
    (r".*/MlpBlock_0/Dense_1/kernel", P("model", None)),
    (r"token_embedding/embedding|lm_head/kernel", P(None, "model")),
    (r".*", P()),
)
INPUTS = ("tokens", "mask", "segments", "at")
_normal = nn.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True)
class Fields:
    """Hold those fields of a decoder that its blocks need."""

    depth: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int | None
    head_dim: int | None
    rope_theta: float | None
    rms_norm: bool
    gated: bool
    use_bias: bool
    dropout: float
    dtype: Dtype
    activation: str
    norm_epsilon: float
    remat: bool


class Decoder(nn.Module):
    """Foretell each next token as GPT-2 does (Radford et al., 2019), or Llama (Touvron et al., 2023, arXiv:2302.13971).

        decoder = architecture("smollm2-135m").model(None)
        tokenize = text_tokenizer("SmolLM2-135M", "smollm2-135m")
        logits = apply_fn(decoder)(params, tokenize(["The capital of France is"]))  # [1, 16, 49152]

    Without classes it gives the logits of the vocabulary behind every token, in float32, whose matrix is that of the
    embeddings, or "lm_head" where it is not `tied`. With `num_classes` it classifies by a linear head, which starts at
    zero, on the last token of the mask.

    The fields are those of GPT-2. Llama has `num_kv_heads`, fewer keys and values than queries (Ainslie et al., 2023,
    arXiv:2305.13245), `rope_theta`, positions as rotations of queries and keys (Su et al., 2021, arXiv:2104.09864) in
    the place of a table, `rms_norm` (Zhang and Sennrich, 2019, arXiv:1910.07467), a `gated` MLP (Shazeer, 2020,
    arXiv:2002.05202) and no `use_bias`. `head_dim`: None for width / num_heads. `dropout`: the share that training
    drops of embeddings, attention and the outputs of both halves of a block. Parameters are float32; the matrix
    products of blocks and vocabulary are in `dtype`, norms, rotations and softmax in float32. `remat`: the backward
    pass computes each block again instead of keeping what is inside.

    The names of the weights: token_embedding and position_embedding (each with "embedding"), Transformer/
    encoderblock_N/... and Transformer/encoder_norm as in `soups.models.ViT`, with MlpBlock_0/gate/kernel and
    RMSNorm_0/scale for Llama; lm_head, head. `SHARDING_RULES` are for those that are to be cut over several devices.
    """

    num_classes: int | None
    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    vocabulary_size: int
    context_length: int = 1024
    num_kv_heads: int | None = None
    head_dim: int | None = None
    rope_theta: float | None = None
    rms_norm: bool = False
    gated: bool = False
    use_bias: bool = True
    tied: bool = True
    dropout: float = 0.0
    dtype: Dtype = jnp.float32
    activation: str = "gelu_tanh"
    norm_epsilon: float = 1e-5
    remat: bool = False

    @nn.compact
    def __call__(self, inputs: Mapping[str, jax.Array], train: bool = False) -> jax.Array:
        """Map {"tokens": integers [B, T], "mask": booleans [B, T]} to logits [B, T, vocabulary_size] in float32.

        No token sees one behind it, or one where the mask is False, which is padding and counts for no position. Two
        more may be given: "at", integers [B, K], gives the logits behind these tokens alone, [B, K, V]; "segments",
        integers [B, T], lets several ends share their begin, for tokens of segment 0 are seen by all behind them, and
        those of another segment only by their own. A token's position is the number of those that it sees before
        itself. With classes the result is [B, num_classes].

        A ValueError for other inputs, and without segments for more than `context_length` tokens. A row with a position
        beyond the table of GPT-2, as one with a token beyond the vocabulary, is NaN.
        """
        tokens_BxT, mask_BxT, segments_BxT, at_BxK = self._checked(inputs)
        seen_BxTxT = seen(mask_BxT, segments_BxT)
        positions_BxT = jnp.maximum(seen_BxTxT.sum(axis=-1, dtype=jnp.int32) - 1, 0)
        embed = functools.partial(nn.Embed, features=self.width, embedding_init=_normal)
        tokens = embed(self.vocabulary_size, name="token_embedding")
        x_BxTxD = tokens(tokens_BxT)
        if self.rope_theta is None:
            x_BxTxD = x_BxTxD + embed(self.context_length, name="position_embedding")(positions_BxT)
        x_BxTxD = nn.Dropout(self.dropout)(x_BxTxD, deterministic=not train).astype(self.dtype)
        fields = Fields(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Fields)})
        x_BxTxD = Blocks(fields, name="Transformer")(x_BxTxD, seen_BxTxT, positions_BxT, train)
        if self.num_classes is not None:
            x_BxD = _rows(x_BxTxD, _last(mask_BxT)[:, None])[:, 0]
            return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="head")(x_BxD)
        x_BxKxD = x_BxTxD if at_BxK is None else _rows(x_BxTxD, at_BxK)
        if not self.tied:
            options = {"use_bias": False, "dtype": self.dtype, "kernel_init": _normal, "name": "lm_head"}
            return nn.Dense(self.vocabulary_size, **options)(x_BxKxD).astype(jnp.float32)
        matrices = x_BxKxD.astype(self.dtype), tokens.embedding.astype(self.dtype)
        return jnp.einsum("bkd,vd->bkv", *matrices, preferred_element_type=jnp.float32)

    def _checked(self, inputs):
        free = isinstance(inputs, Mapping) and "segments" in inputs  # then rows are longer than what their ends see
        longest = 2**31 - 1 if free else self.context_length
        found = checked_inputs(inputs, INPUTS, longest, "a decoder of texts")
        check_name(self.activation, ACTIVATIONS, "activation")
        if self.head_dim is None and self.width % self.num_heads:
            raise ValueError(f"width {self.width} does not divide into {self.num_heads} heads")
        if self.num_heads % (self.num_kv_heads or self.num_heads):
            raise ValueError(f"{self.num_heads} heads do not divide into {self.num_kv_heads} groups")
        if self.num_classes is not None and found[3] is not None:
            raise ValueError('"at" chooses logits of the vocabulary: a classifier takes none')
        return found


class Blocks(nn.Module):
    """Apply the blocks and the final norm of a decoder."""

    of: Fields

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array, seen_BxTxT: jax.Array, positions_BxT: jax.Array, train: bool) -> jax.Array:
        """Map tokens [B, T, D] to [B, T, D] in float32."""
        block = nn.remat(DecoderBlock, static_argnums=(4,)) if self.of.remat else DecoderBlock
        for index in range(self.of.depth):
            made = block(self.of, name=f"encoderblock_{index}")
            x_BxTxD = made(x_BxTxD, seen_BxTxT, positions_BxT, train)
        return _norm(self.of, "encoder_norm")(x_BxTxD.astype(jnp.float32))


class DecoderBlock(nn.Module):
    """Add attention, then an MLP, each to the normalised tokens."""

    of: Fields

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array, seen_BxTxT: jax.Array, positions_BxT: jax.Array, train: bool) -> jax.Array:
        """Map tokens [B, T, D] to [B, T, D]; `seen`: which key [.., T] each query [.., T, :] sees."""
        attention = GroupedAttention(self.of, name="MultiHeadDotProductAttention_0")
        mlp, kind = GatedMlp(self.of, name="MlpBlock_0"), "RMSNorm" if self.of.rms_norm else "LayerNorm"

        def added(x, part, name, *inputs):
            y = _norm(self.of, name)(x.astype(jnp.float32)).astype(self.of.dtype)
            return x + nn.Dropout(self.of.dropout)(part(y, *inputs), deterministic=not train)

        x_BxTxD = added(x_BxTxD, attention, f"{kind}_0", seen_BxTxT, positions_BxT, train)
        return added(x_BxTxD, mlp, f"{kind}_1")


class GroupedAttention(nn.Module):
    """Attend with several heads, of which some share their keys and values; the softmax is in float32."""

    of: Fields

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array, seen_BxTxT: jax.Array, positions_BxT: jax.Array, train: bool) -> jax.Array:
        """Map tokens [B, T, D] to [B, T, D]."""
        of, width = self.of, x_BxTxD.shape[-1]
        dense = functools.partial(nn.DenseGeneral, use_bias=of.use_bias, dtype=of.dtype, kernel_init=_normal)
        groups, size = of.num_kv_heads or of.num_heads, of.head_dim or width // of.num_heads
        query = dense((of.num_heads, size), name="query")(x_BxTxD)
        key, value = (dense((groups, size), name=name)(x_BxTxD) for name in ("key", "value"))
        if of.rope_theta is not None:
            query, key = (rotated(x, positions_BxT, of.rope_theta) for x in (query, key))
        # [B, T, G, H/G, E]: the heads of a group lie side by side
        query = (query * size**-0.5).reshape(*query.shape[:2], groups, -1, size)
        scores = jnp.einsum("bqgne,btge->bgnqt", query, key, preferred_element_type=jnp.float32)
        scores = jnp.where(seen_BxTxT[:, None, None], scores, jnp.finfo(jnp.float32).min)  # finite: padding is no NaN
        shares = nn.Dropout(of.dropout)(nn.softmax(scores).astype(of.dtype), deterministic=not train)
        mixed = jnp.einsum("bgnqt,btge->bqgne", shares, value)
        mixed_BxTxHxE = mixed.reshape(*mixed.shape[:2], of.num_heads, size)
        return dense(width, axis=(-2, -1), name="out")(mixed_BxTxHxE)


class GatedMlp(nn.Module):
    """Apply two dense layers to every token, with an activation between them, or that of a gate times the first."""

    of: Fields

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        """Map tokens [B, T, D] to [B, T, D]."""
        dense = functools.partial(nn.Dense, use_bias=self.of.use_bias, dtype=self.of.dtype, kernel_init=_normal)
        activation, hidden = ACTIVATIONS[self.of.activation], dense(self.of.mlp_dim, name="Dense_0")(x_BxTxD)
        if self.of.gated:
            hidden = activation(dense(self.of.mlp_dim, name="gate")(x_BxTxD)) * hidden
        else:
            hidden = activation(hidden)
        return dense(x_BxTxD.shape[-1], name="Dense_1")(hidden)


def seen(mask_BxT: jax.Array, segments_BxT: jax.Array | None = None) -> jax.Array:
    """Return which tokens each one sees, booleans [B, T, T]: itself and those before it, as `Decoder` says."""
    length = mask_BxT.shape[1]
    found = jnp.tri(length, dtype=bool)[None] & mask_BxT[:, None, :]
    if segments_BxT is None:
        return found
    own = segments_BxT[:, :, None] == segments_BxT[:, None, :]
    return found & (own | (segments_BxT[:, None, :] == 0))


def rotated(x_BxTxHxE: jax.Array, positions_BxT: jax.Array, theta: float) -> jax.Array:
    """Turn pairs of numbers, the i-th of the first and of the second half, by position · theta^(−2i / E)."""
    half = x_BxTxHxE.shape[-1] // 2
    rates = (np.float64(theta) ** (-np.arange(half) / half)).astype(np.float32)
    angles = positions_BxT.astype(jnp.float32)[..., None, None] * rates[None, None, None]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x_BxTxHxE.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BxTxHxE.dtype)


def _norm(of, name):
    kind = nn.RMSNorm if of.rms_norm else nn.LayerNorm
    return kind(epsilon=of.norm_epsilon, dtype=jnp.float32, name=name)


def _last(mask_BxT):
    return mask_BxT.shape[1] - 1 - jnp.argmax(mask_BxT[:, ::-1], axis=1)


def _rows(x_BxTxD, at_BxK):
    return jnp.take_along_axis(x_BxTxD, at_BxK[..., None], axis=1)
