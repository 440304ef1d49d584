"""Build T5, which reads a text and writes another one."""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import Dtype
from jax.sharding import PartitionSpec as P

from soups.models.text_inputs import checked_inputs
from soups.models.vit import ACTIVATIONS
from soups.tree import Tree

#: for `soups.train.param_shardings`: heads, hidden layers and embeddings are cut over "model", all else is whole
SHARDING_RULES = (
    (r".*/(query|key|value)/kernel", P(None, "model", None)),
    (r".*attention/out/kernel", P("model", None, None)),
    (r".*/(gate|hidden)/kernel", P(None, "model")),
    (r".*/mlp/out/kernel", P("model", None)),
    (r"token_embedding/embedding", P(None, "model")),
    (r"lm_head/kernel", P("model", None)),
    (r".*", P()),
)


class T5(nn.Module):
    """Return the logits of a text's tokens after another text (Raffel et al., 2020, arXiv:1910.10683).

        network = architecture("t5-small").model(None)
        logits = apply_fn(network)(params, {**tokenize(texts), "decoder_tokens": tokens})  # [B, U, V]

    `gated`: T5 1.1, whose hidden layers are a GELU of one matrix times another one, and whose logits have the matrix
    "lm_head" of their own; T5 1.0 has a ReLU, and the embeddings times `width`^−½. `head_dim`: numbers of a head of
    attention, which scores are not divided by. `buckets`: of relative positions, which the scores of all blocks share;
    those of `distance` or more have the last one. `context_length`: the most tokens of a text. `dropout` is that of
    embeddings, attention, hidden layers, the outputs of all parts and the last norm. Parameters are float32; the
    blocks' matrix products are in `dtype`, norms and logits in float32. `remat`: the backward pass computes each block
    again instead of keeping what is inside.

    The names of the weights: token_embedding/embedding; in encoder and in decoder relative_bias/embedding, norm/scale,
    block_N/{attention, cross_attention}/{query, key, value, out}/kernel, block_N/mlp/{gate, hidden, out}/kernel and
    {attention, cross_attention, mlp}_norm/scale; lm_head/kernel. `SHARDING_RULES` are for those that are to be cut over
    several devices.
    """

    num_classes: None
    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    vocabulary_size: int = 32128
    head_dim: int = 64
    gated: bool = False
    buckets: int = 32
    distance: int = 128
    context_length: int = 512
    dropout: float = 0.0
    dtype: Dtype = jnp.float32
    norm_epsilon: float = 1e-6
    remat: bool = False

    @nn.compact
    def __call__(self, inputs: Mapping[str, jax.Array], train: bool = False) -> jax.Array:
        """Map {"tokens", "mask", "decoder_tokens": integers [B, U]} to logits [B, U, V] in float32.

        Tokens and mask are those of a tokenizer. A decoder begins with the token of padding, and the logits at a place
        are those of the token after it. It may write C texts for each that is read, in rows [B · C, U], side by side.
        A ValueError for other inputs, and for more than `context_length` tokens.
        """
        tokens_BxT, mask_BxT, written_NxU = self._checked(inputs)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        embed = nn.Embed(
            self.vocabulary_size, self.width, embedding_init=nn.initializers.normal(1.0), name="token_embedding"
        )
        fields = (self.depth, self.mlp_dim, self.num_heads, self.head_dim, self.gated, self.buckets, self.distance)
        fields += (self.dropout, self.dtype, self.norm_epsilon, self.remat)
        encoded_BxTxD = T5Stack(*fields, name="encoder")(drop(embed(tokens_BxT)), train, mask_BxT)
        read = (encoded_BxTxD, mask_BxT)
        x_NxUxD = T5Stack(*fields, causal=True, name="decoder")(drop(embed(written_NxU)), train, None, read)
        if self.gated:
            kernel_init = nn.initializers.normal(self.width**-0.5)
            return nn.Dense(self.vocabulary_size, use_bias=False, kernel_init=kernel_init, name="lm_head")(x_NxUxD)
        return embed.attend(x_NxUxD * self.width**-0.5)

    def _checked(self, inputs):
        if self.num_classes is not None:
            raise ValueError(
                "T5 writes the names of classes, and has no head: soups.models.t5.word_scores compares them"
            )
        given = dict(inputs) if isinstance(inputs, Mapping) else inputs
        written = given.pop("decoder_tokens", None) if isinstance(given, dict) else None
        names = ("tokens", "mask", "segments")
        tokens, mask, _ = checked_inputs(given, names, self.context_length, "the encoder of T5")
        if written is None or written.ndim != 2 or len(written) % len(tokens) or not written.size:
            found = "there are none" if written is None else f"they are {list(written.shape)}"
            raise ValueError(f"decoder_tokens must be [B · C, U] for {len(tokens)} texts, but {found}")
        if not jnp.issubdtype(written.dtype, jnp.integer):
            raise ValueError(f"decoder_tokens must be integers, but they are {written.dtype}")
        return tokens, mask, written


