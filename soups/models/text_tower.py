"""Build CLIP's text tower, a causal transformer over tokens."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from soups.models.vit import Encoder

VOCABULARY_SIZE, CONTEXT_LENGTH = 49408, 77


class TextTower(nn.Module):
    """Encode token sequences with a causal transformer (Radford et al., 2021, arXiv:2103.00020).

    The features are those of the end-of-text token, the largest number in a sequence; no token sees a later one, so
    that padding behind it changes nothing. A matrix "projection" follows, and no normalisation. Parameters are float32,
    the blocks' matrix products are in `dtype`.
    """

    width: int
    depth: int
    num_heads: int
    projection_size: int
    activation: str = "quick_gelu"
    vocabulary_size: int = VOCABULARY_SIZE
    context_length: int = CONTEXT_LENGTH
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens_BxT: jax.Array) -> jax.Array:
        """Map tokens [B, T] of integers, at most `context_length`, to features [B, projection_size] in float32."""
        if tokens_BxT.ndim != 2 or not 1 <= tokens_BxT.shape[1] <= self.context_length:
            raise ValueError(f"tokens must be [B, T], T from 1 to {self.context_length}, not {tokens_BxT.shape}")
        if not jnp.issubdtype(tokens_BxT.dtype, jnp.integer):
            raise ValueError(f"tokens must be integers, but they are {tokens_BxT.dtype}")
        shape = (1, self.context_length, self.width)
        initializer = nn.initializers.normal(0.02)
        embedding = nn.Embed(self.vocabulary_size, self.width, embedding_init=initializer, name="token_embedding")
        position = self.param("pos_embedding", nn.initializers.normal(0.01), shape)
        x = embedding(tokens_BxT) + position[:, : tokens_BxT.shape[1]]
        options = {"dtype": self.dtype, "activation": self.activation, "norm_epsilon": 1e-5, "causal": True}
        encoder = Encoder(self.depth, 4 * self.width, self.num_heads, **options, name="Transformer")
        x = encoder(x.astype(self.dtype))
        last_Bx1x1 = jnp.argmax(tokens_BxT, axis=1)[:, None, None]
        x_BxD = jnp.take_along_axis(x, last_Bx1x1, axis=1)[:, 0]
        return nn.Dense(self.projection_size, use_bias=False, name="projection")(x_BxD)