class T5Stack(nn.Module):
    """Apply the blocks of an encoder, or with `causal` of a decoder, and a norm."""

    depth: int
    mlp_dim: int
    num_heads: int
    head_dim: int
    gated: bool
    buckets: int
    distance: int
    dropout: float
    dtype: Dtype
    norm_epsilon: float
    remat: bool
    causal: bool = False

    @nn.compact
    def __call__(self, x_NxTxD: jax.Array, train: bool, mask_NxT: jax.Array | None, read=None) -> jax.Array:
        """Map tokens [N, T, D] to [N, T, D] in float32; `read`: what the encoder gives, and its mask."""
        length = x_NxTxD.shape[1]
        bias = nn.Embed(self.buckets, self.num_heads, embedding_init=nn.initializers.normal(0.1), name="relative_bias")
        places_TxT = relative_buckets(length, self.buckets, self.distance, causal=self.causal)
        scores_1xHxTxT = bias(jnp.asarray(places_TxT)).transpose(2, 0, 1)[None]
        block = nn.remat(T5Block, static_argnums=(2,)) if self.remat else T5Block
        fields = (self.mlp_dim, self.num_heads, self.head_dim, self.gated, self.dropout, self.dtype, self.norm_epsilon)
        seen = jnp.tri(length, dtype=bool)[None, None] if self.causal else mask_NxT[:, None, None]
        for index in range(self.depth):
            x_NxTxD = block(*fields, name=f"block_{index}")(x_NxTxD, train, scores_1xHxTxT, seen, read)
        norm = nn.RMSNorm(epsilon=self.norm_epsilon, dtype=jnp.float32, name="norm")
        return nn.Dropout(self.dropout, deterministic=not train)(norm(x_NxTxD))


class T5Block(nn.Module):
    """Add attention, in a decoder also attention to the encoder's tokens, and an MLP, each of the normalised tokens."""

    mlp_dim: int
    num_heads: int
    head_dim: int
    gated: bool
    dropout: float
    dtype: Dtype
    norm_epsilon: float

    @nn.compact
    def __call__(self, x_NxTxD: jax.Array, train: bool, scores: jax.Array, seen: jax.Array, read) -> jax.Array:
        """Map tokens [N, T, D] to [N, T, D]."""
        drop = nn.Dropout(self.dropout, deterministic=not train)
        attention = functools.partial(T5Attention, self.num_heads, self.head_dim, self.dropout, self.dtype)

        def norm(name):
            return nn.RMSNorm(epsilon=self.norm_epsilon, dtype=jnp.float32, name=f"{name}_norm")(x_NxTxD)

        y_NxTxD = norm("attention")
        x_NxTxD = x_NxTxD + drop(attention(name="attention")(y_NxTxD, y_NxTxD, train, seen, scores))
        if read is not None:
            # what several texts ask of one encoded text, side by side
            encoded_BxTxD, mask_BxT = read
            y_BxQxD = norm("cross_attention").reshape(len(encoded_BxTxD), -1, x_NxTxD.shape[-1])
            mixed = attention(name="cross_attention")(y_BxQxD, encoded_BxTxD, train, mask_BxT[:, None, None])
            x_NxTxD = x_NxTxD + drop(mixed).reshape(x_NxTxD.shape)
        mlp = T5Mlp(self.mlp_dim, self.gated, self.dropout, self.dtype, name="mlp")
        return x_NxTxD + drop(mlp(norm("mlp"), train))


class T5Attention(nn.Module):
    """Attend with several heads, without biases and without dividing the scores; the softmax is in float32."""

    num_heads: int
    head_dim: int
    dropout: float
    dtype: Dtype

    @nn.compact
    def __call__(self, queries, inputs, train, seen, scores=None) -> jax.Array:
        """Map queries [B, Q, D] and inputs [B, T, D] to [B, Q, D]; `scores` [1, H, Q, T] are added."""
        width, heads = inputs.shape[-1], (self.num_heads, self.head_dim)
        dense = functools.partial(nn.DenseGeneral, use_bias=False, dtype=self.dtype)
        drawn = nn.initializers.normal(width**-0.5)
        query_init = nn.initializers.normal((width * self.head_dim) ** -0.5)
        query_BxQxHxE = dense(heads, kernel_init=query_init, name="query")(queries)
        key_BxTxHxE = dense(heads, kernel_init=drawn, name="key")(inputs)
        value_BxTxHxE = dense(heads, kernel_init=drawn, name="value")(inputs)
        options = {"preferred_element_type": jnp.float32}
        scores_BxHxQxT = jnp.einsum("bqhe,bthe->bhqt", query_BxQxHxE, key_BxTxHxE, **options)
        if scores is not None:
            scores_BxHxQxT = scores_BxHxQxT + scores
        # finite, so that a row without any input is no NaN
        scores_BxHxQxT = jnp.where(seen, scores_BxHxQxT, jnp.finfo(jnp.float32).min)
        shares_BxHxQxT = nn.softmax(scores_BxHxQxT).astype(self.dtype)
        shares_BxHxQxT = nn.Dropout(self.dropout, deterministic=not train)(shares_BxHxQxT)
        mixed_BxQxHxE = jnp.einsum("bhqt,bthe->bqhe", shares_BxHxQxT, value_BxTxHxE)
        out_init = nn.initializers.normal((heads[0] * heads[1]) ** -0.5)
        return dense(width, axis=(-2, -1), kernel_init=out_init, name="out")(mixed_BxQxHxE)


class T5Mlp(nn.Module):
    """Apply two matrices with a ReLU between them, or `gated` three with a GELU of one times another."""

    mlp_dim: int
    gated: bool
    dropout: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x_NxTxD: jax.Array, train: bool) -> jax.Array:
        """Map tokens [N, T, D] to [N, T, D]."""
        width = x_NxTxD.shape[-1]

        def dense(outputs, inputs, name):
            drawn = nn.initializers.normal(inputs**-0.5)
            return nn.Dense(outputs, use_bias=False, dtype=self.dtype, kernel_init=drawn, name=name)

        hidden = dense(self.mlp_dim, width, "hidden")(x_NxTxD)
        if self.gated:
            hidden = ACTIVATIONS["gelu_tanh"](dense(self.mlp_dim, width, "gate")(x_NxTxD)) * hidden
        else:
            hidden = nn.relu(hidden)
        hidden = nn.Dropout(self.dropout, deterministic=not train)(hidden)
        return dense(width, self.mlp_dim, "out")(hidden)


def relative_buckets(length: int, buckets: int, distance: int, *, causal: bool) -> np.ndarray:
    """Return the buckets [T, T] of keys at d = k − q from queries.

    An encoder has half of the buckets for d <= 0 and half for d > 0, a decoder all for −d. Of N buckets those of |d|
    below N / 2 are its own, and beyond N / 2 + ⌊N / 2 · log(|d| / (N / 2)) / log(distance / (N / 2))⌋, at most N − 1.
    """
    away = np.arange(length)[None] - np.arange(length)[:, None]
    count = buckets if causal else buckets // 2
    far, exact = np.maximum(-away, 0) if causal else np.abs(away), count // 2
    ratio = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact)) / np.float32(np.log(distance / exact))
    logarithmic = np.minimum(exact + (ratio * np.float32(count - exact)).astype(np.int32), count - 1)
    own = np.where(far < exact, far, logarithmic)
    return (own + (0 if causal else count * (away > 0))).astype(np.int32)


def word_scores(apply: Callable, words: np.ndarray) -> Callable:
    """Return `scores(params, inputs) -> [B, C]`: the log-probabilities in nats of words as what a network writes.

        words = label_words(tokenize, ["not_entailment", "entailment"])
        scores = word_scores(architecture("t5-small").apply_fn(None), words)

    `apply` gives logits of "decoder_tokens", as `T5` does; `words`: integers [C, U], the tokens of each word with its
    end token, behind it −1. A ValueError for others.
    """
    started_CxU, words_CxU = decoder_tokens(words), jnp.asarray(words)

    def scores(params: Tree, inputs: Mapping[str, jax.Array]) -> jax.Array:
        count = len(inputs["tokens"])
        logits = apply(params, {**inputs, "decoder_tokens": jnp.tile(started_CxU, (count, 1))})
        logits_BxCxUxV = logits.astype(jnp.float32).reshape(count, *started_CxU.shape, -1)
        own = jnp.maximum(words_CxU, 0)[None, ..., None]
        of_token = jnp.take_along_axis(jax.nn.log_softmax(logits_BxCxUxV), own, axis=-1)[..., 0]
        return jnp.where(words_CxU[None] >= 0, of_token, 0.0).sum(axis=-1)

    return scores


def label_words(tokenize: Callable, names: Sequence[str]) -> np.ndarray:
    """Return the tokens of the words for classes, int32 [C, U], each with its end token, behind it −1.

    `tokenize` is a tokenizer of `soups.models.text_tokenizer`. A ValueError for words that become the same tokens, or
    are cut.
    """
    encoded = tokenize.encode(list(names))
    if encoded.cut:
        raise ValueError(f"words for classes have more than {tokenize.length} tokens: {', '.join(names)}")
    mask = encoded.inputs["mask"]
    words = np.where(mask, encoded.inputs["tokens"], -1)[:, : mask.sum(axis=1).max()]
    for index, word in enumerate(words):
        if (same := np.flatnonzero((words[:index] == word).all(axis=1))).size:
            raise ValueError(f"the words {names[same[0]]!r} and {names[index]!r} become the same tokens")
    return words


def decoder_tokens(words: np.ndarray, start: int = 0) -> np.ndarray:
    """Return what a decoder is given so that it writes words [C, U]: the start token, and each word but its last token.

    A ValueError for what are no words: other arrays, or one without a token.
    """
    words = np.asarray(words)
    if words.ndim != 2 or not np.issubdtype(words.dtype, np.integer) or not words.size or (words[:, 0] < 0).any():
        raise ValueError(f"words must be integers [C, U], each with a token, not {words.dtype} {list(words.shape)}")
    shifted = np.concatenate([np.full((len(words), 1), start), words[:, :-1]], axis=1)
    return np.maximum(shifted, 0).astype(np.int32)
